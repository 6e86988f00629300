"""Folders in which spool files may live: private to this user, and never anybody else's to change."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: A file that has no name for good yet.
NEW_SUFFIX: Final = ".new"
#: Holds the files where the folder that was named is one that others read.
SUBFOLDER: Final = "llm_cost_spool"


def places(folders: Sequence[Path]) -> list[Path]:
    """Where spool files may be: in each of *folders*, or in the private folder inside it."""
    return [place for folder in folders for place in (folder, folder / SUBFOLDER)]


def place_in(folder: Path) -> Path:
    """*folder* where it is private to this user or does not exist yet, the private folder inside it where others read it.

    :raises OSError: it cannot be looked at, is no folder (a symbolic link is none), or belongs to another user than root
    """
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return folder
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(errno.EPERM, "not a folder of this user")
    return folder if _is_private(found) else folder / SUBFOLDER


def private_folder(folder: Path) -> Path:
    """:func:`place_in` *folder*, made if needed. Permissions of a folder that was there before are never changed.

    :raises OSError: it cannot be made, is no folder, or others can read it
    """
    place = place_in(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_private(os.lstat(place)):
            raise PermissionError(errno.EPERM, "not a private folder of this user") from None
    return place


def _is_private(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def probe(folders: Sequence[Path]) -> tuple[Path | None, str | None]:
    """The first of *folders* in which a file can be made, by making one, and why the one before it cannot hold any."""
    trouble = None
    for folder in folders:
        try:
            file, path = tempfile.mkstemp(NEW_SUFFIX, "probe-", private_folder(folder))
            os.close(file)
            os.unlink(path)
            return Path(path).parent, trouble
        except OSError as error:
            trouble = f"{folder}: {os.strerror(error.errno) if error.errno else type(error).__name__}"
    return None, trouble


def temporary_folder() -> Path:
    """Where to spool when the instance folder cannot be written: the same for all processes of this user."""
    return Path(tempfile.gettempdir()) / f"flask-llm-cost-{os.geteuid()}"
