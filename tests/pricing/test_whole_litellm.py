"""The whole of LiteLLM's file, from its wheel: the book does not drift from it, and half of it is not taken for it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from price_server import PriceServer, price_server

from flask_llm_cost.errors import PriceSourceError
from flask_llm_cost.pricing import PriceBook, upkeep
from flask_llm_cost.pricing.catalog import bundled
from flask_llm_cost.pricing.fetch import own_mirror
from flask_llm_cost.pricing.pricefile import PriceFile
from flask_llm_cost.pricing.sources import Feed
from flask_llm_cost.pricing.sync import describe

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
LITELLM = "litellm==1.109.1"
INSIDE = "litellm/model_prices_and_context_window_backup.json"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of the edition that the bundled book was made from."""
    folder = tmp_path_factory.mktemp("litellm")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, LITELLM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and os.environ.get("CI", "").lower() != "true":
        pytest.skip("litellm cannot be downloaded here")
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        data = wheel.read(INSIDE)
    shutil.rmtree(folder)
    return data


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PriceServer]:
    with price_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def _sync(server: PriceServer, path: Path, data: bytes) -> upkeep.Sync:
    server.say("/prices", data)
    url = server.url("/prices")
    feeds = (Feed("litellm", url, own_mirror(url)),)
    fetch = functools.partial(upkeep.fetch, context=server.context())
    return upkeep.synchronise(path, NOW, whole_book=True, feeds=feeds, fetch=fetch)


def test_the_bundled_book_does_not_drift_from_it(module_server: PriceServer, litellm: bytes, tmp_path: Path) -> None:
    """Thousands of entries, no difference; written, the file prices as the book does."""
    path = tmp_path / "prices.json"
    done = _sync(module_server, path, litellm)
    assert done.plan.compared > 3000
    assert not done.plan.drifts, "\n".join(describe(done.plan))[:2000]
    assert done.save(NOW, accept=False)
    file = PriceFile.load(path)
    assert len(file.models) == len(bundled())
    book, own = PriceBook.load(), PriceBook.load(file=path)
    for key in sorted(book.keys):
        theirs, ours = book.entry(key), own.entry(key)
        assert theirs is not None
        assert ours is not None
        assert (theirs.block, theirs.history, theirs.scheduled) == (ours.block, ours.history, ours.scheduled), key


def test_less_of_it_is_not_taken_for_it(module_server: PriceServer, litellm: bytes, tmp_path: Path) -> None:
    """Cut off in the middle it is no JSON; with a fifth of its models gone it is refused."""
    path = tmp_path / "prices.json"
    cut = _sync(module_server, path, litellm[: len(litellm) // 2])
    assert isinstance(cut.plan.failures[0], PriceSourceError)
    assert "cut off" in str(cut.plan.failures[0])
    table = json.loads(litellm)
    fewer = dict(list(table.items())[: len(table) * 4 // 5])
    done = _sync(module_server, path, json.dumps(fewer).encode())
    assert done.plan.refused
    assert not done.save(NOW, accept=False)
    assert not path.exists()
