"""The tags of an adapter or transport count for budgets: they are taken before anything is sent, wherever it sits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import httpx2
import openai
import pytest
import requests
import sqlalchemy as sa
from budget_apps import BODY, AppMaker, BudgetApp
from requests.adapters import BaseAdapter

from flask_llm_cost import BudgetExceededError, tags
from flask_llm_cost.budgets import holds
from flask_llm_cost.capture.httpx import AsyncLlmCostTransport, LlmCostTransport
from flask_llm_cost.capture.requests import LlmCostAdapter  # type: ignore[attr-defined]  # made on demand
from flask_llm_cost.testing.provider import PlayedProvider

#: One call for each feature.
ONE_EACH: Any = {"name": "one", "limit": "1", "unit": "calls", "period": "day", "per": "feature", "action": "block"}
IMPORT: Any = {"feature": "import"}

#: Sends one call with a transport's tags; and with another transport or adapter around that one, where that is asked for.
Way = Callable[[PlayedProvider, Any, bool], None]


class Around(httpx.BaseTransport, httpx2.BaseTransport):
    """A transport of the app's own, which tries once more whatever goes wrong."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def handle_request(self, request: Any) -> Any:
        try:
            return self.inner.handle_request(request)
        except Exception:
            return self.inner.handle_request(request)

    def close(self) -> None:
        self.inner.close()


class AsyncAround(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def handle_async_request(self, request: Any) -> Any:
        try:
            return await self.inner.handle_async_request(request)
        except Exception:
            return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


class AroundAdapter(BaseAdapter):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.inner.send(request, *args, **kwargs)
        except Exception:
            return self.inner.send(request, *args, **kwargs)

    def close(self) -> None:
        self.inner.close()


def sync(module: Any) -> Way:
    def send(provider: PlayedProvider, carried: Any, wrapped: bool) -> None:
        transport = LlmCostTransport(tags=carried)
        with module.Client(transport=Around(transport) if wrapped else transport) as client:
            assert client.post(f"{provider.openai_url}/chat/completions", json=BODY).status_code == 200

    return send


def in_a_loop(module: Any) -> Way:
    def send(provider: PlayedProvider, carried: Any, wrapped: bool) -> None:
        async def call() -> None:
            transport = AsyncLlmCostTransport(tags=carried)
            async with module.AsyncClient(transport=AsyncAround(transport) if wrapped else transport) as client:
                assert (await client.post(f"{provider.openai_url}/chat/completions", json=BODY)).status_code == 200

        asyncio.run(call())

    return send


def with_requests(provider: PlayedProvider, carried: Any, wrapped: bool) -> None:
    adapter: Any = LlmCostAdapter(tags=carried)
    with requests.Session() as session:
        session.mount("http://", AroundAdapter(adapter) if wrapped else adapter)
        assert session.post(f"{provider.openai_url}/chat/completions", json=BODY).status_code == 200


def with_the_sdk(provider: PlayedProvider, carried: Any, wrapped: bool) -> None:
    transport = LlmCostTransport(tags=carried)
    http_client = httpx2.Client(transport=Around(transport) if wrapped else transport)
    with openai.OpenAI(base_url=provider.openai_url, api_key="test", http_client=http_client) as client:
        client.chat.completions.create(**BODY)


WAYS: dict[str, Way] = {
    "httpx": sync(httpx),
    "httpx2": sync(httpx2),
    "httpx_async": in_a_loop(httpx),
    "httpx2_async": in_a_loop(httpx2),
    "requests": with_requests,
    "openai": with_the_sdk,
}


def standing(app: BudgetApp) -> dict[str, tuple[int, int]]:
    """Calls spent and held, by scope, once all is written; no hold is open then."""
    app.flush()
    assert app.open_amount() == 0
    return {row.scope: (int(row.spent * 1_000_000), int(row.held * 1_000_000)) for row in app.periods()}


@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "wrapped"])
@pytest.mark.parametrize("name", WAYS)
def test_what_the_transport_adds_chooses_the_account(
    sqlite_app: AppMaker, provider: PlayedProvider, name: str, wrapped: bool
) -> None:
    """A call counts where its transport's tags put it: the second of that feature is refused, and nothing of it is sent."""
    app = sqlite_app(ONE_EACH)
    with app.flask.app_context():
        WAYS[name](provider, IMPORT, wrapped)
        with pytest.raises(BudgetExceededError) as caught:
            WAYS[name](provider, IMPORT, wrapped)
    assert (caught.value.scope, caught.value.stage) == ("feature=import", "admit")
    assert len(provider.requests) == 1
    assert standing(app) == {"feature=import": (1, 0)}
    blocked = [call for call in app.calls() if call.outcome == "blocked"]
    assert len(app.calls()) == 1 + len(blocked)
    assert blocked


