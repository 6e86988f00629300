"""Old calls go and their sums stay; a person is erased wherever the ledger kept the name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from ledger_calls import NOON, LedgerMaker, a_call, calls, price
from sqlalchemy.orm import Session
from test_rollups import Kept

from flask_llm_cost.budgets.limits import LIFT, active_lifts
from flask_llm_cost.errors import DetailPrunedError, LedgerError
from flask_llm_cost.ledger.agreement import sampled_agreement
from flask_llm_cost.ledger.call_queries import calls_page
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import (
    Adjustment,
    Base,
    BudgetHold,
    BudgetPeriod,
    Call,
    CallTag,
    Counter,
    LineItem,
    TagRollup,
)
from flask_llm_cost.ledger.quality_queries import soundness
from flask_llm_cost.ledger.queries import pivot
from flask_llm_cost.ledger.retention import ERASED, Cutoff, calls_tagged, forget, old, prune
from flask_llm_cost.ledger.rollup_state import read_state
from flask_llm_cost.ledger.writer import Writer
from flask_llm_cost.records import UNPRICED, Usage, new_call_id

DAY = date(2026, 10, 16)


@pytest.fixture
def kept(make_ledger: LedgerMaker) -> Iterator[Kept]:
    kept = Kept(make_ledger.engine)
    yield kept
    kept.close()


def count(kept: Kept, model: Any, *conditions: Any) -> int:
    with kept.engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(model.__table__).where(*conditions)) or 0


def orphans(kept: Kept) -> int:
    return sum(count(kept, model, model.call_id.not_in(sa.select(Call.id))) for model in (LineItem, CallTag))


def test_old_calls_go_and_their_sums_stay(kept: Kept) -> None:
    """After a prune nothing is left of old calls but their rollups; later calls are whole, and so are holds that a budget
    still counts: open and unresolved ones.
    """
    kept.write([price(record) for record in calls(300)])
    cutoff = Cutoff.of(DAY, kept.rollups.zone)
    hold(kept, cutoff.instant - timedelta(hours=1), "settled")
    hold(kept, cutoff.instant - timedelta(hours=1), "released")
    hold(kept, cutoff.instant - timedelta(hours=2), "open")
    hold(kept, cutoff.instant - timedelta(hours=2), "unresolved")
    sums = kept.found()
    later = count(kept, Call, Call.occurred_at >= cutoff.instant)
    with kept.engine.connect() as connection:
        found = old(connection, cutoff)
    assert 0 < found.calls < 300
    assert found.holds == 2
    assert sum(prune(kept.writer.transactions, kept.rollups, cutoff)) == found.calls + found.holds
    assert count(kept, Call) == later
    assert count(kept, CallTag) == 3 * later
    assert orphans(kept) == 0
    assert count(kept, BudgetHold) == count(kept, BudgetHold, BudgetHold.state.in_(("open", "unresolved"))) == 2
    assert kept.found() == sums
    with kept.engine.connect() as connection:
        state = read_state(connection)
    assert state is not None
    assert (state.pruned, state.pruned_day) == (cutoff.instant, DAY)


def test_what_may_still_be_settled_is_kept(kept: Kept) -> None:
    """A batch or background response that nobody has read yet outlives a prune, and is settled as one call of whoever made
    it; one that is pending after two months never will be, and goes.
    """
    now = datetime.now(UTC)
    pending = {"usage": Usage(source="pending"), "cost": UNPRICED, "tags": {"feature": "digest"}}
    waiting = a_call(**pending, occurred_at=now - timedelta(days=20))
    given_up = a_call(**pending, occurred_at=now - timedelta(days=61))
    kept.write([waiting, given_up, price(a_call(occurred_at=now - timedelta(days=20)))])
    cutoff = Cutoff.of(now.date(), kept.rollups.zone)
    with kept.engine.connect() as connection:
        assert old(connection, cutoff).calls == 2
    assert sum(prune(kept.writer.transactions, kept.rollups, cutoff)) == 2
    kept.write([price(replace(waiting, usage=Usage({"input": 1000}, "response"), tags={}))])
    assert count(kept, Call) == count(kept, CallTag, CallTag.key == "feature", CallTag.value == "digest") == 1
    with kept.engine.connect() as connection:
        digests = sa.select(sa.func.sum(TagRollup.calls)).where(TagRollup.key == "feature*", TagRollup.value == "digest")
        assert connection.scalar(digests) == 2
        assert connection.scalar(sa.select(sa.func.sum(TagRollup.calls)).where(TagRollup.key == "")) == 3


def hold(kept: Kept, at: datetime, state: str, scope: str = "user_id=42") -> None:
    period = new_call_id()
    amounts = dict.fromkeys(("spent", "held", "unresolved"), 0)
    with kept.engine.begin() as connection:
        connection.execute(
            sa.insert(BudgetPeriod.__table__).values(
                id=period, budget="b", scope=scope, period="day", starts_at=at, ends_at=at, unit="usd",
                currency="USD", blocked_calls=0, created_at=at, updated_at=at, **amounts,
            )
        )  # fmt: skip
        connection.execute(
            sa.insert(BudgetHold.__table__).values(
                call_id=new_call_id(), period_id=period, amount=1, state=state, created_at=at, expires_at=at
            )
        )


def test_a_prune_that_is_broken_off_leaves_whole_calls(kept: Kept) -> None:
    """Calls that come in between the batches are kept; a prune that stops half way leaves no half call, and goes on."""
    kept.write([price(record) for record in calls(400)])
    cutoff = Cutoff.of(DAY, kept.rollups.zone)
    steps = prune(kept.writer.transactions, kept.rollups, cutoff)
    assert next(steps) > 0
    kept.write(
        [price(a_call(occurred_at=cutoff.instant - timedelta(days=1))), price(a_call(occurred_at=NOON + timedelta(days=2)))]
    )
    steps.close()
    assert orphans(kept) == 0
    sums = kept.found()
    for _ in prune(kept.writer.transactions, kept.rollups, cutoff):
        pass
    assert count(kept, Call, Call.occurred_at < cutoff.instant) == 0
    assert kept.found() == sums


def test_a_rebuild_keeps_the_sums_of_what_was_pruned(kept: Kept) -> None:
    """Rollups of pruned calls stay through a rebuild, and late calls of that time are added to them."""
    kept.write([price(record) for record in calls(200)])
    cutoff = Cutoff.of(DAY, kept.rollups.zone)
    for _ in prune(kept.writer.transactions, kept.rollups, cutoff):
        pass
    kept.write([price(a_call(occurred_at=cutoff.instant - timedelta(hours=3)))])
    sums = kept.found()
    kept.rebuild()
    assert kept.found() == sums


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Kathmandu", "Pacific/Kiritimati"])
def test_days_of_another_zone_count_no_call_twice(make_ledger: LedgerMaker, zone: str) -> None:
    """After a prune and a move to another zone each rebuild leaves every sum as it is, whoever is late, by any grouping."""
    first = Kept(make_ledger.engine)
    first.write([price(record) for record in calls(200)])
    cutoff = Cutoff.of(DAY, first.rollups.zone)
    first.write([price(a_call(occurred_at=cutoff.instant + timedelta(hours=hour))) for hour in range(-30, 90)])
    for _ in prune(first.writer.transactions, first.rollups, cutoff):
        pass
    kept, late = Kept(make_ledger.engine, zone), 0
    for _ in range(3):
        kept.rebuild()
        kept.write([price(a_call(occurred_at=cutoff.instant + timedelta(hours=hour, minutes=7))) for hour in range(-20, 20)])
        late += 40
        with Session(kept.engine) as session:
            for names in ((), ("day",), ("month",), ("hour",), ("model",), ("tag:feature",), ("day", "tag:tenant_id")):
                rows = pivot(session, Filter(scope={}), names, zone=kept.rollups.zone)
                assert (names, sum(row.calls for row in rows)) == (names, 320 + late)
            state = read_state(session.connection())
            assert state is not None
            agreement = sampled_agreement(session, state)
            assert (agreement.wrong_buckets, agreement.wrong_days) == ((), ())
            for hour in range(53):  # around the mark, whose day may be another one here
                begun = cutoff.instant + timedelta(hours=hour)
                for until in (begun + timedelta(hours=3), cutoff.instant + timedelta(hours=53), None):
                    after = Filter(scope={}, since=begun, until=until, outcome="ok")
                    there = session.scalar(sa.select(sa.func.count()).select_from(Call).where(*after.conditions()))
                    told = [sum(row.calls for row in pivot(session, after, names)) for names in ((), ("tag:feature",))]
                    told += [sum(row.calls for row in pivot(session, replace(after, outcome=None), ("tag:feature",)))]
                    told += [
                        sum(row.calls for row in soundness(session, after)),
                        len(calls_page(session, after, limit=400).rows),
                    ]
                    assert (hour, until, *told) == (hour, until, *[there] * 5)
    first.close()
    kept.close()


@pytest.mark.parametrize("unit", ["day", "month", "hour"])
def test_where_all_calls_are_pruned_their_sums_are_found(kept: Kept, unit: str) -> None:
    """A ledger whose calls are all pruned answers by time, also where nobody names a range: the whole of it."""
    kept.write([price(record) for record in calls(200)])
    for _ in prune(kept.writer.transactions, kept.rollups, Cutoff.of(DAY + timedelta(days=30), kept.rollups.zone)):
        pass
    assert count(kept, Call) == 0
    with Session(kept.engine) as session:
        assert sum(row.calls for row in pivot(session, Filter(scope={}), (unit,))) == 200


def test_a_rebuild_keeps_no_key_of_which_a_part_was_pruned(make_ledger: LedgerMaker) -> None:
    """A tag, and a pair, that had no rollups when calls were pruned gets none later: they would know only the rest."""
    kept = Kept(make_ledger.engine, keys=["feature", "tenant_id"], report=("feature", "job"))
    kept.write([price(record) for record in calls(200)])
    cutoff = Cutoff.of(DAY, kept.rollups.zone)
    for _ in prune(kept.writer.transactions, kept.rollups, cutoff):
        pass
    later = Kept(make_ledger.engine)
    later.rebuild()
    with later.engine.connect() as connection:
        state = read_state(connection)
    assert state is not None
    assert state.kept == {"feature", "tenant_id"}
    assert {"user_id", "feature,tenant_id"} <= state.left_out
    everything = Filter(scope={}, since=NOON - timedelta(days=30), until=NOON + timedelta(days=30))
    with Session(later.engine) as session:
        for names in (("tag:user_id",), ("tag:feature", "tag:tenant_id")):
            with pytest.raises(DetailPrunedError):
                pivot(session, everything, names)
            assert pivot(session, everything.narrowed(since=cutoff.instant), names)
    later.close()
    kept.close()


def test_who_has_a_tag_is_not_made_up_for_what_was_pruned(kept: Kept) -> None:
    """On a ledger that did not keep who has a tag, a rebuild makes it of the calls that are there, and says since when."""
    kept.write([price(record) for record in calls(200)])
    with kept.engine.begin() as connection:
        connection.execute(sa.delete(TagRollup).where(TagRollup.key.endswith("?")))
        connection.execute(sa.delete(Counter).where(Counter.name.startswith("rollups.kinds")))
        state = read_state(connection)
    assert state is not None
    assert not state.counts("user_id", NOON)
    cutoff = Cutoff.of(DAY, kept.rollups.zone)
    for _ in prune(kept.writer.transactions, kept.rollups, cutoff):
        pass
    kept.rebuild()
    with kept.engine.connect() as connection:
        state = read_state(connection)
        has = sa.select(sa.func.sum(TagRollup.calls)).where(TagRollup.key == "user_id?")
        assert connection.scalar(has) == count(kept, Call)
    assert state is not None
    assert state.counts("user_id", cutoff.instant)
    assert not state.counts("user_id", cutoff.instant - timedelta(days=1))
    assert not state.counts("user_id", None)
    assert not state.counts("nobody", cutoff.instant)


def test_nothing_is_pruned_that_no_rollup_holds(kept: Kept) -> None:
    """Where rollups do not hold all calls, a prune refuses and names the command: the sums would be lost."""
    Writer(kept.own).write([price(a_call())])
    kept.write([price(a_call())])
    with pytest.raises(LedgerError, match="rollups rebuild"):
        next(prune(kept.writer.transactions, kept.rollups, Cutoff.of(date(2027, 1, 1), kept.rollups.zone)))
    assert count(kept, Call) == 2


def test_a_person_is_erased_everywhere(kept: Kept) -> None:
    """After forget no table has the value, of pruned calls neither; every sum is what it was, and one row says so."""
    kept.write([price(record) for record in calls(300)])
    kept.write([price(a_call(tags={"user_id": "7", "feature": "chat"}, occurred_at=NOON - timedelta(days=9)))])
    for _ in prune(kept.writer.transactions, kept.rollups, Cutoff.of(DAY, kept.rollups.zone)):
        pass
    hold(kept, datetime(2026, 10, 1, tzinfo=UTC), "open")
    with kept.engine.connect() as connection:
        tagged = calls_tagged(connection, "user_id", "7")
        total = connection.scalar(sa.select(sa.func.sum(TagRollup.cost)).where(TagRollup.key == "user_id"))
        pairs = connection.scalar(sa.select(sa.func.sum(TagRollup.calls)).where(TagRollup.key == "feature,user_id"))
    assert tagged
    assert sum(forget(kept.writer.transactions, kept.rollups, "user_id", "7", actor="me")) == tagged
    with kept.engine.connect() as connection:
        assert calls_tagged(connection, "user_id", "7") == 0
        assert calls_tagged(connection, "user_id", ERASED) == tagged
        assert connection.scalar(sa.select(sa.func.sum(TagRollup.cost)).where(TagRollup.key == "user_id")) == total
        assert connection.scalar(sa.select(sa.func.sum(TagRollup.calls)).where(TagRollup.key == "feature,user_id")) == pairs
        left = [
            (table.name, column.name)
            for table in Base.metadata.sorted_tables
            for column in table.columns
            if isinstance(column.type, sa.String)
            and connection.scalar(sa.select(sa.func.count()).select_from(table).where(column.in_(("7", "user_id=7"))))
        ]
        audit = connection.execute(sa.select(Adjustment.__table__)).mappings().one()
    assert left == []
    assert (audit["kind"], audit["scope"], audit["reason"], audit["actor"]) == ("forget", "user_id", f"{tagged} calls", "me")


def test_a_budget_scope_is_erased(kept: Kept) -> None:
    """A person's budget keeps what it has spent, without the name."""
    hold(kept, NOON, "open")
    kept.write([price(a_call())])
    assert list(itertools.islice(forget(kept.writer.transactions, kept.rollups, "user_id", "42"), 5)) == [1, 0]
    assert count(kept, BudgetPeriod, BudgetPeriod.scope.startswith(f"user_id={ERASED} ")) == 1


