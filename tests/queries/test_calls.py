"""Single calls: pages that lose and repeat nothing, and details only of what the filter lets through."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from ledger_rows import add_call
from sqlalchemy.orm import Session

from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger.call_queries import ORDERS, all_calls, calls_page, one_call
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Base, Call, CallTag, LineItem, PriceSnapshot

AT = datetime(2026, 11, 3, 12, tzinfo=UTC)
EVERYTHING = Filter(scope={})
OF_A_TAG = Filter(scope={}, tags={"kind": "planted"})
OF_A_TENANT = Filter(scope={"tenant_id": "acme"}, tags={"kind": "planted"}, since=AT - timedelta(days=1))


def _plant(session: Session, count: int = 23) -> list[UUID]:
    # Equal times, costs and latencies among them, and unknown ones.
    return [
        add_call(
            session,
            AT + timedelta(seconds=n // 3),
            None if n % 5 == 0 else f"0.0{n % 4}",
            latency_ms=None if n % 4 == 0 else 100 * (n % 3),
            tags={"n": str(n), "kind": "planted", "tenant_id": "acme"},
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("flt", [EVERYTHING, OF_A_TAG, OF_A_TENANT], ids=["all", "tag", "scope and tag"])
@pytest.mark.parametrize("order", list(ORDERS))
def test_pages_lose_and_repeat_nothing(session: Session, order: str, flt: Filter) -> None:
    """Walked forwards every call comes once and in order, and walked back from the end the same ones again."""
    planted = _plant(session)
    if flt is not EVERYTHING:
        add_call(session, AT, "0.01", tags={"kind": "another", "tenant_id": "acme"})
    forwards, backwards = [], []
    page = calls_page(session, flt, order=order, limit=4)
    assert page.preceding is None
    while True:
        forwards.append([row.id for row in page.rows])
        if page.following is None:
            break
        page = calls_page(session, flt, order=order, after=page.following, limit=4)
    while True:
        backwards.append([row.id for row in page.rows])
        if page.preceding is None:
            break
        page = calls_page(session, flt, order=order, before=page.preceding, limit=4)
    flat = [call for found in forwards for call in found]
    assert sorted(flat) == sorted(planted)
    assert len(flat) == len(set(flat))
    assert [call for found in reversed(backwards) for call in found] == flat
    assert [row.id for row in all_calls(session, flt, order=order, batch=5)] == flat


def test_the_latest_of_a_tag_are_found_in_order(sqlite_url: sa.URL) -> None:
    """A tenant with millions of calls waits for the fifty that are shown: its calls come in order, and none is sorted."""
    engine = sa.create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    asked: list[tuple[str, Any]] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
    with Session(engine) as session:
        calls_page(session, OF_A_TENANT)
        statement, parameters = next(each for each in asked if "ORDER BY" in each[0])
        plan = [str(row[3]) for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    engine.dispose()
    assert "ix_llm_cost_call_tags_key" in plan[0]
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan


def test_the_order_is_what_it_says(session: Session) -> None:
    """Dearest and slowest begin with the most, and what is not known comes last."""
    _plant(session)
    costs = [row.total_cost for row in all_calls(session, EVERYTHING, order="dearest")]
    known = [cost for cost in costs if cost is not None]
    assert costs == sorted(known, reverse=True) + [None] * (len(costs) - len(known))
    times = [row.occurred_at for row in all_calls(session, EVERYTHING, order="newest")]
    assert times == sorted(times, reverse=True)
    assert [row.tags for row in all_calls(session, EVERYTHING.narrowed(tags={"n": "7"}))] == [
        {"n": "7", "kind": "planted", "tenant_id": "acme"}
    ]


def test_a_page_starts_from_a_call_of_its_own_filter(session: Session) -> None:
    """A call outside the filter is no place to go on from, as one that never was; nor is an unknown order an order."""
    add_call(session, AT, tags={"tenant_id": "a"})
    other = add_call(session, AT, tags={"tenant_id": "b"})
    for start in (other, uuid4()):
        with pytest.raises(QueryError, match="not among these calls"):
            calls_page(session, Filter(scope={"tenant_id": "a"}), after=start)
    with pytest.raises(QueryError, match="known are: newest"):
        calls_page(session, EVERYTHING, order="id; --")
    with pytest.raises(QueryError, match="not both"):
        calls_page(session, EVERYTHING, after=other, before=other)


def test_one_call_with_its_bill(session: Session) -> None:
    """A call comes with its lines in order, its tags and the price that was applied, all exact."""
    price = PriceSnapshot(
        id=uuid4(), source="bundled", source_version="2026-11-01", matched_key="openai/gpt-4o", match_kind="exact",
        currency="USD", rates={}, multiplier=Decimal(1), discount=Decimal("0.15"), created_at=AT,
    )  # fmt: skip
    session.add(price)
    session.flush()
    call_id = add_call(
        session,
        AT,
        "0.00123",
        tags={"feature": "chat", "tenant_id": "a"},
        items=[("input", 600, "1.25", "0.00075"), ("cache_read", 400, "1.2", "0.00048")],
        price=price,
    )
    found = one_call(session, Filter(scope={"tenant_id": "a"}), call_id)
    assert found is not None
    assert [
        (line.component, line.quantity * (line.rate or 0) / (line.rate_per or 1), line.cost) for line in found.lines
    ] == [
        ("input", Decimal("0.00075"), Decimal("0.00075")),
        ("cache_read", Decimal("0.00048"), Decimal("0.00048")),
    ]
    assert sum(line.cost or 0 for line in found.lines) == found.call.total_cost
    assert found.call.tags == {"feature": "chat", "tenant_id": "a"}
    assert found.price is not None
    assert (found.price.matched_key, found.price.discount) == ("openai/gpt-4o", Decimal("0.15"))


def test_one_call_of_somebody_else_is_not_there(session: Session) -> None:
    """An id does not open what the scope does not hold."""
    call_id = add_call(session, AT, tags={"tenant_id": "b"})
    assert one_call(session, Filter(scope={"tenant_id": "a"}), call_id) is None
    assert one_call(session, EVERYTHING, uuid4()) is None


@pytest.mark.parametrize("order", ORDERS)
def test_a_list_goes_on_where_its_last_call_is_gone(session: Session, order: str) -> None:
    """A call that is deleted when a page has ended with it: the others follow, each once."""
    _plant(session)
    wanted = [row.id for row in all_calls(session, EVERYTHING, order=order)]
    told = []
    for number, row in enumerate(all_calls(session, EVERYTHING, order=order, batch=5)):
        told.append(row.id)
        if number % 5 == 4:
            for table in (LineItem, CallTag):
                session.execute(sa.delete(table).where(table.call_id == row.id))
            session.execute(sa.delete(Call).where(Call.id == row.id))
    assert told == wanted
