"""The angle of view: photographs of every camera come to one scale, where it is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from test_dicom import native
from typer.testing import CliRunner

from batches import segment, small_pipeline, table, write_photographs
from networks import write_checkpoint
from reg4pru_monai.batch.settings import SettingsError, settings_of
from reg4pru_monai.cli import app
from reg4pru_monai.fundus.angle import checked_angle, diameter_for
from reg4pru_monai.fundus.datasets import datalist
from reg4pru_monai.fundus.phantom import make_phantom, write_phantoms
from reg4pru_monai.inference import Pipeline, load_pipeline
from reg4pru_monai.plots import save_picture
from reg4pru_monai.release.measuring import robustness
from reg4pru_monai.serving import ServedModel
from reg4pru_monai.transforms import CanonicalFundusd, preprocessing


def pipeline(angle: float | None = None) -> Pipeline:
    own = small_pipeline()
    steps = preprocessing(64, False, by_angle=True, angle=angle)
    return Pipeline(own.network, steps, own.inferer, own.device)


def checkpoint(path: Path, by_angle: bool) -> Path:
    return write_checkpoint(path, 96, policy="dense", by_angle=by_angle)


def eye(size: int, angle: float) -> np.ndarray:
    """What a camera sees of a bright eye with a dark ring ten degrees from its centre: (H, W, 3) uint8."""
    rows, columns = np.ogrid[:size, :size]
    radius = np.hypot(rows - (size - 1) / 2, columns - (size - 1) / 2)
    degrees = radius / (0.48 * size) * angle / 2
    shade = np.where(degrees <= angle / 2, 170.0, 0.0) - 90.0 * (np.abs(degrees - 10) < 0.4)
    return np.repeat(shade.clip(0, 255)[..., None], 3, axis=2).astype(np.uint8)


def ring(image: torch.Tensor) -> float:
    """Radius of the ring at canonical scale, px."""
    values = image.numpy().mean(0)
    center = (np.array(values.shape) - 1) / 2
    rows, columns = np.indices(values.shape)
    radius = np.hypot(rows - center[0], columns - center[1])
    dark = (radius < 0.35 * len(values)) & (values < 0.5)
    return float(radius[dark].mean())


@pytest.mark.parametrize(
    ("given", "angle"), [(None, None), ("", None), ("30", 30.0), (45, 45.0), (10.0, 10.0), (90, 90)]
)
def test_angles(given: Any, angle: float | None) -> None:
    assert checked_angle(given) == angle


@pytest.mark.parametrize("given", [0, 9.9, 200, -45, float("nan"), "wide", True, [45]])
def test_what_is_no_angle(given: Any) -> None:
    with pytest.raises(ValueError, match="must be in degrees, 10 to 90, got"):
        checked_angle(given)


def test_the_diameter_is_in_proportion() -> None:
    assert [diameter_for(angle, 900) for angle in (None, 45, 30, 60)] == [900, 900, 600, 1200]


def test_one_degree_has_as_many_pixels_whatever_the_camera() -> None:
    steps = CanonicalFundusd(label_key=None, diameter=300, by_angle=True)
    alike = CanonicalFundusd(label_key=None, diameter=300)
    found, before = [], []
    for size, angle in ((240, 30), (400, 45), (700, 60)):
        item = {"image": torch.from_numpy(eye(size, angle).transpose(2, 0, 1) / np.float32(255)), "angle": angle}
        assert max(steps(item)["image"].shape) == pytest.approx(300 * angle / 45, abs=3)
        found.append(ring(steps(item)["image"]))
        before.append(ring(alike(item)["image"]))
    assert found == pytest.approx([300 / 45 * 10] * 3, rel=0.02)
    assert before == pytest.approx([100, 66.7, 50], rel=0.02)


def test_the_mask_comes_back_to_the_photograph() -> None:
    steps = Compose([CanonicalFundusd(diameter=320, by_angle=True)])
    photograph = make_phantom((256, 300), seed=4)
    item = {
        "image": torch.from_numpy(photograph.image.transpose(2, 0, 1) / np.float32(255)),
        "label": torch.from_numpy(photograph.mask[None].astype(np.float32)),
        "angle": "60",
    }
    back = steps.inverse(steps(item))
    inside = back["fov"].numpy()[0] > 0
    assert back["label"].shape == (1, 256, 300)
    assert np.mean((back["label"].numpy()[0] > 0)[inside] == photograph.mask[inside]) > 0.99


def test_what_the_user_says_comes_first() -> None:
    photograph = make_phantom((96, 96), seed=0).image
    size = {angle: pipeline().prepare(photograph, angle)["image"].shape[-1] for angle in (None, "", 45, 30)}
    assert size[None] == size[""] == size[45] > size[30]
    assert pipeline(30).prepare(photograph, 60)["image"].shape[-1] == size[30]
    assert pipeline().prepare(photograph, 30).keys() == {"image", "fov"}
    with pytest.raises(ValueError, match="must be in degrees"):
        pipeline().prepare(photograph, 4500)


def test_the_angle_of_weights_of_one_diameter(tmp_path: Path) -> None:
    """Those that were trained before there were angles, or with by_angle false: an angle would change nothing."""
    photograph = make_phantom((96, 96), seed=0).image
    fixed = load_pipeline(checkpoint(tmp_path / "fixed.pt", False), "cpu")
    assert fixed.prepare(photograph, 30)["image"].shape == fixed.prepare(photograph)["image"].shape
    with pytest.raises(ValueError, match="angle 30 has no effect: these weights see all photographs at one diameter"):
        load_pipeline(checkpoint(tmp_path / "fixed.pt", False), "cpu", angle=30)
    with pytest.raises(SettingsError, match=r"an angle of view \(30\) has no effect with these weights"):
        settings_of(fixed, angle=30)
    by_angle = load_pipeline(checkpoint(tmp_path / "by_angle.pt", True), "cpu", angle=30)
    assert by_angle.prepare(photograph)["image"].shape[-1] == pytest.approx(64, abs=2)


def test_data_sets_tell_it(tmp_path: Path, real_data: Path) -> None:
    entries = datalist([real_data / "CHASE_DB1", real_data / "HRF"], "test")
    assert {(entry["dataset"], entry["angle"]) for entry in entries} == {("CHASE_DB1", "30"), ("HRF", "60")}
    assert {entry["angle"] for entry in datalist(write_phantoms(tmp_path, 2, 1, 64), "test")} == {""}


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    """--angle for all, else what DICOM says; both stand in the table, and an output folder holds one of them."""
    folder = write_photographs(tmp_path / "in", 1)
    pixels = make_phantom((72, 80), seed=3).image
    native(folder / "b.dcm", pixels, HorizontalFieldOfView=60.0)

    def angles(name: str, **choices: Any) -> list[str]:
        assert segment(folder, tmp_path / name, choices, pipeline=pipeline()).exit_status == 0
        return [row["angle_of_view_deg"] for row in table(tmp_path / name)]

    assert angles("told") == ["60", ""]
    assert angles("given", angle=30) == ["30", "30"]
    masks = [(tmp_path / name / "masks" / "b.dcm.png").read_bytes() for name in ("told", "given")]
    assert masks[0] != masks[1]
    with pytest.raises(SettingsError, match="angle"):
        segment(folder, tmp_path / "given", {"angle": 60}, pipeline=pipeline())
    with pytest.raises(SettingsError, match="must be in degrees"):
        settings_of(pipeline(), angle=5)


def test_the_command(tmp_path: Path) -> None:
    folder, fixed = write_photographs(tmp_path / "in", 1), checkpoint(tmp_path / "fixed.pt", False)
    command = ["segment", str(folder), "--output", str(tmp_path / "out"), "--device", "cpu", "--angle", "30"]
    refused = CliRunner().invoke(app, [*command, "--checkpoint", str(fixed)])
    assert refused.exit_code == 1
    assert "has no effect" in refused.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*command, "--checkpoint", str(checkpoint(tmp_path / "by_angle.pt", True))])
    assert done.exit_code == 0, done.output
    assert table(tmp_path / "out")[0]["angle_of_view_deg"] == "30"


def test_a_served_model_takes_it() -> None:
    served, photograph = ServedModel(pipeline()), make_phantom((96, 96), seed=0).image
    found = [served.predict([photograph], {"angle": angle}).iloc[0] for angle in (None, 45, 30)]
    assert [row["angle_of_view_deg"] for row in found] == [None, 45, 30]
    assert found[0]["probability"] == found[1]["probability"] != found[2]["probability"]


def test_inspect_takes_it(tmp_path: Path) -> None:
    save_picture(tmp_path / "eye.png", make_phantom((96, 96), seed=0).image)
    weights = str(checkpoint(tmp_path / "fixed.pt", False))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "eye.png"), "--checkpoint", weights, "--angle", "30"])
    assert result.exit_code == 1
    assert "has no effect" in result.output


def test_a_release_measures_what_it_costs_not_to_know_it(tmp_path: Path) -> None:
    entries = datalist(write_phantoms(tmp_path, 2, 1, 96), "test")
    told = [{**entry, "angle": "30"} for entry in entries]
    known, unknown = (robustness(pipeline(), each)["rows"] for each in (told, entries))
    assert "angle" not in unknown
    assert "angle" not in robustness(small_pipeline(), told)["rows"]
    assert known["angle"]["degraded"] == unknown["blur"]["clean"] != known["angle"]["clean"] == known["blur"]["clean"]
