"""The query string: read into a :class:`Selection`, and written back into links. All state is in the URL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from werkzeug.datastructures import MultiDict

from flask_llm_cost.dashboard.periods import Period, period
from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger.call_queries import ORDERS
from flask_llm_cost.ledger.filter import KNOWN, VALUES, Filter, check_dimension, check_tag_key

#: Room for two tags as long as they get, in a script of which a letter takes nine characters in an address, and all else.
LONGEST_QUERY: Final = 8192
_MOST_PARAMETERS: Final = 60
_MOST_TAGS: Final = 8
_LONGEST_VALUE: Final = 256
#: So many calls are on one page, that it stays light with every filter in every link, and so many in its JSON.
_MOST_SHOWN: Final = 75
_MOST_SENT: Final = 500
_DEFAULT_RANGE: Final = "this_month"
_DAY: Final = re.compile(r"20\d\d-\d\d-\d\d", re.ASCII)

FORMATS: Final = ("html", "json", "csv")
#: The tables that a page's CSV can be of, where it shows several: the first unless another is asked for.
TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "overview": ("by", "days"),
    "tag": ("by", "days"),
    "budgets": ("budgets", "holds"),
    "quality": ("issues", "streams", "changes"),
}
#: What a call can be filtered by besides tags, with the values there are, or none where they come from the data.
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "provider": (),
    "model": (),
    "operation": (),
    **VALUES,
    "stream": ("yes", "no"),
}
#: Calls that were counted and have no price: others without one failed, or told nothing that could have one.
UNPRICED: Final[Mapping[str, str]] = {"cost_status": "unpriced", "usage_source": KNOWN}
_FILTERS: Final = ("range", "from", "to", "untagged", "currency", *CHOICES)
_FILES: Final = ("format", "decimal")
_PAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "overview": (*_FILTERS, "by", "table"),
    "explore": (*_FILTERS, "rows", "cols", "show", "invoice"),
    "models": _FILTERS,
    "calls": (*_FILTERS, "sort", "after", "before", "limit"),
    "call": _FILTERS,
    "tags": _FILTERS,
    "tag": (*_FILTERS, "value", "by", "table"),
    "budgets": ("table",),
    "quality": (*_FILTERS, "table"),
    "pricing": ("search",),
}
#: Pages that filter nothing, and keep what is filtered for the way on. Their files, which say nothing of it, refuse it.
_PASSED_THROUGH: Final = ("budgets", "pricing")
#: What spend can be broken down by on a page, besides tags.
BREAKDOWNS: Final = ("model", "provider", "operation")
#: The columns of a pivot, besides those: none, and the days in units that fit the range.
COLUMNS: Final = ("none", "time")
#: What a pivot's cells can show.
MEASURES: Final = ("cost", "calls", "tokens", "each")
_POSITION: Final = ("after", "before")
_AMOUNT: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a page shows, as asked for.

    :param base: the scope, and nothing else
    :param filter: the scope, the range and every filter; made from *base* only
    :param by: what spend is broken down by; empty where nobody has said
    :param params: the query string that asks for exactly this, defaults left out
    :param table: which of :data:`TABLES` a CSV is of; empty for the first
    :param rows: the rows of a pivot, as *by*
    :param cols: the columns of a pivot, one of :data:`COLUMNS` or a dimension
    :param show: what a pivot's cells show, one of :data:`MEASURES`
    :param invoice: a provider, and what it says one owes
    :param value: the value of a tag whose page is asked for; empty where none is
    """

    base: Filter
    filter: Filter
    period: Period
    params: Mapping[str, str | list[str]]
    by: str = ""
    format: str = "html"
    table: str = ""
    order: str = "newest"
    after: UUID | None = None
    before: UUID | None = None
    limit: int = 50
    rows: str = ""
    cols: str = "none"
    show: str = "cost"
    invoice: tuple[str, Decimal] | None = None
    value: str = ""
    search: str = ""
    decimal: str = "point"

    @property
    def currency(self) -> str:
        """The one currency of all amounts."""
        return self.filter.currency or "USD"

    @property
    def carried(self) -> dict[str, str | list[str]]:
        """The range and the filters alone, as they go along to another page."""
        return {name: value for name, value in self.changed().items() if name in _FILTERS or name.startswith("tag.")}

    @property
    def narrow(self) -> bool:
        """Whether anything but the range is filtered."""
        return any(getattr(self.filter, name) is not None for name in CHOICES) or bool(self.filter.tags)

    def without_range(self) -> Filter:
        """The same calls at any time."""
        return self.filter.narrowed(since=None, until=None)

    def compared(self) -> Filter:
        """The same calls in the range that this one is compared with."""
        return self.filter.narrowed(since=self.period.before_since, until=self.period.before_until)

    def changed(self, **changes: str | None) -> dict[str, str | list[str]]:
        """The query string with *changes*; ``None`` takes a parameter away. A page's position does not outlive a change."""
        params = {name: value for name, value in self.params.items() if name not in _POSITION}
        if "range" in changes and changes["range"] != "custom":
            params.pop("from", None)
            params.pop("to", None)
        for name, value in changes.items():
            params.pop(name, None)
            # Days of one's own say so by themselves.
            if value is not None and not (name == "range" and value in (_DEFAULT_RANGE, "custom")):
                params[name] = value
        return params

    @property
    def earlier(self) -> Selection:
        """The same for the days that this is compared with, to link to what is no more: its parameters only."""
        last = (self.period.before_until - timedelta(microseconds=1)).astimezone(self.period.zone).date()
        days = {"from": self.period.before.isoformat(), "to": last.isoformat()}
        return replace(self, params=self.changed(range="custom", **days))

    @staticmethod
    def reaches(dimension: str, value: object) -> bool:
        """Whether a query string can ask for a value alone: there is none for calls without a model."""
        return value is not None or dimension.startswith("tag:")

    def with_value(self, dimension: str, value: str | None) -> dict[str, str | list[str]]:
        """The query string narrowed to one value of a dimension, ``None`` to the untagged. See :meth:`reaches`."""
        if dimension == "stream":
            return self.changed(stream="yes" if value in ("True", "yes") else "no")
        if not dimension.startswith("tag:"):
            return self.changed(**{dimension: value})
        key = dimension[4:]
        params = self.changed(**{f"tag.{key}": value})
        untagged = [name for name in params.pop("untagged", []) if name != key] + ([key] if value is None else [])
        return {**params, "untagged": untagged} if untagged else params

    @property
    def pinned(self) -> frozenset[str]:
        """The dimensions that are held to one value, so that a breakdown by them says nothing."""
        return frozenset(
            [*(f"tag:{key}" for key in self.filter.tags), *(name for name in BREAKDOWNS if name in self.params)]
        )

    def valued(self, key: str) -> Selection:
        """``?value=`` of a tag's page, as the filter that it stands for."""
        if not self.value:
            return self
        if key in self.filter.tags:
            raise ParameterError("value", f"this page is about one value of {key!r} already: tag.{key} says another")
        params = {name: value for name, value in self.params.items() if name != "value"}
        narrowed = self.filter.narrowed(tags={key: self.value})
        return replace(self, filter=narrowed, params={**params, f"tag.{key}": self.value})

    def without_tag(self, key: str) -> dict[str, str | list[str]]:
        """The query string without the filter on one tag."""
        params = self.changed(**{f"tag.{key}": None})
        untagged = [name for name in params.pop("untagged", []) if name != key]
        return {**params, "untagged": untagged} if untagged else params


