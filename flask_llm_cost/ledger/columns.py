"""The ledger's column types: exact money, UTC times, and strings that tell ``acme`` from ``Acme``."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

MONEY_PLACES: Final = 12
_PICO: Final = Decimal(10) ** MONEY_PLACES

#: What is in the DDL. On SQLite, whose NUMERIC is a float, money is an integer of 1e-12.
MONEY_DDL: Final = sa.Numeric(28, MONEY_PLACES).with_variant(sa.BigInteger(), "sqlite")
TIME_DDL: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


class Money(TypeDecorator[Decimal]):
    """An exact amount, kept to 1e-12. Sums and comparisons are exact in all three databases.

    Multiplication, division and ``avg`` are not: on SQLite they would work on integers of 1e-12. They are refused.
    """

    impl = sa.Numeric
    cache_ok = True

    class comparator_factory(TypeDecorator.Comparator[Decimal]):  # noqa: N801 - SQLAlchemy's name
        def __mul__(self, other: Any) -> Any:
            raise TypeError("money cannot be multiplied in SQL on SQLite; sum it and multiply the Decimal")

        def __truediv__(self, other: Any) -> Any:
            raise TypeError("money cannot be divided in SQL on SQLite; sum it and divide the Decimal")

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.BigInteger())
        return dialect.type_descriptor(sa.Numeric(28, MONEY_PLACES))

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return int((value * _PICO).to_integral_value())

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        if value is None:
            return None
        return Decimal(value).scaleb(-MONEY_PLACES) if dialect.name == "sqlite" else Decimal(value)


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
