"""``httpx`` and ``httpx2``: one level above the transport, at ``Client.send`` and ``AsyncClient.send``.

The two libraries are twins, so everything here takes the module as an argument and imports neither. Sync and async differ in
two functions and two stream classes; what they do is in :func:`_request` and :func:`_attach`.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from flask_llm_cost.capture.exchange import Request, observe, under_way
from flask_llm_cost.capture.guard import guarded
from flask_llm_cost.capture.observation import Observation

#: Errors before the request left, by their names in both libraries: nothing was billed.
_NEVER_SENT: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
)


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
        found = _request(module, request, kwargs.get("stream") is True)
        observation = observe(found) if found else None
        if found is None or observation is None:
            return original(self, request, *args, **kwargs)
        with under_way(found, observation, _may_have_been_sent(module)), _asking(module, request, observation):
            response = original(self, request, *args, **kwargs)
        _attach(observation, response, stream_class)
        return response

    return send


def _watch_async(
    module: ModuleType, stream_class: type, original: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        found = _request(module, request, kwargs.get("stream") is True)
        observation = observe(found) if found else None
        if found is None or observation is None:
            return await original(self, request, *args, **kwargs)
        with under_way(found, observation, _may_have_been_sent(module)), _asking(module, request, observation):
            response = await original(self, request, *args, **kwargs)
        _attach(observation, response, stream_class)
        return response

    return send


@guarded
def _request(module: ModuleType, request: Any, streamed: bool) -> Request | None:
    method = request.method
    if method not in ("POST", "GET"):
        return None
    url = request.url
    return Request(
        library=module.__name__,
        exchange=request,
        method=method,
        host=url.netloc.decode("ascii", "replace").lower(),
        path=url.path,
        headers=request.headers,
        content=functools.partial(_content, module, request),
        can_withhold=streamed,
    )


def _content(module: ModuleType, request: Any) -> bytes | None:
    try:
        content: bytes = request.content
    except module.RequestNotRead:
        return None  # a body that is read while it is sent
    return content


def _may_have_been_sent(module: ModuleType) -> Callable[[Exception], bool]:
    """Whether a request that failed with an error of *module* may have reached the provider."""
    return lambda error: isinstance(error, module.TransportError) and type(error).__name__ not in _NEVER_SENT


@contextmanager
def _asking(module: ModuleType, request: Any, observation: Observation) -> Iterator[None]:
    """Send the body that asks for usage, where there is one, and give the app its own back."""
    kept = _replace_body(module, request, observation.content)
    try:
        yield
    finally:
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
