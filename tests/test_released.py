"""The weights of a bundle are checked when they are loaded; the message says what is wrong and what to do."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from networks import write_checkpoint
from reg4pru_monai import released
from reg4pru_monai.cli import app
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.inference import load_pipeline, trained
from reg4pru_monai.plots import save_picture
from reg4pru_monai.released import CHECKPOINT, WEIGHTS, CheckpointError
from reg4pru_monai.weights import load_checkpoint
from runs import BUNDLE

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3608323\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose metadata.json knows its weights."""
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    weights = write_checkpoint(folder / WEIGHTS, diameter=96)
    known = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "bytes": weights.stat().st_size}
    (folder / "configs" / "metadata.json").write_text(json.dumps({"weights": {WEIGHTS: known}}))
    return folder


def test_the_weights_of_the_bundle_are_those_of_its_metadata() -> None:
    known = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["weights"][WEIGHTS]
    assert known == {"sha256": released.sha256(CHECKPOINT), "bytes": CHECKPOINT.stat().st_size}
    assert CHECKPOINT == BUNDLE / WEIGHTS
    assert sum(path.stat().st_size for path in (BUNDLE / "models").iterdir()) < 30e6


def test_weights_as_released_are_loaded(bundle: Path) -> None:
    assert load_checkpoint(bundle / WEIGHTS)["configuration"]["diameter"] == 96


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: POINTER.encode(), r"model\.pt: is the pointer that Git LFS leaves.*run: git lfs install"),
        (
            lambda data: data[:1000],
            r"model\.pt: cut off, 1000 of \d+ bytes are there; get the file again \(git checkout",
        ),
        (lambda data: data + b"more", r"model\.pt: not the weights of this bundle: SHA-256 \w{12}…, expected \w{12}…;"),
    ],
    ids=["pointer", "cut off", "other"],
)
def test_other_weights_in_a_bundle_are_refused(bundle: Path, damage: object, message: str) -> None:
    path = bundle / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    for load in (load_checkpoint, load_pipeline, lambda each: trained(str(each))):
        with pytest.raises(CheckpointError, match=message):
            load(path)


def test_a_checkpoint_of_ones_own_is_not_judged(bundle: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "model.pt", diameter=100)
    assert trained(str(other))["diameter"] == 100
    shutil.copy(other, bundle / "models" / "mine.pt")
    assert trained(str(bundle / "models" / "mine.pt"))["diameter"] == 100
    other.write_text(POINTER)
    with pytest.raises(CheckpointError, match="pointer that Git LFS leaves"):
        load_checkpoint(other)


def test_metadata_that_cannot_be_read_is_named(bundle: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"metadata\.json: not the metadata of a bundle"):
        load_checkpoint(bundle / WEIGHTS)


def test_missing_weights_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "CHECKPOINT", tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"are missing; get the file again .*install a wheel again with --force"):
        load_pipeline(tmp_path / WEIGHTS)


def test_the_folder_of_the_bundle_is_printed() -> None:
    assert CliRunner().invoke(app, ["bundle"]).output.strip() == str(BUNDLE)


def test_a_photograph_is_segmented_without_any_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    phantom = make_phantom(512, seed=1)
    save_picture(tmp_path / "photo.png", phantom.image)
    result = CliRunner().invoke(app, ["segment", "photo.png"])
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "runs" / "segmented" / ".reg4pru" / "settings.json").read_text())["settings"]
    assert settings["threshold"] == load_checkpoint(CHECKPOINT)["configuration"].get("threshold", 0.5)
    assert (tmp_path / "runs" / "segmented" / "masks" / "photo.png.png").is_file()
