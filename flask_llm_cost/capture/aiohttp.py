"""``aiohttp``: at ``ClientSession._request``, where google-genai's async calls go whenever aiohttp is installed."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final

from flask_llm_cost.capture.admission import admit_async, look_back_async
from flask_llm_cost.capture.exchange import Request, observe, under_way
from flask_llm_cost.capture.guard import guarded
from flask_llm_cost.capture.observation import Observation
from flask_llm_cost.usage import first_look

#: Errors before the request left, or because it was sent elsewhere too often: nothing was billed.
_NEVER_BILLED: Final = frozenset(
    {"ClientConnectorError", "ConnectionTimeoutError", "InvalidURL", "ClientProxyConnectionError", "TooManyRedirects"}
)

#: What is passed on at this moment, and by whom: session, address, body, exchange, and what we wrapped there.
_passing: Final[ContextVar[list[Any] | None]] = ContextVar("llm_cost_aiohttp", default=None)

#: How much of a body that is there is looked at at once.
_PIECE: Final = 64 * 1024


def targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch in ``aiohttp``: class, attribute, and how to wrap it."""
    return ((module.ClientSession, "_request", functools.partial(_watch, module)),)


def _watch(module: ModuleType, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def request(self: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
        if not _may_be_call(self, str_or_url):
            return await original(self, method, str_or_url, **kwargs)
        found = _request(original, self, method, str_or_url, kwargs)
        observation = observe(found) if found else None
        if found is None or observation is None:
            return await original(self, method, str_or_url, **kwargs)
        await admit_async(observation)
        passed = _asking(module, self, observation, kwargs)
        outer, here = _passing.get(), [self, str_or_url, _body(passed), found.exchange, original]
        _passing.set(here)
        try:
            with under_way(found, observation, _may_have_been_sent):
                response = await original(self, method, str_or_url, **passed)
        finally:
            _passing.set(outer)
            here.clear()  # contexts that were copied meanwhile live as long as their connections
        _attach(module, observation, response, _decompresses(self, kwargs))
        await look_back_async(observation)
        return response

    return request


def _may_be_call(session: Any, str_or_url: Any) -> bool:
    try:
        # The whole address: the session may have a base to which this one is added.
        url = session._build_url(str_or_url)
        return first_look.of_path(url.raw_path) or url.host in first_look.hosts
    except Exception:
        return True  # whatever it is: the closer look is guarded, and says so


@guarded
def _request(original: Any, session: Any, method: str, str_or_url: Any, kwargs: Mapping[str, Any]) -> Request | None:
    method = method.upper()  # google-genai says "post"
    if method not in ("POST", "GET"):
        return None
    url = session._build_url(str_or_url)
    host = url.host or ""
    return Request(
        library="aiohttp",
        exchange=_exchange(original, session, str_or_url, kwargs),
        method=method,
        host=host.lower() if url.is_default_port() else f"{host.lower()}:{url.port}",
        path=url.path,
        headers={
            str(name).lower(): str(value)
            for given in (session.headers, kwargs.get("headers") or {})
            for name, value in dict(given).items()
        },
        content=functools.partial(_content, session, kwargs),
        # What aiohttp does not decode cannot be read by us either, event by event, before the app sees it.
        can_withhold=_decompresses(session, kwargs),
        form=functools.partial(_form, kwargs),
    )


def _exchange(original: Any, session: Any, str_or_url: Any, kwargs: Mapping[str, Any]) -> object:
    """What tells a call from the next one: redirects do not come by here again, but calls of the app's middleware do.

    Another instrumentation that was put on ours, and ours on that again, passes on what it was given.
    """
    passing = _passing.get()
    if passing:
        *given, exchange, passed_by = passing
        same = all(one is other for one, other in zip(given, (session, str_or_url, _body(kwargs)), strict=True))
        if same and passed_by is not original:  # what comes by the same layer again is made anew
            return exchange
    return object()


def _body(kwargs: Mapping[str, Any]) -> Any:
    data = kwargs.get("data")
    return kwargs.get("json") if data is None else data


def _content(session: Any, kwargs: Mapping[str, Any]) -> bytes | None:
    data = kwargs.get("data")
    if (body := kwargs.get("json")) is not None:
        in_bytes = getattr(session, "_json_serialize_bytes", None)
        data = session.json_serialize(body) if in_bytes is None else in_bytes(body)
    return data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else None


@guarded
def _form(kwargs: Mapping[str, Any]) -> bytes | None:
    """The fields of a form whose files are read only while it is sent, and must not be read here."""
    data = kwargs.get("data")
    given = (
        data.items() if isinstance(data, Mapping) else ((at["name"], text) for at, _, text in getattr(data, "_fields", ()))
    )
    fields = [(name, value) for name, value in given if isinstance(value, str)]
    return "".join(f'--\r\nname="{name}"\r\n\r\n{value}\r\n' for name, value in fields).encode() or None


def _asking(module: ModuleType, session: Any, observation: Observation, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with a body that asks for usage, where there is one. The app's own are not touched."""
    content = observation.content
    if content is None:
        return kwargs
    if kwargs.get("json") is not None:
        body: Any = module.payload.BytesPayload(content, content_type="application/json")
    else:
        body = content.decode() if isinstance(kwargs.get("data"), str) else content
    changed = {**kwargs, "json": None, "data": body}
    if headers := _with_length(session, kwargs.get("headers"), len(content)):
        changed["headers"] = headers
    return changed


@guarded
def _with_length(session: Any, headers: Any, length: int) -> Any:
    """The headers with the length of another body, where the app or its session says one; else aiohttp counts for itself."""
    merged = session._prepare_headers(headers)  # a copy, together with the session's own
    if "Content-Length" not in merged:
        return None
    merged["Content-Length"] = str(length)
    return merged


def _may_have_been_sent(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "ClientResponseError" in names and getattr(error, "status", 0) >= 400:
        return False  # a refusal, raised because the app asked for that
    return bool(names & {"ClientError", "TimeoutError"}) and not names & _NEVER_BILLED


def _decompresses(session: Any, kwargs: Mapping[str, Any]) -> bool:
    asked = kwargs.get("auto_decompress")
    return bool(getattr(session, "_auto_decompress", True) if asked is None else asked)


@guarded
def _attach(module: ModuleType, observation: Observation, response: Any, decompresses: bool) -> None:
    encoding = "" if decompresses else response.headers.get("Content-Encoding", "")
    if observation.opened(response.status, response.headers.get("Content-Type", ""), response.headers) is not False:
        observation.encoded(encoding)
        if getattr(response, "_body", None) is not None:  # a middleware has read it, or what raises for a status
            response._body = _passed(observation, response._body)
            return
        reader = _FilteredReader if observation.withheld is not None else _ObservedReader
        response.content = reader(module, response.content, observation)


def _passed(observation: Observation, body: bytes) -> bytes:
    """What the app may see of a body that is there already."""
    pieces = [observation.feed(body[start : start + _PIECE]) for start in range(0, len(body), _PIECE)]
    seen = b"".join([*pieces, observation.rest()])
    observation.closed(True)
    return seen


class _ObservedReader:
    """A reply's body on its way to the app, in place of aiohttp's ``StreamReader``, which cannot be changed."""

    def __init__(self, module: ModuleType, reader: Any, observation: Observation) -> None:
        self._module = module
        self._reader = reader
        self._observation = observation

    async def _seen(self, reading: Awaitable[bytes]) -> bytes:
        try:
            piece = await reading
        except BaseException as error:
            self._observation.closed(False, error)
            raise
        self._feed(piece)
        return piece

    def _feed(self, piece: bytes) -> None:
        if piece:
            self._observation.feed(piece)
        if self._reader.at_eof():  # nothing read is no end: nothing may have been asked for
            self._observation.closed(True)

    def set_exception(self, error: BaseException, *cause: BaseException) -> None:
        # How a response that is closed or released tells its reader that nothing more is to be had.
        self._reader.set_exception(error, *cause)
        self._observation.closed(False)

    async def read(self, n: int = -1) -> bytes:
        piece = await self._seen(self._reader.read(n))
        if n < 0:  # the whole reply: only now it is recorded
            await look_back_async(self._observation)
        return piece

    async def readany(self) -> bytes:
        return await self._seen(self._reader.readany())

    async def readline(self, **kwargs: Any) -> bytes:
        return await self._seen(self._reader.readline(**kwargs))

    async def readuntil(self, *args: Any, **kwargs: Any) -> bytes:
        return await self._seen(self._reader.readuntil(*args, **kwargs))

    async def readexactly(self, n: int) -> bytes:
        return await self._seen(self._reader.readexactly(n))

    async def readchunk(self) -> tuple[bytes, bool]:
        try:
            piece, end = await self._reader.readchunk()
        except BaseException as error:
            self._observation.closed(False, error)
            raise
        if piece or self._reader.at_eof():
            self._feed(piece)
        return piece, end

    def read_nowait(self, n: int = -1) -> bytes:
        piece: bytes = self._reader.read_nowait(n)
        if piece:
            self._feed(piece)
        return piece

    def __aiter__(self) -> Any:
        return self._module.streams.AsyncStreamIterator(self.readline)

    def iter_chunked(self, n: int) -> Any:
        return self._module.streams.AsyncStreamIterator(functools.partial(self.read, n))

    def iter_any(self) -> Any:
        return self._module.streams.AsyncStreamIterator(self.readany)

    def iter_chunks(self) -> Any:
        return self._module.streams.ChunkTupleAsyncStreamIterator(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_reader"], name)


class _FilteredReader(_ObservedReader):
    """The same for a reply out of which an event is taken: what the app may see waits here until it is asked for."""

    def __init__(self, module: ModuleType, reader: Any, observation: Observation) -> None:
        super().__init__(module, reader, observation)
        self._waiting = bytearray()
        self._ended = False

    async def _more(self) -> bool:
        """Wait for more of the reply. Whether there was any."""
        if self._ended:
            return False
        try:
            piece = await self._reader.readany()
        except BaseException as error:
            self._observation.closed(False, error)
            raise
        self._take(piece)
        return not self._ended

    def _take(self, piece: bytes) -> None:
        if piece:
            self._waiting += self._observation.feed(piece)
        if not piece or self._reader.at_eof():
            self._waiting += self._observation.rest()
            self._observation.closed(True)
            self._ended = True

    def _taken(self, n: int = -1) -> bytes:
        end = len(self._waiting) if n < 0 else min(n, len(self._waiting))
        taken = bytes(self._waiting[:end])
        del self._waiting[:end]
        return taken

    async def read(self, n: int = -1) -> bytes:
        while n and (n < 0 or not self._waiting) and await self._more():
            pass
        return self._taken(n)

    async def readany(self) -> bytes:
        return await self.read(sys.maxsize)

    async def readline(self, **kwargs: Any) -> bytes:
        return await self.readuntil(b"\n")

    async def readuntil(self, separator: bytes = b"\n", **kwargs: Any) -> bytes:
        looked = 0
        while (place := self._waiting.find(separator, looked)) < 0:
            looked = max(0, len(self._waiting) - len(separator) + 1)
            if not await self._more():
                place = self._waiting.find(separator)
                return self._taken(place + len(separator) if place >= 0 else -1)
        return self._taken(place + len(separator))

    async def readexactly(self, n: int) -> bytes:
        while len(self._waiting) < n and await self._more():
            pass
        if len(self._waiting) < n:
            raise asyncio.IncompleteReadError(self._taken(), n)
        return self._taken(n)

    async def readchunk(self) -> tuple[bytes, bool]:
        piece = await self.readany()
        return piece, bool(piece)

    def read_nowait(self, n: int = -1) -> bytes:
        if not self._ended and (piece := self._reader.read_nowait()):
            self._take(piece)
        return self._taken(n)

    def at_eof(self) -> bool:
        return self._ended and not self._waiting
