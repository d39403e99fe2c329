"""Locks on open files that the system releases however a process ends; where it knows none, there are none."""

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

AVAILABLE = fcntl is not None


def lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed, by this process and those that inherited it.

    shared: beside others who share it. wait: until it is free. Returns True where it is locked, False where another
    holds it, None where the system or the file system knows no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def unlock(file: IO[Any]) -> None:
    """Undo it before the file is closed, also for processes that were forked meanwhile. Raises OSError."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
