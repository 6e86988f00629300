"""The commands that keep the ledger, as a person types them."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, track
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger import spend
from flask_llm_cost.ledger.lines import encode
from flask_llm_cost.ledger.models import Adjustment
from flask_llm_cost.ledger.quarantine import set_aside
from flask_llm_cost.ledger.spool import Spool
from flask_llm_cost.records import CallRecord, new_call_id


class Shop:
    """An app on one database file, made as often as it is configured anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._apps: list[tuple[Flask, SQLAlchemy]] = []

    def app(self, *, testing: bool = True, **config: Any) -> Flask:
        app = Flask("shop", instance_path=str(self._folder))
        app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{self._folder}/app.db", TESTING=testing)
        app.config.update(SQLALCHEMY_BINDS={"replica": f"sqlite:///{self._folder}/replica.db"})
        app.config.update({f"LLM_COST_{name.upper()}": value for name, value in config.items()})
        database = SQLAlchemy(app)
        LlmCostTracker(app)
        self._apps.append((app, database))
        return app

    def close(self) -> None:
        for app, database in self._apps:
            app.extensions["llm_cost"].ledger.close(0)
            with app.app_context():
                for engine in database.engines.values():
                    engine.dispose()


def run(app: Flask, *arguments: str) -> Result:
    result = app.test_cli_runner().invoke(args=["llm-cost", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def make_app(tmp_path: Path) -> Any:
    shop = Shop(tmp_path)
    run(shop.app(), "install")
    yield shop.app
    shop.close()


def record(app: Flask, **tags: str) -> bool:
    with app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1_000_000}, tags=tags)
        done: bool = app.extensions["llm_cost"].ledger.flush(5)
        return done


def test_another_zone_needs_a_rebuild(make_app: Callable[..., Flask]) -> None:
    """With another LLM_COST_TIMEZONE calls wait, doctor names the command, and after it they are in."""
    assert record(make_app())
    moved = make_app(timezone="Asia/Kathmandu")
    with moved.app_context():
        track("openai", model="gpt-4o", usage={"input": 1_000_000})
        assert not moved.extensions["llm_cost"].ledger.flush(1)
    told = run(moved, "doctor")
    assert told.exit_code == 1
    assert "run 'flask llm-cost rollups rebuild'" in told.output
    done = run(moved, "rollups", "rebuild")
    assert done.exit_code == 0
    assert "the rollups hold all calls; 1 were added up" in done.output
    assert moved.extensions["llm_cost"].ledger.flush(10)
    assert "days of Asia/Kathmandu" in run(moved, "doctor").output


def test_doctor_names_tags_without_rollups(make_app: Callable[..., Flask]) -> None:
    """A tag that LLM_COST_ROLLUP_TAGS names after its first calls is named by doctor until a rebuild."""
    assert record(make_app(rollup_tags=("feature",)), feature="chat", team="blue")
    wider = make_app(rollup_tags=("feature", "team"))
    assert "LLM_COST_ROLLUP_TAGS names team" in run(wider, "doctor").output
    run(wider, "rollups", "rebuild")
    assert "by feature, team" in run(wider, "doctor").output


