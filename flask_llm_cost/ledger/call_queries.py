"""Single calls: the list, page by page, and one call with the arithmetic of its bill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from itertools import chain
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger.bulk import USAGE_ROLLUPS
from flask_llm_cost.ledger.columns import Money
from flask_llm_cost.ledger.days import with_calls
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Call, CallTag, LineItem, PriceSnapshot
from flask_llm_cost.ledger.peaks import UNKNOWN, Shortlist, near_the_top
from flask_llm_cost.ledger.rollup_state import rare_tags
from flask_llm_cost.ledger.rollup_sums import FAILED_OUTCOMES, UNCOUNTED_SOURCES
from flask_llm_cost.ledger.sample_queries import Sample

#: What a list of calls can be sorted by, and whether downwards. What is not known comes last in ``dearest`` and ``slowest``,
#: and of equals the latest come first.
ORDERS: Final[Mapping[str, tuple[Any, bool]]] = {
    "newest": (Call.occurred_at, True),
    "oldest": (Call.occurred_at, False),
    "dearest": (sa.func.coalesce(Call.total_cost, sa.literal(Decimal(UNKNOWN), Money), type_=Money()), True),
    "slowest": (sa.func.coalesce(Call.latency_ms, UNKNOWN), True),
}
#: By which column of the rollups the first ones of an order are found.
_BOUNDS: Final = {"dearest": USAGE_ROLLUPS.c.most_cost, "slowest": USAGE_ROLLUPS.c.most_latency_ms}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """One call without its lines. The fields are columns of ``llm_cost_calls``; ``tags`` is key to value."""

    id: UUID
    occurred_at: datetime
    recorded_at: datetime
    provider: str
    model: str | None
    requested_model: str | None
    host: str
    operation: str
    stream: bool
    attempt: int
    outcome: str
    http_status: int | None
    error_class: str | None
    usage_source: str
    cost_status: str
    total_cost: Decimal | None
    computed_cost: Decimal | None
    currency: str
    pricing_mode: str | None
    price_id: UUID | None
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    total_tokens: int | None
    latency_ms: int | None
    first_token_ms: int | None
    provider_response_id: str | None
    flags: str | None
    tags: Mapping[str, str]

    @property
    def price_model(self) -> str | None:
        """The model it was priced by: as billed, else as requested."""
        return self.model or self.requested_model

    @property
    def nothing_billed(self) -> bool:
        """Whether it was blocked or refused and reported nothing: there is no cost, and none is missing."""
        uncounted = self.cost_status == "unpriced" and self.usage_source in UNCOUNTED_SOURCES
        return uncounted and self.outcome in FAILED_OUTCOMES


_COLUMNS: Final = tuple(getattr(Call, item.name) for item in fields(CallRow) if item.name != "tags")


@dataclass(frozen=True, slots=True)
class CallPage:
    """A page of calls. ``following`` and ``preceding`` are the calls to go on from, ``None`` at either end."""

    rows: tuple[CallRow, ...]
    following: UUID | None
    preceding: UUID | None


def calls_page(
    session: Session,
    flt: Filter,
    *,
    order: str = "newest",
    after: UUID | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> CallPage:
    """Calls in *order*, those that come *after* or *before* a call of the same filter.

    Pages go by value, not by number, so that calls which arrive meanwhile shift nothing.

    :raises QueryError: for an unknown order, or a call to go on from that the filter does not let through
    """
    if order not in ORDERS:
        raise QueryError(f"calls cannot be sorted by {order[:80]!r}", choices=tuple(ORDERS))
    if after is not None and before is not None:
        raise QueryError("a page of calls goes on after one call or before one, not both")
    expression, _ = ORDERS[order]
    place = None if (start := after or before) is None else _place(session, flt, expression, start)
    return _page(session, flt, order, place, before is not None, limit)


def _page(session: Session, flt: Filter, order: str, place: tuple[Any, ...] | None, backwards: bool, limit: int) -> CallPage:
    """The calls beyond a place: what the call there is sorted by."""
    expression, downwards = ORDERS[order]
    tag, by_time = flt.a_tag(rare_tags(session)), expression is Call.occurred_at
    # The tag's own copy of the time has its calls in order: none is looked at that is not shown.
    sort: tuple[Any, ...] = (CallTag.occurred_at, CallTag.call_id) if tag and by_time else (Call.occurred_at, Call.id)
    sort = sort if by_time else (expression, *sort)
    if (within := with_calls(session, flt)) is None:
        return CallPage((), None, None)
    query = sa.select(*_COLUMNS)
    if place is not None:
        query = query.where(_beyond(place if not by_time else place[1:], sort, downwards != backwards))
    query = query.order_by(*(item.desc() if downwards != backwards else item.asc() for item in sort))
    lists = _shortlists(session, within, order, limit + 1, place and place[0], backwards=backwards)
    lists = chain(lists, [Shortlist(within, sa.true(), final=True)])
    found = _first(session, query, lists, limit + 1, joined=tag, few=by_time)
    assert found is not None
    more, found = len(found) > limit, found[:limit]
    if backwards:
        found = found[::-1]
    rows = _with_tags(session, found)
    if not rows:
        return CallPage((), None, None)
    beyond_end = more if not backwards else True
    beyond_start = place is not None and (not backwards or more)
    return CallPage(rows, rows[-1].id if beyond_end else None, rows[0].id if beyond_start else None)


def _shortlists(
    session: Session, flt: Filter, order: str, wanted: int, place: Any = None, *, backwards: bool = False
) -> Iterable[Shortlist]:
    """Among which of a filter's calls the first ones of an order are looked for, before all are sorted."""
    if order not in _BOUNDS:
        return ()
    value, _ = ORDERS[order]
    return near_the_top(session, flt, _BOUNDS[order], value, wanted, place, backwards=backwards)


