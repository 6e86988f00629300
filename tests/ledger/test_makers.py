"""A call that the provider's id settles is its maker's, in whatever order, and by how many processes, it is written."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from ledger_calls import NOON, LedgerMaker, a_call, price
from sqlalchemy.orm import Session
from test_rollups import Kept

from flask_llm_cost.budgets.declaration import parse_budgets
from flask_llm_cost.budgets.limits import Limits
from flask_llm_cost.budgets.settling import Settling
from flask_llm_cost.ledger.change import Change
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import BudgetPeriod, Call
from flask_llm_cost.ledger.queries import totals
from flask_llm_cost.ledger.retention import Cutoff, prune
from flask_llm_cost.ledger.writer import Writer
from flask_llm_cost.records import UNPRICED, Usage, new_call_id, settled_call_id

CALL_ID = settled_call_id("openai", "resp_1", NOON)
LATER = {"occurred_at": NOON + timedelta(hours=1), "operation": "responses.get", "requested_model": None}
READER: Any = {"id": CALL_ID, "tags": {"feature": "read"}, **LATER}

#: Who makes a call names a model; who asks how it went names none.
MADE = a_call(id=CALL_ID, usage=Usage(source="pending"), cost=UNPRICED, tags={"feature": "made"}, requested_model="gpt-4o")
ASKED = a_call(usage=Usage(source="pending"), cost=UNPRICED, **READER)
READ = price(a_call(**READER))
WORDS = {"made": MADE, "asked": ASKED, "read": READ}
ORDERS = [tuple(order) for order in sorted(set(itertools.permutations(("made", "asked", "read", "read"))))]


class Sums:
    """Adds up what moves with the rows, as rollups and budgets do."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.cost = Decimal(0)

    def __call__(self, connection: sa.Connection, change: Change) -> None:
        for sign, rows in change.parts:
            self.calls.update({(rows.call["operation"], tag["value"]): sign for tag in rows.tags})
            self.cost += sign * (rows.call["total_cost"] or Decimal(0))


@pytest.fixture
def sums() -> Sums:
    return Sums()


@pytest.fixture
def writer(make_ledger: LedgerMaker, sums: Sums) -> Iterator[Writer]:
    own = OwnEngine(lambda: make_ledger.engine)
    yield Writer(own, [sums])
    own.dispose()


def check(make_ledger: LedgerMaker, sums: Sums) -> None:
    """The call is its maker's, with the usage that was read, once in every sum."""
    with Session(make_ledger.engine) as session:
        call = session.scalars(sa.select(Call)).one()
        assert {tag.key: tag.value for tag in call.tags} == {"feature": "made"}
        assert {tag.occurred_at for tag in call.tags} == {NOON}
        assert (call.occurred_at, call.operation, call.requested_model) == (NOON, "chat.completions", "gpt-4o")
        assert (call.usage_source, call.total_cost, call.input_tokens) == ("response", READ.total_cost, 1000)
    assert +sums.calls == Counter({("chat.completions", "made"): 1})
    assert sums.cost == READ.total_cost


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_one_after_the_other(make_ledger: LedgerMaker, writer: Writer, sums: Sums, order: tuple[str, ...]) -> None:
    """Whoever is written first, second or last, and all of them once more: the row is the maker's and has the usage."""
    for word in (*order, *order):
        writer.write([WORDS[word]])
    check(make_ledger, sums)


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_all_in_one_batch(make_ledger: LedgerMaker, writer: Writer, sums: Sums, order: tuple[str, ...]) -> None:
    """What has waited in one spool while the database was away is written together: nothing of it is lost."""
    records = [WORDS[word] for word in order]
    assert len(writer.write(records).fresh) == 1
    writer.write(records)
    check(make_ledger, sums)


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_its_makers_budget_has_it(make_ledger: LedgerMaker, order: tuple[str, ...]) -> None:
    """Whoever is written first, what was spent is in the account of the maker alone, one that begins with it too."""
    budgets = parse_budgets([{"name": "each", "limit": "25", "period": "month", "per": "feature"}])
    own = OwnEngine(lambda: make_ledger.engine)
    settling = Settling(budgets, ZoneInfo("UTC"), Limits({}, nullcontext), lambda crossings: None)
    writer = Writer(own, [settling])
    for word in (*order, *order):
        writer.write([WORDS[word]])
    with Session(make_ledger.engine) as session:
        accounts = session.execute(sa.select(BudgetPeriod.scope, BudgetPeriod.spent)).all()
    assert {scope: spent for scope, spent in accounts if spent} == {"feature=made": READ.total_cost}
    own.dispose()


def test_two_batches(make_ledger: LedgerMaker, writer: Writer, sums: Sums) -> None:
    """The spool of a dead process is taken over after others have read how its call went."""
    others = [price(a_call()) for _ in range(3)]
    writer.write([ASKED, READ, *others])
    writer.write([replace(others[0]), MADE])
    with Session(make_ledger.engine) as session:
        assert len(session.scalars(sa.select(Call)).all()) == 4
        (call,) = session.scalars(sa.select(Call).where(Call.id == CALL_ID))
        assert [tag.value for tag in call.tags] == ["made"]


def test_a_stream_that_was_left_is_its_makers(make_ledger: LedgerMaker, writer: Writer) -> None:
    """A maker whose record says how its call went has the call, also where somebody else has read it before."""
    final = price(replace(MADE, usage=READ.usage, cost=None))
    writer.write([READ])
    writer.write([final])
    with Session(make_ledger.engine) as session:
        call = session.scalars(sa.select(Call)).one()
        assert ([tag.value for tag in call.tags], call.total_cost) == (["made"], READ.total_cost)


def test_who_reads_again_what_was_pruned_brings_no_call(make_ledger: LedgerMaker) -> None:
    """After a prune, asking once more how a call went counts it no second time; of a call that was never kept it does."""
    kept = Kept(make_ledger.engine)
    for record in (MADE, READ):
        kept.write([record])
    for _ in prune(kept.writer.transactions, kept.rollups, Cutoff.of(NOON.date() + timedelta(days=1), ZoneInfo("UTC"))):
        pass
    later = NOON + timedelta(days=40)
    again = replace(READ, occurred_at=later)
    other = replace(again, id=settled_call_id("openai", "resp_2", later - timedelta(hours=1)))
    dateless = replace(again, id=settled_call_id("openai", "resp_3", None))
    manual = price(a_call(occurred_at=NOON, requested_model=None))
    # Of a time before 1970 an id says one that no calendar has.
    ancient = price(a_call(id=new_call_id(-1_000_000_000), occurred_at=NOON, requested_model=None))
    for _ in range(2):
        kept.writer.write([again, other, dateless, manual, ancient])
    with Session(make_ledger.engine) as session:
        assert set(session.scalars(sa.select(Call.id))) == {other.id, dateless.id, manual.id, ancient.id}
        assert totals(session, Filter(scope={})).calls == 5
    kept.close()
