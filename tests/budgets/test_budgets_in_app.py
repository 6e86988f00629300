"""Budgets in a Flask app: what is declared, what is raised, what is told, and what commands do."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
from budget_apps import BODY, NOTHING, AppMaker, BudgetApp
from flask import request

from flask_llm_cost import BudgetExceededError, ConfigError, LlmCostTracker, signals, tags, track, track_stream
from flask_llm_cost.budgets import enforcement, holds
from flask_llm_cost.budgets.accounts import Subject
from flask_llm_cost.budgets.asking import Ask
from flask_llm_cost.budgets.declaration import parse_budgets
from flask_llm_cost.ledger.models import BudgetHold
from flask_llm_cost.records import new_call_id
from flask_llm_cost.testing import capture_calls
from flask_llm_cost.testing.provider import PlayedProvider

CAP: Any = {"name": "cap", "limit": "1", "period": "day", "per": "tenant_id", "action": "block"}


def chat(provider: PlayedProvider, **changes: Any) -> Any:
    with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        return client.chat.completions.create(**{**BODY, **changes})


def run(app: BudgetApp, *command: str) -> Any:
    return app.flask.test_cli_runner().invoke(args=["llm-cost", *command])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"limit": "5", "period": "day", "action": "stop"},
            "entry 0: action='stop': choose one of 'notify', 'raise', 'block'",
        ),
        ({"limit": "5"}, "entry 0: it has no \"period\"; choose one of 'call'"),
        ({"period": "day"}, 'entry 0: it has no "limit"; give an amount'),
        ({"limit": "-1", "period": "day"}, "entry 0: limit='-1': give an amount of at least 0"),
        ({"limit": "1e9", "period": "day"}, "the largest limit is 9000000"),
        ({"limit": "5", "period": "day", "unit": "euros"}, "unit='euros': choose one of 'cost', 'calls', 'tokens'"),
        ({"limit": "5", "period": "day", "per": "Tenant"}, "give a tag key such as 'tenant_id'"),
        ({"limit": "5", "period": "day", "warn_at": [0]}, "give shares of the limit"),
        ({"limit": "5", "period": "day", "where": {"Model": "x"}}, "'Model' is neither 'provider', 'model' nor a tag key"),
        ({"limit": "5", "period": "day", "limt": "5"}, "'limt' is no field; did you mean 'limit'?"),
        ({"limit": "5", "period": "day", "hold_seconds": 0}, "give seconds"),
        ({"limit": "5", "period": "day", "hold_seconds": "sNaN"}, "hold_seconds='sNaN': give seconds"),
        ({"limit": "5", "period": "day", "allowance": {"medium": 5}}, "some of template, tools, media, context"),
        ("500 a month", "must be a dict"),
    ],
)
def test_a_bad_declaration_stops_start_up(sqlite_app: AppMaker, entry: Any, words: str) -> None:
    """An entry that makes no sense stops start-up, and names the entry, the field, its value and the choices."""
    with pytest.raises(ConfigError) as caught:
        sqlite_app(entry)
    assert words in str(caught.value)
    assert caught.value.key == "LLM_COST_BUDGETS"


def test_two_budgets_of_one_name_stop_start_up(sqlite_app: AppMaker) -> None:
    """Names are what rows and commands go by: a second one is refused, also where it was made up from period and tag."""
    with pytest.raises(ConfigError, match="entry 1 is a second budget 'day'"):
        sqlite_app({"limit": "5", "period": "day"}, {"limit": "7", "period": "day"})


def test_a_budget_without_a_ledger_stops_start_up(sqlite_app: AppMaker) -> None:
    """Where calls are logged and not kept, a cap could not be kept either."""
    with pytest.raises(ConfigError, match="keeps no ledger to count in"):
        sqlite_app(NOTHING, write_mode="log")


def test_an_app_without_budgets_has_none_of_it(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """Without budgets there is no object, no thread and no row of them."""
    app = sqlite_app()
    with app.flask.app_context():
        chat(provider)
        app.costs.check_budget()
    app.flush()
    assert app.flask.extensions["llm_cost"].budgets is None
    assert app.periods() == []


def test_what_is_held_is_settled(make_app: AppMaker, provider: PlayedProvider) -> None:
    """A call that went through the app has spent exactly what the ledger says it cost, and holds nothing."""
    app = make_app(CAP)
    with app.flask.app_context(), tags(tenant_id="42"):
        for _ in range(3):
            chat(provider)
        with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
            list(client.chat.completions.create(stream=True, **BODY))
    app.flush()
    row = app.period()
    assert (row.spent, row.held, row.unresolved, row.scope) == (app.cost(), 0, 0, "tenant_id=42")
    assert row.spent > 0
    assert {hold.state for hold in app.holds()} == {"settled"}


def test_a_refused_call_gives_its_hold_back(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """What the provider answers with an error, and what never reached it, costs nothing and holds nothing."""
    app = sqlite_app(CAP, hosts={**provider.hosts, "127.0.0.1:9": "openai"})
    provider.reply_with("chat/completions", status=400, body={"error": {"message": "no"}})
    with app.flask.app_context(), tags(tenant_id="42"):
        with pytest.raises(openai.BadRequestError):
            chat(provider)
        with pytest.raises(httpx.ConnectError):
            httpx.post("http://127.0.0.1:9/v1/chat/completions", json=BODY, headers={"user-agent": "OpenAI/Python"})
    app.flush()
    rows = app.periods()
    assert [(row.spent, row.held, row.unresolved) for row in rows] == [(0, 0, 0)] * len(rows)
    assert {hold.state for hold in app.holds()} == {"released"}


def test_a_background_response_settles_its_hold(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A response that is made in the background holds until it is fetched, and is settled by whoever fetches it."""
    app = sqlite_app(CAP)
    with app.flask.app_context(), openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        with tags(tenant_id="42"):
            response = client.responses.create(model="gpt-4o", input="hello", background=True, max_output_tokens=50)
        app.flush()
        assert (app.period().spent, app.period().held) == (0, app.open_amount())
        assert app.open_amount() > 0
        for _ in range(20):
            if client.responses.retrieve(response.id).status == "completed":
                break
    app.flush()
    assert (app.period().spent, app.period().held, app.period().unresolved) == (app.cost(), 0, 0)
    assert app.cost() > 0


