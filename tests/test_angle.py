"""The angle of view: photographs of every camera come to one scale, where it is known."""

import json
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
from reg4pru_monai.batch.bundle import photographs
from reg4pru_monai.batch.journal import journals
from reg4pru_monai.batch.settings import SettingsError, settings_of
from reg4pru_monai.cli import app
from reg4pru_monai.comparison.runs import _size
from reg4pru_monai.fundus.angle import checked_angle, diameter_for
from reg4pru_monai.fundus.datasets import datalist
from reg4pru_monai.fundus.io import read_image
from reg4pru_monai.fundus.phantom import make_phantom, write_phantoms
from reg4pru_monai.inference import Pipeline, load_pipeline, trained
from reg4pru_monai.inspection.photograph import inspect_network
from reg4pru_monai.plots import save_picture
from reg4pru_monai.release.measuring import robustness
from reg4pru_monai.serving import ServedModel
from reg4pru_monai.transforms import CanonicalFundusd, preprocessing
from reg4pru_monai.weights import load_checkpoint, save_checkpoint
from runs import failure, run


def pipeline() -> Pipeline:
    own = small_pipeline()
    return Pipeline(own.network, preprocessing(64, False, by_angle=True), own.inferer, own.device)


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


def test_photographs_of_a_pipeline() -> None:
    photograph = make_phantom((96, 96), seed=0).image
    size = {angle: pipeline().prepare(photograph, angle)["image"].shape[-1] for angle in (None, "", 45, 30)}
    assert size[None] == size[""] == size[45] > size[30]
    assert pipeline().prepare(photograph, 30).keys() == {"image", "fov"}
    with pytest.raises(ValueError, match="must be in degrees"):
        pipeline().prepare(photograph, 4500)


def test_the_angle_of_weights_of_one_diameter(tmp_path: Path) -> None:
    """Those that were trained before there were angles, or with by_angle false: an angle would change nothing."""
    photograph = make_phantom((96, 96), seed=0).image
    fixed = load_pipeline(checkpoint(tmp_path / "fixed.pt", False), "cpu")
    assert fixed.prepare(photograph, 30)["image"].shape == fixed.prepare(photograph)["image"].shape
    with pytest.raises(
        SettingsError, match=r"an angle of view \(30\) has no effect: these weights see all photographs"
    ):
        settings_of(fixed, angle=30)
    by_angle = load_pipeline(checkpoint(tmp_path / "by_angle.pt", True), "cpu")
    assert by_angle.prepare(photograph, 30)["image"].shape[-1] == pytest.approx(64, abs=2)


def test_data_sets_tell_it(tmp_path: Path, real_data: Path) -> None:
    entries = datalist([real_data / "CHASE_DB1", real_data / "HRF"], "test")
    assert {(entry["dataset"], entry["angle"]) for entry in entries} == {("CHASE_DB1", "30"), ("HRF", "60")}
    phantoms = write_phantoms(tmp_path, 2, 1, 64)
    assert {entry["angle"] for entry in datalist(phantoms, "test")} == {""}
    assert {entry["angle"] for entry in datalist(phantoms, "test", angle="50")} == {"50"}
    assert {entry["angle"] for entry in datalist(real_data / "HRF", "test", angle=50)} == {"60"}
    with pytest.raises(ValueError, match="must be in degrees"):
        datalist(phantoms, "test", angle="wide")


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


def test_a_manifest_tells_it_of_each_photograph(tmp_path: Path) -> None:
    """Before --angle and DICOM; a line that is changed makes its photograph anew, also where it says nothing now."""
    folder = write_photographs(tmp_path / "in", 2)
    native(folder / "b.dcm", make_phantom((72, 80), seed=3).image, HorizontalFieldOfView=60.0)
    manifest, names = tmp_path / "list.csv", ("b.dcm", "photograph_00.png", "photograph_01.png")

    def run_with(*angles: str) -> tuple[int, list[str]]:
        lines = [f"in/{name},{angle}\n" for name, angle in zip(names, angles, strict=True)]
        manifest.write_text("".join(["path,angle\n", *lines]))
        found = segment(manifest, tmp_path / "out", {"angle": 40}, pipeline=pipeline())
        assert found.exit_status == 0
        return found.before, [row["angle_of_view_deg"] for row in table(tmp_path / "out")]

    assert run_with("30", "50", "") == (0, ["30", "50", "40"])
    assert run_with("30", "50", "") == (3, ["30", "50", "40"])
    masks = [tmp_path / "out" / "masks" / f"{name}.png" for name in names]
    first = [mask.read_bytes() for mask in masks]
    assert run_with("30", "20", "") == (2, ["30", "20", "40"])
    assert run_with("30", "20", "20") == (2, ["30", "20", "20"])
    assert run_with("", "20", "20") == (2, ["40", "20", "20"])
    assert all(mask.read_bytes() != before for mask, before in zip(masks, first, strict=True))
    expected = pipeline()(folder / names[1], 20).mask(settings_of(pipeline()).threshold)
    np.testing.assert_array_equal(read_image(masks[1])[..., 0] > 0, expected)
    entries = photographs(str(manifest), str(tmp_path / "other"), 40)
    assert [entry["angle"] for entry in entries] == [40, 20, 20]


def test_journals_from_before_manifests_told_angles(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 1)
    assert segment(folder, tmp_path / "out", pipeline=pipeline()).done == 1
    (journal,) = journals(tmp_path / "out")
    journal.write_text(journal.read_text().replace(', "angle": null', ""))
    assert 'angle": null' not in journal.read_text()
    assert segment(folder, tmp_path / "out", pipeline=pipeline()).before == 1


