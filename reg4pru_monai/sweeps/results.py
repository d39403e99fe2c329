"""What became of the members of a sweep: found in MLflow, in output folders, and told as a table."""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tracking_store import JOURNAL_NAME, Record, RunStore, calm, ended_well, read_journal
from .plan import Job

GOOD = ("finished", "finished before")
TRAINED = ("finished", "failed", "stopped")  # by this call
COLUMNS = ("member", "seed", "status", "ap_dense", "ap_pruned", "minutes", "run_id", "output", "problem")


@dataclass(frozen=True)
class Result:
    """What became of a job. status: finished, finished before, failed, stopped or not run. problem: why it failed.

    minutes: see `trained_minutes`.
    """

    job: Job
    status: str
    ap: tuple[float | None, float | None] = (None, None)
    minutes: float | None = None
    run_id: str = ""
    problem: str = ""

    def row(self) -> dict[str, Any]:
        """As a row of sweep.csv."""
        job = self.job
        first = (job.member, job.seed, self.status, *self.ap, self.minutes)
        return dict(zip(COLUMNS, (*first, self.run_id, str(job.folder), self.problem), strict=True))


# --- what has been done ----------------------------------------------------------------------------------------------


def stored_result(job: Job, tracking_uri: str) -> Result | None:
    """The result of a training that MLflow holds as finished, whoever started it. Raises anything that mlflow does."""
    with calm():
        done = f"attributes.status = 'FINISHED' and tags.configuration_digest = '{job.digest}'"
        runs = RunStore(tracking_uri, "").search(done)
    if not runs:
        return None
    metrics = runs[0].data.metrics
    ap = metrics.get("test/dense/ap"), metrics.get("test/pruned/ap")
    return Result(job, "finished before", ap, trained_minutes(job), str(runs[0].info.run_id))


def local_result(job: Job) -> Result | None:
    """The result of a training that ended well in its own output folder."""
    if not ended_well(job.folder / JOURNAL_NAME):
        return None
    return Result(job, "finished before", local_ap(job), trained_minutes(job))


def trained_minutes(job: Job) -> float | None:
    """Minutes that the processes of a training ran, without the time between an interruption and the resumption.

    From the journal of its folder: MLflow keeps the first start and the last end only. None where there is no journal.
    """
    records = _records(job)
    times: list[list[int]] = []
    for record in records:
        if record["run"] == records[-1]["run"]:
            if record["kind"] == "start" or not times:
                times.append([])
            times[-1].append(record["time"])
    return sum(part[-1] - part[0] for part in times) / 60_000 if times else None


def _records(job: Job) -> list[Record]:
    path = job.folder / JOURNAL_NAME
    return read_journal(path) if path.is_file() else []


def local_ap(job: Job) -> tuple[float | None, float | None]:
    """AP of the evaluation, dense and pruned, from the output folder."""
    try:
        found = json.loads((job.folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return None, None
    return found.get("dense/ap"), found.get("pruned/ap")


def last_error(log: Path) -> str:
    """The line by which a training says why it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")


# --- what is said ----------------------------------------------------------------------------------------------------


def merged_rows(path: Path, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of earlier calls, in a CSV file if it is there, with those of ``results`` in their places or behind.

    A row is of a member and a seed. A job that was not run leaves its earlier row as it is.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = {(row["member"], row["seed"]): row for row in csv.DictReader(file) if tuple(row) == COLUMNS}
    for result in results:
        key = (result.job.member, str(result.job.seed))
        rows[key] = rows.get(key, result.row()) if result.status == "not run" else result.row()
    return list(rows.values())


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with ``COLUMNS`` as the text of a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summary(results: Sequence[Result]) -> str:
    """All members as a table."""
    rows: list[tuple[str, ...]] = [("member", "seed", "status", "AP dense", "AP pruned", "minutes", "output folder")]
    for result in results:
        where = (
            str(result.job.folder) if result.job.folder.is_dir() else f"run {result.run_id}" if result.run_id else ""
        )
        numbers = [("" if value is None else f"{value:.4f}") for value in result.ap]
        minutes = "" if result.minutes is None else f"{result.minutes:.1f}"
        rows.append((result.job.member, str(result.job.seed), result.status, *numbers, minutes, where))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def sync_command(folders: Sequence[Path], tracking_uri: str | None) -> str:
    """The command that sends the journals of output folders to MLflow. tracking_uri: None where it is found without."""
    where = ["--tracking-uri", tracking_uri] if tracking_uri else []
    return shlex.join(["reg4pru", "tracking", "sync", *map(str, folders), *where])


def exit_status(results: Sequence[Result], signals: Sequence[int]) -> int:
    """0 where all are finished, 1 where not, 128 + the signal that stopped the sweep."""
    if signals:
        return 128 + signals[0]
    return 0 if all(result.status in GOOD for result in results) else 1
