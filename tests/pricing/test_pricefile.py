"""How a price file is written: whole, in one order, by a source or by hand."""

from __future__ import annotations

import functools
import json
import tomllib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from price_sources import NOW, Sources, entry_of, total_of, write_models

from flask_llm_cost.errors import PriceBookError
from flask_llm_cost.pricing import PriceBook, upkeep
from flask_llm_cost.pricing.fetch import own_mirror
from flask_llm_cost.pricing.pricefile import PriceFile
from flask_llm_cost.pricing.sources import Feed


def test_the_file_is_written_whole_in_one_order(sources: Sources, path: Path) -> None:
    """One entry a line, keys and fields sorted, rates as texts; a sync that changes nothing changes one line."""
    write_models(path, b={"input": 2.0, "_source": "litellm"}, a={"output": "8", "input": "2", "_source": "litellm"})
    sources.models(a={"input": 2, "output": 7.5}, b={"input": 2})
    sources.sync(path)
    lines = path.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith('"acme')] == ['"acme/a"', '"acme/b"']
    assert '"rates": {"input": "2", "output": "7.5"}' in path.read_text()
    path.chmod(0o640)
    sources.sync(path, NOW + timedelta(hours=1))
    different = [line for line in path.read_text().splitlines() if line not in lines]
    assert [line.partition(":")[0] for line in different] == ['"synced"']
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix == ".tmp"] == []


def test_who_reads_while_it_is_written_reads_the_old_one(sources: Sources, path: Path) -> None:
    """The new file takes the place of the old one, which is whole for whoever has it open."""
    write_models(path, a={"input": "1", "_source": "litellm"})
    before = path.read_bytes()
    sources.models(a={"input": 1.5})
    with path.open("rb") as reader:
        sources.sync(path)
        assert reader.read() == before
    assert total_of(path, "a") == Decimal("1.5")


def test_no_secret_of_an_address_is_written(sources: Sources, path: Path) -> None:
    """A mirror's query may hold a key: the file names the mirror without it."""
    write_models(path, a={"input": "1", "_source": "litellm"})
    sources.server.say("/mirror", json.dumps({"models": {"acme/a": {"rates": {"input": "1.5"}}}}).encode())
    url = sources.server.url("/mirror?key=hunter2")
    fetch = functools.partial(upkeep.fetch, context=sources.server.context())
    done = upkeep.synchronise(path, NOW, whole_book=False, feeds=(Feed("mirror", url, own_mirror(url)),), fetch=fetch)
    assert done.save(NOW, accept=False)
    assert sources.server.url("/mirror") in path.read_text()
    assert "hunter2" not in path.read_text()


def test_two_at_once_do_not_undo_each_other(sources: Sources, path: Path) -> None:
    """Whoever wrote in between is not overwritten."""
    write_models(path, a={"input": "1", "_source": "litellm"})
    sources.models(a={"input": 1.5})
    done = sources.sync(path, save=False)
    write_models(path, a={"input": "1", "_source": "litellm"}, b={"input": "7", "_source": "manual"})
    with pytest.raises(PriceBookError, match="changed by somebody else"):
        done.save(NOW, accept=False)
    assert total_of(path, "b") == Decimal(7)


def test_toml_stays_toml(sources: Sources, tmp_path: Path) -> None:
    """With what was written there: modes that are not offered, dates, odd names, and the comments at the top."""
    path = tmp_path / "prices.toml"
    path.write_text(
        '# Prices of ours.\nversion = "one"\n[models."acme/a"]\nrates = {input = 2.0}\n_source = "litellm"\n'
        'modes = {batch = {input = "1"}, priority = false}\nscheduled = [{from = 2027-01-01, rates = {input = "9"}}]\n'
        '[models."acme/odd \\"name\\" é"]\nrates = {input = "3"}\n_source = "manual"\n'
    )
    sources.models(a={"input": 1.5})
    sources.sync(path)
    table = tomllib.loads(path.read_text())
    assert path.read_text().startswith("# Prices of ours.\n")
    assert table["models"]["acme/a"]["rates"] == {"input": "1.5"}
    assert 'acme/odd "name" é' in table["models"]
    assert total_of(path, "a") == Decimal("1.5")
    assert total_of(path, "a", mode="priority") is None
    assert total_of(path, "a", datetime(2027, 1, 2, tzinfo=UTC)) == Decimal(9)
    assert [total_of(path, "a", NOW - timedelta(days=1), mode) for mode in (None, "batch")] == [Decimal(2), Decimal(1)]


def test_yaml_is_refused(tmp_path: Path) -> None:
    """JSON or TOML."""
    with pytest.raises(PriceBookError, match="JSON or TOML"):
        PriceFile.load(tmp_path / "prices.yaml")


def test_a_price_by_hand_replaces_the_whole_entry_from_now_on(path: Path) -> None:
    """What it does not name has no price any more; what was stays the price of its time."""
    write_models(
        path, a={"rates": {"input": "1", "cache_read": "0.1"}, "modes": {"batch": {"input": "0.5"}}, "_source": "litellm"}
    )
    made = upkeep.set_price(path, PriceBook.load(file=path), "acme/a", {"input": "2"}, NOW)
    made.file.save()
    assert made.lines == ("1M input = $2.00",)
    before = NOW - timedelta(seconds=1)
    assert [total_of(path, "a", at) for at in (before, NOW)] == [Decimal(1), Decimal(2)]
    assert [total_of(path, "a", at, cache_read=1_000_000) for at in (before, NOW)] == [Decimal("0.1"), None]
    assert [total_of(path, "a", at, "batch") for at in (before, NOW)] == [Decimal("0.5"), None]
    assert entry_of(path, "a")["_source"] == "manual"


def test_a_price_per_token_is_seen_for_what_it_is(path: Path) -> None:
    """A hundred times from what the model, or its provider's models, cost: said, and left to a person."""
    book = PriceBook.load()
    made = upkeep.set_price(path, book, "openai/ft:gpt-4o-mini:me", {"input": "0.0000003", "output": "1.2"}, NOW)
    assert [outlier.partition(":")[0] for outlier in made.outliers] == ["input"]
    assert upkeep.set_price(path, book, "openai/gpt-4o", {"input": "250"}, NOW).outliers
    assert not upkeep.set_price(path, book, "openai/gpt-4o", {"input": "2.4", "output": "9"}, NOW).outliers


@pytest.mark.parametrize(
    ("key", "rates", "parts"),
    [
        ("gpt-4o", {"input": "1"}, ["provider/model"]),
        ("openai/x", {"inptu": "1"}, ["inptu", "did you mean 'input'"]),
        ("openai/x", {"input": "-1"}, ["input", "-1"]),
        ("openai/x", {"input": "NaN"}, ["input", "NaN"]),
        ("openai/x", {"input": "cheap"}, ["input", "cheap"]),
        ("openai/x", {}, ["at least one rate"]),
    ],
)
def test_a_slip_by_hand_is_named(path: Path, key: str, rates: dict[str, str], parts: list[str]) -> None:
    """Key, component or rate, and what would be right; nothing is written."""
    with pytest.raises(PriceBookError) as failure:
        upkeep.set_price(path, PriceBook.load(), key, rates, NOW)
    assert all(part in str(failure.value) for part in parts), failure.value
    assert not path.exists()
