"""``flask llm-cost prices …`` as a person runs it: real options, exit codes, and a file that running processes take over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, track
from flask_llm_cost.doctor import prices as checks
from flask_llm_cost.extension import state_of
from flask_llm_cost.pricing.catalog import bundled

Run = Callable[..., Any]


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return _app(tmp_path)


def _app(tmp_path: Path, **config: Any) -> Flask:
    app = Flask("shop", instance_path=str(tmp_path / "instance"))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'app.db'}", **config)
    app.testing = True
    database = SQLAlchemy(app)
    app.extensions["costs"] = LlmCostTracker(app)
    with app.app_context():
        database.create_all()
    return app


def _run(app: Flask, *args: str) -> Any:
    return app.test_cli_runner().invoke(args=["llm-cost", "prices", *args])


def _mirror(tmp_path: Path, **models: dict[str, Any]) -> str:
    """A file of LiteLLM's form."""
    path = tmp_path / "mirror.json"
    path.write_text(json.dumps({name: {"litellm_provider": "acme", **raw} for name, raw in models.items()}))
    return str(path)


def _own(tmp_path: Path, **models: dict[str, Any]) -> Path:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"models": {f"acme/{name}": raw for name, raw in models.items()}}))
    return path


def _price(app: Flask, model: str) -> Decimal | None:
    with app.app_context():
        total: Decimal | None = app.extensions["costs"].quote("acme", model, usage={"input": 1_000_000}).total
    return total


def test_a_file_that_appears_changes_and_goes_is_followed_without_a_restart(app: Flask, tmp_path: Path) -> None:
    """The running app prices its next call by it; a file with a slip in it leaves the prices as they were."""
    assert _price(app, "a") is None
    result = _run(app, "set", "acme/a", "input=0.30", "output=1.20")
    assert result.exit_code == 0, result.output
    assert "acme/a: 1M input = $0.30" in result.output
    assert _price(app, "a") == Decimal("0.30")
    assert _run(app, "set", "acme/a", "input=0.40").exit_code == 0
    assert _price(app, "a") == Decimal("0.40")
    path = tmp_path / "instance" / "llm_cost_prices.json"
    kept = path.read_bytes()
    path.write_bytes(kept[:-20])
    assert _price(app, "a") == Decimal("0.40")
    path.write_bytes(kept)
    assert _price(app, "a") == Decimal("0.40")
    path.unlink()
    assert _price(app, "a") is None


def test_a_look_costs_no_reading(app: Flask) -> None:
    """As long as the file stays as it is, the book is the same object."""
    _run(app, "set", "acme/a", "input=0.30")
    state = state_of(app)
    assert state.book is state.book


def test_a_rate_per_token_is_refused_until_it_is_meant(app: Flask) -> None:
    """Nothing is written; --yes takes it."""
    result = _run(app, "set", "openai/gpt-4o", "input=0.0000025")
    assert result.exit_code == 1
    assert "1M input = $0.0000025" in result.output
    assert "about $2.50 was to be expected" in result.output
    assert not state_of(app).prices.path.exists()
    assert _run(app, "set", "openai/gpt-4o", "input=0.0000025", "--yes").exit_code == 0


def test_a_component_is_given_once(app: Flask) -> None:
    """Two rates for one component are refused: nobody is to guess which of them is meant."""
    result = _run(app, "set", "acme/a", "input=1", "input=2")
    assert (result.exit_code, "give each component once" in result.output) == (2, True)


def test_a_ledger_without_tables_is_said_with_its_remedy(app: Flask, tmp_path: Path) -> None:
    """Where a check cannot ask the ledger which models have no price, it says which command helps."""
    with app.app_context():
        app.extensions["sqlalchemy"].drop_all()
    result = _run(app, "check", "--from", _mirror(tmp_path, a={"input_cost_per_token": 1e-06}))
    assert "flask db upgrade" in result.output


def test_init_starts_from_the_bundled_book_once(app: Flask) -> None:
    """Every model of it; a file that is there is not overwritten."""
    result = _run(app, "init")
    assert result.exit_code == 0
    assert f"{len(bundled()):,} models" in result.output
    again = _run(app, "init")
    assert again.exit_code == 1
    assert "prices sync" in again.output


