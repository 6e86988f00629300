"""The first look at a request, taken of everything that an app sends: one search in its address, about a microsecond.

What any app of this process taught is in it: it only lets a request through to a closer look, which asks the app itself.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final


class FirstLook:
    """Whether a request may be a call. Rather says yes too often than misses one."""

    __slots__ = ("_ends", "_lock", "find", "find_bytes", "hosts")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: tuple[str, ...] = ()
        #: Names of hosts, without a port, on which every path may be a call's.
        self.hosts: frozenset[str] = frozenset()
        #: Whether an address, with or without its query, ends like a call's: a match, or ``None``. In text, and in bytes.
        self.find: Callable[[str], Any] = lambda _: None
        self.find_bytes: Callable[[bytes], Any] = lambda _: None

    def teach(self, *, ends: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """Let more requests through.

        :param ends: patterns of how a path ends, without their first slash
        :param hosts: in lower case, with a port or without
        """
        with self._lock:
            self.hosts |= {_name(host) for host in hosts}
            more = tuple(dict.fromkeys((*self._ends, *ends)))
            if len(more) > len(self._ends):
                self._ends, pattern = more, "/(?:" + "|".join(more) + r")/?(?:[?#]|\Z)"
                self.find, self.find_bytes = re.compile(pattern).search, re.compile(pattern.encode()).search

    def of_url(self, url: str) -> bool:
        """Whether a request to a whole address may be a call."""
        return self.find(url) is not None or bool(self.hosts and _host(url) in self.hosts)


def _host(url: str) -> str:
    parts = url.split("/", 3)
    return _name(parts[2].rpartition("@")[2].lower()) if len(parts) > 2 else ""


def _name(host: str) -> str:
    """A host without its port, as the client libraries say it: an address of IPv6 without its brackets."""
    return host[1:].partition("]")[0] if host[:1] == "[" else host.partition(":")[0]


first_look: Final = FirstLook()
