"""The wall between our work and the app's call: nothing that goes wrong on our side passes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flask_llm_cost.log import log

_P = ParamSpec("_P")
_T = TypeVar("_T")


def guarded(function: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Run our own work inside the app's call: whatever goes wrong in it is logged by name, and the call goes on."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            report(error)
            return None

    return run


def report(error: Exception) -> None:
    """Say what went wrong on our side, by name."""
    log.warning("watching an LLM call failed with %s: the call itself is not affected", type(error).__name__)