class ParameterError(QueryError):
    """A parameter that reads well, and that the page then finds to make no sense. Stays inside the dashboard."""

    def __init__(self, parameter: str, problem: str, *, choices: Iterable[str] = ()) -> None:
        self.parameter = parameter
        super().__init__(problem, choices=choices)


def parse(args: MultiDict[str, str], page: str, base: Filter, *, zone: ZoneInfo, now: datetime) -> Selection:
    """Read a page's query string. Empty values count as not given.

    :raises QueryError: with a sentence for people, for anything that is not understood
    """
    given = _given(args, page)
    given = _other_tag(given)
    untagged = [_text("untagged", value) for value in dict.fromkeys(args.getlist("untagged")) if value]
    tags: dict[str, str | None] = {}
    for name, value in given.items():
        if name.startswith("tag."):
            check_tag_key(name[4:])
            tags[name[4:]] = _text(name, value)
    for key in untagged:
        check_tag_key(key)
        if key in tags:
            raise QueryError(f"a call cannot both have the tag {key!r} and lack it")
        tags[key] = None
    if len(tags) > _MOST_TAGS:
        raise QueryError(f"at most {_MOST_TAGS} tags can be filtered by at a time")
    days = _days(given)
    span = period(given.get("range", "custom" if any(days) else _DEFAULT_RANGE), zone, now, *days)
    chosen: dict[str, Any] = {name: _choice(name, given[name]) for name in CHOICES if name in given}
    if "stream" in chosen:
        chosen["stream"] = chosen["stream"] == "yes"
    currency = _text("currency", given.get("currency", "USD"))
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise QueryError("currency is a code of three capital letters, such as USD")
    measure = _among("show", given.get("show", "cost"), MEASURES)
    params: dict[str, str | list[str]] = {
        name: value for name, value in given.items() if name not in ("untagged", "table", *_FILES)
    }
    if span.name != "custom":
        params.pop("from", None)
        params.pop("to", None)
    if span.name == _DEFAULT_RANGE:
        params.pop("range", None)
    if untagged:
        params["untagged"] = untagged
    selection = Selection(
        base=base,
        filter=base.narrowed(since=span.since, until=span.until, currency=currency, tags=tags, **chosen),
        period=span,
        by=_breakdown(given["by"]) if "by" in given else "",
        params=params,
        format=_among("format", given.get("format", "html"), FORMATS),
        table=_among("table", given["table"], TABLES[page]) if "table" in given else "",
        rows=_breakdown(given["rows"]) if "rows" in given else "",
        cols=cols if (cols := given.get("cols", "time")) in COLUMNS else _breakdown(cols),
        show=measure,
        invoice=_invoice(given.get("invoice")),
        value=_text("value", given.get("value", "")),
        search=_text("search", given.get("search", "")),
        decimal=_among("decimal", given.get("decimal", "point"), ("point", "comma")),
    )
    if page != "calls":
        return selection
    return replace(
        selection,
        order=_among("sort", given.get("sort", "newest"), tuple(ORDERS)),
        after=_uuid("after", given.get("after")),
        before=_uuid("before", given.get("before")),
        limit=_limit(given.get("limit"), _MOST_SHOWN if selection.format == "html" else _MOST_SENT),
    )


