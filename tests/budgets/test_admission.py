"""The limit holds: whoever asks, however many at once, and whatever becomes of the calls."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import budget_load
import pytest
import sqlalchemy as sa
from budget_load import BLOCK, Worker, account_row, work_in_processes
from sqlalchemy.orm import Session

from flask_llm_cost.budgets import holds, operating
from flask_llm_cost.budgets.settling import Crossing
from flask_llm_cost.ledger.models import Alert, Base, BudgetHold, BudgetPeriod
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import new_call_id

LIMIT, HOLD = 20, 3
ADMITTED = LIMIT // HOLD


@pytest.fixture
def make_worker(database_url: sa.URL) -> Iterator[Callable[..., Worker]]:
    """What processes have, all on one database with our tables, once on each kind."""
    made: list[Worker] = []
    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    engine.dispose()

    def make(*entries: Any, **options: Any) -> Worker:
        made.append(Worker(database_url, *entries, **options))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def rows(worker: Worker, model: Any) -> list[Any]:
    with Session(worker.engine) as session:
        return list(session.scalars(sa.select(model)))


def in_threads(worker: Worker, count: int, tokens: int = HOLD) -> list[Any]:
    """So many threads ask at the same moment. Returns those that were admitted."""
    ready = threading.Barrier(count)
    admitted: list[Any] = []

    def ask() -> None:
        asked = worker.ask(tokens)
        ready.wait(60)
        answer = worker.patient(asked)
        if answer.error is None:
            admitted.append(asked)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(ask) for _ in range(count)]:
            future.result()
    return admitted


def in_tasks(worker: Worker, count: int, tokens: int = HOLD) -> list[Any]:
    """So many tasks of one event loop do."""
    admitted: list[Any] = []

    async def ask() -> None:
        asked = worker.ask(tokens)
        answer = await worker.patient_async(asked)
        if answer.error is None:
            admitted.append(asked)

    async def all_of_them() -> None:
        await asyncio.gather(*(ask() for _ in range(count)))

    asyncio.run(all_of_them())
    return admitted


@pytest.mark.parametrize("workers", [1, 8, 32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ask", [in_threads, in_tasks])
def test_the_limit_holds(make_worker: Callable[..., Worker], ask: Callable[..., list[Any]], workers: int) -> None:
    """As many calls are admitted as fit, never one more; settled at what was held, all of it is spent and nothing held."""
    worker = make_worker(BLOCK(LIMIT))
    admitted = [asked for _ in range(-(-2 * ADMITTED // workers)) for asked in ask(worker, workers)]
    assert len(admitted) == ADMITTED
    row = account_row(worker)
    assert (row.spent, row.held) == (0, ADMITTED * HOLD)
    for asked in admitted:
        worker.settle(asked, HOLD)
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (ADMITTED * HOLD, 0, 0)
    assert row.blocked_calls >= workers * -(-2 * ADMITTED // workers) - ADMITTED


@pytest.mark.parametrize(
    "workers", [1, 3, pytest.param(8, marks=pytest.mark.slow), *(pytest.param(n, marks=pytest.mark.soak) for n in (32, 64))]
)
def test_the_limit_holds_across_processes(make_worker: Callable[..., Worker], database_url: sa.URL, workers: int) -> None:
    """Processes that know nothing of each other admit together as many calls as fit."""
    worker = make_worker(BLOCK(LIMIT))
    admitted = work_in_processes(database_url, workers, "ask", LIMIT, HOLD)
    assert admitted == ADMITTED
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (ADMITTED * HOLD, 0, 0)


def test_checking_first_and_acting_later_overshoots(make_worker: Callable[..., Worker]) -> None:
    """The control: workers that look before they spend, and hold nothing, pass the limit. That is what a hold is for."""
    worker = make_worker(BLOCK(LIMIT))
    first = worker.ask(HOLD)
    assert worker.patient(first).error is None
    worker.settle(first, HOLD)
    ready = threading.Barrier(16)

    def look_and_spend() -> None:
        asked = worker.ask(HOLD)
        with Session(worker.engine) as session:
            spent = session.scalar(sa.select(BudgetPeriod.spent)) or Decimal(0)
        ready.wait(60)
        if spent + HOLD <= LIMIT:
            worker.settle(asked, HOLD)

    with ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(look_and_spend) for _ in range(16)]:
            future.result()
    assert account_row(worker).spent == 17 * HOLD > LIMIT


def test_what_costs_more_than_its_hold_is_counted(make_worker: Callable[..., Worker]) -> None:
    """Where calls cost 20% more than was held, the limit is passed by exactly that excess, and further calls are blocked."""
    worker = make_worker(BLOCK(20))
    admitted = in_threads(worker, 8, 5)
    assert len(admitted) == 4
    for asked in admitted:
        worker.settle(asked, 6)
    row = account_row(worker)
    assert (row.spent - 20, row.held) == (4 * (6 - 5), 0)
    answer = worker.patient(worker.ask(1))
    assert answer.error is not None
    assert (answer.error.spent, answer.error.limit) == (24, 20)


def test_a_hold_is_never_a_hair_too_small(make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last place of the column cannot say is rounded up, so that the bound stays one."""
    book = PriceBook.load(overrides={"acme/big": {"input": "0", "output": "0.0000004"}})
    monkeypatch.setattr(budget_load, "BOOK", book)
    worker = make_worker(BLOCK(1))
    assert worker.patient(worker.ask(3)).error is None
    assert account_row(worker).held == Decimal("0.000000000002")


