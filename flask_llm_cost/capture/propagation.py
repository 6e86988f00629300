"""Carrying tags where context variables do not go: into thread pools, and into Celery's tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from flask_llm_cost.capture.attribution import collect_tags, owner, request_here
from flask_llm_cost.capture.guard import guarded
from flask_llm_cost.tags import tags, tags_here

if TYPE_CHECKING:
    from celery import Celery

_HEADER: Final = "llm_cost_tags"
_ON_REQUEST: Final = "_llm_cost_block"
_FLUSH_SECONDS: Final = 5.0


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
    """*function* with our own context variables and no others, which are not ours to carry."""
    state = owner()
    if state is None or not state.config.propagate_tags:
        return None
    block, request = tags_here.get(), request_here.get()

    def run(*args: Any, **kwargs: Any) -> Any:
        before = tags_here.get(), request_here.get()
        tags_here.set(block)
        request_here.set(request)
        try:
            return function(*args, **kwargs)
        finally:
            tags_here.set(before[0])
            request_here.set(before[1])

    return run


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
        flush(_FLUSH_SECONDS)

    @guarded
    def stopping(**_: Any) -> None:
        flush(_FLUSH_SECONDS)

    for signal, receiver in (
        (signals.before_task_publish, published),
        (signals.task_prerun, started),
        (signals.task_postrun, ended),
        (signals.worker_process_shutdown, stopping),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=f"llm-cost-{receiver.__name__}-{id(celery)}")
