from collections.abc import Iterator

import pytest
from example_site import Site

from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture(scope="session")
def running_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with PlayedProvider() as provider:
        site = Site(tmp_path_factory.mktemp("example"), provider)
        site.start()
        try:
            yield site
        finally:
            site.close()


@pytest.fixture
def site(running_site: Site) -> Site:
    """The example, running and filled with its people; nothing has happened that the test would see."""
    running_site.forget()
    return running_site