def test_a_budget_that_is_spent_to_the_last_cent_is_used_up(make_worker: Callable[..., Worker]) -> None:
    """At its limit, and not only above it; a cent before there is still room."""
    worker = make_worker(BLOCK(10))
    worker.settle(worker.call(), Decimal("9.99"))
    assert worker.budgets.used_up(worker.call().subject, "check") is None
    worker.settle(worker.call(), Decimal("0.01"))
    error = worker.budgets.used_up(worker.call().subject, "check")
    assert error is not None
    assert (error.spent, error.limit) == (10, 10)


def test_nothing_is_counted_twice(make_worker: Callable[..., Worker]) -> None:
    """Settled twice, settled after it expired, void after it was settled and settled after it was void: each counts once."""
    worker = make_worker(BLOCK(100, hold_seconds=1))
    twice, late, settled, gone = (worker.ask(10) for _ in range(4))
    for asked in (twice, late, settled, gone):
        assert worker.patient(asked).error is None
    worker.settle(twice, 4)
    worker.settle(twice, 4)
    worker.settle(settled, 5)
    worker.budgets.keeper.run(holds.void(settled.call_id))
    worker.budgets.keeper.run(holds.void(settled.call_id))
    worker.budgets.keeper.run(holds.void(gone.call_id))
    assert (account_row(worker).spent, account_row(worker).held) == (9, 10)
    worker.let_expire()
    assert (account_row(worker).held, account_row(worker).unresolved) == (0, 10)
    worker.settle(late, 7)
    worker.settle(gone, 1)  # the provider billed it after all
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (17, 0, 0)
    assert operating_mismatches(worker) == []


def test_a_second_hold_of_one_call_is_given_back(make_worker: Callable[..., Worker]) -> None:
    """Two requests that turn out to be about one call, one after the other, cost what it costs, and its bill is kept."""
    worker = make_worker(BLOCK(100))
    made, again, call_id = worker.ask(10), worker.ask(20), new_call_id()
    assert worker.patient(made).error is None
    worker.settle(made, None, source="pending", call_id=call_id)
    assert worker.patient(again).error is None
    worker.settle(again, 4, call_id=call_id)
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (4, 0, 0)
    assert sorted((hold.state, hold.actual) for hold in rows(worker, BudgetHold)) == [("released", None), ("settled", 4)]
    assert operating_mismatches(worker) == []


def operating_mismatches(worker: Worker) -> list[Any]:
    return worker.budgets.keeper.run(operating.mismatches)


def test_a_bill_in_another_currency_is_no_dollars(make_worker: Callable[..., Worker]) -> None:
    """Ten euros are not ten dollars, nor nothing: what was held stands as unresolved, for somebody to release."""
    worker = make_worker(BLOCK(100))
    asked = worker.ask(12)
    assert worker.patient(asked).error is None
    worker.settle(asked, 10, currency="EUR")
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (0, 0, 12)


