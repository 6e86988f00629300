"""How values reach a driver in bulk: what SQLAlchemy's types say of one value, without their calls within calls."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from flask_llm_cost.ledger.columns import ExactDecimal, UtcDateTime

#: From a value that is not ``None``; ``None`` for values that go as they are.
Converter: TypeAlias = Callable[[Any], Any] | None

_compact: Final = json.JSONEncoder(separators=(",", ":")).encode


@functools.lru_cache(maxsize=4096)
def _instant(value: datetime) -> str:
    # A call's tags have the time of the call.
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def for_rows(column_type: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Converter:
    """What a driver's ``executemany`` takes for a value of *column_type*."""
    if isinstance(column_type, ExactDecimal):
        return functools.partial(column_type.process_bind_param, dialect=dialect)
    if dialect.name == "sqlite":
        if isinstance(column_type, sa.Uuid):
            return attrgetter("hex")
        if isinstance(column_type, UtcDateTime):
            return _instant
    if isinstance(column_type, sa.JSON):
        return _compact
    found: Converter = column_type.dialect_impl(dialect).bind_processor(dialect)
    return found


def for_arrays(column_type: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Callable[[Any], str]:
    """One element of a PostgreSQL array in text. Nothing that could end an element gets through."""
    if isinstance(column_type, ExactDecimal):
        rounded = functools.partial(column_type.process_bind_param, dialect=dialect)
        # Rates, round quantities and small costs come again and again.
        return functools.lru_cache(maxsize=4096)(lambda value: str(Decimal(rounded(value))))
    if isinstance(column_type, UtcDateTime):
        return lambda value: f'"{_instant(value)}"'
    if isinstance(column_type, sa.Date):
        return date.isoformat
    if isinstance(column_type, sa.Uuid):
        return attrgetter("hex")
    if isinstance(column_type, sa.JSON):
        return lambda value: _quoted(_compact(value))
    if isinstance(column_type, sa.Boolean | sa.Integer):
        return int.__repr__  # of a truth value too it is a number, and of what is no whole number an error
    return _word


def array(elements: Iterable[str | None]) -> str:
    """An array of elements as :func:`for_arrays` gives them."""
    return "{" + ",".join(["NULL" if element is None else element for element in elements]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


#: For what is the same in most rows.
_word: Final = functools.lru_cache(maxsize=4096)(_quoted)