def _first(
    session: Session, query: sa.Select[Any], lists: Iterable[Shortlist], wanted: int, **conditions: Any
) -> Sequence[Any] | None:
    """The first calls in the order of the query, from the first list that has so many; ``None`` where none has."""
    for one in lists:
        found = session.execute(query.where(*one.flt.conditions(**conditions), one.condition).limit(wanted)).all()
        if one.final or len(found) == wanted:
            return found
    return None


def dearest_calls(session: Session, sample: Sample, limit: int) -> tuple[tuple[CallRow, ...], bool]:
    """The dearest calls of a sample's filter, and whether of all. Where these are not found at once it is the sample's.

    Takes no longer where there are more calls.
    """
    cost, _ = ORDERS["dearest"]
    query = sa.select(*_COLUMNS).order_by(cost.desc(), Call.occurred_at.desc(), Call.id.desc())
    lists = () if sample.whole else _shortlists(session, sample.flt, "dearest", limit)
    if (found := _first(session, query, lists, limit)) is not None:
        return _with_tags(session, found), True
    return _with_tags(session, session.execute(query.where(Call.id.in_(sample.ids[:limit]))).all()), sample.whole


def _place(session: Session, flt: Filter, expression: Any, start: UUID) -> tuple[Any, ...]:
    """What a call is sorted by: the value of the order, its time and its id."""
    # Looked up within the filter: a call of somebody else's is not there.
    query = sa.select(expression, Call.occurred_at, Call.id).where(*flt.conditions(), Call.id == start)
    found = session.execute(query).one_or_none()
    if found is None:
        raise QueryError("the call that this page starts from is not among these calls")
    return tuple(found)


def _beyond(place: Sequence[Any], sort: Sequence[Any], downwards: bool) -> sa.ColumnElement[bool]:
    (first, *others), value = sort, sa.literal(place[0], sort[0].type)
    further: sa.ColumnElement[bool] = first < value if downwards else first > value
    if not others:
        return further
    return sa.and_(first <= value if downwards else first >= value, sa.or_(further, _beyond(place[1:], others, downwards)))