def test_the_command(tmp_path: Path) -> None:
    folder, fixed = write_photographs(tmp_path / "in", 1), checkpoint(tmp_path / "fixed.pt", False)
    command = ["segment", str(folder), "--output", str(tmp_path / "out"), "--device", "cpu", "--angle", "30"]
    refused = CliRunner().invoke(app, [*command, "--checkpoint", str(fixed)])
    assert refused.exit_code == 1
    assert "has no effect" in refused.output
    assert not (tmp_path / "out").exists()
    weights = str(checkpoint(tmp_path / "by_angle.pt", True))
    done = CliRunner().invoke(app, [*command, "--checkpoint", weights, "--outputs", "probability"])
    assert done.exit_code == 0, done.output
    assert table(tmp_path / "out")[0]["angle_of_view_deg"] == "30"
    found = read_image(tmp_path / "out" / "probabilities" / "photograph_00.png.png")[..., 0]
    expected = load_pipeline(weights, "cpu")(folder / "photograph_00.png", 30).probability
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_served_model_takes_it() -> None:
    served, photograph = ServedModel(pipeline()), make_phantom((96, 96), seed=0).image
    found = [served.predict([photograph], {"angle": angle}).iloc[0] for angle in (None, 45, 30)]
    assert [row["angle_of_view_deg"] for row in found] == [None, 45, 30]
    assert found[0]["probability"] == found[1]["probability"] != found[2]["probability"]


def test_trainings_and_evaluations(tmp_path: Path) -> None:
    """What a user tells counts for training, validation and test; a checkpoint knows that it was trained by angle."""
    told = {"angle": "30", "max_epochs": 1, "output_dir": str(tmp_path / "told")}
    command = run("train", **told)
    parser = command.parser
    sizes = [max(item["image"].shape) for item in parser.get_parsed_content("validate#dataset")]
    assert sizes == [pytest.approx(64, abs=2)]  # of 96
    assert {entry["angle"] for entry in parser.get_parsed_content("test_entries")} == {"30"}
    best = tmp_path / "told" / "checkpoints" / "best.pt"
    assert trained(str(best))["by_angle"] is True
    given = {"checkpoint": str(best), "phantoms": parser.get_parsed_content("phantoms")}
    for number, angle in enumerate((30, None)):
        run("evaluate", **given, angle=angle, output_dir=str(tmp_path / f"evaluated{number}"))
    results = [
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("told", "evaluated0", "evaluated1")
    ]
    assert results[0]["pruned/ap"] == pytest.approx(results[1]["pruned/ap"], abs=1e-6)
    assert results[0]["pruned/gflops"] < results[2]["pruned/gflops"]
    assert "has no effect" in str(
        failure("evaluate", **given, by_angle="false", angle=30, output_dir=str(tmp_path / "no"))
    )


def test_a_training_of_before_there_were_angles_goes_on(tmp_path: Path) -> None:
    how: dict[str, Any] = {"output_dir": str(tmp_path / "earlier"), "max_epochs": 1}
    run("train", **how, by_angle=False)
    last = tmp_path / "earlier" / "checkpoints" / "last.pt"
    state = load_checkpoint(last)
    del state["configuration"]["by_angle"]
    save_checkpoint(last, state)
    assert "by_angle was False and is now True" in str(failure("train", **how, by_angle=True, resume=True))
    run("train", **how, by_angle=False, resume=True)


def test_what_is_compared_must_be_scaled_alike() -> None:
    """Runs of one diameter rank with each other only if none of them goes by the angle, or all."""
    runs = [{"diameter": "1024"} | more for more in ({}, {"by_angle": "False"}, {"by_angle": "True"})]
    runs += [runs[2] | {"angle": angle} for angle in ("None", "30.0")]
    found = [_size(parameters, "diameter") for parameters in runs]
    assert found == ["1024", "1024", "1024 by angle", "1024 by angle", "1024 by an angle of 30.0"]
    assert _size(runs[2] | {"window_size": "256"}, "window_size") == "256"


def test_inspect_takes_it(tmp_path: Path) -> None:
    save_picture(tmp_path / "eye.png", make_phantom((96, 96), seed=0).image)
    command = [
        "inspect",
        str(tmp_path / "eye.png"),
        "--output",
        str(tmp_path / "seen"),
        "--angle",
        "30",
        "--checkpoint",
    ]
    refused = CliRunner().invoke(app, [*command, str(checkpoint(tmp_path / "fixed.pt", False))])
    assert refused.exit_code == 1
    assert "has no effect" in refused.output
    own = pipeline()
    assert max(inspect_network(own, tmp_path / "eye.png", 30).inside.shape) == pytest.approx(64 * 30 / 45, abs=1)


def test_a_release_measures_what_it_costs_not_to_know_it(tmp_path: Path) -> None:
    entries = datalist(write_phantoms(tmp_path, 2, 1, 96), "test")
    told = [{**entry, "angle": "30"} for entry in entries]
    known, unknown = (robustness(pipeline(), each)["rows"] for each in (told, entries))
    assert "angle" not in unknown
    assert "angle" not in robustness(small_pipeline(), told)["rows"]
    assert known["angle"]["degraded"] == unknown["blur"]["clean"] != known["angle"]["clean"] == known["blur"]["clean"]
