"""Carrying tags where context variables do not go: into thread pools, and into Celery's tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flask_llm_cost.capture.attribution import CarriedApp, RequestTags, collect_tags, current_request, owner, request_here
from flask_llm_cost.capture.guard import guarded
from flask_llm_cost.tags import Inside, around, tags, tags_here

if TYPE_CHECKING:
    from celery import Celery

_HEADER: Final = "llm_cost_tags"
_ON_REQUEST: Final = "_llm_cost_block"
#: At the end of a task, briefly: the records are safe in the spool already. At the end of a worker, for longer.
_TASK_SECONDS: Final = 0.2
_WORKER_SECONDS: Final = 5.0

_F = TypeVar("_F", bound=Callable[..., Any])


def pool_targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch in ``concurrent.futures.thread``: ``submit``, which ``map`` and ``run_in_executor`` go through too."""
    return ((module.ThreadPoolExecutor, "submit", _carry_submitted),)


def _carry_submitted(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        carried = _with_tags_of_here(fn)
        return original(self, fn if carried is None else carried, *args, **kwargs)

    return submit


@guarded
def _with_tags_of_here(function: Callable[..., Any]) -> Callable[..., Any] | None:
    state = owner()
    return carry_tags(function) if state is not None and state.config.propagate_tags else None


def carry_tags(function: _F) -> _F:
    """Take the tags (and the request they belong to) of here into another thread: ``executor.submit(carry_tags(work))``.

    *function* may be a coroutine, a generator or an async generator as well. Only our own context variables are carried: an
    app context, and with it the app's database session, stays where it is. May be called many times and from several
    threads at once.
    """
    values, request = tags_here.get().values, _asked_request()
    return around(function, lambda: _Elsewhere(values, request))


class _Elsewhere(Inside):
    """The tags of another place, and its request."""

    __slots__ = ("_request", "_request_here")

    def __init__(self, values: Mapping[str, Any], request: RequestTags | CarriedApp | None) -> None:
        super().__init__(values, alone=True)
        self._request = request

    def __enter__(self) -> None:
        super().__enter__()
        self._request_here = request_here.get()
        request_here.set(self._request)

    def leave(self) -> bool:
        left = super().leave()
        if left:
            request_here.set(self._request_here)
        return left


@guarded
def _asked_request() -> RequestTags | CarriedApp | None:
    """The request of here, its tagger asked: in another thread it may be over, or its context another one."""
    request, state = current_request(), owner()
    if request is None:
        return CarriedApp(state.app) if state is not None else None
    if state is not None and request.app is state.app:
        request.tags(state)
    return request


def follow_tasks(celery: Celery, flush: Callable[[float], bool]) -> None:
    """Give Celery's tasks the tags of whoever enqueued them and ``job``, and flush when they end.

    A worker process that ends takes its thread with it without a word, so nothing is left for later.
    """
    from celery import signals

    @guarded
    def published(headers: dict[str, Any] | None = None, **_: Any) -> None:
        state = owner()
        if state is not None and headers is not None:
            headers[_HEADER] = collect_tags(state)

    @guarded
    def started(task: Any = None, **_: Any) -> None:
        if task.app is not celery:
            return
        carried = getattr(task.request, _HEADER, None) or (task.request.headers or {}).get(_HEADER)
        block = tags(**{**(carried if isinstance(carried, Mapping) else {}), "job": task.name})
        block.__enter__()
        setattr(task.request, _ON_REQUEST, block)

    @guarded
    def ended(task: Any = None, **_: Any) -> None:
        if task.app is not celery:
            return
        block = getattr(task.request, _ON_REQUEST, None)
        if block is not None:
            block.__exit__(None, None, None)
        flush(_TASK_SECONDS)

    @guarded
    def stopping(**_: Any) -> None:
        flush(_WORKER_SECONDS)

    for signal, receiver in (
        (signals.before_task_publish, published),
        (signals.task_prerun, started),
        (signals.task_postrun, ended),
        (signals.worker_process_shutdown, stopping),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=f"llm-cost-{receiver.__name__}-{id(celery)}")
