"""The journal of a training run and the MLflow store it is sent to; the use of both is in `tracking`."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import sqlite3
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from .locks import lock, unlock

logger = logging.getLogger(__name__)

JOURNAL_NAME = "journal.jsonl"
MAX_VALUE_LENGTH = 500
# A server that is down is otherwise retried for minutes; set only around our calls, and only where the user did not.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_PROBE_SECONDS = 3.0
_DATABASE = "mlflow.db"
_MAGIC = b"SQLite format 3\0"
_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*(/[A-Za-z0-9_\-][A-Za-z0-9_.\-]*)*")

# user:password@ after the scheme of a URL, and password=… among its parameters.
_PASSWORD = re.compile(
    r"(?<=://)([^/\s:@]*):(?:[^/\s]*|[^\s@]*)@|(?<=[?&])(password|passwd|pwd|token)=[^&\s'\"]+", re.I
)

Record = dict[str, Any]


class DeletedExperimentError(ValueError):
    """The experiment of a run is in the trash of its MLflow store."""


# --- names and values ---------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """Return a metric, parameter or tag name unchanged, or raise ValueError saying what is wrong with it."""
    if not _NAME.fullmatch(name) or len(name) > 250:
        raise ValueError(
            f"tracking name {name!r} cannot be used: take letters, digits, '_', '-', '.', in groups joined by '/', "
            "250 characters at most, for example 'validation/AP' (MLflow refuses '#' and '@')"
        )
    return name


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mapping -> flat ``{"optimizer.lr": "0.001"}``, every value text of at most 500 characters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = check_name(f"{prefix}{key}")
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            text = masked(str(value))
            flat[name] = text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."
    return flat


def masked(text: str) -> str:
    """Mask the passwords of all URLs in a text, which must be done before it is written, logged or shown."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] is not None else f"{found[2]}=***", text)


def unique_name(stem: str) -> str:
    """Return ``stem-<date>-<time>-<4 hex digits>``: never equal for two runs, sorted by start."""
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def status_of(error: BaseException | None) -> str:
    """MLflow status of a run that ended with ``error``: an interrupt or a signal is KILLED, success is FINISHED."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    by_signal = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    return "KILLED" if by_signal or isinstance(error, KeyboardInterrupt) else "FAILED"


# --- journal ------------------------------------------------------------------------------------------------------


def read_journal(path: Path | str) -> list[Record]:
    """Read a journal (file, or the folder that holds it); lines cut off by a crash are left out."""
    path = Path(path)
    path = path / JOURNAL_NAME if path.is_dir() else path
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and {"run", "time", "kind"} <= record.keys():
            if record["kind"] == "metrics":
                try:
                    record["metrics"] = {name: float(value) for name, value in record["metrics"].items()}
                except (KeyError, TypeError, ValueError, AttributeError):  # damaged: as good as cut off
                    continue
            records.append(record)
    return records


def ended_well(journal: Path) -> bool:
    """Whether the run of a journal ended well, and was not started again since; False where there is no journal."""
    if not journal.is_file():
        return False
    # The id of a run that began offline stands behind its end.
    records = [record for record in read_journal(journal) if record["kind"] in ("start", "end")]
    return bool(records) and records[-1].get("status") == "FINISHED"


def append(path: Path, record: Record) -> None:
    """Append one line of strict JSON (nan and inf as text), on a line of its own even after a torn one."""
    if record["kind"] == "metrics":
        finite = {name: v if math.isfinite(v) else str(v) for name, v in record["metrics"].items()}
        record = {**record, "metrics": finite}
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(record, allow_nan=False).encode() + b"\n")


def hold(path: Path) -> IO[bytes] | None:
    """Mark a journal as being written, until `release`, or until the process ends in whatever way; None: impossible.

    Several may hold it. Where the system or the file system knows no locks, nobody is known to write.
    """
    try:
        file = path.open("ab+")
    except OSError:
        return None
    if lock(file, shared=True, wait=True):
        return file
    file.close()
    return None


def release(held: IO[bytes] | None) -> None:
    """Undo `hold`, also for processes that were forked meanwhile and have the file open, too."""
    if held is not None:
        with held, suppress(OSError):
            unlock(held)


def is_held(path: Path) -> bool:
    """Whether a living process writes the journal."""
    try:
        with path.open("rb+") as file:
            return lock(file) is False
    except OSError:
        return False


# --- MLflow -------------------------------------------------------------------------------------------------------


@contextmanager
def calm() -> Iterator[None]:
    """Around calls into mlflow: bounded retries, no telemetry, no migration chatter; all put back afterwards."""
    added = [key for key in _PATIENCE if key not in os.environ]
    os.environ.update({key: _PATIENCE[key] for key in added})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            import mlflow.tracking  # noqa: F401  (sets up its loggers, so before their levels are taken)

            noisy = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
            levels = [each.level for each in noisy]
            for each in noisy:
                each.setLevel(logging.ERROR)
            try:
                yield
            finally:
                for each, level in zip(noisy, levels, strict=True):
                    each.setLevel(level)
    finally:
        for key in added:
            os.environ.pop(key, None)


def sqlite_uri(path: Path) -> str:
    """SQLite URI of a file. Spaces stay (mlflow makes a folder ``with%20space`` of an encoded one), `%` must not."""
    return "sqlite:///" + str(path.resolve()).replace("%", "%25").replace("?", "%3F")


def store_folder(output_dir: Path) -> Path:
    """The folder of the local store of a training: beside it, or where a sweep keeps that of all its members."""
    above = output_dir.resolve().parent
    return above.parent if not (above / _DATABASE).exists() and (above.parent / _DATABASE).exists() else above


def resolve_uri(tracking_uri: str | None, store_dir: Path) -> str:
    """Explicit argument, else ``MLFLOW_TRACKING_URI``, else a SQLite file in ``store_dir``."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(store_dir / _DATABASE)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_MAGIC))


