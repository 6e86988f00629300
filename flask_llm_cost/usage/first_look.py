"""The first look at a request, taken of everything that an app sends: one search in its address, half a microsecond.

What any app of this process taught is in it: it only lets a request through to a closer look, which asks the app itself.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

#: Paths that are longer are sought anew each time: those that come again and again are short.
_SHORT: Final = 200


class FirstLook:
    """Whether a request may be a call. Rather says yes too often than misses one."""

    __slots__ = ("_ends", "_lock", "_remembered", "find", "hosts")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: tuple[str, ...] = ()
        #: Names of hosts, without a port, on which every path may be a call's.
        self.hosts: frozenset[str] = frozenset()
        #: Whether an address may be a call's, by its host, where it has one, or by how it ends: a match, or ``None``.
        self.find: Callable[[str], Any] = lambda _: None
        self._remembered: Callable[[str], Any] = self.find

    def of_path(self, path: str) -> bool:
        """Whether a path, without its query, may be a call's. What was found is remembered: most come again and again."""
        return (self._remembered if len(path) <= _SHORT else self.find)(path) is not None

    def of_url(self, url: str) -> bool:
        """The same of a whole address. It is remembered without its query, and not where a password may be in it."""
        bare = url.partition("?")[0]
        return self.of_path(bare) if "@" not in bare else self.find(bare) is not None

    def teach(self, *, ends: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """Let more requests through.

        :param ends: patterns of how a path ends, without their first slash
        :param hosts: in lower case, with a port or without
        """
        with self._lock:
            more = tuple(dict.fromkeys((*self._ends, *ends)))
            known = self.hosts | {_name(host) for host in hosts}
            if len(more) == len(self._ends) and len(known) == len(self.hosts):
                return
            self._ends, self.hosts = more, known
            path = "(?:" + "|".join(more) + r")/?(?:[?#]|\Z)"
            names = "|".join(re.escape(host) for host in sorted(known))
            # One search, that begins at each slash: asking for the host apart would take as long again.
            host = rf"|/(?:[^/?#]*@)?\[?(?i:{names})\]?(?::\d*)?(?:[/?#]|\Z)" if known else ""
            self.find = re.compile(f"/(?:{path}{host})").search
            self._remembered = functools.lru_cache(maxsize=512)(self.find)


def _name(host: str) -> str:
    """A host without its port, as the client libraries say it: an address of IPv6 without its brackets."""
    return host[1:].partition("]")[0] if host[:1] == "[" else host.partition(":")[0]


first_look: Final = FirstLook()