def test_what_was_one_persons_does_not_become_anothers(kept: Kept) -> None:
    """Of two who are erased the one whose limit was lifted keeps that, and the other does not get it."""
    for name in ("42", "7"):
        hold(kept, NOON, "open", f"user_id={name}")
    lift = {"id": new_call_id(), "made_at": NOON, "kind": LIFT, "budget": "b", "scope": "user_id=42", "amount": 5}
    with kept.engine.begin() as connection:
        connection.execute(sa.insert(Adjustment.__table__).values(**lift))
    for name in ("42", "7"):
        assert sum(forget(kept.writer.transactions, kept.rollups, "user_id", name)) == 0
    with kept.engine.connect() as connection:
        (lifted,) = {lift.scope for lift in active_lifts(connection)}
    assert count(kept, BudgetPeriod, BudgetPeriod.scope == lifted) == 1
    assert count(kept, BudgetPeriod, BudgetPeriod.scope.startswith(f"user_id={ERASED}")) == 2


def test_what_is_erased_is_not_erased_again(kept: Kept) -> None:
    """Erasing what stands in the place of erased values ends at once, and changes nothing."""
    kept.write([price(a_call(tags={"user_id": ERASED}))])
    assert list(itertools.islice(forget(kept.writer.transactions, kept.rollups, "user_id", ERASED), 5)) == []
    assert count(kept, Adjustment) == 0
