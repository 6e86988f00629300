"""The dashboard and the app's session: what breaks one breaks the other in nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import request
from mounted_app import PREFIX, MountedApp

from flask_llm_cost import track

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
