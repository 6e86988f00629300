"""``httpx`` and ``httpx2``: one level above the transport, at ``Client.send`` and ``AsyncClient.send``.

The two libraries are twins, so everything here takes the module as an argument and imports neither. Sync and async differ in
two functions and two stream classes (``httpx_streams.py``); what they do is in :func:`_request` and :func:`_attach`.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from flask_llm_cost.capture.admission import admit, admit_async, look_back, look_back_async
from flask_llm_cost.capture.attribution import Tags
from flask_llm_cost.capture.exchange import Layer, Request, observe, tags_ahead, under_way
from flask_llm_cost.capture.guard import guarded, report
from flask_llm_cost.capture.httpx_streams import stream_classes
from flask_llm_cost.capture.lending import give_back, lend, own_body
from flask_llm_cost.capture.observation import UNBILLED, Observation
from flask_llm_cost.usage import first_look

#: Errors before the request left, by their names in both libraries: nothing was billed.
_NEVER_SENT: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
)

#: An option that the app left to the library.
_LEFT: Final[Any] = object()


def targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch in ``httpx`` or ``httpx2``: class, attribute, and how to wrap it."""
    sync_stream, async_stream = stream_classes(module)
    return (
        (module.Client, "send", functools.partial(_watch, module, sync_stream)),
        (module.AsyncClient, "send", functools.partial(_watch_async, module, async_stream)),
    )


def _watch(module: ModuleType, stream_class: type, original: Callable[..., Any]) -> Callable[..., Any]:
    # What get() and the like give, by name: to collect options and pass them on takes longer than the rest of a first look.
    @functools.wraps(original)
    def send(self: Any, request: Any, *, auth: Any = _LEFT, follow_redirects: Any = _LEFT, **more: Any) -> Any:
        may_be_call = _may_be_call(request)
        if not (may_be_call or more or auth is _LEFT or follow_redirects is _LEFT):
            return original(self, request, auth=auth, follow_redirects=follow_redirects)
        # None that was not given: what is called may be somebody else's, and know fewer of them.
        if auth is not _LEFT:
            more["auth"] = auth
        if follow_redirects is not _LEFT:
            more["follow_redirects"] = follow_redirects
        found = _request(module, request, more.get("stream") is True) if may_be_call else None
        observation = observe(found, tags_ahead(self, "_transport_for_url", request.url)) if found else None
        if found is None or observation is None:
            return original(self, request, **more)
        admit(observation)
        may_have_been_sent = functools.partial(_may_have_been_sent_by, module, self)
        with under_way(found, observation, may_have_been_sent), _asking(module, request, observation):
            response = original(self, request, **more)
        _attach(observation, response, stream_class)
        look_back(observation)
        return response

    return send


def _watch_async(
    module: ModuleType, stream_class: type, original: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def send(self: Any, request: Any, *, auth: Any = _LEFT, follow_redirects: Any = _LEFT, **more: Any) -> Any:
        may_be_call = _may_be_call(request)
        if not (may_be_call or more or auth is _LEFT or follow_redirects is _LEFT):
            return await original(self, request, auth=auth, follow_redirects=follow_redirects)
        # None that was not given: what is called may be somebody else's, and know fewer of them.
        if auth is not _LEFT:
            more["auth"] = auth
        if follow_redirects is not _LEFT:
            more["follow_redirects"] = follow_redirects
        found = _request(module, request, more.get("stream") is True) if may_be_call else None
        observation = observe(found, tags_ahead(self, "_transport_for_url", request.url)) if found else None
        if found is None or observation is None:
            return await original(self, request, **more)
        await admit_async(observation)
        may_have_been_sent = functools.partial(_may_have_been_sent_by, module, self)
        with under_way(found, observation, may_have_been_sent), _asking(module, request, observation):
            response = await original(self, request, **more)
        _attach(observation, response, stream_class)
        await look_back_async(observation)
        return response

    return send


def _may_be_call(request: Any) -> bool:
    try:
        address = request.url._uri_reference  # what the URL's own properties make anew each time
        return first_look.of_path(address.path) or address.host in first_look.hosts
    except Exception:
        return True  # whatever it is: the closer look is guarded, and says so


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
        # A dict: the library's own mapping decodes all of them for each that is asked for.
        headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers.raw},
        content=functools.partial(_content, module, request),
        can_withhold=streamed,
        form=functools.partial(_form, request),
    )


def _content(module: ModuleType, request: Any) -> bytes | None:
    return own_body(request, functools.partial(_content_now, module, request))


def _content_now(module: ModuleType, request: Any) -> bytes | None:
    try:
        content: bytes = request.content
    except module.RequestNotRead:
        return None  # a body that is read while it is sent
    return content


@guarded
def _form(request: Any) -> bytes | None:
    """The fields of a form whose files are read only while it is sent, and must not be read here."""
    fields = [field for field in getattr(request.stream, "fields", ()) if hasattr(field, "value")]
    return b"".join(b"--\r\n" + b"".join(field.render()) + b"\r\n" for field in fields) or None


def _may_have_been_sent(module: ModuleType, error: Exception) -> bool:
    """Whether a request that failed with an error of *module* may have reached the provider."""
    if isinstance(error, RuntimeError):  # a pooled connection may have reached the provider, of a loop that has ended
        return str(error) == "Event loop is closed"
    kinds = (module.TransportError, module.DecodingError)
    return isinstance(error, kinds) and type(error).__name__ not in _NEVER_SENT


