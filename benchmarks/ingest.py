"""How fast drained batches get into the database, against the bare driver writing the same rows.

Both write calls with 3 line items and 3 tags each in transactions of 500, in turns, in one run. The calls are seconds apart,
of 8 models, 12 features, 500 tenants of which few make most calls, and 100,000 users, which are left out of the rollups as
they are nearly unique. The bare driver does ``executemany`` of calls, line items and tags and nothing else: no rollups, no
look whether a call is there already, no types, no prices.

    python benchmarks/ingest.py [database url] [--calls 10000]

Without a URL it measures a SQLite file in a temporary folder. The database's ledger tables are emptied.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.config import Config
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.lines import decode, encode
from flask_llm_cost.ledger.models import Base, Call, CallTag, LineItem, TagRollup, UsageRollup
from flask_llm_cost.ledger.rollups import Rollups
from flask_llm_cost.ledger.rows import call_rows
from flask_llm_cost.ledger.store import Ledger
from flask_llm_cost.ledger.writer import BATCH, Writer
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import CallRecord, Usage, new_call_id

MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "o3", "o4-mini", "gpt-5")
KEPT = ("feature", "tenant_id")
BOOK = PriceBook.load()


def make_calls(count: int) -> list[CallRecord]:
    since = datetime(2026, 10, 1, tzinfo=UTC)
    rng = random.Random(count)
    return [
        CallRecord(
            id=new_call_id(),
            occurred_at=since + timedelta(seconds=number),
            provider="openai",
            operation="chat.completions",
            host="api.openai.com",
            model=(model := MODELS[int(len(MODELS) * rng.random() ** 2)]),
            requested_model=model,
            http_status=200,
            latency_ms=800,
            provider_response_id=f"chatcmpl-{number:024}",
            usage=Usage(
                {"input": 1000 + number % 7, "cache_read": 200, "output": 50 + number % 11},
                "response",
                raw={"prompt_tokens": 1200, "completion_tokens": 50, "total_tokens": 1250},
            ),
            tags={
                "feature": f"feature-{int(12 * rng.random() ** 1.5)}",
                "tenant_id": f"tenant-{int(500 * rng.random() ** 3)}",
                "user_id": f"user-{int(100_000 * rng.random() ** 1.5)}",
            },
        )
        for number in range(count)
    ]


def price(record: CallRecord) -> CallRecord:
    return replace(record, cost=BOOK.price_record(record))


class BareDriver:
    """The same rows, bound beforehand, through the DB-API alone."""

    def __init__(self, engine: sa.Engine, records: Sequence[CallRecord]) -> None:
        self._engine = engine
        rows = [call_rows(record, record.occurred_at) for record in records]
        self._statements: list[str] = []
        self._batches: list[list[list[Any]]] = []
        tables = (
            (Call.__table__, [[row.call] for row in rows]),
            (LineItem.__table__, [row.items for row in rows]),
            (CallTag.__table__, [row.tags for row in rows]),
        )
        bound = []
        for table, groups in tables:
            compiled = sa.insert(table).compile(dialect=engine.dialect)
            self._statements.append(str(compiled))
            processors = compiled._bind_processors
            positional = compiled.positiontup
            table_rows = []
            for group in groups:
                done = []
                for row in group:
                    values = {key: processors[key](value) if key in processors else value for key, value in row.items()}
                    done.append(tuple(values[key] for key in positional) if positional else values)
                table_rows.append(done)
            bound.append(table_rows)
        for start in range(0, len(rows), BATCH):
            self._batches.append(
                [[row for group in table_rows[start : start + BATCH] for row in group] for table_rows in bound]
            )

    def __call__(self) -> None:
        connection = self._engine.raw_connection()
        try:
            for batch in self._batches:
                cursor = connection.cursor()
                for statement, rows in zip(self._statements, batch, strict=True):
                    cursor.executemany(statement, rows)
                connection.commit()
        finally:
            connection.close()


def measure(engine: sa.Engine, prepare: Callable[[], Callable[[], object]], count: int) -> float:
    """Calls a second."""
    with engine.begin() as connection:
        for table in (CallTag, LineItem, Call, UsageRollup, TagRollup):
            connection.execute(sa.delete(table))
    work = prepare()
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = sa.create_engine(options.url or f"sqlite:///{folder}/ledger.db")
        Base.metadata.create_all(engine)
        own = OwnEngine(lambda: engine)
        writer = Writer(own, [Rollups(ZoneInfo("UTC"), KEPT, KEPT)])
        count = options.calls
        records = [price(record) for record in make_calls(100)]
        assert all(record.cost and record.cost.status == "priced" and len(record.cost.lines) == 3 for record in records)
        writer.write(records)  # the price snapshots

        def drained() -> Callable[[], object]:
            ledger = Ledger(
                Config.from_mapping({"LLM_COST_ROLLUP_TAGS": list(KEPT), "LLM_COST_REPORT_TAGS": list(KEPT)}),
                app_name="benchmark",
                testing=True,
                instance_path=folder,
                engine=lambda: engine,
                read_engine=lambda: engine,
                price=price,
                committed=lambda records: None,
                write_failed=lambda name, waiting: print("failed:", name),
            )
            records = make_calls(count)

            def work() -> None:
                for record in records:
                    ledger.append(record)
                assert ledger.flush(600)
                ledger.close()

            return work

        def written() -> Callable[[], object]:
            lines = [encode(record).strip(b"\n") for record in make_calls(count)]
            return lambda: [
                writer.write([price(decode(line)) for line in lines[start : start + BATCH]])
                for start in range(0, count, BATCH)
            ]

        def bare() -> Callable[[], object]:
            return BareDriver(engine, [price(record) for record in make_calls(count)])

        rates: dict[str, list[float]] = {"bare driver": [], "decode, price and write": [], "append, drain and write": []}
        for _ in range(options.rounds):
            for name, prepare in zip(rates, (bare, written, drained), strict=True):
                rates[name].append(measure(engine, prepare, count))
        best = statistics.median(rates["bare driver"])
        print(f"{engine.dialect.name}, {count} calls with 3 line items and 3 tags, {BATCH} a transaction")
        for name, found in rates.items():
            middle = statistics.median(found)
            print(f"{name:26} {middle:9,.0f} calls/s  {middle / best:5.2f} of the bare driver")
        own.dispose()
        engine.dispose()


if __name__ == "__main__":
    main()
