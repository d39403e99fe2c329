"""Output folders of trainings and evaluations: one process at a time writes into each."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .runtime import ConfigurationError

_claimed: dict[Path, FileLock] = {}


def claim(folder: str | Path) -> None:
    """Make an output folder and lock it for this process, until `release` or until the process ends in any way.

    Does nothing if the folder cannot be written, which the first write reports, or if the file system has no locks.
    Raises ConfigurationError if another process holds it.
    """
    path = Path(folder).resolve()
    held = _claimed.get(path) or FileLock(path / ".lock")
    try:
        path.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
        if not (path / ".lock").exists():  # its holder removed it between our opening and locking it
            held.release(force=True)
            held.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(
            f"{path} is being written by another training or evaluation; wait for it, or choose another --output_dir"
        ) from None
    except (OSError, NotImplementedError):
        return
    _claimed[path] = held


def release(folder: str | Path) -> None:
    """Release a folder that this process has claimed, and remove it if nothing was written into it."""
    path = Path(folder).resolve()
    if held := _claimed.pop(path, None):
        with suppress(OSError):  # Windows does not remove open files
            (path / ".lock").unlink()
        held.release(force=True)
        with suppress(OSError):
            path.rmdir()


@contextmanager
def releasing(folder: str | Path) -> Iterator[None]:
    """Call `release` at the end of the block."""
    try:
        yield
    finally:
        release(folder)


@atexit.register
def _release_all() -> None:
    for path in list(_claimed):
        release(path)
