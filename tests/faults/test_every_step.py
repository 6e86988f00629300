"""Every step of ours fails in turn, and the app's call is what it is without us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import anthropic
import httpx
import openai
import pytest
import requests
import sqlalchemy as sa
from desks import Desk
from failing_steps import StepError, Steps, asked_steps
from figures import billed_cost, compare

from flask_llm_cost.errors import BudgetExceededError
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


class Clients:
    """The clients of an app, made once: what they do at their first call is not ours."""

    def __init__(self, provider: PlayedProvider) -> None:
        self.url = f"{provider.openai_url}/chat/completions"
        self.httpx = httpx.Client()
        self.session = requests.Session()
        self.openai = openai.OpenAI(base_url=provider.openai_url, api_key="any")
        self.anthropic = anthropic.Anthropic(base_url=provider.anthropic_url, api_key="any")

    def close(self) -> None:
        for client in (self.httpx, self.session, self.openai, self.anthropic):
            client.close()


@pytest.fixture(scope="module")
def clients(played: PlayedProvider) -> Iterator[Clients]:
    made = Clients(played)
    yield made
    made.close()


def lines(found: list[str]) -> list[str]:
    """The events of a stream, without what differs each time."""
    return [line.partition('"choices"')[2] for line in found if line.startswith("data: ")]


def httpx_plain(clients: Clients) -> object:
    reply = clients.httpx.post(clients.url, json=ASKED)
    return reply.status_code, reply.json()["usage"], reply.json()["choices"]


def httpx_stream(clients: Clients) -> object:
    with clients.httpx.stream("POST", clients.url, json={**ASKED, "stream": True}) as reply:
        return lines(list(reply.iter_lines()))


def httpx_refused(clients: Clients) -> object:
    return clients.httpx.post(clients.url, json={"model": 5}).status_code


def httpx_async(clients: Clients) -> object:
    async def both() -> object:
        async with httpx.AsyncClient(verify=False) as client:
            reply = await client.post(clients.url, json=ASKED)
            async with client.stream("POST", clients.url, json={**ASKED, "stream": True}) as stream:
                return reply.json()["choices"], lines([line async for line in stream.aiter_lines()])

    return asyncio.run(both())


def requests_plain(clients: Clients) -> object:
    reply = clients.session.post(clients.url, json=ASKED)
    return reply.status_code, reply.json()["usage"], reply.json()["choices"]


def requests_stream(clients: Clients) -> object:
    with clients.session.post(clients.url, json={**ASKED, "stream": True}, stream=True) as reply:
        return lines(list(reply.iter_lines(decode_unicode=True)))


def openai_plain(clients: Clients) -> object:
    reply = clients.openai.chat.completions.create(**ASKED)  # type: ignore[call-overload]
    return reply.usage, reply.choices


def openai_stream(clients: Clients) -> object:
    stream = clients.openai.chat.completions.create(**ASKED, stream=True)  # type: ignore[call-overload]
    return [(chunk.choices, chunk.usage) for chunk in stream]


def anthropic_plain(clients: Clients) -> object:
    reply = clients.anthropic.messages.create(model="claude-haiku-4-5", max_tokens=64, messages=ASKED["messages"])  # type: ignore[arg-type]
    return reply.content, reply.usage


def anthropic_stream(clients: Clients) -> object:
    with clients.anthropic.messages.stream(
        model="claude-haiku-4-5",
        max_tokens=64,
        messages=ASKED["messages"],  # type: ignore[arg-type]
    ) as stream:
        text = list(stream.text_stream)
        return text, stream.get_final_message().usage


CALLS = [
    httpx_plain, httpx_stream, httpx_refused, httpx_async, requests_plain, requests_stream,
    openai_plain, openai_stream, anthropic_plain, anthropic_stream,
]  # fmt: skip

EVERY = pytest.mark.parametrize("each", [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def steps(clients: Clients) -> Iterator[Steps]:
    """The steps that are taken in a test, once the clients and what watches them are there."""
    with asked_steps() as made:
        yield made


def turns(steps: Steps, call: Callable[[], object], each: int) -> Iterator[object]:
    """What *call* gives, or raises, while one step of it fails: the first, and so on to the last."""
    nth = 1
    while True:
        got: object
        with steps.failing(nth):
            try:
                got = call()
            except Exception as error:
                got = error
        if steps.failed is None:
            return
        yield got
        nth += each


@EVERY
@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=[] if call in (httpx_refused, openai_stream) else pytest.mark.slow) for call in CALLS]
)
def test_any_step_of_watching(
    sqlite_desk: Desk, clients: Clients, steps: Steps, call: Callable[[Clients], object], each: int
) -> None:
    """Whichever step of watching a call raises, the app gets the same reply, after the same number of requests."""
    app = sqlite_desk.app()
    expected = call(clients)
    wrong: list[tuple[str | None, Any]] = []
    count = 0
    with app.app_context():
        before = len(sqlite_desk.provider.requests)
        assert call(clients) == expected
        needed = len(sqlite_desk.provider.requests) - before
        before += needed
        for got in turns(steps, lambda: call(clients), each):
            count += 1
            sent = len(sqlite_desk.provider.requests) - before
            before += sent
            if got != expected or sent != needed:
                wrong.append((steps.failed, got if isinstance(got, BaseException) else (sent, "another reply")))
    print(f"{count} of {len(steps.names)} steps")
    assert not wrong, "\n".join(map(str, wrong))
    assert count > 20 // each


ALLOWED = {"limit": "100", "period": "day", "action": "block"}


@pytest.mark.slow
@pytest.mark.parametrize("each", [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.soak)])
@pytest.mark.parametrize("call", [httpx_plain, httpx_async, openai_plain])
@pytest.mark.parametrize(
    ("budget", "passes", "refused"),
    [
        pytest.param({**ALLOWED, "on_error": "allow", "on_busy": "allow"}, True, False, id="open"),
        pytest.param(ALLOWED, True, True, id="closed"),
        pytest.param({**ALLOWED, "limit": "0.000000001"}, False, True, id="used up"),
    ],
)
def test_any_step_of_asking_a_budget(
    sqlite_desk: Desk,
    clients: Clients,
    steps: Steps,
    call: Callable[[Clients], object],
    budget: dict[str, str],
    passes: bool,
    refused: bool,
    each: int,
) -> None:
    """Whichever step on the way to a budget raises, the app gets its reply or the budget's refusal, and no other error."""
    app = sqlite_desk.app(budgets=[budget])
    expected = call(clients)
    passed = count = 0
    with app.app_context():
        for got in turns(steps, lambda: call(clients), each):
            count += 1
            passed += got == expected
            assert got == expected or (refused and isinstance(got, BudgetExceededError)), (steps.failed, got)
    print(f"{count} steps, {passed} calls passed")
    assert count > 20 // each
    # What fails before anybody knows that this is a call cannot be refused: it passes unseen, as the app's own.
    assert passes or passed <= count // 2