def test_void_and_settle_at_once(make_worker: Callable[..., Worker]) -> None:
    """A hold that is given back and settled at the same moment is given back once, and what it cost counts once."""
    worker = make_worker(BLOCK(1000))
    asked = [worker.ask(10) for _ in range(16)]
    for one in asked:
        assert worker.patient(one).error is None
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(worker.budgets.keeper.run, holds.void(one.call_id)) for one in asked]
        work += [pool.submit(worker.settle, one, 4) for one in asked]
        for future in work:
            future.result()
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (64, 0, 0)


def test_a_call_of_unknown_cost_stands_until_it_is_released(make_worker: Callable[..., Worker]) -> None:
    """What is held for a call whose cost is not known counts on as unresolved, until somebody releases it."""
    worker = make_worker(BLOCK(20))
    asked = worker.ask(15)
    worker.patient(asked)
    worker.settle(asked, None)
    assert (account_row(worker).held, account_row(worker).unresolved) == (0, 15)
    assert worker.patient(worker.ask(6)).error is not None
    released = worker.budgets.keeper.run(lambda connection: operating.release(connection, None, None, "ann", None))
    assert [(item.amount, item.calls) for item in released] == [(15, 1)]
    assert worker.patient(worker.ask(6)).error is None
    assert account_row(worker).unresolved == 0


def test_what_a_cut_stream_may_cost_beyond_what_is_known(make_worker: Callable[..., Worker]) -> None:
    """Of a stream that was cut, what it had told is spent, and the rest of its hold stands until somebody releases it.

    A price that comes later moves both, so that they stay what was held; a release leaves what is known.
    """
    worker = make_worker(BLOCK(20))
    asked, dear = worker.ask(12), worker.ask(3)
    for call, known in ((asked, 2), (dear, 4)):
        assert worker.patient(call).error is None
        worker.settle(call, known, source="stream_partial", outcome="interrupted")
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (6, 0, 10)
    assert worker.patient(worker.ask(5)).error is not None
    for price, rest in ((5, 7), (None, 12), (3, 9)):
        worker.reprice(asked, price)
        row = account_row(worker)
        assert (row.spent, row.held, row.unresolved) == (4 + (price or 0), 0, rest)
        assert operating_mismatches(worker) == []
    released = worker.budgets.keeper.run(lambda connection: operating.release(connection, None, None, "ann", None))
    assert [(item.amount, item.calls) for item in released] == [(9, 1)]
    worker.reprice(asked, 1)
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (5, 0, 0)
    assert operating_mismatches(worker) == []


def test_a_new_price_counts_once_where_the_call_was_counted(make_worker: Callable[..., Worker]) -> None:
    """A budget whose filter leaves out by now what it has counted stays at what that costs, however often it is repriced."""
    before = make_worker(BLOCK(100, where={"tenant_id": ["42", "43"]}))
    whole, cut = before.ask(10), before.ask(20)
    for asked, source in ((whole, "response"), (cut, "stream_partial")):
        assert before.patient(asked).error is None
        before.settle(asked, 4, source=source)
    narrowed = make_worker(BLOCK(100, where={"tenant_id": "43"}))
    for price in (5, None, 7, 7):
        narrowed.reprice(whole, price)
        narrowed.reprice(cut, price)
        row = account_row(narrowed)
        assert (row.spent, row.held, row.unresolved) == (2 * (price or 0), 0, 20 - (price or 0))
        assert operating_mismatches(narrowed) == []


