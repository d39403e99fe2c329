import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from batches import table
from conftest import ROOT
from dicoms import native
from reg4pru_monai import serving
from reg4pru_monai.batch import segment_photographs, settings_of
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.inference import ARCHITECTURE, UNTRAINED, Pipeline, load_pipeline
from reg4pru_monai.segmenter import build_segmenter
from reg4pru_monai.serving_command import register, tracking
from reg4pru_monai.tracking import Tracker
from reg4pru_monai.tracking_store import calm
from reg4pru_monai.weights import CheckpointError, load_checkpoint, save_checkpoint

SIZE = (150, 190)
CLOSED_PORT = "http://127.0.0.1:9"

app = typer.Typer()
app.command()(register)
app.add_typer(tracking, name="tracking")


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def write_checkpoint(path: Path, **changed: Any) -> Path:
    """Of a training: other weights in "network" than in "ema", and what only a resumed training needs."""
    settings = {**UNTRAINED, "diameter": 128, **changed}
    states = {}
    for seed, name in enumerate(("ema", "network")):
        torch.manual_seed(seed)
        states[name] = build_segmenter(**{key: settings[key] for key in ARCHITECTURE}).state_dict()
    save_checkpoint(path, {**states, "configuration": settings, "optimizer": torch.zeros(1000)})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "last.pt")


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "eye.png"
    Image.fromarray(make_phantom(SIZE, seed=3).image).save(path)
    return path


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    serving.save_model(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load(str(folder))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, because making one takes seconds, and a finished training in it."""
    path = tmp_path_factory.mktemp("store")
    with Tracker.start(path / "training", store_dir=path) as tracker:
        tracker.log_metrics({"validation/AP": 0.5}, step=1)
    return path


def load(uri: str) -> Any:
    with calm():
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model(uri)


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def check_pictures(row: Any, expected: Any) -> None:
    """The mask bit for bit, the probability to the last of its 16 bits."""
    np.testing.assert_array_equal(picture(row["mask"]), expected.mask().astype(np.uint8) * 255)
    np.testing.assert_array_equal(picture(row["probability"]), np.rint(expected.probability * 65535).astype(np.uint16))


# --- prediction


def test_path_bytes_and_array_give_what_the_pipeline_gives(model: Any, pipeline: Pipeline, photograph: Path) -> None:
    expected = pipeline(photograph)
    assert 0.001 < expected.mask().mean() < 0.9
    pixels = picture(photograph.read_bytes())
    inputs = [str(photograph), photograph.read_bytes(), pixels, pixels.astype(np.float32) / 255]
    found = model.predict(pd.DataFrame({"photograph": inputs}, index=[4, 5, 6, 7]))
    assert list(found.columns) == list(serving.COLUMNS)
    assert list(found.index) == [4, 5, 6, 7]
    assert found["error"].isna().all()
    for _, row in found.iterrows():
        check_pictures(row, expected)
    for given in ([str(photograph)], [photograph.read_bytes()], [{"photograph": pixels}]):  # lists
        assert model.predict(given)["mask"][0] == found["mask"][4]


def test_result_is_that_of_reg4pru_segment(model: Any, pipeline: Pipeline, photograph: Path, tmp_path: Path) -> None:
    settings = settings_of(pipeline, outputs=("mask", "probability"), threshold=0.4, millimetres_per_pixel=0.01)
    assert segment_photographs([photograph], tmp_path, pipeline, settings).exit_status == 0
    parameters = {"threshold": 0.4, "millimetres_per_pixel": 0.01}
    row = model.predict([str(photograph)], params=parameters).iloc[0]
    assert row["mask"] == (tmp_path / "masks" / "eye.png.png").read_bytes()
    assert row["probability"] == (tmp_path / "probabilities" / "eye.png.png").read_bytes()
    (expected,) = table(tmp_path)
    assert set(serving.COLUMNS) - {"error", "mask", "probability"} <= expected.keys()
    for name in serving.MEASURED:
        if name != "seconds":
            value = f"{row[name]:.6g}" if isinstance(row[name], float) else row[name]  # as in the table
            assert ("" if value is None else str(value)) == expected[name], name
    assert row["mean_width_mm"] == pytest.approx(0.01 * row["mean_width_px"])


def test_what_cannot_be_read_is_an_error_in_its_own_row(model: Any, photograph: Path, tmp_path: Path) -> None:
    inputs = ["absent.png", b"no image", photograph.read_bytes(), np.zeros((8, 8)), 3.5, "?" * 400, b""]
    found = model.predict(pd.DataFrame({"photograph": inputs}))
    errors = ["No such file", "is not JPEG, PNG", None, "must be (H, W, 3) RGB", "got float", "not base64", "is empty"]
    for error, expected in zip(found["error"], errors, strict=True):
        assert error is None if expected is None else expected in error
    assert [mask is None for mask in found["mask"]] == [expected is not None for expected in errors]
    assert list(found["vessel_area_fraction"].isna()) == [expected is not None for expected in errors]


def test_requests_at_the_same_time_do_not_mix(model: Any, pipeline: Pipeline) -> None:
    photographs = [make_phantom(SIZE, seed=seed).image for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pixels: model.predict(pd.Series([pixels])), photographs * 2))
    for pixels, rows in zip(photographs * 2, found, strict=True):
        check_pictures(rows.iloc[0], pipeline(pixels))


def test_a_file_of_several_photographs_is_refused(model: Any, tmp_path: Path) -> None:
    pixels = make_phantom((64, 72), seed=0).image
    path = native(tmp_path / "series.dcm", pixels, pixels.tobytes() * 2, frames=2)
    assert "holds 2 photographs: send one" in model.predict([str(path)])["error"][0]


def test_a_threshold_out_of_range_fails_the_request(model: Any, photograph: Path) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\), got 1.5"):
        model.predict([str(photograph)], params={"threshold": 1.5})


def test_a_server_opens_no_path(model: Any, photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = base64.encodebytes(photograph.read_bytes()).decode()  # with line ends
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    found = model.predict([str(photograph), text])
    assert "a server opens no path" in found["error"][0]
    assert found["mask"][0] is None
    assert found["error"][1] is None


# --- the model folder


def test_the_folder_holds_weights_and_text_but_no_code(folder: Path, checkpoint: Path, pipeline: Pipeline) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    text = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
    assert names == text | {"data/model.pt", "input_example.json", "serving_input_example.json"}
    kept = load_checkpoint(folder / "data" / "model.pt")  # weights_only
    assert kept.keys() == {"network", "configuration"}
    ema = load_checkpoint(checkpoint)["ema"]
    assert all(torch.equal(value, ema[name]) for name, value in kept["network"].items())
    required = (folder / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in required
    assert any(line.startswith("reg4pru-monai==") for line in required)
    assert all("==" in line for line in required)


def test_signature_example_and_settings_are_recorded(model: Any, pipeline: Pipeline) -> None:
    found = model.predict(model.input_example)
    assert found["error"].tolist() == [None]
    output = model.metadata.signature.outputs.to_dict()
    assert [column["name"] for column in output] == list(serving.COLUMNS)
    kinds = {"string": str, "long": int, "double": float, "binary": bytes}
    for column in output:
        value = found[column["name"]][0]
        assert value is None or isinstance(value, kinds[column["type"]]), column
    assert model.metadata.metadata["settings"]["weights"] == settings_of(pipeline).weights


def test_a_bad_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        serving.save_model(tmp_path / "none.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- the registry


def test_register_moves_the_alias_to_the_new_version(
    checkpoint: Path, store: Path, pipeline: Pipeline, photograph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{store}/mlflow.db"
    for version in (1, 2):
        result = CliRunner().invoke(
            app, ["register", str(checkpoint), "--name", "eyes", "--alias", "champion", "--tracking-uri", uri]
        )
        assert result.exit_code == 0, result.output
        assert f"eyes version {version} (champion)" in result.output
        assert "mlflow.pyfunc.load_model('models:/eyes@champion')" in result.output
    assert list(tmp_path.iterdir()) == []  # no store where nobody asked for one
    from mlflow.tracking import MlflowClient

    with calm():
        client = MlflowClient(tracking_uri=uri)
        found = client.get_model_version_by_alias("eyes", "champion")
        run = client.get_run(found.run_id)
    assert int(found.version) == 2
    assert (run.info.status, run.data.params["policy"]) == ("FINISHED", "reg4pru")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check_pictures(load("models:/eyes@champion").predict([str(photograph)]).iloc[0], pipeline(photograph))


def test_a_model_belongs_to_the_run_of_its_training(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = store / "training" / "checkpoints" / "best.pt"
    best.parent.mkdir()
    best.write_bytes(checkpoint.read_bytes())
    with Tracker.start(store / "training", run_name="eye v1.5", store_dir=store) as tracker:
        for step, value in ((1, 0.25), (2, 0.5)):
            tracker.log_metrics({"train/loss": value, "test/pruned/ap": value}, step=step)
    made = serving.register(best, "of_training")  # into the store beside the training
    assert made.model_uri == "models:/of_training/1"
    records = [json.loads(line) for line in (store / "training" / "journal.jsonl").read_text().splitlines()]
    run_id = [record["run_id"] for record in records if record["kind"] == "run_id"][-1]
    assert made.logged.run_id == run_id
    from mlflow.tracking import MlflowClient

    with calm():
        client = MlflowClient(tracking_uri=made.logged.tracking_uri)
        run = client.get_run(run_id)
        models = {each.model_id: each for each in client.search_logged_models([run.info.experiment_id])}
    model = models[made.logged.model_id]
    assert model.name == tracker.run_name.replace(".", "-")  # MLflow allows no dots
    assert [(each.key, each.value, each.step) for each in model.metrics] == [("test/pruned/ap", 0.5, 2)]
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train/loss": 0.5, "test/pruned/ap": 0.5}
    assert [output.model_id for output in run.outputs.model_outputs] == [made.logged.model_id]
    again = serving.register(best, "of_training", "champion")
    assert (again.logged, again.version) == (made.logged, 2)  # the run has it: not logged a second time
    write_checkpoint(best, keep_rate=0.5)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with calm():
        client = MlflowClient(tracking_uri=made.logged.tracking_uri)
        before = {model.model_id for model in client.search_logged_models([run.info.experiment_id])}
    with monkeypatch.context() as patch:
        patch.setattr(serving, "save_model", fail)
        with pytest.raises(OSError, match="disk full"):
            serving.log_model(best)
    with calm():
        models = client.search_logged_models([run.info.experiment_id])
    failed = [model for model in models if model.model_id not in before]
    assert [str(model.status) for model in failed] == ["FAILED"]  # and not PENDING for ever
    assert serving.log_model(best).model_id != made.logged.model_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alias", "v1"], "alias must be a word such as champion, and not latest or v1"),
        (["--alias", "a b"], "alias must be a word"),
        (["--tracking-uri", "none"], "give --tracking-uri URI"),
        (["--tracking-uri", CLOSED_PORT], f"MLflow at {CLOSED_PORT} cannot be used (ConnectionError"),
    ],
)
def test_what_cannot_be_registered_says_why(checkpoint: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["register", str(checkpoint), "--name", "eyes", *options])
    assert result.exit_code == 1
    assert message in result.output


def test_a_bad_checkpoint_leaves_no_name_behind(store: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{store}/mlflow.db"
    (tmp_path / "bad.pt").write_bytes(b"bad")
    result = CliRunner().invoke(app, ["register", str(tmp_path / "bad.pt"), "--name", "bad", "--tracking-uri", uri])
    assert result.exit_code == 1
    assert "bad.pt: not a" in result.output
    from mlflow.tracking import MlflowClient

    with calm():
        assert "bad" not in [each.name for each in MlflowClient(tracking_uri=uri).search_registered_models()]


# --- a real server


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `mlflow models serve` in a process group of its own; skips only where it cannot be started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # uvicorn is there
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, env={**os.environ, **own}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        if not answers(f"http://127.0.0.1:{port}/ping", process):
            pytest.fail(f"mlflow models serve did not start: {log.read_text()[-500:]}")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    """Wait for a server, at most two minutes."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def test_a_served_model_answers_like_reg4pru_segment(
    server: str, pipeline: Pipeline, photograph: Path, tmp_path: Path
) -> None:
    settings = settings_of(pipeline, outputs=("mask", "probability"))
    assert segment_photographs([photograph], tmp_path, pipeline, settings).exit_status == 0
    text = base64.b64encode(photograph.read_bytes()).decode()
    body = {"inputs": [text, str(photograph), "bad"], "params": {"threshold": 0.5}}
    request = urllib.request.Request(server, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        good, path, bad = json.loads(response.read(), parse_constant=pytest.fail)["predictions"]  # no NaN
    assert good["error"] is None
    for name, folder in (("mask", "masks"), ("probability", "probabilities")):
        assert base64.b64decode(good[name]) == (tmp_path / folder / "eye.png.png").read_bytes()
    local = serving.ServedModel(pipeline).predict([str(photograph)]).iloc[0]
    for name in serving.MEASURED:
        assert name == "seconds" or good[name] == local[name], name
    for row in (path, bad):
        assert "a server opens no path" in row["error"]
        assert row["mask"] is None
