"""Make the ledger's tables, in the way that fits the app."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flask import Flask
from sqlalchemy import inspect

from flask_llm_cost.errors import SetupError
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger.models import Base

_DASHBOARD = """
Mount the dashboard behind a guard of yours:

    from flask_llm_cost import dashboard_blueprint

    app.register_blueprint(dashboard_blueprint(guard=staff_required), url_prefix="/llm-costs")"""
_TAGGER = """
Say whose calls they are, once for all requests:

    @costs.request_tagger
    def who():
        return {"user_id": current_user.get_id(), "tenant_id": g.tenant.id}"""
_LAST = """
Then look whether all is well: flask llm-cost doctor"""


def install_ledger(app: Flask) -> Iterator[str]:
    """Make the tables, say what was done, and which lines to paste into the app: those that it does not have yet.

    With Flask-Migrate a revision is written and the database upgraded, so that every other database of the app gets the
    tables by ``flask db upgrade``. Without, they are made here.
    """
    if "migrate" in app.extensions:
        yield from _migrate(app)
    else:
        yield from _create(app)
    if not app.extensions.get("llm_cost_dashboards"):
        yield _DASHBOARD
    if state_of(app).tracker.request_tagger_function is None:
        yield _TAGGER
    yield _LAST


def _create(app: Flask) -> Iterator[str]:
    database = app.extensions["sqlalchemy"]
    bind_key = state_of(app).config.bind_key
    tables = [database.metadatas[bind_key].tables[table.name] for table in Base.metadata.sorted_tables]
    database.metadatas[bind_key].create_all(database.engines[bind_key], tables=tables)
    yield f"The {len(tables)} tables of the ledger are there."


def _missing(app: Flask) -> set[str]:
    engine = app.extensions["sqlalchemy"].engines[state_of(app).config.bind_key]
    return set(Base.metadata.tables) - set(inspect(engine).get_table_names())


def _migrate(app: Flask) -> Iterator[str]:
    import flask_migrate

    directory = app.extensions["migrate"].directory
    if not os.path.isdir(directory):
        flask_migrate.init(directory=directory, multidb=bool(app.config.get("SQLALCHEMY_BINDS")))
        yield f"Made the migrations folder {directory}."
    flask_migrate.upgrade(directory=directory)
    if not _missing(app):
        yield "The ledger's tables are in the database already."
        return
    flask_migrate.migrate(directory=directory, message="LLM cost ledger")
    flask_migrate.upgrade(directory=directory)
    if missing := _missing(app):
        where = f"SQLALCHEMY_BINDS[{state_of(app).config.bind_key!r}]"
        raise SetupError(
            f"the new revision made no {min(missing)} in {where}, where LLM_COST_BIND_KEY has the ledger: the migrations in "
            f"{directory} are of one database. Delete the revision, and let them be of all: see 'flask db init --multidb'"
        )
    yield (
        "The ledger's tables are in the database, and their revision is in the migrations folder. Look at it, "
        "since it has whatever else was new in your models, and commit it."
    )
