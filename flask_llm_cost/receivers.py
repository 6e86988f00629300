"""Tells the receivers of signals, in a thread of their own: a slow one holds up neither a call nor the ledger."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from blinker import Signal
from flask import Flask

from flask_llm_cost.ledger import lifecycle
from flask_llm_cost.log import log

#: News that wait while a receiver is slow; beyond it the oldest are given up. The rows are safe long before.
MOST_WAITING: Final = 10_000
_LINGER_SECONDS: Final = 5.0
_MINUTE: Final = 60.0


class Receivers:
    """What the receivers of one app have not been told yet. Starts its thread at the first news that somebody listens to."""

    def __init__(self, app: Flask) -> None:
        self._app = weakref.ref(app)
        self._testing = app.testing
        self._told_at = float("-inf")
        self._given_up = 0
        self._begin()
        lifecycle.listeners.add(self)

    def _begin(self) -> None:
        self._news: deque[tuple[Flask, Signal, Mapping[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._telling = False

    def tell(self, signal: Signal, facts: Mapping[str, Any]) -> None:
        """Have the receivers of *signal* told, soon and in order, and return at once."""
        if lifecycle.threads_are_off():
            self.tell_here(signal, facts)
            return
        app = self._app()
        if app is None or not signal.receivers:
            return
        with self._changed:
            self._news.append((app, signal, facts))
            if len(self._news) > MOST_WAITING:
                self._news.popleft()
                self._given_up += 1
                self._complain()
            self._start()
            self._changed.notify_all()

    def _start(self) -> None:
        """Start the thread, if there is none: somebody may have ended it."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="llm-cost-receivers", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending
                self._thread = None
                self._news.clear()

    def tell_here(self, signal: Signal, facts: Mapping[str, Any]) -> None:
        """Tell them in this thread, where there can be no other, or the database has one connection, which is this one's."""
        app = self._app()
        if app is not None and signal.receivers:
            _tell(app, signal, facts)

    def settle(self, timeout: float) -> bool:
        """Whether all have been told within *timeout* seconds. A receiver that asks this itself is not waited for."""
        with self._changed:
            if threading.current_thread() is self._thread:
                return False
            if self._news:
                self._start()
            wait = min(max(0.0, timeout), threading.TIMEOUT_MAX)
            return self._changed.wait_for(lambda: not self._news and not self._telling, wait)

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                if not changed.wait_for(lambda: bool(self._news), _LINGER_SECONDS) or changed is not self._changed:
                    self._thread = None
                    return
                app, signal, facts = self._news.popleft()
                self._telling = True
            try:
                # Whatever one raises, sys.exit() too, the next are told all the same.
                _tell(app, signal, facts, BaseException)
            finally:
                # An app that is gone must be able to go.
                del app, facts
                with changed:
                    self._telling = False
                    changed.notify_all()

    def _complain(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= _MINUTE:
            self._told_at = now
            log.warning(
                "a receiver of signals is too slow: %d signals were given up so far; no call is lost", self._given_up
            )

    def after_fork_in_child(self) -> None:
        """The parent tells its own."""
        self._begin()

    def close_at_exit(self, patience: float) -> None:
        self.settle(0.0 if self._testing else patience)


def _tell(app: Flask, signal: Signal, facts: Mapping[str, Any], caught: type[BaseException] = Exception) -> None:
    for receiver in list(signal.receivers_for(app)):
        try:
            with app.app_context():
                receiver(app, **facts)
        except caught as error:
            log.warning("a receiver of %s raised %s", signal.name, type(error).__name__)  # type: ignore[attr-defined]