def test_sync_checks_previews_writes_and_refuses(tmp_path: Path) -> None:
    """The same difference from each of them; exit codes that a pipeline can use."""
    path = _own(tmp_path, a={"rates": {"input": "1"}, "_source": "litellm"})
    app = _app(tmp_path, LLM_COST_PRICES_FILE=path)
    mirror = _mirror(tmp_path, a={"input_cost_per_token": 1.5e-06})
    before = path.read_bytes()
    for command in (("check",), ("sync", "--preview")):
        result = _run(app, *command, "--from", mirror)
        assert "1 -> 1.5" in result.output
        assert result.exit_code == (1 if command == ("check",) else 0)
        assert path.read_bytes() == before
    assert _price(app, "a") == Decimal(1)
    assert _run(app, "sync", "--from", mirror).exit_code == 0
    assert _price(app, "a") == Decimal("1.5")
    assert _run(app, "check", "--from", mirror).exit_code == 0
    far = _mirror(tmp_path, a={"input_cost_per_token": 1.5e-02})
    refused = _run(app, "sync", "--from", far)
    assert refused.exit_code == 1
    assert "--accept takes it" in refused.output
    assert _price(app, "a") == Decimal("1.5")
    assert _run(app, "sync", "--accept", "--from", far).exit_code == 0
    assert _price(app, "a") == Decimal(15000)
    flagged = _mirror(tmp_path, a={"input_cost_per_token": 4e-03})
    strict = _run(app, "sync", "--strict", "--from", flagged)
    assert strict.exit_code == 1
    assert _price(app, "a") == Decimal(15000)
    assert _run(app, "sync", "--from", flagged).exit_code == 0
    assert _price(app, "a") == Decimal(4000)


def test_a_source_that_cannot_be_had_leaves_the_prices(app: Flask, tmp_path: Path) -> None:
    """One line that says so, exit code 1, no file."""
    result = _run(app, "sync", "--from", str(tmp_path / "nothing.json"))
    assert result.exit_code == 1
    assert "FAILED  nothing.json: cannot be read" in result.output
    assert not state_of(app).prices.path.exists()
    result = _run(app, "sync", "--from", "http://prices.example/prices.json")
    assert result.exit_code == 1
    assert "only https:// is fetched" in result.output


def test_models_that_the_ledger_saw_without_a_price_are_added(app: Flask, tmp_path: Path) -> None:
    """By the very key of the call; then backfill is named."""
    with app.app_context():
        track("acme", model="new-1", usage={"input": 1000})
        track("acme", model="other", usage={"input": 1000})
        assert app.extensions["costs"].flush()
    path = _own(tmp_path)
    app = _app(tmp_path, LLM_COST_PRICES_FILE=path)
    result = _run(app, "sync", "--from", _mirror(tmp_path, **{"new-1": {"input_cost_per_token": 1e-06}}))
    assert "+ acme/new-1" in result.output
    assert "flask llm-cost backfill" in result.output
    assert _price(app, "new-1") == Decimal(1)
    assert _price(app, "other") is None


def test_what_was_asked_for_is_added_or_said(app: Flask, tmp_path: Path) -> None:
    """--add, with the exact key; a key that is none is named."""
    path = _own(tmp_path)
    app = _app(tmp_path, LLM_COST_PRICES_FILE=path)
    mirror = _mirror(tmp_path, new={"input_cost_per_token": 1e-06})
    result = _run(app, "sync", "--from", mirror, "--add", "acme/new", "--add", "acme/newer")
    assert result.exit_code == 1
    assert "+ acme/new" in result.output
    assert "acme/newer: no source has it; near: acme/new" in result.output
    assert "write provider/model" in _run(app, "sync", "--from", mirror, "--add", "new").output


def test_a_program_can_read_a_check(tmp_path: Path) -> None:
    """The difference as JSON, rates as the texts that they are in the file, and the same exit code."""
    path = _own(tmp_path, a={"rates": {"input": "1"}, "_source": "litellm"})
    app = _app(tmp_path, LLM_COST_PRICES_FILE=path)
    result = _run(app, "check", "--format", "json", "--from", _mirror(tmp_path, a={"input_cost_per_token": 1.5e-06}))
    found = json.loads(result.output)
    assert (result.exit_code, found["same"], found["failures"]) == (1, False, [])
    assert [(row["key"], row["rates"]) for row in found["changed"]] == [
        ("acme/a", [{"what": "input", "old": "1", "new": "1.5"}])
    ]
    result = _run(app, "check", "--format", "json", "--from", _mirror(tmp_path, a={"input_cost_per_token": 1e-06}))
    assert (result.exit_code, json.loads(result.output)["same"]) == (0, True)