def test_prune_keeps_what_is_said(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    """``prune`` says what it would delete, asks, deletes, keeps the sums; without days it names both ways to give them.

    With ``--mark`` it says in the ledger that they are gone, and deletes nothing. A file that would add up to less is
    refused, as on the dashboard; one of the days that are left is written.
    """
    app = make_app()
    with app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1_000_000}, occurred_at=long_ago())
        track("openai", model="gpt-4o", usage={"input": 1_000_000})
        assert app.extensions["llm_cost"].ledger.flush(5)
    assert "--older-than 90, or set LLM_COST_RETENTION_DAYS" in run(app, "prune").output
    assert "1 call and 0 holds" in run(app, "prune", "--older-than", "90", "--dry-run").output
    assert run(app, "prune", "--older-than", "90").exit_code == 1  # nobody says yes
    assert run(app, "prune", "--older-than", "90", "--mark").exit_code == 1
    with app.app_context():
        assert {row.calls for row in spend.by("host")} == {2}
    assert "nothing was deleted" in run(app, "prune", "--older-than", "90", "--mark", "--yes").output
    with app.app_context(), pytest.raises(DetailPrunedError, match="detail pruned before"):
        spend.by("host")
    done = run(make_app(retention_days=90), "prune", "--yes")
    assert done.exit_code == 0
    assert "deleted 1 row and 0 damaged spool files" in done.output
    with app.app_context():
        assert spend.total().calls == 2
        assert spend.by("month")[0].calls == 1
        with pytest.raises(DetailPrunedError, match="detail pruned before"):
            spend.by("host")
    file = tmp_path / "calls.csv"
    refused = run(app, "export", str(file))
    assert (refused.exit_code, "detail pruned before" in refused.output, list(tmp_path.glob("calls*"))) == (1, True, [])
    assert run(app, "export", str(file), "--from", f"{datetime.now(UTC) - timedelta(days=89):%Y-%m-%d}").exit_code == 0


def test_what_was_pruned_is_said_as_the_ledger_has_it(make_app: Callable[..., Flask]) -> None:
    """A prune that keeps more than an earlier one did tells since when all calls are there; ``backfill`` and ``reprice``
    say that calls before keep their cost; days that no calendar has are refused.
    """
    app = make_app()
    assert record(app)
    mark = f"detail is pruned before {datetime.now(UTC) - timedelta(days=90):%Y-%m-%d}"
    assert "pruned" not in run(app, "backfill").output
    for days in ("90", "98"):
        assert f"{mark}; nothing was deleted" in run(app, "prune", "--older-than", days, "--mark", "--yes").output
        assert f"{mark}\n" in run(app, "prune", "--older-than", days, "--yes").output
    said = f"{mark}: calls that are gone keep their cost"
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert said in run(app, "backfill").output
    assert said in run(app, "reprice", "--from", f"{long_ago():%Y-%m-%d}", "--to", today, "--dry-run").output
    assert said not in run(app, "reprice", "--from", today, "--to", today, "--dry-run").output
    assert "1<=x<=36500" in run(app, "prune", "--older-than", "1000000").output


