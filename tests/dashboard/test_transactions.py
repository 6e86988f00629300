"""The dashboard and the app's session: what breaks one breaks the other in nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import request
from mounted_app import PREFIX, MountedApp
from sqlalchemy import event

from flask_llm_cost import track
from flask_llm_cost.records import CallRecord, Usage, new_call_id

Make = Callable[..., MountedApp]


@pytest.fixture
def app(make: Make, database_url: sa.URL) -> MountedApp:
    """An app with notes of its own, whose pages can break its session before ours are asked."""
    app = make(url=database_url)
    session = app.database.session

    class Note(app.database.Model):  # type: ignore[name-defined, misc]
        id = sa.Column(sa.Integer, primary_key=True)

    @app.app.before_request
    def break_the_session() -> None:
        if "X-Break" in request.headers:
            session.add(Note(id=2))
            session.flush()
            for statement in ("SELECT no_such_column FROM note", "INSERT INTO note (id) VALUES (1)"):
                with pytest.raises(sa.exc.DBAPIError):
                    session.execute(sa.text(statement))

    @app.app.get("/notes")
    def notes() -> Any:
        # A call in the middle of a transaction that is broken already.
        track("openai", model="gpt-4o", usage={"input": 1000}, tags={"feature": "notes"})
        session.rollback()
        session.add(Note(id=3))
        session.commit()
        return sorted(session.scalars(sa.select(Note.id)))

    app.mount()
    with app.app.app_context():
        app.database.create_all()
        session.add(Note(id=1))
        session.commit()
    app.add("5", tags={"feature": "chat"})
    return app


def test_a_broken_session_of_the_app_breaks_no_page(app: MountedApp) -> None:
    """On each database: a statement of the app's failed, its transaction is of no use any more, and every page is there."""
    broken = {"X-User": "ann", "X-Break": "1"}
    for page in ("/", "/explore", "/models", "/calls", "/tags", "/tags/feature", "/budgets", "/data-quality", "/pricing"):
        response = app.client.get(f"{PREFIX}{page}", headers=broken)
        assert response.status_code == 200, page
    found = app.client.get(f"{PREFIX}/?format=json", headers=broken).get_json()
    assert found["total"]["cost"] == "5"


def test_a_call_in_a_broken_transaction_is_recorded(app: MountedApp) -> None:
    """On each database: the call is in the ledger; what the app had not committed is not, and what it commits later is."""
    assert app.client.get("/notes", headers={"X-Break": "1"}).get_json() == [1, 3]
    with app.app.app_context():
        assert app.costs.flush(20)
    assert app.get(format="json").get_json()["total"]["calls"] == 2


def test_a_page_that_fails_leaves_the_session_of_the_app_alone(app: MountedApp) -> None:
    """On each database: our tables are away, our page says so, and the app's open transaction goes on to its commit."""
    session = app.database.session
    with app.app.app_context():
        session.execute(sa.text("DROP TABLE llm_cost_line_items"))
        session.execute(sa.text("DROP TABLE llm_cost_tag_rollups"))
        session.execute(sa.text("ALTER TABLE llm_cost_calls RENAME TO away"))
        session.commit()
        session.execute(sa.text("INSERT INTO note (id) VALUES (7)"))
        # In the middle of it, as a page of the app's that shows one of ours would.
        assert app.get().status_code == 503
        assert session.scalar(sa.text("SELECT count(*) FROM note")) == 2
        session.commit()
        assert session.scalar(sa.text("SELECT count(*) FROM note")) == 2
        session.execute(sa.text("ALTER TABLE away RENAME TO llm_cost_calls"))
        session.commit()


def _calls_told(found: dict[str, Any]) -> set[int]:
    """Every sum of calls that a page tells, as JSON."""
    if "rows_by" in found:  # the pivot
        rows = [*found["rows"], *([found["rest"]] if found["rest"] else []), found["total"]]
        sums = {sum(row["total"]["calls"] for row in rows[:-1]), found["total"]["total"]["calls"]}
        return sums | {sum(cell["calls"] for row in rows[:-1] for cell in row["cells"])}
    sums = {found["total"]["calls"]}
    for part in [found["values"]] if "values" in found else found.get("breakdowns", []):
        others = part["others"]["calls"] if part["others"] else 0
        sums.add(sum(row["calls"] for row in part["rows"]) + others)
    if "completeness" in found:
        sums |= {found["completeness"]["calls"], sum(day["calls"] for day in found["days"])}
    if "models" in found:
        sums.add(sum(row["calls"] for row in found["models"]))
    return sums


@pytest.mark.parametrize("page", ["/", "/explore", "/models", "/tags/feature"])
def test_a_page_is_of_one_moment(app: MountedApp, page: str) -> None:
    """On each database, SQLite with a write-ahead log: calls that come in between a page's questions are in none of its
    figures, whatever it adds up, and in all of the next one's."""
    writer = app.app.extensions["llm_cost"].ledger.writer
    with app.app.app_context():
        session = app.database.session
        if session.get_bind().dialect.name == "sqlite":
            session.execute(sa.text("PRAGMA journal_mode=WAL"))
            session.commit()
    app.roll_up()
    come_in: list[CallRecord] = []
    coming = threading.Lock()

    def meanwhile(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if "llm_cost_" not in statement or not coming.acquire(blocking=False):
            return  # a question of the writer's own
        name = f"new{len(come_in)}"
        come_in.append(
            CallRecord(
                id=new_call_id(),
                occurred_at=datetime.now(UTC) - timedelta(minutes=5),
                provider="openai",
                operation="chat.completions",
                model=name,
                requested_model=name,
                usage=Usage({"input": 1}, "response"),
                tags={"feature": name},
            )
        )
        writer.write(come_in[-1:])
        coming.release()

    def told() -> set[int]:
        return _calls_told(app.get(PREFIX + page, format="json", range="7d").get_json())

    event.listen(sa.Engine, "after_cursor_execute", meanwhile)
    try:
        found = told()
    finally:
        event.remove(sa.Engine, "after_cursor_execute", meanwhile)
    assert len(come_in) > 3
    assert found == {1}
    assert told() == {1 + len(come_in)}
