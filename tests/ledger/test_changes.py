"""What moves with the rows of the ledger moves by exactly the difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest
import sqlalchemy as sa
from ledger_calls import PRICE, LedgerMaker, a_call, price

from flask_llm_cost.errors import SchemaMissingError
from flask_llm_cost.ledger.change import Change, DoFirst
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.models import Adjustment, Base, Call, LineItem
from flask_llm_cost.ledger.models import Counter as Mark
from flask_llm_cost.ledger.repricing import Repricing, reprice
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.ledger.writer import Writer
from flask_llm_cost.records import UNKNOWN_USAGE, UNPRICED, Usage


class Book:
    """Adds up every change it is told of."""

    def __init__(self) -> None:
        self.calls = 0
        self.cost = Decimal(0)
        self.quantities: Counter[str] = Counter()
        self.tags: Counter[tuple[str, str]] = Counter()

    def __call__(self, connection: sa.Connection, change: Change) -> None:
        for sign, rows in change.parts:
            self.calls += sign
            self.cost += sign * (rows.call["total_cost"] or Decimal(0))
            for item in rows.items:
                self.quantities[item["component"]] += sign * int(item["quantity"])
            for tag in rows.tags:
                self.tags[tag["key"], tag["value"]] += sign


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def own_engine(make_ledger: LedgerMaker) -> Iterator[OwnEngine]:
    own = OwnEngine(lambda: make_ledger.engine)
    yield own
    own.dispose()


@pytest.fixture
def writer(own_engine: OwnEngine, book: Book) -> Writer:
    return Writer(own_engine, [book])


def test_a_settled_call_is_added_once(writer: Writer, book: Book, make_ledger: LedgerMaker) -> None:
    """A pending call counts as one without usage; settled it is one with usage, under the tags of its maker."""
    pending = a_call(usage=replace(UNKNOWN_USAGE, source="pending"), cost=UNPRICED)
    writer.write([pending])
    assert (book.calls, book.cost, +book.quantities) == (1, 0, Counter())
    settled = price(replace(pending, usage=Usage({"input": 1000, "output": 20}, "response"), tags={"feature": "poller"}))
    writer.write([settled])
    writer.write([settled])
    assert book.calls == 1
    assert book.cost == settled.total_cost
    assert +book.quantities == Counter(input=1000, output=20)
    assert +book.tags == Counter({("feature", "chat"): 1, ("tenant_id", "acme"): 1, ("user_id", "42"): 1})


def test_a_new_price_moves_rows_and_steps_together(writer: Writer, book: Book, make_ledger: LedgerMaker) -> None:
    """Repriced calls have the new cost in rows and lines, steps see the difference, and each change is on record."""
    unpriced, other = replace(a_call(), cost=UNPRICED), price(a_call())
    writer.write([unpriced, other])
    with make_ledger.engine.connect() as connection:
        (stored,) = stored_calls(connection, [unpriced.id])
    cost = price(a_call()).cost
    assert cost is not None
    assert reprice(writer, [Repricing(stored, cost)], kind="backfill", actor="me", reason="new book") == [unpriced.id]
    assert book.calls == 2
    assert book.cost == (cost.total or 0) + (other.total_cost or 0)
    assert +book.quantities == Counter(input=2000, output=40)
    with make_ledger.engine.connect() as connection:
        call = connection.execute(sa.select(Call.__table__).where(Call.id == unpriced.id)).one()
        items = connection.scalars(sa.select(LineItem.cost).where(LineItem.call_id == unpriced.id)).all()
        adjustment = connection.execute(sa.select(Adjustment.__table__)).one()
    assert (call.total_cost, call.cost_status, call.price_id) == (cost.total, "priced", PRICE.id)
    assert sum(item for item in items if item is not None) == cost.total
    assert (adjustment.kind, adjustment.call_id, adjustment.old_cost, adjustment.new_cost, adjustment.actor) == (
        "backfill",
        unpriced.id,
        None,
        cost.total,
        "me",
    )


def test_what_changed_meanwhile_is_left_alone(writer: Writer, book: Book, make_ledger: LedgerMaker) -> None:
    """Of two who reprice the same call as they read it, one does it and the other is told."""
    record = replace(a_call(), cost=UNPRICED)
    writer.write([record])
    with make_ledger.engine.connect() as connection:
        (stored,) = stored_calls(connection, [record.id])
    cost = price(record).cost or price(replace(record, cost=None)).cost
    assert cost is not None
    assert reprice(writer, [Repricing(stored, cost)], kind="backfill") == [record.id]
    assert reprice(writer, [Repricing(stored, cost)], kind="backfill") == []
    assert book.cost == cost.total


def test_a_step_may_ask_for_something_to_be_done_first(own_engine: OwnEngine, make_ledger: LedgerMaker) -> None:
    """Work that a step asks for is committed on its own, once, and the batch follows."""
    counters = Mark.__table__

    def make(connection: sa.Connection) -> None:
        now = a_call().occurred_at
        connection.execute(sa.insert(Mark).values(name="mark", value=0, updated_at=now))

    def step(connection: sa.Connection, change: Change) -> None:
        counted = sa.update(Mark).where(Mark.name == "mark").values(value=Mark.value + len(change.added))
        if connection.execute(counted).rowcount == 0:
            raise DoFirst(make)

    writer = Writer(own_engine, [step])
    assert len(writer.write([price(a_call()), price(a_call())]).fresh) == 2
    with make_ledger.engine.connect() as connection:
        assert connection.scalar(sa.select(counters.c.value)) == 2


def test_a_change_without_tables_says_what_to_do(make_ledger: LedgerMaker, writer: Writer) -> None:
    """Repricing where the tables are missing names the command that makes them."""
    record = price(a_call())
    writer.write([record])
    with make_ledger.engine.connect() as connection:
        stored = stored_calls(connection, [record.id])
    Base.metadata.drop_all(make_ledger.engine)
    assert record.cost is not None
    with pytest.raises(SchemaMissingError, match="flask db upgrade"):
        reprice(writer, [Repricing(stored[0], record.cost)], kind="reprice")
