"""Between those who talk to a database and a fork: a child that is made in the middle has SQLite's locks, taken for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

#: A fork is over by then: nobody is kept waiting for longer.
_SHUT_SECONDS: Final = 1.5


class Gate:
    """As a context, around everything that talks to the database. Any number may be inside, and a thread more than once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: list[int] = []
        self._forking: set[int] = set()

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            # Whoever is inside is waited for, so it must get on; whoever forks would wait for itself.
            if me not in self._inside and me not in self._forking:
                self._changed.wait_for(lambda: not self._forking, _SHUT_SECONDS)
            self._inside.append(me)

    def __exit__(self, *_: object) -> None:
        # First of all, and without a lock: one who is ended in waiting for it would count as inside for good.
        self._inside.remove(threading.get_ident())
        if self._forking:
            with self._changed:
                self._changed.notify_all()

    def shut(self, seconds: float, but: Callable[[], int] = lambda: 0) -> None:
        """Before a fork: let nobody in, and wait so long for those who are inside.

        :param but: how many of them are not worth it
        """
        me = threading.get_ident()
        with self._changed:
            self._forking.add(me)
            self._changed.wait_for(lambda: sum(other != me for other in self._inside) <= but(), seconds)

    def open(self) -> None:
        """After it, in the parent."""
        with self._changed:
            self._forking.discard(threading.get_ident())
            self._changed.notify_all()
