"""Forks and the end of the process: what every ledger in it must know of."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Final, Protocol

EXIT_SECONDS: Final = 2.0
FORK_SECONDS: Final = 1.0
THREADS_ON: Final = "set enable-threads = true in uWSGI's configuration"
NO_THREADS: Final = f"uWSGI runs no threads, so each call is written before it returns; {THREADS_ON}"


class Living(Protocol):
    """What is told."""

    def before_fork(self, patience: float) -> None: ...
    def after_fork_in_parent(self) -> None: ...
    def after_fork_in_child(self) -> None: ...
    def close_at_exit(self, patience: float) -> None: ...


class Listening(Protocol):
    """What is told after the ledgers, whose last writes are news to it."""

    def after_fork_in_child(self) -> None: ...
    def close_at_exit(self, patience: float) -> None: ...


ledgers: weakref.WeakSet[Living] = weakref.WeakSet()
listeners: weakref.WeakSet[Listening] = weakref.WeakSet()
_testing_folders: dict[int, Path] = {}
_pid = os.getpid()
_noticing = threading.RLock()


def threads_are_off() -> bool:
    """Whether this is a uWSGI process whose threads stand still, in whatever they do, whenever no request is served.

    Source: uWSGI up to 2.0.26, where neither ``enable-threads`` nor ``threads`` is set; later ones always run threads
    """
    return not getattr(sys.modules.get("uwsgi"), "has_threads", True)


def notice_fork() -> None:
    """Catch up on a fork that Python does not know of: uWSGI runs no hooks at its own, unless it is told to."""
    if os.getpid() != _pid:
        with _noticing:
            if os.getpid() != _pid:
                _after_fork_in_child()


def testing_folder() -> Path:
    """Where an app that is being tested spools: one folder a process, gone at its end."""
    pid = os.getpid()
    if pid not in _testing_folders:
        _testing_folders[pid] = Path(tempfile.mkdtemp(prefix="flask-llm-cost-test-"))
    return _testing_folders[pid]


def _before_fork() -> None:
    deadline = time.monotonic() + FORK_SECONDS
    for ledger in list(ledgers):
        ledger.before_fork(deadline - time.monotonic())


def _after_fork_in_parent() -> None:
    for ledger in list(ledgers):
        ledger.after_fork_in_parent()


def _after_fork_in_child() -> None:
    global _pid, _noticing
    for ledger in list(ledgers):
        ledger.after_fork_in_child()
    for listener in list(listeners):
        listener.after_fork_in_child()
    _pid, _noticing = os.getpid(), threading.RLock()


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    for ledger in list(ledgers):
        ledger.close_at_exit(deadline - time.monotonic())
    for listener in list(listeners):
        listener.close_at_exit(deadline - time.monotonic())
    folder = _testing_folders.pop(os.getpid(), None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
