"""`reg4pru segment` and `reg4pru status` as a user meets them: what they say, and how they end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from batches import table, write_photographs
from networks import write_checkpoint
from reg4pru_monai.batch.command import bundle_digest
from reg4pru_monai.fundus.io import read_mask
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.released import CHECKPOINT
from runs import BUNDLE, command
from test_cli import reg4pru


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.pt", diameter=64)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), 3)


def segment(photographs: Path, output: Path, checkpoint: Path, *options: str, code: int = 0) -> str:
    given = ("--checkpoint", checkpoint, "--device", "cpu", *options)
    return reg4pru("segment", photographs, "--output", output, *given, code=code)


def test_all_done_is_0_and_again_says_so(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    said = segment(photographs, tmp_path / "out", checkpoint, "--profile", "--parquet")
    assert "3 photographs; results go to" in said
    assert "3 photographs segmented in" in said
    assert "failed why" not in said
    assert "the network computed" in said
    again = segment(photographs, tmp_path / "out", checkpoint)
    assert "3 photographs, 3 of them done before" in again
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [row["path"] for row in rows] == [row["path"] for row in table(tmp_path / "out")]
    assert rows[0]["fov_diameter_px"] == pytest.approx(float(table(tmp_path / "out")[0]["fov_diameter_px"]), rel=1e-5)


def test_doubtful_fields_of_view_are_pointed_out(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    folder = shutil.copytree(photographs, tmp_path / "in")
    Image.fromarray(np.full((72, 90, 3), 140, np.uint8)).save(folder / "wall.png")
    said = segment(folder, tmp_path / "out", checkpoint)
    wanted = "1 with a doubtful field of view: look at them first"
    assert wanted in said
    assert wanted in (tmp_path / "out" / "report.html").read_text()
    assert [row["path"] for row in table(tmp_path / "out") if row["fov_full_frame"] == "1"] == ["wall.png"]
    assert '"doubtful": 1,' in segment(folder, tmp_path / "more", checkpoint, "--json")
    assert wanted not in segment(photographs, tmp_path / "round", checkpoint)


def test_failures_are_3_and_nothing_to_run_is_1(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    folder = shutil.copytree(photographs, tmp_path / "in")
    (folder / "text.jpg").write_text("no image")
    said = segment(folder, tmp_path / "out", checkpoint, code=3)
    assert "'text.jpg' failed: is not JPEG" in said
    assert "3 photographs segmented" in said
    assert "1 failed why:" in said
    for options in (
        ("--shard", "3/2"),
        ("--shard", "x"),
        ("--threshold", "2"),
        ("--outputs", "masks"),
        ("--limit", "0"),
    ):
        said = segment(folder, tmp_path / "new", checkpoint, *options, code=1)
        assert said.startswith("error: ")
    assert "no such file or folder" in segment(tmp_path / "nowhere", tmp_path / "new", checkpoint, code=1)
    assert "no such checkpoint" in segment(folder, tmp_path / "new", tmp_path / "none.pt", code=1)
    assert "other settings" in segment(folder, tmp_path / "out", checkpoint, "--threshold", "0.4", code=1)
    assert "give that, dense or random, not 'cropr'" in segment(
        folder, tmp_path / "new", checkpoint, "--policy", "cropr", code=1
    )
    assert not (tmp_path / "new").exists()


def test_a_pickle_is_refused(photographs: Path, tmp_path: Path) -> None:
    torch.save({"network": {}, "configuration": Path("x")}, tmp_path / "pickle.pt")
    assert "reading them can run code" in segment(photographs, tmp_path / "out", tmp_path / "pickle.pt", code=1)


def test_quiet_says_nothing_and_json_only_json(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    assert segment(photographs, tmp_path / "quiet", checkpoint, "--quiet") == ""
    done = command(
        *("-m", "reg4pru_monai.cli", "segment", str(photographs), "--output", str(tmp_path / "json"), "--json"),
        *("--checkpoint", str(checkpoint)),
        cwd=tmp_path,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["path"] for line in lines[:-1]) == [row["path"] for row in table(tmp_path / "json")]
    assert lines[-1]["summary"]["done"] == 3
    assert done.returncode == lines[-1]["summary"]["exit_status"] == 0


def test_a_dry_run_counts(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    said = segment(photographs, tmp_path / "out", checkpoint, "--dry-run", "--shard", "1/1")
    assert said == "3 photographs found, 3 in this shard 0 done before, 3 to do nothing was written"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_speaks_as_it_is_told(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    given = (photographs, tmp_path / "out", checkpoint, "--dry-run", "--limit", "1")
    assert "3 to do, 1 of them in this run" in segment(*given)
    assert segment(*given, "--quiet") == ""
    assert json.loads(segment(*given, "--json"))["dry_run"]["missing"] == 3


def test_a_profile_comes_as_json_too(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    said = segment(photographs, tmp_path / "out", checkpoint, "--limit", "1", "--json", "--profile")
    profile = json.loads(said[said.index('{"summary"') :])["profile"]
    assert 0 < profile["network"] < profile["total"]


@pytest.mark.parametrize("wrong", [("--keep-rate", "much"), ("--no-such-option",), ("--device", "meta")])
def test_what_cannot_run_ends_with_1(
    photographs: Path, tmp_path: Path, checkpoint: Path, wrong: tuple[str, ...]
) -> None:
    assert "Traceback" not in segment(photographs, tmp_path / "out", checkpoint, *wrong, code=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_goes_away_does_not_end_the_run(
    photographs: Path, tmp_path: Path, checkpoint: Path, closed: str
) -> None:
    mode = "--json" if closed == "stdout" else "--profile"
    given = ["segment", photographs, "--output", tmp_path / "out", "--checkpoint", checkpoint, "--device", "cpu", mode]
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "reg4pru_monai.cli", *map(str, given)]
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: writer}
    try:
        assert subprocess.run(arguments, timeout=120, check=False, **streams).returncode == 0
    finally:
        os.close(writer)
    assert {row["status"] for row in table(tmp_path / "out")} == {"done"}


def test_the_policy_can_be_switched_off(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    segment(photographs, tmp_path / "dense", checkpoint, "--policy", "dense")
    segment(photographs, tmp_path / "random", checkpoint, "--policy", "random", "--keep-rate", "0.3")
    shares = {name: float(table(tmp_path / name)[0]["tokens_computed_fraction"]) for name in ("dense", "random")}
    assert shares["random"] < 0.8 * shares["dense"]
    expected = load_pipeline(checkpoint, "cpu", policy="dense")(photographs / "photograph_00.png").mask()
    assert np.array_equal(read_mask(tmp_path / "dense" / "masks" / "photograph_00.png.png"), expected)


def test_status_counts_across_shards(photographs: Path, tmp_path: Path, checkpoint: Path) -> None:
    assert "is no output folder" in reg4pru("status", tmp_path, code=1)
    folder = shutil.copytree(photographs, tmp_path / "in")
    (folder / "text.jpg").write_text("no image")
    segment(folder, tmp_path / "out", checkpoint, "--limit", "1", "--shard", "2/2")
    found = json.loads(reg4pru("status", tmp_path / "out", "--json"))
    assert found["listed"] == 4
    assert found["done"] + found["failed"] == 1
    assert found["missing"] == len(found["missing_paths"]) == 3
    segment(folder, tmp_path / "out", checkpoint, "--shard", "1/2", code=_either(folder, 1))
    segment(folder, tmp_path / "out", checkpoint, "--shard", "2/2", code=_either(folder, 2))
    said = reg4pru("status", tmp_path / "out")
    assert said.startswith("4 photographs: 3 done, 1 failed, 0 missing")
    assert "'text.jpg': is not JPEG" in said
    assert "1/2 ended" in said
    assert "2/2 ended" in said


def _either(folder: Path, number: int) -> int:
    """The exit status of a shard: 3 if the bad file is in it."""
    from reg4pru_monai.batch.inputs import list_inputs, shard

    names = [item.name for item in shard(list_inputs([folder], folder / "out").items, number, 2)]
    return 3 if "text.jpg" in names else 0


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="the bundle has no weights")
def test_a_foreign_bundle_is_named_with_its_digest(photographs: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    path = bundle / "configs" / "inference.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "window_size": 128, "threshold": 0.3}, sort_keys=False))
    before = bundle_digest(bundle)
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "own.py").write_text("print('any code')")
    digest = bundle_digest(bundle)
    assert digest != before
    assert digest != bundle_digest(BUNDLE)
    given: tuple[Any, ...] = ("segment", photographs, "--output", tmp_path / "out", "--limit", "1", "--device", "cpu")
    said = reg4pru(*given, "--bundle", bundle)
    assert "its configuration can run any code" in said
    assert digest in said
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["settings"]["window"]["size"] == [128, 128]
    assert run["settings"]["threshold"] == 0.3
    assert run["runs"][0]["bundle"] == digest
    assert "run any code" not in reg4pru(*given[:3], tmp_path / "own", *given[4:], "--bundle", BUNDLE)
    assert "it has no configs/inference.yaml" in reg4pru(*given, "--bundle", tmp_path, code=1)
    assert "without --checkpoint" in reg4pru(*given, "--bundle", bundle, "--policy", "dense", code=1)


def test_a_damaged_bundle_is_named(photographs: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    given: tuple[Any, ...] = (
        "segment",
        photographs,
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
        "--bundle",
        bundle,
    )
    torch.save({"network": Path("not a tensor")}, bundle / "models" / "model.pt")
    said = reg4pru(*given, code=1)
    assert "the bundle cannot be loaded (CheckpointError: " in said
    assert "Traceback" not in said
    (bundle / "configs" / "inference.yaml").write_text("imports: [\n")
    said = reg4pru(*given, code=1)
    assert "inference.yaml: the bundle cannot be loaded" in said
    assert "Traceback" not in said


def test_the_command_starts_without_what_it_does_not_need(tmp_path: Path) -> None:
    code = """
