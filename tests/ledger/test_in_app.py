"""The ledger beside the app's own work in the same database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from ledger_calls import LedgerMaker, a_call, calls, price
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_cost.ledger import Call, CallTag, LineItem
from flask_llm_cost.ledger.models import copy_tables


def make_app(
    tmp_path: Path, uri: str, bind_key: str | None = None, binds: dict[str, str] | None = None
) -> tuple[Flask, SQLAlchemy]:
    app = Flask("app", instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = uri
    app.config["SQLALCHEMY_BINDS"] = binds or {}
    db = SQLAlchemy()

    class Note(db.Model):  # type: ignore[name-defined, misc] # Flask-SQLAlchemy's Model is made at run time
        id: Mapped[int] = mapped_column(primary_key=True)

    app.note = Note  # type: ignore[attr-defined] # for the tests
    db.init_app(app)
    app.extensions["llm_cost"] = SimpleNamespace(config=SimpleNamespace(bind_key=bind_key))
    copy_tables(db.metadatas[bind_key])
    return app, db


def notes(db: SQLAlchemy, app: Flask) -> int:
    return db.session.scalar(sa.select(sa.func.count()).select_from(app.note)) or 0  # type: ignore[attr-defined]


@pytest.fixture
def memory_app(tmp_path: Path) -> Iterator[tuple[Flask, SQLAlchemy, LedgerMaker]]:
    """An app with an in-memory SQLite database, and a maker of ledgers on it."""
    app, db = make_app(tmp_path, "sqlite:///:memory:")
    with app.app_context():
        db.create_all()
        maker = LedgerMaker(db.engine.url, tmp_path)
        maker.engine.dispose()
        maker.engine = db.engine
        yield app, db, maker
        for ledger in maker.ledgers:
            ledger.close()
        db.session.remove()
        db.engine.dispose()


def test_in_memory_records_wait_for_the_apps_transaction(memory_app: tuple[Flask, SQLAlchemy, LedgerMaker]) -> None:
    """On an in-memory database the app's open work is neither committed nor rolled back by us, and no record is lost."""
    app, db, maker = memory_app
    ledger = maker()
    db.session.add(app.note())  # type: ignore[attr-defined]
    db.session.flush()
    for record in calls(5):
        ledger.append(record)
    assert not ledger.flush(1)
    with ledger.session() as session:  # what the dashboard does
        assert session.scalar(sa.select(sa.func.count()).select_from(Call)) == 0
    assert notes(db, app) == 1
    db.session.rollback()
    assert notes(db, app) == 0
    db.session.rollback()
    assert ledger.health().waiting == 5
    assert ledger.flush(1)
    assert ledger.health().waiting == 0
    assert len(db.session.scalars(sa.select(Call)).all()) == 5
    assert len(maker.committed) == 5


def test_in_memory_a_report_sees_what_waits(memory_app: tuple[Flask, SQLAlchemy, LedgerMaker]) -> None:
    """Opening a session writes what waits in memory, without a thread or a file."""
    _app, _db, maker = memory_app
    ledger = maker()
    ledger.started(a_call())
    ledger.append(a_call())
    assert ledger.health().mode == "memory"
    with ledger.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Call)) == 1
    assert not maker.spool_files


def test_in_memory_inline_waits_rather_than_commit_for_the_app(memory_app: tuple[Flask, SQLAlchemy, LedgerMaker]) -> None:
    """Inline on an in-memory database writes at once where it may, and waits where the app's transaction is open."""
    app, db, maker = memory_app
    ledger = maker(write_mode="inline")
    ledger.append(a_call())
    assert ledger.health().waiting == 0
    db.session.add(app.note())  # type: ignore[attr-defined]
    db.session.flush()
    ledger.append(a_call())
    assert ledger.health().waiting == 1
    db.session.commit()
    assert ledger.flush(1)
    assert notes(db, app) == 1
    assert len(db.session.scalars(sa.select(Call)).all()) == 2


@pytest.mark.parametrize("mode", ["background", "inline"])
def test_a_rollback_of_the_app_takes_no_record_with_it(tmp_path: Path, database_url: sa.URL, mode: str) -> None:
    """The app rolls back, our rows stay; we write, the app's open work stays open."""
    app, db = make_app(tmp_path, database_url.render_as_string(hide_password=False))
    with app.app_context():
        db.create_all()
        maker = LedgerMaker(database_url, tmp_path)
        ledger = maker(write_mode=mode, engine=db.engine)
        nested = db.session.begin_nested()
        db.session.add(app.note())  # type: ignore[attr-defined]
        db.session.flush()
        ledger.append(a_call())
        ledger.flush(0.3)
        nested.rollback()
        db.session.rollback()
        assert notes(db, app) == 0
        db.session.add(app.note())  # type: ignore[attr-defined]
        db.session.flush()
        ledger.append(a_call())
        db.session.commit()
        assert ledger.flush(20)
        assert notes(db, app) == 1
        db.session.rollback()
        assert maker.stored()[0] == 2
        maker.close()
        db.session.remove()
        db.engine.dispose()


def test_each_app_finds_its_ledger_on_its_own_bind(tmp_path: Path) -> None:
    """``db.session.scalars(select(Call))`` works on whatever bind the current app keeps its ledger."""
    main, ledger_a, ledger_b = (f"sqlite:///{tmp_path / name}.db" for name in ("main", "a", "b"))
    apps = [
        make_app(tmp_path, main, "a", {"a": ledger_a}),
        make_app(tmp_path, ledger_b, None),
    ]
    for number, (app, db) in enumerate(apps):
        with app.app_context():
            db.create_all()
            key = app.extensions["llm_cost"].config.bind_key
            maker = LedgerMaker(db.engines[key].url, tmp_path / str(number))
            ledger = maker(engine=db.engines[key])
            for record in calls(2 + number):
                ledger.append(record)
            assert ledger.flush(10)
            maker.close()
    for number, (app, db) in enumerate(apps):
        with app.app_context():
            query = sa.select(Call).join(CallTag).where(CallTag.key == "feature", CallTag.value == "chat")
            assert len(db.session.scalars(query).unique().all()) == 2 + number
            assert len(db.session.scalars(sa.select(LineItem)).all()) == 2 * (2 + number)
            db.session.remove()
            for engine in db.engines.values():
                engine.dispose()


def test_the_hosts_connect_listeners_serve_us_too(tmp_path: Path) -> None:
    """Our own connections keep the host's ``creator=`` and connect listeners (tokens, row security settings)."""
    seen = []
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    sa.event.listen(engine, "connect", lambda connection, record: seen.append(connection))
    maker = LedgerMaker(engine.url, tmp_path)
    maker.create_tables()
    ledger = maker(engine=engine)
    ledger.append(price(a_call()))
    assert ledger.flush(10)
    assert len(seen) == 1
    maker.close()
    engine.dispose()
