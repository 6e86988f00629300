"""The ledger's column types: exact money, exact quantities and UTC times on every database."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

from flask_llm_cost.errors import TooLargeSumError

MONEY_PLACES: Final = 12
QUANTITY_PLACES: Final = 6
_D = TypeVar("_D", Decimal, Decimal | None)

TIME_DDL: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

#: The app may have set a coarse decimal context for its own arithmetic; ours is exact whatever thread reads or writes.
EXACT: Final = Context(prec=64, rounding=ROUND_HALF_EVEN)
#: For whole pieces of work: what Python has by itself, in which no sum of amounts as the columns hold them is rounded.
USUAL: Final = Context(prec=28, rounding=ROUND_HALF_EVEN)


def to_money(amount: Decimal | None) -> Decimal | None:
    """An amount as :class:`Money` keeps it: what is added up elsewhere is to be what the call's own row says."""
    return _kept(amount, MONEY_PLACES)


def to_quantity(quantity: Decimal | int) -> Decimal | int:
    """A quantity as :class:`Quantity` keeps it."""
    return quantity if isinstance(quantity, int) else _kept(quantity, QUANTITY_PLACES)


def _kept(value: _D, places: int) -> _D:
    if value is None or value.as_tuple().exponent >= -places:  # type: ignore[operator]
        return value
    return value.quantize(Decimal(1).scaleb(-places), context=EXACT)


@functools.lru_cache(maxsize=4096)
def _last_places(value: Decimal, places: int) -> int:
    # Rates and round quantities come again and again.
    return int(EXACT.to_integral_value(EXACT.scaleb(value, places)))


class ExactDecimal(TypeDecorator[Decimal]):
    """A ``Decimal`` with a fixed number of places, exact in storage, sums and comparisons on all three databases.

    SQLite's NUMERIC is a float, so there it is an integer of the last place. Multiplication, division and ``avg`` would
    work on that integer: the operators are refused, compute with the Decimal instead.
    """

    impl = sa.Numeric
    cache_ok = True

    def __init__(self, places: int) -> None:
        super().__init__(28, places)
        self.places = places

    class comparator_factory(TypeDecorator.Comparator[Decimal]):  # noqa: N801 - SQLAlchemy's name
        def _refuse(self, other: Any) -> Any:
            raise TypeError("an exact decimal is an integer on SQLite: sum it in SQL, multiply and divide the Decimal")

        __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse

    @property
    def ddl(self) -> TypeEngine[Any]:
        """The stock type that stands for it in migrations."""
        return sa.Numeric(28, self.places).with_variant(sa.BigInteger(), "sqlite")

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.BigInteger())
        return dialect.type_descriptor(sa.Numeric(28, self.places))

    def process_bind_param(self, value: Decimal | int | None, dialect: sa.Dialect) -> Any:
        if value is None:
            return value
        if dialect.name != "sqlite":
            # Servers round a half up; it is to be the same amount on all of them.
            return _kept(value, self.places) if isinstance(value, Decimal) else value
        if type(value) is int:
            return value * 10**self.places
        return _last_places(Decimal(value), self.places)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        if value is None:
            return None
        return EXACT.scaleb(Decimal(value), -self.places) if dialect.name == "sqlite" else Decimal(value)


class Money(ExactDecimal):
    """An amount, kept to 1e-12 of its currency: one cached token on a cheap tier is 5e-9."""

    cache_ok = True

    def __init__(self) -> None:
        super().__init__(MONEY_PLACES)


class _Total(Money):
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        if type(value) is float:  # what SQLite makes of what is beyond its integers
            raise TooLargeSumError
        return super().process_result_value(value, dialect)


def total(amounts: Any) -> sa.ColumnElement[Decimal | None]:
    """The sum of amounts, for those who read it: never what SQLite rounds, as a sum that a writer looks at may be.

    :raises TooLargeSumError: when it is fetched
    """
    return sa.func.sum(amounts, type_=_Total())


class Quantity(ExactDecimal):
    """How much of a component was billed, kept to 1e-6: tokens are whole, seconds and minutes are not."""

    cache_ok = True

    def __init__(self) -> None:
        super().__init__(QUANTITY_PLACES)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept as UTC without a zone, to the microsecond in all three databases."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime())

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)
