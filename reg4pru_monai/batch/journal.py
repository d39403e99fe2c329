"""What was done, line by line: a result counts from the moment its line is on disk.

Every process appends to a journal file of its own, so that several on one folder never write into each other's. A line
that a kill cut off is ignored, and its photograph segmented again.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..files import append, sync_folder
from .archives import Archives

STATE = ".reg4pru"


class Record(NamedTuple):
    """The line of one photograph.

    status: "done" or "failed". size, mtime_ns: of the file, by which a change is noticed. rows: of results.csv, one for
    each frame. error: row of errors.csv, or None. outputs: sizes in bytes of the files written, by their names in the
    store; of an archive, where the photograph's files end in it. angle: of view, as its manifest told.
    """

    name: str
    status: str
    size: int
    mtime_ns: int
    rows: list[dict[str, Any]]
    error: dict[str, Any] | None
    outputs: dict[str, int]
    angle: float | None = None


class Journal:
    """The journal of this process; lines may come from several threads."""

    def __init__(self, output: Path, header: Mapping[str, Any]) -> None:
        folder = output / STATE / "journal"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.time_ns():020}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"  # by age when sorted
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115  # kept open for the run
        sync_folder(folder)
        self._archives = Archives(output, self.path.stem)
        self._lock = threading.RLock()
        self._write({"run": {"host": socket.gethostname(), "pid": os.getpid(), **header}})

    def begin(self, name: str, alone: bool) -> None:
        """Say that work on a photograph begins, and whether on nothing else, for the case that it ends the process.

        Not synchronised: it has to outlive the process, not the machine. Raises OSError.
        """
        self._write({"begun": name, "alone": alone}, sync=False)

    def add(self, record: Record, archived: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Append the line of a photograph; it is on disk when this returns. Raises OSError.

        archived: files of the photograph that go into an archive first.
        """
        with self._lock:  # in one order in both, so that what a kill leaves over is at the archive's end
            outputs = self._archives.add(archived) if archived else record.outputs
            try:
                self._write({"record": record._replace(outputs=outputs)._asdict()})
            except OSError:
                if archived:
                    self._archives.undo()  # or it would be there twice, once it is done again
                raise

    def close(self, **summary: Any) -> None:
        """Append how the run ended, and close the file. Raises OSError."""
        try:
            self._archives.close()
            self._write({"end": summary})
        finally:
            self._file.close()

    def _write(self, line: Mapping[str, Any], sync: bool = True) -> None:
        data = json.dumps(line, allow_nan=False).encode() + b"\n"  # ASCII, so that any file name survives
        with self._lock:
            append(self._file, data, sync)


class Run(NamedTuple):
    """One journal file. header: what the run was; end: how it ended, None while it runs or after a kill.

    done, failed: records of each kind in it.
    """

    path: Path
    header: dict[str, Any]
    end: dict[str, Any] | None
    done: int
    failed: int


class Line(NamedTuple):
    """A whole line of a journal. content: what it says. offset: where it begins, in bytes."""

    content: dict[str, Any]
    offset: int

    @property
    def record(self) -> Record | None:
        """The record in it; None where there is none, or not a whole one."""
        found = self.content.get("record")
        if not isinstance(found, dict) or {*found, *Record._field_defaults} != set(Record._fields):
            return None
        if not isinstance(found["outputs"], dict):
            return None
        if found["status"] not in ("done", "failed"):
            return None
        return Record(**found)


def journals(output: Path) -> list[Path]:
    """The journal files of an output folder, the oldest first."""
    return sorted((output / STATE / "journal").glob("*.jsonl"))


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a journal, without those that are cut off or damaged."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # a damaged line costs its photograph another computation, nothing else
                content = None
            if isinstance(content, dict):
                yield Line(content, offset)
            offset += len(line)
