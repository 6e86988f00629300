"""``websockets``: at ``Connection.recv`` of its clients, sync and asyncio, which iteration goes through as well.

A connection is no call. Each response that is made on one is, from the event in which it begins to the one that says what it
took; so is each transcription. Whose they are, and their tags, is taken where that event is received. Messages are looked at
once the app's ``recv`` has them, and never held, changed or kept.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from flask_llm_cost.capture.exchange import Request, observe
from flask_llm_cost.capture.guard import guarded
from flask_llm_cost.capture.observation import Observation
from flask_llm_cost.usage import openai_realtime as events

#: What the status of a connection is that has become a websocket.
_SWITCHED: Final = 101
_LINES: Final = "application/x-ndjson"

#: How many responses of one connection are followed at once; of more than that, it is not known when they began.
_MANY: Final = 64


def targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch in ``websockets.sync.client`` or ``websockets.asyncio.client``: class, attribute, and how to wrap it."""
    watch = _watch_async if ".asyncio." in module.__name__ else _watch
    # Servers have their `recv` from the same class.
    return ((module.Connection, "recv", functools.partial(watch, module.ClientConnection)),)


def _watch(client: type, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def recv(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Websockets 17 warns of some uses, once, and says where: that is who called us.
        if (warn := getattr(self, "maybe_raise_legacy_warning", None)) is not None:
            warn()
        try:
            message = original(self, *args, **kwargs)
        except Exception as error:
            _failed(self, error)
            raise
        _received(client, self, message)
        return message

    return recv


def _watch_async(client: type, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def recv(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            message = await original(self, *args, **kwargs)
        except Exception as error:
            _failed(self, error)
            raise
        # From here on nothing is awaited: who is cancelled has either this message or the next.
        _received(client, self, message)
        return message

    return recv


class _Session:
    """What is remembered of a connection."""

    __slots__ = ("begun", "models")

    def __init__(self) -> None:
        #: The line that names the models at work.
        self.models = b""
        #: The responses that have begun, by their id; ``None`` for one that nobody here owns.
        self.begun: dict[str, Observation | None] = {}


_sessions: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()


@guarded
def _received(client: type[Any], connection: Any, message: Any) -> None:
    if not isinstance(connection, client):
        return
    path, _, query = connection.request.path.partition("?")
    if not events.may_bill(path) or not isinstance(message, str | bytes) or (kind := events.kind(message)) is None:
        return
    if (session := _sessions.get(connection)) is None:
        session = _sessions.setdefault(connection, _Session())
    line = events.line(message)
    if kind == "session":
        session.models = events.models_line(events.parsed(line), session.models)
    elif kind == "begun":
        _begin(session, _request(connection, path, query), events.response_id(events.parsed(line)))
    elif kind == "billed":
        key = events.response_id(events.parsed(line)) or ""
        if key in session.begun:
            observation = session.begun.pop(key)
        else:
            observation = observe(_request(connection, path, query, begins=False))
        _end(observation, session.models + line)
    else:
        _end(observe(_request(connection, path, "", begins=False)), session.models + line)


def _begin(session: _Session, request: Request, key: str | None) -> None:
    if key is None or key in session.begun or len(session.begun) >= _MANY:
        return
    observation = session.begun[key] = observe(request)
    if observation is not None:
        observation.opened(_SWITCHED, _LINES)


def _end(observation: Observation | None, lines: bytes) -> None:
    if observation is not None:
        observation.replied(_SWITCHED, _LINES, lines)


def _request(connection: Any, path: str, query: str, *, begins: bool = True) -> Request:
    """The call that a message is about. It is like a request of its own on the connection's path.

    :param query: where the model is named that was asked for; of a transcription it is another
    """
    headers: dict[str, str] = {}
    for name, value in connection.request.headers.raw_items():
        headers.setdefault(name.lower(), value)
    return Request(
        library="websockets",
        exchange=connection,
        method="WEBSOCKET",
        host=headers.get("host", "").lower(),
        path=unquote(path),
        headers=headers,
        content=functools.partial(_asked, query),
        begins=begins,
    )


def _asked(query: str) -> bytes | None:
    """The model in the address of a session, or Azure's deployment, as a body would name it."""
    named = parse_qs(query)
    models = named.get("model") or named.get("deployment")
    return json.dumps({"model": models[0]}).encode() if models else None


@guarded
def _failed(connection: Any, error: Exception) -> None:
    """Nothing more comes: what has begun and not ended was cut, by the network or by whoever closed the connection."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "ConnectionClosed" not in names or (session := _sessions.pop(connection, None)) is None:
        return
    for observation in session.begun.values():
        if observation is not None:
            observation.closed(False, None if "ConnectionClosedOK" in names else error)
