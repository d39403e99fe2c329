"""What a finished training adds, and that it loses nothing where that fails."""

import logging
from pathlib import Path

import pytest
import torch

from networks import write_checkpoint
from reg4pru_monai.after_training import AfterTraining
from reg4pru_monai.fundus.datasets import datalist
from reg4pru_monai.runtime import ConfigurationError
from reg4pru_monai.tracking import Tracker, read_journal
from reg4pru_monai.tracking_store import calm

CPU = torch.device("cpu")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("reg4pru")]


def test_pictures_of_the_first_photographs_are_drawn_and_logged(tmp_path: Path, phantom_set: Path) -> None:
    entries = datalist(phantom_set, "test")
    with Tracker.start(tmp_path / "out", tracking_uri="none") as tracker:
        checkpoint = write_checkpoint(tmp_path / "best.pt", 64)
        AfterTraining(entries, log_model="false", inspect_images=1).run(tracker, checkpoint, CPU)
    assert [path.name for path in (tmp_path / "out" / "inspection").iterdir()] == [entries[0]["name"]]
    logged = [record["folder"] for record in read_journal(tmp_path / "out") if record["kind"] == "artifact"]
    assert len(logged) == 6
    assert set(logged) == {f"inspection/{entries[0]['name']}"}
    assert "model" not in [record["kind"] for record in read_journal(tmp_path / "out")]


def test_what_fails_is_a_warning_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, photograph = write_checkpoint(tmp_path / "best.pt", 64), tmp_path / "eye.png"
    photograph.write_bytes(b"no image")
    with Tracker.start(tmp_path / "out", store_dir=tmp_path) as tracker:
        (tmp_path / "bad.pt").write_bytes(b"bad")
        tracker.log_model(tmp_path / "bad.pt")
        tracker.log_text("after", "after.txt")
        after = AfterTraining([{"image": str(photograph), "name": "eye"}], log_model=False)
        after.run(tracker, checkpoint, CPU)
        tracker.log_metrics({"test/ap": 0.5}, step=0)
    model, pictures = warnings_in(caplog)
    assert "the model was not logged (CheckpointError: " in model
    assert f"reg4pru register {tmp_path / 'bad.pt'} --name NAME logs it later" in model
    assert "the pictures of the network are not complete (FundusReadError: " in pictures
    assert f"reg4pru inspect PHOTO --checkpoint {checkpoint} draws them later" in pictures
    assert tracker.complete
    with calm():
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=tracker.tracking_uri)
        run = client.get_run(tracker.run_id)
        assert [item.path for item in client.list_artifacts(tracker.run_id)] == ["after.txt"]
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"test/ap": 0.5})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log_model": "maybe"}, "log_model must be true or false, got 'maybe'"),
        ({"inspect_images": "all"}, "inspect_images must be a whole number, 0 for none, got 'all'"),
    ],
)
def test_a_wrong_setting_is_named_before_the_training(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AfterTraining([], **given)
