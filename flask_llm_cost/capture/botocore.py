"""``botocore``: Bedrock's calls, by botocore's own events on each client that makes one.

botocore hands out what it has parsed, so a reply is given on as the JSON that it came from.
"""

from __future__ import annotations

import functools
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakSet

from flask_llm_cost.capture.admission import admit, look_back
from flask_llm_cost.capture.exchange import Request, observe
from flask_llm_cost.capture.guard import guarded
from flask_llm_cost.capture.observation import UNBILLED, Observation

_OPERATIONS: Final = ("InvokeModel", "InvokeModelWithResponseStream", "Converse", "ConverseStream")
_ON_CONTEXT: Final = "llm_cost_observation"

#: Errors before the request left: nothing was billed.
_NEVER_SENT: Final = frozenset(
    {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "NoCredentialsError", "SSLError"}
)


def targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch in ``botocore.client``: class, attribute, and how to wrap it."""
    return ((module.BaseClient, "_make_api_call", _watch),)


#: Clients whose events we hear. Many are made when a module is imported, before there is an app.
_followed: Final[WeakSet[Any]] = WeakSet()
_following = threading.Lock()


def _after_fork() -> None:
    global _following
    _following = threading.Lock()  # whoever held the parent's is not in the child


os.register_at_fork(after_in_child=_after_fork)


def _watch(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _make_api_call(self: Any, operation_name: str, *args: Any, **kwargs: Any) -> Any:
        if operation_name in _OPERATIONS:
            _follow(self)
        return original(self, operation_name, *args, **kwargs)

    return _make_api_call


@guarded
def _follow(client: Any) -> None:
    if client in _followed or client.meta.service_model.service_name != "bedrock-runtime":
        return
    # Threads share a client, and botocore looks for an id before it adds it: the first calls of two would be heard twice.
    with _following:
        if client in _followed:
            return
        events = client.meta.events
        for operation in _OPERATIONS:
            name = f"bedrock-runtime.{operation}"
            events.register_last(f"before-call.{name}", _before, unique_id=f"llm-cost-before-{operation}")
            events.register_first(f"after-call.{name}", _after, unique_id=f"llm-cost-after-{operation}")
            events.register_first(f"after-call-error.{name}", _failed, unique_id=f"llm-cost-error-{operation}")
        _followed.add(client)


def _before(params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
    observation = _begin(params, context)
    if observation is not None:
        admit(observation)


@guarded
def _begin(params: Mapping[str, Any], context: dict[str, Any]) -> Observation | None:
    url = urlsplit(params["url"])
    body = params.get("body")
    request = Request(
        library="botocore",
        exchange=context,
        method=params.get("method", "POST"),
        host=url.netloc.lower(),
        path=url.path,
        headers={},
        content=lambda: body if isinstance(body, bytes) else None,
    )
    observation = context[_ON_CONTEXT] = observe(request)
    return observation


@guarded
def _failed(exception: Exception, context: dict[str, Any], **_: Any) -> None:
    observation: Observation | None = context.pop(_ON_CONTEXT, None)
    if observation is not None:
        observation.failed(exception, _may_have_been_sent)


def _may_have_been_sent(error: Exception) -> bool:
    return type(error).__name__ not in _NEVER_SENT


def _after(http_response: Any, parsed: dict[str, Any], model: Any, context: dict[str, Any], **_: Any) -> None:
    observation: Observation | None = context.pop(_ON_CONTEXT, None)
    if observation is not None:
        _take_reply(observation, http_response, parsed, model)
        look_back(observation)


@guarded
def _take_reply(observation: Observation, http_response: Any, parsed: dict[str, Any], model: Any) -> None:
    status = http_response.status_code
    observation.attempt = 1 + int(parsed.get("ResponseMetadata", {}).get("RetryAttempts", 0))
    if status >= UNBILLED:
        observation.discard()
    elif model.name == "Converse":
        kept = {key: parsed[key] for key in ("usage", "serviceTier", "performanceConfig", "stopReason") if key in parsed}
        observation.replied(status, "application/json", json.dumps(kept, default=str).encode())
    elif model.name == "InvokeModel":
        if observation.opened(status, parsed.get("contentType", "application/json"), http_response.headers):
            body = parsed["body"]
            body._raw_stream = _ObservedRaw(body._raw_stream, observation)
    elif observation.opened(status, "text/event-stream", http_response.headers):
        key = "stream" if model.name == "ConverseStream" else "body"
        parsed[key] = _ObservedEvents(parsed[key], observation)


class _Observed:
    """What the app gets in place of botocore's object, which it passes everything on to."""

    def __init__(self, inner: Any, observation: Observation) -> None:
        self._inner = inner
        self._observation = observation

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._observation.closed(False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)


class _ObservedRaw(_Observed):
    """What a ``StreamingBody`` reads from."""

    def read(self, amt: int | None = None, *args: Any, **kwargs: Any) -> bytes:
        try:
            piece: bytes = self._inner.read(amt, *args, **kwargs)
        except BaseException as error:
            self._observation.closed(False, error)
            raise
        self._observation.feed(piece)
        whole = amt is None or amt < 0
        if whole or (amt and not piece):
            self._observation.closed(True)
        if whole:
            look_back(self._observation)
        return piece

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def readlines(self, hint: int = -1) -> list[bytes]:
        return io.BytesIO(self.read()).readlines(hint)


class _ObservedEvents(_Observed):
    """The events of a stream, in place of an ``EventStream``."""

    def __iter__(self) -> Iterator[Any]:
        try:
            for event in self._inner:
                self._observation.feed(b"data: " + _event_bytes(event) + b"\n\n")
                yield event
        except GeneratorExit:
            raise
        except BaseException as error:
            self._observation.closed(False, error)
            raise
        self._observation.closed(True)


def _event_bytes(event: Any) -> bytes:
    """The JSON of an event: the model's own, base64 in a chunk, or Converse's."""
    try:
        chunk = event.get("chunk")
        if chunk is not None:
            return bytes(chunk["bytes"])
        # Only the metadata event says what is billed; the others hold content.
        return json.dumps({"metadata": event["metadata"]}, default=str).encode() if "metadata" in event else b"{}"
    except Exception:
        return b"{}"