@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "wrapped"])
def test_a_call_that_turns_out_to_be_elsewheres(make_app: AppMaker, provider: PlayedProvider, wrapped: bool) -> None:
    """Where the transport's tags replace those that a call had before, nothing is held or spent where it was first put."""
    app = make_app(
        {**ONE_EACH, "limit": "2"}, {**ONE_EACH, "name": "all", "limit": "9", "per": None}, default_tags={"feature": "web"}
    )
    with app.flask.app_context():
        for name in ("httpx", "requests"):
            WAYS[name](provider, IMPORT, wrapped)
            app.flush()
        with pytest.raises(BudgetExceededError, match="feature=import"):
            WAYS["httpx2_async"](provider, IMPORT, wrapped)
    found = standing(app)
    assert found.pop("feature=web", (0, 0)) == (0, 0)
    assert found == {"feature=import": (2, 0), "all": (2, 0)}
    assert len(provider.requests) == 2


def test_an_account_that_is_not_its_own_does_not_stop_it(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """The transport is looked for before budgets are asked: what is used up for others lets this call pass."""
    app = sqlite_app(ONE_EACH, default_tags={"feature": "web"})
    url = f"{provider.openai_url}/chat/completions"
    with app.flask.app_context():
        httpx.post(url, json=BODY)
        with pytest.raises(BudgetExceededError, match="feature=web"):
            httpx.post(url, json=BODY)
        for name in WAYS:
            WAYS[name](provider, {"feature": name}, False)
    assert standing(app) == {f"feature={name}": (1, 0) for name in ("web", *WAYS)}


@pytest.mark.parametrize("name", WAYS)
def test_nothing_is_asked_twice(
    sqlite_app: AppMaker, provider: PlayedProvider, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a transport adds tags, the same ones, or none: a call asks the database once, and asks for its tags once."""
    app = sqlite_app({**ONE_EACH, "limit": "9"}, default_tags={"feature": "web"})
    taken: list[object] = []
    take, asked = holds.take, []

    def counted(*arguments: Any) -> Any:
        taken.append(arguments)
        return take(*arguments)

    def who() -> dict[str, str]:
        asked.append(1)
        return {"feature": "web", "job": "nightly"}

    monkeypatch.setattr(holds, "take", counted)
    with app.flask.app_context():
        for carried, wrapped in ((None, False), (None, True), (IMPORT, False), (who, False), (who, True)):
            taken.clear()
            WAYS[name](provider, carried, wrapped)
            assert len(taken) == 1, (carried, wrapped)
    assert len(asked) == 2
    assert standing(app) == {"feature=web": (4, 0), "feature=import": (1, 0)}
    assert sum(tag.value == "nightly" for call in app.calls() for tag in tags_of(app, call)) == 2


def tags_of(app: BudgetApp, call: Any) -> list[Any]:
    with app.engine.connect() as connection:
        return list(
            connection.execute(sa.text("SELECT value FROM llm_cost_call_tags WHERE call_id = :id"), {"id": call.id.hex})
        )


def test_a_block_wins(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """The tags of the block around a call rank above those of its transport, for budgets as in the ledger."""
    app = sqlite_app(ONE_EACH)
    with app.flask.app_context(), tags(feature="chat"):
        WAYS["httpx"](provider, IMPORT, True)
        with pytest.raises(BudgetExceededError, match="feature=chat"):
            WAYS["requests"](provider, IMPORT, False)
    assert standing(app) == {"feature=chat": (1, 0)}


@pytest.mark.parametrize("name", WAYS)
def test_a_budget_that_raises_looks_there_too(sqlite_app: AppMaker, provider: PlayedProvider, name: str) -> None:
    """A budget that raises does so by the account that the transport's tags put the call to."""
    app = sqlite_app({**ONE_EACH, "action": "raise"})
    with app.flask.app_context(), pytest.raises(BudgetExceededError) as caught:
        WAYS[name](provider, IMPORT, True)
    assert (caught.value.scope, caught.value.stage) == ("feature=import", "record")
    assert len(provider.requests) == 1
    assert standing(app) == {"feature=import": (1, 0)}


def test_who_tries_a_refused_call_again(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A refused call that a transport of the app's sends again asks again, and is recorded where it may go then."""
    app = sqlite_app(ONE_EACH)

    class Lifting(Around):
        def handle_request(self, request: Any) -> Any:
            try:
                return self.inner.handle_request(request)
            except BudgetExceededError:
                with app.engine.begin() as connection:
                    connection.execute(sa.text("UPDATE llm_cost_budget_periods SET spent = 0"))
                return self.inner.handle_request(request)

    with app.flask.app_context():
        WAYS["httpx"](provider, IMPORT, False)
        app.flush()
        with httpx.Client(transport=Lifting(LlmCostTransport(tags=IMPORT))) as client:
            assert client.post(f"{provider.openai_url}/chat/completions", json=BODY).status_code == 200
    assert standing(app) == {"feature=import": (1, 0)}
    assert sorted(call.outcome for call in app.calls()) == ["blocked", "ok", "ok"]
    assert len(provider.requests) == 2
