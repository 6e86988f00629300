"""Records that the database refuses: kept in a file beside the spool, and put back into it when somebody asks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from flask_llm_cost.ledger.folders import places, private_folder
from flask_llm_cost.ledger.spool import Spool, is_call

SUFFIX: Final = ".quarantine"


def files(folders: Sequence[Path], identity: str) -> list[Path]:
    """The quarantine files of ledger *identity*."""
    found = [folder / f"{identity}{SUFFIX}" for folder in places(folders)]
    return [path for path in found if path.is_file()]


def set_aside(folders: Sequence[Path], identity: str, line: bytes) -> None:
    """Keep a line where ``flask llm-cost spool`` finds it, and out of the way.

    :raises OSError: no folder could be written
    """
    failure = OSError(errno.EROFS, "no folder for what is set aside")
    for folder in folders:
        try:
            with _held(private_folder(folder) / f"{identity}{SUFFIX}", os.O_CREAT | os.O_APPEND) as fd:
                if os.write(fd, line) == len(line):
                    return
        except OSError as error:
            failure = error
    raise failure


def put_back(folders: Sequence[Path], identity: str) -> int:
    """Put what was set aside into a spool file that any process of the same ledger adopts. How many calls that are.

    Killed in the middle, it leaves some of them in both places: what is in the database already is found to be there.

    :raises OSError: a file could not be read or written
    """
    calls = 0
    for path in files(folders, identity):
        with contextlib.suppress(FileNotFoundError), _held(path, 0) as fd:
            lines = [line for line in os.pread(fd, os.fstat(fd).st_size, 0).split(b"\n") if line]
            spool = Spool([path.parent], identity)
            for line in lines:
                spool.append(b"\n" + line + b"\n")
            if spool.folder is None:
                spool.abandon()
                raise OSError(errno.ENOSPC, "no room for what is put back")
            spool.abandon()
            path.unlink()
            calls += sum(map(is_call, lines))
    return calls


@contextlib.contextmanager
def _held(path: Path, flags: int) -> Iterator[int]:
    """*path*, open and locked, so that nothing is added to a file that is about to go."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                yield fd
                return
        finally:
            os.close(fd)
