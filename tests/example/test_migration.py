"""The example's migration is what ``flask db migrate`` made."""

from pathlib import Path

import flask_migrate
import pytest
from example_site import Site

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_shipped_migration_makes_every_table(site: Site) -> None:
    """After ``flask db upgrade`` the database is as the models say: the desk's tables and the ledger's."""
    assert "No new upgrade operations detected." in site.flask("db", "check")


def test_environment_is_flask_migrates_own() -> None:
    """The ledger's tables need no change to Flask-Migrate's ``env.py``."""
    template = Path(flask_migrate.__file__).parent / "templates" / "flask" / "env.py"
    assert (ROOT / "example" / "migrations" / "env.py").read_text() == template.read_text()
