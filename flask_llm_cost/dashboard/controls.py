"""The controls of the filter: native selects and inputs of one GET form, and a chip for every filter that is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.breakdown import Names, dimension_name
from flask_llm_cost.dashboard.filters import CHOICES, Selection
from flask_llm_cost.dashboard.formatting import UNTAGGED
from flask_llm_cost.dashboard.links import Links
from flask_llm_cost.dashboard.periods import RANGES
from flask_llm_cost.ledger import queries

_MOST_OPTIONS: Final = 100
_WORDS: Final[Mapping[str, str]] = {
    "cost_status": "cost",
    "usage_source": "usage from",
    "stream": "streamed",
    "first_token_ms": "first token",
}
SORTS: Final[Mapping[str, str]] = {
    "newest": "newest first",
    "oldest": "oldest first",
    "dearest": "dearest first",
    "slowest": "slowest first",
}


@dataclass(frozen=True, slots=True)
class Option:
    value: str
    label: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class Select:
    name: str
    label: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text input with suggestions."""

    name: str
    label: str
    value: str
    suggestions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Controls:
    """A page's form. ``hidden`` carries the filters that have no control on it."""

    range: Select
    selects: tuple[Select, ...]
    inputs: tuple[TextInput, ...]
    hidden: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter that is set, and the address without it."""

    label: str
    value: str
    href: str


def overview_controls(selection: Selection, report_tags: tuple[str, ...]) -> Controls:
    """Which days, and by what."""
    names = [f"tag:{key}" for key in report_tags if key not in selection.base.scope] + ["model", "provider", "operation"]
    options = dict.fromkeys([*names, selection.by])
    by = Select("by", "by", tuple(Option(name, dimension_name(name), name == selection.by) for name in options))
    return Controls(_range(selection), (by,), (), _hidden(selection, ("range", "from", "to", "by")))


def calls_controls(session: Session, selection: Selection, report_tags: tuple[str, ...]) -> Controls:
    """Every filter. What comes from the data is what there is in the range, within the scope."""
    around = selection.base.narrowed(
        since=selection.filter.since, until=selection.filter.until, currency=selection.filter.currency
    )
    selects = []
    for name, fixed in CHOICES.items():
        chosen = selection.params.get(name, "")
        found = fixed or [str(row.key) for row in queries.pivot(session, around, (name,), top=_MOST_OPTIONS) if row.key]
        values = fixed or tuple(dict.fromkeys([*sorted(found), *([str(chosen)] if chosen else [])]))
        options = [Option("", "any", not chosen), *(Option(value, _plain(value), value == chosen) for value in values)]
        selects.append(Select(name, word(name), tuple(options)))
    inputs = []
    for key in report_tags:
        if key in selection.base.scope:
            continue
        known = queries.pivot(session, around, (f"tag:{key}",), top=_MOST_OPTIONS)
        value = selection.filter.tags.get(key) or ""
        suggestions = tuple(str(row.key) for row in known if row.key is not None)
        inputs.append(TextInput(f"tag.{key}", dimension_name(f"tag:{key}"), value, suggestions))
    sort = Select("sort", "sorted", tuple(Option(name, text, name == selection.order) for name, text in SORTS.items()))
    shown = ("range", "from", "to", "sort", *CHOICES, *(item.name for item in inputs))
    return Controls(_range(selection), (*selects, sort), tuple(inputs), _hidden(selection, shown))


def chips(selection: Selection, links: Links, page: str, names: Names) -> tuple[Chip, ...]:
    """The filters that are set."""
    found = [
        Chip(word(name), _plain(str(selection.params[name])), links(page, selection.changed(**{name: None})))
        for name in CHOICES
        if name in selection.params
    ]
    for key, value in selection.filter.tags.items():
        label = UNTAGGED if value is None else names(key, [value]).get(value, value)
        found.append(Chip(dimension_name(f"tag:{key}"), label, links(page, selection.without_tag(key))))
    if selection.filter.currency != "USD":
        found.append(Chip("currency", str(selection.filter.currency), links(page, selection.changed(currency=None))))
    return tuple(found)


def word(name: str) -> str:
    """A parameter's name as one says it."""
    return _WORDS.get(name, name)


def _plain(value: str) -> str:
    return value.replace("_", " ") if value in ("stream_final", "stream_partial") else value


def _range(selection: Selection) -> Select:
    return Select(
        "range", "Showing", tuple(Option(name, text, name == selection.period.name) for name, text in RANGES.items())
    )


def _hidden(selection: Selection, shown: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    carried: list[tuple[str, str]] = []
    for name, value in selection.changed().items():
        if name not in shown:
            carried += [(name, item) for item in (value if isinstance(value, list) else [value])]
    return tuple(carried)