import sys
from reg4pru_monai.startup import OPTIONAL, import_monai_alone
import_monai_alone()
import reg4pru_monai.batch.command
assert not [name for name in OPTIONAL if name in sys.modules]
import matplotlib, pandas
import_monai_alone()
assert "pandas" in sys.modules
"""
    done = command("-W", "ignore", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_dicom_is_read_and_segmentations_written(tmp_path: Path, checkpoint: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="optional: pip install pydicom highdicom")
    pytest.importorskip("highdicom", reason="optional: pip install pydicom highdicom")
    from dicoms import SECRET, native
    from reg4pru_monai.fundus.phantom import make_phantom

    (tmp_path / "in").mkdir()
    eyes = np.stack([make_phantom((72, 72), seed=seed).image for seed in (1, 2)])
    native(tmp_path / "in" / "one.dcm", eyes[0], PatientID="P7")
    native(tmp_path / "in" / "two.dcm", eyes[0], eyes.tobytes(), frames=2, PatientID="P8")
    write_photographs(tmp_path / "in", 1)
    options = ("--outputs", "mask,dicom-seg", "--identifiers", "PatientID")
    said = segment(tmp_path / "in", tmp_path / "out", checkpoint, *options)
    assert "3 photographs segmented" in said
    rows = {(row["path"], row["frame"]): row for row in table(tmp_path / "out")}
    assert rows["one.dcm", "1"]["identifier"] == "P7"
    assert rows["one.dcm", "1"]["laterality"] == "L"
    assert rows["two.dcm", "2"]["frames"] == "2"
    for path, masks in (("one.dcm", ["one.dcm.png"]), ("two.dcm", ["two.dcm~frames/1.png", "two.dcm~frames/2.png"])):
        found = pydicom.dcmread(tmp_path / "out" / "segmentations" / f"{path}.dcm")
        expected = np.stack([read_mask(tmp_path / "out" / "masks" / name) for name in masks])
        assert np.array_equal(found.pixel_array.reshape(expected.shape) > 0, expected)
    assert not (tmp_path / "out" / "segmentations" / "photograph_00.png.dcm").exists()
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.parent.name != "segmentations":
            assert SECRET.encode() not in path.read_bytes()
    assert SECRET not in said
    said = segment(tmp_path / "in", tmp_path / "x", checkpoint, "--identifiers", "PatientName", code=1)
    assert "PatientName is personal and never enters results" in said
