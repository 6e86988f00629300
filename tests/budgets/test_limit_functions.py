"""Limits that only the app can say: its functions may be slow, fail, and use the database, and no call waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from budget_apps import BODY, AppMaker, BudgetApp

from flask_llm_cost import BudgetExceededError, LlmCostTracker, signals, tags, track
from flask_llm_cost.budgets import enforcement, limits
from flask_llm_cost.ledger.models import Counter
from flask_llm_cost.testing.provider import PlayedProvider

PER_TENANT: Any = {"name": "n", "limit": "5", "period": "day", "unit": "calls", "per": "tenant_id", "warn_at": [1]}


def call(tenant: object) -> None:
    track("openai", model="gpt-4o", usage={"input": 1}, tags={"tenant_id": str(tenant)})


@contextmanager
def told(app: BudgetApp) -> Iterator[list[tuple[str, Decimal]]]:
    """The scopes whose limits are said to be reached, and the limits."""
    found: list[tuple[str, Decimal]] = []

    def receive(sender: Any, **facts: Any) -> None:
        found.append((facts["scope"], facts["limit"]))

    with signals.budget_exceeded.connected_to(receive), app.flask.app_context():
        yield found


def test_a_function_that_does_not_return_keeps_no_call_out(make_app: AppMaker) -> None:
    """While the app's function hangs, calls are written and the database is free; thresholds are told when it is back."""
    costs, answering = LlmCostTracker(), threading.Event()

    @costs.budget_limit("n")
    def limit(scope: Mapping[str, str]) -> str:
        answering.wait(60)
        return "1"

    app = make_app(PER_TENANT, costs=costs)
    with told(app) as found:
        try:
            for number in range(30):
                call(number)
            assert app.costs.flush(1.5)
            assert len(app.calls()) == 30
            started = time.monotonic()
            with app.engine.begin() as connection:
                connection.execute(sa.insert(Counter).values(name="the app's", value=1, updated_at=sa.func.now()))
            assert time.monotonic() - started < 2
            call("later")
            assert app.costs.flush(1.5)
            assert len(app.calls()) == 31
            assert found == []
        finally:
            answering.set()
        assert app.costs.flush(20)
    assert sorted(found) == sorted((f"tenant_id={name}", 1) for name in (*range(30), "later"))
    assert {row.limit_amount * 1_000_000 for row in app.periods() if row.limit_amount is not None} == {1}


