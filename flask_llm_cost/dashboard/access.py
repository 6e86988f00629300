"""Who may see what: the guard before every endpoint, the scope inside every question. Both fail closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from flask import Response, abort, current_app
from werkzeug.exceptions import HTTPException

from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.log import log
from flask_llm_cost.records import TAG_KEY

View: TypeAlias = Callable[..., Any]
Guard: TypeAlias = Callable[[View], View]
Scope: TypeAlias = Callable[[], Mapping[str, Any] | None]

_LONGEST_VALUE: Final = 256

_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A dashboard as it is mounted on an app, kept in ``app.extensions["llm_cost_dashboards"]`` for doctor."""

    name: str
    url_prefix: str
    guarded: bool
    scoped: bool
    #: What the guard is called where it was defined, for doctor.
    guard_name: str = ""


class ScopeRefusedError(Exception):
    """The scope names nobody, so nothing is shown. Stays inside the dashboard."""


class _Passage:
    """Whether one request got past the guard."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached = False


_passage: ContextVar[_Passage] = ContextVar("llm_cost_dashboard_passage")


def guarded(view: View, guard: Guard | None, name: str) -> View:
    """*view* behind *guard*: it runs when the guard calls it, and whatever else the guard does shows nothing of ours.

    A response of the guard's is passed on, such as a redirect to the sign-in page. An error in it, ``None`` and ``True`` are
    a 403.
    """
    if guard is None:
        return view

    def admitted(*args: Any, **values: Any) -> Any:
        _passage.get().reached = True
        return view(*args, **values)

    admitted.__name__ = admitted.__qualname__ = view.__name__
    behind = guard(admitted)
    if not callable(behind):
        raise TypeError(f"the guard of dashboard {name!r} is no view decorator: it returned {type(behind).__name__}")

    def checked(*args: Any, **values: Any) -> Any:
        passage = _Passage()
        token = _passage.set(passage)
        try:
            answer = current_app.ensure_sync(behind)(*args, **values)
        except HTTPException:
            raise
        except Exception:
            if passage.reached:
                raise
            log.exception("the guard of dashboard %r failed, so nothing is shown", name)
            abort(403)
        finally:
            _passage.reset(token)
        if answer is None or isinstance(answer, bool):
            log.error("the guard of dashboard %r is no view decorator: it returned %r, so nothing is shown", name, answer)
            abort(403)
        return answer

    checked.__name__ = checked.__qualname__ = view.__name__
    return checked


def base_filter(scope: Scope | None, name: str) -> Filter:
    """The filter that every question of a request starts from: the only place where a dashboard's filter is made.

    :raises ScopeRefusedError: the scope raised, or gave nothing that calls could be held to
    """
    if scope is None:
        return Filter(scope={})
    try:
        tags = scope()
        return Filter(scope=_scope_tags(tags))
    except HTTPException:
        raise
    except ScopeRefusedError:
        raise
    except Exception as error:
        log.exception("the scope of dashboard %r failed, so nothing is shown", name)
        raise ScopeRefusedError from error


def _scope_tags(tags: Mapping[str, Any] | None) -> dict[str, str]:
    if not isinstance(tags, Mapping) or not tags:
        raise ScopeRefusedError
    held = {}
    for key, value in tags.items():
        if not isinstance(key, str) or not TAG_KEY.fullmatch(key):
            raise ScopeRefusedError
        # True and False are no names of anybody, and a longer value than is kept could be somebody else's.
        if isinstance(value, bool) or not isinstance(value, str | int | UUID):
            raise ScopeRefusedError
        # As calls have it: what is a string is that, whatever an enum of strings says of itself.
        text = (str.__str__(value) if isinstance(value, str) else str(value)).strip()
        if not text or len(text) > _LONGEST_VALUE or "\x00" in text:
            raise ScopeRefusedError
        held[key] = text
    return held


def secured(response: Response, *, asset: bool = False) -> Response:
    """Our headers, on our own responses only."""
    headers = response.headers
    headers["Content-Security-Policy"] = _POLICY
    headers["Cache-Control"] = "private, max-age=3600" if asset else "no-store, private"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    response.vary.add("Cookie")
    return response
