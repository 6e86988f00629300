"""How calls ended and were counted, and of which operation they are, by the rollups: there is no index of that."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.answers import Key
from flask_llm_cost.ledger.filter import KNOWN, Filter
from flask_llm_cost.ledger.models import TagRollup
from flask_llm_cost.ledger.pieces import days_of, plain
from flask_llm_cost.ledger.rollup_state import RollupDays, RollupState
from flask_llm_cost.ledger.rollup_sums import ENDING, ENDING_COLUMNS, ESCAPED, OVER_MODELS, UNCOUNTED_SOURCES

#: What filters and groups by how calls ended: what these rollups know besides what every one does.
ENDINGS: Final = tuple(name for name in ENDING_COLUMNS if name != "flags")


def asks(flt: Filter) -> bool:
    """Whether a filter is about how calls ended, or of which operation they are."""
    return any(getattr(flt, name) is not None for name in ENDINGS)


@functools.lru_cache(maxsize=1024)
def ended(value: str) -> Mapping[str, Key]:
    """What the value of a rollup of :data:`ENDING` says, by column; ``computed``: whether a cost was computed here, too."""
    stream, outcome, source, status, flags, computed, operation = value.split("|", 6)
    found: dict[str, Key] = {
        "stream": stream == "1", "outcome": outcome, "usage_source": source, "cost_status": status,
        "flags": flags.replace(ESCAPED, "|") or None,
        "computed": computed == "1", "operation": operation,
    }  # fmt: skip
    return MappingProxyType(found)


def fits(how: Mapping[str, Key], flt: Filter) -> bool:
    """Whether a filter lets calls through of which :func:`ended` says that."""
    return all(
        how[name] not in UNCOUNTED_SOURCES if name == "usage_source" and want == KNOWN else want == how[name]
        for name in ENDINGS
        if (want := getattr(flt, name)) is not None
    )


def under(flt: Filter, state: RollupState) -> tuple[str, str] | None:
    """The tag, key and value, under which it is kept how the calls of a filter ended; two times nothing is under none.

    ``None`` where that is not kept.
    """
    given = [*flt.scope.items(), *flt.tags.items()]
    if not state.has_all_kinds(flt.since) or len({*given}) > 1:
        return None
    key, value = given[0] if given else ("", "")
    return None if value is None or (key and key not in state.kept) else (key, value)


def days(
    session: Session, flt: Filter, tag: tuple[str, str], within: RollupDays, by: Sequence[Any], measures: Sequence[str]
) -> Iterator[tuple[Mapping[str, Key], list[Any]]]:
    """How calls of whole days ended, as far as a filter lets them through: :func:`ended`, then columns and sums.

    :param tag: what :func:`under` says
    """
    sums = [sa.func.sum(getattr(TagRollup, name)) for name in measures]
    query = sa.select(TagRollup.second_value, *by, *sums).where(*conditions(flt, tag), *days_of(flt, within))
    for value, *row in session.execute(query.group_by(TagRollup.second_value, *by)):
        if fits(how := ended(value), flt):
            yield how, row


def conditions(flt: Filter, tag: tuple[str, str], *, by_model: bool = True) -> list[sa.ColumnElement[bool]]:
    """What these rollups have to hold, their days and how calls ended aside.

    :param by_model: whether it is asked of which models they are, too
    """
    key, value = tag
    over_models = key and not by_model and flt.provider is None and flt.model is None
    kind = ENDING + OVER_MODELS if over_models else ENDING
    return [TagRollup.key == key + kind, TagRollup.value == value, *plain(flt, TagRollup)]
