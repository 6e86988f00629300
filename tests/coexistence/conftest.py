"""An app whose calls go to a provider played on loopback, with the patches as they are before any app is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apps import Apps
from flask import Flask

from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture
def provider() -> Iterator[PlayedProvider]:
    with PlayedProvider() as played:
        yield played


@pytest.fixture
def unpatched() -> Iterator[None]:
    """No patch of ours at the start, and those of the apps made before at the end."""
    patching.uninstall()
    yield
    patching.uninstall()
    patching.install("auto")


@pytest.fixture
def make_app(unpatched: None, provider: PlayedProvider, tmp_path: Path) -> Iterator[Callable[[], Flask]]:
    """Make the app, which installs the patches."""
    apps = Apps(tmp_path, LLM_COST_HOSTS=provider.hosts)
    yield apps.make
    apps.close()


@pytest.fixture
def tokens() -> Callable[[Flask], list[tuple[int | None, int | None]]]:
    """Input and output tokens of every call in an app's ledger, in the order in which they were made."""

    def read(app: Flask) -> list[tuple[int | None, int | None]]:
        state = app.extensions["llm_cost"]
        assert state.ledger.flush(20)
        with state.ledger.session() as session:
            calls = session.query(Call).order_by(Call.occurred_at, Call.id)
            return [(call.input_tokens, call.output_tokens) for call in calls]

    return read
