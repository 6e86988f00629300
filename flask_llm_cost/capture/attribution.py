"""Whose call it is: the app that owns it, and the tags that it carries. Both are taken when the call starts."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
from flask import Flask, Response, current_app, g, has_app_context, has_request_context
from flask.cli import ScriptInfo
from flask.globals import request_ctx
from sqlalchemy import inspect

from flask_llm_cost.log import log
from flask_llm_cost.tags import current_tags, ranked

if TYPE_CHECKING:
    from flask.ctx import RequestContext

    from flask_llm_cost.extension import AppState


#: What an adapter or transport takes as ``tags=``.
Tags: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

EXTENSION: Final = "llm_cost"
_ON_G: Final = "_llm_cost_request"
_ON_REQUEST: Final = "_llm_cost_tags"

#: The apps set up in this process. Held weakly: a test suite makes hundreds.
_apps: weakref.WeakSet[Flask] = weakref.WeakSet()
_stand_ins: list[Flask] = []

#: The request that the code here works for, also where its context is gone: in the body of a stream, in a carried thread.
request_here: ContextVar[RequestTags | CarriedApp | None] = ContextVar("llm_cost_request", default=None)

#: Seconds that a call waits for another thread to ask the request tagger.
_PATIENCE: Final = 1.0

_warned: set[str] = set()


class RequestTags:
    """The tags of one request: its endpoint, its user, and what the app's request tagger says, asked at most once."""

    __slots__ = ("__weakref__", "_app", "_asking", "_context", "_g", "_lock", "_outer", "_tags", "endpoint", "streams")

    def __init__(self, context: RequestContext) -> None:
        self._app = weakref.ref(context.app)
        self._context: RequestContext | None = context
        self._g: Any = g._get_current_object()  # g is a proxy
        self._lock = threading.RLock()
        self._asking = False
        self._tags: Mapping[str, Any] | None = None
        self._outer: RequestTags | CarriedApp | None = None
        self.endpoint = context.request.endpoint
        #: Whether the response has a body that is still to be made when the request's context is gone.
        self.streams = False
        # A copy of the context, in another thread, has a `g` of its own, but the same request.
        setattr(context.request, _ON_REQUEST, weakref.ref(self))

    @property
    def knows(self) -> bool:
        """Whether its tags are there, or can still be asked for."""
        return self._tags is not None or self._context is not None

    @property
    def app(self) -> Flask | None:
        return self._app()

    def tags(self, state: AppState) -> Mapping[str, Any]:
        """The tags, asked for by whoever comes first; others wait for the answer, but not for long."""
        if self._tags is not None:
            return self._tags
        if not self._lock.acquire(timeout=_PATIENCE):
            return {"endpoint": self.endpoint}
        try:
            if self._asking:  # a tagger that calls a model must not be asked for the tags of that call
                return {"endpoint": self.endpoint}
            if self._tags is None:
                self._asking = True
                try:
                    tagger = state.tracker.request_tagger_function
                    self._tags = {"endpoint": self.endpoint, **self._user(), **self._ask(tagger)}
                finally:  # where it was set, and not by a call of the tagger's own: its next one would ask again
                    self._asking = False
            return self._tags
        finally:
            self._lock.release()

    def _user(self) -> Mapping[str, Any]:
        """Who is signed in by Flask-Login. Nothing here may load a user or touch the app's database session."""
        if self._context is None:
            return {}
        try:
            # Read below the session's own methods: reading through them would mark the session as accessed, and change the
            # response's headers.
            session = _session_of(self._context)
            if isinstance(session, dict) and (user_id := dict.get(session, "_user_id")) is not None:
                return {"user_id": user_id}
            return {"user_id": _id_of(self._g.get("_login_user"))}
        except Exception as error:
            _warn_once("user", "no user_id tag: reading it raised %s", type(error).__name__)
            return {}

    def _ask(self, tagger: Callable[[], Mapping[str, Any]] | None) -> Mapping[str, Any]:
        if tagger is None or self._context is None:
            return {}
        if has_request_context():
            with _lending(self._g):
                return ask(tagger, "the request tagger")
        with self._context.copy():
            g.__dict__.update(self._g.__dict__)
            return ask(tagger, "the request tagger")

    def open(self) -> None:
        around = request_here.get()
        # A view may ask its own app, and is at work again after that. A stream that is open may be one that a test forgot.
        if isinstance(around, CarriedApp) or (around is not None and around.knows and not around.streams):
            self._outer = around
        request_here.set(self)

    def is_of(self, context: RequestContext) -> bool:
        """Whether it was opened in this context: a copy of it has the same request."""
        return self._context is context

    @property
    def ended(self) -> bool:
        return self._context is None

    def close(self) -> None:
        """Idempotent; may come late, twice, or in a thread where it was never opened."""
        if self._asking:
            return  # the end of the context in which the tagger is asked, not of the request
        if request_here.get() is self:
            outer = self._outer
            request_here.set(None if isinstance(outer, RequestTags) and outer.ended else outer)
        # Flask breaks its own cycles at the end of a request; ours would keep all of it until the collector runs.
        self._context = self._g = self._outer = None