#: Parameters that say one thing together.
_TOGETHER: Final = (("range", "from", "to"), ("key", "is"))


def understood(
    args: MultiDict[str, str], page: str, base: Filter, *, zone: ZoneInfo, now: datetime, besides: str | None = None
) -> tuple[Selection, bool]:
    """What a query string still says without the parameters that make no sense, and whether any of them do not.

    :param besides: one that makes no sense though it reads well
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in args:
        groups.setdefault(next((names for names in _TOGETHER if name in names), (name,)), []).append(name)
    kept: MultiDict[str, str] = MultiDict()
    selection, whole = parse(kept, page, base, zone=zone, now=now), len(groups) <= _MOST_PARAMETERS
    for names in list(groups.values())[:_MOST_PARAMETERS]:
        if besides in names:
            whole = False
            continue
        tried = MultiDict([*kept.items(multi=True), *((name, value) for name in names for value in args.getlist(name))])
        try:
            selection, kept = parse(tried, page, base, zone=zone, now=now), tried
        except QueryError:
            whole = False
    return selection, whole


def _given(args: MultiDict[str, str], page: str) -> dict[str, str]:
    known = (*_FILES, *_PAGES[page])
    if page in _PASSED_THROUGH and args.get("format", "html") == "html":
        known += _FILTERS
    tagged = "range" in known
    if len(args) > _MOST_PARAMETERS:
        raise QueryError(f"at most {_MOST_PARAMETERS} parameters are understood")
    given = {}
    for name, values in args.lists():
        if name not in known and not (tagged and (name.startswith("tag.") or name in _OTHER_TAG)):
            # Not ignored: a filter with a typing error would show a figure that is not what was asked for.
            raise QueryError(
                f"there is no parameter {name[:40]!r} here", choices=(*known, *(("tag.<key>",) if tagged else ()))
            )
        values = [value for value in values if value]
        if len(values) > 1 and name != "untagged":
            raise QueryError(f"{name[:40]!r} is given {len(values)} times; one value is understood")
        if values:
            given[name] = values[0]
    return given


#: A form's two fields for a tag of any key: they become ``tag.<key>``, or ``untagged`` where the value is left empty.
_OTHER_TAG: Final = ("key", "is")


def _other_tag(given: dict[str, str]) -> dict[str, str]:
    key, value = (given.pop(name, None) for name in _OTHER_TAG)
    if key is None:
        if value is not None:
            raise QueryError("the value of a tag needs its key beside it: key=team&is=billing")
        return given
    check_tag_key(key)
    if value is None:
        raise QueryError("the key of a tag needs its value beside it: key=team&is=billing")
    return {**given, f"tag.{key}": value}


def _invoice(value: str | None) -> tuple[str, Decimal] | None:
    if value is None:
        return None
    provider, _, amount = value.rpartition(":")
    if not provider or not _AMOUNT.fullmatch(amount):
        raise QueryError("invoice is a provider and an amount, such as openai:1234.56")
    return _text("invoice", provider), Decimal(amount)


def _text(name: str, value: str) -> str:
    if len(value) > _LONGEST_VALUE:
        raise QueryError(f"{name[:40]!r} is longer than the {_LONGEST_VALUE} characters that are kept")
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise QueryError(f"{name[:40]!r} holds a character that no value can have")
    return value


def _choice(name: str, value: str) -> str:
    return _among(name, value, CHOICES[name]) if CHOICES[name] else _text(name, value)


def _among(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise QueryError(f"{name} cannot be {value[:40]!r}", choices=choices)
    return value


def _breakdown(name: str) -> str:
    if name not in BREAKDOWNS and not name.startswith("tag:"):
        raise QueryError(f"spend cannot be broken down by {name[:40]!r} here", choices=(*BREAKDOWNS, "tag:<key>"))
    return check_dimension(name)


def _days(given: Mapping[str, str]) -> tuple[date | None, date | None]:
    found: list[date | None] = []
    for name in ("from", "to"):
        value = given.get(name)
        try:
            if value is not None and not _DAY.fullmatch(value):
                raise ValueError
            found.append(date.fromisoformat(value) if value else None)
        except ValueError:
            raise QueryError(f"{name} is a day such as 2026-11-30, not {(value or '')[:40]!r}") from None
    return found[0], found[1]


def _uuid(name: str, value: str | None) -> UUID | None:
    if value is None:
        return None
    try:
        return UUID(value)
    except ValueError:
        raise QueryError(f"{name} is the id of a call, not {value[:40]!r}") from None


def _limit(value: str | None, most: int) -> int:
    if value is None:
        return 50
    if not (value.isascii() and value.isdecimal() and len(value) <= 3 and 1 <= int(value) <= most):
        more = f" (with format=json to {_MOST_SENT})" if most < _MOST_SENT else ""
        raise QueryError(f"limit is a number from 1 to {most}{more}, not {value[:40]!r}")
    return int(value)
