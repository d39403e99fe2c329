"""Locks of an output folder: no two processes work on the same photographs. A courtesy: results stay whole without."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..locks import lock
from .journal import STATE

_ATTEMPTS = 5


class LockedError(RuntimeError):
    """Another process works on the same photographs of the same output folder."""


def lock_name(shard: str) -> str:
    """The lock of shard "I/N"."""
    return f"shard-{shard.replace('/', '-of-')}"


def check_other_shards(output: Path, number: int, count: int) -> None:
    """Raises LockedError while a run with another number of shards is at work: some photographs would be done twice."""
    for path in (output / STATE).glob("shard-*-of-*.lock"):
        other = path.stem.rpartition("-")[2]
        if other != str(count) and is_locked(output, path.stem):
            raise LockedError(
                f"shard {path.stem.removeprefix('shard-').replace('-of-', '/')} is at work on {output}, and so "
                f"{number}/{count} would segment some photographs twice; wait for it, or stop it"
            )


@contextmanager
def locked(output: Path, name: str, wait: bool = False, mark: bool = True) -> Iterator[bool]:
    """Hold a lock of the output folder; released by the system however the process ends. Raises LockedError.

    wait: wait for it instead of raising LockedError. mark: leave in it who holds it. Gives whether it is held: where
    the file system knows no locks there are none.
    """
    path = output / STATE / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        held = _lock(file, output, wait)
        if mark:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
        yield held


def _lock(file: Any, output: Path, wait: bool) -> bool:
    """Lock an open file; where the file system knows no locks, results stay whole, only work may be done twice."""
    for attempt in range(_ATTEMPTS):
        if (held := lock(file, wait=wait)) is not False:
            return held is True
        if attempt + 1 < _ATTEMPTS:
            time.sleep(0.1)  # somebody may only have asked whether it is locked
    file.seek(0)
    raise LockedError(
        f"another run ({file.read().strip() or 'of unknown origin'}) works on the same photographs of {output}; "
        "wait for it, or stop it: what it has done is not done again"
    )


def is_locked(output: Path, name: str) -> bool:
    """Whether a running process holds a lock; needs no permission to write."""
    try:
        with open(output / STATE / f"{name}.lock") as file:
            return lock(file, shared=True) is False
    except OSError:
        return False
