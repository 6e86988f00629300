"""How calls ended and were counted, and of which operation they are, by the rollups: there is no index of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.answers import Grouping, Key, Sums, add
from flask_llm_cost.ledger.detail import amounts_of
from flask_llm_cost.ledger.filter import KNOWN, TIMES, Filter
from flask_llm_cost.ledger.models import TagRollup
from flask_llm_cost.ledger.pieces import day_key, days_of, plain
from flask_llm_cost.ledger.rollup_sums import ENDING, ENDING_COLUMNS, UNCOUNTED_SOURCES

#: What filters and groups by how calls ended, in the order of the rollups' value.
_ENDED: Final = tuple(name for name in ENDING_COLUMNS if name != "flags")
#: All that these rollups know besides what every one does.
ENDINGS: Final = (*_ENDED, "operation")


def asks(flt: Filter) -> bool:
    """Whether a filter is about how calls ended, or of which operation they are."""
    return any(getattr(flt, name) is not None for name in ENDINGS)


def fits(value: str, flt: Filter) -> bool:
    """Whether a filter lets calls through that ended so. *value* is that of a rollup of :data:`ENDING`."""
    return all(
        has not in UNCOUNTED_SOURCES if name == "usage_source" and want == KNOWN else want == has
        for name, has in zip(_ENDED, _parts(value), strict=False)
        if (want := getattr(flt, name)) is not None
    )


def _parts(value: str) -> list[Key]:
    stream, *rest = value.split("|")
    return [stream == "1", *rest]


def days(
    session: Session, flt: Filter, zone: ZoneInfo, columns: Sequence[Any], measures: Iterable[str]
) -> Iterator[tuple[str, list[Any]]]:
    """How calls of whole days ended, as far as a filter lets them through: the value, then columns and sums by these."""
    sums = [sa.func.sum(getattr(TagRollup, name)) for name in measures]
    query = sa.select(TagRollup.value, *columns, *sums).where(*conditions(flt), *days_of(flt, zone))
    for value, *row in session.execute(query.group_by(TagRollup.value, *columns)):
        if fits(value, flt):
            yield value, row


def sums_of_days(session: Session, flt: Filter, by: Grouping, zone: ZoneInfo) -> Sums:
    """Sums of whole days by columns, days or months. There are few endings, so all of them are read and sorted here."""
    stored = [name for name in by.dimensions if name not in _ENDED]
    columns = [_column(name) for name in stored]
    found: Sums = {}
    for value, row in days(session, flt, zone, columns, by.measures):
        known: dict[str, Any] = dict(zip(_ENDED, _parts(value), strict=False))
        known |= {name: day_key(name, cell) for name, cell in zip(stored, row, strict=False)}
        if all(known[name] in wanted for name, wanted in by.only.items() if name in known):
            add(found, {tuple(known[name] for name in by.dimensions): amounts_of(by.measures, row[len(stored) :])})
    return found


def conditions(flt: Filter) -> list[sa.ColumnElement[bool]]:
    """What these rollups have to hold, their days and how calls ended aside."""
    operation = [] if flt.operation is None else [_column("operation") == flt.operation]
    return [TagRollup.key == ENDING, *operation, *plain(flt, TagRollup)]


def _column(name: str) -> Any:
    if name in TIMES:
        return TagRollup.day
    return TagRollup.second_value if name == "operation" else getattr(TagRollup, name)
