"""What an archive will take: measured costs, and arithmetic that can be done by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import dicoms
from batches import small_pipeline, write_photographs
from reg4pru_monai.batch import settings_of
from reg4pru_monai.batch.inputs import Item, list_inputs
from reg4pru_monai.batch.settings import OUTPUTS as EVERY_OUTPUT
from reg4pru_monai.cli import app
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.planning.costs import Cost, Costs, CostsError, _fit, known, load_costs, measure
from reg4pru_monai.planning.plan import FOLDERS, JOURNAL_BYTES, Limits, as_text, make_plan

SECONDS = {"read": Cost(0.1, 0.1), "network": Cost(2.0, 0.0), "write": Cost(0.0, 0.25)}
BYTES = {"photograph": Cost(0.0, 3e5), "masks": Cost(1000.0, 1e4), "overlays": Cost(0.0, 2e5)}
CPU = Costs("cpu", "a processor", 5, (1.0, 8.0), SECONDS, BYTES)
GPU = Costs("cuda", "a GPU", 5, (1.0, 8.0), {**SECONDS, "network": Cost(0.02, 0.0)}, BYTES)
OUTPUTS = ("mask", "overlay")


def test_a_core_does_every_stage() -> None:
    plan = make_plan(CPU, 1_000_000, 4.0, OUTPUTS, workers=100)
    assert plan.seconds == pytest.approx({"read": 0.5, "network": 2.0, "write": 1.0})
    assert plan.each == pytest.approx(3.5)
    assert plan.wall == pytest.approx(35_000)
    assert plan.worker_hours == pytest.approx(3.5e6 / 3600)
    assert plan.bottleneck == "network"
    assert plan.files == 2_000_000
    assert plan.bytes == pytest.approx(
        {"photograph": 1.2e12, "mask": 4.1e10, "overlay": 8e11, "journal": JOURNAL_BYTES * 1e6}
    )
    assert plan.rates["files"] == pytest.approx(2e6 / 35_000)
    assert plan.rates["bytes read"] == pytest.approx(1.2e12 / 35_000)


def test_a_gpu_computes_while_cores_read_and_write() -> None:
    starved = make_plan(GPU, 1000, 4.0, OUTPUTS, workers=2, cores=10)
    assert (starved.bottleneck, starved.each) == ("read and write", pytest.approx(0.15))
    fed = make_plan(GPU, 1000, 4.0, OUTPUTS, workers=2, cores=100)
    assert (fed.bottleneck, fed.each) == ("network", pytest.approx(0.02))
    assert fed.wall == pytest.approx(10.0)


def test_storage_can_be_what_everything_waits_for() -> None:
    plan = make_plan(CPU, 1_000_000, 4.0, OUTPUTS, 1000, limits=Limits(files=100.0))
    assert (plan.bottleneck, plan.wall) == ("making files", pytest.approx(20_000))
    assert plan.worker_hours == pytest.approx(20_000 * 1000 / 3600)
    plan = make_plan(CPU, 1_000_000, 4.0, OUTPUTS, 1000, limits=Limits(files=1e6, bytes=1e8))
    assert plan.bottleneck == "reading and writing bytes"
    assert plan.wall == pytest.approx(sum(plan.bytes.values()) / 1e8)


def test_archives_are_few_files() -> None:
    plan = make_plan(CPU, 1_000_000, 4.0, OUTPUTS, 1000, limits=Limits(files=100.0))
    packed = make_plan(CPU, 1_000_000, 4.0, OUTPUTS, 100, limits=Limits(files=100.0), archives=True)
    assert packed.files == 841  # of 41 GB of masks and 800 GB of overlays
    assert packed.bytes == plan.bytes
    assert packed.bottleneck == "network"
    assert make_plan(CPU, 1_000_000, 4.0, OUTPUTS, 1000, archives=True).files == 1000


def test_every_output_can_be_planned() -> None:
    costs = replace(CPU, bytes={folder: Cost(0.0, 1e4) for folder in ("photograph", *FOLDERS.values())})
    plan = make_plan(costs, 10, 4.0, EVERY_OUTPUT)
    assert plan.files == 10 * len(EVERY_OUTPUT)


def test_a_size_that_was_not_measured_is_said_to_be_extrapolated() -> None:
    assert "extrapolated" not in as_text(make_plan(CPU, 10, 4.0, OUTPUTS), CPU, 4.0)
    assert "extrapolated" in as_text(make_plan(CPU, 10, 20.0, OUTPUTS), CPU, 20.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": 0}, "images must be more than 0"),
        ({"workers": -1}, "workers must be more than 0"),
        ({"outputs": ("mask", "nifti")}, "of the outputs mask, overlay, not of mask, nifti: --measure with --outputs"),
        ({"outputs": ("mask",)}, "not of mask: --measure"),
        ({"outputs": ()}, "not of none"),
        ({"limits": Limits(files=0.0)}, "files per second must be more than 0, or left out, got 0"),
        ({"limits": Limits(bytes=float("nan"))}, "bytes per second must be more than 0, or left out, got nan"),
    ],
)
def test_plans_that_cannot_be_made(change: dict[str, object], said: str) -> None:
    given: dict[str, object] = {"images": 10, "megapixels": 4.0, "outputs": OUTPUTS, **change}
    with pytest.raises(CostsError, match=said):
        make_plan(CPU, **given)  # type: ignore[arg-type]


def test_a_fit_finds_constant_and_slope_and_never_a_negative_cost() -> None:
    assert _fit([1, 2, 8], [0.5, 0.7, 1.9]) == pytest.approx((0.3, 0.2))
    assert _fit([1, 8], [0.1, 2.0])[0] >= 0
    assert _fit([4, 4], [1.0, 3.0]) == pytest.approx((0.0, 0.5))


def test_measured_costs_are_those_of_the_photographs_and_survive_a_file(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    items = list_inputs([write_photographs(tmp_path / "in", 2)], tmp_path / "out").items
    found = measure(pipeline, settings_of(pipeline, outputs=("mask",)), items)
    assert (found.device, found.photographs) == ("cpu", 2)
    assert all(0 < found.seconds[stage].of(found.megapixels[1]) < 60 for stage in ("read", "network", "write"))
    real = sum(Path(item.path).stat().st_size for item in items) / 2
    assert found.bytes["photograph"].of(sum(found.megapixels) / 2) == pytest.approx(real, rel=0.2)
    assert set(found.bytes) == {"photograph", "masks"}
    found.save(tmp_path / "costs.json")
    assert load_costs("cpu", tmp_path / "costs.json") == found


def test_the_outputs_of_all_frames_of_a_file_count(tmp_path: Path) -> None:
    eye = make_phantom(96, seed=3).image
    for name, pixels, frames in (("one", eye, None), ("two", np.stack((eye, eye)), 2)):
        photograph = dicoms.data_set(eye, frames=frames)
        photograph.PixelData = pixels.tobytes()
        dicoms.save(tmp_path / f"{name}.dcm", photograph)
    pipeline = small_pipeline()
    settings = settings_of(pipeline, outputs=("mask",))
    one, two = (
        measure(pipeline, settings, [Item(f"{name}.dcm", str(tmp_path / f"{name}.dcm"))]) for name in ("one", "two")
    )
    assert two.megapixels[0] == pytest.approx(2 * one.megapixels[0])
    bytes_of = [found.bytes["masks"].of(found.megapixels[0]) for found in (one, two)]
    assert bytes_of[1] == pytest.approx(2 * bytes_of[0])


def test_a_photograph_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no photograph")
    pipeline = small_pipeline()
    with pytest.raises(CostsError, match=r"text\.png: cannot be measured, read failed"):
        measure(pipeline, settings_of(pipeline), [Item("text.png", str(tmp_path / "text.png"))])


def test_costs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CostsError, match=r"no figures for 'h200'.*--device cuda --costs h200\.json"):
        load_costs("h200")
    (tmp_path / "costs.json").write_text(json.dumps({"seconds": {}}))
    with pytest.raises(CostsError, match=r"costs\.json: no costs that reg4pru plan --measure wrote"):
        load_costs("cpu", tmp_path / "costs.json")


def test_the_command_plans_with_the_figures_of_the_package() -> None:
    assert "cpu" in known()
    run = CliRunner().invoke(app, ["plan", "--images", "10000000", "--size", "2048", "--workers", "500", "--json"])
    assert run.exit_code == 0, run.output
    found, costs = json.loads(run.output), load_costs("cpu")
    each = sum(cost.of(2048**2 / 1e6) for cost in costs.seconds.values())
    assert found["wall"] == pytest.approx(1e7 * each / 500)
    assert "bottleneck" in CliRunner().invoke(app, ["plan"]).output
    for wrong, said in (
        (["--size", "big"], "--size must be"),
        (["--measure", "x.png"], "name it with --costs FILE"),
        (["--megabytes-per-second", "0"], "bytes per second"),
    ):
        run = CliRunner().invoke(app, ["plan", *wrong])
        assert run.exit_code == 1
        assert said in run.output