@pytest.mark.parametrize("on_error", ["block", "allow"])
def test_a_function_that_is_slow_keeps_no_others_calls_waiting(
    sqlite_app: AppMaker, provider: PlayedProvider, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    """While it hangs for calls of many tenants, others' calls go through at once; theirs are told which limit is missing."""
    monkeypatch.setattr(enforcement, "PATIENCE_SECONDS", 6.0)
    costs, answering, asked = LlmCostTracker(), threading.Event(), list[str]()

    @costs.budget_limit("n")
    def limit(scope: Mapping[str, str]) -> str:
        asked.append(scope["tenant_id"])
        if scope["tenant_id"] != "quick":
            answering.wait(60)
        return "100"

    everybody = {"name": "all", "limit": "21", "period": "day", "unit": "calls", "action": "block"}
    app = sqlite_app({**PER_TENANT, "action": "block", "on_error": on_error}, everybody, costs=costs)

    def send(tenant: str | None) -> BudgetExceededError | None:
        with app.flask.app_context(), tags(tenant_id=tenant) if tenant else tags(feature="chat"):
            try:
                client.post(provider.openai_url + "/chat/completions", json=BODY)
            except BudgetExceededError as error:
                return error
        return None

    def check() -> None:
        with app.flask.app_context(), tags(tenant_id="quick"):
            costs.check_budget()

    client = httpx.Client()
    assert send("quick") is None
    try:
        with ThreadPoolExecutor(24) as threads:
            slow = [threads.submit(send, f"slow{number % 4}") for number in range(16)]
            time.sleep(0.1)
            started = time.monotonic()
            assert [send(tenant) for tenant in ("quick", None)] == [None, None]
            check()
            assert time.monotonic() - started < 2
            errors = [job.result() for job in slow]
        if on_error == "block":  # else they are asked for once more, for thresholds
            assert sorted(asked) == ["quick", *(f"slow{number}" for number in range(4))]
        assert len(provider.requests) == (3 if on_error == "block" else 19)
        for error in errors:
            assert error is None if on_error == "allow" else (error and (error.budget, error.stage) == ("n", "limit"))
        if on_error == "allow":  # the others judge all the same
            assert [send(tenant) for tenant in (None, None)] == [None, None]
            refused = send("slow1")
            assert refused is not None
            assert (refused.budget, refused.stage) == ("all", "admit")
    finally:
        answering.set()
        client.close()
    app.flush()
    assert app.open_amount() == 0


def test_answers_hold_for_the_write_that_they_were_asked_for(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where asking takes longer than an answer is fresh, each limit is asked for once all the same, and each is told of."""
    monkeypatch.setattr(limits, "FRESH_SECONDS", 0.05)
    costs, asked = LlmCostTracker(), list[str]()

    @costs.budget_limit("n")
    def limit(scope: Mapping[str, str]) -> str:
        asked.append(scope["tenant_id"])
        time.sleep(0.02)
        return "1"

    app = make_app(PER_TENANT, costs=costs)
    with told(app) as found:
        for number in range(20):
            call(number)
        assert app.costs.flush(20)
    assert len(app.calls()) == 20
    assert sorted(asked) == sorted(map(str, range(20)))
    assert sorted(found) == sorted((f"tenant_id={number}", 1) for number in range(20))


def test_a_function_may_write(make_app: AppMaker) -> None:
    """The app's function writes to the database that holds the ledger, and finds nothing of ours in its way."""
    costs, wrote = LlmCostTracker(), list[str]()

    @costs.budget_limit("n")
    def limit(scope: Mapping[str, str]) -> str:
        with app.engine.begin() as connection:
            row = {"name": f"asked {scope['tenant_id']}", "value": 1, "updated_at": sa.func.now()}
            connection.execute(sa.insert(Counter).values(row))
        wrote.append(scope["tenant_id"])
        return "1"

    app = make_app(PER_TENANT, {**PER_TENANT, "name": "m", "action": "block"}, costs=costs)
    with told(app) as found:
        for tenant in ("a", "b", "a"):
            call(tenant)
        assert app.costs.flush(20)
    assert len(app.calls()) == 3
    assert sorted(wrote) == ["a", "b"]
    assert sorted(found) == [("tenant_id=a", 1), ("tenant_id=b", 1)]


def test_a_function_that_fails_keeps_no_call_out(sqlite_app: AppMaker) -> None:
    """Where the app cannot say a limit, the call is in the ledger and in the account, and no threshold is told of."""
    costs = LlmCostTracker()

    @costs.budget_limit("n")
    def limit(scope: Mapping[str, str]) -> str:
        if scope["tenant_id"] == "gone":
            raise LookupError(scope["tenant_id"])
        return "1"

    app = sqlite_app(PER_TENANT, costs=costs)
    with told(app) as found:
        for tenant in ("gone", "there"):
            call(tenant)
        assert app.costs.flush(20)
    assert {row.scope: row.spent * 1_000_000 for row in app.periods()} == {"tenant_id=gone": 1, "tenant_id=there": 1}
    assert found == [("tenant_id=there", 1)]


def test_a_limit_beyond_what_can_be_kept(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """Of dollars or tokens, the call is refused in words that name the function and the largest limit: no cap is lost."""
    costs = LlmCostTracker()
    limits = {"cost": "10000000", "tokens": "9000000000001"}

    @costs.budget_limit("dollars")
    def dollars(scope: Mapping[str, str]) -> str:
        return limits["cost"]

    @costs.budget_limit("tokens")
    def tokens(scope: Mapping[str, str]) -> str:
        return limits["tokens"]

    for unit, name, most in (("cost", "dollars", "9000000"), ("tokens", "tokens", "9000000000000")):
        app = sqlite_app({"name": name, "limit": "25", "unit": unit, "period": "day", "action": "block"}, costs=costs)
        with app.flask.app_context():
            with pytest.raises(BudgetExceededError) as caught:
                httpx.post(provider.openai_url + "/chat/completions", json=BODY)
            assert str(caught.value).endswith(
                f'look at the function of @costs.budget_limit("{name}") '
                f"(it gave no usable amount: the largest limit is {most})"
            )
            app.budgets.limits._answers.clear()
            limits[unit] = most
            httpx.post(provider.openai_url + "/chat/completions", json=BODY)
    assert len(provider.requests) == 2


def test_a_call_alone_is_measured_by_the_apps_limit(make_app: AppMaker) -> None:
    """A limit per call that the app says is told of once for each call that reaches it."""
    costs = LlmCostTracker()

    @costs.budget_limit("one")
    def limit(scope: Mapping[str, str]) -> str:
        return "0.5"

    app = make_app({"name": "one", "limit": None, "period": "call", "warn_at": [1]}, costs=costs)
    with told(app) as found:
        for billed in ("0.4", "0.5", "2"):
            track("openai", model="gpt-4o", billed=billed)
            assert app.costs.flush(20)
    assert found == [("all", Decimal("0.5"))] * 2
    assert sorted(row.spent for row in app.periods()) == [Decimal("0.5"), 2]


def test_in_memory(app_maker: Any) -> None:
    """In an in-memory database, which is one thread's alone, the function is asked after the write as well."""
    costs = LlmCostTracker()

    @costs.budget_limit("n")
    def limit(scope: Mapping[str, str]) -> str:
        return "1"

    app = app_maker(sa.make_url("sqlite://"))(PER_TENANT, costs=costs)
    with told(app) as found:
        app.flask.extensions["sqlalchemy"].create_all()
        call("a")
        assert app.costs.flush(20)
    assert found == [("tenant_id=a", 1)]


FORKED = """
import os, signal, sys, threading
from contextlib import nullcontext
from datetime import UTC, datetime
from zoneinfo import ZoneInfo
from flask_llm_cost.budgets.accounts import account_of
from flask_llm_cost.budgets.declaration import parse_budgets
from flask_llm_cost.budgets.limits import Limits

stored, over = threading.Event(), threading.Event()

class Scope(str):
    looked_at = 0

    def __hash__(self):  # the second time it is being stored
        self.looked_at += 1
        if self.looked_at == 2:
            stored.set()
            over.wait(60)
        return super().__hash__()

(budget,) = parse_budgets([{"name": "n", "limit": "5", "period": "day", "per": "tenant_id"}])
account = account_of(budget, "tenant_id=1", datetime.now(UTC), ZoneInfo("UTC"))
limits = Limits({"n": lambda scope: "1"}, nullcontext)
slow = account_of(budget, "tenant_id=2", datetime.now(UTC), ZoneInfo("UTC"))
object.__setattr__(slow, "scope", Scope(slow.scope))
threading.Thread(target=limits.answer, args=(slow,)).start()
assert stored.wait(60)
child = os.fork()
if not child:
    signal.alarm(30)
    os._exit(0 if limits.answer(account) else 3)
over.set()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_asks_for_limits() -> None:
    """Forked while another thread keeps what the app's function said, a child asks it for itself, and does not hang."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=300, check=False)
    assert done.returncode == 0
