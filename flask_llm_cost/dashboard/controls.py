"""The controls of the filter: native selects and inputs of one GET form, and a chip for every filter that is set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.breakdown import Breakdown, Names, dimension_name
from flask_llm_cost.dashboard.filters import BREAKDOWNS, CHOICES, Selection
from flask_llm_cost.dashboard.formatting import UNTAGGED
from flask_llm_cost.dashboard.periods import RANGES
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import KNOWN
from flask_llm_cost.ledger.tag_queries import latest_values
from flask_llm_cost.wording import several

Here: TypeAlias = Callable[[Mapping[str, Any]], str]

_MOST_OPTIONS: Final = 100
#: What the wire formats call their calls most often; any other can be typed.
_OPERATIONS: Final = (
    "chat.completions", "responses", "messages", "generate_content", "embeddings", "images.generations",
    "audio.transcriptions", "audio.speech", "converse", "invoke_model", "rerank", "moderations", "manual",
)  # fmt: skip
_WORDS: Final[Mapping[str, str]] = {
    "cost_status": "cost",
    "usage_source": "usage from",
    "stream": "streamed",
    "first_token_ms": "first token",
}
_USAGE_SOURCES: Final[Mapping[str, str]] = {
    KNOWN: "anything known",
    "stream_final": "stream final",
    "stream_partial": "stream partial",
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
    """A choice.

    :param label: what it is called, for those who do not see the sentence
    :param word: what stands before it in the sentence
    """

    name: str
    label: str
    options: tuple[Option, ...]
    word: str = ""


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text input with suggestions.

    :param key: of a tag, whose values may have names
    """

    name: str
    label: str
    value: str
    suggestions: tuple[str, ...]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Controls:
    """A page's form: a sentence, and under it the filters. ``hidden`` carries what has no control on it."""

    range: Select
    sentence: tuple[Select, ...]
    selects: tuple[Select, ...]
    inputs: tuple[TextInput, ...]
    hidden: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter that is set, and the address without it."""

    label: str
    value: str
    href: str


def overview_controls(selection: Selection, report_tags: tuple[str, ...], found: Iterable[Breakdown] = ()) -> Controls:
    """Which days, by what, for whom and which models; the last two from what the page found anyway."""
    options = dict.fromkeys([*dimensions(selection, report_tags), selection.by])
    by = Select(
        "by", "Break down by", tuple(Option(name, dimension_name(name), name == selection.by) for name in options), "by"
    )
    sentence = [by]
    panels = {item.dimension: item for item in found}
    who = next((f"tag:{key}" for key in report_tags[1:] if f"tag:{key}" in panels), "")
    for word, dimension in (("for", who), ("and", "model")):
        if dimension in panels and panels[dimension].tagged and not _untagged(selection, dimension):
            sentence.append(_narrowing(word, selection, panels[dimension]))
    shown = ("range", "from", "to", *(select.name for select in sentence))
    return Controls(_range(selection), tuple(sentence), (), (), _hidden(selection, shown))


def dimensions(selection: Selection, report_tags: Iterable[str]) -> list[str]:
    """What spend is usually broken down by: the report tags that the scope leaves open, and columns."""
    return [f"tag:{key}" for key in report_tags if key not in selection.base.scope] + list(BREAKDOWNS)


def _untagged(selection: Selection, dimension: str) -> bool:
    return dimension[4:] in selection.filter.tags and selection.filter.tags[dimension[4:]] is None


def _narrowing(word: str, selection: Selection, found: Breakdown) -> Select:
    name = "tag." + found.dimension[4:] if found.dimension.startswith("tag:") else found.dimension
    chosen = str(selection.params.get(name, ""))
    options = [Option("", f"all {several(dimension_name(found.dimension))}", not chosen)]
    options += [Option(value, label, value == chosen) for value, label in found.options if value is not None]
    return Select(name, dimension_name(found.dimension).capitalize(), tuple(options), word)


def page_controls(visit: Visit, session: Session, selection: Selection, sentence: Iterable[Select] = ()) -> Controls:
    """Every filter. What comes from the data is what there is in the range, within the scope.

    Made before a page asks for names: those of its suggestions come with them.
    """
    around = selection.base.narrowed(
        since=selection.filter.since, until=selection.filter.until, currency=selection.filter.currency
    )
    models = queries.pivot(session, around, ("provider", "model"), top=_MOST_OPTIONS)
    found = {name: sorted({str(row[name]) for row in models if row[name]}) for name in ("provider", "model")}
    selects, inputs = [], []
    for name, fixed in CHOICES.items():
        chosen = str(selection.params.get(name, ""))
        if name == "operation":
            # Of single calls, so asking what there is would read them all.
            inputs.append(TextInput(name, word(name), chosen, _OPERATIONS))
            continue
        values = fixed or tuple(dict.fromkeys([*found[name], *([chosen] if chosen else [])]))
        options = [Option("", "any", not chosen), *(Option(value, _plain(name, value), value == chosen) for value in values)]
        selects.append(Select(name, word(name), tuple(options)))
    keys = [key for key in visit.report_tags if key not in selection.base.scope]
    known = latest_values(session, around, keys, _MOST_OPTIONS)
    for key in keys:
        value = selection.filter.tags.get(key) or ""
        inputs.append(TextInput(f"tag.{key}", dimension_name(f"tag:{key}"), value, known[key], key))
    visit.expect(known)
    sentence = tuple(sentence)
    names = (*(select.name for select in (*selects, *sentence)), *(field.name for field in inputs))
    return Controls(
        _range(selection), sentence, tuple(selects), tuple(inputs), _hidden(selection, ("range", "from", "to", *names))
    )


def sort_select(selection: Selection) -> Select:
    """The orders of single calls."""
    orders = tuple(Option(name, text, name == selection.order) for name, text in SORTS.items())
    return Select("sort", "Sorted", orders, "with the")


def simple_controls(selection: Selection) -> Controls:
    """The range alone."""
    return Controls(_range(selection), (), (), (), _hidden(selection, ("range", "from", "to")))


def chips(selection: Selection, here: Here, names: Names, *, besides: str | None = None) -> tuple[Chip, ...]:
    """The filters that are set.

    :param here: the address of this page with another query string
    :param besides: a tag that is the page's subject
    """
    found = [
        Chip(word(name), _plain(name, str(selection.params[name])), here(selection.changed(**{name: None})))
        for name in CHOICES
        if name in selection.params
    ]
    for key, value in selection.filter.tags.items():
        if key == besides:
            continue
        label = UNTAGGED if value is None else names(key, [value]).get(value, value)
        found.append(Chip(dimension_name(f"tag:{key}"), label, here(selection.without_tag(key))))
    if selection.currency != "USD":
        found.append(Chip("currency", selection.currency, here(selection.changed(currency=None))))
    return tuple(found)


def word(name: str) -> str:
    """A parameter's name as one says it."""
    return _WORDS.get(name, name)


def _plain(name: str, value: str) -> str:
    return _USAGE_SOURCES.get(value, value) if name == "usage_source" else value


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
