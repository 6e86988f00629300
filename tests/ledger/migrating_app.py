"""A little app with Flask-Migrate, run as a process of its own: Alembic's unmodified ``env.py`` reconfigures logging.

``python migrating_app.py <database url> <folder> <variant> <command>...`` runs Flask-Migrate's commands one after the other,
then prints the names of the tables, one a line.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import flask_migrate
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_cost.ledger.models import copy_tables

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def migrate_of_partitions() -> str:
    """The lines about Flask-Migrate of the page about partitions."""
    page = (Path(__file__).parents[2] / "docs" / "partitions.rst").read_text()
    return textwrap.dedent(page.partition(".. code-block:: python\n\n")[2].partition("\nEvery night\n")[0])


def main(url: str, folder: Path, variant: str, commands: list[str]) -> None:
    app = Flask("host", instance_path=str(folder))
    metadata = sa.MetaData(naming_convention=NAMING) if variant == "naming" else sa.MetaData()
    if variant == "schema":
        metadata = sa.MetaData(schema="host")
    db = SQLAlchemy(metadata=metadata)
    bind_key = "ledger" if variant == "bind" else None
    if bind_key:
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{folder / 'main.db'}"
        app.config["SQLALCHEMY_BINDS"] = {bind_key: url}
    else:
        app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)

    if variant != "schema":  # Alembic does not look into other schemas unless the host's env.py says so

        class Note(db.Model):  # type: ignore[name-defined, misc] # Flask-SQLAlchemy's Model is made at run time
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str] = mapped_column(sa.String(80), unique=True)

    target = db.metadatas.setdefault(bind_key, sa.MetaData(info={"bind_key": bind_key})) if bind_key else db.metadata
    copy_tables(target)
    if variant == "partitions":
        exec(migrate_of_partitions(), {"app": app, "db": db, "Migrate": flask_migrate.Migrate})
    else:
        flask_migrate.Migrate().init_app(app, db)
    migrations = str(folder / "migrations")
    with app.app_context():
        for command in commands:
            options = {"multidb": bind_key is not None} if command == "init" else {}
            getattr(flask_migrate, command)(migrations, **options)
        print("\n".join(sa.inspect(db.engines[bind_key]).get_table_names()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
