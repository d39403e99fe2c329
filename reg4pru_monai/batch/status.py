"""How far an output folder is, across all shards and runs."""

import gzip
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..files import replacing
from .index import Index
from .journal import STATE, Run
from .locks import is_locked, lock_name
from .settings import read_claim
from .store import store_of

_LISTING = "listing.jsonl.gz"


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
    """How many photographs are done, failed, and neither. which: see Index; closed with the status."""

    done: int
    failed: int
    missing: int
    shards: list[ShardStatus]
    which: Index

    @property
    def listed(self) -> int:
        """All photographs."""
        return self.done + self.failed + self.missing


def save_listing(output: Path, names: Iterable[str]) -> None:
    """Remember which photographs there are, for those who ask what is missing."""
    with (
        replacing(output / STATE / _LISTING) as beside,
        gzip.open(beside, "wt", compresslevel=1, encoding="ascii") as file,
    ):
        file.writelines(f"{json.dumps(name)}\n" for name in names)


@contextmanager
def read_status(output: Path) -> Iterator[Status]:
    """Read the journals of an output folder. Raises SettingsError where it is none."""
    known = read_claim(output)
    with Index(output, known.digest, store_of(output, known.settings.get("store"))) as index:
        index.expect(_read_listing(output), known.root)
        ours = [run for run in index.runs if run.header.get("settings") == known.digest]
        shards = {run.header["shard"]: _shard(output, run) for run in ours}
        yield Status(index.count(True), index.count(False), index.count_missing(), list(shards.values()), index)


def _shard(output: Path, run: Run) -> ShardStatus:
    header, end = run.header, run.end
    if end is None:
        state = "running" if is_locked(output, lock_name(header["shard"])) else "killed"
    else:
        state = "broken" if end.get("error") else "stopped" if end.get("stopped") else "ended"
    values = (header["shard"], state, header["host"], header["started"], header["own"])
    return ShardStatus(*values, run.done, run.failed)


def _read_listing(output: Path) -> Iterator[str]:
    try:
        with gzip.open(output / STATE / _LISTING, "rt", encoding="ascii") as file:
            yield from map(json.loads, file)
    except (OSError, EOFError, ValueError):  # it only says what is missing, and the next run writes it again
        return
