"""The spool: an append-only file in which records wait, safe from a killed process, until the database has them.

A record is one ``os.write``. No lock is taken and nothing is logged while writing, so that a finaliser that the garbage
collector runs in the middle of anything can record too. The files of one process form a chain of generations: the drain
seals the last one by hanging a successor on it, waits for writers that are still inside, reads it, and unlinks it once
the database has its records. ``dict.setdefault`` and ``list.append`` are atomic, and all that is relied on.

The owner of a file keeps an ``flock`` on it. A file without one has lost its process, and anybody with the same ledger may
adopt it (:mod:`flask_llm_cost.ledger.adoption`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from flask_llm_cost.ledger import locks
from flask_llm_cost.ledger.folders import NEW_SUFFIX, private_folder
from flask_llm_cost.ledger.lines import FORMAT, HEADER, LOST, STARTED, encode, is_whole, pack, unpack
from flask_llm_cost.records import CallRecord

SUFFIX: Final = ".spool"

#: A file that has grown to this is sealed even while the database is away.
ROTATE_BYTES: Final = 4 * 1024 * 1024

_NEXT: Final = 0
_CHUNK: Final = 1024 * 1024

#: What a line has that may be no call's. A call may have a tag of that name, so its fields decide.
_KIND: Final = b'"kind":'
_NO_CALL: Final = (HEADER, STARTED, LOST)


class UnreadableError(Exception):
    """What a spool file holds cannot be had back from the operating system."""


def is_call(line: bytes) -> bool:
    """Whether a line is a whole one of a finished call."""
    line = line.strip(b"\n")
    if _KIND in line:
        fields = unpack(line)
        return fields is not None and fields.get("kind") not in _NO_CALL
    return is_whole(line)


def count_calls(path: Path) -> int:
    """How many finished calls are in a spool or quarantine file; 0 where it is gone."""
    try:
        with path.open("rb") as file:
            return sum(is_call(line) for line in file)
    except OSError:
        return 0


@dataclass(slots=True, eq=False)
class Generation:
    """One link of the chain: a file, or a deque where no file can be written.

    :param place: index of the folder; the number of folders stands for memory
    :param base: bytes that were there before anybody recorded
    :param counted: how many finished calls are in it, once that cannot change any more
    """

    place: int
    path: Path | None
    fd: int
    lines: deque[bytes] | None
    inflight: list[None]
    successor: dict[int, Generation]
    base: int = 0
    counted: int | None = None

    @classmethod
    def in_file(cls, folder: Path, place: int, header: bytes) -> Generation:
        """:raises OSError: the folder cannot hold a spool file"""
        folder = private_folder(folder)
        stem = f"{os.getpid()}-{time.time_ns()}"
        fresh = folder / (stem + NEW_SUFFIX)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            locks.take(fd)
            if os.write(fd, header) != len(header):
                raise OSError(errno.ENOSPC, "no space for a header")
            path = folder / (stem + SUFFIX)
            os.rename(fresh, path)
        except OSError:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        return cls(place, path, fd, None, [], {}, len(header))

    @classmethod
    def in_memory(cls, place: int) -> Generation:
        return cls(place, None, -1, deque(), [], {})

    @classmethod
    def closed(cls) -> Generation:
        """Takes nothing, so that whoever still comes opens a file anew."""
        return cls(-1, None, -1, None, [], {})

    def write(self, line: bytes) -> bool:
        """Whether the whole line is there."""
        if self.lines is not None:
            self.lines.append(line)
            return True
        if self.fd < 0:
            return False
        try:
            return os.write(self.fd, line) == len(line)
        except OSError:
            return False

    @property
    def size(self) -> int:
        """Bytes."""
        if self.lines is not None:
            return sum(map(len, list(self.lines)))
        return os.fstat(self.fd).st_size if self.fd >= 0 else 0

    @property
    def fresh(self) -> bool:
        """Whether nobody has recorded here yet."""
        return self.size <= self.base

    def quiet(self, patience: float) -> bool:
        """Whether no writer is inside any more; waits *patience* seconds for that. Only a sealed one stays quiet."""
        deadline = time.monotonic() + patience
        while self.inflight:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    @property
    def gone(self) -> bool:
        """Whether somebody has deleted the file. What is in it can be read as long as we hold it, and no longer."""
        try:
            return self.fd >= 0 and not os.fstat(self.fd).st_nlink
        except OSError:  # closed just now
            return False

    def read(self) -> Iterator[bytes]:
        """Every line that was written, whole or torn, without its newline. Through the descriptor: the path may be gone.

        :raises UnreadableError: it cannot be read
        """
        if self.lines is not None:
            yield from (line.strip(b"\n") for line in list(self.lines))
            return
        offset, rest = 0, b""
        while self.fd >= 0:
            try:
                chunk = os.pread(self.fd, _CHUNK, offset)
            except OSError as error:
                raise UnreadableError(errno.errorcode.get(error.errno or 0, type(error).__name__)) from None
            if not chunk:
                break
            offset += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            yield from filter(None, lines)
        if rest:
            yield rest

    def calls(self) -> int:
        """How many finished calls wait here; 0 for what cannot be read."""
        if self.counted is not None:
            return self.counted
        # By its path where there is one: while somebody else asks, the drain may close the descriptor.
        if self.path is not None and self.path.exists():
            count = count_calls(self.path)
        else:
            try:
                count = sum(is_call(line) for line in self.read())
            except UnreadableError:
                return 0
        if self.successor and not self.inflight:
            self.counted = count
        return count

    def lost(self) -> int:
        """How many calls were given up before, by the lines that say so; 0 for what cannot be read."""
        try:
            found = [unpack(line) for line in self.read() if _KIND in line]
        except UnreadableError:
            return 0
        return sum(int(fields["calls"]) for fields in found if fields is not None and fields.get("kind") == LOST)

    def release(self) -> None:
        """Close the descriptor, which gives up the lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """The database has it. Unlinked before the lock is given up, so that nobody adopts it."""
        if self.path is not None:
            with contextlib.suppress(OSError):  # left there, it is adopted, and found to be in the database
                self.path.unlink(missing_ok=True)
        self.release()