def test_a_pipeline_without_the_database_can_check(tmp_path: Path) -> None:
    """The ledger is asked for models to add; without it the rest is checked all the same."""
    path = _own(tmp_path, a={"rates": {"input": "1"}, "_source": "litellm"})
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite:////nowhere/at/all.db", LLM_COST_PRICES_FILE=path)
    SQLAlchemy(app)
    LlmCostTracker(app)
    result = _run(app, "check", "--from", _mirror(tmp_path, a={"input_cost_per_token": 1e-06}))
    assert result.exit_code == 0, result.output
    assert "the ledger cannot be read" in result.output


def test_list_says_what_models_cost_now(app: Flask) -> None:
    """By a part of the key or a pattern, for people and for programs."""
    result = _run(app, "list", "openai/gpt-4o")
    assert "openai/gpt-4o  input 2.5" in result.output
    rows = json.loads(_run(app, "list", "openai/o3*", "--format", "json").output)
    assert {"key": "openai/o3", "since": "2025-06-10"}.items() <= next(
        row for row in rows if row["key"] == "openai/o3"
    ).items()
    nothing = _run(app, "list", "no-such-thing")
    assert nothing.exit_code == 1


def test_list_names_a_currency_that_is_not_the_usual_one(tmp_path: Path) -> None:
    """Rates in euros are not shown as if they were in dollars."""
    entry = {"currency": "EUR", "rates": {"input": "1"}}
    app = _app(tmp_path, LLM_COST_PRICE_OVERRIDES={"acme/m": entry, "acme/n": {"input": "1"}})
    assert _run(app, "list", "acme/").output.splitlines() == [
        "acme/m  input 1  (in EUR, manual)",
        "acme/n  input 1  (manual)",
    ]


def test_a_file_that_cannot_be_written_says_what_to_do(app: Flask) -> None:
    """In a container the file belongs into the image, not beside the process."""
    path = state_of(app).prices.path
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.write_text("a file where the folder should be")
    result = _run(app, "set", "acme/a", "input=1")
    assert result.exit_code == 1
    assert "checkout" in result.output or "cannot be" in result.output
    os.unlink(path.parent)


def test_doctor_says_how_old_the_prices_are(app: Flask) -> None:
    """By the day on which the file was synchronised, or the bundled book was made, whichever is later."""
    state = state_of(app)
    bundled_day = state.book.dated
    assert bundled_day is not None
    assert state.book.version.startswith(bundled_day.isoformat())
    result = app.test_cli_runner().invoke(args=["llm-cost", "doctor"])
    assert f"{(datetime.now(UTC).date() - bundled_day).days} days old" in result.output
    state.prices.path.parent.mkdir(exist_ok=True)
    state.prices.path.write_text(json.dumps({"synced": {"at": datetime.now(UTC).isoformat()}, "models": {}}))
    assert "0 days old" in app.test_cli_runner().invoke(args=["llm-cost", "doctor"]).output


def test_doctor_warns_of_prices_that_are_old(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the command that renews them."""
    monkeypatch.setattr(checks, "OLD_DAYS", -1)
    result = app.test_cli_runner().invoke(args=["llm-cost", "doctor"])
    assert "warning  price book" in result.output
    assert "run 'flask llm-cost prices sync'" in result.output


def test_doctor_tells_of_a_file_that_an_older_version_made(app: Flask) -> None:
    """It stands before the bundled book, also before what an upgrade brought; a synchronisation renews it."""
    assert _run(app, "init").exit_code == 0
    doctor = ["llm-cost", "doctor"]
    assert "another version of the package" not in app.test_cli_runner().invoke(args=doctor).output
    path = state_of(app).prices.path
    path.write_text(path.read_text().replace(f'"book": "{bundled().version}"', '"book": "2020-01-01.1"'))
    assert "another version of the package" in app.test_cli_runner().invoke(args=doctor).output


def test_a_price_of_your_own_without_a_cache_rate_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line stays unpriced, never the input's rate; the key and the component are named."""
    app = _app(tmp_path, LLM_COST_PRICE_OVERRIDES={"acme/a": {"input": "1", "output": "2"}})
    with app.app_context():
        for _ in range(3):
            record = track("acme", model="a", usage={"input": 10, "cache_read": 1000, "output": 1})
        assert app.extensions["costs"].flush()
    assert record is not None
    told = [message for message in caplog.messages if "names no cache_read" in message]
    assert len(told) == 1
    assert "acme/a" in told[0]
