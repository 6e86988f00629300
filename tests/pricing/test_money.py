"""A million priced calls add up to the last digit, on every database."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from flask_llm_cost.ledger.columns import Money
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.pricing.rates import EXACT
from flask_llm_cost.records import Usage

COUNT = 1_000_000
CHUNK = 25_000
KINDS = (
    ("openai", "gpt-6-luna", "flex"),
    ("openai", "gpt-5.6-sol", "batch+residency:eu"),
    ("anthropic", "claude-sonnet-4-6", None),
    ("deepseek", "deepseek-v4-pro", None),
    ("gemini", "gemini-2.5-pro", None),
)
PLACE = Decimal("1e-12")


@pytest.mark.parametrize(
    ("amount", "stored"),
    [
        ("0.0000000000005", "0"),
        ("0.0000000000015", "0.000000000002"),
        ("0.0000000000025", "0.000000000002"),
        ("0.00000000000250000000000000000001", "0.000000000003"),
        ("12345678.0000000000035", "12345678.000000000004"),
        ("0.000308333333333333", "0.000308333333"),
    ],
)
@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect(), mysql.dialect()], ids=lambda it: it.name)
def test_an_amount_is_stored_with_twelve_places_a_half_to_even(dialect: sa.Dialect, amount: str, stored: str) -> None:
    """Rounded before any database sees it, so that it is the same amount on all of them."""
    bound = Money().process_bind_param(Decimal(amount), dialect)
    # SQLite has no exact decimals: there it is a whole number of the last place.
    assert (Decimal(bound) * PLACE if dialect.name == "sqlite" else bound) == Decimal(stored)


@pytest.mark.slow
def test_a_million_calls_add_up_to_the_last_digit(
    sqlite_server: Any, postgresql_server: Any, mariadb_server: Any, book: PriceBook
) -> None:
    """Priced one by one, stored with twelve places, summed by the database: the exact decimal sum, on all three."""
    at = datetime(2026, 11, 18, 12, tzinfo=UTC)
    rng = random.Random(7)
    table = sa.Table("money", sa.MetaData(), sa.Column("cost", Money()))
    servers = (sqlite_server, postgresql_server, mariadb_server)
    urls = [server.create() for server in servers]
    engines = [sa.create_engine(url) for url in urls]
    connections = [engine.connect() for engine in engines]
    exact = Decimal(0)
    try:
        for connection in connections:
            table.create(connection)
        for _ in range(COUNT // CHUNK):
            costs = []
            for _ in range(CHUNK):
                provider, model, mode = KINDS[rng.randrange(len(KINDS))]
                usage = Usage(
                    {
                        "input": rng.randrange(1, 9000),
                        "cache_read": rng.randrange(400_000),
                        "output": rng.randrange(1, 2000),
                    },
                    source="response",
                )
                total = book.price(provider, model, usage, mode, at).total
                assert total is not None
                costs.append(total)
                exact = EXACT.add(exact, total.quantize(PLACE, context=EXACT))
            for connection in connections:
                bind = cast(Any, table.c.cost.type.dialect_impl(connection.dialect).bind_processor(connection.dialect))
                mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql(f"INSERT INTO money VALUES ({mark})", [(bind(cost),) for cost in costs])
                else:
                    values = ",".join(f"({bind(cost) if bind else cost})" for cost in costs)
                    connection.exec_driver_sql(f"INSERT INTO money VALUES {values}")
        for connection in connections:
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == COUNT
            assert connection.scalar(sa.select(sa.func.sum(table.c.cost))) == exact
    finally:
        for connection, engine in zip(connections, engines, strict=True):
            connection.close()
            engine.dispose()
        for server, url in zip(servers, urls, strict=True):
            server.drop(url)
    assert exact > 0
