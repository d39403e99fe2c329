import csv
import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import typer
from PIL import Image
from typer.testing import CliRunner

from reg4pru_monai.batch.writers import Result as Segmented
from reg4pru_monai.batch.writers import encode_probability
from reg4pru_monai.evaluate_command import evaluate
from reg4pru_monai.evaluate_masks import evaluate_masks, pairing_name, read_groups
from reg4pru_monai.fundus.io import write_mask
from reg4pru_monai.fundus.phantom import make_phantom

app = typer.Typer()
app.command()(evaluate)


def run(*words: object) -> tuple[int, str]:
    """Exit status and all that was printed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def drawing(seed: int = 0) -> np.ndarray:
    """Two bars, (60, 80) bool; the seed moves one of them."""
    mask = np.zeros((60, 80), bool)
    mask[10 + seed : 14 + seed, 5:75] = True
    mask[40, 5:75] = True
    return mask


def scores(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Probabilities (H, W) float32: above one half on the mask only."""
    noise = np.random.default_rng(seed).random(mask.shape)
    return np.where(mask, 0.5 + 0.5 * noise, 0.45 * noise).astype(np.float32)


def masks(folder: Path, names: list[str], shift: int = 0) -> Path:
    for number, name in enumerate(names):
        write_mask(folder / name, drawing(number + shift))
    return folder


def deep(path: Path, probability: np.ndarray) -> None:
    """As `reg4pru segment --outputs probability` writes it."""
    nothing = np.zeros(probability.shape, bool)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_probability(Segmented(np.zeros((*nothing.shape, 3), np.uint8), probability, nothing, None)))


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return masks(tmp_path / "truth", ["a.png", "b.png"])


# --- pairing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Image_01L_1stHO.png", "Image_01L"),
        ("Image_01L_2ndHO.png", "Image_01L"),
        ("Image_01L.jpg.png", "Image_01L"),
        ("21_training.tif", "21"),
        ("21_manual1.gif", "21"),
        ("01_test.tif.png", "01"),
        ("im0001.vk.ppm", "im0001"),
        ("im0001.ah.ppm", "im0001"),
        ("01_dr.JPG", "01_dr"),
        ("3_D.png", "3_D"),
        ("eye.dcm.png", "eye"),
        ("eye.v2_mask.tiff", "eye.v2"),
        ("eye.v2.jpeg", "eye.v2"),
    ],
)
def test_names_that_pair(file: str, name: str) -> None:
    assert pairing_name(Path("folder.png") / file) == name


def test_one_folder_for_photographs_and_both_observers(tmp_path: Path) -> None:
    """As the archive of CHASE_DB1 comes; predictions lie in folders below, as `reg4pru segment` writes them."""
    mixed = tmp_path / "CHASEDB1"
    for number, eye in enumerate(("Image_11L", "Image_11R", "Image_12L")):
        masks(mixed, [f"{eye}_1stHO.png"], number)
        masks(mixed, [f"{eye}_2ndHO.png"], number + 1)
        Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save(mixed / f"{eye}.jpg")
    masks(tmp_path / "found", ["below/Image_11L.jpg.png", "below/Image_11R.jpg.png"])
    result = evaluate_masks(tmp_path / "found", mixed, photographs=mixed, second_observer=mixed)
    assert [row["name"] for row in result.predictions.rows] == ["Image_11L", "Image_11R"]
    assert [row["dice"] for row in result.predictions.rows] == [1, 1]
    assert result.second_observer is not None
    assert [row["dice"] for row in result.second_observer.rows] == [pytest.approx(2 * 280 / 700)] * 2
    assert result.predictions._subjects == ["11", "11"]
    assert result.notes == ("1 ground truth mask(s) without prediction were left out",)


