"""Records and ledgers for the tests of the ledger."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.config import Config
from flask_llm_cost.ledger.models import Base, Call, CallTag, LineItem
from flask_llm_cost.ledger.store import Ledger
from flask_llm_cost.records import CallRecord, Cost, Line, Price, Rate, Usage, new_call_id

NOON = datetime(2026, 10, 15, 12, 0, tzinfo=UTC)
MILLION = Decimal(1_000_000)
PRICE = Price(
    id=UUID("0f8fad5b-d9cb-5469-a165-70867728950e"),
    source="bundled",
    source_version="2026-10-01",
    key="openai/gpt-4o",
    match="exact",
    currency="USD",
    rates={"input": Rate(Decimal("2.50"), MILLION), "output": Rate(Decimal("10.00"), MILLION)},
)


def a_call(**changes: Any) -> CallRecord:
    """A finished call with 1,000 input and 20 output tokens, three tags, and no price yet."""
    given: dict[str, Any] = {
        "id": new_call_id(),
        "occurred_at": NOON,
        "provider": "openai",
        "operation": "chat.completions",
        "host": "api.openai.com",
        "model": "gpt-4o-2024-08-06",
        "requested_model": "gpt-4o",
        "http_status": 200,
        "latency_ms": 812,
        "provider_response_id": "chatcmpl-123",
        "usage": Usage({"input": 1000, "output": 20}, "response", 0, 1020, raw={"prompt_tokens": 1000}),
        "tags": {"feature": "chat", "tenant_id": "acme", "user_id": "42"},
    }
    return CallRecord(**{**given, **changes})


def calls(count: int, seed: int = 1) -> list[CallRecord]:
    """*count* calls that differ in time, usage, tenant and user."""
    rng = random.Random(seed)
    return [
        a_call(
            occurred_at=NOON + timedelta(seconds=rng.randrange(86_400)),
            usage=Usage({"input": rng.randrange(1, 9000), "output": rng.randrange(1, 2000)}, "response"),
            tags={"tenant_id": f"t{rng.randrange(5)}", "user_id": str(rng.randrange(50)), "feature": "chat"},
        )
        for _ in range(count)
    ]


def price(record: CallRecord) -> CallRecord:
    """The record with the exact cost of its tokens."""
    lines = []
    for component, quantity in record.usage.quantities.items():
        rate = PRICE.rates[component]
        lines.append(Line(component, "token", quantity, rate.rate, rate.per, rate.rate * quantity / rate.per, "priced"))
    if not lines:
        return record
    total = sum((line.cost for line in lines if line.cost is not None), Decimal(0))
    return replace(record, cost=Cost(total, tuple(lines), "priced", PRICE))


def total_of(records: Sequence[CallRecord]) -> Decimal:
    """What *records* cost, exactly."""
    return sum((price(record).total_cost or Decimal(0) for record in records), Decimal(0))


class LedgerMaker:
    """Makes ledgers on one database, and closes them."""

    def __init__(self, url: sa.URL, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.engine = sa.create_engine(url)
        self.ledgers: list[Ledger] = []
        self.committed: list[CallRecord] = []
        self.failed: list[tuple[str, int]] = []

    def create_tables(self) -> None:
        Base.metadata.create_all(self.engine)

    def __call__(
        self,
        *,
        testing: bool = False,
        price: Callable[[CallRecord], CallRecord] = price,
        engine: sa.Engine | None = None,
        **config: Any,
    ) -> Ledger:
        bound = engine or self.engine
        ledger = Ledger(
            Config.from_mapping({f"LLM_COST_{name.upper()}": value for name, value in config.items()}),
            app_name="app",
            testing=testing,
            instance_path=str(self.folder),
            engine=lambda: bound,
            read_engine=lambda: bound,
            price=lambda record: record if record.cost is not None else price(record),
            committed=self.committed.extend,
            write_failed=lambda name, waiting: self.failed.append((name, waiting)),
        )
        self.ledgers.append(ledger)
        return ledger

    def close(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        self.engine.dispose()

    @property
    def spool_files(self) -> list[Path]:
        return sorted((self.folder / "llm_cost_spool").glob("*.spool"))

    def stored(self) -> tuple[int, int, int, Decimal | None]:
        """Calls, line items, tags, and the sum of all costs, as the database has them."""
        with self.engine.connect() as connection:
            counts = [
                connection.scalar(sa.select(sa.func.count()).select_from(model.__table__)) or 0
                for model in (Call, LineItem, CallTag)
            ]
            return counts[0], counts[1], counts[2], connection.scalar(sa.select(sa.func.sum(Call.total_cost)))
