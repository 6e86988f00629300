"""Threads of our own that ask the database, so that a call waits for it so long and no longer, and an event loop never.

A driver may hang for minutes in a connect or a read, whatever its settings: only a thread that can be left behind keeps a
promise of half a second. What such a thread has taken when it comes back too late, it gives back itself.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from flask_llm_cost.ledger import lifecycle

T = TypeVar("T")

#: How many threads of a process ask at the same time.
THREADS: Final = 8
_IDLE_SECONDS: Final = 10.0


class LateError(Exception):
    """The answer did not come in time."""


class Job(Generic[T]):
    """Something to ask, and who waits for the answer.

    :param undo: what to do with an answer that nobody waits for any more
    """

    def __init__(self, work: Callable[[], T], undo: Callable[[T], None]) -> None:
        self._work = work
        self._undo = undo
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._wakers: list[Callable[[], None]] = []
        self._left = False
        self._answer: T | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        if self.left:
            return
        try:
            answer = self._work()
        except Exception as error:
            self._finish(None, error)
        except BaseException:  # this thread is being ended, and not that of who waits
            self._finish(None, LateError())
            raise
        else:
            self._finish(answer, None)

    def _finish(self, answer: T | None, error: Exception | None) -> None:
        with self._lock:
            self._answer, self._error = answer, error
            self._done.set()
            late, wakers = self._left, self._wakers
        for wake in wakers:
            wake()
        if late:
            self._undo_answer()

    @property
    def left(self) -> bool:
        """Whether nobody waits any more."""
        return self._left

    def leave(self) -> bool:
        """Stop waiting. Whether the answer was not there yet: then it is undone when it comes."""
        with self._lock:
            self._left = not self._done.is_set()
            return self._left

    def take(self) -> T:
        """The answer, which is there."""
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]  # there was no error

    def _undo_answer(self) -> None:
        if self._error is None:
            self._undo(self._answer)  # type: ignore[arg-type]  # there was no error, so it is the answer

    def give_back(self) -> None:
        """Undo the answer, whether it is there or still to come."""
        if not self.leave():
            self._undo_answer()

    def wait(self, seconds: float) -> T:
        """The answer.

        :raises LateError: it was not there in time
        """
        try:
            self._done.wait(seconds)
        except BaseException:  # an interrupt, a timeout of the host's own
            self.give_back()
            raise
        if self.leave():
            raise LateError
        return self.take()

    async def wait_async(self, seconds: float) -> T:
        """The same for a coroutine, whose loop goes on meanwhile.

        :raises LateError: it was not there in time
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # another kind of loop, such as trio's; httpx brings what speaks to it
            from anyio import to_thread

            return await to_thread.run_sync(self.wait, seconds)
        answered = asyncio.Event()
        with self._lock:
            if not self._done.is_set():
                self._wakers.append(lambda: _wake(loop, answered))
            else:
                answered.set()
        try:
            await asyncio.wait_for(answered.wait(), seconds)
        except TimeoutError:
            if self.leave():
                raise LateError from None
        except BaseException:  # cancelled
            self.give_back()
            raise
        return self.take()


def _wake(loop: asyncio.AbstractEventLoop, answered: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(answered.set)
    except RuntimeError:  # the loop is closed: whoever waited is gone
        return


class Desk:
    """Runs jobs in threads that come when they are needed and go when they are not.

    :param threads: how many jobs run at the same time
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._most = threads
        self._changed = threading.Condition()
        self._jobs: deque[Job[Any]] = deque()
        #: By what is asked: where the answer will be, and who waits for it.
        self._shared: dict[Hashable, tuple[list[Any], list[Job[Any]]]] = {}
        self._threads = 0
        self._idle = 0
        self._busy = 0
        self._shut = False

    def submit(self, work: Callable[[], T], undo: Callable[[T], None] = lambda _: None) -> Job[T]:
        """Hand in work. Where no thread can be started, it is done here and now."""
        job = Job(work, undo)
        if lifecycle.threads_are_off():
            job.run()
            return job
        with self._changed:
            self._jobs.append(job)
            start = self._begin_thread()
            if not start:
                self._changed.notify()
        if start:
            try:
                self._start()
            except RuntimeError:  # at the interpreter's end
                with self._changed:
                    self._jobs.remove(job)
                job.run()
        return job

    def _begin_thread(self) -> bool:
        """Whether one more thread is needed, which is counted from now on."""
        start = self._idle < len(self._jobs) and self._threads < self._most
        self._threads += start
        return start

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="llm-cost-budgets", daemon=True).start()
        except RuntimeError:
            with self._changed:
                self._threads -= 1
            raise

    def share(self, question: Hashable, work: Callable[[], T]) -> Job[T]:
        """Hand in work that others may wait for already: done once for all of them. Where it raises, none is answered."""
        with self._changed:
            first = question not in self._shared
            answers, waiting = self._shared.setdefault(question, ([], []))
            job: Job[T] = Job(lambda: answers[0], lambda _: None)
            waiting.append(job)
        if first:
            self.submit(functools.partial(self._answer, question, work))
        return job

    def _answer(self, question: Hashable, work: Callable[[], Any]) -> None:
        found: list[Any] = []
        try:
            found.append(work())
        finally:  # whatever went wrong, the next one asks again
            with self._changed:
                answers, waiting = self._shared.pop(question)
        answers.extend(found)
        for job in waiting:
            job.run()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                try:
                    job.run()
                finally:
                    with self._changed:
                        self._busy -= 1
                        self._changed.notify_all()
                del job
        finally:  # also where somebody ends this thread; what was handed in meanwhile is for another one
            with self._changed:
                self._threads -= 1
                start = self._begin_thread()
            if start:
                with suppress(RuntimeError):
                    self._start()

    def _next(self) -> Job[Any] | None:
        with self._changed:
            self._idle += 1
            try:
                deadline = time.monotonic() + _IDLE_SECONDS
                while self._shut or not self._jobs:
                    if (left := deadline - time.monotonic()) <= 0 and not self._jobs:
                        return None
                    self._changed.wait(max(left, 0.05))
            finally:
                self._idle -= 1
            self._busy += 1
            return self._jobs.popleft()

    @property
    def waiting(self) -> int:
        """How many jobs nobody has begun with."""
        return len(self._jobs)

    def settle(self, seconds: float) -> bool:
        """Whether all that was handed in was done within *seconds*."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._jobs or self._busy:
                if (left := deadline - time.monotonic()) <= 0:
                    return False
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
        return True

    def pause(self, seconds: float) -> None:
        """Before a fork: let nobody begin, and wait a little for those who are at it."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._shut = True
            while self._busy and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def resume(self) -> None:
        """After it, in the parent."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()
