"""The statements of the page about partitions, run as they stand on a real PostgreSQL."""

from __future__ import annotations

import re
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from apps import Apps
from flask import Flask
from ledger_calls import a_call, price, total_of
from test_migrations import TABLES, run
from test_rollups import Kept

from flask_llm_cost import dashboard_blueprint, track
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger import spend
from flask_llm_cost.ledger.models import Base, Call, CallTag, LineItem
from flask_llm_cost.records import UNPRICED, CallRecord, Usage, new_call_id, settled_call_id

PAGE = Path(__file__).parents[2] / "docs" / "partitions.rst"
BLOCK = re.compile(r"^( *)\.\. code-block:: postgresql\n\n((?:\1   .*\n|\s*\n)+)", re.MULTILINE)
MAKERS, MOVE, NIGHTLY, LET_GO = (textwrap.dedent(block) for _, block in BLOCK.findall(PAGE.read_text()))
KEPT_DAYS = 60
PAGES = ("/", "/explore", "/models", "/tags/feature", "/calls", "/calls?tag.user_id=7", "/data-quality", "/calls.csv")

pytestmark = pytest.mark.slow


class Partitioned:
    """An app whose ledger is partitioned, months ago or now."""

    def __init__(self, url: sa.URL, app: Flask) -> None:
        self.app = app
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)
        self.kept = Kept(self.engine)
        app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")

    def sql(self, statements: str, now: datetime | None = None) -> list[Any]:
        """Run statements of the page in one transaction, as if it was *now*."""
        if now is not None:
            statements = statements.replace("now()", f"timestamptz '{now.isoformat()}'")
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statements))
            return list(result.scalars()) if result.returns_rows else []

    def let_go(self) -> list[str]:
        """What the statements that let months go have dropped."""
        timeout, let_go = LET_GO.strip().splitlines()
        assert "lock_timeout" in timeout
        return self.sql(let_go)

    def where(self) -> dict[str, int]:
        """How many calls each partition has, those without any left out."""
        counts = "SELECT split_part(tableoid::regclass::text, '.', 2), count(*) FROM llm_cost_calls GROUP BY 1"
        with self.engine.connect() as connection:
            return {str(name): int(count) for name, count in connection.exec_driver_sql(counts)}

    def count(self, model: Any, *conditions: Any) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(model.__table__).where(*conditions)) or 0

    def run(self, *arguments: str) -> str:
        result = self.app.test_cli_runner().invoke(args=["llm-cost", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    def total(self) -> tuple[int, Decimal | None]:
        """Calls and cost of all time, as ``spend`` says it."""
        with self.app.app_context():
            found = spend.total()
            return found.calls, found.cost

    def close(self) -> None:
        self.kept.close()
        self.engine.dispose()


@pytest.fixture
def ledger(postgresql_url: sa.URL, tmp_path: Path) -> Iterator[Partitioned]:
    """A ledger in plain tables yet."""
    apps = Apps(tmp_path, LLM_COST_WRITE_MODE="inline", LLM_COST_RETENTION_DAYS=KEPT_DAYS)
    ledger = Partitioned(postgresql_url, apps.make(postgresql_url))
    yield ledger
    ledger.close()
    apps.close()


def made_at(when: datetime, **changes: Any) -> CallRecord:
    """A priced call of that time, whose id says so."""
    return price(a_call(**{"id": new_call_id(int(when.timestamp() * 1e9)), "occurred_at": when, **changes}))


def month(when: datetime, ahead: int = 0) -> datetime:
    """The start of the month that is so many ahead."""
    year, number = divmod(when.year * 12 + when.month - 1 + ahead, 12)
    return datetime(year, number + 1, 1, tzinfo=UTC)


def part(when: datetime) -> str:
    return f"calls_{when:%Y_%m}"


def test_a_ledger_is_moved_and_goes_on(ledger: Partitioned) -> None:
    """Plain tables with calls become partitions without a change in any sum; all that writes, reads and changes works.

    A batch that is delivered twice counts once, a pending call is settled, and no call is refused for want of its month.
    """
    now = datetime.now(UTC)
    waiting = replace(made_at(now), usage=Usage(source="pending"), cost=UNPRICED)
    before = [made_at(now - timedelta(days=days), tags={"user_id": "7", "feature": "chat"}) for days in range(100)]
    ledger.kept.write([*before, waiting])
    sums, total = ledger.kept.found(), ledger.total()
    assert total == (101, total_of(before))

    ledger.sql(MAKERS + MOVE)
    ledger.sql(NIGHTLY)
    ledger.sql(NIGHTLY)
    assert ledger.where() == {part(now): 101}
    assert (ledger.kept.found(), ledger.total()) == (sums, total)

    unknown = settled_call_id("openai", "batch_1", None)  # of time zero
    late = [made_at(month(now, ahead) + timedelta(days=1)) for ahead in (1, 2, 3, 4)]
    settled = price(replace(waiting, usage=Usage({"input": 1000, "output": 20}, "response")))
    after = [made_at(now), *late, replace(made_at(now), id=unknown)]
    for _ in range(2):
        ledger.kept.write([*after, settled])
    ledger.kept.write(before)
    months = {part(month(now, ahead)): 1 for ahead in (1, 2, 3)}
    assert ledger.where() == {part(now): 103, **months, "calls_default": 1}
    assert ledger.kept.found() == ledger.kept.expected()

    ledger.sql(NIGHTLY, month(now, 1))
    assert ledger.where() == {part(now): 103, **months, part(month(now, 4)): 1}
    assert (ledger.count(LineItem), ledger.count(CallTag)) == (2 * 107, 2 * 100 + 3 * 7)

    client = ledger.app.test_client()
    for page in (*PAGES, f"/calls/{late[-1].id}"):
        assert client.get(f"/costs{page}").status_code == 200, page
    first, last = f"{now - timedelta(days=99):%Y-%m-%d}", f"{now:%Y-%m-%d}"
    ledger.run("reprice", "--from", first, "--to", last, "--yes")
    ledger.run("backfill")
    assert "erased in 100 calls" in ledger.run("forget", "user_id=7", "--yes")
    assert ledger.kept.found() == ledger.kept.expected()
    said = ledger.run("doctor")
    assert "all tables, columns, indexes and foreign keys are there" in said
    assert "each says what its calls add up to" in said


def test_calls_come_in_while_months_are_made(ledger: Partitioned) -> None:
    """Nothing is lost or counted twice while the tables are moved, and months made of what is in the default partitions."""
    now = datetime.now(UTC)
    done = threading.Event()

    def record() -> None:
        try:
            with ledger.app.app_context():
                for number in range(240):
                    track("openai", model="gpt-4o", usage={"input": number + 1}, tags={"feature": "chat"})
        finally:
            done.set()

    thread = threading.Thread(target=record)
    thread.start()
    ledger.sql(MAKERS + MOVE, month(now, -1))
    made = -1
    while not done.is_set() or made < 6:
        try:
            ledger.sql(NIGHTLY, month(now, made))
        except sa.exc.OperationalError:  # a lock that was waited for too long: the next night
            continue
        made += 1
    thread.join()
    with ledger.app.app_context():
        assert ledger.app.extensions["llm_cost"].ledger.flush(60)
    assert ledger.where() == {part(now): 240}
    assert ledger.total()[0] == 240
    assert ledger.kept.found() == ledger.kept.expected()


def moved_months_ago(ledger: Partitioned) -> list[CallRecord]:
    """Six whole months of calls in partitions of their own, moved while the ledger was empty; and calls that are astray."""
    now = datetime.now(UTC)
    ledger.sql(MAKERS)
    ledger.sql(MOVE, month(now, -6))
    for ahead in range(-6, 0, 2):
        ledger.sql(NIGHTLY, month(now, ahead))
    old = month(now, -6)
    records = [made_at(old + timedelta(days=days)) for days in range((now - old).days)]
    # An old call that was made known now, a young one whose id is of five months ago, and one whose id is of time zero.
    records.append(replace(made_at(now), occurred_at=old))
    records.append(replace(made_at(month(now, -5)), occurred_at=now - timedelta(days=1)))
    records.append(replace(made_at(old), id=settled_call_id("openai", "batch_1", None)))
    ledger.kept.write(records)
    return records


def test_months_are_let_go(ledger: Partitioned) -> None:
    """Nothing goes that the ledger has not been told of; then whole months do, and no total is ever smaller.

    A month with one call that is younger than the mark stays, ``prune`` deletes what was astray, a rebuild keeps the sums.
    """
    now = datetime.now(UTC)
    records = moved_months_ago(ledger)
    total, before = ledger.total(), ledger.where()
    assert total == (len(records), total_of(records))
    assert len(before) == 7
    assert "calls_default" not in before
    assert ledger.let_go() == []

    assert "nothing was deleted" in ledger.run("prune", "--mark", "--yes")
    assert (ledger.where(), ledger.total()) == (before, total)
    gone = ledger.let_go()
    mark = (now - timedelta(days=KEPT_DAYS)).replace(hour=0, minute=0, second=0, microsecond=0)
    old = [month(now, ahead) for ahead in range(-6, 0) if month(now, ahead + 1) <= mark]
    assert gone == [f"{start:%Y_%m}" for start in old if start != month(now, -5)]
    assert len(gone) >= 2
    assert ledger.where() == {name: calls for name, calls in before.items() if name.removeprefix("calls_") not in gone}
    assert ledger.total() == total
    with ledger.app.app_context(), pytest.raises(DetailPrunedError):
        spend.by("host")
    for model in (LineItem, CallTag):
        assert ledger.count(model, model.call_id.not_in(sa.select(Call.id))) == 0

    ledger.run("prune", "--yes")
    assert ledger.count(Call, Call.occurred_at < mark) == 0
    assert ledger.where()[part(month(now, -5))] == 1
    assert ledger.total() == total
    ledger.run("rollups", "rebuild")
    assert ledger.total() == total
    assert "each says what its calls add up to" in ledger.run("doctor")
    ledger.kept.write([made_at(month(now, -6))])  # from a spool that was long away
    assert ledger.total()[0] == total[0] + 1


def test_a_month_that_may_still_be_settled_stays(ledger: Partitioned) -> None:
    """A month is not let go while a batch or background response of it may still be settled; the others are."""
    now = datetime.now(UTC)
    moved_months_ago(ledger)
    waiting = replace(made_at(month(now) - timedelta(days=1)), usage=Usage(source="pending"), cost=UNPRICED)
    given_up = replace(made_at(month(now, -2) - timedelta(days=1)), usage=Usage(source="pending"), cost=UNPRICED)
    ledger.kept.write([waiting, given_up])
    ledger.run("prune", "--older-than", str(max(1, now.day - 1)), "--mark", "--yes")
    gone = ledger.let_go()
    assert f"{month(now, -3):%Y_%m}" in gone
    assert f"{month(now, -1):%Y_%m}" not in gone
    ledger.run("prune", "--older-than", str(max(1, now.day - 1)), "--yes")
    assert ledger.count(Call, Call.usage_source == "pending") == 1
    ledger.kept.write([price(replace(waiting, usage=Usage({"input": 1000}, "response"), tags={}))])
    assert ledger.count(CallTag, CallTag.call_id == waiting.id) == 3


def test_a_month_that_is_dropped_unmarked_is_found(ledger: Partitioned) -> None:
    """Doctor finds that calls are gone which the rollups have; once the ledger is told, all sums are right or refused."""
    now = datetime.now(UTC)
    moved_months_ago(ledger)
    total = ledger.total()
    gone = f"{month(now, -6):%Y_%m}"
    ledger.sql(f"DROP TABLE llm_cost_months.call_tags_{gone}, llm_cost_months.line_items_{gone}")
    ledger.sql(f"ALTER TABLE llm_cost_calls DETACH PARTITION llm_cost_months.calls_{gone}")
    with ledger.app.app_context():
        assert sum(row.calls for row in spend.by("host")) < total[0]
    found = ledger.app.test_cli_runner().invoke(args=["llm-cost", "doctor"])
    assert found.exit_code == 1
    assert "the rollups do not say what the calls add up to" in found.output
    ledger.run("prune", "--mark", "--yes")
    with ledger.app.app_context(), pytest.raises(DetailPrunedError):
        spend.by("host")
    assert ledger.total() == total
    assert "each says what its calls add up to" in ledger.run("doctor")


def test_migrations_see_no_difference(postgresql_url: sa.URL, tmp_path: Path) -> None:
    """With the page's ``include_object`` nothing is left to migrate after the move; later ones apply to partitions too.

    Without it Alembic wants to drop the foreign keys to partitions, and nothing else.
    """
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    assert run(postgresql_url, tmp_path, "partitions", "init", "migrate", "upgrade", "revision") >= TABLES
    versions = tmp_path / "migrations" / "versions"
    empty = next(file for file in versions.glob("*.py") if "create_table" not in file.read_text())
    column = "op.add_column('llm_cost_calls', sa.Column('extra', sa.Integer()))"
    empty.write_text(empty.read_text().replace("pass", f"op.execute({MAKERS + MOVE + NIGHTLY!r})\n    {column}", 1))
    assert run(postgresql_url, tmp_path, "partitions", "upgrade") >= TABLES
    columns = {column["name"] for column in sa.inspect(engine).get_columns("calls_default", schema="llm_cost_months")}
    assert "extra" in columns
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE llm_cost_calls DROP COLUMN extra")
        wanted = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert {change[0] for change in wanted} == {"remove_fk", "remove_table"}  # the tables of the app and of Alembic
    assert not {change[1].name for change in wanted if change[0] == "remove_table"} & TABLES
    assert run(postgresql_url, tmp_path, "partitions", "check") >= TABLES