def test_what_pairs_with_nothing_is_said(truth: Path, tmp_path: Path) -> None:
    found = masks(tmp_path / "found", ["a.png", "x.png", "y.png"])
    second = masks(tmp_path / "second", ["a.png"], 1)
    (truth / "c.png").write_bytes((truth / "b.png").read_bytes())
    masks(found, ["c.png"], 2)
    notes = evaluate_masks(found, truth, second_observer=second).notes
    assert notes[1:] == (
        "2 prediction(s) without ground truth were left out",
        "1 ground truth mask(s) without prediction were left out",
        "second observer: 1 of 2 images",
    )
    assert notes[0].startswith("field of view: the whole frame, its diagonal taken as the diameter")


# --- masks or probabilities ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_label_maps_are_no_probabilities(bits: int, truth: Path, tmp_path: Path) -> None:
    """Of arteries and veins, say: read as probabilities up to 2/255, they would have a Dice of 0 and an AP of 1."""
    masks(tmp_path / "found", ["a.png", "b.png"])
    for number, name in enumerate(("a.png", "b.png")):
        labels = drawing(number).astype(np.uint8 if bits == 8 else np.uint16)
        labels[40] *= 2 - number  # one of them has but two values
        (tmp_path / "found" / name).write_bytes(imagecodecs.png_encode(labels))
    status, output = run(tmp_path / "found", truth)
    assert status == 1
    assert f"error: {tmp_path / 'found' / 'a.png'}: is this a label map? No prediction has a value above 2; " in output
    assert "give masks of 0 and 255" in output


def test_sixteen_bits_eight_bits_and_floats_are_probabilities(truth: Path, tmp_path: Path) -> None:
    errors = []
    for kind in ("png16", "tiff", "png8"):
        for number, name in enumerate(("a", "b")):
            probability = scores(drawing(number), number)
            path = tmp_path / kind / f"{name}.jpg.png"
            path.parent.mkdir(exist_ok=True)
            if kind == "png16":
                deep(path, probability)
            elif kind == "tiff":
                tifffile.imwrite(path.with_name(f"{name}.tiff"), probability)
            else:
                path.write_bytes(imagecodecs.png_encode(np.rint(probability * 255).astype(np.uint8)))
        found = evaluate_masks(tmp_path / kind, truth).predictions
        assert found.probabilities
        assert {"ap": 1.0, "dice": 1.0, "auc": 1.0}.items() <= found.rows[0].items()
        errors.append(found.rows[0]["ece"])
    # 0.225 on average of the background's 0 to 0.45, 0.25 of the vessels' 0.5 to 1
    assert errors == pytest.approx([(0.225 * 4450 + 0.25 * 350) / 4800] * 3, abs=0.01)


@pytest.mark.parametrize("kind", ["0 and 255", "0 and 1", "JPEG", "16 bits"])
def test_masks_in_any_coding(truth: Path, tmp_path: Path, kind: str) -> None:
    for number, name in enumerate(("a", "b")):
        mask, path = drawing(number), tmp_path / "found" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        if kind == "JPEG":
            Image.fromarray(mask.astype(np.uint8) * 255).save(path.with_suffix(".jpg"), quality=95)
        else:
            values = mask * {"0 and 255": np.uint8(255), "0 and 1": np.uint8(1), "16 bits": np.uint16(1)}[kind]
            path.write_bytes(imagecodecs.png_encode(values))
    found = evaluate_masks(tmp_path / "found", truth).predictions
    assert not found.probabilities
    assert [row["dice"] for row in found.rows] == [1, 1]


# --- field of view ---------------------------------------------------------------------------------------------------


