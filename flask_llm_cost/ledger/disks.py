"""What kind of disk a folder is on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

#: File systems that go with the container or the machine that has them.
_PASSING: Final = frozenset({"overlay", "aufs", "tmpfs", "ramfs"})
#: File systems of another machine, whose locks may not work.
_DISTANT: Final = re.compile(r"(nfs4?|cifs|smb3?|smbfs|ncpfs|afs|ceph|glusterfs|lustre|9p|fuse\..+)$")

_MOUNTS: Final = Path("/proc/self/mountinfo")


def file_system(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the file system that *folder* is on, or will be; ``None`` where the operating system does not tell.

    Source: proc(5), ``/proc/pid/mountinfo``
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    place = place.resolve()
    found: tuple[int, str] | None = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        # The last one mounted over the same place is the one that is seen.
        if place.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), after.split()[0]
    return found[1] if found else None


def is_passing(kind: str | None) -> bool:
    """Whether such a file system ends with its container or machine."""
    return kind in _PASSING


def is_distant(kind: str | None) -> bool:
    """Whether such a file system is another machine's."""
    return kind is not None and _DISTANT.match(kind) is not None
