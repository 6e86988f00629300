"""``flask llm-cost export``: every call in a file, the rows of the dashboard's."""

from __future__ import annotations

import csv
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from ledger_rows import add_call

from flask_llm_cost import LlmCostTracker, dashboard_blueprint
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.export import export_calls
from flask_llm_cost.ledger import call_queries
from flask_llm_cost.ledger.call_queries import CallRow
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Call
from flask_llm_cost.records import new_call_id

Run = Callable[..., Result]
FIRST = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("exporting", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True)
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")
    with app.app_context():
        database.create_all()
        for day in range(4):
            tags = {"feature": "chat", "plan": f"=pro{day}"}
            add_call(database.session, FIRST + timedelta(days=day, hours=23), None if day == 2 else f"0.{day}5", tags=tags)
        database.session.commit()
        yield app
        database.session.remove()
        database.engine.dispose()
    app.extensions["llm_cost"].ledger.close()


@pytest.fixture
def run(app: Flask) -> Run:
    def invoke(*arguments: object) -> Result:
        result = app.test_cli_runner().invoke(args=["llm-cost", "export", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def test_the_file_is_the_dashboards(app: Flask, run: Run, tmp_path: Path) -> None:
    """The file has, byte for byte, what the dashboard sends for the same days."""
    result = run(tmp_path / "calls.csv", "--from", "2026-11-02", "--to", "2026-11-03")
    assert (result.exit_code, "2 calls in" in result.output) == (0, True)
    with app.test_client().get("/costs/calls.csv?from=2026-11-02&to=2026-11-03") as sent:
        assert (tmp_path / "calls.csv").read_bytes() == sent.data
        assert run("-", "--from", "2026-11-02", "--to", "2026-11-03").stdout_bytes == sent.data


def test_all_calls_and_days_of_the_zone(run: Run, tmp_path: Path) -> None:
    """Without days every call is written, newest first; unknown is empty, and a formula in a tag is made harmless."""
    run(tmp_path / "calls.csv")
    with (tmp_path / "calls.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["total_cost"] for row in rows] == ["0.35", "", "0.15", "0.05"]
    assert rows[0]["tag:feature"] == "chat"
    assert rows[0]["other_tags"] == "plan==pro3"
    assert [path.name for path in tmp_path.glob("calls*")] == ["calls.csv"]


def test_an_open_end_is_the_last_day_that_there_is(run: Run, tmp_path: Path) -> None:
    """The first and the last day of the calendar stand for no end, in the zones of which they are partly beyond it, too."""
    run(tmp_path / "whole.csv")
    run(tmp_path / "calls.csv", "--from", "0001-01-01", "--to", "9999-12-31")
    assert (tmp_path / "calls.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_days_are_those_of_the_reporting_zone(app: Flask, run: Run, tmp_path: Path) -> None:
    """In Berlin a call at 23:00 UTC is one of the next day."""
    app.extensions["llm_cost"].config = app.extensions["llm_cost"].config.from_mapping(
        {**app.config, "LLM_COST_TIMEZONE": "Europe/Berlin"}
    )
    run(tmp_path / "calls.csv", "--from", "2026-11-02", "--to", "2026-11-02")
    assert "2026-11-01T23:00:00" in (tmp_path / "calls.csv").read_text(encoding="utf-8")


def test_a_file_is_complete_or_not_there(app: Flask, tmp_path: Path) -> None:
    """An export that fails in the middle leaves what was there, and no half of a file."""
    (tmp_path / "calls.csv").write_text("yesterday's")
    app.extensions["sqlalchemy"].session.execute(sa.text("ALTER TABLE llm_cost_call_tags RENAME TO away"))
    app.extensions["sqlalchemy"].session.commit()
    result = app.test_cli_runner().invoke(args=["llm-cost", "export", str(tmp_path / "calls.csv")])
    assert result.exit_code == 1
    assert (tmp_path / "calls.csv").read_text() == "yesterday's"
    assert [path.name for path in tmp_path.glob("calls*")] == ["calls.csv"]


@pytest.mark.slow
def test_a_prune_meanwhile_is_said(app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where calls are pruned while the file is written, and so may be missing in it, there is no file, and it says why."""
    monkeypatch.setattr(call_queries, "_PAGE", 1)
    runner, days = app.test_cli_runner(), (datetime.now(UTC) - FIRST - timedelta(days=2)).days
    assert runner.invoke(args=["llm-cost", "rollups", "rebuild"]).exit_code == 0

    def pruning(calls: Iterator[CallRow]) -> Iterator[CallRow]:
        yield next(calls)
        assert runner.invoke(args=["llm-cost", "prune", "--older-than", str(days), "--yes"]).exit_code == 0
        yield from calls

    every = call_queries.all_calls
    monkeypatch.setattr(call_queries, "all_calls", lambda *asked: pruning(every(*asked)))
    with pytest.raises(DetailPrunedError):
        export_calls(app.extensions["llm_cost"], Filter(scope={}), str(tmp_path / "calls.csv"))
    assert not (tmp_path / "calls.csv").exists()


def test_memory_does_not_grow_with_the_calls(app: Flask, tmp_path: Path) -> None:
    """Ten times the calls take no more memory: they are read a page at a time."""
    session = app.extensions["sqlalchemy"].session

    def peak() -> int:
        tracemalloc.start()
        export_calls(app.extensions["llm_cost"], Filter(scope={}, currency=None), str(tmp_path / "calls.csv"))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    def fill(calls: int) -> None:
        template = session.scalars(sa.select(Call)).first()
        values = {column.key: getattr(template, column.key) for column in sa.inspect(Call).mapper.column_attrs}
        session.execute(
            sa.insert(Call),
            [
                {**values, "id": new_call_id(number), "occurred_at": FIRST + timedelta(seconds=number)}
                for number in range(calls)
            ],
        )
        session.commit()

    fill(2_000)
    few = peak()
    session.execute(sa.delete(Call).where(Call.occurred_at < FIRST + timedelta(hours=12)))
    session.commit()
    fill(20_000)
    assert peak() < few * 1.5
    assert len((tmp_path / "calls.csv").read_text(encoding="utf-8").splitlines()) > 20_000


def test_days_in_the_wrong_order(run: Run, tmp_path: Path) -> None:
    """``--to`` before ``--from`` is refused, and no file is made."""
    assert run(tmp_path / "calls.csv", "--from", "2026-11-03", "--to", "2026-11-02").exit_code == 2
    assert list(tmp_path.glob("calls*")) == []


def test_a_place_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    """A folder that is not there is said with its reason, and nothing is left behind."""
    result = run(tmp_path / "nowhere" / "calls.csv")
    assert result.exit_code == 1
    assert "nowhere/calls.csv" in result.output
    assert "No such file or directory; name a file in a folder that can be written" in result.output
