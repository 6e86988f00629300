"""Another body in a request's place while it is sent: the app has its own back when the last who sends it is done.

An app may send one request by several threads or tasks at once, to take the answer that comes first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask_llm_cost.capture.guard import guarded


@dataclass(slots=True)
class _Lent:
    own: bytes | None
    restore: Callable[[], None]
    senders: int = 1


#: By the identity of the request, which whoever sends it keeps alive.
_lent: dict[int, _Lent] = {}

#: Taken twice by a thread in which the collector runs an app's code in between.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # whoever held the parent's is not in the child
    _lent.clear()  # nor is whoever would give back


os.register_at_fork(after_in_child=_after_fork)


def own_body(request: Any, read: Callable[[], bytes | None]) -> bytes | None:
    """The body that the app gave a request, also while another is sent in its place.

    :param read: gives the body that the request has now
    """
    with _lock:
        lent = _lent.get(id(request))
        return read() if lent is None else lent.own


@guarded
def lend(request: Any, read: Callable[[], bytes | None], replace: Callable[[], Callable[[], None]]) -> bool:
    """Put another body in place, unless another sender has. True asks for :func:`give_back`.

    :param replace: puts it there, and gives what takes it back
    """
    with _lock:
        lent = _lent.get(id(request))
        if lent is None:
            _lent[id(request)] = _Lent(read(), replace())
        else:
            lent.senders += 1
        return True


@guarded
def give_back(request: Any) -> None:
    """One sender is done."""
    with _lock:
        lent = _lent[id(request)]
        lent.senders -= 1
        if not lent.senders:
            del _lent[id(request)]
            lent.restore()
