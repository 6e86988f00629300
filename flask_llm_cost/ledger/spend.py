"""``spend``: what was spent, asked from the app's own code.

::

    from flask_llm_cost.ledger import spend

    spend.this_month().cost
    for row in spend.by("tag:tenant_id", since=date(2026, 11, 1), until=date(2026, 12, 1)):
        print(row["tag:tenant_id"], row.cost)

Runs in an app context, on ``LLM_COST_READ_BIND_KEY`` where there is one, in a session of its own. Every question takes the
same filters, by keyword:

- ``since`` and ``until``: a half-open range of aware datetimes, or of dates, which are days of ``LLM_COST_TIMEZONE``
- ``provider``, ``model``, ``operation``, ``outcome``, ``cost_status``, ``usage_source``, ``stream``;
  ``usage_source="known"`` is every source but ``unknown`` and ``pending``
- ``tags={"feature": "chat"}``, whose values are taken as a call's are; ``None`` asks for the calls without that tag
- ``currency``, ``"USD"`` where none is given; amounts of different currencies are never added up

Answers are :class:`~flask_llm_cost.ledger.queries.Spend` rows, whose ``cost`` is ``None`` when nothing could be priced. A
filter or dimension that is not known raises :class:`~flask_llm_cost.errors.QueryError`, missing tables
:class:`~flask_llm_cost.errors.SchemaMissingError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import TIMES, VALUES, Filter, dimensions
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.queries import Spend
from flask_llm_cost.records import TAG_KEY, TAG_KEY_RULE

if TYPE_CHECKING:
    from flask_llm_cost.extension import AppState
    from flask_llm_cost.tags import TagRules

_FILTERS = ("provider", "model", "operation", "outcome", "cost_status", "usage_source", "stream", "tags", "currency")


def total(**filters: Any) -> Spend:
    """All of it, as one row."""
    state = _state()
    with state.ledger.session() as session:
        return queries.totals(session, _filter(filters, state))


def today(**filters: Any) -> Spend:
    """Today so far, in the reporting zone."""
    _refuse_a_range("today", filters)
    today = datetime.now(_state().config.timezone).date()
    return total(since=today, until=today + timedelta(days=1), **filters)


def this_month(**filters: Any) -> Spend:
    """This calendar month so far, in the reporting zone."""
    _refuse_a_range("this_month", filters)
    first = datetime.now(_state().config.timezone).date().replace(day=1)
    return total(since=first, until=_next_month(first), **filters)


def by(*names: str, **filters: Any) -> list[Spend]:
    """Grouped by one dimension or several: ``model``, ``provider``, ``day``, ``hour``, ``month``, ``tag:feature``, …

    Rows without calls are left out. The dearest is first, or the earliest where the first dimension is a time. Calls
    without a tag are a row of their own whose key is ``None``.
    """
    if not names:
        raise QueryError("spend.by() needs at least one dimension", choices=dimensions())
    state = _state()
    with state.ledger.session() as session:
        return queries.pivot(session, _filter(filters, state, names), names, zone=state.config.timezone)


def over(unit: str = "day", **filters: Any) -> list[Spend]:
    """Over time, by ``hour``, ``day`` or ``month`` of the reporting zone, with a row for each, also without calls."""
    if unit not in TIMES:
        raise QueryError(f"spend.over() does not know {unit!r}", choices=TIMES)
    state = _state()
    with state.ledger.session() as session:
        return list(queries.over(session, _filter(filters, state), unit, state.config.timezone).values())


def top(dimension: str, n: int = 10, **filters: Any) -> list[Spend]:
    """The *n* dearest of a dimension."""
    state = _state()
    with state.ledger.session() as session:
        only = _filter(filters, state, (dimension,))
        return queries.pivot(session, only, (dimension,), zone=state.config.timezone, top=n)


def _state() -> AppState:
    # At run time: the extension imports the ledger.
    from flask_llm_cost.extension import state_of

    return state_of()


def _next_month(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1)


def _refuse_a_range(question: str, filters: Mapping[str, Any]) -> None:
    for name in ("since", "until"):
        if name in filters:
            raise QueryError(f"spend.{question}() has a range already, so {name}= cannot be given; ask spend.total()")


def _filter(filters: Mapping[str, Any], state: AppState, names: tuple[str, ...] = ()) -> Filter:
    wanted = dict(filters)
    zone = state.config.timezone
    since, until = (_instant(name, wanted.pop(name, None), zone) for name in ("since", "until"))
    for name, value in wanted.items():
        if name not in _FILTERS:
            raise QueryError(f"spend cannot be filtered by {name!r}", choices=("since", "until", *_FILTERS))
        if name != "tags" and value is not None:
            _check_value(name, value)
    wanted["tags"] = _tags(wanted.get("tags"), state.tag_rules)
    if since is not None and until is not None and until < since:
        raise QueryError("until is before since")
    if "currency" in names:
        wanted.setdefault("currency", None)
    return Filter(scope={}, since=since, until=until, **wanted)


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, bool if name == "stream" else str):
        kind = "True or False" if name == "stream" else "a string"
        raise QueryError(f"{name}={_shown(value)} must be {kind}, or None for any", choices=VALUES.get(name, ()))
    if name in VALUES and value not in VALUES[name]:
        raise QueryError(f"{name}={_shown(value)} is none that calls have", choices=VALUES[name])


def _tags(wanted: object, rules: TagRules) -> dict[str, str | None]:
    """The tags as calls have them, which are texts: ``True`` is ``true`` there."""
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping):
        raise QueryError(f"tags={_shown(wanted)} must be a dict of a tag's key to its value")
    for key in wanted:
        if not isinstance(key, str) or not TAG_KEY.fullmatch(key):
            raise QueryError(f"tags={{{_shown(key)}: ...}}: no call has such a tag; a key is {TAG_KEY_RULE}")
    # What is empty is kept on no call, and asks for none: not for those without the tag.
    return {key: None if value is None else rules.clean({key: value}).get(key, "") for key, value in wanted.items()}


def _shown(value: object) -> str:
    return repr(value)[:80]


def _instant(name: str, value: date | datetime | None, zone: ZoneInfo) -> datetime | None:
    if value is None or isinstance(value, datetime):
        # A naive one is refused by the filter.
        return value.astimezone(UTC) if value is not None and value.utcoffset() is not None else value
    if not isinstance(value, date):
        raise QueryError(f"{name}={str(value)[:64]!r} is no time; give a date, or a datetime with its time zone")
    return start_of_day(value, zone)
