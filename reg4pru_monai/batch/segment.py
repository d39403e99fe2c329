"""The run: photographs and an output folder -> results, tables and a report. Every engine and command ends up here."""

import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..fundus.remote import is_url
from ..inference import Pipeline
from ..runtime import device_name
from .agenda import Agenda, make_agenda
from .archives import repair
from .engine import LocalEngine, Profile
from .failures import WriteError
from .folder import check_output, put_aside, sweep
from .index import Index
from .inputs import Item, Listing, counted, list_inputs, parse_shard, shard
from .journal import Journal, Record
from .locks import check_other_shards, lock_name, locked
from .ray_plan import RayOptions
from .reports import versions, write_reports
from .rows import has_doubtful_field
from .settings import Settings, SettingsError, check_claim, claim, is_claimed, read_claim, set_root
from .status import save_listing
from .store import ObjectStore, store_of
from .work import Work

logger = logging.getLogger(__name__)

THUMBNAILS = 200  # pictures in the report
Start = Callable[[Work, Journal, threading.Event], Any]  # returns what has the method run of LocalEngine
STOPPED = 130  # exit status, whichever signal it was: what a shell reports for SIGINT


@dataclass
class Summary:
    """How a run ended. listed: photographs found; own: of this shard; before: done by earlier runs.

    now: to be done by this run. done, failed: by this run; doubtful: of those done, with a doubtful field of view.
    missing: of this shard, neither done nor failed. stopped: number of the signal that ended it, or None. profile:
    where the time went.
    """

    output: Path
    listed: int
    own: int
    before: int
    now: int
    done: int = 0
    failed: int = 0
    doubtful: int = 0
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
        """0 all done, 3 some failed, 130 when stopped by a signal."""
        if self.stopped is not None:
            return STOPPED
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
    ray: RayOptions | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    parquet: bool = False,
    bundle: str | None = None,
    started: Callable[[Summary], None] = lambda _: None,
    progress: Callable[[Record], None] = lambda _: None,
) -> Summary:
    """Segment photographs into an output folder; what is there already is not computed again.

    inputs, root: see :func:`list_inputs`. part: (i, n), shard i of n. workers: threads that read, and as many that
    write. batch_size: photographs whose windows share the forwards; with more than 1 a result may differ in the last
    bits with its neighbours. ray: compute on this Ray cluster instead of here; workers then counts for nothing.
    overwrite: put earlier results aside, into ``earlier/`` in the output folder, and start anew. dry_run: only count.
    limit: at most so many photographs now. parquet: also results.parquet. bundle: digest of the bundle that the network
    came from, for run.json. started, progress: called once with the counts, and for every file, from other threads.
    Raises InputError, SettingsError, LockedError, WriteError, OSError; with ray also ClusterError.
    """
    if is_url(str(output)):
        raise SettingsError(f"--output is a folder, for journal and tables: give {output} as --store")
    output = Path(output)
    _check(workers, batch_size, limit, overwrite, part, parquet)
    if overwrite and settings.store is not None:
        raise SettingsError("--overwrite cannot put aside what is on object storage: give another --store")
    listing = list_inputs(inputs, output, _root(output) if root is None and not overwrite else root)
    items = shard(listing.items, *part)
    check_output(output)
    if dry_run:
        return _summary(output, listing, items, _planned(output, items, settings, listing.root, overwrite), limit)
    own = lock_name(f"{part[0]}/{part[1]}")
    with _engine(ray, workers, batch_size) as (start, how), locked(output, own) as held:
        check_other_shards(output, *part)
        if overwrite:
            put_aside(output, own)
        _claim_store(output, settings)
        moved = claim(output, settings, listing.root).root != listing.root
        with Index(output, settings.digest, store_of(output, settings.store)) as index:
            if held:  # else they may be those of a run that is at work
                _repair(output, index, part)
            agenda = make_agenda(index, items, moved)
        if moved:
            set_root(output, settings, listing.root)
        save_listing(output, (item.name for item in listing.items))
        summary = _summary(output, listing, items, agenda, limit)
        started(summary)
        with _stopping(summary) as stop:
            work = Work(pipeline, settings, output, _shown(listing.items))
            header = {"bundle": bundle, "shard": f"{part[0]}/{part[1]}", **how, "batch_size": batch_size}
            _run(start, work, agenda.limited(limit), summary, header, stop, progress)
            write_reports(output, listing, settings, parquet)
            sweep(output)
    return summary