def test_overlapping_budgets_never_lock_each_other_out(make_worker: Callable[..., Worker]) -> None:
    """Three budgets apply to each call of 32 workers, asked in any order: no deadlock, and the smallest limit holds."""
    entries = [BLOCK(200, name="a"), BLOCK(150, name="b", per="tenant_id"), BLOCK(100, name="c", per="user_id")]
    workers = [make_worker(*random.sample(entries, 3)) for _ in range(4)]
    tags = {"tenant_id": "42", "user_id": "7"}
    ready = threading.Barrier(32)
    admitted: list[Any] = []

    def ask(number: int) -> None:
        worker = workers[number % 4]
        ready.wait(60)
        for _ in range(2):
            asked = worker.ask(3, tags)
            if worker.patient(asked).error is None:
                admitted.append(asked)
                worker.settle(asked, 3)

    with ThreadPoolExecutor(32) as pool:
        for future in [pool.submit(ask, number) for number in range(32)]:
            future.result()
    assert len(admitted) == 100 // 3
    for row in rows(workers[0], BudgetPeriod):
        assert (row.spent, row.held, row.unresolved) == (99, 0, 0)


def test_a_refused_call_holds_nothing_anywhere(make_worker: Callable[..., Worker]) -> None:
    """One budget of many says no: whichever were asked before it have given back what they held."""
    worker = make_worker(BLOCK(5, name="narrow"), *(BLOCK(1000, name=f"wide{number}") for number in range(8)))
    assert worker.patient(worker.ask(3)).error is None
    answer = worker.patient(worker.ask(3))
    assert answer.error is not None
    assert answer.error.budget == "narrow"
    assert worker.budgets.keeper.flush(30)
    assert {row.held for row in rows(worker, BudgetPeriod)} == {3}
    assert len(rows(worker, BudgetHold)) == 9
    assert operating_mismatches(worker) == []


def test_the_first_calls_of_a_new_tenant(make_worker: Callable[..., Worker]) -> None:
    """32 first calls of a tenant that nobody has seen make one row, and get what fits."""
    worker = make_worker(BLOCK(LIMIT, per="tenant_id"))
    assert len(in_threads(worker, 32)) == ADMITTED
    assert len(rows(worker, BudgetPeriod)) == 1


def test_a_row_that_turns_up_between_two_statements(postgresql_url: sa.URL) -> None:
    """Where another caller makes a new period's row after ours was not found, and before we look why: there is room."""
    engine = sa.create_engine(postgresql_url)
    Base.metadata.create_all(engine)
    engine.dispose()
    first, second = Worker(postgresql_url, BLOCK(LIMIT)), Worker(postgresql_url, BLOCK(LIMIT))
    answers: list[Any] = []

    def meanwhile(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if not answers and statement.startswith("UPDATE llm_cost_budget_periods") and cursor.rowcount == 0:
            answers.append(None)
            answers.append(second.patient(second.ask(HOLD)))

    sa.event.listen(sa.Engine, "after_cursor_execute", meanwhile)
    try:
        answers.append(first.patient(first.ask(HOLD)))
        assert [answer.error for answer in answers[1:]] == [None, None]
        assert account_row(first).held == 2 * HOLD
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", meanwhile)
        first.close()
        second.close()


def test_calls_in_flight_at_the_edge_of_a_period(make_worker: Callable[..., Worker]) -> None:
    """A call counts in the month in which it began, however late it ends, and the next month begins with nothing."""
    worker = make_worker(BLOCK(10, period="month"))
    old = worker.ask(8, at=datetime(2026, 10, 31, 23, 59, 59, 999999, tzinfo=UTC))
    new = worker.ask(8, at=datetime(2026, 11, 1, tzinfo=UTC))
    assert worker.patient(old).error is None
    assert worker.patient(new).error is None
    worker.settle(new, 5)
    worker.settle(old, 6)
    found = sorted((row.starts_at.month, row.spent, row.held) for row in rows(worker, BudgetPeriod))
    assert found == [(10, 6, 0), (11, 5, 0)]


def test_a_limit_that_is_lowered_with_calls_in_flight(make_worker: Callable[..., Worker]) -> None:
    """Processes with the lower limit admit nothing beyond it, and what is in flight is settled all the same."""
    before, after = make_worker(BLOCK(20)), make_worker(BLOCK(10))
    asked = [before.ask(4) for _ in range(3)]
    for one in asked:
        assert before.patient(one).error is None
    assert after.patient(after.ask(1)).error is not None
    for one in asked:
        after.settle(one, 2)
    assert after.patient(after.ask(4)).error is None
    assert after.patient(after.ask(1)).error is not None
    assert (account_row(after).spent, account_row(after).held) == (6, 4)


def test_each_threshold_is_told_once(make_worker: Callable[..., Worker]) -> None:
    """Four processes' writers cross 80% and all of a limit together: each threshold is told once, and is one row."""
    told: list[Crossing] = []
    budget = {"name": "b", "limit": "100", "period": "day", "where": {"tenant_id": "42"}}
    workers = [make_worker(budget, crossed=told.append) for _ in range(4)]

    def spend(worker: Worker) -> None:
        for _ in range(10):
            worker.settle(worker.call(), 3)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(spend, worker) for worker in workers]:
            future.result()
    for worker in workers:
        assert worker.budgets.keeper.flush(10)
    assert sorted(crossing.threshold for crossing in told) == [Decimal("0.8"), Decimal(1)]
    assert all(crossing.spent >= crossing.limit * crossing.threshold for crossing in told)
    assert len(rows(workers[0], Alert)) == 2
    assert account_row(workers[0]).spent == 120