def _may_have_been_sent_by(module: ModuleType, client: Any, error: Exception) -> bool:
    """The same for a client, whose hooks are the app's code: what they raise when the reply is there leaves it paid for."""
    if _may_have_been_sent(module, error):
        return True
    hooks = getattr(client, "event_hooks", None) or {}
    if isinstance(error, module.HTTPError | module.InvalidURL) or not hooks.get("response"):
        return False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_send_handling_redirects" and "response" not in frame.f_locals:
            return False  # a hook of the request raised, which the same function calls
    return getattr(getattr(error, "response", None), "status_code", 0) < UNBILLED


@contextmanager
def _asking(module: ModuleType, request: Any, observation: Observation) -> Iterator[None]:
    """Send the body that asks for usage, where there is one, and give the app its own back."""
    content = observation.content
    lent = content is not None and lend(
        request, functools.partial(_content_now, module, request), functools.partial(_replace_body, module, request, content)
    )
    try:
        yield
    finally:
        if lent:
            give_back(request)


def _replace_body(module: ModuleType, request: Any, content: bytes) -> Callable[[], None]:
    headers = request.headers
    kept = {name: headers.get(name) for name in ("content-length", "accept-encoding")}
    stream, own = request.stream, request._content
    request.stream = module.ByteStream(content)
    request._content = content
    if "content-length" in headers:  # else it is sent in chunks, as the app wants it
        headers["content-length"] = str(len(content))
    # One event has to be taken out of the reply, which is simple only where it is not compressed.
    headers["accept-encoding"] = "identity"

    def restore() -> None:
        request.stream, request._content = stream, own
        for name, value in kept.items():
            if value is None:
                request.headers.pop(name, None)
            else:
                request.headers[name] = value

    return restore


def _attach(observation: Observation, response: Any, stream_class: type) -> None:
    """Read a reply that is there, or follow one that is still to come."""
    try:
        _read(observation, response, stream_class)
    except Exception as error:
        report(error)
        _withhold(observation, response, stream_class)


def _read(observation: Observation, response: Any, stream_class: type) -> None:
    headers, status, content_type = response.headers, response.status_code, response.headers.get("content-type", "")
    if response.is_closed and status < UNBILLED:
        observation.replied(status, content_type, response.content, headers)
        _withhold(observation, response, stream_class)
    elif observation.opened(status, content_type, headers) is not False:
        encoding = headers.get("content-encoding", "")
        decoder = response._get_content_decoder() if encoding and observation.withheld is not None else None
        if decoder is None or type(decoder).__name__ == "IdentityDecoder":  # one that the library cannot decode
            decoder = None
            observation.encoded(encoding)
        else:
            # An event can be taken out of what is decoded only: by the library itself, with its own errors, but here.
            del response._decoder, headers["content-encoding"]
        response.stream = stream_class(response.stream, observation, decoder)


@guarded
def _withhold(observation: Observation, response: Any, stream_class: type) -> None:
    """Whatever has gone wrong: an event that the app did not ask for stays away from it."""
    if observation.withheld is None:
        return
    if hasattr(response, "_content"):  # a hook has read it
        response._content = observation.withheld.whole(response._content)
        vars(response).pop("_text", None)  # which may be kept from before
    elif not (response.is_closed or isinstance(response.stream, stream_class)):
        response.stream = stream_class(response.stream, observation, None)


class _Explicit(Layer):
    """What both explicit transports share."""

    def __init__(self, transport: Any = None, *, tags: Tags | None = None) -> None:
        self._transport = transport
        self.carried = tags

    def _inner(self, request: Any, name: str) -> Any:
        if self._transport is None:
            made = getattr(_module_of(request), name)()
            # Threads may be here at once. All take the same one, and what the others made has opened nothing.
            self._transport = vars(self).setdefault("_made", made)
        return self._transport


def _module_of(request: Any) -> ModuleType:
    """The library that made a request, ``httpx`` or ``httpx2``."""
    return sys.modules[type(request).__module__.partition(".")[0]]


class LlmCostTransport(_Explicit):
    """A transport that records the calls going through it, for clients that are to be watched without patching.

    ``httpx.Client(transport=LlmCostTransport(tags={"feature": "import"}))``, or around a transport of your own:
    ``LlmCostTransport(httpx.HTTPTransport(retries=2), tags=who)``. Works with ``httpx`` and ``httpx2``.

    :param transport: what sends; the library's own transport when it is left out
    :param tags: a dict, or a function that gives one, asked at each call
    """

    def handle_request(self, request: Any) -> Any:
        module = _module_of(request)
        inner = self._inner(request, "HTTPTransport")
        found = _request(module, request, True)
        observation = observe(found, self.carried, explicit=True) if found else None
        admit(observation)
        if found is None or observation is None or observation.on_its_way:
            return inner.handle_request(request)
        may_have_been_sent = functools.partial(_may_have_been_sent, module)
        with under_way(found, observation, may_have_been_sent), _asking(module, request, observation):
            response = inner.handle_request(request)
        _attach(observation, response, stream_classes(module)[0])
        return response

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> LlmCostTransport:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncLlmCostTransport(_Explicit):
    """The same for async clients: ``httpx.AsyncClient(transport=AsyncLlmCostTransport(tags=who))``."""

    async def handle_async_request(self, request: Any) -> Any:
        module = _module_of(request)
        inner = self._inner(request, "AsyncHTTPTransport")
        found = _request(module, request, True)
        observation = observe(found, self.carried, explicit=True) if found else None
        await admit_async(observation)
        if found is None or observation is None or observation.on_its_way:
            return await inner.handle_async_request(request)
        may_have_been_sent = functools.partial(_may_have_been_sent, module)
        with under_way(found, observation, may_have_been_sent), _asking(module, request, observation):
            response = await inner.handle_async_request(request)
        _attach(observation, response, stream_classes(module)[1])
        return response

    async def aclose(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()

    async def __aenter__(self) -> AsyncLlmCostTransport:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()
