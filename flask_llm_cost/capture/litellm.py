"""``litellm``: it sends by other libraries, and makes every error one of its own. Ours are taken out where it does."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from flask_llm_cost.errors import BudgetExceededError

_DEEPEST: Final = 20


def targets(module: ModuleType) -> tuple[tuple[ModuleType, str, Callable[..., Any]], ...]:
    """What to patch where litellm maps errors, and in those of its modules that have the function already."""
    original = module.__dict__["exception_type"]
    loaded = [other for name, other in list(sys.modules.items()) if name.partition(".")[0] == "litellm"]
    owners = [other for other in loaded if getattr(other, "__dict__", {}).get("exception_type") is original]
    return tuple((owner, "exception_type", _let_ours_pass) for owner in owners)


def stream_targets(module: ModuleType) -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """What to patch where litellm wraps the error of a stream once more; not every version does."""
    wrapper: type = module.CustomStreamWrapper
    name = "_handle_stream_fallback_error"
    return ((wrapper, name, _let_ours_pass),) if name in wrapper.__dict__ else ()


def _let_ours_pass(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def handle(*args: Any, **kwargs: Any) -> Any:
        # Either is called with the error as its second argument, after a model's name or itself.
        given = kwargs.get("original_exception", args[1] if len(args) > 1 else None)
        if (ours := _beneath(given)) is not None:
            raise ours from None
        return original(*args, **kwargs)

    return handle


def _beneath(error: Any) -> BudgetExceededError | None:
    """The budget's refusal that an error of litellm was made of."""
    for _ in range(_DEEPEST):
        if not isinstance(error, BaseException):
            return None
        if isinstance(error, BudgetExceededError):
            return error if _was_caught_by_litellm(error) else None
        error = error.__cause__ or error.__context__
    return None


def _was_caught_by_litellm(error: BaseException) -> bool:
    """An app that tries another model when one is refused has the first refusal beneath every later error, too."""
    trace = error.__traceback__
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "litellm"