class CarriedApp:
    """What is carried where there is no request: the app, and the command that runs there."""

    __slots__ = ("_app", "_tags")

    def __init__(self, app: Flask) -> None:
        self._app = weakref.ref(app)
        command = _command()
        self._tags = {} if command is None else {"command": command}

    @property
    def app(self) -> Flask | None:
        return self._app()

    def tags(self, state: AppState) -> Mapping[str, Any]:
        return self._tags


@contextmanager
def _lending(original: Any) -> Iterator[None]:
    """Let ``g`` have what the original has: in a copy of its context it is a new one, without what the request put there."""
    here: dict[str, Any] = g.__dict__
    lent = {} if here is original.__dict__ else {name: value for name, value in vars(original).items() if name not in here}
    here.update(lent)
    try:
        yield
    finally:
        for name in lent:
            here.pop(name, None)


def _id_of(user: Any) -> Any:
    """The id of a loaded user, unless reading it would query: a committed object is expired, and reads itself again."""
    if user is None:
        return None
    state: Any = inspect(user, raiseerr=False)
    if state is None or not getattr(state, "expired_attributes", ()):
        return user.get_id()
    identity = getattr(state, "identity", None)
    return identity[0] if identity and len(identity) == 1 else None


def _session_of(context: RequestContext) -> Any:
    # Since Flask 3.1.3 the attribute marks the session as accessed, too.
    return context.__dict__.get("_session") or context.__dict__.get("session")


def ask(source: Callable[[], Mapping[str, Any]], what: str) -> Mapping[str, Any]:
    """The tags that a callable of the app gives; none, and one warning, when it raises or gives something else."""
    try:
        found: Any = source()
    except Exception as error:
        _warn_once(what, "%s raised %s%s: calls go without its tags", what, type(error).__name__, _line_of(error))
        return {}
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        _warn_once(what, "%s gave %s, not a dict: calls go without its tags", what, type(found).__name__)
        return {}
    return found