class RunStore:
    """One run in one MLflow store; every method may raise anything that mlflow raises."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, str(experiment)
        self.run_id = self.run_name = ""  # empty until `open`
        self._parameters: dict[str, str] = {}

    def probe(self) -> None:
        """Fail within seconds where mlflow itself would retry for minutes."""
        if self.uri.startswith(("http://", "https://")):
            import requests

            with suppress(requests.exceptions.SSLError):  # it answers; mlflow applies its own certificate settings
                requests.get(self.uri.rstrip("/") + "/health", timeout=_PROBE_SECONDS)
        elif path := self._database():
            if not self.run_id:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not path.is_file():
                raise FileNotFoundError(f"{path} has gone")
            if path.is_file() and _head(path) not in (b"", _MAGIC):
                raise sqlite3.DatabaseError(f"{path} is no SQLite database")  # a short file would be overwritten
            with closing(sqlite3.connect(path, timeout=_PROBE_SECONDS)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()

    def _database(self) -> Path | None:
        """Path of a SQLite store, None for others."""
        if not self.uri.startswith("sqlite:"):
            return None
        from sqlalchemy.engine import make_url

        name = make_url(self.uri).database
        return None if name in (None, "", ":memory:") else Path(str(name)).resolve()

    @cached_property
    def _client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            database = self._database()
            beside = (database.parent / "mlartifacts").as_uri() if database else None
            try:
                return str(self._client.create_experiment(self.experiment, artifact_location=beside))
            except Exception:  # another run may have made it in the meantime
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise DeletedExperimentError(
                f"the experiment {self.experiment!r} was deleted: restore it with MLFLOW_TRACKING_URI="
                f"{shlex.quote(masked(self.uri))} mlflow experiments restore --experiment-id {found.experiment_id}, or "
                "train with another --experiment"
            )
        return str(found.experiment_id)

    def open(self, run_id: str | None, name: str, start_time: int) -> None:
        """Reopen ``run_id`` if it still exists, else make a run. Raises DeletedExperimentError."""
        run = self._find(run_id) if run_id else None
        if run is None:
            tags = {"resumed_from": run_id} if run_id else {}
            run = self._client.create_run(self._experiment_id(), start_time=start_time, tags=tags, run_name=name)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._parameters = dict(run.data.params)
        self.run_id, self.run_name = str(run.info.run_id), str(run.info.run_name)

    def _find(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            logger.warning("MLflow has no run %s to resume in %s; a new run is made", run_id, masked(self.uri))
            return None
        return run

    def search(self, filter_string: str) -> list[Any]:
        """The MLflow runs of all experiments that match, the latest first; none where there is no store yet."""
        database = self._database()
        if database is not None and not database.is_file():
            return []
        self.probe()
        experiments = [str(each.experiment_id) for each in self._client.search_experiments()]
        return list(self._client.search_runs(experiments, filter_string, order_by=["attributes.start_time DESC"]))

    def send(self, records: list[Record]) -> None:
        """Send metrics, parameters, tags and data sets in as few calls as possible; sending twice is harmless."""
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Metric] = []
        tags: dict[str, str] = {}
        new: dict[str, str] = {}
        for record in records:
            metrics += [
                Metric(name, value, record["time"], record["step"])
                for name, value in record.get("metrics", {}).items()
                if math.isfinite(value)
            ]
            tags.update(record.get("tags", {}))
            for name, value in record.get("parameters", {}).items():
                known = self._parameters.get(name, new.setdefault(name, value))
                if known != value:  # MLflow parameters cannot be changed: the first value stays
                    tags[f"changed.{name}"] = f"{known} -> {value}"
        parameters = [Param(name, value) for name, value in new.items() if name not in self._parameters]
        run_tags = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, max(len(parameters), len(run_tags)), 100):  # 100 and 1000: MLflow's limits for one call
            part = slice(start, start + 100)
            self._client.log_batch(self.run_id, params=parameters[part], tags=run_tags[part], synchronous=True)
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000], synchronous=True)
        self._parameters.update({each.key: each.value for each in parameters})
        if inputs := [_dataset_input(each) for record in records for each in record.get("datasets", [])]:
            self._client.log_inputs(self.run_id, datasets=inputs)

    def upload(self, record: Record) -> None:
        """Copy one file into the run, or log the model of one checkpoint."""
        if record["kind"] == "model":
            from .serving import log_model

            log_model(record["path"], self.run_id, self.uri)
        else:
            self._client.log_artifact(self.run_id, record["path"], record["folder"] or None)

    def finish(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status)


def _dataset_input(given: Mapping[str, Any]) -> Any:
    """MLflow's entry of one part of a data set; see `Tracker.start`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {key: value for key, value in given.items() if key not in ("name", "digest", "context", "source")}
    source = json.dumps({"uri": given["source"]})
    dataset = Dataset(given["name"], given["digest"], "local", source, profile=json.dumps(profile))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", given["context"])])


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def reason(error: BaseException) -> str:
    """First line of an error, short, without passwords."""
    return masked(f"{type(error).__name__}: {error}".splitlines()[0])[:300]
