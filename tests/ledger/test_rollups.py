"""The rollups are what the calls come to, whatever happened to the calls and in what order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_calls import NOON, LedgerMaker, a_call, calls, price

from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.models import Call, CallTag, LineItem, TagRollup, UsageRollup
from flask_llm_cost.ledger.models import Counter as Mark
from flask_llm_cost.ledger.rebuild import rebuild
from flask_llm_cost.ledger.repricing import Repricing, reprice
from flask_llm_cost.ledger.retention import forget
from flask_llm_cost.ledger.rollup_state import RollupState, hold_state, read_state
from flask_llm_cost.ledger.rollup_sums import BOUNDS, MEASURES, TAG_KEYS, USAGE_KEYS, Sums
from flask_llm_cost.ledger.rollups import Rollups
from flask_llm_cost.ledger.rows import call_rows
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.ledger.transaction import WriteError
from flask_llm_cost.ledger.writer import Writer
from flask_llm_cost.records import UNPRICED, CallRecord, Usage

REPORT = ("feature", "tenant_id", "user_id")

Rows = dict[tuple[Any, ...], dict[str, Any]]


class Kept:
    """A writer with rollups, on one database."""

    def __init__(self, engine: sa.Engine, zone: str = "UTC", keys: Any = "auto", report: Sequence[str] = REPORT) -> None:
        self.engine = engine
        self.own = OwnEngine(lambda: engine)
        self.rollups = Rollups(ZoneInfo(zone), keys, report)
        self.writer = Writer(self.own, [self.rollups])

    def write(self, records: Sequence[CallRecord]) -> None:
        self.writer.write(records)

    def rebuild(self) -> int:
        return [step.done for step in rebuild(self.writer.transactions, self.rollups)][-1]

    def found(self) -> tuple[Rows, Rows]:
        """What both tables hold, rows that came to nothing left out."""
        with self.engine.connect() as connection:
            usage, tags = (
                [dict(row) for row in connection.execute(sa.select(model.__table__)).mappings()]
                for model in (UsageRollup, TagRollup)
            )
        return by_key(usage, USAGE_KEYS), by_key(tags, TAG_KEYS)

    def expected(self) -> tuple[Rows, Rows]:
        """What they have to hold, added up from the calls that are there."""
        with self.engine.connect() as connection:
            state = read_state(connection)
            assert state is not None
            sums = Sums(self.rollups.zone, state)
            for rows in stored_calls(connection, list(connection.scalars(sa.select(Call.id)))):
                sums.add(1, rows)
        usage = [dict(zip(("id", *USAGE_KEYS, *MEASURES, *BOUNDS), row, strict=True)) for row in sums.usage_rows()]
        tags = [dict(zip(("id", *TAG_KEYS, *MEASURES[:-1]), row, strict=True)) for row in sums.tag_rows()]
        return by_key(usage, USAGE_KEYS), by_key(tags, TAG_KEYS)

    def bounds(self) -> tuple[dict[Any, tuple[Any, ...]], dict[Any, tuple[Any, ...]]]:
        """What none of the calls of each rollup exceeds, as it is kept, and as it is in the calls that are there."""
        kept: dict[Any, tuple[Any, ...]] = {}
        there: dict[Any, tuple[Any, ...]] = {}
        with self.engine.connect() as connection:
            for *key, component, cost, latency in connection.execute(
                sa.select(
                    UsageRollup.bucket, UsageRollup.provider, UsageRollup.model, UsageRollup.currency, UsageRollup.component,
                    UsageRollup.most_cost, UsageRollup.most_latency_ms,
                )
            ):  # fmt: skip
                if component in ("", "*"):
                    kept[*key, component] = (cost, latency)
                else:
                    assert (cost, latency) == (None, None)
            for call in connection.execute(sa.select(Call.__table__)).mappings():
                at = call["occurred_at"]
                bucket = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
                cost, latency = call["total_cost"] or 0, call["latency_ms"] or 0
                one = (call["provider"], call["model"] or call["requested_model"] or "")
                for of, component in ((one, ""), (("", ""), "*")):
                    name = (bucket, *of, call["currency"], component)
                    before = there.get(name, (0, 0))
                    there[name] = (max(before[0], cost), max(before[1], latency))
        return kept, there

    def close(self) -> None:
        self.own.dispose()


def by_key(rows: list[dict[str, Any]], keys: Sequence[str]) -> Rows:
    measures = [name for name in MEASURES if name != "quantity" or keys == USAGE_KEYS]
    return {
        tuple(row[key] for key in keys): {name: row[name] or 0 for name in measures}
        for row in rows
        if any(row[name] for name in measures)
    }


@pytest.fixture
def kept(make_ledger: LedgerMaker) -> Iterator[Kept]:
    kept = Kept(make_ledger.engine)
    yield kept
    kept.close()


@pytest.fixture
def kept_sqlite(sqlite_ledger: LedgerMaker) -> Iterator[Kept]:
    kept = Kept(sqlite_ledger.engine)
    yield kept
    kept.close()


def test_rollups_move_with_the_calls(kept: Kept) -> None:
    """One call is counted per bucket, component, day, part of it, tag, pair of tags, and who has one; twice is once."""
    record = price(a_call(occurred_at=datetime(2026, 10, 15, 12, 29, tzinfo=UTC)))
    for _ in range(2):
        kept.write([record])
    usage, tags = kept.found()
    bucket = datetime(2026, 10, 15, 12, 15, tzinfo=UTC)
    assert {key[0] for key in usage} == {bucket}
    assert {key[3] for key in usage} == {"", "*", "input", "output"}
    assert usage[bucket, "", "", "*", "USD"]["cost"] == record.total_cost
    cost = usage[bucket, "openai", "gpt-4o-2024-08-06", "", "USD"]["cost"]
    assert cost == record.total_cost
    day = date(2026, 10, 15)
    model = ("openai", "gpt-4o-2024-08-06", "USD")
    assert (day, "", "", "", *model) in tags
    assert (day, "tenant_id", "acme", "", *model) in tags
    assert (day, "tenant_id*", "acme", "", "", "", "USD") in tags
    # 12:29 is in the seventh two hours of the day.
    assert (day, "tenant_id@", "acme", "06", "", "", "USD") in tags
    assert (day, "@", "", "06", "", "", "USD") in tags
    assert (day, "feature,tenant_id", "chat", "acme", *model) in tags
    assert {key[1] for key in tags if key[1].endswith("?")} == {"feature?", "tenant_id?", "user_id?"}
    assert (day, "tenant_id?", "", "", *model) in tags
    assert {amounts["calls"] for amounts in tags.values()} == {1}
    assert kept.found() == kept.expected()


def test_what_moves_no_sum_moves_no_rollup() -> None:
    """What takes off and adds the same is in no row of quarters; what moves the highest call, and not the sum, is."""
    state = RollupState("UTC", None, False, frozenset(), frozenset(), None, None, None)

    def moved(*parts: tuple[int, str]) -> int:
        sums = Sums(ZoneInfo("UTC"), state)
        for sign, cost in parts:
            rows = call_rows(price(a_call(occurred_at=datetime(2026, 10, 15, 12, tzinfo=UTC))), NOON)
            sums.add(sign, replace(rows, call={**rows.call, "total_cost": Decimal(cost)}, items=()))
        return len(sums.usage_rows())

    assert moved((-1, "5"), (1, "5")) == 0
    assert moved((-1, "5"), (-1, "5"), (1, "9"), (1, "1")) == 2
    assert moved((1, "5")) == 2


@pytest.mark.slow
def test_sixteen_writers_add_up(kept: Kept) -> None:
    """Sixteen writers with overlapping batches, some delivered by several: rollups are exactly what the calls come to."""
    records = [price(record) for record in calls(400)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        other = Kept(kept.engine)
        try:
            for start in range(0, 400, 50):
                position = (start + number * 37) % 400
                other.write(records[position : position + 80])
        except BaseException as error:
            failures.append(error)
        finally:
            other.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not [error for error in failures if not isinstance(error, WriteError)]
    kept.write(records)  # what a batch gave up on, as the drain would
    with kept.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Call.__table__)) == 400
    assert kept.found() == kept.expected()


TAG_VALUES = st.dictionaries(st.sampled_from([*REPORT, "job"]), st.sampled_from(["a", "b", "a b", "é"]), max_size=4)


@st.composite
def records(draw: st.DrawFn) -> CallRecord:
    """A call of any time, end, price and tags."""
    known = draw(st.booleans())
    record = a_call(
        occurred_at=NOON + timedelta(minutes=draw(st.integers(-4000, 4000)), microseconds=draw(st.integers(0, 9))),
        model=draw(st.sampled_from(["gpt-4o", "gpt-4.1", None])),
        provider=draw(st.sampled_from(["openai", "azure"])),
        outcome=draw(st.sampled_from(["ok", "error", "interrupted", "blocked"])),
        latency_ms=draw(st.sampled_from([None, 5, 900])),
        usage=Usage({"input": draw(st.integers(0, 900)), "output": 3}, draw(st.sampled_from(["response", "stream_partial"])))
        if known
        else Usage(source=draw(st.sampled_from(["unknown", "pending"]))),
        tags=draw(TAG_VALUES),
    )
    return price(record) if draw(st.booleans()) else replace(record, cost=UNPRICED)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(records(), min_size=1, max_size=6), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.sampled_from(["auto", ("feature", "tenant_id")]),
)
def test_moved_step_by_step_is_made_anew(
    sqlite_ledger: LedgerMaker, batches: list[list[CallRecord]], chance: Any, keys: Any
) -> None:
    """Late, out of order, delivered twice, settled, repriced and erased calls: what moved with them is what a rebuild makes.

    With tags that are left out, too: who has them is kept.
    """
    engine = sqlite_ledger.engine
    with engine.begin() as connection:
        for model in (LineItem, CallTag, Call, UsageRollup, TagRollup, Mark):
            connection.execute(sa.delete(model))
    kept = Kept(engine, "Asia/Kathmandu", keys)
    written: list[CallRecord] = []
    for batch in batches:
        kept.write(batch + ([chance.choice(written)] if written else []))
        written += batch
        if waiting := [record for record in written if record.usage.source == "pending"]:
            chosen = chance.choice(waiting)
            kept.write([price(replace(chosen, usage=Usage({"input": 7, "output": 1}, "response"), outcome="ok", cost=None))])
        with engine.connect() as connection:
            some = stored_calls(connection, [chance.choice(written).id])
        cost = price(a_call(usage=Usage({"input": chance.randrange(99), "output": 2}, "response"))).cost
        assert cost is not None
        reprice(kept.writer, [Repricing(rows, cost) for rows in some], kind="reprice")
        for _ in forget(kept.writer.transactions, kept.rollups, chance.choice([*REPORT, "job"]), chance.choice("ab")):
            pass
    moved = kept.found()
    assert moved == kept.expected()
    bounds, there = kept.bounds()
    for key, values in there.items():
        assert all(most >= value for most, value in zip(bounds[key], values, strict=True)), key
    assert who_has_a_tag(kept) == dict(Counter(key for record in written for key in record.tags))
    assert kept.rebuild() == len(written)
    assert kept.found() == moved
    bounds, there = kept.bounds()
    assert bounds == there
    kept.close()


def who_has_a_tag(kept: Kept) -> dict[str, int]:
    """How many calls have each tag, by the rollups that say so."""
    _, tags = kept.found()
    found: Counter[str] = Counter()
    for key, amounts in tags.items():
        if key[1].endswith("?"):
            found[key[1].removesuffix("?")] += amounts["calls"]
    return dict(found)


def test_a_rebuild_goes_on_while_calls_come_in(kept: Kept) -> None:
    """Calls before, inside and after the part that is done come in between the pieces, and it is broken off once."""
    first = [price(record) for record in calls(2_500, seed=1)]
    kept.write(first)
    with kept.engine.begin() as connection:
        connection.execute(sa.delete(TagRollup))
        connection.execute(sa.update(UsageRollup).values(calls=UsageRollup.calls + 1))
    late = iter([price(record) for record in calls(60, seed=2)])
    for number, _ in enumerate(rebuild(kept.writer.transactions, kept.rollups)):
        kept.write([next(late), next(late)])
        if number == 3:
            break
    with kept.engine.connect() as connection:
        state = read_state(connection)
        assert state is not None
        assert not state.complete
    for _ in rebuild(kept.writer.transactions, kept.rollups):
        kept.write([record for record in [next(late, None), next(late, None)] if record is not None])
    with kept.engine.connect() as connection:
        state = read_state(connection)
        assert state is not None
        assert state.complete
    assert kept.found() == kept.expected()


def test_calls_that_are_older_than_the_rollups_wait_for_a_rebuild(kept_sqlite: Kept) -> None:
    """On a ledger with calls and without rollups nothing half is kept: a rebuild begins them."""
    bare = Writer(kept_sqlite.own)
    bare.write([price(record) for record in calls(5, seed=1)])
    kept_sqlite.write([price(record) for record in calls(5, seed=2)])
    assert kept_sqlite.found() == ({}, {})
    assert kept_sqlite.rebuild() == 10
    assert kept_sqlite.found() == kept_sqlite.expected()
    kept_sqlite.write([price(a_call())])
    assert kept_sqlite.found() == kept_sqlite.expected()


def test_another_zone_waits_for_a_rebuild(kept_sqlite: Kept) -> None:
    """Days of two zones never mix: writes with another zone are refused, and a rebuild moves all days."""
    kept_sqlite.write([price(record) for record in calls(40)])
    other = Kept(kept_sqlite.engine, "Asia/Kathmandu")
    record = price(a_call())
    with pytest.raises(WriteError, match=r"days of UTC.*Asia/Kathmandu.*rollups rebuild"):
        other.write([record])
    other.rebuild()
    other.write([record])
    assert other.found() == other.expected()
    with pytest.raises(WriteError, match="rollups rebuild"):
        kept_sqlite.write([price(a_call())])
    other.close()


def test_a_key_with_a_value_a_call_is_left_out(kept_sqlite: Kept) -> None:
    """Under "auto" a nearly unique key, and pairs with it, lose their rollups; a key with few values keeps them.

    Swept away are the rows of its values, and not those of who has it.
    """
    many = [
        price(a_call(occurred_at=NOON + timedelta(days=number % 2), tags={"tenant_id": "acme", "user_id": str(number)}))
        for number in range(2_900)
    ]
    kept_sqlite.write(many)

    def measure(connection: sa.Connection) -> None:
        state = hold_state(connection)
        assert state is not None
        kept_sqlite.rollups.measure(connection, state)

    for _ in range(12):
        kept_sqlite.writer.transactions.run(measure)
    with kept_sqlite.engine.connect() as connection:
        state = read_state(connection)
    assert state is not None
    assert state.left_out == {"user_id", "tenant_id,user_id"}
    assert state.kept == {"tenant_id"}
    assert kept_sqlite.found() == kept_sqlite.expected()
    assert who_has_a_tag(kept_sqlite) == {"tenant_id": 2_900, "user_id": 2_900}


def test_the_configuration_names_the_keys(kept_sqlite: Kept) -> None:
    """LLM_COST_ROLLUP_TAGS names what is kept; what is named later is kept after a rebuild, what is not any more at once."""
    kept_sqlite.write([price(a_call())])
    narrow = Kept(kept_sqlite.engine, keys=("feature",))
    narrow.write([price(a_call())])
    with kept_sqlite.engine.connect() as connection:
        state = read_state(connection)
    assert state is not None
    assert state.kept == {"feature"}
    wide = Kept(kept_sqlite.engine, keys=("feature", "tenant_id"))
    wide.rebuild()
    with kept_sqlite.engine.connect() as connection:
        state = read_state(connection)
    assert state is not None
    assert state.kept == {"feature", "tenant_id", "feature,tenant_id"}
    assert wide.found() == wide.expected()
    narrow.close()
    wide.close()


def test_money_in_rollups_is_exact(kept: Kept) -> None:
    """A thousand costs of a fraction of a cent add up in the rollups to the last digit."""
    written = [price(record) for record in calls(1_000)]
    kept.write(written)
    with kept.engine.connect() as connection:
        total = connection.scalar(sa.select(sa.func.sum(TagRollup.cost)).where(TagRollup.key == ""))
    assert total == sum((record.total_cost or Decimal(0) for record in written), Decimal(0))
