"""What goes to MLflow and under which name.

Every value is written to ``<output_dir>/journal.jsonl`` first and sent to MLflow second, so that a tracking server that
is down costs a training a few seconds and one warning, and no value. mlflow is imported at the first use, not here.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import platform
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from .files import replacing
from .tracking_store import (
    JOURNAL_NAME,
    DeletedExperimentError,
    Record,
    RunStore,
    append,
    calm,
    check_name,
    flatten,
    hold,
    is_held,
    masked,
    now,
    read_journal,
    reason,
    release,
    resolve_uri,
    status_of,
    unique_name,
)

if TYPE_CHECKING:
    from ignite.engine import Engine

logger = logging.getLogger(__name__)

OFF = "none"
JOURNAL_ID = "journal:"  # prefix of the id of a run that MLflow has not seen yet
PACKAGES = ("reg4pru-monai", "torch", "monai", "pytorch-ignite", "numpy", "scikit-image", "mlflow")
MAX_DESCRIPTION_LENGTH = 8000  # characters, of any tag in MLflow
_STATUSES = ("FINISHED", "FAILED", "KILLED")
_UPLOADED = ("artifact", "model")  # kinds of records with a file


# --- the tracker --------------------------------------------------------------------------------------------------


class Tracker:
    """One training run: its journal, and its MLflow run where MLflow can be reached. Make it with `Tracker.start`."""

    def __init__(self, output_dir: Path, run_name: str, store: RunStore | None) -> None:
        self.output_dir, self.run_name = output_dir, run_name
        self.journal = output_dir / JOURNAL_NAME
        self._store = store
        self._resume_id: str | None = None
        self._start_time = now()
        self._pending: list[Record] = []
        self._online = False
        self._status = ""  # the first one given to `close`
        self._closed = False
        self._refused = ""  # why MLflow accepts no run until somebody acts
        self._warned: set[str] = set()
        self._pid = os.getpid()
        self._held: IO[bytes] | None = None

    @classmethod
    def start(
        cls,
        output_dir: Path | str,
        experiment: str = "fundus_vessels",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        store_dir: Path | str | None = None,
        datasets: Sequence[Mapping[str, Any]] = (),
    ) -> Tracker:
        """Start a run, or continue run ``run_id``. Never fails because of MLflow.

        output_dir: holds the journal. run_name: start of the unique name. tracking_uri: `resolve_uri`; "none" keeps the
        journal only. parameters: may be nested. store_dir: folder of the default SQLite store and its artifacts
        (default: the parent of output_dir). datasets: what the run reads, each with name, digest (36 characters at
        most), context (the part of the data) and source, and whatever else is to be known of it.
        Raises ValueError for a name that MLflow would refuse.
        """
        folder = Path(output_dir).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        uri = resolve_uri(tracking_uri, Path(store_dir) if store_dir else folder.parent)
        tracker = cls(folder, unique_name(run_name or experiment), None if uri == OFF else RunStore(uri, experiment))
        tracker._held = hold(tracker.journal)
        if run_id:
            tracker._take_up(run_id)
        if tracking_uri and masked(uri) != uri and uri.startswith("http"):
            remedy = "give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            tracker._warn("password", f"the process list shows the name and password in the tracking URI: {remedy}")
        tracker._record("start", experiment=str(experiment), resumed=bool(run_id))
        tracker._record("tags", tags=flatten(tags or {}))
        tracker._record("parameters", parameters=flatten(parameters or {}))
        tracker._record("inputs", datasets=[dict(each) for each in datasets])
        tracker._connect()
        tracker._warn_refused()
        tracker.flush()
        atexit.register(tracker.close, "FAILED")  # a run that nobody closes must not stay RUNNING
        return tracker

    @property
    def run_id(self) -> str:
        """MLflow's run id, or ``journal:<run name>`` while MLflow does not know the run; `start` resumes either."""
        return (self._store and self._store.run_id) or self._resume_id or JOURNAL_ID + self.run_name

    @property
    def tracking_uri(self) -> str:
        """Where the run is kept; "none" without MLflow."""
        return self._store.uri if self._store else OFF

    @property
    def complete(self) -> bool:
        """Whether MLflow has everything that was logged so far."""
        return self._online and not self._pending

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log numbers under names such as ``train/loss`` or ``validation/AP``.

        nan and inf stay in the journal only, with a tag ``nonfinite.<name>`` and one warning: MLflow would draw them as
        0 and 1.8e308. Raises ValueError for a name that MLflow would refuse.
        """
        values = {check_name(name): float(value) for name, value in metrics.items()}
        self._record("metrics", step=int(step), metrics=values)
        for name in [name for name, value in values.items() if not math.isfinite(value)]:
            if f"nonfinite.{name}" not in self._warned:
                self._record("tags", tags={f"nonfinite.{name}": f"{values[name]} at step {step}"})
            self._warn(f"nonfinite.{name}", f"{name} is {values[name]} at step {step}: kept in {self.journal} only")
        self.flush()

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._record("tags", tags=flatten(tags))
        self.flush()

    def describe(self, markdown: str) -> None:
        """Set the description that MLflow shows above a run; it replaces an earlier one."""
        self._record("tags", tags={"mlflow.note.content": markdown[:MAX_DESCRIPTION_LENGTH]})
        self.flush()

    def log_model(self, checkpoint: Path | str) -> None:
        """Add the network of a checkpoint as an MLflow model (see `serving`); what goes wrong is a warning."""
        self._record("model", path=str(Path(checkpoint).resolve()))
        self.flush()

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """Keep a copy of a file in the run, in the artifact folder ``folder``; a missing file is a warning."""
        self._record("artifact", path=str(Path(path).resolve()), folder=folder)
        self.flush()

    def log_text(self, text: str, name: str, folder: str = "") -> Path:
        """Write ``<output_dir>/<name>``, without passwords, and log it as an artifact; return the path."""
        path = self.output_dir / name
        with replacing(path) as beside:
            beside.write_text(masked(text), encoding="utf-8")
        self.log_artifact(path, folder)
        return path

    def close(self, status: str = "FINISHED") -> None:
        """Send what MLflow is missing and end the run; a second call does nothing."""
        if status not in _STATUSES:
            raise ValueError(f"status must be one of {', '.join(_STATUSES)}, got {status!r}")
        if self._closed or os.getpid() != self._pid:
            return
        self._status = self._status or status
        self._record("end", status=self._status)
        self._warned.discard("artifacts")
        if not self._online:
            self._connect()
            self._warn_refused()
        self.flush()
        if self._online:
            self._attempt(lambda store: store.finish(self._status))
        if self._store and not self.complete:
            logger.info("run %s is not complete in MLflow: reg4pru tracking sync %s", self.run_name, self.output_dir)
        self._closed = True  # only now: an interrupt on the way here leaves the run to the next call
        atexit.unregister(self.close)
        release(self._held)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(status_of(error))

    def flush(self) -> None:
        """Send what is pending; every value method does this itself."""
        if not (self._store and self._online and self._pending):
            return
        values = [record for record in self._pending if record["kind"] not in _UPLOADED]
        if self._attempt(lambda store: store.send(values)):
            self._pending = [record for record in self._pending if record["kind"] in _UPLOADED]
            self._upload()

    def _upload(self) -> None:
        """Upload pending artifacts. An artifact store that refuses does not stop the metrics, and a model nothing."""
        while self._pending and self._store and "artifacts" not in self._warned:
            record = self._pending[0]
            if not Path(record["path"]).is_file():
                self._warn(record["path"], f"artifact {record['path']} is not a file: left out of the run")
            else:
                try:
                    with calm():
                        self._store.upload(record)
                except Exception as error:
                    if not self._attempt(lambda store: None):
                        return
                    if record["kind"] == "artifact":  # the store is there, only its artifacts are not
                        where = f"they stay in {self.output_dir}"
                        self._warn("artifacts", f"MLflow took no artifact ({reason(error)}): {where}")
                        return
                    remedy = f"reg4pru register {record['path']} --name NAME logs it later"
                    self._warn(record["path"], f"the model was not logged ({reason(error)}): {remedy}")
            self._pending.pop(0)

    def _take_up(self, run_id: str) -> None:
        """Find run ``run_id`` in the journal: its name, its MLflow id, and what may not have arrived."""
        records = read_journal(self.journal) if self.journal.is_file() else []
        names = {r["run_id"]: r["run"] for r in records if r["kind"] == "run_id"}
        offline = run_id.startswith(JOURNAL_ID)
        self.run_name = run_id.removeprefix(JOURNAL_ID) if offline else names.get(run_id, self.run_name)
        self._pending = [record for record in records if record["run"] == self.run_name]
        if self._pending:
            self._start_time = self._pending[0]["time"]
        ids = [key for key, name in names.items() if name == self.run_name]
        self._resume_id = (ids[-1] if ids else None) if offline else run_id

    def _record(self, kind: str, **fields: Any) -> None:
        """Write one record to the journal and keep it for MLflow."""
        if not any(fields.values()) and kind in ("tags", "parameters", "metrics", "inputs"):
            return
        record: Record = {"run": self.run_name, "time": now(), "kind": kind, **fields}
        self._pending.append(record)
        try:
            append(self.journal, record)
        except OSError as error:
            self._warn("journal", f"cannot write {self.journal} ({reason(error)}): values go to MLflow only")

    def _connect(self) -> None:
        """Open the MLflow run, or stay offline with one warning."""
        if self._store is None:
            return
        name, known = self.run_name, self._store.run_id or self._resume_id
        self._online = self._attempt(lambda store: store.open(known, name, self._start_time))
        if self._online and (self._store.run_id, self._store.run_name) != (known, name):
            self.run_name = self._store.run_name
            self._record("run_id", run_id=self._store.run_id)

    def _attempt(self, action: Callable[[RunStore], None]) -> bool:
        """Do something in the store; whatever goes wrong there takes the tracker offline instead of the training."""
        assert self._store is not None
        self._refused = ""
        try:
            with calm():
                self._store.probe()
                action(self._store)
        except DeletedExperimentError as error:
            self._online, self._refused = False, str(error)
            return False
        except Exception as error:
            self._online = False
            where = f"metrics are kept in {self.journal}, and sent when it is back or by `reg4pru tracking sync`"
            self._warn("offline", f"MLflow at {self._store.uri} cannot be used ({reason(error)}): {where}")
            return False
        return True

    def _warn_refused(self) -> None:
        """Warn once about what must be done before MLflow accepts the run."""
        if self._refused:
            where = f"metrics are kept in {self.journal}, and sent at the end of the run or by `reg4pru tracking sync`"
            self._warn("refused", f"{self._refused}; {where}")

    def _warn(self, topic: str, message: str) -> None:
        """Say something once."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(masked(message))


