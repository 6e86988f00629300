"""What asks a budget in tests: workers with budgets and a writer, and processes that have one each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.budgets import enforcement, keeper
from flask_llm_cost.budgets.accounts import Subject
from flask_llm_cost.budgets.asking import Answer, Ask
from flask_llm_cost.budgets.declaration import parse_budgets
from flask_llm_cost.budgets.enforcement import Budgets
from flask_llm_cost.budgets.settling import Crossing
from flask_llm_cost.ledger.change import Change
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.models import BudgetHold, BudgetPeriod, Call
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.ledger.transaction import WriteError
from flask_llm_cost.ledger.writer import Writer
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import CallRecord, Cost, Usage, new_call_id

#: A token of output costs a dollar: what a request may use is what is held for it.
BOOK = PriceBook.load(overrides={"acme/big": {"input": "0", "output": "1000000"}})

#: What stands for a database that is slower than half a second on a machine with more workers than processors: ask again.
_SLOW = ("unavailable", "busy")


def BLOCK(limit: int, **fields: Any) -> dict[str, Any]:  # noqa: N802 - reads as a constant
    return {"name": "cap", "limit": str(limit), "period": "total", "action": "block", **fields}


class Worker:
    """What one process has."""

    def __init__(self, url: sa.URL | str, *entries: Any, crossed: Callable[[Crossing], None] = lambda _: None) -> None:
        self.engine = sa.create_engine(url, pool_size=10, max_overflow=30, pool_timeout=60)
        self.budgets = Budgets(
            parse_budgets(entries),
            zone=ZoneInfo("UTC"),
            default_output=4096,
            engine=lambda: self.engine,
            read_engine=lambda: self.engine,
            book=lambda: BOOK,
            functions={},
            context=nullcontext,
            flush=lambda _: True,
            crossed=crossed,
        )
        self._writer = Writer(OwnEngine(lambda: self.engine), (self.budgets.settling,))
        self._writing = threading.Lock()

    def ask(self, tokens: int, tags: dict[str, str] | None = None, at: datetime | None = None) -> Ask:
        """A call that may cost as many dollars as it may have tokens."""
        subject = Subject("acme", ("big",), tags or {"tenant_id": "42"}, at or datetime.now(UTC))
        content = b'{"max_tokens": %d}' % tokens
        return Ask(new_call_id(), subject, "chat.completions", content, 0, self.budgets.blocking(subject))

    def call(self) -> Ask:
        """A call that asks nobody."""
        return Ask(new_call_id(), Subject("acme", ("big",), {"tenant_id": "42"}, datetime.now(UTC)), "", None, 0, ())

    def patient(self, ask: Ask) -> Answer:
        """The answer, asked again while the machine is too busy to give one in half a second."""
        for _ in range(200):
            answer = self.budgets.authorise(ask)
            if answer.error is None or answer.error.stage not in _SLOW:
                return answer
            self.budgets.keeper.flush(5)
            # What came too late gave its hold back, under the id that it had.
            object.__setattr__(ask, "call_id", new_call_id())
        return answer

    async def patient_async(self, ask: Ask) -> Answer:
        for _ in range(200):
            answer = await self.budgets.authorise_async(ask)
            if answer.error is None or answer.error.stage not in _SLOW:
                return answer
            await asyncio.to_thread(self.budgets.keeper.flush, 5)
            object.__setattr__(ask, "call_id", new_call_id())
        return answer

    def settle(
        self,
        ask: Ask,
        cost: Decimal | int | None,
        currency: str = "USD",
        source: str | None = None,
        call_id: UUID | None = None,
        **changes: Any,
    ) -> None:
        """The call is recorded, with this cost.

        :param call_id: the id that it goes by, where that is not the one by which it asked
        """
        record = CallRecord(
            id=call_id or ask.call_id,
            hold_id=ask.call_id if call_id else None,
            occurred_at=ask.subject.at,
            provider="acme",
            operation="chat.completions",
            model="big",
            usage=Usage({} if cost is None else {"output": 1}, source or ("unknown" if cost is None else "response")),
            tags=dict(ask.subject.tags),
            cost=Cost(None, (), "unpriced") if cost is None else Cost(Decimal(cost), (), "priced", currency=currency),
            **changes,
        )
        with self._writing:
            for pause in [0.05] * 200:  # as the drain does, where a server has no connection left for so many
                try:
                    assert not self._writer.write([record]).poison
                    return
                except WriteError:
                    time.sleep(pause)
            raise AssertionError("never written")

    def reprice(self, ask: Ask, cost: Decimal | int | None) -> None:
        """The recorded call gets another price."""

        def work(connection: sa.Connection) -> None:
            removed = stored_calls(connection, [ask.call_id], lock=True)
            (now,) = (replace(rows, call={**rows.call, "total_cost": cost and Decimal(cost)}) for rows in removed)
            connection.execute(sa.update(Call).where(Call.id == now.id).values(total_cost=now.call["total_cost"]))
            self._writer.move(connection, Change((now,), removed))

        self._writer.transactions.run(work)

    def let_expire(self) -> None:
        """Make all holds as old as they can be, and sweep."""
        with self.engine.begin() as connection:
            past = datetime.now(UTC) - timedelta(seconds=1)
            connection.execute(sa.update(BudgetHold).where(BudgetHold.state == "open").values(expires_at=past))
        self.budgets.keeper.sweep()

    def close(self) -> None:
        self.budgets.keeper.close()
        self._writer.transactions.engine.dispose()
        self.engine.dispose()


def account_row(worker: Worker) -> BudgetPeriod:
    """The only account."""
    assert worker.budgets.keeper.flush(30)
    with Session(worker.engine) as session:
        return session.scalars(sa.select(BudgetPeriod)).one()


def work_in_processes(url: sa.URL, count: int, work: str, *arguments: int) -> int:
    """Run *work* in so many processes at once. Returns how many calls they admitted together."""
    command = [sys.executable, __file__, url.render_as_string(hide_password=False), work, *map(str, arguments)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        return sum(int(process.communicate(timeout=120)[0] or b"0") for process in running)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _ask(worker: Worker, limit: int, hold: int) -> None:
    """Ask until there is no room left, and settle what was admitted."""
    admitted = []
    for _ in range(limit):
        asked = worker.ask(hold)
        if worker.patient(asked).error is not None:
            break
        admitted.append(asked)
    for asked in admitted:
        worker.settle(asked, hold)
    print(len(admitted), flush=True)
    worker.close()


def _hold_and_die(worker: Worker, limit: int, hold: int, calls: int) -> None:
    admitted = sum(worker.patient(worker.ask(hold)).error is None for _ in range(calls))
    print(admitted, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # Half a second is a promise to the app, not to dozens of processes that start at once on two processors.
    enforcement.PATIENCE_SECONDS = 60.0
    enforcement.TRANSACTION_SECONDS = keeper.TRANSACTION_SECONDS = 20.0
    given = [int(argument) for argument in sys.argv[3:]]
    mine = Worker(sys.argv[1], BLOCK(given[0], hold_seconds=60))
    with mine.engine.connect():
        print("ready", flush=True)
    sys.stdin.readline()
    {"ask": _ask, "hold_and_die": _hold_and_die}[sys.argv[2]](mine, *given)