def test_the_field_of_view_comes_from_the_photographs(tmp_path: Path) -> None:
    """What is drawn in the dark corners counts without photographs and not with them; lengths have the disc's scale."""
    phantom = make_phantom((240, 240), 3)
    (tmp_path / "photographs").mkdir()
    Image.fromarray(phantom.image).save(tmp_path / "photographs" / "a.png")
    write_mask(tmp_path / "truth" / "a.png", phantom.mask)
    scribbled = phantom.mask.copy()
    scribbled[:12, :12] = True
    write_mask(tmp_path / "found" / "a.png", scribbled)
    folders = tmp_path / "found", tmp_path / "truth"
    with_disc = evaluate_masks(*folders, photographs=tmp_path / "photographs")
    whole = evaluate_masks(*folders)
    assert with_disc.predictions.rows[0]["dice"] == with_disc.predictions.rows[0]["surface_dice"] == 1
    assert whole.predictions.rows[0]["dice"] < 1
    assert whole.predictions.rows[0]["betti0_error"] == 1
    assert [r.settings["field_of_view"] for r in (with_disc, whole)] == ["from photographs", "whole frame"]
    assert not with_disc.notes
    at_half = evaluate_masks(*folders, photographs=tmp_path / "photographs", diameter=512)
    assert at_half.settings["canonical_diameter_px"] == 512


def test_lengths_scale_with_the_given_diameter(truth: Path, tmp_path: Path) -> None:
    """The frame of 60 x 80 has a diagonal of 100 px, so at a diameter of 200 lengths double."""
    found = masks(tmp_path / "found", ["a.png"], 2)
    rows = [evaluate_masks(found, truth, diameter=d).predictions.rows[0] for d in (100, 200)]
    assert [row["hd95_px"] for row in rows] == [2, 4]


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_of_hrf_are_recognised(tmp_path: Path) -> None:
    names = ["01_h.tif", "02_h.tif", "01_dr.tif", "01_g.tif"]
    masks(tmp_path / "truth", names)
    masks(tmp_path / "found", [f"{Path(name).stem}.jpg.png" for name in names])
    write_mask(tmp_path / "found" / "01_g.jpg.png", np.zeros((60, 80), bool))
    groups = evaluate_masks(tmp_path / "found", tmp_path / "truth").to_dict()["groups"]
    assert {name: group["images"] for name, group in groups.items()} == {
        "diabetic_retinopathy": 1,
        "glaucoma": 1,
        "healthy": 2,
    }
    dice = {name: group["per_image"]["dice"]["value"] for name, group in groups.items()}
    assert dice == {"diabetic_retinopathy": 1, "glaucoma": 0, "healthy": 1}


def test_groups_of_fives_are_recognised(tmp_path: Path) -> None:
    names = ["1_A.png", "2_D.png", "3_N.png"]
    result = evaluate_masks(masks(tmp_path / "found", names), masks(tmp_path / "truth", names))
    assert list(result.groups) == ["age_related_macular_degeneration", "diabetic_retinopathy", "healthy"]


