import json
import logging
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events
from typer.testing import CliRunner

from reg4pru_monai import tracking
from reg4pru_monai.cli import app
from reg4pru_monai.tracking import (
    SilentTracker,
    Tracker,
    TrackingHandler,
    environment_tags,
    read_journal,
    send_journal,
    status_of,
    terminate_as_interrupt,
)
from reg4pru_monai.tracking_store import (
    JOURNAL_NAME,
    RunStore,
    append,
    calm,
    check_name,
    flatten,
    masked,
    resolve_uri,
    sqlite_uri,
    store_folder,
)

CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests, because making one takes seconds; its path has a space in it."""
    folder = tmp_path_factory.mktemp("store") / "with space"
    Tracker.start(folder / "first", store_dir=folder).close()
    return folder


def read_run(uri: str, run_id: str) -> Any:
    with calm():
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=uri).get_run(run_id)


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    with calm():
        from mlflow.tracking import MlflowClient

        return [(m.step, m.value) for m in MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("reg4pru")]


# --- names and values


def test_flatten_gives_flat_names_and_short_text() -> None:
    flat = flatten({"optimizer": {"lr": 1e-3, "betas": (0.9, 0.99)}, "long": "x" * 600, "none": None})
    assert flat["optimizer.lr"] == "0.001"
    assert flat["optimizer.betas"] == "(0.9, 0.99)"
    assert flat["none"] == "None"
    assert len(flat["long"]) == 500
    assert flat["long"].endswith("xxx...")


@pytest.mark.parametrize("name", ["train#loss", "a@b", "", "a//b", "/a", "a/../b", "a b", "x" * 251])
def test_a_name_mlflow_refuses_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with Tracker.start(tmp_path, tracking_uri="none") as tracker:
        with pytest.raises(ValueError, match="cannot be used: take letters"):
            tracker.log_metrics({name: 1.0}, step=0)
        with pytest.raises(ValueError, match="MLflow refuses '#' and '@'"):
            tracker.set_tags({name: 1})
    assert not [r for r in read_journal(tmp_path) if r["kind"] in ("metrics", "tags")]
    assert check_name("validation/AP") == "validation/AP"


def test_the_store_is_argument_then_environment_then_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert resolve_uri(None, tmp_path) == "http://host:1"
    assert resolve_uri("none", tmp_path) == "none"
    assert sqlite_uri(Path("/a b/c%20d/x.db")) == "sqlite:////a b/c%2520d/x.db"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(1), "FAILED"),
        (SystemExit("message"), "FAILED"),
        (SystemExit(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (ValueError(), "FAILED"),
    ],
)
def test_status_follows_the_error(error: BaseException | None, status: str) -> None:
    assert status_of(error) == status


# --- journal


def test_a_torn_journal_line_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    record = {"run": "r", "time": 1, "kind": "metrics", "step": 3, "metrics": {"a": math.inf, "b": math.nan, "c": 0.1}}
    append(path, record)
    with path.open("ab") as file:
        file.write(b'{"run": "r", "time": 2, "kind": "metr')
    append(path, {**record, "step": 4, "metrics": {"c": 0.5}})
    first, second = read_journal(path)
    assert first["metrics"]["a"] == math.inf
    assert math.isnan(first["metrics"]["b"])
    assert (first["metrics"]["c"], second["step"], second["metrics"]) == (0.1, 4, {"c": 0.5})
    assert '"a": "inf", "b": "nan"' in path.read_text()  # strict JSON: every line but the torn one loads anywhere


def test_without_mlflow_the_journal_has_everything(tmp_path: Path) -> None:
    with Tracker.start(tmp_path, tracking_uri="none", run_name="mine", parameters={"seed": 7}) as tracker:
        tracker.log_metrics({"train/loss": 0.5}, step=1)
        assert tracker.run_id == f"journal:{tracker.run_name}"
        assert tracker.run_name.startswith("mine-")
    kinds = [record["kind"] for record in read_journal(tmp_path)]
    assert kinds == ["start", "parameters", "metrics", "end"]
    assert not (tmp_path.parent / "mlflow.db").exists()


def test_a_journal_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with Tracker.start(tmp_path, tracking_uri="none") as tracker:
        tracker.log_metrics({"a": 1}, step=1)
    (message,) = warnings_in(caplog)
    assert "cannot write" in message


def test_silent_tracker_writes_nothing(tmp_path: Path) -> None:
    with SilentTracker(tmp_path) as tracker:
        tracker.log_metrics({"a": math.nan}, step=1)
        assert tracker.log_text("x", "a.txt") == tmp_path / "a.txt"
    assert list(tmp_path.iterdir()) == []


# --- a real SQLite store


def test_a_run_is_read_back_from_mlflow(tmp_path: Path, store_dir: Path) -> None:
    with Tracker.start(
        tmp_path,
        "content",
        run_name="dense",
        store_dir=store_dir,
        parameters={"policy": "dense"},
        tags={"host": "here"},
    ) as tracker:
        for epoch in (1, 2):
            tracker.log_metrics({"train/loss": 1 / epoch, "validation/AP": 0.4 * epoch}, step=epoch)
        tracker.log_text("preset: tiny\n", "config.yaml", folder="config")
        assert tracker.complete
    run = read_run(tracker.tracking_uri, tracker.run_id)
    assert run.data.params == {"policy": "dense"}
    assert run.data.tags["host"] == "here"
    assert run.info.status == "FINISHED"
    assert run.info.run_name == tracker.run_name
    assert history(tracker.tracking_uri, tracker.run_id, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics["validation/AP"] == 0.8
    artifact = store_dir / "mlartifacts" / tracker.run_id / "artifacts" / "config" / "config.yaml"
    assert artifact.read_text() == "preset: tiny\n"
    assert not (store_dir.parent / "with%20space").exists()


def test_data_sets_and_the_description_are_read_back(tmp_path: Path, store_dir: Path) -> None:
    train = {"name": "HRF", "digest": "a" * 16, "context": "train", "source": "/data/HRF/images", "images": 15}
    datasets = [train, train | {"digest": "b" * 16, "context": "test", "images": 30}]
    with Tracker.start(tmp_path, "data", store_dir=store_dir, datasets=datasets) as tracker:
        tracker.describe("**AP 0.8** " + "x" * 9000)
        tracker.describe("**AP 0.9** " + "y" * 9000)
    assert send_journal(tmp_path, store_dir=store_dir)  # again: nothing twice
    run = read_run(tracker.tracking_uri, tracker.run_id)
    found = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == 2
    assert (found["train"].name, found["train"].digest, found["test"].digest) == ("HRF", "a" * 16, "b" * 16)
    assert json.loads(found["test"].profile) == {"images": 30}
    assert json.loads(found["train"].source) == {"uri": "/data/HRF/images"}
    assert found["train"].source_type == "local"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**AP 0.9** yyy")
    assert len(note) == 8000


def test_names_are_unique_and_the_wrong_status_is_refused(tmp_path: Path) -> None:
    trackers = [Tracker.start(tmp_path, run_name="same", tracking_uri="none") for _ in range(20)]
    assert len({tracker.run_name for tracker in trackers}) == 20
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED, got 'DONE'"):
        trackers[0].close("DONE")
    for tracker in trackers:
        tracker.close()


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_ends_by_an_exception_is_closed(
    error: BaseException, status: str, tmp_path: Path, store_dir: Path
) -> None:
    with pytest.raises(type(error)), Tracker.start(tmp_path, "ends", store_dir=store_dir) as tracker:
        raise error
    tracker.close("FINISHED")  # closing twice changes nothing
    assert read_run(tracker.tracking_uri, tracker.run_id).info.status == status


def test_resuming_continues_the_same_run(tmp_path: Path, store_dir: Path) -> None:
    first = Tracker.start(tmp_path, "resume", store_dir=store_dir, parameters={"seed": 1, "lr": 0.1})
    first.log_metrics({"train/loss": 3}, step=1)
    first.close("KILLED")
    second = Tracker.start(
        tmp_path, "resume", store_dir=store_dir, parameters={"seed": 1, "lr": 0.2}, run_id=first.run_id
    )
    assert (second.run_id, second.run_name) == (first.run_id, first.run_name)
    assert read_run(second.tracking_uri, second.run_id).info.status == "RUNNING"
    second.log_metrics({"train/loss": 2}, step=2)
    second.close()
    run = read_run(second.tracking_uri, second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "lr": "0.1"}
    assert run.data.tags["changed.lr"] == "0.1 -> 0.2"
    assert history(second.tracking_uri, second.run_id, "train/loss") == [(1, 3.0), (2, 2.0)]


def test_resuming_a_run_that_is_not_there_makes_a_new_one(
    tmp_path: Path, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker.start(tmp_path, "resume", store_dir=store_dir, run_id="0" * 32) as tracker:
        tracker.log_metrics({"a": 1}, step=1)
    (message,) = warnings_in(caplog)
    assert "no run 000" in message
    run = read_run(tracker.tracking_uri, tracker.run_id)
    assert run.data.tags["resumed_from"] == "0" * 32
    assert run.data.metrics == {"a": 1.0}


def test_values_that_are_not_finite_stay_in_the_journal(
    tmp_path: Path, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker.start(tmp_path, "nan", store_dir=store_dir) as tracker:
        for step in (1, 2):
            tracker.log_metrics({"train/loss": math.nan, "train/norm": 1.5}, step=step)
    (message,) = warnings_in(caplog)
    assert "train/loss is nan at step 1" in message
    run = read_run(tracker.tracking_uri, tracker.run_id)
    assert run.data.metrics == {"train/norm": 1.5}
    assert run.data.tags["nonfinite.train/loss"] == "nan at step 1"
    assert sum("train/loss" in record.get("metrics", {}) for record in read_journal(tmp_path)) == 2


def test_a_missing_artifact_is_a_warning(tmp_path: Path, store_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Tracker.start(tmp_path, "artifacts", store_dir=store_dir) as tracker:
        tracker.log_artifact(tmp_path / "absent.png")
    (message,) = warnings_in(caplog)
    assert "absent.png is not a file" in message
    assert tracker.complete


def test_an_artifact_store_that_refuses_does_not_stop_the_metrics(
    tmp_path: Path, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker.start(tmp_path, "artifacts", store_dir=store_dir) as tracker:
        folder = store_dir / "mlartifacts" / tracker.run_id
        folder.parent.mkdir(exist_ok=True)
        folder.write_text("a file where the folder should be")
        tracker.log_text("x", "a.txt")
        tracker.log_metrics({"a": 1}, step=1)
        assert len(warnings_in(caplog)) == 1
        assert "took no artifact" in caplog.text
        folder.unlink()
    assert (folder / "artifacts" / "a.txt").read_text() == "x"  # tried again at the end
    assert read_run(tracker.tracking_uri, tracker.run_id).data.metrics == {"a": 1.0}


def test_a_locked_database_costs_seconds_and_no_value(
    tmp_path: Path, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker.start(tmp_path, "locked", store_dir=store_dir) as tracker:
        with closing(sqlite3.connect(store_dir / "mlflow.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            tracker.log_metrics({"a": 1}, step=1)
            tracker.log_metrics({"a": 2}, step=2)
            assert time.monotonic() - began < 8
            other.rollback()
        (message,) = warnings_in(caplog)
        assert "database is locked" in message
    assert history(tracker.tracking_uri, tracker.run_id, "a") == [(1, 1.0), (2, 2.0)]
    assert tracker.complete


def test_a_store_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    with Tracker.start(tmp_path / "out", store_dir=tmp_path / "file") as tracker:
        tracker.log_metrics({"a": 1}, step=1)
    assert time.monotonic() - began < 8
    assert len(warnings_in(caplog)) == 1
    assert read_journal(tmp_path / "out")[-1]["status"] == "FINISHED"


def test_a_deleted_experiment_is_named_with_the_remedy(
    tmp_path: Path, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = sqlite_uri(store_dir / "mlflow.db")
    Tracker.start(tmp_path / "first", "trash", store_dir=store_dir).close()
    with calm():
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        number = client.get_experiment_by_name("trash").experiment_id
        client.delete_experiment(number)
    with Tracker.start(tmp_path / "second", "trash", store_dir=store_dir) as tracker:
        tracker.log_metrics({"a": 1}, step=1)
    (message,) = warnings_in(caplog)
    assert message.startswith("the experiment 'trash' was deleted: restore it with MLFLOW_TRACKING_URI=")
    assert f"mlflow experiments restore --experiment-id {number}, or train with another --experiment; " in message
    sync = ["tracking", "sync", str(tmp_path / "second"), "--tracking-uri", uri]
    refused = CliRunner().invoke(app, sync)
    assert refused.exit_code == 1
    assert f"mlflow experiments restore --experiment-id {number}, or" in refused.output
    with calm():
        client.restore_experiment(number)
    assert CliRunner().invoke(app, sync).exit_code == 0
    (run_id,) = {record["run_id"] for record in read_journal(tmp_path / "second") if record["kind"] == "run_id"}
    assert history(uri, run_id, "a") == [(1, 1.0)]


# --- passwords


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://joe:pw@host:5000", "http://joe:***@host:5000"),
        ("a http://joe:p@w@host/x b https://:t@h", "a http://joe:***@host/x b https://:***@h"),
        ("postgresql://u:p/w@h/db?sslmode=x", "postgresql://u:***@h/db?sslmode=x"),
        ("mysql://h/db?user=a&password=pw&b=1", "mysql://h/db?user=a&password=***&b=1"),
        ("tracking_uri: http://j:pw@h\nnote: a@b", "tracking_uri: http://j:***@h\nnote: a@b"),
        ("http://host:5000/#/experiments/1 and a@b", "http://host:5000/#/experiments/1 and a@b"),
        ("sqlite:////a b/c@d.db", "sqlite:////a b/c@d.db"),
    ],
)
def test_passwords_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize("argument", [True, False])
def test_a_password_stands_nowhere(
    argument: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = "http://joe:S3CRETPW@127.0.0.1:9"
    if not argument:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with Tracker.start(
        tmp_path, tracking_uri=uri if argument else None, parameters={"uri": uri}, tags={"uri": uri}
    ) as tracker:
        tracker.log_text(f"tracking_uri: {uri}\n", "configuration.yaml")
    said = warnings_in(caplog)
    assert any("MLflow at http://joe:***@127.0.0.1:9 cannot be used" in each for each in said)
    assert argument == any("MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in each for each in said)
    options = ["--tracking-uri", uri] if argument else []
    output = CliRunner().invoke(app, ["tracking", "sync", str(tmp_path), *options]).output
    assert "http://joe:***@127.0.0.1:9" in output
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "S3CRETPW" not in caplog.text + output + written.decode()


# --- a server


def test_a_server_that_is_down_costs_one_warning(
    tmp_path: Path, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with Tracker.start(tmp_path, "late", tracking_uri=CLOSED_PORT, parameters={"seed": 3}) as tracker:
        for step in range(50):
            tracker.log_metrics({"train/loss": step}, step=step)
        tracker.log_text("late", "note.txt")
    assert time.monotonic() - began < 15
    (message,) = warnings_in(caplog)
    assert f"MLflow at {CLOSED_PORT} cannot be used (ConnectionError" in message
    assert str(tracker.journal) in message
    assert sum(record["kind"] == "metrics" for record in read_journal(tmp_path)) == 50
    assert not tracker.complete

    assert send_journal(tmp_path, store_dir=store_dir)  # later, to the local store
    assert send_journal(tmp_path, store_dir=store_dir)  # again: the same run, nothing twice
    ids = {record["run_id"] for record in read_journal(tmp_path) if record["kind"] == "run_id"}
    (run_id,) = ids
    uri = sqlite_uri(store_dir / "mlflow.db")
    run = read_run(uri, run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == (tracker.run_name, "FINISHED", {"seed": "3"})
    assert history(uri, run_id, "train/loss") == [(step, float(step)) for step in range(50)]
    assert (store_dir / "mlartifacts" / run_id / "artifacts" / "note.txt").is_file()


def test_a_run_begun_without_mlflow_is_resumed_by_its_journal_id(tmp_path: Path, store_dir: Path) -> None:
    first = Tracker.start(tmp_path, "later", tracking_uri="none", parameters={"seed": 3})
    first.log_metrics({"a": 1}, step=1)
    first.close("KILLED")
    with Tracker.start(tmp_path, "later", store_dir=store_dir, run_id=first.run_id) as second:
        second.log_metrics({"a": 2}, step=2)
    assert second.run_name == first.run_name
    assert not second.run_id.startswith("journal:")
    assert history(second.tracking_uri, second.run_id, "a") == [(1, 1.0), (2, 2.0)]
    with Tracker.start(tmp_path, "later", store_dir=store_dir, run_id=first.run_id) as third:
        pass
    assert third.run_id == second.run_id


def test_an_empty_journal_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(ValueError, match="holds no run; give the output folder of a training"):
        send_journal(tmp_path)


def test_the_journal_of_a_run_at_work_is_not_sent(tmp_path: Path, store_dir: Path) -> None:
    with Tracker.start(tmp_path, "at work", store_dir=store_dir) as tracker:
        before = (tmp_path / "journal.jsonl").read_bytes()
        with pytest.raises(ValueError, match="the run is at work, and sends what is missing when it ends; wait for it"):
            send_journal(tmp_path, store_dir=store_dir)
        assert (tmp_path / "journal.jsonl").read_bytes() == before
        assert read_run(tracker.tracking_uri, tracker.run_id).info.status == "RUNNING"
    assert send_journal(tmp_path, store_dir=store_dir)
    assert read_run(tracker.tracking_uri, tracker.run_id).info.status == "FINISHED"


def test_a_run_that_was_resumed_and_cut_off_is_failed(tmp_path: Path, store_dir: Path) -> None:
    first = Tracker.start(tmp_path, "cut off", store_dir=store_dir)
    first.close("KILLED")
    assert send_journal(tmp_path, store_dir=store_dir)
    assert read_run(first.tracking_uri, first.run_id).info.status == "KILLED"
    append(first.journal, {"run": first.run_name, "time": 1, "kind": "start", "experiment": "cut off", "resumed": True})
    append(first.journal, {"run": first.run_name, "time": 2, "kind": "metrics", "step": 1, "metrics": {"a": 1.0}})
    assert send_journal(tmp_path, store_dir=store_dir)
    run = read_run(first.tracking_uri, first.run_id)
    assert (run.info.status, run.data.metrics) == ("FAILED", {"a": 1.0})


class Server:
    """A real mlflow server on loopback, in a process group of its own."""

    def __init__(self, folder: Path, backend: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self.backend = folder, backend
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.backend, "--artifacts-destination", str(self.folder)]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **quiet}, start_new_session=True
            )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, store_dir: Path) -> Iterator[Server]:
    (tmp_path / "artifacts").mkdir()
    server = Server(tmp_path / "artifacts", sqlite_uri(store_dir / "mlflow.db"))
    server.start()
    yield server
    server.kill()


def test_a_server_killed_in_the_middle_gets_the_rest_when_it_is_back(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker.start(tmp_path / "out", "server", tracking_uri=server.uri, parameters={"seed": 1})
    for step in range(3):
        tracker.log_metrics({"train/loss": step}, step=step)
    tracker.log_text("before", "before.txt", "notes")
    assert tracker.complete
    server.kill()
    began = time.monotonic()
    for step in range(3, 6):
        tracker.log_metrics({"train/loss": step}, step=step)
    tracker.log_text("after", "after.txt", "notes")
    assert time.monotonic() - began < 15
    assert len(warnings_in(caplog)) == 1
    steps = [record["step"] for record in read_journal(tmp_path / "out") if record["kind"] == "metrics"]
    assert steps == list(range(6))

    server.start()
    tracker.close()
    assert tracker.complete
    run = read_run(server.uri, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert history(server.uri, tracker.run_id, "train/loss") == [(step, float(step)) for step in range(6)]
    assert {path.name for path in (tmp_path / "artifacts").rglob("*.txt")} == {"before.txt", "after.txt"}
    assert len(warnings_in(caplog)) == 1


# --- ignite


def engine_that(action: Any) -> Engine:
    engine = Engine(lambda engine, batch: action(engine, batch))
    engine.logger.setLevel(logging.CRITICAL)
    return engine


def test_the_handler_logs_every_epoch_and_leaves_the_run_open(tmp_path: Path) -> None:
    engine = engine_that(lambda engine, batch: batch)
    starts: list[Tracker] = []

    def start() -> Tracker:
        starts.append(Tracker.start(tmp_path, tracking_uri="none"))
        return starts[-1]

    handler = TrackingHandler(start, lambda engine: {"train/loss": engine.state.output})
    handler.attach(engine)
    assert not starts
    engine.run([1.0, 2.0], max_epochs=3)
    (tracker,) = starts
    tracker.log_metrics({"test/AP": 0.9}, step=3)  # the final evaluation
    tracker.close()
    logged = [(r["step"], r["metrics"]) for r in read_journal(tmp_path) if r["kind"] == "metrics"]
    assert logged == [(step, {"train/loss": 2.0}) for step in (1, 2, 3)] + [(3, {"test/AP": 0.9})]


def test_the_handler_takes_the_step_of_another_engine_and_can_close(tmp_path: Path) -> None:
    validator = engine_that(lambda engine, batch: batch)
    validator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(AP=0.7))
    tracker = Tracker.start(tmp_path, tracking_uri="none")
    TrackingHandler(tracker, step=lambda engine: 41, close_on_completed=True).attach(validator)
    validator.run([0])
    *_, metrics, end = read_journal(tmp_path)
    assert (metrics["step"], metrics["metrics"], end["status"]) == (41, {"AP": 0.7}, "FINISHED")


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_the_handler_closes_and_raises_again(error: BaseException, status: str, tmp_path: Path) -> None:
    def fail(engine: Engine, batch: Any) -> None:
        raise error

    engine = engine_that(fail)
    TrackingHandler(Tracker.start(tmp_path, tracking_uri="none")).attach(engine)
    with pytest.raises(type(error)):
        engine.run([0])
    assert [r["status"] for r in read_journal(tmp_path) if r["kind"] == "end"] == [status]


# --- processes


TRAINING = """
import sys, time
from ignite.engine import Engine
from reg4pru_monai.tracking import Tracker, TrackingHandler, terminate_as_interrupt

