"""Outputs of many photographs in few files: tar archives in the form that WebDataset reads.

An archive is written by the process that writes the journal, and what is in it counts as soon as the journal says so:
what a kill left behind the last line is cut off by the next run.
"""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from ..files import append, sync_folder

ARCHIVES = "archives"  # folder
ARCHIVE_BYTES = 1_000_000_000  # the next photograph goes into another archive


def is_archive(name: str) -> bool:
    """Whether a name in the output folder is that of an archive."""
    return name.startswith(f"{ARCHIVES}/")


class Archives:
    """The archives of one run, one after the other: archives/STEM-00000.tar and on. One thread at a time."""

    def __init__(self, output: Path, stem: str) -> None:
        self.output, self.stem = output, stem
        self._number = -1
        self._name = ""
        self._start = 0
        self._file: IO[bytes] | None = None

    def add(self, files: Mapping[str, bytes]) -> dict[str, int]:
        """Append the files of a photograph; they are on disk when this returns. Raises OSError.

        Returns how long the archive has become, in bytes, by its name in the output folder.
        """
        if self._file is None or self._file.tell() >= ARCHIVE_BYTES:
            self._file = self._next()
        self._start = self._file.tell()
        append(self._file, b"".join(_member(name, data) for name, data in files.items()))
        return {self._name: self._file.tell()}

    def undo(self) -> None:
        """Take back what was added last. Raises OSError."""
        if self._file is not None:
            self._file.truncate(self._start)
            self._file.seek(self._start)

    def close(self) -> None:
        """Write the end of the archive. Raises OSError."""
        if self._file is not None:
            end = self._file.tell()
            self._file.close()
            self._file = None
            finish(self.output / self._name, end)

    def _next(self) -> IO[bytes]:
        self.close()
        self._number += 1
        self._name = f"{ARCHIVES}/{self.stem}-{self._number:05}.tar"
        path = self.output / self._name
        path.parent.mkdir(exist_ok=True)
        file = open(path, "xb", buffering=0)  # noqa: SIM115  # kept open for the next photographs
        sync_folder(path.parent)
        return file


def finish(path: Path, end: int) -> None:
    """Cut off what stands behind ``end`` bytes and end an archive there; remove it if that is 0. Raises OSError.

    One that is shorter is left alone: what it lost is done again, which zeros in its place would prevent.
    """
    if end == 0:
        path.unlink(missing_ok=True)
        return
    if path.stat().st_size < end:
        return
    whole = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    with open(path, "r+b") as file:
        file.truncate(end)
        file.truncate(whole)  # zeros
        os.fsync(file.fileno())


def repair(output: Path, stem: str, ends: Mapping[str, int]) -> None:
    """Finish the archives of a run that ended without a word. ends: bytes that count, by name. Raises OSError."""
    for path in (output / ARCHIVES).glob(f"{stem}-*.tar"):
        finish(path, ends.get(f"{ARCHIVES}/{path.name}", 0))


def _member(name: str, data: bytes) -> bytes:
    """Header, data and padding of a file in an archive (POSIX.1-2001), the same whenever it is made."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(header, io.BytesIO(data))
        end = archive.offset
    return stream.getvalue()[:end]