@EVERY
def test_any_step_of_writing(sqlite_desk: Desk, steps: Steps, each: int) -> None:
    """Whichever step of the drain raises, every call is in the ledger in the end, once: at the next pass, or put back."""
    app = sqlite_desk.app()
    ledger = sqlite_desk.ledger(app)
    sqlite_desk.ask(app, range(2))
    assert ledger.flush(20)
    drain = ledger._process().drain
    drain.stop(20)  # its thread: here it is this one that drains
    drain._stopping = False
    ended = nth = 0
    while nth == 0 or steps.failed is not None:
        sqlite_desk.ask(app, range(nth, nth + 2))
        with steps.failing(nth := nth + each):
            try:
                drain._turn(0.0)
            except StepError:  # the thread ends, and another one goes on
                ended += 1
        drain._turn(0.0)
    assert nth > 100
    drain.start()
    drain._stopped = False
    refused = ledger.put_back()
    assert ledger.flush(60)
    truth = sqlite_desk.provider.truth
    figures = compare(truth, sqlite_desk.engine)
    print(f"{nth // each} steps, {ended} ended the thread, {refused} set aside and put back: {figures}")
    assert (figures.lost, figures.doubled, figures.unbilled, figures.open) == (0, 0, 0, 0)
    # A call whose pricing failed is kept without a price, never with a wrong one.
    with sqlite_desk.engine.connect() as connection:
        priced = set(connection.scalars(sa.select(Call.provider_response_id).where(Call.total_cost.is_not(None))))
    assert len(priced) > figures.stored * 0.7
    assert figures.cost == sum((billed_cost(billed) for billed in truth if billed.response_id in priced), Decimal(0))
