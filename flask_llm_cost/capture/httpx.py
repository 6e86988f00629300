"""``httpx`` and ``httpx2``: one level above the transport, at ``Client.send`` and ``AsyncClient.send``.

The two libraries are twins, so everything here takes the module as an argument and imports neither. Sync and async differ in
two functions and two stream classes; what they do is in :func:`_begin` and :func:`_attach`.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final

from flask_llm_cost.capture.observation import Observation, Request, guarded, observe

#: Errors before the request left, by their names in both libraries: nothing was billed.
_NEVER_SENT: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
)

#: Headers that sign a body, or say how it is encoded: then it must not change.
_FIXED_BODY: Final = (
    "content-encoding", "content-md5", "content-digest", "digest", "signature", "x-amz-content-sha256", "x-amz-date",
    "x-signature", "x-hub-signature-256",
)  # fmt: skip

#: The request that is being sent here. A wrapper that sends the same object again is not a second call.
_sending: ContextVar[object | None] = ContextVar("llm_cost_httpx_request", default=None)


def targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch in ``httpx`` or ``httpx2``: class, attribute, and how to wrap it."""
    sync_stream, async_stream = _stream_classes(module)
    return (
        (module.Client, "send", functools.partial(_watch, module, sync_stream)),
        (module.AsyncClient, "send", functools.partial(_watch_async, module, async_stream)),
    )


def _watch(module: ModuleType, stream_class: type, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        observation = _begin(module, request, kwargs.get("stream") is True)
        if observation is None:
            return original(self, request, *args, **kwargs)
        with _under_way(module, request, observation):
            response = original(self, request, *args, **kwargs)
        _attach(observation, response, stream_class)
        return response

    return send


def _watch_async(
    module: ModuleType, stream_class: type, original: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        observation = _begin(module, request, kwargs.get("stream") is True)
        if observation is None:
            return await original(self, request, *args, **kwargs)
        with _under_way(module, request, observation):
            response = await original(self, request, *args, **kwargs)
        _attach(observation, response, stream_class)
        return response

    return send


@guarded
def _begin(module: ModuleType, request: Any, streamed: bool) -> Observation | None:
    # Nearly all traffic ends at one of these two lines.
    if request.method != "POST" or _sending.get() is request:
        return None
    url = request.url
    host = url.netloc.decode("ascii", "replace").lower()
    return observe(
        Request(
            module.__name__, "POST", host, url.path, request.headers, functools.partial(_body, module, request, streamed)
        )
    )


def _body(module: ModuleType, request: Any, streamed: bool) -> tuple[bytes | None, bool]:
    if not streamed:
        return _content(module, request), False  # nothing could be taken out of a reply that is read before we see it
    headers = request.headers
    fixed = any(name in headers for name in _FIXED_BODY) or headers.get("authorization", "").startswith("AWS4-")
    return _content(module, request), not fixed


def _content(module: ModuleType, request: Any) -> bytes | None:
    try:
        content: bytes = request.content
    except module.RequestNotRead:
        return None  # a body that is read while it is sent
    return content


@contextmanager
def _under_way(module: ModuleType, request: Any, observation: Observation) -> Iterator[None]:
    """The request is on its way: sent with the body that we ask with, and seen by the app with its own."""
    outer = _sending.get()
    _sending.set(request)
    kept = _replace_body(module, request, observation.content)
    try:
        yield
    except BaseException as error:
        sent = not isinstance(error, Exception) or (
            isinstance(error, module.TransportError) and type(error).__name__ not in _NEVER_SENT
        )
        observation.failed(error, sent)
        raise
    finally:
        _sending.set(outer)
        _restore_body(request, kept)


@guarded
def _replace_body(module: ModuleType, request: Any, content: bytes | None) -> dict[str, Any] | None:
    if content is None:
        return None
    headers = request.headers
    kept = {
        "stream": request.stream,
        "content": request._content,
        "content-length": headers.get("content-length"),
        "accept-encoding": headers.get("accept-encoding"),
    }
    request.stream = module.ByteStream(content)
    request._content = content
    headers["content-length"] = str(len(content))
    # One event has to be taken out of the reply, which is simple only where it is not compressed.
    headers["accept-encoding"] = "identity"
    return kept


@guarded
def _restore_body(request: Any, kept: dict[str, Any] | None) -> None:
    if kept is None:
        return
    request.stream, request._content = kept["stream"], kept["content"]
    for name in ("content-length", "accept-encoding"):
        if kept[name] is None:
            request.headers.pop(name, None)
        else:
            request.headers[name] = kept[name]


@guarded
def _attach(observation: Observation, response: Any, stream_class: type) -> None:
    """Read a reply that is there, or follow one that is still to come."""
    if response.is_closed and response.status_code < 400:
        observation.replied(response.status_code, response.headers.get("content-type", ""), response.content)
        return
    headers = response.headers
    encoding = headers.get("content-encoding", "")
    if observation.opened(response.status_code, headers.get("content-type", ""), encoding):
        if observation.withholds and encoding:
            # What the app gets is decoded already.
            del headers["content-encoding"]
        response.stream = stream_class(response.stream, observation)


def _stream_classes(module: ModuleType) -> tuple[type, type]:
    """The libraries check the type of a stream, so each needs classes of its own."""

    class ObservedStream(module.SyncByteStream):  # type: ignore[name-defined, misc]  # one of two modules
        """A reply's body on its way to the app. May be iterated more than once; :meth:`close` ends it."""

        def __init__(self, stream: Any, observation: Observation) -> None:
            self._stream = stream
            self._observation = observation
            self._ended = False

        def __iter__(self) -> Iterator[bytes]:
            feed, withholds = self._observation.feed, self._observation.withholds
            try:
                for piece in self._stream:
                    seen = feed(piece)
                    if seen or not withholds:
                        yield seen
                self._ended = True
                if rest := self._observation.rest():
                    yield rest
            except GeneratorExit:
                raise
            except BaseException as error:
                self._observation.closed(False, error)
                raise

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                self._observation.closed(self._ended)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["_stream"], name)

    class ObservedAsyncStream(module.AsyncByteStream):  # type: ignore[name-defined, misc]  # one of two modules
        """The same for an async client; :meth:`aclose` ends it."""

        def __init__(self, stream: Any, observation: Observation) -> None:
            self._stream = stream
            self._observation = observation
            self._ended = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            feed, withholds = self._observation.feed, self._observation.withholds
            pieces = self._stream.__aiter__()
            try:
                async for piece in pieces:
                    seen = feed(piece)
                    if seen or not withholds:
                        yield seen
                self._ended = True
                if rest := self._observation.rest():
                    yield rest
            except GeneratorExit:
                raise
            except BaseException as error:
                self._observation.closed(False, error)
                raise
            finally:
                if hasattr(pieces, "aclose"):
                    await pieces.aclose()

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                self._observation.closed(self._ended)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["_stream"], name)

    return ObservedStream, ObservedAsyncStream