def _planned(output: Path, items: Sequence[Item], settings: Settings, root: str, overwrite: bool) -> Agenda:
    """What a run would do. Raises what it would raise before its first photograph."""
    if overwrite or not is_claimed(output):
        return Agenda(list(items), [], [])
    with Index(output, settings.digest, store_of(output, settings.store)) as index:
        return make_agenda(index, items, check_claim(output, settings).root != root)


def _claim_store(output: Path, settings: Settings) -> None:
    """Before the output folder remembers its URL, which may be mistyped. Raises SettingsError, WriteError."""
    store = store_of(output, settings.store)
    if isinstance(store, ObjectStore):
        if is_claimed(output):
            check_claim(output, settings)
        store.claim(output, settings)


def _repair(output: Path, index: Index, part: tuple[int, int]) -> None:
    """Finish the archives of runs that were killed: those of this shard, and of no other that may be at work."""
    for run, ends in index.unfinished:
        number, count = parse_shard(run.header["shard"])
        if number == part[0] or count != part[1]:
            repair(output, run.path.stem, ends)


def _root(output: Path) -> str | None:
    """The folder that names in an output folder start from already."""
    return read_claim(output).root if is_claimed(output) else None


def _check(
    workers: int, batch_size: int, limit: int | None, overwrite: bool, part: tuple[int, int], parquet: bool
) -> None:
    for name, value in (("workers", workers), ("batch size", batch_size), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise SettingsError(f"{name} must be at least 1, got {value}")
    if overwrite and part[1] > 1:
        raise SettingsError("shards would put each other's results aside: --overwrite goes without --shard")
    if parquet and not find_spec("pyarrow"):
        raise SettingsError("results.parquet needs pyarrow: pip install pyarrow")


def _summary(output: Path, listing: Listing, items: list[Item], agenda: Agenda, limit: int | None) -> Summary:
    notices = list(listing.notices)
    if listing.ignored:
        notices.append(f"files of other kinds were ignored: {counted(listing.ignored)}")
    before, now = len(items) - len(agenda), len(agenda.limited(limit))
    return Summary(output, len(listing.items), len(items), before, now, notices=notices)


def _shown(items: Sequence[Item]) -> frozenset[str]:
    """Names of the photographs with a picture in the report, evenly spread."""
    step = max(1, -(-len(items) // THUMBNAILS))
    return frozenset(item.name for item in items[::step])


@contextmanager
def _engine(ray: RayOptions | None, workers: int, batch_size: int) -> Iterator[tuple[Start, dict[str, Any]]]:
    """How to start the engine, and what the journal says of it. Raises SettingsError, ClusterError."""
    if ray is None:
        yield lambda work, journal, stop: LocalEngine(work, journal, workers, batch_size, stop), {"workers": workers}
        return
    from .ray_engine import RayEngine, connected

    with connected(ray) as plan:
        how = {"engine": "ray", "workers": plan.tasks, "device": str(plan), "threads": plan.threads}
        yield lambda work, journal, stop: RayEngine(work, journal, ray, plan, batch_size, stop), how


def _run(
    start: Start,
    work: Work,
    agenda: Agenda,
    summary: Summary,
    how: dict[str, Any],
    stop: threading.Event,
    progress: Callable[[Record], None],
) -> None:
    header = {
        "device": device_name(work.pipeline.device),
        "threads": torch.get_num_threads(),
        **how,
        "settings": work.settings.digest,
        "listed": summary.listed,
        "own": summary.own,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "versions": versions(),
    }
    journal, begun, error = Journal(summary.output, header), time.perf_counter(), None
    counts: Counter[str] = Counter()
    counting = threading.Lock()  # several threads write

    def count(record: Record) -> None:
        with counting:
            counts[record.status] += 1
            counts["doubtful"] += has_doubtful_field(record)
        progress(record)

    try:
        summary.profile = start(work, journal, stop).run(agenda, count)
    except BaseException as raised:
        error = repr(raised)
        raise
    finally:
        summary.done, summary.failed = counts["done"], counts["failed"]
        summary.doubtful = counts["doubtful"]
        summary.seconds = time.perf_counter() - begun
        end = {"done": summary.done, "failed": summary.failed, "seconds": round(summary.seconds, 3)}
        journal.close(**end, stopped=summary.stopped, error=error)
    if not journal.path.exists():
        raise WriteError(f"{summary.output} was removed or replaced during the run: what it held is lost; run again")


@contextmanager
def _stopping(summary: Summary) -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a request to stop, an event; a second one ends the process at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and summary.stopped is not None:
            os._exit(STOPPED)  # threads that read or write would hold up an ordinary exit
        summary.stopped = number
        stop.set()
        logger.warning("stopping: photographs in flight are finished, tables written; once more ends at once")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