def test_prune_leaves_what_may_hold_calls(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    """Of the files beside the spool ``prune`` takes old damaged ones of its own ledger, named by ``--dry-run`` and after a
    yes; never what the database refused, which waits for a replay, nor what is another ledger's or may be.
    """
    config = {"spool_dir": tmp_path / "spool", "retention_days": 90}
    app = make_app(testing=False, **config)
    own = app.extensions["llm_cost"].ledger._identity()
    files = {name: damaged_file(tmp_path / "spool", name) for name in (own, "another")}
    (unknown := tmp_path / "spool" / "1-1.corrupt").write_text("not a line of ours")
    (refused := tmp_path / "spool" / f"{own}.quarantine").write_bytes(encode(a_record()))
    for path in (*files.values(), unknown, refused):
        os.utime(path, (long_ago().timestamp(),) * 2)
    assert app.extensions["llm_cost"].ledger.health().corrupt == 2
    shown = run(app, "prune", "--dry-run").output
    assert [line for line in shown.splitlines() if "file" in line] == [f"damaged spool file {files[own]}"]
    assert run(app, "prune").exit_code == 1  # nobody says yes
    assert files[own].exists()
    assert "deleted 0 rows and 1 damaged spool file\n" in run(app, "prune", "--yes").output
    assert [path.exists() for path in (files[own], files["another"], unknown, refused)] == [False, True, True, True]


def damaged_file(folder: Path, identity: str) -> Path:
    spool = Spool([folder], identity)
    spool.append(encode(a_record()))
    path = spool.tail.path
    assert path is not None
    spool.abandon()
    return path.rename(path.with_suffix(".corrupt"))


def a_record() -> CallRecord:
    return CallRecord(id=new_call_id(), occurred_at=datetime.now(UTC), provider="openai", operation="messages")


def test_what_changes_calls_reads_them_where_they_are(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    """With a replica that is behind, ``prune``, ``forget``, ``backfill`` and ``reprice`` see all calls that they are about
    to change, ask before, and change them.
    """
    shutil.copy(tmp_path / "app.db", tmp_path / "replica.db")
    config: dict[str, Any] = {"read_bind_key": "replica", "retention_days": 90}
    app = make_app(**config)
    with app.app_context():
        track("openai", model="nobody-knows", usage={"input": 1_000_000}, tags={"user_id": "42"}, occurred_at=long_ago())
        assert app.extensions["llm_cost"].ledger.flush(5)
        assert spend.total().calls == 0
    app = make_app(**config, price_overrides={"openai/nobody-knows": {"input": "2"}})
    assert "1 of 1 call changed" in run(app, "backfill").output
    app = make_app(**config, price_overrides={"openai/nobody-knows": {"input": "3"}})
    day = f"{long_ago():%Y-%m-%d}"
    assert "Give 1 call a new cost?" in run(app, "reprice", "--from", day, "--to", day).output
    assert "1 of 1 call changed" in run(app, "reprice", "--from", day, "--to", day, "--yes").output
    assert "1 call has that tag" in run(app, "forget", "user_id=42", "--yes").output
    asked = run(app, "prune")
    assert (asked.exit_code, "1 call and 0 holds" in asked.output) == (1, True)
    assert "deleted 1 row" in run(app, "prune", "--yes").output


def test_forget_erases_a_value(make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> None:
    """``forget user_id=42`` erases the value and keeps the sums, also for a user without a name, as containers have; a tag
    without a value is refused, and so is what stands in the place of erased values.
    """
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    app = make_app()
    assert record(app, user_id="42", feature="chat")
    assert "key=value" in run(app, "forget", "user_id").output
    assert "1 call has that tag" in run(app, "forget", "user_id=42", "--dry-run").output
    assert "erased in 1 call" in run(app, "forget", "user_id=42", "--yes").output
    again = run(app, "forget", "user_id=42", "--yes")
    assert (again.exit_code, again.output) == (0, "no call has that tag\n")
    with app.app_context(), state_of().ledger.session() as session:
        assert session.scalars(sa.select(Adjustment.reason)).all() == ["1 calls"]
    refused = run(app, "forget", "user_id=(erased)", "--yes")
    assert (refused.exit_code, "erased already" in refused.output) == (2, True)
    with app.app_context():
        (row,) = spend.by("tag:user_id")
        assert (row.key, row.calls, row.cost) == ("(erased)", 1, Decimal("2.5"))


def test_forget_takes_a_tag_as_calls_do(make_app: Callable[..., Flask]) -> None:
    """A value is looked for as calls have it, a key that none can have is refused, and what is redacted is nobody's."""
    app = make_app(redacted_tags=())
    assert record(app, user_id="  anna ", secret_name="anna")
    assert record(make_app(redacted_tags=("secret_name",)), secret_name="bob")
    assert "a key is a letter" in run(app, "forget", "User=anna", "--yes").output
    assert "erased in 1 call" in run(app, "forget", "user_id= anna  ", "--yes").output
    later = make_app(redacted_tags=("secret_name",))
    assert "no call has that tag" in run(later, "forget", "secret_name=bob", "--yes").output
    assert "erased in 1 call" in run(later, "forget", "secret_name=anna", "--yes").output
    with app.app_context():
        assert {row.key: row.calls for row in spend.by("tag:secret_name")} == {"(erased)": 1, "[redacted]": 1}


def test_forget_says_where_a_value_may_still_be(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    """Records of running processes, refused ones and damaged files may still have the value: ``forget`` erases the rest,
    says how many there are and what to do, and exits 1 until all of them are gone.
    """
    app = make_app(testing=False, spool_dir=tmp_path / "spool")
    own = app.extensions["llm_cost"].ledger._identity()
    assert record(app, user_id="42")
    running = Spool([tmp_path / "spool"], own)  # of another process: it has the lock
    running.append(encode(replace(a_record(), tags={"user_id": "42"})))
    damaged = damaged_file(tmp_path / "spool", own)
    set_aside([tmp_path / "spool"], own, encode(replace(a_record(), tags={"user_id": "42"})))
    said = run(app, "forget", "user_id=42", "--yes", "--timeout", "0.5")
    assert said.exit_code == 1
    assert "erased in 1 call," in said.output
    assert "1 call waits in running processes and may have it" in said.output
    assert (
        "1 call that the database refused may have it: run 'flask llm-cost spool replay', then forget again" in said.output
    )
    assert f"1 damaged spool file in {tmp_path / 'spool'} may have it" in said.output
    running.abandon()  # the process is gone, and its file is anybody's
    run(app, "spool", "replay")
    damaged.unlink()
    said = run(app, "forget", "user_id=42", "--yes")
    assert said.exit_code == 0
    assert "erased in 2 calls," in said.output
    assert run(app, "forget", "user_id=42").output == "no call has that tag\n"


def test_forget_erases_a_value_of_pruned_calls(make_app: Callable[..., Flask]) -> None:
    """Where only the sums of pruned calls have a value, ``forget`` says so and erases it there."""
    app = make_app()
    with app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1}, tags={"user_id": "42"}, occurred_at=long_ago())
    assert app.extensions["llm_cost"].ledger.flush(5)
    run(app, "prune", "--older-than", "90", "--yes")
    assert "sums of pruned calls, or budgets, have it" in run(app, "forget", "user_id=42", "--dry-run").output
    assert "erased in 0 calls, in the rollups" in run(app, "forget", "user_id=42", "--yes").output
    with app.app_context():
        assert [row.key for row in spend.by("tag:user_id")] == ["(erased)"]
    assert run(app, "forget", "user_id=42", "--yes").output == "no call has that tag\n"


def long_ago() -> datetime:
    return datetime.now(UTC) - timedelta(days=100)


@pytest.mark.parametrize(
    ("config", "gone", "said"),
    [
        ({}, "app.db", "the ledger's database could not be asked (OperationalError SQLITE_CANTOPEN); see that it is up, and "
         "that SQLALCHEMY_DATABASE_URI leads to it"),
        ({"read_bind_key": "replica"}, "replica.db", "the database of LLM_COST_READ_BIND_KEY='replica' could not be asked "
         "(OperationalError SQLITE_CANTOPEN); see that it is up, and that SQLALCHEMY_BINDS['replica'] leads to it"),
        ({"read_bind_key": "replica"}, "app.db", None),
    ],
    ids=["no replica", "a replica that is away", "a replica without its ledger"],
)  # fmt: skip
def test_a_database_that_is_away_is_one_line(
    make_app: Callable[..., Flask], tmp_path: Path, config: dict[str, str], gone: str, said: str | None
) -> None:
    """A command whose database is away says in one line which one it is and what to look at, and exits 1."""
    shutil.copy(tmp_path / "app.db", tmp_path / "replica.db")
    app = make_app(**config)
    (tmp_path / gone).unlink()
    (tmp_path / gone).mkdir()
    told = run(app, "report")
    assert told.exit_code == (0 if said is None else 1)
    if said is not None:
        assert told.output.startswith(f"Error: {said}")
        assert len(told.output.splitlines()) == 1
    pruned = run(app, "prune", "--older-than", "9")
    assert (pruned.exit_code == 1) == (gone == "app.db")
    if gone == "app.db":
        assert pruned.output.startswith("Error: the ledger's database could not be asked")