class Spool:
    """The spool of one process and one ledger. Belongs to the process that made it: a forked child makes its own.

    :param folders: where files may live, best first; after them comes memory
    :param identity: of the ledger, so that only an app with the same one adopts its files
    """

    def __init__(self, folders: Sequence[Path], identity: str) -> None:
        self.folders = tuple(folders)
        self.identity = identity
        #: ``(place, error name)`` of each folder that failed since the drain last told of it.
        self.troubles: deque[tuple[int, str]] = deque(maxlen=16)
        self._header = pack({"kind": HEADER, "format": FORMAT, "ledger": identity})
        self._starts: dict[UUID, bytes] = {}
        self._head = self._tail = self._open(0)

    def _open(self, place: int) -> Generation:
        for index in range(max(place, 0), len(self.folders)):
            try:
                return Generation.in_file(self.folders[index], index, self._header)
            except OSError as error:
                self.troubles.append((index, errno.errorcode.get(error.errno or 0, type(error).__name__)))
        return Generation.in_memory(len(self.folders))

    # The app's side: no locks, no logging.

    def started(self, record: CallRecord) -> None:
        """Keep that a call has begun, so that it shows as interrupted should the process die in the middle of it."""
        line = encode(record, STARTED)
        self._starts[record.id] = line
        self.append(line)

    def ended(self, call_id: UUID) -> None:
        """The call is recorded, here or elsewhere."""
        self._starts.pop(call_id, None)

    def append(self, line: bytes) -> None:
        """Returns when the line is in the file (in the operating system's hands), or in memory where there is no file."""
        generation = self._tail
        while True:
            while (successor := generation.successor.get(_NEXT)) is not None:
                generation = successor
            generation.inflight.append(None)
            try:
                if generation.successor:
                    continue
                if generation.write(line):
                    return
            finally:
                generation.inflight.pop()
            if generation.path is not None:
                self.troubles.append((generation.place, "ENOSPC"))
            self._hang(generation, self._open(generation.place + 1))

    @staticmethod
    def _hang(generation: Generation, successor: Generation) -> bool:
        if generation.successor.setdefault(_NEXT, successor) is successor:
            return True
        successor.remove()
        return False

    # The drain's side.

    @property
    def tail(self) -> Generation:
        """Where records go now."""
        generation = self._tail
        while (successor := generation.successor.get(_NEXT)) is not None:
            generation = successor
        return generation

    @property
    def folder(self) -> Path | None:
        """Where records go now; ``None`` for memory."""
        path = self.tail.path
        return path.parent if path is not None else None

    def seal(self) -> None:
        """Start a new generation if anybody has recorded in this one, or deleted its file, the best place first."""
        old = self.tail
        if old.fresh and not old.gone:
            return
        new = self._open(0)
        if self._hang(old, new):
            # What is still under way must outlive the file that says so.
            starts = list(self._starts.copy().values())
            new.base += sum(map(len, starts))
            self._tail = new
            for line in starts:
                self.append(line)

    def sealed(self) -> Generation | None:
        """The oldest generation that waits for the database."""
        return self._head if self._head.successor else None

    def drained(self, generation: Generation) -> None:
        """The oldest generation is in the database, or given up."""
        self._head = generation.successor[_NEXT]
        generation.remove()

    def chain(self) -> Iterator[Generation]:
        """Every generation that is not in the database yet, oldest first."""
        generation: Generation | None = self._head
        while generation is not None:
            yield generation
            generation = generation.successor.get(_NEXT)

    def waiting(self) -> int:
        """How many finished calls of this process are not in the database yet."""
        return sum(generation.calls() for generation in self.chain())

    def close(self) -> None:
        """Leave nothing behind where nothing waits. Records that still come after this open a file anew."""
        old = self.tail
        if self._starts or not old.fresh or self.sealed() is not None:
            return
        if self._hang(old, Generation.closed()) and old.quiet(0.1) and old.fresh:
            self.drained(old)

    @property
    def empty(self) -> bool:
        """Whether everything that was recorded is in the database."""
        return self.sealed() is None and self.tail.fresh

    def forsake(self) -> None:
        """The ledger is gone, and nobody records here any more. What waits stays in its file, for whoever adopts it."""
        self.close()
        if self.tail.fresh and not self._starts:
            self.tail.remove()
        self.abandon()

    def abandon(self) -> None:
        """In a forked child: the parent owns all of it. Closed without unlocking, which would unlock the parent's file."""
        for generation in self.chain():
            generation.release()
