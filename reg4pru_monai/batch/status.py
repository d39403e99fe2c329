"""How far an output folder is, across all shards and runs."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from .journal import STATE, LockedError, Record, latest_records, locked, read_journals
from .settings import SettingsError, read_claim


class ShardStatus(NamedTuple):
    """One run. state: "running", "ended", "stopped" (by a signal) or "killed"; own: files of its shard."""

    shard: str
    state: str
    host: str
    started: str
    own: int
    done: int
    failed: int


class Status(NamedTuple):
    """Totals. listed: of the newest run; failures: the records of the files that failed."""

    listed: int
    done: int
    failures: list[Record]
    shards: list[ShardStatus]

    @property
    def missing(self) -> int:
        """Neither done nor failed."""
        return max(self.listed - self.done - len(self.failures), 0)


def read_status(output: Path) -> Status:
    """Read the journals of an output folder. Raises SettingsError where it is none."""
    if not (output / STATE / "settings.json").is_file():
        raise SettingsError(f"{output} is no output folder of `reg4pru segment`: it has no {STATE}/settings.json")
    digest = read_claim(output)[0].digest
    latest: dict[str, ShardStatus] = {}
    listed = 0
    for run, records in read_journals(output):
        if run.header.get("settings") != digest:
            continue
        counts = Counter(record.status for record in records)
        shard = run.header["shard"]
        state = "killed" if run.end is None else "stopped" if run.end.get("stopped") else "ended"
        if run.end is None and _is_running(output, shard):
            state = "running"
        listed = run.header["listed"]
        latest[shard] = ShardStatus(
            shard, state, run.header["host"], run.header["started"], run.header["own"], counts["done"], counts["failed"]
        )
    found = latest_records(output, digest)
    failures = [found[name] for name in sorted(found) if found[name].status == "failed"]
    return Status(listed, len(found) - len(failures), failures, list(latest.values()))


def _is_running(output: Path, shard: str) -> bool:
    try:
        with locked(output, f"shard-{shard.replace('/', '-of-')}", mark=False):
            return False
    except LockedError:
        return True
