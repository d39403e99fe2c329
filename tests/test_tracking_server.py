"""A training that outlives its `mlflow server`, and `reg4pru tracking sync`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reg4pru_monai.tracking import Tracker, read_journal
from reg4pru_monai.tracking_store import sqlite_uri
from reg4pru_monai.training import TrainingState
from runs import run
from test_serving import app, load, write_checkpoint
from test_tracking import Server, history, read_run


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of one SQLite file for all tests, because making one takes seconds."""
    return sqlite_uri(tmp_path_factory.mktemp("store") / "server.db")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, backend: str) -> Iterator[Server]:
    """Running before and after each test."""
    server = Server(tmp_path_factory.mktemp("artifacts"), backend)
    server.start()
    yield server
    server.kill()


def test_a_training_outlives_its_server_and_sync_brings_everything(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed before the second of two epochs is logged."""
    epoch_completed = TrainingState.epoch_completed

    def then_kill(state: TrainingState) -> None:
        epoch_completed(state)
        if state.trainer.state.epoch == 2:
            server.kill()

    monkeypatch.setattr(TrainingState, "epoch_completed", then_kill)
    output = tmp_path / "output"
    given = {"output_dir": str(output), "experiment": "outage", "log_model": True}
    run("train", tracking_uri=server.uri, **given)
    records = read_journal(output)
    run_id = next(record["run_id"] for record in records if record["kind"] == "run_id")
    logged = [record for record in records if record["kind"] == "metrics"]
    losses = [
        (record["step"], record["metrics"]["train/loss"]) for record in logged if "train/loss" in record["metrics"]
    ]
    assert [step for step, _ in losses] == [1, 2]
    ap = json.loads((output / "metrics.json").read_text())["pruned/ap"]
    assert logged[-1]["metrics"]["test/pruned/ap"] == ap
    assert records[-1]["status"] == "FINISHED"

    command = ["tracking", "sync", str(output), "--tracking-uri", server.uri]
    journal = (output / "journal.jsonl").read_bytes()
    down = CliRunner().invoke(app, command)
    assert down.exit_code == 1
    assert f"MLflow at {server.uri} cannot be used (ConnectionError" in down.output
    assert (output / "journal.jsonl").read_bytes() == journal

    server.start()
    assert history(server.uri, run_id, "train/loss") == losses[:1]
    for _ in range(2):  # twice is harmless
        up = CliRunner().invoke(app, command)
        assert up.exit_code == 0, up.output
        assert f"complete in {server.uri}" in up.output
    found = read_run(server.uri, run_id)
    assert (found.info.status, found.data.params["policy"]) == ("FINISHED", "reg4pru")
    assert found.data.metrics["test/pruned/ap"] == ap
    assert found.data.tags["mlflow.note.content"].startswith(f"**AP {ap:.3f} ")
    assert history(server.uri, run_id, "train/loss") == losses
    assert len(found.inputs.dataset_inputs) == 3
    (model,) = found.outputs.model_outputs  # the second time it is there already
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert load(f"models:/{model.model_id}").predict([b""])["error"].notna().all()
    (table,) = server.folder.rglob("per_image.csv")
    assert table.parent.name == "test"
    assert table.read_bytes() == (output / "per_image.csv").read_bytes()


def test_a_model_is_registered_with_a_server_and_loaded_from_it(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    result = CliRunner().invoke(app, ["register", str(checkpoint), "--name", "eyes", "--alias", "champion"])
    assert result.exit_code == 0, result.output
    assert f"serve: MLFLOW_TRACKING_URI={server.uri} mlflow models serve" in result.output
    model = load("models:/eyes@champion")
    assert model.predict(model.input_example)["error"].tolist() == [None]


def test_sync_goes_on_past_a_folder_that_is_no_training(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", backend)
    with Tracker.start(tmp_path / "good", tracking_uri="none") as tracker:
        tracker.log_metrics({"train/loss": 0.5}, step=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "journal.jsonl").touch()
    folders = [str(tmp_path / name) for name in ("none", "empty", "good")]
    result = CliRunner().invoke(app, ["tracking", "sync", *folders])
    assert result.exit_code == 1
    assert f"{folders[0]}: has no journal.jsonl; give the output folder of a training" in result.output
    assert "holds no run" in result.output
    assert f"{folders[2]}: complete in {backend}" in result.output
    (run_id,) = [record["run_id"] for record in read_journal(tmp_path / "good") if record["kind"] == "run_id"]
    assert history(backend, run_id, "train/loss") == [(1, 0.5)]


def test_sync_needs_a_store(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tracking", "sync", str(tmp_path), "--tracking-uri", "none"])
    assert result.exit_code == 1
    assert "give --tracking-uri URI of a server or store" in result.output
