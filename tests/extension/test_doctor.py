"""Doctor finds each fault that is really made, says it in a sentence, and ends in what repairs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import sqlalchemy as sa
from apps import Apps
from databases import Server
from flask import Flask
from flask_login import login_required
from matrix.environments import ENVIRONMENTS

from flask_llm_cost import dashboard_blueprint, track
from flask_llm_cost.doctor import GROUPS, Check, examine
from flask_llm_cost.doctor.tested import TESTED, untested
from flask_llm_cost.ledger import Call
from flask_llm_cost.ledger.models import Counter, TagRollup, UsageRollup

Make = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[Make]:
    apps = Apps(tmp_path)
    yield apps.make
    apps.close()


def found(app: Flask, name: str) -> list[Check]:
    """The checks called *name*."""
    with app.app_context():
        return [check for check in examine(app.extensions["llm_cost"]) if check.name == name]


def one(app: Flask, name: str) -> Check:
    (check,) = found(app, name)
    return check


def recorded(app: Flask, *models: str, **facts: Any) -> None:
    with app.app_context():
        for model in models:
            track("openai", model=model, usage={"input": 1_000_000}, **facts)
        assert app.extensions["llm_cost"].tracker.flush()


def test_all_is_well(make_app: Make) -> None:
    """In an app that is in order every group has a check, none is an error, and the command exits 0 with the same list."""
    app = make_app()
    app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")
    recorded(app, "gpt-4o")
    result = app.test_cli_runner().invoke(args=["llm-cost", "doctor", "--format", "json"])
    assert result.exit_code == 0, result.output
    checks = json.loads(result.output)
    groups = list(dict.fromkeys(check["group"] for check in checks))
    assert groups == ["Setup", "Capture", "Schema", "Prices", "Ledger", "Budgets", "Dashboard"] == list(GROUPS)
    assert [check for check in checks if check["status"] == "error"] == []
    assert {"database", "calls against lines"} <= {check["name"] for check in checks if check["status"] == "ok"}


def test_warnings_do_not_fail(make_app: Make) -> None:
    """Only errors make the exit code 1."""
    app = make_app()
    result = app.test_cli_runner().invoke(args=["llm-cost", "doctor"])
    assert "warning  mounted: no dashboard" in click.unstyle(result.output)
    assert result.exit_code == 0


def test_a_database_that_is_away_is_one_error(database_server: Server, database_url: sa.URL, make_app: Make) -> None:
    """Doctor says that the database cannot be reached, once, with the class of the error and never its text."""
    app = make_app(database_url)
    with database_server.down(database_url), app.app_context():
        errors = [check for check in examine(app.extensions["llm_cost"]) if check.status == "error"]
    assert [(check.group, check.name) for check in errors] == [("Setup", "database")]
    assert "cannot be reached" in errors[0].message
    assert "ledger" not in errors[0].message.replace("the ledger's database", "")
    assert one(app, "database").status == "ok"


def test_a_changed_setting(make_app: Make) -> None:
    """A key that is set or changed after init_app has no effect: doctor names it, and one whose new value is refused."""
    app = make_app(LLM_COST_HOSTS={"llm.example": "openai"})
    assert found(app, "changed setting") == []
    app.config["LLM_COST_WRITE_MODE"] = "inline"
    app.config["LLM_COST_HOSTS"]["other.example"] = "openai"
    changed = found(app, "changed setting")
    assert [check.message.split()[0] for check in changed] == ["LLM_COST_HOSTS", "LLM_COST_WRITE_MODE"]
    assert all(check.status == "warning" and "before costs.init_app(app)" in check.message for check in changed)
    app.config["LLM_COST_WRITE_MODE"] = "somehow"
    assert "LLM_COST_WRITE_MODE" in found(app, "changed setting")[1].message


def test_a_host_that_nobody_named(make_app: Make, tmp_path: Path) -> None:
    """A host without a provider's name is told with the line to add; once that is there, with what prices earlier calls."""
    url = f"sqlite:///{tmp_path}/hosts.db"
    app = make_app(url)
    with app.app_context():
        track("llm.example:8001", model="gpt-4o", usage={"input": 1_000_000})
        assert app.extensions["llm_cost"].tracker.flush()
    assert one(app, "unknown host").message.endswith("add LLM_COST_HOSTS = {'llm.example:8001': '<provider>'}")
    hosts = {"llm.example:8001": "openai"}
    said = one(make_app(url, LLM_COST_HOSTS=hosts), "unknown host").message
    assert "before LLM_COST_HOSTS named it" in said
    aliases = {"llm.example:8001/*": "openai/*"}
    assert said.endswith(f"add LLM_COST_MODEL_ALIASES = {aliases}, then run 'flask llm-cost backfill'")
    again = make_app(url, LLM_COST_HOSTS=hosts, LLM_COST_MODEL_ALIASES=aliases)
    assert "1 of 1 call changed" in again.test_cli_runner().invoke(args=["llm-cost", "backfill"]).output
    assert not found(again, "unknown host")


