"""What the journals of an output folder say last of every photograph, found without holding it all in memory."""

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..fundus.remote import is_url
from .archives import is_archive
from .journal import Record, Run, journals, read_lines
from .store import FolderStore, Store

_FILES = 64  # journals held open
_TABLES = """
CREATE TABLE last (name BLOB PRIMARY KEY, done INTEGER, journal INTEGER, start INTEGER) WITHOUT ROWID;
CREATE TABLE listed (name BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class Index:
    """The last record of every photograph among the runs with the settings of a digest; to be closed.

    A failure does not undo an earlier result of the same file, as long as that is still there; a file that could not
    be reached (size 0, time 0) may be the same. runs: every journal, of other settings too, the oldest first. cut_off:
    names of the photographs that were being worked on when a process ended without a word, and how often that
    happened, since their last record, with nothing else at work. unfinished: runs that ended so, with how many bytes
    of their archives count. store: where outputs are (default: the output folder).

    A temporary SQLite database holds the position of each record; it moves to disk when it grows. It holds no sizes or
    times of files: times after the year 2262 do not fit into its integers.
    """

    def __init__(self, output: Path, settings: str, store: Store | None = None) -> None:
        self.output, self.settings, self.store = output, settings, store or FolderStore(output)
        self.runs: list[Run] = []
        self.cut_off: dict[str, int] = {}
        self.unfinished: list[tuple[Run, dict[str, int]]] = []
        self._paths = journals(output)
        self._files: dict[int, IO[bytes]] = {}
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_TABLES} BEGIN;")
        for number in range(len(self._paths)):
            self._read(number)

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget all."""
        self._database.close()
        for file in self._files.values():
            file.close()

    def get(self, name: str) -> Record | None:
        """The last record of a photograph."""
        found = self._database.execute("SELECT journal, start FROM last WHERE name = ?", (_key(name),)).fetchone()
        return None if found is None else self._record(*found)

    def expect(self, names: Iterable[str], root: str) -> None:
        """Say which photographs there are; forget failures of files that are neither listed nor below ``root``.

        Below a URL only what is listed counts: others are not asked for one by one.
        """
        self._database.executemany("INSERT OR IGNORE INTO listed VALUES (?)", ((_key(name),) for name in names))
        query = "SELECT name FROM last WHERE NOT done AND name NOT IN (SELECT name FROM listed)"
        left = (key for (key,) in self._database.execute(query))
        gone = [key for key in left if is_url(root) or not os.path.lexists(os.path.join(root, _name(key)))]
        self._database.executemany("DELETE FROM last WHERE name = ?", ((key,) for key in gone))

    def count(self, done: bool) -> int:
        """How many photographs are done, or failed."""
        return int(self._database.execute("SELECT count(*) FROM last WHERE done = ?", (done,)).fetchone()[0])

    def records(self) -> Iterator[Record]:
        """The last record of every photograph, by name."""
        return self._select("SELECT journal, start FROM last ORDER BY name")

    def failures(self) -> Iterator[Record]:
        """Those that failed, by name."""
        return self._select("SELECT journal, start FROM last WHERE NOT done ORDER BY name")

    def missing(self) -> Iterator[str]:
        """Names of the listed photographs that are neither done nor failed."""
        with closing(self._database.execute(f"SELECT name {_MISSING} ORDER BY name")) as found:
            for (key,) in found:
                yield _name(key)

    def count_missing(self) -> int:
        """How many these are."""
        return int(self._database.execute(f"SELECT count(*) {_MISSING}").fetchone()[0])

    def _select(self, query: str) -> Iterator[Record]:
        with closing(self._database.execute(query)) as found:
            for journal, start in found:
                yield self._record(journal, start)

    def _record(self, journal: int, start: int) -> Record:
        if journal not in self._files:
            if len(self._files) >= _FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[journal] = open(self._paths[journal], "rb")  # noqa: SIM115  # closed with the index
        file = self._files[journal]
        file.seek(start)
        return Record(**json.loads(file.readline())["record"])

    def _read(self, number: int) -> None:
        """Take up a journal."""
        header: dict[str, Any] | None = None
        end = None
        counts: Counter[str] = Counter()
        begun: dict[str, bool] = {}
        ends: dict[str, int] = {}
        for line in read_lines(self._paths[number]):
            header, end = line.content.get("run", header), line.content.get("end", end)
            if "begun" in line.content:
                begun[line.content["begun"]] = bool(line.content.get("alone"))
            elif (record := line.record) is not None:
                counts[record.status] += 1
                ends |= {name: size for name, size in record.outputs.items() if is_archive(name)}
                begun.pop(record.name, None)
                self.cut_off.pop(record.name, None)
                if header is not None and header.get("settings") == self.settings:
                    self._take(record, number, line.offset)
        if header is None:
            return
        self.runs.append(Run(self._paths[number], header, end, counts["done"], counts["failed"]))
        if end is None:
            self.unfinished.append((self.runs[-1], ends))
        if end is None and header.get("settings") == self.settings:
            for name, alone in begun.items():
                self.cut_off[name] = self.cut_off.get(name, 0) + alone

    def _take(self, record: Record, journal: int, start: int) -> None:
        done = record.status == "done"
        if done or not self._still_holds(record):
            values = (_key(record.name), done, journal, start)
            self._database.execute("INSERT OR REPLACE INTO last VALUES (?, ?, ?, ?)", values)

    def _still_holds(self, failure: Record) -> bool:
        """Whether an earlier record counts more than a failure that came after it."""
        earlier = self.get(failure.name)
        if earlier is None or earlier.status != "done":
            return False
        if (failure.size, failure.mtime_ns) not in ((earlier.size, earlier.mtime_ns), (0, 0)):
            return False
        return self.store.holds(earlier.outputs)


_MISSING = "FROM listed WHERE name NOT IN (SELECT name FROM last)"


def _key(name: str) -> bytes:
    """Bytes that sort as names do, whatever bytes a file name was made of."""
    return name.encode("utf-8", "surrogatepass")


def _name(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")
