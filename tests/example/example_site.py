"""The example, served by a process of its own that talks to a played provider in this one."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import httpx
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, selectinload

from example import demo
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import Billed, PlayedProvider

#: US dollars per million tokens of input and output, from the providers' price pages.
RATES = {
    "gpt-4o-mini-2024-07-18": ("0.15", "0.60"),
    "gpt-4.1-mini-2025-04-14": ("0.40", "1.60"),
    "gpt-4.1-nano-2025-04-14": ("0.10", "0.40"),
    "claude-haiku-4-5-20251001": ("1.00", "5.00"),
    "text-embedding-3-small": ("0.02", "0"),
}


def tokens(billed: Billed) -> tuple[int, int]:
    """Input and output tokens of a billed exchange. Nothing in the example is cached."""
    usage = billed.usage
    sent = usage.get("prompt_tokens", usage.get("input_tokens"))
    return sent, usage.get("completion_tokens", usage.get("output_tokens", 0))


def cost(billed: Billed) -> Decimal:
    """What a billed exchange costs, reckoned by hand."""
    rates = map(Decimal, RATES[billed.model])
    return sum((rate * count / 1_000_000 for rate, count in zip(rates, tokens(billed), strict=True)), Decimal(0))


class Site:
    """The example as a process, with its state in a folder that outlives it."""

    def __init__(self, state: Path, provider: PlayedProvider, **config: str) -> None:
        self.provider = provider
        self._state = state
        self._log = state / "app.log"
        self._env = demo.environment(state, provider.url) | {f"FLASK_{key}": value for key, value in config.items()}
        self._engine = create_engine(f"sqlite:///{state / 'desk.db'}")
        self._serving = ExitStack()
        self._forgotten: set[UUID] = set()
        self.flask("db", "upgrade")
        self.flask("seed")

    def flask(self, *arguments: str) -> str:
        return demo.flask(self._env, *arguments)

    def start(self) -> None:
        self.url = f"http://127.0.0.1:{demo.free_port(0)}"
        command = ["-m", "flask", "run", "--port", self.url.rsplit(":", 1)[1]]
        self._child = self._serving.enter_context(demo.process(command, self._log, self._env))
        demo.wait_for(self._child, self._log, self.url)

    def stop(self) -> None:
        self._serving.close()

    def kill(self) -> None:
        os.kill(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def close(self) -> None:
        self.stop()
        self._engine.dispose()

    @contextmanager
    def locked_database(self) -> Iterator[None]:
        """Nobody else can write to the database meanwhile."""
        with closing(sqlite3.connect(self._state / "desk.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def forget(self) -> None:
        """Leave what happened so far out of :meth:`calls` and the truth."""
        self._forgotten.update(call.id for call in self.calls(len(self.provider.truth)))
        self.provider.clear()

    @contextmanager
    def browser(self, email: str | None = None) -> Iterator[httpx.Client]:
        """Somebody with a browser, signed in where an *email* is given."""
        with httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_connections=200)) as browser:
            if email:
                answer = browser.post("/login", data={"email": email, "password": "demo"})
                assert answer.status_code == 302, answer.text
            yield browser

    def calls(self, count: int, *, seconds: float = 15) -> list[Call]:
        """The calls in the ledger, oldest first, as soon as there are *count* of them."""
        deadline = time.monotonic() + seconds
        while True:
            with Session(self._engine) as session:
                query = select(Call).order_by(Call.id).options(selectinload(Call.tags), selectinload(Call.line_items))
                calls = [call for call in session.scalars(query) if call.id not in self._forgotten]
            if len(calls) >= count or time.monotonic() > deadline:
                return calls
            time.sleep(0.05)