#: So many calls of a whole list are read at once: in the order of time an index finds the next ones, and in any other all
#: that are left are sorted for every page.
_PAGE: Final = 1_000
_SORTED_PAGE: Final = 10_000


_SORTED_BY: Final[Mapping[str, Callable[[CallRow], Any]]] = {
    "newest": attrgetter("occurred_at"),
    "oldest": attrgetter("occurred_at"),
    "dearest": lambda row: Decimal(UNKNOWN) if row.total_cost is None else row.total_cost,
    "slowest": lambda row: UNKNOWN if row.latency_ms is None else row.latency_ms,
}


def all_calls(session: Session, flt: Filter, *, order: str = "newest", batch: int | None = None) -> Iterator[CallRow]:
    """Every call in *order*, read page by page, so that memory stays flat."""
    place: tuple[Any, ...] | None = None
    batch = batch or (_SORTED_PAGE if order in _BOUNDS else _PAGE)
    while True:
        page = _page(session, flt, order, place, False, batch)
        yield from page.rows
        if page.following is None:
            return
        # Not looked up: by now the call may be gone, or not be among these any more.
        last = page.rows[-1]
        place = (_SORTED_BY[order](last), last.occurred_at, last.id)


def _with_tags(session: Session, found: Sequence[Any]) -> tuple[CallRow, ...]:
    tags: dict[UUID, dict[str, str]] = {row.id: {} for row in found}
    query = sa.select(CallTag.call_id, CallTag.key, CallTag.value).where(CallTag.call_id.in_(list(tags)))
    for call_id, key, value in session.execute(query.order_by(CallTag.key)) if tags else ():
        tags[call_id][key] = value
    return tuple(CallRow(**row._mapping, tags=tags[row.id]) for row in found)


@dataclass(frozen=True, slots=True)
class BillLine:
    """One component of a bill: ``quantity`` times ``rate`` per ``rate_per`` units is ``cost``."""

    component: str
    unit: str
    quantity: Decimal
    rate: Decimal | None
    rate_per: Decimal | None
    cost: Decimal | None
    status: str


@dataclass(frozen=True, slots=True)
class AppliedPrice:
    """The price that was applied, and where it is from."""

    source: str
    source_version: str
    matched_key: str
    match_kind: str
    currency: str
    pricing_mode: str | None
    tier: str | None
    multiplier: Decimal
    discount: Decimal
    effective_from: datetime | None


@dataclass(frozen=True, slots=True)
class CallDetail:
    """One call: its row, the lines of its bill, and its price, ``None`` where there is none."""

    call: CallRow
    lines: tuple[BillLine, ...]
    price: AppliedPrice | None


def recorded(session: Session, flt: Filter, call_ids: Collection[UUID]) -> frozenset[UUID]:
    """Which of the calls are in the ledger and let through by the filter, asked at once."""
    if not call_ids:
        return frozenset()
    return frozenset(session.scalars(sa.select(Call.id).where(*flt.conditions(), Call.id.in_(call_ids))))


def one_call(session: Session, flt: Filter, call_id: UUID) -> CallDetail | None:
    """The call with its lines, tags and price; ``None`` also when the filter does not let it through."""
    found = session.execute(sa.select(*_COLUMNS).where(*flt.conditions(), Call.id == call_id)).all()
    if not found:
        return None
    (call,) = _with_tags(session, found)
    items = session.scalars(sa.select(LineItem).where(LineItem.call_id == call_id).order_by(LineItem.position))
    lines = tuple(
        BillLine(item.component, item.unit, item.quantity, item.rate, item.rate_per, item.cost, item.cost_status)
        for item in items
    )
    snapshot = session.get(PriceSnapshot, call.price_id) if call.price_id else None
    price = AppliedPrice(**{item.name: getattr(snapshot, item.name) for item in fields(AppliedPrice)}) if snapshot else None
    return CallDetail(call, lines, price)