def _line_of(error: Exception) -> str:
    """Where in a callable of the app *error* came up: its file and line, and nothing of what it says."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace else ""


def follow_requests(app: Flask) -> None:
    """Open a tag context before each request of *app*, and close it when its response is sent."""
    app.before_request(_open_request)
    # They run from the last to the first: ours must see the response that is sent, not one that another replaces.
    app.after_request_funcs.setdefault(None, []).insert(0, _keep_for_stream)
    app.teardown_request(_close_request)


def _open_request() -> None:
    tags = RequestTags(_context_here())
    setattr(g, _ON_G, tags)
    tags.open()


def _keep_for_stream(response: Response) -> Response:
    # A body that is a generator runs after the context is gone, so its end is the end of the request.
    tags = _tags_here()
    if tags is not None and response.is_streamed and not response.direct_passthrough:
        tags.streams = True
        request_here.set(tags)  # a stream that the view asked for, and left open, is not the view's
        response.call_on_close(tags.close)
    return response


def _close_request(error: BaseException | None) -> None:
    tags = _tags_here()
    # A copy of the context ends elsewhere, and earlier: the request goes on.
    if tags is not None and not tags.streams and tags.is_of(_context_here()):
        tags.close()


def _context_here() -> RequestContext:
    context: RequestContext = request_ctx._get_current_object()  # type: ignore[attr-defined]  # a proxy
    return context


def _tags_here() -> RequestTags | None:
    """The tags of the request whose context is here. Not by ``g``, which a request inside a view shares with the view."""
    found: weakref.ref[RequestTags] | None = getattr(request_ctx.request, _ON_REQUEST, None)
    return None if found is None else found()


def current_request() -> RequestTags | CarriedApp | None:
    """The request, or the app carried here, that the code works for."""
    if not has_request_context():
        return request_here.get()
    tags = _tags_here()
    # In a context that was pushed by hand there are none, and those of a copied one may have nothing left to say.
    if tags is None or not (tags.knows or tags is g.get(_ON_G)):
        tags = RequestTags(_context_here())
        setattr(g, _ON_G, tags)
    return tags


def register_app(app: Flask) -> None:
    """Let calls outside any app context find *app*."""
    _apps.add(app)


@contextmanager
def standing_in(app: Flask) -> Iterator[None]:
    """Let *app* own the calls, while the block runs, of which nobody can say whose they are."""
    _apps.discard(app)
    _stand_ins.append(app)
    try:
        yield
    finally:
        _stand_ins.remove(app)


def owner(*, warn: bool = True) -> AppState | None:
    """The app that a call made here belongs to: the current one, the one whose request this works for, or the only one.

    ``None`` means that the call passes unrecorded: because the current app does not have the extension or has it switched
    off, or because nobody can say whose the call is, which is warned about once.
    """
    if has_app_context():
        return _state(current_app._get_current_object())  # type: ignore[attr-defined]  # a proxy
    if (request := request_here.get()) is not None and (app := request.app) is not None:
        return _state(app)
    live = _live()
    if len(live) == 1:
        return live[0]
    if _stand_ins:
        return _state(_stand_ins[-1])
    if live and warn:
        warn_of_unowned()
    return None


def claimants() -> list[AppState]:
    """The apps any of which may own a call made here, where nobody can say which; none where that is known."""
    nobody_knows = not has_app_context() and request_here.get() is None and not _stand_ins
    live = _live() if nobody_knows else []
    return live if len(live) > 1 else []


def warn_of_unowned() -> None:
    """Say, once, that a call passed unrecorded because it may be any app's."""
    _warn_once(
        "owner",
        "an LLM call outside any app context passed unrecorded: %d apps use flask-llm-cost here; "
        "wrap the call in 'with app.app_context():'",
        len(_live()),
    )


def _live() -> list[AppState]:
    return [state for state in map(_state, _apps) if state is not None]


def _state(app: Flask) -> AppState | None:
    state: AppState | None = app.extensions.get(EXTENSION)
    return state if state is not None and state.config.enabled else None


def collect_tags(state: AppState, carried: Tags | None = None, explicit: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The tags of a call made here, cleaned.

    :param carried: the ``tags=`` of the adapter or transport
    :param explicit: tags given to ``track()``
    """
    default = state.config.default_tags
    layers = [ask(default, "LLM_COST_DEFAULT_TAGS") if callable(default) else default]
    if (request := current_request()) is not None and request.app is state.app:
        layers.append(request.tags(state))
    elif (command := _command()) is not None:
        layers.append({"command": command})
    if carried:
        layers.append(ask(carried, "the tags of an adapter or transport") if callable(carried) else carried)
    layers += (current_tags(), explicit or {})
    return state.tag_rules.clean(ranked(*layers))


def _command() -> str | None:
    """The Flask command that runs here, without the program's own name: ``digest``, ``mail send``."""
    context = click.get_current_context(silent=True)
    if context is None or context.find_object(ScriptInfo) is None:
        return None  # a program of somebody else's that uses click, such as a worker's
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.append(context.info_name or "")
        context = context.parent
    return " ".join(reversed(names)) or None


def _warn_once(key: str, message: str, *args: object) -> None:
    if key not in _warned:
        _warned.add(key)
        log.warning(message, *args)