class SilentTracker(Tracker):
    """A tracker that keeps nothing, for the processes of a training other than rank 0."""

    def __init__(self, output_dir: Path | str = ".") -> None:
        super().__init__(Path(output_dir), "silent", None)

    def _record(self, kind: str, **fields: Any) -> None:
        pass

    def _warn(self, topic: str, message: str) -> None:
        pass

    def log_text(self, text: str, name: str, folder: str = "") -> Path:
        """Write nothing; return the path that rank 0 writes."""
        return self.output_dir / name


def send_journal(output_dir: Path | str, tracking_uri: str | None = None, store_dir: Path | str | None = None) -> bool:
    """Send the last run of a journal to MLflow, in a new run where it has none; return whether all of it arrived.

    A run that was cut off, and so has no end, is FAILED. Raises ValueError for one that is at work, for no run, and
    for one whose experiment was deleted.
    """
    folder = Path(output_dir).resolve()
    journal = folder / JOURNAL_NAME
    if is_held(journal):
        raise ValueError(f"{journal}: the run is at work, and sends what is missing when it ends; wait for it")
    records = read_journal(journal)
    if not records:
        raise ValueError(f"{journal}: holds no run; give the output folder of a training")
    mine = [record for record in records if record["run"] == records[-1]["run"]]
    experiments = [record["experiment"] for record in mine if record["kind"] == "start"]
    statuses = [record.get("status", "FAILED") for record in mine if record["kind"] in ("start", "end")]
    ids = [record["run_id"] for record in mine if record["kind"] == "run_id"]
    uri = resolve_uri(tracking_uri, Path(store_dir) if store_dir else folder.parent)
    experiment = experiments[0] if experiments else "fundus_vessels"
    tracker = Tracker(folder, mine[0]["run"], None if uri == OFF else RunStore(uri, experiment))
    tracker._take_up(ids[-1] if ids else JOURNAL_ID + tracker.run_name)
    tracker._connect()
    if tracker._refused:
        raise ValueError(tracker._refused)
    tracker.close(statuses[-1] if statuses else "FAILED")
    return tracker.complete