def test_what_is_unresolved_crosses_a_threshold_too(make_worker: Callable[..., Worker]) -> None:
    """A call whose cost nobody knows may have cost all that was held for it: somebody is told."""
    told: list[Crossing] = []
    worker = make_worker(BLOCK(100, warn_at=[0.5]), crossed=told.append)
    asked = worker.ask(60)
    assert worker.patient(asked).error is None
    worker.settle(asked, None)
    assert worker.budgets.keeper.flush(10)
    assert [(crossing.threshold, crossing.spent) for crossing in told] == [(Decimal("0.5"), 60)]


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_whatever_becomes_of_the_calls(make_worker: Callable[..., Worker], count: int) -> None:
    """Calls that end well, in an error or a timeout, cancelled, cut or not at all leave nothing held, and spent exact."""
    worker = make_worker(BLOCK(9_000_000, hold_seconds=1))
    rng = random.Random(1)
    held = [rng.randrange(1, 50) for _ in range(count)]
    asked = [worker.ask(tokens) for tokens in held]
    ends = [rng.choice(("ok", "refused", "timeout", "cancelled", "cut", "killed")) for _ in asked]
    costs = [Decimal(rng.randrange(1, 5_000_000)).scaleb(-6) for _ in asked]

    def live(number: int) -> None:
        call, end, cost = asked[number], ends[number], costs[number]
        assert worker.patient(call).error is None
        if end == "refused":
            worker.budgets.void(call.call_id)
        elif end in ("timeout", "cancelled"):
            worker.settle(call, None, outcome="error" if end == "timeout" else "interrupted")
        elif end == "cut":
            worker.settle(call, cost, source="stream_partial", outcome="interrupted")
        elif end == "ok":
            worker.settle(call, cost)

    with ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(live, number) for number in range(count)]:
            future.result()
    assert worker.budgets.keeper.flush(60)
    worker.let_expire()
    row = account_row(worker)
    assert row.held == 0
    assert row.spent == sum((cost for cost, end in zip(costs, ends, strict=True) if end in ("ok", "cut")), Decimal(0))
    waiting = [tokens for tokens, end in zip(held, ends, strict=True) if end in ("timeout", "cancelled", "killed")]
    cut = [max(tokens - cost, Decimal(0)) for tokens, cost, end in zip(held, costs, ends, strict=True) if end == "cut"]
    assert row.unresolved == sum(waiting) + sum(cut)
    assert operating_mismatches(worker) == []


def test_killed_with_holds_open(make_worker: Callable[..., Worker], database_url: sa.URL) -> None:
    """A process killed with 32 calls in flight leaves what it held: at its expiry it is unresolved, until it is released."""
    worker = make_worker(BLOCK(1000, hold_seconds=1))
    assert work_in_processes(database_url, 1, "hold_and_die", 1000, 3, 32) == 32
    assert account_row(worker).held + account_row(worker).unresolved == 96
    worker.let_expire()
    row = account_row(worker)
    assert (row.spent, row.held, row.unresolved) == (0, 0, 96)
    assert {hold.state for hold in rows(worker, BudgetHold)} == {"unresolved"}
    worker.budgets.keeper.run(lambda connection: operating.release(connection, None, None, "ann", None))
    assert account_row(worker).unresolved == 0