def test_a_discount_of_nobody(make_app: Make) -> None:
    """A mistyped provider in LLM_COST_DISCOUNTS is told, with the one probably meant; prices and hosts make one known."""
    app = make_app(
        LLM_COST_DISCOUNTS={"azur": "0.1", "azure": "0.1", "ours": "0.2", "gateway": "0.3", "zzz": "0.4"},
        LLM_COST_PRICE_OVERRIDES={"ours/large": {"input": "1"}},
        LLM_COST_HOSTS={"llm.example": "gateway"},
    )
    told = [check.message for check in found(app, "discount")]
    assert len(told) == 2
    assert "has 'azur'" in told[0]
    assert told[0].endswith("write 'azure', or take it away")
    assert "has 'zzz'" in told[1]
    assert "report --by provider" in told[1]
    assert not found(make_app(LLM_COST_DISCOUNTS={"azure": "0.1"}), "discount")


def test_an_unknown_setting(make_app: Make) -> None:
    """A key that is none is an error, with the key that was meant."""
    check = one(make_app(LLM_COST_TIMEZON="UTC"), "unknown key")
    assert (check.status, check.message.endswith("rename it to LLM_COST_TIMEZONE")) == ("error", True)


def test_libraries_with_their_versions(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is watched is named with its version; a patch that somebody took away is an error, what is off is said."""
    app = make_app()
    check = one(app, "httpx")
    assert (check.status, check.message) == ("ok", f"httpx {metadata.version('httpx')} is watched")
    original = httpx.Client.send
    with monkeypatch.context() as patch:
        patch.setattr(httpx.Client, "send", lambda *a, **k: original(*a, **k))
        taken = one(app, "httpx")
        assert taken.status == "error"
        assert "httpx.Client.send" in taken.message
        assert "before LlmCostTracker(app)" in taken.message
    assert one(app, "httpx").status == "ok"
    off = one(make_app(LLM_COST_INSTRUMENT=["requests"]), "httpx")
    assert (off.status, "LLM_COST_INSTRUMENT" in off.message) == ("warning", True)


def test_what_is_switched_off_is_one_warning(make_app: Make) -> None:
    """LLM_COST_ENABLED=0 is said once, with what switches it on; libraries then need no other remedy."""
    app = make_app(LLM_COST_ENABLED=False)
    enabled = one(app, "enabled")
    assert (enabled.status, enabled.message.endswith("take LLM_COST_ENABLED=0 away")) == ("warning", True)
    assert (one(app, "httpx").status, "LLM_COST_INSTRUMENT" in one(app, "httpx").message) == ("ok", False)


def test_a_ledger_in_memory(make_app: Make) -> None:
    """An in-memory SQLite database is a warning that says what waits for what; a file is none."""
    (_, check) = found(make_app("sqlite://"), "database")
    assert (check.group, check.status) == ("Ledger", "warning")
    assert check.message.endswith("use a file or a server")
    assert [each.group for each in found(make_app(), "database")] == ["Setup"]


def test_versions_that_were_not_tested(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version outside the tested range is a warning that names the range."""
    app = make_app()
    monkeypatch.setitem(TESTED, "httpx", ("0.1", "0.2"))
    check = one(app, "httpx")
    assert check.status == "warning"
    assert "newer than what was tested (tested are 0.1 to 0.2.x)" in check.message
    assert untested("openai", "1.3.0") is not None
    assert untested("openai", "4.0.0rc1") is not None
    assert untested("openai", "3.99.1") is None
    assert untested("nobody-knows", "1") is None


@pytest.mark.parametrize("library", sorted(TESTED))
def test_the_tested_range_is_that_of_the_tests(library: str) -> None:
    """What these tests run with, and what the matrix installs, lies in the range that doctor tells."""
    try:
        assert untested(library, metadata.version(library)) is None
    except metadata.PackageNotFoundError:
        assert library in {name.partition("=")[0] for each in ENVIRONMENTS for name in each.requirements}
    for environment in ENVIRONMENTS:
        for requirement in environment.requirements:
            name, _, version = requirement.partition("==")
            if name == library and version:
                assert untested(library, version.rstrip(".*")) is None


def test_a_call_that_was_changed_by_hand(database_url: sa.URL, make_app: Make) -> None:
    """A call that does not cost what its lines add up to is an error that names it; unpriced and billed calls are fine."""
    app = make_app(database_url)
    recorded(app, "gpt-4o", "gpt-4o-mini", "nobody-knows")
    recorded(app, "gpt-4o", billed="0.5")
    assert one(app, "calls against lines").status == "ok"
    with app.app_context():
        database = app.extensions["sqlalchemy"]
        call_id = database.session.scalar(sa.select(Call.id).where(Call.model == "gpt-4o-mini"))
        database.session.execute(sa.update(Call).where(Call.id == call_id).values(total_cost=0))
        database.session.commit()
    check = one(app, "calls against lines")
    assert (check.status, check.message.split()[:3]) == ("error", ["1", "of", "4"])
    assert str(call_id) in check.message
    command = check.message.partition("run 'flask ")[2].removesuffix("'")
    assert command.startswith("llm-cost reprice --from ")
    assert app.test_cli_runner().invoke(args=[*command.split(), "--yes"]).exit_code == 0
    assert one(app, "calls against lines").status == "ok"


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_rollups_that_do_not_add_up(database_url: sa.URL, make_app: Make, zone: str) -> None:
    """Sums that differ from their calls, in either rollup table, are an error; the command that it names repairs them."""
    app = make_app(database_url, LLM_COST_TIMEZONE=zone)
    recorded(app, "gpt-4o", "nobody-knows", tags={"feature": "chat"})
    recorded(app, "gpt-4o-mini", occurred_at=datetime.now(UTC) - timedelta(days=40))
    name = "rollups against calls"
    for damage in (
        sa.update(UsageRollup).values(cost=Decimal(9)),
        *(
            sa.update(TagRollup).where(TagRollup.key == key).values(calls=TagRollup.calls + 1)
            for key in ("", "~", "@", "feature", "feature*", "feature?", "feature@", "feature~", "feature~*")
        ),
        sa.update(UsageRollup).where(UsageRollup.component == "*").values(calls=UsageRollup.calls + 1),
        sa.update(UsageRollup).where(UsageRollup.component == "*").values(most_cost=Decimal(0)),
        sa.update(UsageRollup).where(UsageRollup.component == "").values(most_cost=None),
        sa.delete(UsageRollup),
        sa.delete(Call).where(Call.model == "gpt-4o-mini"),
    ):
        assert one(app, name).status == "ok"
        with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
            connection.execute(damage)
        check = one(app, name)
        assert (check.status, check.message.endswith("run 'flask llm-cost rollups rebuild'")) == ("error", True)
        assert app.test_cli_runner().invoke(args=["llm-cost", "rollups", "rebuild"]).exit_code == 0
    assert one(app, name).status == "ok"


def test_a_tag_that_is_named_without_rollups(database_url: sa.URL, make_app: Make) -> None:
    """One that no call has had lacks nothing; of one that was left out the advice helps, also where calls were pruned."""

    def named(*keys: str) -> Any:
        return make_app(database_url, LLM_COST_ROLLUP_TAGS=list(keys))

    def rebuild(app: Any) -> None:
        assert app.test_cli_runner().invoke(args=["llm-cost", "rollups", "rebuild"]).exit_code == 0

    tags = {"feature": "chat", "job": "nightly"}
    recorded(named("feature"), "gpt-4o", tags=tags)
    recorded(named("feature"), "gpt-4o", tags=tags, occurred_at=datetime.now(UTC) - timedelta(days=40))
    assert one(named("feature", "nobody"), "rollups").status == "ok"
    app = named("feature", "nobody", "job")
    check = one(app, "rollups")
    assert (check.status, check.message.endswith("run 'flask llm-cost rollups rebuild'")) == ("warning", True)
    assert app.test_cli_runner().invoke(args=["llm-cost", "prune", "--older-than", "20", "--yes"]).exit_code == 0
    rebuild(app)
    check = one(app, "rollups")
    assert (check.status, "job" in check.message, "rebuild" in check.message) == ("warning", True, False)
    assert one(named("feature", "nobody"), "rollups").status == "ok"


def test_who_has_a_tag_is_made_by_a_rebuild(make_app: Make) -> None:
    """A ledger that does not keep who has a tag is a warning, and the command that it names repairs it."""
    app = make_app()
    recorded(app, "gpt-4o", tags={"feature": "chat"})
    assert one(app, "rollups").status == "ok"
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(sa.delete(Counter).where(Counter.name.startswith("rollups.kinds")))
    check = one(app, "rollups")
    assert (check.status, check.message.endswith("run 'flask llm-cost rollups rebuild'")) == ("warning", True)
    assert app.test_cli_runner().invoke(args=["llm-cost", "rollups", "rebuild"]).exit_code == 0
    assert one(app, "rollups").status == "ok"


def test_pruned_calls_are_not_missed(make_app: Make) -> None:
    """What was pruned is in the rollups alone, and nothing is wrong with that."""
    app = make_app()
    recorded(app, "gpt-4o")
    recorded(app, "gpt-4o-mini", occurred_at=datetime.now(UTC) - timedelta(days=40))
    done = app.test_cli_runner().invoke(args=["llm-cost", "prune", "--older-than", "10", "--yes"])
    assert "deleted 1 row and 0 damaged spool files" in done.output
    check = one(app, "rollups against calls")
    assert (check.status, check.message.partition(":")[0]) == ("ok", "looked at 1 quarter of an hour")


def test_a_schema_that_lags_behind(database_url: sa.URL, make_app: Make) -> None:
    """A missing index is a warning, a missing column an error; both are named, and what the message ends in repairs them."""

    def repair(check: Check) -> None:
        with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
            connection.execute(sa.text(check.message.partition("run in the database: ")[2]))

    app = make_app(database_url)
    assert one(app, "tables").status == "ok"
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        table = " ON llm_cost_calls" if connection.dialect.name in ("mysql", "mariadb") else ""
        connection.execute(sa.text(f"DROP INDEX ix_llm_cost_calls_occurred_at{table}"))
    check = one(app, "indexes")
    assert (check.status, "ix_llm_cost_calls_occurred_at" in check.message) == ("warning", True)
    repair(check)
    assert one(app, "tables").status == "ok"
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE llm_cost_calls DROP COLUMN first_token_ms"))
    check = one(app, "columns")
    assert (check.status, "llm_cost_calls.first_token_ms" in check.message) == ("error", True)
    repair(check)
    assert one(app, "tables").status == "ok"
    app.extensions["migrate"] = None
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE llm_cost_calls DROP COLUMN first_token_ms"))
    assert one(app, "columns").message.endswith("run 'flask db migrate' and 'flask db upgrade'")


def test_calls_from_the_future(make_app: Make) -> None:
    """A machine whose clock is ahead leaves calls that are not made yet: a warning says how far."""
    app = make_app()
    recorded(app, "gpt-4o")
    assert one(app, "clock").status == "ok"
    recorded(app, "gpt-4o", occurred_at=datetime.now(UTC) + timedelta(hours=1))
    check = one(app, "clock")
    assert check.status == "warning"
    assert "59 minutes ahead" in check.message or "60 minutes ahead" in check.message


def test_the_database_has_another_time(mariadb_url: sa.URL, make_app: Make) -> None:
    """A database server whose clock differs by more than half a minute is a warning that says which is ahead."""
    options = {"connect_args": {"init_command": "SET timestamp = UNIX_TIMESTAMP() + 600"}}
    assert one(make_app(mariadb_url), "clock").status == "ok"
    check = one(make_app(mariadb_url, SQLALCHEMY_ENGINE_OPTIONS=options), "clock")
    assert check.status == "warning"
    assert "behind the database's" in check.message


def test_open_dashboards(make_app: Make) -> None:
    """Without a guard, with sign-in switched off, or with a bare login_required and no scope: each is said."""
    app = make_app()
    for guard, name, scope in (
        (None, "open", None),
        (login_required, "bare", None),
        (login_required, "scoped", lambda: {"tenant_id": "1"}),
        (staff_required, "staff", None),
        (by_password, "password", None),
    ):
        app.register_blueprint(dashboard_blueprint(guard=guard, name=name, scope=scope), url_prefix=f"/{name}")
    assert {name: one(app, name).status for name in ("open", "bare", "scoped", "staff", "password")} == {
        "open": "error",
        "bare": "warning",
        "scoped": "ok",
        "staff": "ok",
        "password": "ok",
    }
    assert "every signed-in user sees all tenants" in one(app, "bare").message
    assert "scope=" in one(app, "bare").message
    app.config["LOGIN_DISABLED"] = True
    assert all("LOGIN_DISABLED" in one(app, name).message for name in ("bare", "scoped", "staff"))


def staff_required(view: Callable[..., Any]) -> Callable[..., Any]:
    @login_required
    @wraps(view)
    def wrapper(**values: Any) -> Any:
        return view(**values)

    return wrapper


def by_password(view: Callable[..., Any]) -> Callable[..., Any]:
    return view


# As Flask-HTTPAuth calls its own.
by_password.__name__, by_password.__module__ = "login_required", "flask_httpauth"


def test_no_tables_is_one_error(make_app: Make) -> None:
    """Before the migration there is one error, with the command that makes the tables."""
    app = make_app(tables=False)
    with app.app_context():
        errors = [check for check in examine(app.extensions["llm_cost"]) if check.status == "error"]
    assert [check.group for check in errors] == ["Schema"]
    assert "flask db upgrade" in errors[0].message


def test_a_library_of_another_shape_is_told_of_and_left_alone(tmp_path: Path) -> None:
    """A release that we cannot watch is imported as if we were not there; doctor names it, what it lacks, and what to do."""
    (tmp_path / "httpx").mkdir()
    (tmp_path / "httpx" / "__init__.py").write_text("class Client:\n    pass\n")
    (tmp_path / "httpx-9.1.dist-info").mkdir()
    (tmp_path / "httpx-9.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: httpx\nVersion: 9.1\n")
    program = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker

app = Flask("app")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
SQLAlchemy(app)
LlmCostTracker(app)
import httpx
httpx.Client()
print(app.test_cli_runner().invoke(args=["llm-cost", "doctor"]).output)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "httpx cannot be watched (AttributeError): its calls are not recorded" in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "httpx 9.1" in line]
    assert "error" in line
    assert (
        "(it has no SyncByteStream, newer than what was tested (tested are 0.27 to 0.28.x)); install a version of httpx"
        in line
    )
