"""A run over photographs: results in the right frame, failures apart, settings never mixed, nothing done twice."""

import json
import logging
import math
import os
import shutil
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from bad_files import write_bad_files
from batches import comparable, journal_lines, seen, segment, small_pipeline, table, write_photographs
from reg4pru_monai.batch import Summary, engine, work
from reg4pru_monai.batch.engine import LocalEngine
from reg4pru_monai.batch.failures import DeviceError, StageError, WriteError
from reg4pru_monai.batch.inputs import InputError
from reg4pru_monai.batch.locks import LockedError, locked
from reg4pru_monai.batch.names import OutputError
from reg4pru_monai.batch.reports import duration
from reg4pru_monai.batch.rows import COLUMNS
from reg4pru_monai.batch.settings import Settings, SettingsError, read_claim, settings_of
from reg4pru_monai.batch.work import Prepared, Work
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.plots import save_picture


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), 5)


@pytest.fixture(scope="module")
def finished(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    choices = {"outputs": ("mask", "probability", "overlay", "contour", "nifti")}
    assert segment(photographs, output, choices).exit_status == 0
    return output


def test_masks_are_those_of_the_pipeline_at_the_size_of_the_photograph(photographs: Path, finished: Path) -> None:
    pipeline = small_pipeline()
    for path in sorted(photographs.iterdir()):
        expected = pipeline(path)
        mask = read_mask(finished / "masks" / f"{path.name}.png")
        np.testing.assert_array_equal(mask, expected.mask())
        assert 0 < mask.sum() < mask.size
        probability = np.asarray(Image.open(finished / "probabilities" / f"{path.name}.png"))
        assert probability.dtype == np.uint16
        np.testing.assert_allclose(probability / 65535, expected.probability, atol=1e-5)


def test_pictures_show_the_vessels_on_the_photograph(photographs: Path, finished: Path) -> None:
    image = read_image(photographs / "photograph_00.png").astype(int)
    mask = read_mask(finished / "masks" / "photograph_00.png.png")
    for folder in ("overlays", "contours"):
        difference = np.abs(read_image(finished / folder / "photograph_00.png.jpg").astype(int) - image).sum(2)
        assert difference.shape == mask.shape
        assert (difference > 150).any()
    painted = np.abs(read_image(finished / "contours" / "photograph_00.png.jpg").astype(int) - image).sum(2) > 150
    core, rim = binary_erosion(mask, iterations=4), mask ^ binary_dilation(mask)
    assert painted[rim].mean() > 2 * painted[core].mean()
    overlaid = np.abs(read_image(finished / "overlays" / "photograph_00.png.jpg").astype(int) - image).sum(2)
    assert overlaid[mask].mean() > 3 * overlaid[~mask].mean()


def test_the_table_has_one_row_per_file_in_order(photographs: Path, finished: Path) -> None:
    found = table(finished)
    assert [row["path"] for row in found] == sorted(path.name for path in photographs.iterdir())
    assert list(found[0]) == [column.name for column in COLUMNS]
    for row in found:
        assert (row["status"], row["height_px"], row["width_px"], row["format"]) == ("done", "72", "80", "PNG")
        assert len(row["sha256"]) == 64
        assert 55 < float(row["fov_diameter_px"]) < 80
        mask = read_mask(finished / "masks" / f"{row['path']}.png")
        assert 0 < float(row["vessel_area_fraction"]) < 1
        assert float(row["vessel_area_fraction"]) > mask.mean()  # of the field of view, not of the square
        assert 0.3 < float(row["tokens_computed_fraction"]) < 1
        assert row["skeleton_length_mm"] == ""
    assert table(finished, "errors.csv") == []


def test_what_a_run_was_can_be_read(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["counts"] == {"listed": 5, "done": 5, "failed": 0, "missing": 0}
    assert run["settings"] == settings_of(small_pipeline(), outputs=tuple(run["settings"]["outputs"])).to_dict()
    assert run["runs"][0]["versions"]["torch"] == torch.__version__
    assert run["runs"][0]["end"]["done"] == 5
    assert (finished / "report.html").stat().st_size > 10_000


def test_the_columns_are_documented() -> None:
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    assert all(len(column.definition) > 10 for column in COLUMNS)


def test_again_computes_nothing(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = segment(photographs, tmp_path)
    before = comparable(tmp_path)
    monkeypatch.setattr(Work, "prepare", None)
    again = segment(photographs, tmp_path)
    assert (first.done, again.before, again.done) == (5, 5, 0)
    assert comparable(tmp_path) == before


def test_a_changed_photograph_and_a_lost_mask_are_done_again(photographs: Path, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 4)
    segment(folder, tmp_path / "out")
    os.utime(folder / "photograph_01.png", (1, 1))
    (tmp_path / "out" / "masks" / "photograph_02.png.png").unlink()
    (tmp_path / "out" / "masks" / "photograph_03.png.png").write_bytes(b"")  # as a power cut leaves it
    again = segment(folder, tmp_path / "out")
    assert (again.before, again.done) == (1, 3)


def test_times_of_any_year_stop_nothing(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(photographs, folder)
    years = (2446, 1900, 1970, 2263)
    for year, path in zip(years, sorted(folder.iterdir()), strict=False):
        seconds = (year - 1970) * 31_556_952
        os.utime(path, ns=(0, seconds * 10**9))  # a file system may round
    first = segment(folder, tmp_path / "out")
    assert (first.done, first.failed, first.exit_status) == (5, 0, 0)
    assert [row["status"] for row in table(tmp_path / "out")] == ["done"] * 5
    assert (seen(tmp_path / "out").done, seen(tmp_path / "out").missing) == (5, [])
    assert segment(folder, tmp_path / "out").before == 5
    os.utime(folder / "photograph_00.png", ns=(0, 0))
    assert segment(folder, tmp_path / "out").done == 1


def test_a_file_that_grows_while_it_is_read_is_done_again(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph = tmp_path / "a.png"
    shutil.copy(photographs / "photograph_00.png", photograph)
    read = work.read_photographs

    def growing(path: str, **how: Any) -> Any:
        with open(path, "ab") as file:
            file.write(b" ")
        return read(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(work, "read_photographs", growing)
        assert segment(photograph, tmp_path / "out").done == 1
    again = segment(photograph, tmp_path / "out")
    assert (again.before, again.done) == (0, 1)
    assert segment(photograph, tmp_path / "out").before == 1


def test_manifest_lines_that_are_not_utf_8_fail_by_themselves(photographs: Path, tmp_path: Path) -> None:
    shutil.copy(photographs / "photograph_00.png", tmp_path / "Süden.png")
    (tmp_path / "list.csv").write_bytes(b"path;angle\nS\xfcden.png;45,5\nn\xf6rdlich.png;30\n")
    summary = segment(tmp_path / "list.csv", tmp_path / "out")
    assert (summary.done, summary.failed) == (1, 1)
    done, failed = sorted(table(tmp_path / "out"), key=lambda row: row["status"])
    assert (done["path"], done["angle_of_view_deg"]) == ("Süden.png", "45.5")
    [error] = table(tmp_path / "out", "errors.csv")
    assert error["path"] == failed["path"]
    assert "save the manifest as UTF-8" in error["remedy"]


def test_a_limit_gets_past_files_that_always_fail(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 3)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"no picture")
    for done in (0, 2, 3):
        segment(folder, tmp_path / "out", limit=2)
        assert seen(tmp_path / "out").done == done


def test_a_limit_and_then_the_rest(photographs: Path, finished: Path, tmp_path: Path) -> None:
    first = segment(photographs, tmp_path, limit=2)
    assert (first.done, first.missing) == (2, 3)
    status = seen(tmp_path)
    assert status.missing == [f"photograph_0{number}.png" for number in (2, 3, 4)]
    assert (status.listed, status.done) == (5, 2)
    segment(photographs, tmp_path)
    assert comparable(tmp_path)[1] == comparable(finished)[1]


def test_a_dry_run_finds_what_would_stop_a_run(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path / "out")
    with pytest.raises(SettingsError, match=r"threshold was 0\.5, is 0\.4"):
        segment(photographs, tmp_path / "out", {"threshold": 0.4}, dry_run=True)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file is in the way: it is no folder; give another --output"):
        segment(photographs, tmp_path / "file" / "out", dry_run=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "masks").symlink_to(tmp_path / "out")
    with pytest.raises(OutputError, match=r"masks would lie outside of the output folder: .* remove the link"):
        segment(photographs, tmp_path / "new")
    assert not (tmp_path / "new" / ".reg4pru").exists()
    assert segment(photographs, tmp_path / "fresh", dry_run=True, limit=2).now == 2


def test_an_output_that_is_removed_during_the_run_is_missed(photographs: Path, tmp_path: Path) -> None:
    def remove(record: Any) -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    with pytest.raises(WriteError, match="out was removed or replaced during the run"):
        segment(photographs, tmp_path / "out", progress=remove)


def test_a_dry_run_writes_nothing(photographs: Path, tmp_path: Path) -> None:
    summary = segment(photographs, tmp_path / "out", dry_run=True)
    assert (summary.listed, summary.before, summary.missing) == (5, 0, 5)
    assert not (tmp_path / "out").exists()


def test_windows_of_several_photographs_share_forwards(tmp_path: Path) -> None:
    for number, size in enumerate((60, 72, 90, 75)):
        write_photographs(tmp_path / "in" / str(number), 2, size)
    segment(tmp_path / "in", tmp_path / "one", {"outputs": ("mask", "probability")})
    summary = segment(tmp_path / "in", tmp_path / "many", {"outputs": ("mask", "probability")}, batch_size=3)
    assert summary.done == 8
    for path in (tmp_path / "one" / "probabilities").rglob("*.png"):
        other = tmp_path / "many" / path.relative_to(tmp_path / "one")
        one, many = (np.asarray(Image.open(each)).astype(int) for each in (path, other))
        assert np.abs(one - many).max() <= 7  # of 65535


# --- failures


def test_bad_files_are_named_and_harm_no_other(photographs: Path, finished: Path, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 5)
    bad = write_bad_files(folder / "bad")
    assert len(bad) >= 20
    summary = segment(folder, tmp_path / "out", {"max_pixels": 10**7})
    assert (summary.done, summary.failed, summary.exit_status) == (5, len(bad), 3)
    failed = table(tmp_path / "out", "errors.csv")
    assert [row["path"] for row in failed] == [f"bad/{name}" for name in bad]
    for row in failed:
        assert row["stage"] == "read", row
        assert row["type"] in ("FundusReadError", "PermissionError", "FileNotFoundError"), row
        assert len(row["message"]) > 5
        assert "report it" not in row["remedy"], row
    rows = {row["path"]: row for row in table(tmp_path / "out")}
    assert len(rows) == 5 + len(bad)
    assert {row["status"] for path, row in rows.items() if path.startswith("bad/")} == {"failed"}
    for path in photographs.iterdir():
        name = f"masks/{path.name}.png"
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    assert not (tmp_path / "out" / "masks" / "bad").exists()


def test_unusual_photographs_are_segmented(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, shape in (("pixel", (1, 1)), ("line", (1, 50)), ("black", (40, 40)), ("grey", (30, 60))):
        Image.fromarray(np.full((*shape, 3), 128 * (name != "black"), np.uint8)).save(tmp_path / "in" / f"{name}.png")
    summary = segment(tmp_path / "in", tmp_path / "out")
    assert (summary.done, summary.failed) == (3, 1)
    (error,) = table(tmp_path / "out", "errors.csv")
    assert (error["path"], error["message"][:25]) == ("black.png", "holds nothing but black, ")
    assert error["remedy"] == "Look at it in a viewer, and export it again or leave it out."
    for row in table(tmp_path / "out"):
        if row["status"] == "failed":
            continue
        assert row["fov_full_frame"] == "1"
        mask = read_mask(tmp_path / "out" / "masks" / f"{row['path']}.png")
        assert mask.shape == (int(row["height_px"]), int(row["width_px"]))


def test_photographs_are_segmented_whatever_their_suffix(tmp_path: Path) -> None:
    photograph = make_phantom((72, 80), seed=0).image
    save_picture(tmp_path / "in" / "a.jpg", photograph)
    for name in ("a.jfif", "a.jpe", "nosuffix"):
        shutil.copy(tmp_path / "in" / "a.jpg", tmp_path / "in" / name)
    with Image.open(tmp_path / "in" / "a.jpg") as image:
        image.save(tmp_path / "in" / "a.mpo", format="MPO", save_all=True, append_images=[image])
    assert segment(tmp_path / "in", tmp_path / "out").exit_status == 0
    rows = {row["path"]: row["format"] for row in table(tmp_path / "out")}
    assert rows == dict.fromkeys(("a.jfif", "a.jpe", "a.jpg", "a.mpo", "nosuffix"), "JPEG")
    masks = [
        (tmp_path / "out" / "masks" / f"{name}.png").read_bytes() for name in ("a.jfif", "a.jpe", "a.jpg", "nosuffix")
    ]
    assert len(set(masks)) == 1


def test_a_file_that_vanishes_is_a_failure_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_photographs(tmp_path / "in", 4)
    prepare = Work.prepare

    def vanishing(self: Work, item: Any) -> Prepared:
        if item.name == "photograph_02.png":
            Path(item.path).unlink()
        return prepare(self, item)

    monkeypatch.setattr(Work, "prepare", vanishing)
    summary = segment(folder, tmp_path / "out")
    assert (summary.done, summary.failed) == (3, 1)
    assert table(tmp_path / "out", "errors.csv")[0]["message"].startswith(("no such file", "[Errno 2]"))


class Failing:
    """A network that fails for some windows."""

    def __init__(self, network: Any, fails: Any) -> None:
        self.network, self.fails, self.batches = network, fails, []  # type: ignore[var-annotated]

    def __call__(self, windows: torch.Tensor, fov: torch.Tensor) -> Any:
        self.batches.append(len(windows))
        logits, lengths = self.network(windows, fov)
        return self.fails(self, windows, logits), lengths


def with_failing(fails: Any) -> tuple[Any, Failing]:
    pipeline = small_pipeline()
    failing = Failing(pipeline.network.forward_with_lengths, fails)
    pipeline.network.forward_with_lengths = failing  # type: ignore[method-assign]
    return pipeline, failing


def test_values_that_are_not_numbers_are_a_failure(photographs: Path, tmp_path: Path) -> None:
    def third(self: Failing, windows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return logits.fill_(torch.nan) if len(self.batches) == 5 else logits

    pipeline, _ = with_failing(third)
    summary = segment(photographs, tmp_path, pipeline=pipeline)
    assert (summary.done, summary.failed) == (4, 1)
    (row,) = table(tmp_path, "errors.csv")
    assert (row["stage"], row["type"]) == ("network", "NetworkError")
    assert "not numbers" in row["message"]


def test_out_of_memory_is_tried_again_with_less(photographs: Path, finished: Path, tmp_path: Path) -> None:
    def small(self: Failing, windows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if len(windows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return logits

    pipeline, failing = with_failing(small)
    summary = segment(photographs, tmp_path, pipeline=pipeline, batch_size=2)
    assert (summary.done, summary.failed) == (5, 0)
    assert max(failing.batches) > 1

    def never(self: Failing, windows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    pipeline, _ = with_failing(never)
    summary = segment(photographs, tmp_path / "none", pipeline=pipeline)
    assert (summary.done, summary.failed) == (0, 5)
    assert "use a machine with more memory" in table(tmp_path / "none", "errors.csv")[0]["remedy"]


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(
    photographs: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Path.write_bytes, 0

    def full(path: Path, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > 5:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        segment(photographs, tmp_path, workers=1)
    monkeypatch.undo()
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".png", ".jpg")]
    assert seen(tmp_path).shards[0].state == "broken"
    status = seen(tmp_path)
    assert 0 < status.done < 5
    assert not status.failures  # the disk's fault, not the photographs'
    summary = segment(photographs, tmp_path)
    assert (summary.before, summary.done) == (status.done, 5 - status.done)
    masks = {name: data for name, data in comparable(finished)[0].items() if name.startswith("masks")}
    assert {name: data for name, data in comparable(tmp_path)[0].items() if name.startswith("masks")} == masks


def test_memory_that_ran_out_beside_others_suffices_alone(
    photographs: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = Counter[str]()
    prepare, measure = Work.prepare, Work._measured

    def reading(self: Work, item: Any) -> Prepared:
        at_work["read"] += 1
        if item.name == "photograph_01.png" and at_work["read"] < 5:
            raise StageError("read", MemoryError())
        return prepare(self, item)

    def measuring(self: Work, *given: Any) -> Any:
        at_work["measured"] += 1
        if at_work["measured"] == 2:
            raise MemoryError
        return measure(self, *given)

    monkeypatch.setattr(Work, "prepare", reading)
    monkeypatch.setattr(Work, "_measured", measuring)
    summary = segment(photographs, tmp_path, workers=1)
    assert (summary.done, summary.failed) == (5, 0)
    assert at_work == {"read": 7, "measured": 6}
    begun = [line for line in journal_lines(tmp_path) if "begun" in line]
    assert [line["alone"] for line in begun] == [False] * 5 + [True] * 2


def test_no_more_is_read_than_memory_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_photographs(tmp_path / "in", 12)
    monkeypatch.setattr(engine, "PIXELS_HELD", 3 * 72 * 80)
    held = [0]
    most = [0]
    prepare, record = Work.prepare, LocalEngine._record

    def preparing(self: Work, item: Any) -> Prepared:
        held[0] += 1
        most[0] = max(most[0], held[0])
        return prepare(self, item)

    def recording(self: LocalEngine, *given: Any) -> None:
        held[0] -= 1  # just before the engine counts it as gone: behind that, the next may be read already
        record(self, *given)

    monkeypatch.setattr(Work, "prepare", preparing)
    monkeypatch.setattr(LocalEngine, "_record", recording)
    assert segment(folder, tmp_path / "out", workers=8).done == 12
    assert 2 <= most[0] <= 4  # of 9; four before the first is known


def test_a_failure_is_tried_again_and_a_success_replaces_it(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 2)
    good = (folder / "photograph_00.png").read_bytes()
    (folder / "photograph_00.png").write_bytes(good[:100])
    assert segment(folder, tmp_path / "out").exit_status == 3
    (folder / "photograph_00.png").write_bytes(good)
    again = segment(folder, tmp_path / "out")
    assert (again.before, again.done, again.exit_status) == (1, 1, 0)
    assert table(tmp_path / "out", "errors.csv") == []


# --- settings and company


def test_results_of_other_settings_are_not_mixed(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path)
    before = comparable(tmp_path)
    with pytest.raises(SettingsError, match=r"other settings \(threshold was 0.5, is 0.4\).*give another --output"):
        segment(photographs, tmp_path, {"threshold": 0.4})
    other = small_pipeline()
    with torch.no_grad():
        next(other.network.parameters()).add_(1e-3)
    with pytest.raises(SettingsError, match="weights was"):
        segment(photographs, tmp_path, pipeline=other)
    pruned = small_pipeline()
    pruned.network = pruned.network.with_keep_rate(0.5)
    with pytest.raises(SettingsError, match="network stages was"):
        segment(photographs, tmp_path, pipeline=pruned)
    assert comparable(tmp_path) == before


def test_another_photograph_of_the_same_name_replaces_no_result(tmp_path: Path) -> None:
    first, second = (write_photographs(tmp_path / name, 2) for name in ("first", "second"))
    segment(first, tmp_path / "out")
    copied = shutil.copytree(first, tmp_path / "copied")
    for path in copied.iterdir():
        os.utime(path, (1, 1))
    assert segment(copied, tmp_path / "out", root=str(copied)).failed == 0
    save_picture(second / "photograph_01.png", make_phantom((72, 80), seed=77).image)
    before = comparable(tmp_path / "out")
    for dry in (True, False):
        with pytest.raises(SettingsError, match=r"another photograph called 'photograph_01.png', .*another --output"):
            segment(second, tmp_path / "out", root=str(second), dry_run=dry)
    assert comparable(tmp_path / "out") == before
    assert read_claim(tmp_path / "out").root == str(copied)


def test_overwriting_puts_earlier_results_aside(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path)
    before = comparable(tmp_path)
    summary = segment(photographs, tmp_path, {"threshold": 0.4}, overwrite=True)
    assert summary.done == 5
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert comparable(earlier) == before
    assert comparable(tmp_path) != before
    with pytest.raises(SettingsError, match="--overwrite goes without --shard"):
        segment(photographs, tmp_path, overwrite=True, part=(1, 2))


def test_photographs_from_elsewhere_are_refused(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path / "out", limit=1)
    elsewhere = write_photographs(tmp_path / "elsewhere", 5)
    with pytest.raises(InputError, match=r"lies outside of .*give another --output, or --root with a folder above"):
        segment(elsewhere, tmp_path / "out")
    moved = segment(elsewhere, tmp_path / "out", root=str(elsewhere))
    assert moved.missing == 0


def test_a_second_run_on_the_same_folder_waits_its_turn(photographs: Path, tmp_path: Path) -> None:
    said = r"another run \(process \d+ on .*wait for it"
    with locked(tmp_path, "shard-1-of-1"), pytest.raises(LockedError, match=said):
        segment(photographs, tmp_path)
    assert segment(photographs, tmp_path).done == 5


def test_shards_of_another_number_wait(photographs: Path, tmp_path: Path) -> None:
    with locked(tmp_path, "shard-1-of-1"), pytest.raises(LockedError, match=r"shard 1/1 is at work .*twice; wait"):
        segment(photographs, tmp_path, part=(1, 2))
    with locked(tmp_path, "shard-2-of-2"):
        assert segment(photographs, tmp_path, part=(1, 2)).exit_status == 0


def test_shards_at_once_make_what_one_run_makes(photographs: Path, finished: Path, tmp_path: Path) -> None:
    pipelines = [small_pipeline() for _ in range(3)]
    choices = {"outputs": ("mask", "probability", "overlay", "contour", "nifti")}

    def run(number: int) -> Summary:
        return segment(photographs, tmp_path, choices, part=(number, 3), pipeline=pipelines[number - 1])

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, (1, 2, 3)))
    assert sum(summary.done for summary in results) == 5
    assert comparable(tmp_path)[1] == comparable(finished)[1]
    status = seen(tmp_path)
    assert (status.listed, status.done, status.missing) == (5, 5, [])
    assert sorted(each.shard for each in status.shards) == ["1/3", "2/3", "3/3"]
    assert {each.state for each in status.shards} == {"ended"}


def test_a_damaged_journal_line_costs_its_photograph_only(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path)
    (journal,) = (tmp_path / ".reg4pru" / "journal").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    first, second = [number for number, line in enumerate(lines) if line.startswith(b'{"record"')][1:3]
    lines[first] = lines[first][:40] + b"\xff\n"
    lines[second] = lines[second].replace(b'"rows"', b'"others"')
    journal.write_bytes(b"".join(lines))
    again = segment(photographs, tmp_path)
    assert (again.before, again.done) == (3, 2)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"threshold": 1.0}, r"threshold must be in \(0, 1\), got 1.0"),
        ({"outputs": ("masks",)}, "outputs must be some of mask, probability, .* got masks"),
        ({"outputs": ()}, "got none"),
        ({"millimetres_per_pixel": 5.0}, r"millimetres per pixel must be in \(0, 1\), got 5.0"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
    ],
)
def test_wrong_settings_are_named(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings("", {}, {}, {}, **choices)


@pytest.mark.parametrize("how", [{"workers": 0}, {"batch_size": 0}, {"limit": 0}])
def test_wrong_numbers_are_named(photographs: Path, tmp_path: Path, how: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="must be at least 1, got 0"):
        segment(photographs, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_scale_gives_millimetres(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path, {"millimetres_per_pixel": 0.01}, limit=1)
    row = next(row for row in table(tmp_path) if row["status"] == "done")
    assert float(row["skeleton_length_mm"]) == pytest.approx(0.01 * float(row["skeleton_length_px"]), rel=1e-4)


def test_names_of_any_kind_survive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    good = (write_photographs(tmp_path / "one", 1) / "photograph_00.png").read_bytes()
    found = [
        "a.jpg",
        "a.png",
        "a.b.png",
        "x/a.jpg",
        "é.png",
        "e\u0301.png",
        "line\nbreak.png",
        "\udcff.png",
        "=1+1.png",
    ]
    found += ["<img src=x onerror=alert(1)>.png", "n" * 250 + ".png", "目" * 83 + ".png"]
    for name in found:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good)
    summary = segment(tmp_path / "in", tmp_path / "out")
    assert (summary.done, summary.failed) == (len(found), 0)
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == len(found)
    expected = sorted(name.encode("utf-8", "backslashreplace").decode() for name in found)
    assert sorted(row["path"].removeprefix("'") for row in table(tmp_path / "out")) == expected
    assert segment(tmp_path / "in", tmp_path / "out").before == len(found)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in page


def test_overwriting_touches_nothing_that_is_not_ours(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("mine")
    segment(folder, tmp_path / "out", overwrite=True)
    segment(folder, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.docx").read_text() == "mine"
    assert len(list((tmp_path / "out" / "earlier").iterdir())) == 1


def test_results_are_never_segmented_as_photographs(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 2)
    segment(folder, folder / "results")
    assert segment(folder, folder / "results").listed == 2
    again = segment(folder, folder / "second")
    assert again.listed == 2
    assert any("results holds results of this command and was left out" in notice for notice in again.notices)
    assert segment(str(folder / "**" / "*.png"), folder / "results").listed == 2
    assert segment([folder, folder / "results"], folder / "results").listed == 2
    with pytest.raises(InputError, match=r"no photograph in .*holds results of this command"):
        segment(folder / "results", tmp_path / "third")
    with pytest.raises(InputError, match=r"is the --output itself .*give another --output"):
        segment(folder, folder)
    assert not (folder / ".reg4pru").exists()


def test_a_share_that_is_away_costs_no_results(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 3)
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"{path}\n" for path in folder.iterdir()))
    root = str(tmp_path)
    assert segment(manifest, tmp_path / "out", root=root).done == 3
    folder.rename(tmp_path / "away")
    assert segment(manifest, tmp_path / "out", root=root).failed == 3
    (tmp_path / "away").rename(folder)
    assert segment(manifest, tmp_path / "out", root=root).before == 3


def test_a_failure_of_a_file_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 1)
    (folder / "bad.png").write_text("x")
    assert segment(folder, tmp_path / "out").exit_status == 3
    (folder / "bad.png").unlink()
    assert segment(folder, tmp_path / "out").exit_status == 0
    assert table(tmp_path / "out", "errors.csv") == []
    assert seen(tmp_path / "out").listed == 1


def test_part_of_the_photographs_keeps_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for year in ("2020", "2021"):
        write_photographs(folder / year, 1)
    assert segment(folder, tmp_path / "out").done == 2
    assert segment(folder / "2021", tmp_path / "out").before == 1


def test_report_run_and_status_count_alike_after_part_of_the_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for year in ("2020", "2021"):
        write_photographs(folder / year, 2)
    (folder / "2020" / "text.jpg").write_text("no image")
    segment(folder, tmp_path / "out", limit=3)  # two of 2020, and the text
    segment(folder / "2021", tmp_path / "out", limit=1)
    status = seen(tmp_path / "out")
    counts = {"listed": status.listed, "done": status.done, "failed": 1, "missing": len(status.missing)}
    assert counts == {"listed": 5, "done": 3, "failed": 1, "missing": 1}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["counts"] == counts
    page = (tmp_path / "out" / "report.html").read_text()
    for label, value in (("Photographs", 5), ("Done", 3), ("Failed", 1), ("Not done yet", 1)):
        assert f"<dt>{label}</dt><dd>{value}</dd>" in page
    assert "1 of 5 photographs failed. Not done yet: 1." in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s"), (59.4, "59.4 s"), (2931.2, "48 min 51 s"), (7199.7, "2 h 0 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_larger_limit_of_pixels_goes_on(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 2)
    assert segment(folder, tmp_path / "out", {"max_pixels": 100}).failed == 2
    assert segment(folder, tmp_path / "out").done == 2


def test_memory_of_a_failed_attempt_is_free_for_the_next(tmp_path: Path) -> None:
    folder, alive = write_photographs(tmp_path / "in", 1), []

    def once(self: Failing, windows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == 1:
            alive.append(weakref.ref(windows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert alive[0]() is None
        return logits

    pipeline, _ = with_failing(once)
    assert segment(folder, tmp_path / "out", pipeline=pipeline).done == 1


def test_a_device_that_failed_ends_the_run(photographs: Path, tmp_path: Path) -> None:
    def lost(self: Failing, windows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure")

    pipeline, failing = with_failing(lost)
    with pytest.raises(DeviceError, match="the device cpu failed: CUDA error"):
        segment(photographs, tmp_path, pipeline=pipeline)
    assert len(failing.batches) == 1
    assert not seen(tmp_path).failures


def test_values_that_json_does_not_know_are_left_empty(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "quality_indicators", lambda *_: {"focus": math.inf, "contrast": math.nan})
    assert segment(photographs, tmp_path, limit=1).done == 1
    row = table(tmp_path)[0]
    assert (row["focus"], row["contrast"]) == ("", "")


def test_a_path_with_a_null_byte_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-16-le")
    with pytest.raises(InputError, match="save the manifest as UTF-8, not UTF-16"):
        segment(tmp_path / "list.txt", tmp_path / "out")


def test_an_input_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        segment(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
