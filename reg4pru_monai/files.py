"""Writing files so that a reader never meets a half-written one, and reading tables that people made."""

import csv
import errno
import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TextIO

import psutil

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_BESIDE = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}(\.\w+)*")
_DAY = 86400.0
SEPARATOR_LINE = re.compile(r'"?sep=([^\w"\r\n])[\s";,]*$', re.IGNORECASE)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A sibling path to write to; renamed to ``path`` when the block ends well, removed when it does not.

    The folder is made. An earlier file at ``path`` stays whole until the new one is complete and on disk.
    """
    path = Path(path)
    with scratch(path) as beside:
        yield beside
        with open(beside, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A sibling path to write to, removed when the block ends; after a kill :func:`is_leftover` knows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, as the name may be as long as a file system allows; with the suffix, by which writers choose the format.
    beside = path.with_name(f".{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield beside
    finally:
        with suppress(OSError):  # the folder itself may have become unusable, which the error in flight says
            beside.unlink(missing_ok=True)


def append(file: IO[bytes], data: bytes, sync: bool = True) -> None:
    """Append to a file that is open without a buffer, all or nothing. sync: bring it to the disk. Raises OSError."""
    start = file.tell()
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "no space is left for all of what was to be written", str(file.name))
        if sync:
            os.fsync(file.fileno())
    except OSError:
        file.truncate(start)  # half a record would spoil the next one
        file.seek(start)
        raise


def table_reader(file: TextIO) -> "csv.DictReader[str]":
    """Rows of an open table by column, separated by whichever of tab, semicolon and comma its first line has most.

    A first line ``sep=;``, as Excel writes it, gives the separator and is skipped.
    """
    head = file.readline()
    if given := SEPARATOR_LINE.match(head):
        return csv.DictReader(file, delimiter=given[1])
    file.seek(0)
    return csv.DictReader(file, delimiter=max("\t;,", key=head.count))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a CSV table, UTF-8. columns: by default the keys of the first row. Raises OSError."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if columns is None else columns)
        writer.writeheader()
        writer.writerows(rows)


def check_folder(folder: Path) -> None:
    """Make a folder and write into it, so that a long run does not end in an OSError."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder to write into")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def sync_folder(folder: Path) -> None:
    """Bring new names in a folder to the disk, so that a power cut does not take them back; where the system can."""
    with suppress(OSError):  # not on Windows, nor on every network file system
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_leftover(path: Path) -> bool:
    """Whether a file was being written by a process that is gone: of this machine, or it is older than a day."""
    found = _BESIDE.fullmatch(path.name)
    if found is None:
        return False
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _DAY:
            return True
    return found[1] == _HOST and not psutil.pid_exists(int(found[2]))