def test_groups_from_a_table(truth: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("name,group\na.jpg,old\nb,young\nz,old\n")
    result = evaluate_masks(masks(tmp_path / "found", ["a.png", "b.png"]), truth, groups=table)
    assert result.groups == {"old": [True, False], "young": [False, True]}
    assert [row["group"] for row in result.rows()] == ["old", "young"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_groups_as_spreadsheets_write_them(tmp_path: Path, separator: str) -> None:
    (tmp_path / "groups.csv").write_text(f"name{separator}group\n a.jpg {separator} old \nb{separator}young\n")
    assert read_groups(tmp_path / "groups.csv", ["a", "b"]) == {"a": "old", "b": "young"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,group\na,x\n", "groups.csv must have the columns name and group, got image, group"),
        ("name,group\na,x\n", "groups.csv names no group for b; add a row"),
        ("name,group\na,x\nb,\n", "groups.csv names no group for b; add a row"),
        ("name,group\na,x\nb,x\na.png,y\n", "groups.csv puts a in two groups; keep one"),
        ("", "groups.csv must have the columns name and group"),
    ],
)
def test_tables_of_groups_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_groups(tmp_path / "groups.csv", ["a", "b"])


# --- errors ----------------------------------------------------------------------------------------------------------


def test_nothing_pairs(truth: Path, tmp_path: Path) -> None:
    found = masks(tmp_path / "found", ["x.png"])
    with pytest.raises(ValueError, match=r"no file pairs by name: .*found has x, .*truth has a, b; name predictions"):
        evaluate_masks(found, truth)
    with pytest.raises(ValueError, match=r"no file pairs by name: .*found has x"):
        evaluate_masks(masks(tmp_path / "good", ["a.png"]), truth, second_observer=found)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing has no images"):
        evaluate_masks(tmp_path / "nothing", truth)


def test_the_output_of_segment_is_several_folders(truth: Path, tmp_path: Path) -> None:
    for folder in ("masks", "probabilities"):
        masks(tmp_path / "found" / folder, ["a.jpg.png"])
    with pytest.raises(ValueError, match=r"two files for 'a': .*; give a folder with one of them"):
        evaluate_masks(tmp_path / "found", truth)
    masks(tmp_path / "other" / "masks", ["x.jpg.png"])
    with pytest.raises(ValueError, match=r"give .*other/masks"):
        evaluate_masks(tmp_path / "other", truth)


def test_folders_that_are_none(truth: Path) -> None:
    with pytest.raises(ValueError, match=r"absent is not there; give a folder"):
        evaluate_masks(truth / "absent", truth)
    with pytest.raises(ValueError, match=r"a\.png is a file; give a folder"):
        evaluate_masks(truth / "a.png", truth)


def test_masks_are_not_compared_with_themselves(truth: Path) -> None:
    with pytest.raises(ValueError, match=r"a: .*a\.png would be compared with itself"):
        evaluate_masks(truth, truth)


def test_sizes_differ(truth: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "found" / "b.png", drawing()[:50])
    with pytest.raises(ValueError, match=r"b: prediction \(50, 80\), ground truth \(60, 80\).*found/b\.png, .*truth/b"):
        evaluate_masks(tmp_path / "found", truth)


def test_empty_ground_truth(tmp_path: Path) -> None:
    write_mask(tmp_path / "truth" / "a.png", np.zeros((60, 80), bool))
    found = masks(tmp_path / "found", ["a.png"])
    with pytest.raises(ValueError, match=r"a: the ground truth has no vessel pixel.*truth/a\.png"):
        evaluate_masks(found, tmp_path / "truth")


def test_inverted_ground_truth_is_refused_and_predictions_are_noted(truth: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_mask(tmp_path / "inverted" / name, ~drawing())
    with pytest.raises(
        ValueError, match=r"a: 93% of the field of view is vessel in the ground truth; is it inverted\?"
    ):
        evaluate_masks(truth, tmp_path / "inverted")
    notes = evaluate_masks(tmp_path / "inverted", truth).notes
    assert "more than half of the field of view is vessel in a, b: are they inverted?" in notes


def test_photographs_and_label_maps_are_no_masks(truth: Path, tmp_path: Path) -> None:
    eye = Image.fromarray(make_phantom((60, 80), seed=1).image)
    (tmp_path / "eyes").mkdir()
    for name in ("a.jpg", "b.jpg"):
        eye.save(tmp_path / "eyes" / name)
    for given in ((tmp_path / "eyes", truth), (truth, tmp_path / "eyes")):
        with pytest.raises(
            ValueError, match=r"a\.jpg: is this a photograph or an overlay\? \d+% of its pixels are neither"
        ):
            evaluate_masks(*given)
    classes = drawing().astype(np.uint8)
    classes[40] *= 2
    for name in ("a.png", "b.png"):
        (tmp_path / "classes").mkdir(exist_ok=True)
        Image.fromarray(classes).save(tmp_path / "classes" / name)
    with pytest.raises(
        ValueError, match=r"a\.png: is this a label map\? It has several values, none above 15; give masks"
    ):
        evaluate_masks(truth, tmp_path / "classes")


def test_a_photograph_is_missing(truth: Path, tmp_path: Path) -> None:
    found = masks(tmp_path / "found", ["a.png", "b.png"])
    with pytest.raises(ValueError, match="found2 holds no photograph of b; add them or leave the option out"):
        evaluate_masks(found, truth, photographs=masks(tmp_path / "found2", ["a.png"]))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes(truth: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        deep(tmp_path / "found" / f"{name}.jpg.png", scores(drawing(number), number))
    masks(tmp_path / "second", ["a.png", "b.png"], 1)
    (tmp_path / "groups.csv").write_text("name,group\na,old\nb,young\n")
    options = ("--second-observer", tmp_path / "second", "--groups", tmp_path / "groups.csv")
    code, printed = run(tmp_path / "found", truth, *options, "--output", tmp_path / "out")
    assert code == 0, printed
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    assert printed.startswith("2 images, probabilities, field of view whole frame\n")
    assert lines["ap"][1] == "1"
    assert "old (1)" in printed
    assert "young (1)" in printed
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["pooled"]["dice"] == {"value": 1, "low": 1, "high": 1}
    assert written["second_observer"]["per_image"]["dice"]["value"] == pytest.approx(2 * 280 / 700)
    assert written["groups"]["old"]["per_image"]["ap"] == {"value": 1, "low": None, "high": None}
    assert sum(row["pixels"] for row in written["calibration"]) == 2 * 60 * 80
    assert sum(row["vessel_share"] * row["pixels"] for row in written["calibration"] if row["pixels"]) == 700
    with open(tmp_path / "out" / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["masks"], row["name"], row["group"]) for row in rows] == [
        ("prediction", "a", "old"),
        ("prediction", "b", "young"),
        ("second_observer", "a", "old"),
        ("second_observer", "b", "young"),
    ]
    assert float(rows[0]["ap"]) == 1
    assert rows[2]["ap"] == ""
    with Image.open(tmp_path / "out" / "reliability.png") as picture:
        assert picture.size == (600, 780)


def test_all_files_or_none(truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep(tmp_path / "found" / "a.png", scores(drawing()))

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("reg4pru_monai.plots.save_reliability", fail)
    code, printed = run(tmp_path / "found", truth, "--output", tmp_path / "out")
    assert (code, printed) == (1, "error: no space left\n")
    assert not list((tmp_path / "out").iterdir())


def test_no_reliability_of_masks_and_no_earlier_one(truth: Path, tmp_path: Path) -> None:
    deep(tmp_path / "deep" / "a.png", scores(drawing()))
    assert run(tmp_path / "deep", truth, "--output", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "reliability.png").is_file()
    code, printed = run(masks(tmp_path / "found", ["a.png"]), truth, "--output", tmp_path / "out")
    assert code == 0
    assert "ece" not in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.json", "per_image.csv"]


def test_errors_of_the_command(truth: Path, tmp_path: Path) -> None:
    code, printed = run(tmp_path / "absent", truth)
    assert (code, printed) == (1, f"error: {tmp_path / 'absent'} is not there; give a folder of images\n")
    found = masks(tmp_path / "found", ["a.png"])
    code, printed = run(found, truth, "--output", found / "a.png")
    assert code == 1
    assert "a.png" in printed
    code, printed = run(found, truth, "--groups", tmp_path / "groups.csv")
    assert code == 1
    assert "groups.csv" in printed


def test_the_second_observer_of_chase(real_data: Path, tmp_path: Path) -> None:
    """Two eyes of one child: people agree on most vessels and on few thin ones."""
    chase = real_data / "CHASE_DB1"
    for eye in ("Image_11L", "Image_11R"):
        second = chase / "masks_2nd_observer" / f"{eye}_2ndHO.png"
        (tmp_path / "second").mkdir(exist_ok=True)
        (tmp_path / "second" / second.name).write_bytes(second.read_bytes())
    found = evaluate_masks(tmp_path / "second", chase / "masks", photographs=chase / "images").predictions.per_image()
    assert 0.7 < found["dice"]["value"] < 0.85
    plain_iou = found["dice"]["value"] / (2 - found["dice"]["value"])
    assert found["boundary_iou"]["value"] == pytest.approx(plain_iou, abs=0.01)
    assert found["thin_vessel_recall"]["value"] < found["sensitivity"]["value"]
