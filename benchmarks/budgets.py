"""What asking a budget costs: admit and settle, against a bare INSERT and COMMIT on the same database in the same run.

    python benchmarks/budgets.py [--calls 2000] [--databases sqlite,postgresql,mariadb] [--loop-calls 300]

The rounds are interleaved, so that whatever else the machine does falls on all of them alike. *admit* is what an app's call
waits for, the hop to a thread that may be left behind included; *settle* is what the thread that writes the calls does more
for a call than without budgets. PostgreSQL and MariaDB are the tests' own servers, which do not wait for the disk: ratios
tell more than times.

*loop* is what an event loop notices: calls of the async OpenAI SDK over an in-process transport, watched by an app without
budgets and by one whose budget blocks, in turns. A task that does nothing but give way measures the longest stretch of each
call in which no other task of the loop could run.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import httpx2
import openai
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "budgets")]

from budget_apps import BODY, AppMaker, BudgetApp  # noqa: E402 - of the tests, from here
from budget_load import BLOCK, Worker  # noqa: E402 - of the tests, from here
from databases import MariaDBServer, PostgreSQLServer, SQLiteFolder  # noqa: E402 - of the tests, from here

from flask_llm_cost.budgets import enforcement  # noqa: E402
from flask_llm_cost.budgets.settling import Settling  # noqa: E402
from flask_llm_cost.ledger.change import Change  # noqa: E402
from flask_llm_cost.ledger.models import Base  # noqa: E402
from flask_llm_cost.ledger.rows import call_rows  # noqa: E402
from flask_llm_cost.records import CallRecord, Cost, Usage  # noqa: E402
from flask_llm_cost.testing.provider import PlayedProvider  # noqa: E402

BARE = sa.Table(
    "bare",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.String(32)),
)


def measure(worker: Worker, calls: int) -> dict[str, list[float]]:
    """Seconds of each step, call by call."""
    taken: dict[str, list[float]] = {"bare": [], "admit": [], "settle": []}
    settling: Settling = worker.budgets.settling
    for number in range(calls):
        started = time.perf_counter()
        with worker.engine.connect() as connection:
            connection.execute(sa.insert(BARE).values(id=number, amount="0.01"))
            connection.commit()
        taken["bare"].append(time.perf_counter() - started)
        asked = worker.ask(1)
        started = time.perf_counter()
        answer = worker.budgets.authorise(asked)
        taken["admit"].append(time.perf_counter() - started)
        assert answer.error is None, answer.error
        record = CallRecord(
            id=asked.call_id, occurred_at=asked.subject.at, provider="acme", operation="chat.completions", model="big",
            usage=Usage({"output": 1}, "response"), tags=dict(asked.subject.tags), cost=Cost(Decimal(1), (), "priced"),
        )  # fmt: skip
        change = Change((call_rows(record, datetime.now(UTC)),))
        started = time.perf_counter()
        worker.budgets.keeper.run(lambda connection, change=change: settling(connection, change))  # type: ignore[misc]
        taken["settle"].append(time.perf_counter() - started)
    return taken


def measure_loop(url: sa.URL, folder: Path, calls: int) -> dict[str, list[float]]:
    """Seconds of the longest stretch of each call in which the loop ran nothing else, without and with a budget."""
    # A machine with much else to do may take longer than half a second; waiting is not what is measured here.
    enforcement.PATIENCE_SECONDS = enforcement.TRANSACTION_SECONDS = 30.0
    provider = PlayedProvider()
    maker = AppMaker(url, provider, folder)
    apps = {"without": maker(), "with": maker(BLOCK(9_000_000))}
    taken: dict[str, list[float]] = {name: [] for name in apps}
    reply = {
        "id": "c", "object": "chat.completion", "created": 1, "model": BODY["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }  # fmt: skip

    async def call(app: BudgetApp) -> float:
        longest, last, done = 0.0, time.perf_counter(), False

        async def beat() -> None:
            nonlocal longest, last
            while not done:
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
                await asyncio.sleep(0)

        http = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, json=reply)))
        async with openai.AsyncOpenAI(api_key="benchmark", http_client=http) as client:
            beating = asyncio.create_task(beat())
            await asyncio.sleep(0)
            with app.flask.app_context():
                last = time.perf_counter()
                await client.chat.completions.create(**BODY)
            done = True
            await beating
        return longest

    before = len(apps["with"].holds())
    for name in apps:
        asyncio.run(call(apps[name]))  # whatever is done once
    for _ in range(calls):
        for name, app in apps.items():
            taken[name].append(asyncio.run(call(app)))
            app.flush()
    assert len(apps["with"].holds()) - before == calls + 1
    maker.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--loop-calls", type=int, default=300)
    parser.add_argument("--databases", default="sqlite,postgresql,mariadb")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        servers: dict[str, Callable[[], SQLiteFolder | PostgreSQLServer | MariaDBServer]] = {
            "sqlite": lambda: SQLiteFolder(Path(folder)),
            "postgresql": PostgreSQLServer.start,
            "mariadb": MariaDBServer.start,
        }
        print(f"{'':12}{'':8}{'p50 ms':>10}{'p99 ms':>10}{'p50 / bare':>12}{'p99 / bare':>12}")
        for name in options.databases.split(","):
            server = servers[name]()
            url = server.create()
            engine = sa.create_engine(url)
            Base.metadata.create_all(engine)
            BARE.create(engine)
            engine.dispose()
            worker = Worker(url, BLOCK(9_000_000))
            taken = measure(worker, options.calls)
            worker.close()
            apps = Path(folder) / f"{name}-apps"
            apps.mkdir()
            loop = measure_loop(sa.make_url(url), apps, options.loop_calls)
            server.drop(url)
            if not isinstance(server, SQLiteFolder):
                server.stop()
            taken["both"] = [admit + settle for admit, settle in zip(taken["admit"], taken["settle"], strict=True)]
            bare = _percentiles(taken["bare"])
            for step, seconds in taken.items():
                middle, high = _percentiles(seconds)
                print(
                    f"{name:12}{step:8}{middle * 1e3:10.3f}{high * 1e3:10.3f}{middle / bare[0]:12.2f}{high / bare[1]:12.2f}"
                )
            without, under = _percentiles(loop["without"]), _percentiles(loop["with"])
            print(f"{name:12}{'loop, without a budget':24}{without[0] * 1e3:8.3f} ms p50{without[1] * 1e3:8.3f} ms p99")
            print(f"{name:12}{'loop, under a budget':24}{under[0] * 1e3:8.3f} ms p50{under[1] * 1e3:8.3f} ms p99")
            print(f"{name:12}{'loop, ratio':24}{under[0] / without[0]:8.2f} p50   {under[1] / without[1]:8.2f} p99")


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return cuts[49], cuts[98]


if __name__ == "__main__":
    main()