def test_a_call_alone(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A budget per call refuses one that may cost too much, lets others pass, and keeps nothing of them."""
    app = sqlite_app({"name": "one", "limit": "0.01", "period": "call", "action": "block"})
    with app.flask.app_context():
        chat(provider)
        with pytest.raises(BudgetExceededError, match=r"its limit is \$0.0100 a call, and this call may take"):
            chat(provider, max_tokens=100_000)
    app.flush()
    assert [(row.scope, row.blocked_calls) for row in app.periods()] == [("all", 1)]


def test_the_region_of_the_host_is_held(sqlite_app: AppMaker) -> None:
    """A call to a host whose region is dearer asks for as much more; nothing is sent, so the real host can be asked."""
    app = sqlite_app(NOTHING)
    asked = []
    with app.flask.app_context(), httpx.Client() as client:
        for host in ("api.openai.com", "eu.api.openai.com"):
            with pytest.raises(BudgetExceededError) as caught:
                client.post(f"https://{host}/v1/chat/completions", json={**BODY, "model": "gpt-5.4"})
            asked.append(caught.value.estimate)
    assert asked[1] == asked[0] * Decimal("1.1")


def test_calls_and_tokens(make_app: AppMaker, provider: PlayedProvider) -> None:
    """Budgets of calls and of tokens count in their own units, exactly, and refuse what does not fit."""
    app = make_app(
        {"name": "calls", "limit": "2", "unit": "calls", "period": "hour", "action": "block"},
        {"name": "tokens", "limit": 20_000_000, "unit": "tokens", "period": "month"},
    )
    with app.flask.app_context():
        chat(provider)
        chat(provider)
        with pytest.raises(BudgetExceededError) as caught:
            chat(provider)
    app.flush()
    assert (caught.value.limit, caught.value.spent + caught.value.held) == (2, 2)  # type: ignore[operator]
    found = {status.budget: status for status in app.budgets.statuses()}
    assert found["calls"].spent == 2
    assert found["tokens"].spent == sum(call.total_tokens or 0 for call in app.calls())
    assert found["tokens"].limit == 20_000_000


def test_tags_of_the_request_choose_the_budget(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A budget per tenant blocks by the tags that the request tagger gives, as it does by those of a block."""
    app = sqlite_app({**CAP, "limit": 1, "unit": "calls"})
    app.costs.request_tagger(lambda: {"tenant_id": request.args["tenant"]})

    @app.flask.get("/ask")
    def ask() -> str:
        try:
            chat(provider)
        except BudgetExceededError as error:
            return f"blocked {error.scope}"
        return "answered"

    client = app.flask.test_client()
    answers = [client.get(f"/ask?tenant={tenant}").text for tenant in ("acme", "acme", "beta")]
    assert answers == ["answered", "blocked tenant_id=acme", "answered"]
    app.flush()
    assert len(provider.truth) == 2


def test_without_a_cap_the_model_s_maximum_is_held(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """What the price book says of its answers, times their number; where it says nothing, the configured default."""
    app = sqlite_app(
        {"name": "cap", "limit": 1_000_000, "unit": "tokens", "period": "day", "action": "block"},
        price_overrides={"openai/gpt-4o": {"inherit": True, "max_output": 70_000}, "openai/mine": {"output": "1"}},
        default_max_output=30_000,
    )
    ways: list[dict[str, Any]] = [{}, {"n": 3}, {"model": "mine"}, {"model": "nobody-knows"}, {"max_completion_tokens": 50}]
    with app.flask.app_context():
        for changes in ways:
            chat(provider, **{"max_tokens": openai.omit, **changes})
    app.flush()
    scale = app.budgets.declared[0].scale
    held = [int(hold.amount * scale) for hold in sorted(app.holds(), key=lambda hold: hold.created_at)]
    assert [tokens // 10_000 for tokens in held] == [7, 21, 3, 3, 0]


def test_raise_records_first(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A budget that raises lets the call happen and records it, and the app gets the error itself, sync and async."""
    app = sqlite_app({"name": "loop", "limit": "0.0001", "period": "day", "action": "raise"})

    async def chat_async() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
            await client.chat.completions.create(**BODY)

    with app.flask.app_context():
        with pytest.raises(BudgetExceededError, match="budget 'loop' is used up") as caught:
            chat(provider)
        with pytest.raises(BudgetExceededError):
            asyncio.run(chat_async())
        with pytest.raises(BudgetExceededError):
            httpx.post(f"{provider.openai_url}/chat/completions", json=BODY)
    app.flush()
    assert caught.value.stage == "record"
    assert len(provider.requests) == len(app.calls()) == 3
    assert {call.outcome for call in app.calls()} == {"ok"}
    assert app.period().spent == app.cost()


def test_raise_leaves_the_providers_own_errors_alone(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """Where the provider refuses a call, the app gets that error, although a budget that raises is used up."""
    app = sqlite_app({"name": "loop", "limit": "0.0001", "period": "day", "action": "raise"})
    with app.flask.app_context():
        with pytest.raises(BudgetExceededError):
            chat(provider)
        with pytest.raises(openai.BadRequestError):
            chat(provider, model=5)
        assert httpx.post(f"{provider.openai_url}/chat/completions", json={"model": 5}).status_code == 400
    app.flush()
    assert len(app.calls()) == 1


def test_a_crossed_threshold_is_told_after_the_write(make_app: AppMaker, provider: PlayedProvider) -> None:
    """The signal comes once a threshold, after the rows are there, with the numbers of the row, in an app context."""
    app = make_app({"name": "n", "limit": "0.0001", "period": "day", "warn_at": [0.5, 1, 10]})
    told: list[Mapping[str, Any]] = []

    def receive(sender: Any, **facts: Any) -> None:
        assert sender is app.flask
        assert app.period().spent == facts["spent"]
        told.append(facts)

    with signals.budget_exceeded.connected_to(receive), app.flask.app_context():
        chat(provider)
        assert app.costs.flush(20)
        chat(provider)
        assert app.costs.flush(20)
    assert sorted((facts["budget"], facts["threshold"]) for facts in told) == [("n", Decimal("0.5")), ("n", 1)]
    assert {(facts["scope"], facts["limit"]) for facts in told} == {("all", Decimal("0.0001"))}


def test_each_tenant_that_crosses_is_told_of(make_app: AppMaker, provider: PlayedProvider) -> None:
    """Several tenants cross a threshold in one write, each by several calls: the signal comes once for each of them."""
    app = make_app({"name": "n", "limit": "2", "period": "day", "unit": "calls", "per": "tenant_id", "warn_at": [1]})
    told: list[str] = []

    def receive(sender: Any, **facts: Any) -> None:
        told.append(facts["scope"])

    with signals.budget_exceeded.connected_to(receive), app.flask.app_context():
        for n in range(12):
            track("openai", model="gpt-4o", usage={"input": 1}, tags={"tenant_id": str(n % 4)})
        track("openai", model="gpt-4o", usage={"input": 1}, tags={"tenant_id": "well below"})
        assert app.costs.flush(20)
    assert sorted(told) == [f"tenant_id={n}" for n in range(4)]


def test_amounts_in_the_budgets_currency(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """Commands, doctor and the error say euros where a budget is in euros; a bill in dollars is unresolved, not spent."""
    app = sqlite_app({"name": "euros", "limit": "0.002", "period": "day", "action": "block", "currency": "EUR"})
    with app.flask.app_context():
        chat(provider)
        assert app.costs.flush(20)
        with pytest.raises(
            BudgetExceededError, match=r"its limit is €0\.00200 a day, of which €0\.00 are spent and €0\.00138 held"
        ):
            chat(provider)
    amount = "€0.0014"
    assert f"€0.0000 spent, €0.0000 held, {amount} unresolved, of €0.0020" in run(app, "budgets").output
    assert "block at €0.002 per day" in run(app, "doctor").output
    assert run(app, "budgets", "--release").output == f"euros (all): {amount} of 1 call released\n"
    assert "may use €5.0000" in run(app, "budgets", "lift", "euros", "--to", "5").output


@pytest.mark.parametrize("computed", [False, True])
def test_a_hold_that_expires_crosses_thresholds(make_app: AppMaker, computed: bool) -> None:
    """What is unresolved from now on is told of, once, as it keeps calls out: by a declared limit and by the app's own."""
    costs = LlmCostTracker()
    if computed:

        @costs.budget_limit("n")
        def limit(scope: Mapping[str, str]) -> str:
            return "10"

    budget = {"name": "n", "limit": "10", "period": "day", "unit": "calls", "action": "block", "warn_at": [0.5]}
    app = make_app(budget, costs=costs)
    at = datetime.now(UTC)
    subject = Subject("openai", ("gpt-4o",), {}, at)
    told: list[tuple[str, Decimal, Decimal]] = []

    def receive(sender: Any, **facts: Any) -> None:
        told.append((facts["scope"], facts["spent"], facts["limit"]))

    with signals.budget_exceeded.connected_to(receive):
        for calls in (4, 1, 1):
            for _ in range(calls):
                ask = Ask(new_call_id(), subject, "chat.completions", b"{}", 2, app.budgets.blocking(subject))
                assert app.budgets.authorise(ask).error is None
            with app.engine.begin() as connection:
                past = at - timedelta(seconds=1)
                connection.execute(sa.update(BudgetHold).values(expires_at=past).where(BudgetHold.state == "open"))
            app.budgets.limits._answers.clear()
            app.budgets.keeper.sweep()
            app.flush()
    assert told == [("all", 5, 10)]


def test_a_limit_that_the_app_computes(make_app: AppMaker, provider: PlayedProvider) -> None:
    """A tenant's plan decides: the function gets the scope, in an app context; None is the declared limit."""
    costs = LlmCostTracker()
    asked: list[Mapping[str, str]] = []

    @costs.budget_limit("cap")
    def limit(scope: Mapping[str, str]) -> str | None:
        asked.append(scope)
        return {"small": "0.000001", "large": "5"}.get(scope["tenant_id"])

    app = make_app(CAP, costs=costs)
    with app.flask.app_context():
        for tenant in ("large", "other"):
            with tags(tenant_id=tenant):
                chat(provider)
        with tags(tenant_id="small"), pytest.raises(BudgetExceededError) as caught:
            chat(provider)
    app.flush()
    assert caught.value.limit == Decimal("0.000001")
    assert {status.scope: status.limit for status in app.budgets.statuses()} == {
        "tenant_id=small": Decimal("0.000001"),
        "tenant_id=large": 5,
        "tenant_id=other": 1,
    }
    assert {"tenant_id": "large"} in asked


def test_a_limit_function_that_raises(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """Where the app cannot say the limit, a budget that blocks is closed, and the error says whose fault it is."""
    costs = LlmCostTracker()

    @costs.budget_limit("cap")
    def limit(scope: Mapping[str, str]) -> str:
        raise LookupError(scope)

    app = sqlite_app({"limit": "5", "period": "day", "action": "block"}, CAP, costs=costs)
    with app.flask.app_context(), tags(tenant_id="42"):
        for ask in (lambda: chat(provider), app.costs.check_budget):
            with pytest.raises(BudgetExceededError) as caught:
                ask()
            assert (caught.value.budget, caught.value.stage) == ("cap", "limit")
            assert str(caught.value) == (
                "budget 'cap' of tenant_id=42 blocks the call: its limit is not known, and \"on_error\" of this budget is "
                '"block": look at the function of @costs.budget_limit("cap") (it raised LookupError)'
            )
    assert provider.requests == []


def test_a_limit_that_is_not_known_lets_the_others_judge(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """Where a function that fails lets calls pass, other budgets hold and refuse as ever."""
    costs = LlmCostTracker()

    @costs.budget_limit("cap")
    def limit(scope: Mapping[str, str]) -> str:
        raise LookupError(scope)

    two: Any = {"name": "two", "limit": "2", "unit": "calls", "period": "day", "action": "block"}
    app = sqlite_app({**CAP, "on_error": "allow"}, two, costs=costs)
    with app.flask.app_context(), tags(tenant_id="42"):
        chat(provider)
        chat(provider)
        with pytest.raises(BudgetExceededError, match="budget 'two' has no room"):
            chat(provider)
    app.flush()
    assert len(provider.requests) == 2


def test_a_limit_function_that_is_slow(
    sqlite_app: AppMaker, provider: PlayedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call waits so long and no longer for the app's function, and the error does not blame the database."""
    monkeypatch.setattr(enforcement, "PATIENCE_SECONDS", 0.05)
    costs, answering = LlmCostTracker(), threading.Event()

    @costs.budget_limit("cap")
    def limit(scope: Mapping[str, str]) -> str:
        answering.wait(30)
        return "5"

    app = sqlite_app(CAP, costs=costs)
    with app.flask.app_context(), tags(tenant_id="42"):
        with pytest.raises(BudgetExceededError, match="it did not answer in time") as caught:
            chat(provider)
        answering.set()
    assert caught.value.stage == "limit"
    app.flush()
    assert provider.requests == []
    assert app.open_amount() == 0


@pytest.mark.parametrize(("unpriced", "sent"), [("dearest", 1), ("block", 0), ("allow", 1)])
def test_a_model_without_a_price(sqlite_app: AppMaker, provider: PlayedProvider, unpriced: str, sent: int) -> None:
    """It is held at the dearest price of its provider, blocked, or let through, as declared; each is counted."""
    app = sqlite_app({"name": "u", "limit": "5", "period": "day", "action": "block", "unpriced": unpriced})
    with app.flask.app_context():
        if sent:
            chat(provider, model="gpt-of-tomorrow")
        else:
            with pytest.raises(BudgetExceededError, match="openai/gpt-of-tomorrow has no known price") as caught:
                chat(provider, model="gpt-of-tomorrow")
            assert caught.value.stage == "unpriced"
    assert len(provider.requests) == sent
    app.flush()
    assert len(app.holds()) == (unpriced == "dearest")
    app.budgets.keeper.sweep()
    assert app.budgets.keeper.counted("budget_unpriced") > 0


def test_an_open_write_of_the_app(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """On SQLite, an open write of the same request refuses the call and says what to do; or lets it pass, as declared."""
    app, lenient = sqlite_app(CAP), sqlite_app({**CAP, "on_busy": "allow"})
    for made in (app, lenient):
        with made.flask.app_context(), tags(tenant_id="42"), made.engine.connect() as connection:
            connection.execute(sa.text("UPDATE llm_cost_counters SET value = value"))
            if made is app:
                with pytest.raises(BudgetExceededError, match="commit before calling the model") as caught:
                    chat(provider)
                assert caught.value.stage == "busy"
            else:
                chat(provider)
    assert len(provider.requests) == 1


def test_a_database_that_is_away(
    make_app: AppMaker, provider: PlayedProvider, database_server: Any, database_url: sa.URL
) -> None:
    """A budget that blocks fails closed, one that notifies does not stop anything, and what was refused is counted later."""
    app = make_app(CAP)
    notifying = make_app({"limit": "1", "period": "day"})
    with app.flask.app_context(), tags(tenant_id="42"):
        chat(provider)
    app.flush()
    app.engine.dispose()
    with database_server.down(database_url):
        with app.flask.app_context(), tags(tenant_id="42"), pytest.raises(BudgetExceededError) as caught:
            chat(provider)
        with notifying.flask.app_context():
            chat(provider)
    assert caught.value.stage in ("unavailable", "busy", "schema")
    assert len(provider.requests) == 2
    app.flush()
    with app.flask.app_context():
        app.budgets.keeper.sweep()
        assert app.budgets.keeper.counted("budget_unavailable") == 1


def test_a_database_that_does_not_answer(
    sqlite_app: AppMaker, provider: PlayedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call waits so long and no longer for a database that hangs; what was taken for it too late is given back."""
    app = sqlite_app(CAP)
    with app.flask.app_context(), tags(tenant_id="42"):
        chat(provider)
        app.costs.flush(20)
        monkeypatch.setattr(enforcement, "PATIENCE_SECONDS", 0.05)
        answering = threading.Event()
        take = holds.take

        def hang(*arguments: Any) -> Any:
            answering.wait(30)
            return take(*arguments)

        monkeypatch.setattr(holds, "take", hang)
        with pytest.raises(BudgetExceededError, match="it did not answer in time"):
            chat(provider)
        answering.set()
    app.flush()
    assert len(provider.requests) == 1
    # Whichever comes first gives it back: whoever took it too late, or the record of the blocked call, which cost nothing.
    assert {hold.state for hold in app.holds()} <= {"released", "settled"}
    assert (app.period().spent, app.period().held, app.period().unresolved) == (app.cost(), 0, 0)


def test_the_event_loop_goes_on(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """While a budget waits for the database, other tasks of the loop run."""
    app = sqlite_app(CAP)
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def call() -> None:
        beating = asyncio.create_task(beat())
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
            await asyncio.sleep(0.01)
            before = len(beats)
            with pytest.raises(BudgetExceededError):
                await client.chat.completions.create(**BODY)
            assert len(beats) - before > 5
        beating.cancel()

    with app.flask.app_context(), tags(tenant_id="42"), app.engine.connect() as connection:
        connection.execute(sa.text("UPDATE llm_cost_counters SET value = value"))
        asyncio.run(call())


def test_a_cancelled_call_gives_its_hold_back(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A task that is cancelled while it asks holds nothing afterwards."""
    app = sqlite_app(CAP)

    async def call() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
            task = asyncio.create_task(client.chat.completions.create(**BODY))
            await asyncio.sleep(0)
            while not app.budgets.keeper.desk._threads:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with app.flask.app_context(), tags(tenant_id="42"):
        asyncio.run(call())
    app.flush()
    assert app.open_amount() == 0
    assert all((row.held, row.spent) == (0, 0) for row in app.periods())


def test_calls_handed_in(sqlite_app: AppMaker) -> None:
    """track and track_stream count like any call, and raise where they are told to: after recording, and before a stream."""
    app = sqlite_app({"name": "hand", "limit": "1", "period": "day", "action": "raise"})
    with app.flask.app_context():
        track("openai", model="gpt-4o", usage={"output": 1000})
        app.costs.check_budget()
        track("openai", model="gpt-4o", billed="2")
        with pytest.raises(BudgetExceededError) as caught:
            track("openai", model="gpt-4o", billed="3", enforce_budget=True)
        assert caught.value.stage == "record"
        with pytest.raises(BudgetExceededError) as caught, track_stream("openai", enforce_budget=True):
            pytest.fail("it was entered")
        assert caught.value.stage == "check"
        with pytest.raises(BudgetExceededError, match=r"budget 'hand' is used up: its limit is \$1\.00 a day"):
            app.costs.check_budget()
    app.flush()
    assert len(app.calls()) == 3
    assert app.period().spent == app.cost() == Decimal("5.01")


def test_one_call_that_cost_too_much(make_app: AppMaker, provider: PlayedProvider) -> None:
    """A limit per call that raises does so after each call that cost more, by its recorded cost, and after no other."""
    entry: Any = {"name": "one", "limit": "0.0005", "period": "call", "action": "raise", "warn_at": []}
    app = make_app(entry, {**entry, "name": "few", "limit": "50000", "unit": "tokens"})
    usage = {"prompt_tokens": 100, "completion_tokens": 25, "total_tokens": 125}  # exactly what a call may cost
    message = {"role": "assistant", "content": "hi"}
    reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o", "usage": usage,
             "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}  # fmt: skip
    with app.flask.app_context():
        provider.reply_with("chat/completions", body=reply)
        chat(provider)
        provider.reply_with("chat/completions", body={**reply, "usage": {**usage, "completion_tokens": 26}})
        with pytest.raises(BudgetExceededError) as caught:
            chat(provider)
        assert (caught.value.budget, caught.value.stage, caught.value.limit) == ("one", "record", Decimal("0.0005"))
        assert caught.value.spent == Decimal("0.00051")
        assert str(caught.value) == ("budget 'one' is passed: its limit is $0.000500 a call, and this call took $0.000510")
        track("openai", model="gpt-4o", usage={"output": 50}, enforce_budget=True)
        with pytest.raises(BudgetExceededError, match="this call took"):
            track("openai", model="gpt-4o", usage={"output": 51}, enforce_budget=True)
        with pytest.raises(BudgetExceededError, match=r"'few' is passed: its limit is 50000 tokens a call"):
            track("openai", model="gpt-4o", usage={"input": 60000}, billed="0.0001", enforce_budget=True)
        track("openai", model="gpt-4o", usage={"output": 51})
        app.costs.check_budget()
    app.flush()
    assert len(app.calls()) == 6


def test_what_may_be_anybodys_is_not_stopped(sqlite_app: AppMaker) -> None:
    """A used-up budget stops what names a model, on every host, and nothing whose path only looks like a call's."""
    app = sqlite_app(NOTHING)
    reply = httpx.MockTransport(lambda request: httpx.Response(200, json={"ok": True}))
    with app.flask.app_context(), httpx.Client(transport=reply) as client:
        for path in ("messages", "v1/embeddings", "rerank", "v1/chat", "responses", "completions"):
            assert client.post(f"https://desk.example/{path}", json={"text": "hello"}).json() == {"ok": True}
            with pytest.raises(BudgetExceededError):
                client.post(f"https://desk.example/{path}", json={"model": "gpt-4o", "text": "hello"})
        with pytest.raises(BudgetExceededError):
            client.post("https://api.openai.com/v1/responses", json={"prompt": {"id": "stored"}})
    app.flush()
    assert len(app.calls()) == 7


def test_captured_calls_ask_nobody(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A test that captures calls needs no database, so no budget is asked either."""
    app = sqlite_app(NOTHING)
    with app.flask.app_context(), capture_calls() as calls:
        chat(provider)
    assert len(calls) == 1
    assert app.periods() == []


@pytest.fixture
def used(sqlite_app: AppMaker, provider: PlayedProvider) -> BudgetApp:
    """An app one of whose tenants has used up its cap, and one has not."""
    app = sqlite_app({**CAP, "limit": "0.0015"}, {"name": "all", "limit": "10", "period": "month"})
    with app.flask.app_context():
        for tenant, times in (("42", 3), ("7", 1)):
            for _ in range(times):
                with tags(tenant_id=tenant):
                    try:
                        chat(provider)
                    except BudgetExceededError:
                        continue
                    finally:
                        app.costs.flush(20)
    return app


def test_the_command_lists(used: BudgetApp) -> None:
    """Each budget and scope with what is spent, held, the limit and what was blocked; JSON has the exact amounts."""
    text = run(used, "budgets").output
    assert "cap (tenant_id=42, per day, block)" in text
    assert "calls blocked" in text
    rows = json.loads(run(used, "budgets", "--format", "json").output)
    found = {(row["budget"], row["scope"]): row for row in rows}
    assert set(found) == {("cap", "tenant_id=42"), ("cap", "tenant_id=7"), ("all", "all")}
    assert Decimal(found["all", "all"]["spent"]) == used.cost()
    assert run(used, "budgets", "--check").exit_code == 0
    with used.engine.begin() as connection:
        connection.execute(sa.text("UPDATE llm_cost_budget_periods SET spent = limit_amount WHERE scope = 'tenant_id=7'"))
    assert run(used, "budgets", "--check").exit_code == 1
    assert run(used, "budgets", "--check", "--scope", "tenant_id=42").exit_code == 0


def test_all_scopes_are_checked(make_app: AppMaker) -> None:
    """However many use more, one that has used up a limit of its own fails the check and is first; others are counted."""
    costs = LlmCostTracker()

    @costs.budget_limit("cap")
    def limit(scope: Mapping[str, str]) -> str:
        return "1" if scope["tenant_id"] == "small" else "100"

    app = make_app(CAP, {"name": "none", "limit": "0", "period": "month"}, costs=costs)
    with app.flask.app_context():
        for number in range(205):
            track("openai", model="gpt-4o", billed="2", tags={"tenant_id": f"t{number}"})
        assert run(app, "budgets", "--check", "--name", "cap").exit_code == 0
        track("openai", model="gpt-4o", billed="1", tags={"tenant_id": "small"})
        assert costs.flush(20)
    result = run(app, "budgets", "--check", "--name", "cap")
    assert result.exit_code == 1
    assert result.output.startswith("cap (tenant_id=small, per day, block)")
    assert result.output.endswith("\nand 6 more that are used less; --format json has them all\n")
    assert len(json.loads(run(app, "budgets", "--format", "json").output)) == 207
    assert {status.scope for status in app.budgets.statuses(most=1)} == {"tenant_id=small", "all"}
    assert app.budgets.statuses()[-1].scope != "all"  # a limit of nothing is used up


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--check", "--name", "nope"], "there is no budget 'nope'; there are: cap, all"),
        (["--release", "--name", "nope"], "there is no budget 'nope'; there are: cap, all"),
        (["--check", "--scope", "tenant=42"], "no budget is per tenant; give --scope tenant_id="),
        (["--release", "--scope", "tenant=42"], "no budget is per tenant; give --scope tenant_id="),
        (["--name", "all", "--scope", "tenant_id=42"], "budget 'all' is not per tenant_id; leave --scope out"),
        (["--scope", "42"], "'42' is no tag"),
    ],
)
def test_a_slip_in_an_option_is_told(used: BudgetApp, arguments: list[str], words: str) -> None:
    """What is asked for and cannot be there is an error that says what can; a check does not pass by it."""
    result = run(used, "budgets", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_a_budget_whose_function_is_not_there(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A limit that only a function says is no licence where that was never registered: calls, check and lift say so."""
    missing: Any = {"name": "cap", "limit": None, "period": "day", "action": "block"}
    app = sqlite_app(missing)
    with app.flask.app_context():
        for ask in (lambda: chat(provider), app.costs.check_budget):
            with pytest.raises(BudgetExceededError, match="it is not registered"):
                ask()
    result = run(app, "budgets", "--check")
    assert result.exit_code == 1
    assert "cap has no limit; declare one, or register @costs.budget_limit" in result.output
    result = run(app, "budgets", "lift", "cap", "--to", "5")
    assert result.exit_code == 1
    assert "budget 'cap' has no limit to lift" in result.output
    with sqlite_app({**missing, "on_error": "allow"}).flask.app_context():
        chat(provider)
    costs = LlmCostTracker()
    costs.budget_limit("cap")(lambda scope: None)
    app = sqlite_app(missing, costs=costs)
    with app.flask.app_context():
        chat(provider)
    assert run(app, "budgets", "--check").exit_code == 0
    assert len(provider.requests) == 2


def test_the_command_explains(used: BudgetApp) -> None:
    """Which budgets apply to a tag, which do not, and why."""
    text = run(used, "budgets", "explain", "--tag", "tenant_id=42").output
    assert "cap (block, per day) applies, to tenant_id=42: it has a limit per tenant_id" in text
    assert "all (notify, per month) applies, to all" in text
    text = run(used, "budgets", "explain", "--tag", "user_id=1").output
    assert "cap (block, per day) does not apply: it has a limit per tenant_id, and the call has no such tag" in text
    assert run(used, "budgets", "explain", "--tag", "tenant").exit_code == 2


def test_the_command_lifts(used: BudgetApp, provider: PlayedProvider) -> None:
    """A lift lets the next call pass in a process that runs, is shown, and is written down with who and why."""
    with used.flask.app_context(), tags(tenant_id="42"), pytest.raises(BudgetExceededError):
        chat(provider)
    result = run(
        used, "budgets", "lift", "cap", "--scope", "tenant_id=42", "--to", "50", "--until", "23:59", "--reason", "x"
    )
    assert result.exit_code == 0, result.output
    assert "cap (tenant_id=42) may use $50.0000 until" in result.output
    with used.flask.app_context(), tags(tenant_id="42"):
        chat(provider)
    assert "of $50.0000" in run(used, "budgets", "--scope", "tenant_id=42").output
    with used.engine.connect() as connection:
        query = "SELECT budget, scope, reason, actor FROM llm_cost_adjustments WHERE kind = 'lift'"
        row = connection.execute(sa.text(query)).one()
    assert (row.budget, row.scope, row.reason) == ("cap", "tenant_id=42", "x")
    assert row.actor


def test_a_lift_of_what_one_call_may_cost(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """It lets the next call pass that costs no more, in a process that runs, and no other."""
    app = sqlite_app({"name": "one", "limit": "0.0005", "period": "call", "action": "block"})
    with app.flask.app_context(), pytest.raises(BudgetExceededError, match=r"its limit is \$0.000500 a call"):
        chat(provider)
    assert run(app, "budgets", "lift", "one", "--to", "0.001").exit_code == 0
    with app.flask.app_context(), pytest.raises(BudgetExceededError, match=r"its limit is \$0.0010* a call"):
        chat(provider)
    assert run(app, "budgets", "lift", "one", "--to", "5").exit_code == 0
    with app.flask.app_context():
        chat(provider)
    app.flush()
    assert [call.outcome for call in app.calls()] == ["blocked", "blocked", "ok"]


def test_thresholds_are_shares_of_a_lifted_limit(make_app: AppMaker) -> None:
    """The signal and its row go by the limit that is enforced: a lift is one, until it ends."""
    app = make_app({**CAP, "limit": "25"}, {"name": "one", "limit": "4", "period": "call", "warn_at": [1]})
    assert run(app, "budgets", "lift", "cap", "--scope", "tenant_id=42", "--to", "50", "--until", "23:59").exit_code == 0
    assert run(app, "budgets", "lift", "one", "--to", "20").exit_code == 0
    told: list[tuple[str, Decimal, Decimal, Decimal]] = []

    def receive(sender: Any, **facts: Any) -> None:
        told.append((facts["budget"], facts["threshold"], facts["spent"], facts["limit"]))

    def spend(dollars: str) -> list[tuple[str, Decimal, Decimal, Decimal]]:
        told.clear()
        track("openai", model="gpt-4o", billed=dollars, tags={"tenant_id": "42"})
        assert app.costs.flush(20)
        return sorted(told)

    with signals.budget_exceeded.connected_to(receive), app.flask.app_context():
        assert spend("19") == []
        assert spend("19") == []
        assert spend("4") == [("cap", Decimal("0.8"), 42, 50)]
        with app.engine.begin() as connection:
            connection.execute(sa.text("UPDATE llm_cost_adjustments SET until = '2020-01-01 00:00:00'"))
        assert spend("5") == [("cap", 1, 47, 25), ("one", 1, 5, 4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope", "--to", "5"], "there is no budget 'nope'; there are: cap, all"),
        (["cap", "--to", "5"], "budget 'cap' is per tenant_id; give --scope tenant_id="),
        (["all", "--scope", "tenant_id=42", "--to", "5"], "has one limit in all; leave --scope out"),
        (["all", "--to", "5"], "the limit is $10.0000 already"),
        (["all", "--to", "much"], "'much' is no limit: give an amount"),
        (["all", "--to", "10000000"], "'10000000' is no limit: the largest limit is 9000000"),
        (["all", "--to", "50", "--until", "soon"], "'soon' is no time"),
        (["all", "--to", "50", "--until", "2020-01-01"], "2020-01-01 00:00 is over"),
        (["all", "--to", "50", "--until", "9999-12-31T23:59-05:00"], "is no time; write 18:00"),
    ],
)
def test_a_lift_that_makes_no_sense(used: BudgetApp, arguments: list[str], words: str) -> None:
    """It is refused, and says what would be right."""
    result = run(used, "budgets", "lift", *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.output


def test_the_command_releases(used: BudgetApp, provider: PlayedProvider) -> None:
    """What is unresolved is shown, and no longer counts once it is released, of that scope only; who did it is on record."""
    run(used, "budgets", "lift", "cap", "--scope", "tenant_id=7", "--to", "50")
    message = {"role": "assistant", "content": "hi"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o", "choices": choices}
    provider.reply_with("chat/completions", body=reply)  # without usage: nobody knows what it cost
    with used.flask.app_context(), tags(tenant_id="7"):
        chat(provider)
    used.flush()

    def unresolved() -> Decimal:
        return sum((row.unresolved for row in used.periods()), Decimal(0))

    amount = unresolved()
    assert amount > 0
    assert f"${amount:,.4f} unresolved" in run(used, "budgets", "--scope", "tenant_id=7").output
    for elsewhere in (["--scope", "tenant_id=42"], ["--name", "all"]):
        assert run(used, "budgets", "--release", *elsewhere).output == "nothing is unresolved\n"
    assert unresolved() == amount
    result = run(used, "budgets", "--release", "--name", "cap", "--scope", "tenant_id=7")
    assert result.output == f"cap (tenant_id=7): ${amount:,.4f} of 1 call released\n"
    assert (result.exit_code, unresolved()) == (0, 0)
    assert run(used, "budgets", "--release").output == "nothing is unresolved\n"
    with used.engine.connect() as connection:
        query = "SELECT budget, scope, actor FROM llm_cost_adjustments WHERE kind = 'release'"
        row = connection.execute(sa.text(query)).one()
    assert (row.budget, row.scope, bool(row.actor)) == ("cap", "tenant_id=7", True)


def test_doctor_and_repair(used: BudgetApp) -> None:
    """Doctor finds an account that does not add up, and the command that it names sets it right."""
    with used.engine.begin() as connection:
        connection.execute(sa.text("UPDATE llm_cost_budget_periods SET held = 5 WHERE scope = 'all'"))
    text = run(used, "doctor").output
    assert "1 account does not say what its holds add up to; run 'flask llm-cost budgets --repair'" in text
    repaired = run(used, "budgets", "--repair").output
    assert "all (all) since" in repaired
    assert "1 account did not add up" in repaired
    assert "every account says what its holds add up to" in run(used, "doctor").output
    assert "every account adds up" in run(used, "budgets", "--repair").output


def test_filters_decide_what_counts() -> None:
    """Provider, model and tags are filters with patterns; what is not known yet is not let through."""
    from flask_llm_cost.budgets.accounts import Subject, judge

    (budget,) = parse_budgets(
        [{"limit": "1", "period": "day", "where": {"provider": "openai", "model": ["gpt-4o*", "o3"], "feature": "chat"}}]
    )
    now = datetime.now(UTC)
    good = Subject("openai", ("gpt-4o-mini",), {"feature": "chat"}, now)
    assert judge(budget, good).scope == "all"
    for wrong in (
        Subject("azure", ("gpt-4o",), {"feature": "chat"}, now),
        Subject("openai", ("gpt-4",), {"feature": "chat"}, now),
        Subject("openai", ("gpt-4o",), {}, now),
        Subject(None, (), {"feature": "chat"}, now),
    ):
        assert judge(budget, wrong).scope is None
    assert judge(budget, Subject("openai", ("gpt-4",), {"feature": "chat"}, now)).why == (
        "it is for model 'gpt-4o*' or 'o3' only, and model is 'gpt-4'"
    )


@pytest.mark.parametrize("value", ["chat[beta]", "chat?", "[a-z]", "!", "chat]"])
def test_a_filter_takes_every_character_but_the_star_for_itself(value: str) -> None:
    """A feature that is called ``chat[beta]`` is filtered by that name, and so is no other."""
    from flask_llm_cost.budgets.accounts import Subject, judge

    def applies(pattern: str, feature: str) -> bool:
        (budget,) = parse_budgets([{"limit": "1", "period": "day", "where": {"feature": pattern}}])
        return judge(budget, Subject("openai", (), {"feature": feature}, datetime.now(UTC))).scope == "all"

    assert applies(value, value)
    assert applies(f"{value}*", f"{value} 2")
    assert not any(applies(value, other) for other in ("chatb", "chats", "a"))