# --- ignite and signals -------------------------------------------------------------------------------------------


class TrackingHandler:
    """Ignite handler: metrics after every epoch, FAILED or KILLED on an exception, which is raised again.

    Attach it before MONAI's StatsHandler: an EXCEPTION_RAISED handler attached after that one never runs.
    tracker: a started Tracker, or a function that starts one when the engine starts. epoch_metrics: engine -> numbers
    to log. step: engine -> step to log them at (default: the engine's epoch; a validator gives the trainer's epoch).
    close_on_completed: False, because the final evaluation logs after the training.
    """

    def __init__(
        self,
        tracker: Tracker | Callable[[], Tracker],
        epoch_metrics: Callable[[Engine], Mapping[str, Any]] | None = None,
        step: Callable[[Engine], int] | None = None,
        close_on_completed: bool = False,
    ) -> None:
        self._tracker = tracker
        self.epoch_metrics = epoch_metrics or (lambda engine: engine.state.metrics)
        self.step = step or (lambda engine: engine.state.epoch)
        self.close_on_completed = close_on_completed

    @property
    def tracker(self) -> Tracker:
        """The tracker, started at the first use where a function was given."""
        if not isinstance(self._tracker, Tracker):
            self._tracker = self._tracker()
        return self._tracker

    def attach(self, engine: Engine) -> None:
        """Register the handler with a trainer or evaluator."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.exception_raised)
        if self.close_on_completed:
            engine.add_event_handler(Events.COMPLETED, lambda _: self.tracker.close())

    def started(self, engine: Engine) -> None:
        """Start the tracker where a function was given."""
        _ = self.tracker

    def epoch_completed(self, engine: Engine) -> None:
        """Log the numbers of the epoch that ended."""
        self.tracker.log_metrics(self.epoch_metrics(engine), self.step(engine))

    def exception_raised(self, engine: Engine, error: BaseException) -> None:
        """Close the run as FAILED or KILLED and raise the exception again: ignite swallows it otherwise."""
        self.tracker.close(status_of(error))
        raise error


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """In the main thread, turn the first SIGTERM into KeyboardInterrupt, so that runs are closed; ignore later ones."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the closing
        raise KeyboardInterrupt("SIGTERM")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# --- where it ran -------------------------------------------------------------------------------------------------


def environment_tags() -> dict[str, str]:
    """Tags that say with what and where a run was made: git revision, package versions, host, device."""
    import torch

    from .runtime import device_name

    revision, dirty = _git()
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    tags = {
        "git.revision": revision,
        "git.dirty": dirty,
        "mlflow.source.git.commit": revision,  # the name under which the MLflow UI shows it
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "device": device,
        "device.type": "cuda" if torch.cuda.is_available() else "cpu",
        "cpu.count": str(os.cpu_count()),
    }
    return tags | {f"package.{name}": _version(name) for name in PACKAGES}


def _git() -> tuple[str, str]:
    """Revision and "true"/"false" for uncommitted changes; "unknown" where this file is not part of a repository."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an environment inside somebody else's repository is not ours
        return git("rev-parse", "HEAD"), str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    except (OSError, subprocess.SubprocessError):
        return "unknown", "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
