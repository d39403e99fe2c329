"""How far an output folder is, across all shards and runs."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import replacing
from .journal import STATE, Record, Run, latest_records, read_journals
from .locks import is_locked, lock_name
from .settings import read_claim


class ShardStatus(NamedTuple):
    """One run. state: "running", "ended", "stopped" (by a signal), "broken" (by an error) or "killed".

    own: files of its shard.
    """

    shard: str
    state: str
    host: str
    started: str
    own: int
    done: int
    failed: int


class Status(NamedTuple):
    """failures: the records of the files that failed. missing: names of those neither done nor failed."""

    done: int
    failures: list[Record]
    missing: list[str]
    shards: list[ShardStatus]

    @property
    def listed(self) -> int:
        """All photographs."""
        return self.done + len(self.failures) + len(self.missing)


def save_listing(output: Path, names: Sequence[str]) -> None:
    """Remember which photographs there are, for those who ask what is missing."""
    with replacing(output / STATE / "listing.json.gz") as beside:
        beside.write_bytes(gzip.compress(json.dumps(list(names)).encode(), 1))


def read_status(output: Path, found: Sequence[Record] | None = None) -> Status:
    """Read the journals of an output folder. Raises SettingsError where it is none.

    found: what :func:`present_records` gave, for who has asked it already.
    """
    known = read_claim(output)
    shards = {
        run.header["shard"]: _shard(output, run, Counter(record.status for record in records))
        for run, records in read_journals(output)
        if run.header.get("settings") == known.digest
    }
    if found is None:
        found = present_records(output, known.digest, known.root)
    failures = [record for record in found if record.status == "failed"]
    names = {record.name for record in found}
    return Status(
        len(found) - len(failures),
        failures,
        [name for name in _read_listing(output) if name not in names],
        list(shards.values()),
    )


def present_records(output: Path, digest: str, root: str) -> list[Record]:
    """The last record of every photograph, by name, without failures of files that the last run no longer found."""
    found, listed = latest_records(output, digest), set(_read_listing(output))

    def counts(record: Record) -> bool:
        return record.status == "done" or record.name in listed or os.path.lexists(os.path.join(root, record.name))

    return [found[name] for name in sorted(found) if counts(found[name])]


def _shard(output: Path, run: Run, counts: Counter[str]) -> ShardStatus:
    header, end = run.header, run.end
    if end is None:
        state = "running" if is_locked(output, lock_name(header["shard"])) else "killed"
    else:
        state = "broken" if end.get("error") else "stopped" if end.get("stopped") else "ended"
    values = (header["shard"], state, header["host"], header["started"], header["own"])
    return ShardStatus(*values, counts["done"], counts["failed"])


def _read_listing(output: Path) -> list[str]:
    try:
        return list(json.loads(gzip.decompress((output / STATE / "listing.json.gz").read_bytes())))
    except (OSError, ValueError):
        return []
