"""The lock that tells a spool file of a living process from one of a dead one."""

from __future__ import annotations

try:
    import fcntl
except ImportError:
    raise ImportError(
        "flask-llm-cost needs the file locks of Linux and macOS, and does not run on Windows itself; "
        "it does in WSL (Windows Subsystem for Linux) and in a Linux container"
    ) from None


def take(fd: int) -> None:
    """Lock an open file for as long as it is open, here or in a forked child.

    :raises OSError: another process has it, or the file system has no locks
    """
    # flock, not lockf: lockf's locks belong to the process, which could then adopt its own live file.
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