def step(engine, batch):
    print("training", flush=True)
    time.sleep(0.05 if sys.argv[3] == "forget" else 60)
    return 0.5

tracker = Tracker.start(sys.argv[1], "processes", store_dir=sys.argv[2])
print(tracker.run_id, flush=True)
trainer = Engine(step)
TrackingHandler(tracker, lambda engine: {"train/loss": 0.5}).attach(trainer)
with terminate_as_interrupt():
    trainer.run([0])
"""


def run_training(tmp_path: Path, store_dir: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAINING, str(tmp_path), str(store_dir), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_training_stopped_by_sigterm_is_killed_in_mlflow(tmp_path: Path, store_dir: Path) -> None:
    with run_training(tmp_path, store_dir, "wait") as training:
        assert training.stdout is not None
        run_id = training.stdout.readline().strip()
        assert training.stdout.readline() == "training\n"
        training.send_signal(signal.SIGTERM)
        _, errors = training.communicate(timeout=20)
    assert training.returncode != 0
    assert "KeyboardInterrupt: SIGTERM" in errors
    assert read_run(sqlite_uri(store_dir / "mlflow.db"), run_id).info.status == "KILLED"


def test_the_journal_of_a_training_that_was_shot_can_be_sent(tmp_path: Path, store_dir: Path) -> None:
    with run_training(tmp_path, store_dir, "wait") as training:
        assert training.stdout is not None
        run_id = training.stdout.readline().strip()
        assert training.stdout.readline() == "training\n"
        with pytest.raises(ValueError, match="at work"):
            send_journal(tmp_path, store_dir=store_dir)
        training.kill()
    assert send_journal(tmp_path, store_dir=store_dir)
    assert read_run(sqlite_uri(store_dir / "mlflow.db"), run_id).info.status == "FAILED"


def test_a_run_that_nobody_closes_is_failed_at_exit_and_stderr_is_quiet(tmp_path: Path) -> None:
    # in a new store, because making one is what mlflow is loud about
    with run_training(tmp_path / "out", tmp_path, "forget") as training:
        output, errors = training.communicate(timeout=60)
    run = read_run(sqlite_uri(tmp_path / "mlflow.db"), output.split()[0])
    assert (training.returncode, errors) == (0, "")
    assert (run.info.status, run.data.metrics) == ("FAILED", {"train/loss": 0.5})


def test_sigterm_handler_is_put_back_and_a_second_signal_is_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupted = False
    with terminate_as_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except KeyboardInterrupt:
            interrupted = True
            os.kill(os.getpid(), signal.SIGTERM)
    assert interrupted
    assert signal.getsignal(signal.SIGTERM) is before


def test_importing_is_fast_quiet_and_without_mlflow() -> None:
    code = "import sys, reg4pru_monai.tracking; print([m for m in ('mlflow', 'torch', 'ignite') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_calls_into_mlflow_leave_no_settings_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    logging.getLogger("alembic").setLevel(logging.DEBUG)
    with calm():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"  # the user's own
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
        assert logging.getLogger("alembic").level == logging.ERROR
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert logging.getLogger("alembic").level == logging.DEBUG
    logging.getLogger("alembic").setLevel(logging.NOTSET)


# --- where it ran


def test_environment_tags_say_with_what_a_run_was_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tags = environment_tags()
    assert tags["host"] == socket.gethostname()
    assert tags["package.torch"].startswith("2.")
    assert tags["device.type"] in ("cpu", "cuda")
    assert json.dumps(tags)
    monkeypatch.setattr(tracking, "__file__", str(tmp_path / "tracking.py"))
    assert environment_tags()["git.revision"] == "unknown"
    (tmp_path / "tracking.py").write_text("a = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    tags = environment_tags()
    assert len(tags["git.revision"]) == 40
    assert tags["git.dirty"] == "false"
    (tmp_path / "tracking.py").write_text("a = 2\n")
    assert environment_tags()["git.dirty"] == "true"


def test_a_damaged_metrics_record_is_as_good_as_cut_off(tmp_path: Path) -> None:
    with Tracker.start(tmp_path, run_name="r", tracking_uri="none") as tracker:
        tracker.log_metrics({"train/loss": 1.0}, step=1)
    journal = tmp_path / JOURNAL_NAME
    whole = read_journal(tmp_path)
    (line,) = (line for line in journal.read_text().splitlines() if '"metrics"' in line)
    bad = [line.replace("1.0", '"abc"'), line.replace('"metrics": {', '"others": {')]
    journal.write_text(journal.read_text() + "\n".join(bad) + "\n")
    assert read_journal(tmp_path) == whole


def test_the_store_of_a_sweep_is_that_of_its_members(tmp_path: Path) -> None:
    member = tmp_path / "experiment" / "member"
    assert store_folder(member) == tmp_path / "experiment"
    (tmp_path / "mlflow.db").touch()
    assert store_folder(member) == tmp_path
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mlflow.db").touch()
    assert store_folder(member) == tmp_path / "experiment"


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("x")
    with pytest.raises(sqlite3.DatabaseError, match=r"mlflow\.db is no SQLite database"):
        RunStore(sqlite_uri(tmp_path / "mlflow.db"), "").probe()
    assert (tmp_path / "mlflow.db").read_text() == "x"
