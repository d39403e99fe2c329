"""The run: photographs and an output folder -> results, tables and a report. Every engine and command ends up here."""

import logging
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .. import __version__
from ..inference import Pipeline
from .engine import LocalEngine, Profile
from .inputs import Item, Listing, list_inputs, shard
from .journal import STATE, Journal, LockedError, Record, latest_records, locked, read_journals
from .measurements import warm_up
from .report import write_report
from .rows import COLUMNS
from .settings import Settings, SettingsError, claim
from .tables import errors, rows, write_tables
from .work import Work, thumbnail_path

logger = logging.getLogger(__name__)

THUMBNAILS = 200  # pictures in the report
LEFTOVER = re.compile(r"\.[0-9a-f]{16}(\.\w+)+")  # as reg4pru_monai.files names them


@dataclass
class Summary:
    """How a run ended. listed: photographs found; own: of this shard; before: done by earlier runs.

    done, failed: by this run. missing: of this shard, neither done nor failed. stopped: number of the signal that ended
    it, or None. profile: where the time went.
    """

    output: Path
    listed: int
    own: int
    before: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    stopped: int | None = None
    profile: Profile | None = None
    notices: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Of this shard, neither done nor failed."""
        return self.own - self.before - self.done - self.failed

    @property
    def exit_status(self) -> int:
        """0 all done, 3 some failed, 128 + signal when stopped."""
        if self.stopped is not None:
            return 128 + self.stopped
        return 3 if self.failed else 0


def segment_photographs(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | Path,
    pipeline: Pipeline,
    settings: Settings,
    *,
    root: str | None = None,
    part: tuple[int, int] = (1, 1),
    workers: int = 2,
    batch_size: int = 1,
    overwrite: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    parquet: bool = False,
    started: Callable[[Summary], None] = lambda _: None,
    progress: Callable[[Record], None] = lambda _: None,
) -> Summary:
    """Segment photographs into an output folder; what is there already is not computed again.

    inputs, root: see :func:`list_inputs`. part: (i, n), shard i of n. workers: threads that read, and as many that
    write. batch_size: photographs whose windows share the forwards; with more than 1 a result may differ in the last
    bits with its neighbours. overwrite: put earlier results aside, into ``earlier/`` in the output folder, and start
    anew. dry_run: only count. limit: at most so many photographs now. parquet: also results.parquet. started,
    progress: called once with the counts, and for every file, from other threads.
    Raises InputError, SettingsError, LockedError, WriteError, OSError.
    """
    threading.Thread(target=warm_up, daemon=True).start()
    output = Path(output)
    listing = list_inputs(inputs, output, root)
    _check(workers, batch_size, limit, overwrite, part)
    items = shard(listing.items, *part)
    if dry_run:
        known = {} if overwrite else latest_records(output, settings.digest)
        return _summary(output, listing, items, [item for item in items if not _is_done(output, item, known)])
    own = f"shard-{part[0]}-of-{part[1]}"
    with locked(output, own):
        if overwrite:
            _put_aside(output, own)
        claim(output, settings, listing.root, moved=root is not None)
        known = latest_records(output, settings.digest)
        todo = [item for item in items if not _is_done(output, item, known)]
        summary = _summary(output, listing, items, todo)
        started(summary)
        work = Work(pipeline, settings, output, _shown(listing.items))
        _run(work, todo[:limit], summary, listing, settings, (workers, batch_size, part), progress)
        _write_reports(output, listing, settings, parquet)
        _sweep(output, own)
    return summary


def _check(workers: int, batch_size: int, limit: int | None, overwrite: bool, part: tuple[int, int]) -> None:
    for name, value in (("workers", workers), ("batch size", batch_size), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise SettingsError(f"{name} must be at least 1, got {value}")
    if overwrite and part[1] > 1:
        raise SettingsError("shards would put each other's results aside: --overwrite goes without --shard")


def _summary(output: Path, listing: Listing, items: list[Item], todo: list[Item]) -> Summary:
    notices = list(listing.notices)
    if listing.ignored:
        kinds = ", ".join(f"{count} x {suffix}" for suffix, count in listing.ignored.items())
        notices.append(f"files of other kinds were ignored: {kinds}")
    return Summary(output, len(listing.items), len(items), len(items) - len(todo), notices=notices)


def _is_done(output: Path, item: Item, known: dict[str, Record]) -> bool:
    """Whether there is a result of this very file. A file that changed, or whose output is gone, is done again."""
    record = known.get(item.name)
    if record is None or record.status != "done":
        return False
    try:
        status = os.stat(item.path)
    except OSError:
        return False
    if (status.st_size, status.st_mtime_ns) != (record.size, record.mtime_ns):
        return False
    return all((output / path).exists() for path in record.outputs)


def _shown(items: Sequence[Item]) -> frozenset[str]:
    """Names of the photographs with a picture in the report, evenly spread."""
    step = max(1, -(-len(items) // THUMBNAILS))
    return frozenset(item.name for item in items[::step])


def _run(
    work: Work,
    todo: Sequence[Item],
    summary: Summary,
    listing: Listing,
    settings: Settings,
    how: tuple[int, int, tuple[int, int]],
    progress: Callable[[Record], None],
) -> None:
    workers, batch_size, part = how
    device = work.pipeline.device
    header = {
        "settings": settings.digest,
        "shard": f"{part[0]}/{part[1]}",
        "listed": summary.listed,
        "own": summary.own,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "workers": workers,
        "batch_size": batch_size,
        "command": sys.argv,
        "versions": versions(),
    }
    journal, stop, begun = Journal(summary.output, header), threading.Event(), time.perf_counter()
    counts: Counter[str] = Counter()

    def count(record: Record) -> None:
        counts[record.status] += 1
        progress(record)

    try:
        with _stopping(stop, summary):
            summary.profile = LocalEngine(work, journal, workers, batch_size, stop).run(todo, count)
    finally:
        summary.done, summary.failed = counts["done"], counts["failed"]
        summary.seconds = time.perf_counter() - begun
        journal.close(
            done=summary.done, failed=summary.failed, seconds=round(summary.seconds, 3), stopped=summary.stopped
        )


@contextmanager
def _stopping(stop: threading.Event, summary: Summary) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one ends the process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        summary.stopped = number
        stop.set()
        restore()
        logger.warning("stopping: photographs in flight are finished; once more ends at once")

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


def versions() -> dict[str, str]:
    """Of this package and those that results depend on."""
    names = ("torch", "monai", "numpy", "scipy", "scikit-image", "pillow", "imagecodecs")
    return {
        "reg4pru-monai": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


@contextmanager
def _alone(output: Path, own: str) -> Iterator[None]:
    """Beside the lock that is held, hold those of all other shards. Raises LockedError while one of them is at work."""
    with ExitStack() as held:
        for path in (output / STATE).glob("shard-*.lock"):
            if path.stem != own:
                held.enter_context(locked(output, path.stem, mark=False))
        yield


def _sweep(output: Path, own: str) -> None:
    """Remove what a killed run left half-written; left to the last shard where several are at work."""
    with suppress(LockedError), _alone(output, own):
        for path in output.rglob(".*"):
            if LEFTOVER.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def _put_aside(output: Path, own: str) -> None:
    """Move all earlier results into ``earlier/<time>``. Raises LockedError while another run works on them."""
    with _alone(output, own):
        target = output / "earlier" / time.strftime("%Y%m%dT%H%M%S")
        entries = [path for path in output.iterdir() if path.name not in ("earlier", STATE)]
        state = [path for path in (output / STATE).iterdir() if path.suffix != ".lock"]
        for path in entries + state:
            place = target / path.relative_to(output)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
            logger.info("put aside: %s", place)


def _write_reports(output: Path, listing: Listing, settings: Settings, parquet: bool) -> None:
    """Tables and report of everything in the folder, whichever run or shard made it."""
    with locked(output, "reports", wait=True):  # so that the last shard to finish sees all
        found = latest_records(output, settings.digest)
        records = [found[name] for name in sorted(found)]
        runs = [{**run.header, "end": run.end} for run, _ in read_journals(output)]
        counts = Counter(record.status for record in records)
        run = {
            "settings": settings.to_dict(),
            "settings_digest": settings.digest,
            "root": listing.root,
            "counts": {"listed": len(listing.items), "done": counts["done"], "failed": counts["failed"]},
            "ignored": listing.ignored,
            "notices": listing.notices,
            "runs": runs,
        }
        write_tables(output, records, run, parquet)
        _write_report(output, records, run)


def _write_report(output: Path, records: Sequence[Record], run: dict[str, Any]) -> None:
    def thumbnail(name: str) -> bytes | None:
        path = thumbnail_path(output, name)
        return path.read_bytes() if path.is_file() else None

    counts, runs = run["counts"], run["runs"]
    spent = sum((each["end"] or {}).get("seconds", 0.0) for each in runs)
    finished = sum((each["end"] or {}).get("done", 0) for each in runs)
    summary = [
        ("Photographs", f"{counts['listed']:,}"),
        ("Done", f"{counts['done']:,}"),
        ("Failed", f"{counts['failed']:,}"),
        ("Not done yet", f"{max(counts['listed'] - counts['done'] - counts['failed'], 0):,}"),
        ("Computing time, all runs", f"{spent:,.0f} s"),
        ("Photographs per second", f"{finished / spent:.2f}" if spent else ""),
        ("Last run began", runs[-1]["started"]),
        ("Device", runs[-1]["device"]),
        ("Weights", run["settings"]["weights"][:16]),
    ]
    settings = {**run["settings"], "versions": runs[-1]["versions"], "root": run["root"]}
    write_report(
        output / "report.html",
        "Vessel segmentation",
        summary,
        settings,
        lambda: ({"name": row["path"], **row} for row in rows(records)),
        COLUMNS,
        lambda: ({"name": row["path"], **row} for row in errors(records)),
        thumbnail,
        run["notices"],
    )
