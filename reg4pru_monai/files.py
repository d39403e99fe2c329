"""Writing files so that a reader never meets a half-written one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A sibling path to write to; renamed to ``path`` when the block ends well, removed when it does not.

    The folder is made. An earlier file at ``path`` stays whole until the new one is complete and on disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, as the name may be as long as a file system allows; with the suffix, by which writers choose the format.
    beside = path.with_name(f".{uuid.uuid4().hex[:16]}{path.suffix}")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with suppress(OSError):  # the folder itself may have become unusable, which the error in flight says
            beside.unlink(missing_ok=True)