def test_what_is_shown_is_what_is_enforced(make_worker: Callable[..., Worker]) -> None:
    """Read in the middle of the load, a budget never shows more than its limit, and always what its holds add up to."""
    worker = make_worker(BLOCK(60))
    done = threading.Event()
    seen: list[Decimal] = []

    def look() -> None:
        while not done.is_set():
            (status,) = worker.budgets.statuses()
            assert status.limit == 60
            seen.append(status.used)
            assert operating_mismatches(worker) == []

    def call() -> None:
        for _ in range(4):
            asked = worker.ask(3)
            if worker.patient(asked).error is None:
                worker.settle(asked, 2)

    with ThreadPoolExecutor(9) as pool:
        looking = pool.submit(look)
        for future in [pool.submit(call) for _ in range(8)]:
            future.result()
        done.set()
        looking.result()
    assert seen
    assert max(seen) <= 60
    (status,) = worker.budgets.statuses()
    assert (status.spent, status.held) == (account_row(worker).spent, 0)


def test_repair_makes_it_add_up(make_worker: Callable[..., Worker]) -> None:
    """A row that does not say what its holds add up to is found, set right, and written down."""
    worker = make_worker(BLOCK(100))
    worker.patient(worker.ask(10))
    with worker.engine.begin() as connection:
        connection.execute(sa.update(BudgetPeriod).values(held=Decimal(35), unresolved=Decimal(1)))
    assert len(operating_mismatches(worker)) == 1
    assert len(worker.budgets.keeper.run(lambda connection: operating.repair(connection, "ann"))) == 1
    assert operating_mismatches(worker) == []
    assert (account_row(worker).held, account_row(worker).unresolved) == (10, 0)


def test_old_holds_are_forgotten(make_worker: Callable[..., Worker]) -> None:
    """Holds that are done with are deleted after a week, and what is open or unresolved never is."""
    worker = make_worker(BLOCK(100))
    done, waiting, under_way = worker.ask(1), worker.ask(2), worker.ask(3)
    for asked in (done, waiting, under_way):
        worker.patient(asked)
    worker.settle(done, 1)
    worker.settle(waiting, None)
    with worker.engine.begin() as connection:
        connection.execute(sa.update(BudgetHold).values(expires_at=datetime.now(UTC) - timedelta(days=8)))
    worker.budgets.keeper.run(holds.forget)
    assert {hold.call_id for hold in rows(worker, BudgetHold)} == {waiting.call_id, under_way.call_id}
    worker.budgets.keeper.sweep()
    assert {hold.state for hold in rows(worker, BudgetHold)} == {"unresolved"}


@pytest.mark.parametrize("on_error", ["block", "allow"])
def test_a_commit_whose_answer_is_lost_leaves_no_hold(make_worker: Callable[..., Worker], on_error: str) -> None:
    """The database has the hold and could not say so: refused, the call holds nothing; allowed, what it holds is its own."""
    worker = make_worker(BLOCK(LIMIT, on_error=on_error))
    first, asked = worker.ask(HOLD), worker.ask(HOLD)
    assert worker.patient(first).holds
    assert account_row(worker).held == HOLD  # and nobody is at work any more
    dialect = worker.budgets.keeper._engine.get().dialect
    commit, lost = dialect.do_commit, list[Any]()

    def lose_the_answer(connection: Any) -> None:
        commit(connection)
        if not lost:
            lost.append(connection)
            raise dialect.loaded_dbapi.OperationalError("the connection was lost")

    dialect.do_commit = lose_the_answer  # type: ignore[method-assign]
    answer = worker.budgets.authorise(asked)
    assert lost
    if on_error == "allow":
        assert (answer.error, answer.holds) == (None, True)
        worker.budgets.void(asked.call_id)
    else:
        assert (answer.error and answer.error.stage, answer.holds) == ("unavailable", False)
    assert worker.budgets.keeper.flush(60)
    assert account_row(worker).held == HOLD
    assert [hold.call_id for hold in rows(worker, BudgetHold) if hold.state == "open"] == [first.call_id]
