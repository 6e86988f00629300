"""Calls over websockets: what OpenAI bills is a row each, and the app receives what it would have received."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest
from flask import Flask
from played_app import ledger_of
from played_socket import COMPONENTS, SECRET, Message, PlayedSocket, created, done, playing_socket, session, transcribed
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConcurrencyError, ConnectionClosedError, ConnectionClosedOK
from websockets.sync.client import connect

from flask_llm_cost import BudgetExceededError, tags
from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call

Make = Callable[..., Flask]

#: Messages as the app got them, or the error in place of one.
Got = list[Any]

# OpenAI's SDK opens sync connections in a way that websockets 17 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


@pytest.fixture
def socket() -> Iterator[PlayedSocket]:
    with playing_socket() as played:
        yield played


@pytest.fixture
def app(make_app: Make, socket: PlayedSocket) -> Flask:
    return make_app(hosts={socket.host: "openai"})


def components(call: Call) -> dict[str, Any]:
    return {item.component: item.quantity for item in call.line_items}


def receive(url: str, count: int, ask: bool = True, **options: Any) -> Got:
    """What a sync client receives; each message but the first is asked for."""
    got: Got = []
    with connect(url, **CONNECT) as connection:
        for number in range(count):
            if number and ask:
                connection.send('{"type": "response.create"}')
            got.append(connection.recv(**options))
    return got


def receive_async(url: str, count: int, ask: bool = True, **options: Any) -> Got:
    """The same of an asyncio client."""

    async def run() -> Got:
        got: Got = []
        async with connect_async(url, **CONNECT) as connection:
            for number in range(count):
                if number and ask:
                    await connection.send('{"type": "response.create"}')
                got.append(await connection.recv(**options))
        return got

    return asyncio.run(run())


CONNECT: Any = {"max_size": None, "compression": None}
BOTH = pytest.mark.parametrize("received", [receive, receive_async], ids=["sync", "asyncio"])


# What is recorded.


def test_a_realtime_session_of_the_openai_sdk(app: Flask, socket: PlayedSocket) -> None:
    """Each response of a session is a row with disjoint components, its model, price, time and the tags around it; what was
    said is one more, on the model that wrote it down."""
    tokens = {"type": "tokens", "total_tokens": 26, "input_tokens": 17, "output_tokens": 9}
    told = transcribed(**tokens, input_token_details={"text_tokens": 3, "audio_tokens": 14})
    socket.opening = [session(transcribing="gpt-4o-mini-transcribe")]
    socket.turns = [[created("a"), told, done("a")], [created("b"), done("b", "incomplete")]]
    client = openai.OpenAI(api_key="test", base_url=f"http://{socket.host}/v1")
    with app.app_context(), client, client.realtime.connect(model="gpt-realtime") as connection:
        assert connection.recv().type == "session.created"
        for feature, events in (("first", 3), ("second", 2)):
            with tags(feature=feature):
                connection.response.create()
                assert [connection.recv().type for _ in range(events)][-1] == "response.done"
    first, said, second = sorted(ledger_of(app), key=lambda call: str(call.provider_response_id != "a") + call.model)
    assert components(first) == components(second) == COMPONENTS
    assert (first.input_tokens, first.cache_read_tokens, first.output_tokens, first.total_tokens) == (132, 64, 121, 253)
    for call, key, feature in ((first, "a", "first"), (second, "b", "second")):
        assert (call.provider, call.model, call.requested_model, call.operation) == (
            "openai", "gpt-realtime", "gpt-realtime", "realtime",
        )  # fmt: skip
        assert (call.provider_response_id, call.outcome, call.usage_source, call.http_status) == (key, "ok", "response", 101)
        assert (call.cost_status, call.flags, call.stream) == ("priced", None, True)
        assert {tag.key: tag.value for tag in call.tags} == {"feature": feature}
        assert call.latency_ms is not None
        assert call.total_cost > 0
    assert (said.model, said.requested_model, said.provider_response_id) == ("gpt-4o-mini-transcribe", None, "item_1")
    assert components(said) == {"input": 3, "audio_input": 14, "output": 9}
    assert said.latency_ms is None


def test_an_async_session_of_the_openai_sdk(app: Flask, socket: PlayedSocket) -> None:
    """The same of the SDK's async client, iterated; and a model that the session is changed to counts from then on."""
    socket.turns = [[created("a"), done("a"), session("gpt-realtime-mini", kind="session.updated"), created("b"), done("b")]]

    async def run() -> list[str]:
        async with (
            openai.AsyncOpenAI(api_key="test", base_url=f"http://{socket.host}/v1") as client,
            client.realtime.connect(model="gpt-realtime") as connection,
        ):
            await connection.response.create()
            kinds: list[str] = []
            async for event in connection:
                kinds.append(event.type)
                if kinds.count("response.done") == 2:
                    break
            return kinds

    with app.app_context():
        assert len(asyncio.run(run())) == 6
    assert [(call.model, components(call)) for call in ledger_of(app)] == [
        ("gpt-realtime", COMPONENTS),
        ("gpt-realtime-mini", COMPONENTS),
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_responses_over_a_websocket_by_the_openai_sdk(app: Flask, socket: PlayedSocket, kind: str) -> None:
    """Each response that comes over a websocket is a row of its own, read as that of a stream, whatever its end."""
    usage = {
        "input_tokens": 30, "output_tokens": 9, "total_tokens": 39,
        "input_tokens_details": {"cached_tokens": 10}, "output_tokens_details": {"reasoning_tokens": 4},
    }  # fmt: skip

    def event(name: str, key: str, **more: Any) -> dict[str, Any]:
        response = {"id": key, "object": "response", "model": "gpt-4o-2024-08-06", "output": [], "usage": None, **more}
        return {"type": f"response.{name}", "sequence_number": 0, "response": response}

    failed = event("failed", "c", error={"code": "server_error", "message": SECRET})
    ends = [event("completed", "a", usage=usage), event("incomplete", "b", usage=usage), failed]
    socket.opening = []
    socket.turns = [[event("created", key), end] for key, end in zip("abc", ends, strict=True)]
    url = f"http://{socket.host}/v1"

    def run() -> None:
        with openai.OpenAI(api_key="test", base_url=url) as client, client.responses.connect() as connection:
            for _ in ends:
                connection.response.create(model="gpt-4o", input=SECRET)
                for _ in range(2):
                    connection.recv()

    async def run_async() -> None:
        async with openai.AsyncOpenAI(api_key="test", base_url=url) as client, client.responses.connect() as connection:
            for _ in ends:
                await connection.response.create(model="gpt-4o", input=SECRET)
                for _ in range(2):
                    await connection.recv()

    with app.app_context():
        run() if kind == "sync" else asyncio.run(run_async())
    calls = {call.provider_response_id: call for call in ledger_of(app)}
    assert {key: call.outcome for key, call in calls.items()} == {"a": "ok", "b": "ok", "c": "interrupted"}
    for key in "ab":
        assert components(calls[key]) == {"input": 20, "cache_read": 10, "output": 9}
        assert (calls[key].operation, calls[key].model, calls[key].reasoning_tokens) == ("responses", "gpt-4o-2024-08-06", 4)
        assert (calls[key].usage_source, calls[key].cost_status) == ("stream_final", "priced")
    assert calls["c"].usage_source == "unknown"


@BOTH
def test_how_a_response_ended(app: Flask, socket: PlayedSocket, received: Callable[..., Got]) -> None:
    """A response that was cancelled says what it took until then; one that failed without usage is unknown, never zero."""
    socket.turns = [[done("a", "cancelled")], [done("b", "failed", None)], [done("c")]]
    with app.app_context():
        received(socket.url, 4)
    calls = {call.provider_response_id: call for call in ledger_of(app)}
    assert {key: call.outcome for key, call in calls.items()} == {"a": "interrupted", "b": "error", "c": "ok"}
    assert components(calls["a"]) == COMPONENTS
    assert (calls["b"].usage_source, calls["b"].total_cost, components(calls["b"])) == ("unknown", None, {})
    # They began before the app's connection heard of it: how long they took is not known.
    assert {call.latency_ms for call in calls.values()} == {None}


@BOTH
def test_transcriptions_by_the_second_are_not_sums(app: Flask, socket: PlayedSocket, received: Callable[..., Got]) -> None:
    """Each transcription bills its own seconds. Where nobody named its model it has no price, and not the session's."""
    socket.turns = [
        [transcribed(type="duration", seconds=3.5)],
        [session(transcribing="whisper-1", kind="session.updated"), transcribed(type="duration", seconds=1.25)],
    ]
    with app.app_context():
        received(socket.url, 3)
        received(socket.url, 4)
    first, second, third = ledger_of(app)
    for call in (first, second):
        assert (call.model, call.requested_model, call.cost_status) == (None, None, "unpriced")
    assert (third.model, third.cost_status, components(third)) == ("whisper-1", "priced", {"audio_seconds": 1.25})


@pytest.mark.parametrize("query", ["model=gpt-realtime", "api-version=2025-04-01-preview&deployment=gpt-realtime"])
def test_a_session_that_names_no_model(app: Flask, socket: PlayedSocket, query: str) -> None:
    """Then the one in the address counts, or Azure's deployment."""
    socket.opening = [done("a")]
    with app.app_context():
        receive(f"ws://{socket.host}/openai/realtime?{query}", 1)
    (call,) = ledger_of(app)
    assert (call.model, call.requested_model, call.cost_status) == (None, "gpt-realtime", "priced")


def test_a_session_that_is_nobodys(app: Flask, make_app: Make, socket: PlayedSocket) -> None:
    """Where any of several apps may own a session, each of its responses is counted as such, once, and makes no row."""
    other = make_app(hosts={socket.host: "openai"})
    socket.opening = [session(), created("a"), done("a"), created("b"), done("b")]
    receive(socket.url, 5, ask=False)
    for one in (app, other):
        with one.app_context():
            receive(socket.url, 3, ask=False)
        assert [call.provider_response_id for call in ledger_of(one)] == ["a"]
        assert one.extensions["llm_cost"].ledger.counters()["unattributed"][0] == 2


@pytest.mark.parametrize("code", [1000, 1011])
@BOTH
def test_a_response_that_was_cut(app: Flask, socket: PlayedSocket, received: Callable[..., Got], code: int) -> None:
    """A response that began, on a connection that ends before it does, is one row of which the usage is unknown."""
    socket.opening, socket.code = [session(), created("a")], code
    closed = ConnectionClosedOK if code == 1000 else ConnectionClosedError
    with app.app_context(), pytest.raises(closed):
        received(socket.url, 3, ask=False)
    (call,) = ledger_of(app)
    assert (call.outcome, call.usage_source, call.total_cost) == ("interrupted", "unknown", None)
    assert call.error_class == (None if code == 1000 else "ConnectionClosedError")


@BOTH
def test_a_response_that_was_left(app: Flask, socket: PlayedSocket, received: Callable[..., Got]) -> None:
    """So is one that the app did not wait for."""
    socket.turns = [[created("a")]]
    with app.app_context():
        received(socket.url, 2)
        gc.collect()
    (call,) = ledger_of(app)
    assert (call.outcome, call.usage_source, call.error_class) == ("interrupted", "unknown", None)


def test_budgets_count_it_afterwards(make_app: Make, socket: PlayedSocket) -> None:
    """A budget counts what a session spent, and what it is asked next is refused; a session is never interrupted by one."""
    budgets = [{"name": "tiny", "limit": "0.000001", "period": "day", "action": "block"}]
    app = make_app(hosts={socket.host: "openai"}, budgets=budgets, write_mode="inline")
    socket.turns = [[done("a")], [done("b")]]
    with app.app_context():
        app.extensions["llm_cost"].tracker.check_budget()
        assert len(receive(socket.url, 3)) == 3
        with pytest.raises(BudgetExceededError):
            app.extensions["llm_cost"].tracker.check_budget()
    assert len(ledger_of(app)) == 2


def test_nothing_of_a_message_is_kept(app: Flask, socket: PlayedSocket, caplog: pytest.LogCaptureFixture) -> None:
    """No word of a session, an answer or a transcript is in the database, the spool or the log."""
    broken = done("b", usage={"input_tokens": SECRET})
    socket.turns = [[created("a"), done("a"), transcribed(type="tokens", input_tokens=1, note=SECRET), broken]]
    with app.app_context(), connect(socket.url, **CONNECT) as connection:
        connection.send("{}")
        for _ in range(5):
            connection.recv()
    assert len(ledger_of(app)) == 3
    files = [path for path in Path(app.instance_path).rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in caplog.text
    assert "watching an LLM call failed" not in caplog.text


# What is not.


def test_only_clients_of_such_paths_are_looked_at(app: Flask, socket: PlayedSocket) -> None:
    """What a server receives, what comes on another path, and what on a host that nobody knows is no such reply, makes no
    row."""
    socket.turns = [[done("a")]]
    with app.app_context():
        with connect(f"ws://{socket.host}/v1/chat", **CONNECT) as connection:
            connection.send(json.dumps(done("b")))
            connection.recv()
            connection.recv()
        with connect(f"ws://{socket.host}/v1/realtime", **CONNECT) as connection:
            connection.send(json.dumps(done("b")))  # the server runs in this process, and this app owns what it does
            connection.recv()
        unknown = f"ws://localhost:{socket.port}/v1/realtime"
        socket.opening, socket.turns = ['{"type": "response.done", "usage": null}'], ()
        with connect(unknown, **CONNECT) as connection:
            connection.recv()
    assert ledger_of(app) == []


@pytest.mark.parametrize(("instrument", "rows"), [(["requests"], 0), ([], 0), (["websockets"], 1), (["openai"], 1)])
def test_an_app_chooses_whether_it_is_watched(
    make_app: Make, socket: PlayedSocket, instrument: list[str], rows: int
) -> None:
    """LLM_COST_INSTRUMENT decides, by the library's name or the SDK's."""
    app = make_app(hosts={socket.host: "openai"}, instrument=instrument)
    socket.turns = [[done()]]
    with app.app_context():
        receive(socket.url, 2)
    assert len(ledger_of(app)) == rows


# What the app notices: nothing.


TEXT, SOUND = '{"type": "response.output_audio.delta", "delta": "AAAA"}', b"\x00\xff not JSON \xfe"
MESSAGES: list[Message] = [
    TEXT,
    SOUND,
    "",
    "[]",
    'no JSON at all, but "type": "response.done" is in it',
    json.dumps(done("odd"))[:-3],
    '{"type": "response.done", "response": [1, 2]}',
    '{"type": "response.done", "response": {"id": 7, "status": {}, "usage": "many"}}',
    '{"type": "response.created", "response": null}',
    '{"type": "session.updated", "session": {"audio": 3, "model": ["x"]}}',
    '{"type": "response.completed", "response": ' + "[" * 3000 + "]" * 3000 + "}",
    json.dumps(done("binary")).encode(),
    json.dumps(done("indented"), indent=2),
    ["{", *json.dumps(done("fragments"))[1:].partition(",")],
    json.dumps(done("long") | {"padding": "x" * 3_000_000}),
    json.dumps({key: done("last")[key] for key in ("event_id", "response", "type")}),
]


@pytest.mark.parametrize("decode", [None, False, True])
@BOTH
def test_messages_are_the_very_same(
    app: Flask, socket: PlayedSocket, received: Callable[..., Got], decode: bool | None
) -> None:
    """Text, bytes, fragments, nonsense and messages of any size come as they would without us, in the type asked for; those
    that are billed are counted, whichever type the app asks for."""
    messages = [message for message in MESSAGES if message is not SOUND or decode is not True]
    socket.opening = messages
    with app.app_context():
        patching.uninstall()
        try:
            bare = received(socket.url, len(messages), ask=False, decode=decode)
        finally:
            patching.install("auto")
        assert ledger_of(app) == []
        assert received(socket.url, len(messages), ask=False, decode=decode) == bare
    calls = {call.provider_response_id: call for call in ledger_of(app)}
    for name in ("binary", "indented", "fragments", "long", "last"):
        assert components(calls[name]) == COMPONENTS, name


def test_recv_gives_the_object_that_it_was_given(app: Flask, socket: PlayedSocket) -> None:
    """Not an equal message: the same one."""
    socket.opening = [json.dumps(done())]
    with app.app_context(), connect(socket.url, **CONNECT) as connection:
        given: Got = []
        take = connection.recv_messages.get

        def taking(*args: Any, **kwargs: Any) -> Any:
            given.append(take(*args, **kwargs))
            return given[-1]

        connection.recv_messages.get = taking  # type: ignore[method-assign]  # theirs, to see what it gives
        assert connection.recv() is given[0]
    assert len(ledger_of(app)) == 1


def test_iterating_and_streaming(app: Flask, socket: PlayedSocket) -> None:
    """Iteration is watched, and ends as it would; what is received in fragments by recv_streaming passes unseen."""
    socket.turns, socket.code = [[done("a")], [["x", "y"]], [json.dumps(done("b"))]], 1000
    with app.app_context(), connect(socket.url, **CONNECT) as connection:
        connection.recv()
        connection.send("{}")
        connection.recv()
        connection.send("{}")
        assert list(connection.recv_streaming()) == ["x", "y", ""]
        connection.send("{}")
        assert [json.loads(message)["response"]["id"] for message in connection] == ["b"]
    assert [call.provider_response_id for call in ledger_of(app)] == ["a", "b"]


def test_errors_are_the_apps_own(app: Flask, socket: PlayedSocket) -> None:
    """A timeout, a second reader and a closed connection raise what they would; what is received later still counts."""
    socket.turns = [[done("a")]]
    with app.app_context(), connect(socket.url, **CONNECT) as connection:
        connection.recv()
        with pytest.raises(TimeoutError):
            connection.recv(timeout=0)
        with pytest.raises(TimeoutError):
            connection.recv(0.01, decode=False)
        with pytest.raises(TypeError):
            connection.recv(nonsense=True)
        refused: list[type] = []

        def second() -> None:
            try:
                connection.recv(timeout=10)
            except Exception as error:
                refused.append(type(error))
                connection.send("{}")

        other = threading.Timer(0.1, second)
        other.start()
        connection.recv()
        other.join()
        assert refused == [ConcurrencyError]
        connection.close()
        with pytest.raises(ConnectionClosedOK):
            connection.recv()
    assert [call.provider_response_id for call in ledger_of(app)] == ["a"]


def test_a_cancelled_recv_loses_nothing(app: Flask, socket: PlayedSocket) -> None:
    """A recv that is cancelled, or is the second at once, leaves the next message to the next recv."""
    socket.turns = [[done("a")]]

    async def run() -> str:
        async with connect_async(socket.url, **CONNECT) as connection:
            await connection.recv()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(connection.recv(), 0.05)
            waiting = asyncio.create_task(connection.recv())
            await asyncio.sleep(0)
            with pytest.raises(ConcurrencyError):
                await connection.recv()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await connection.send("{}")
            return json.loads(await connection.recv())["response"]["id"]

    with app.app_context():
        assert asyncio.run(run()) == "a"
    assert [call.provider_response_id for call in ledger_of(app)] == ["a"]


def test_a_part_that_cannot_be_watched_is_told_of(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of the two kinds of clients cannot be watched, that is said, also once the other one is."""
    monkeypatch.setitem(sys.modules, "websockets.asyncio.client", ModuleType("websockets.asyncio.client"))
    patching.install("auto")
    assert patching.failure("websockets") == "it has no Connection"
    monkeypatch.undo()
    patching.install("auto")
    assert patching.failure("websockets") is None


def test_a_warning_says_who_called(app: Flask, socket: PlayedSocket) -> None:
    """Where websockets warns of how a connection is used, it names the app's own line."""
    with ExitStack() as stack, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connection = connect(socket.url, **CONNECT)
        stack.callback(connection.close)
        connection.recv()
    assert {warning.filename for warning in caught if "context manager" in str(warning.message)} <= {__file__}


def test_a_fault_of_ours_is_one_log_line(
    app: Flask, socket: PlayedSocket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When our own work fails, the app has its message all the same."""
    monkeypatch.setattr(app.extensions["llm_cost"], "recorder", None)
    socket.turns = [[done("a")]]
    with app.app_context():
        assert json.loads(receive(socket.url, 2)[-1]) == done("a")
    assert "watching an LLM call failed with AttributeError" in caplog.text
