"""``requests``: at ``Session.send``, above the adapters, so that mocks and adapters of the app's own are seen too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit

from flask_llm_cost.capture.admission import admit, look_back
from flask_llm_cost.capture.attribution import Tags
from flask_llm_cost.capture.exchange import Layer, Request, observe, tags_ahead, under_way
from flask_llm_cost.capture.guard import guarded, report
from flask_llm_cost.capture.lending import give_back, lend, own_body
from flask_llm_cost.capture.observation import UNBILLED, Observation
from flask_llm_cost.usage import first_look

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

#: Errors before the request left, or because each reply was a refusal or sent it elsewhere: nothing was billed.
_NEVER_BILLED: Final = frozenset(
    {
        "ConnectTimeout", "ProxyError", "SSLError", "InvalidURL", "InvalidSchema", "MissingSchema", "InvalidProxyURL",
        "RetryError", "TooManyRedirects",
    }
)  # fmt: skip


def targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch in ``requests.sessions``: class, attribute, and how to wrap it."""
    return ((module.Session, "send", _watch),)


def _watch(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(self: Any, request: Any, **kwargs: Any) -> Any:
        if not _may_be_call(request):
            return original(self, request, **kwargs)
        streamed, carried = bool(kwargs.get("stream", self.stream)), tags_ahead(self, "get_adapter", request.url)
        return _send(functools.partial(original, self), request, kwargs, streamed, carried)

    return send


def _send(
    original: Callable[..., Any],
    request: Any,
    kwargs: dict[str, Any],
    streamed: bool,
    carried: Tags | None = None,
    explicit: bool = False,
) -> Any:
    found = _request(request, streamed)
    observation = observe(found, carried, explicit=explicit) if found else None
    admit(observation)
    if found is None or observation is None or observation.on_its_way:
        return original(request, **kwargs)
    with under_way(found, observation, _may_have_been_sent), _asking(request, observation):
        response = original(request, **kwargs)
    _attach(observation, response)
    look_back(observation)
    return response


def _may_be_call(request: Any) -> bool:
    try:
        return first_look.of_url(request.url)
    except Exception:
        return True  # whatever it is: the closer look is guarded, and says so


@guarded
def _request(request: Any, streamed: bool) -> Request | None:
    if request.method not in ("POST", "GET"):
        return None
    url = urlsplit(request.url)
    return Request(
        library="requests",
        # A redirect is sent by the session itself, as a copy of the request: what they share says that it is the same call.
        exchange=request.hooks,
        method=request.method,
        host=url.netloc.rpartition("@")[2].lower(),
        path=unquote(url.path),
        headers=request.headers,
        content=functools.partial(_content, request),
        can_withhold=streamed,
    )


def _content(request: Any) -> bytes | None:
    return own_body(request, functools.partial(_body_now, request))


def _body_now(request: Any) -> bytes | None:
    body = request.body
    return body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else None


def _may_have_been_sent(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "RequestException" not in names or names & _NEVER_BILLED:
        return False
    # A refused connection and one that was lost have the same class; urllib3 says which it was in the error beneath.
    beneath = getattr(error.args[0], "reason", None) if error.args else None
    return type(beneath).__name__ not in ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError")


@contextmanager
def _asking(request: Any, observation: Observation) -> Iterator[None]:
    """Send the body that asks for usage, where there is one, and give the app its own back."""
    content = observation.content
    lent = content is not None and lend(
        request, functools.partial(_body_now, request), functools.partial(_replace_body, request, content)
    )
    try:
        yield
    finally:
        if lent:
            give_back(request)


def _replace_body(request: Any, content: bytes) -> Callable[[], None]:
    body, headers = request.body, request.headers.copy()
    request.body = content
    if "Content-Length" in headers:  # else it is sent in chunks, as the app wants it
        request.headers["Content-Length"] = str(len(content))
    request.headers["Accept-Encoding"] = "identity"

    def restore() -> None:
        request.body, request.headers = body, headers

    return restore


def _attach(observation: Observation, response: Any) -> None:
    """Read a reply that is there, or follow one that is still to come."""
    try:
        _read(observation, response)
    except Exception as error:
        report(error)
        _withhold(observation, response)


@guarded
def _withhold(observation: Observation, response: Any) -> None:
    """Whatever has gone wrong: an event that the app did not ask for stays away from it."""
    if observation.withheld is None:
        return
    if isinstance(response._content, bytes):  # a hook has read it
        response._content = observation.withheld.whole(response._content)
    elif not (response._content_consumed or isinstance(response.raw, _ObservedBody)):
        response.raw = _ObservedBody(response.raw, observation, "")


def _read(observation: Observation, response: Any) -> None:
    content_type = response.headers.get("Content-Type", "")
    if response._content_consumed and response.status_code < UNBILLED:
        observation.replied(response.status_code, content_type, response.content, response.headers)
        _withhold(observation, response)
    elif observation.opened(response.status_code, content_type, response.headers) is not False:
        response.raw = _ObservedBody(response.raw, observation, response.headers.get("Content-Encoding", ""))


#: What the body below keeps for itself.
_OWN: Final = frozenset({"_raw", "_observation", "_encoding", "_left", "_over", "_data", "_plain"})


class _ObservedBody:
    """A reply's body on its way to the app, in place of ``urllib3``'s."""

    def __init__(self, raw: Any, observation: Observation, encoding: str) -> None:
        self._raw = raw
        self._observation = observation
        self._encoding = encoding
        #: What may pass, and nobody has asked for yet: events wait until they are whole, and are longer than what is read.
        self._left = bytearray()
        self._over = False
        self._data = b""
        #: Whether this is a plain file, as adapters of an app's own give it: it decodes nothing, and knows no options.
        self._plain = not hasattr(raw, "stream")

    def stream(self, amt: int | None = 65536, decode_content: bool | None = None) -> Iterator[bytes]:
        self._begin(decode_content)
        observation, withholds = self._observation, self._observation.withheld is not None
        if self._left:
            yield self._all_left()
        try:
            raw = self._raw
            pieces = iter(lambda: raw.read(amt) or b"", b"") if self._plain else raw.stream(amt, decode_content)
            for piece in pieces:
                seen = observation.feed(piece)
                if seen or not withholds:
                    yield seen
            if rest := observation.rest():
                yield rest
        except GeneratorExit:
            raise
        except BaseException as error:
            observation.closed(False, error)
            raise
        observation.closed(True)

    def read_chunked(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        return self.stream(amt, decode_content)

    def read(self, amt: int | None = None, decode_content: bool | None = None, cache_content: bool = False) -> bytes:
        self._begin(decode_content)
        kwargs = self._options(decode_content)
        if amt is not None and amt >= 0:
            return self._some(self._raw.read, amt, kwargs)
        piece = self._take(self._raw.read, amt, kwargs)
        seen = self._all_left() + self._pass(piece, ended=True)
        if cache_content:
            self._data = seen
        return seen

    @property
    def data(self) -> bytes:
        return self._data or self.read(cache_content=True)

    def json(self) -> Any:
        return type(self._raw).json(self)  # urllib3's own, of our data

    def drain_conn(self) -> None:
        try:
            while self.read(65536, decode_content=getattr(self._raw, "_has_decoded_content", False)):
                pass
        except Exception:
            self._raw.drain_conn()  # which raises nothing

    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:
        self._begin(decode_content)
        take = getattr(self._raw, "read1", self._raw.read)
        return self._some(take, 65536 if amt is None or amt < 0 else amt, self._options(decode_content))

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def readline(self, limit: int = -1) -> bytes:
        line = bytearray()
        # By the byte, as io.IOBase does it for urllib3: to ask for more could mean to wait for more.
        while len(line) != limit and not line.endswith(b"\n") and (piece := self.read(1)):
            line += piece
        return bytes(line)

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(iter(self.readline, b""))

    def _options(self, decode_content: bool | None) -> dict[str, Any]:
        return {} if self._plain else {"decode_content": decode_content}

    def _some(self, take: Callable[..., bytes], amt: int, kwargs: Mapping[str, Any]) -> bytes:
        """At most *amt* bytes, and none only at the end: a reader takes nothing for that."""
        while amt and not self._left and not self._over:
            piece = self._take(take, amt, kwargs)
            self._left += self._pass(piece, ended=not piece)
        seen = bytes(self._left[:amt])
        del self._left[:amt]
        return seen

    def _all_left(self) -> bytes:
        left = bytes(self._left)
        self._left.clear()
        return left

    def _take(self, take: Callable[..., bytes], amt: int | None, kwargs: Mapping[str, Any]) -> bytes:
        try:
            return take(amt, **kwargs) or b""  # None is what urllib3 says of a reply without a body
        except BaseException as error:
            self._observation.closed(False, error)
            raise

    def _pass(self, piece: bytes, *, ended: bool) -> bytes:
        seen = self._observation.feed(piece)
        if ended:
            self._over = True
            seen += self._observation.rest()
            self._observation.closed(True)
        return seen

    @guarded
    def _begin(self, decode_content: bool | None) -> None:
        decodes = not self._plain and (self._raw.decode_content if decode_content is None else decode_content)
        if self._encoding and not (decodes and self._is_known()):
            self._observation.encoded(self._encoding)
        self._encoding = ""

    def _is_known(self) -> bool:
        """Whether urllib3 can decode it: without a package for it, br and zstd pass as they are."""
        known = getattr(self._raw, "CONTENT_DECODERS", None)
        return known is None or any(name.strip() in known for name in self._encoding.lower().split(","))

    def __iter__(self) -> Iterator[bytes]:
        # By lines, as urllib3 does it, through our own stream().
        lines: Iterator[bytes] = iter(self.readline, b"") if self._plain else type(self._raw).__iter__(self)
        return lines

    def __next__(self) -> bytes:
        if line := self.readline():
            return line
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._raw.close()
        finally:
            self._observation.closed(False)

    def release_conn(self) -> None:
        self._raw.release_conn()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_raw"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        # An option, such as decode_content, is urllib3's. A method that the app puts in place of one here calls that.
        if name in _OWN or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self._raw, name, value)


def __getattr__(name: str) -> Any:
    # The adapter's base class is in requests, which is imported by those who use the adapter only.
    if name == "LlmCostAdapter":
        return _adapter_class()
    raise AttributeError(name)


@functools.cache
def _adapter_class() -> type[HTTPAdapter]:
    from requests.adapters import HTTPAdapter

    class LlmCostAdapter(Layer, HTTPAdapter):
        """An adapter that records the calls going through it: ``session.mount("https://", LlmCostAdapter(tags={...}))``.

        :param tags: a dict, or a function that gives one, asked at each call
        """

        # What requests pickles and copies of an adapter, and where pickle finds its class.
        __attrs__ = [*HTTPAdapter.__attrs__, "carried"]  # noqa: RUF012 - what requests calls it is no class variable
        __qualname__ = "LlmCostAdapter"

        def __init__(self, *args: Any, tags: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.carried = tags

        def send(self, request: Any, stream: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]  # by keyword
            original = functools.partial(super().send, stream=stream)
            return _send(original, request, kwargs, True, self.carried, explicit=True)

    return LlmCostAdapter
