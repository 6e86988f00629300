"""How long every question takes in a ledger of a hundred thousand, a million and ten million calls.

Fills the ledger of each size with made-up calls (``bulk.py``), asks each question of the last 30 of 180 days many times, and
prints the 95th percentile, and how many times as long it takes as in the smallest. The ledger's tables in that database are
dropped and made anew.

    python benchmarks/scale.py [database url] [--calls 100000 1000000] [--rounds 40] [--loaded]

A URL may have ``{calls}`` in its database's name, which is then one of each size. Without a URL it measures SQLite files in
a temporary folder. ``--loaded`` asks what an earlier run has loaded.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import bulk
import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger import call_queries, queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Base, Call

UTC = ZoneInfo("UTC")
MONTH = Filter(scope={}, since=bulk.UNTIL - timedelta(days=30), until=bulk.UNTIL)
THIS_MONTH = Filter(scope={}, since=bulk.UNTIL.replace(month=10), until=bulk.UNTIL)
TOP = 50

Question = Callable[[Session, random.Random], object]


def tenant(rng: random.Random) -> str:
    return f"tenant-{int(bulk.TENANTS * rng.random() ** 3)}"


def questions(session: Session) -> Mapping[str, Question]:
    ids = list(session.scalars(sa.select(Call.id).where(*MONTH.conditions()).limit(200)))
    latest = call_queries.calls_page

    def by(*names: str) -> Question:
        return lambda session, rng: queries.pivot(session, MONTH, names, zone=UTC, top=TOP)

    def of_tenant(*names: str) -> Question:
        return lambda session, rng: queries.pivot(
            session, Filter(scope={"tenant_id": tenant(rng)}, since=MONTH.since, until=MONTH.until), names, zone=UTC
        )

    def page(**filters: Any) -> Question:
        return lambda session, rng: latest(session, MONTH.narrowed(**{name: value(rng) for name, value in filters.items()}))

    return {
        "spend": lambda session, rng: queries.totals(session, MONTH),
        "by day": lambda session, rng: queries.over(session, MONTH, "day", UTC),
        "by hour, one day": lambda session, rng: queries.over(
            session, MONTH.narrowed(since=bulk.UNTIL - timedelta(days=1)), "hour", UTC
        ),
        "by day in another zone": lambda session, rng: queries.over(session, MONTH, "day", ZoneInfo("Asia/Kathmandu")),
        "by model": by("model"),
        "by tag, 12 values": by("tag:feature"),
        "by tag, 500 values": by("tag:tenant_id"),
        "by day and tag, 12 values": lambda session, rng: queries.pivot(session, MONTH, ("day", "tag:feature"), zone=UTC),
        "by tag, 100,000 values": by("tag:user_id"),
        "two report tags crossed": by("tag:feature", "tag:tenant_id"),
        "any two tags crossed": by("tag:feature", "tag:user_id"),
        "a tenant's spend by feature": of_tenant("tag:feature"),
        "a tenant's spend by day": of_tenant("day"),
        "a tenant's spend by model": of_tenant("model"),
        "month to date by tenant": lambda session, rng: queries.pivot(session, THIS_MONTH, ("tag:tenant_id",), top=TOP),
        "how complete it is": lambda session, rng: queries.completeness(session, MONTH),
        "models without a price": lambda session, rng: queries.unpriced_models(session, MONTH),
        "latest 50 calls": page(),
        "latest 50 of a model": page(model=lambda rng: rng.choice(bulk.MODELS)[1]),
        "latest 50 of a tenant": page(tags=lambda rng: {"tenant_id": tenant(rng)}),
        "latest 50 of a user": page(tags=lambda rng: {"user_id": f"user-{rng.randrange(bulk.USERS)}"}),
        "latest 50 without a price": page(cost_status=lambda rng: "unpriced"),
        "latest 50 that failed": page(outcome=lambda rng: "error"),
        "a call by id": lambda session, rng: call_queries.one_call(session, Filter(scope={}), rng.choice(ids)),
    }


def measure(engine: sa.Engine, rounds: int) -> dict[str, float]:
    """The 95th percentile of each question, in milliseconds. A question that takes seconds is asked less often."""
    found: dict[str, float] = {}
    with Session(engine) as session:
        asked = questions(session)
    for name, ask in asked.items():
        rng, taken, began = random.Random(name), list[float](), time.perf_counter()
        for number in itertools.count():
            if number == rounds or (number >= 5 and time.perf_counter() - began > 20):
                break
            with Session(engine) as session:
                start = time.perf_counter()
                ask(session, rng)
                taken.append((time.perf_counter() - start) * 1000)
        taken.sort()
        found[name] = taken[math.ceil(0.95 * len(taken)) - 1]
        print(f"  {name:30} {found[name]:9.1f} ms", flush=True)
    return found


def sizes(engine: sa.Engine, count: int) -> None:
    """What a call takes on PostgreSQL: its rows, each index, and the rollups' share."""
    if engine.dialect.name != "postgresql":
        return
    with engine.connect() as connection:
        tables = {
            table.name: connection.execute(
                sa.text("SELECT pg_total_relation_size(:name)"), {"name": table.name}
            ).scalar_one()
            for table in Base.metadata.sorted_tables
        }
        rollups = sum(size for name, size in tables.items() if name.endswith("rollups"))
        detail = sum(tables[f"llm_cost_{name}"] for name in ("calls", "line_items", "call_tags"))
        print(
            f"  {detail / count:,.0f} bytes a call, "
            f"rollups {rollups / count:,.0f} more ({rollups / (detail + rollups):.1%} of all)"
        )
        query = """
            SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relname LIKE '%llm_cost_%' AND relkind IN ('r', 'i')
            ORDER BY 2 DESC LIMIT 16"""
        for name, size in connection.execute(sa.text(query)):
            print(f"    {name:40} {size / count:7.0f} bytes a call")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--calls", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--loaded", action="store_true")
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in options.calls:
            url = options.url or f"sqlite:///{folder}/{{calls}}.db"
            engine = sa.create_engine(url.replace("{calls}", str(count)))
            print(f"{engine.dialect.name}, {count:,} calls", flush=True)
            if not options.loaded:
                began = time.perf_counter()
                bulk.load(engine, count)
                print(f"  loaded in {time.perf_counter() - began:,.0f} s", flush=True)
            sizes(engine, count)
            found[count] = measure(engine, options.rounds)
            engine.dispose()
    first = min(found)
    print(f"\n95th percentile in milliseconds, and times that of {first:,} calls")
    for name in found[first]:
        print(
            f"{name:30}"
            + "".join(f"{times[name]:10.1f} {times[name] / found[first][name]:5.1f}x" for times in found.values())
        )


if __name__ == "__main__":
    main()
