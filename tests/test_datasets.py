import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from reg4pru_monai.fundus.datasets import LAYOUTS, DatasetError, datalist, digest, find_samples, has_validation, split

LETTERS = "ADGN"
CHASE = [f"Image_{i:02d}{eye}" for i in range(1, 15) for eye in "LR"]
HRF = [f"{i:02d}_{group}" for i in range(1, 16) for group in ("h", "dr", "g")]
STARE = [f"im{i:04d}" for i in (1, 2, 3, 4, 5, 44, 77, 81, 82, 139)]


def write(root: Path, *paths: str) -> Path:
    """Tiny pictures, each with a colour of its own."""
    for i, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (i % 256, i // 256, 0)).save(file)
    return root


def plain(root: Path, *names: str) -> Path:
    return write(root, *(f"{folder}/{name}.png" for name in names for folder in ("images", "masks")))


def write_fives(root: Path) -> None:
    for part, count in (("train", 6), ("test", 2)):
        names = [f"{i}_{LETTERS[i % 4]}.png" for i in range(1, count + 1)]
        write(root, *(f"{part}/{folder}/{name}" for name in names for folder in ("Original", "Ground truth")))


def write_drive(root: Path) -> None:
    write(root, *(f"training/images/{i}_training.tif" for i in range(21, 26)))
    write(root, *(f"training/1st_manual/{i}_manual1.gif" for i in range(21, 26)))
    write(root, *(f"training/mask/{i}_training_mask.gif" for i in range(21, 26)))
    write(root, "test/images/01_test.tif", "test/1st_manual/01_manual1.gif", "test/2nd_manual/01_manual2.gif")


def write_stare(root: Path) -> None:
    write(root, *(f"stare-images/{name}.ppm" for name in STARE), *(f"labels-ah/{name}.ah.ppm" for name in STARE))
    write(root, *(f"labels-vk/{name}.vk.ppm" for name in STARE))


def write_stare_flat(root: Path) -> None:
    write(root, *(f"{name}{kind}.ppm" for name in STARE for kind in ("", ".ah", ".vk")))


def write_hrf(root: Path) -> None:
    write(root, *(f"images/{name}.{'JPG' if 'dr' in name else 'jpg'}" for name in HRF))
    write(root, *(f"manual1/{name}.tif" for name in HRF), *(f"mask/{name}_mask.tif" for name in HRF))


def write_hrf_masks(root: Path) -> None:
    write(root, *(f"images/{name}.jpg" for name in HRF), *(f"masks/{name}.tif" for name in HRF))


def write_chase_flat(root: Path) -> None:
    write(root, *(f"{name}{kind}" for name in CHASE for kind in (".jpg", "_1stHO.png", "_2ndHO.png")))


def write_chase(root: Path) -> None:
    write(root, *(f"images/{name}.jpg" for name in CHASE), *(f"masks/{name}_1stHO.png" for name in CHASE))
    write(root, *(f"masks/{name}_2ndHO.png" for name in CHASE[:3]))


def write_plain(root: Path) -> None:
    write(root, *(f"images/eye{i}.jpg" for i in range(8)), *(f"masks/eye{i}_mask.png" for i in range(8)))


def write_plain_labels(root: Path) -> None:
    write(root, *(f"images/eye{i}_vessels.jpg" for i in range(8)), *(f"labels/eye{i}_vessels.png" for i in range(8)))


EXAMPLES = [  # layout, writer, images in train (with validation) and test
    ("FIVES", write_fives, 6, 2),
    ("DRIVE", write_drive, 5, 1),
    ("STARE", write_stare, 8, 2),
    ("STARE", write_stare_flat, 8, 2),
    ("HRF", write_hrf, 15, 30),
    ("HRF", write_hrf_masks, 15, 30),
    ("CHASE_DB1", write_chase, 20, 8),
    ("CHASE_DB1", write_chase_flat, 20, 8),
    ("plain", write_plain, 6, 2),
    ("plain", write_plain_labels, 6, 2),
]


def subjects(root: Path, part: str) -> set[str]:
    return {entry["subject"] for entry in datalist(root, part)}


def test_every_layout_has_an_example() -> None:
    assert {layout.name for layout in LAYOUTS} == {name for name, *_ in EXAMPLES}


@pytest.mark.parametrize(("name", "writer", "train", "test"), EXAMPLES)
def test_layout(tmp_path, name, writer, train, test) -> None:
    root = tmp_path / "plain"
    writer(root)
    dataset = find_samples(root)
    assert (dataset.name, dataset.missing, dataset.orphans, dataset.unrecognised) == (name, {}, (), ())
    assert [len(split(dataset, part, 0)) for part in ("train", "test")] == [train, test]
    names = [sample.name for sample in dataset.samples]
    assert len(set(names)) == len(names) == train + test
    for sample in dataset.samples:  # the numbers and letters of an image stand in its mask's name
        assert sample.label is not None
        assert sample.label.stem.startswith(sample.image.stem.removesuffix("_training").removesuffix("_test"))
        assert sample.label != sample.image
    people = [subjects(root, part) for part in ("train", "validation", "test")]
    assert all(people)
    assert sum(map(len, people)) == len(set.union(*people)) == len({s.subject for s in dataset.samples})


def test_chase_eyes_of_one_child_stay_together(tmp_path) -> None:
    write_chase_flat(tmp_path)
    assert subjects(tmp_path, "test") == {"11", "12", "13", "14"}
    validation = datalist(tmp_path, "validation")
    assert len(validation) == 4
    assert len({entry["subject"] for entry in validation}) == 2
    assert all(Path(entry["label"]).name == f"{entry['name']}_1stHO.png" for entry in validation)


def test_hrf_groups_are_different_people(tmp_path) -> None:
    write_hrf(tmp_path)
    assert len(subjects(tmp_path, "train") | subjects(tmp_path, "validation")) == 15
    assert {entry["name"] for entry in datalist(tmp_path, "test")} == {n for n in HRF if int(n[:2]) > 5}


@pytest.mark.parametrize("writer", [write_chase, write_chase_flat])
def test_masks_of_a_second_observer_belong_to_their_image(tmp_path, writer) -> None:
    writer(tmp_path)
    found = {s.name: s.second_observer.name for s in find_samples(tmp_path).samples if s.second_observer}
    names = CHASE if writer is write_chase_flat else CHASE[:3]
    assert found == {name: f"{name}_2ndHO.png" for name in names}


def test_of_two_masks_of_a_second_observer_that_of_the_own_folder_is_taken(tmp_path) -> None:
    for number in range(8):  # as the order of a set changes with its names
        root = tmp_path / f"copy{number}"
        write_chase(root)
        write(root, f"masks_2nd_observer/{CHASE[0]}_2ndHO.png")
        (sample,) = (s for s in find_samples(root).samples if s.name == CHASE[0])
        assert sample.second_observer.parent.name == "masks_2nd_observer"


def test_photographs_without_masks_have_no_second_observer(tmp_path) -> None:
    write(tmp_path, "eye.png", "eye_manual2.png")
    samples = find_samples(tmp_path, require_labels=False).samples
    assert {sample.second_observer for sample in samples} == {None}


def test_a_second_observer_may_have_a_folder(tmp_path) -> None:
    write_chase(tmp_path)
    for file in (tmp_path / "masks").glob("*_2ndHO.png"):
        file.unlink()
    write(tmp_path, f"masks_2nd_observer/{CHASE[0]}_2ndHO.png")
    write_drive(tmp_path / "drive")
    (test,) = datalist(tmp_path / "drive", "test")
    key = Path(test["image"]).stem[:2]
    write(tmp_path / "drive", f"test/2nd_manual/{key}_manual2.gif")
    (sample,) = (s for s in find_samples(tmp_path).samples if s.second_observer)
    assert (sample.name, sample.second_observer.parent.name) == (CHASE[0], "masks_2nd_observer")
    (test,) = datalist(tmp_path / "drive", "test")
    assert Path(test["second_observer"]).name == f"{key}_manual2.gif"
    assert {entry["second_observer"] for entry in datalist(tmp_path / "drive", "train")} == {""}


def test_groups_are_told_by_names(tmp_path) -> None:
    write_hrf(tmp_path / "HRF")
    write_fives(tmp_path / "FIVES")
    write_plain(tmp_path / "plain")
    names = {"h": "healthy", "dr": "diabetic_retinopathy", "g": "glaucoma"}
    groups = {entry["name"]: entry["group"] for entry in datalist(tmp_path / "HRF", "test")}
    assert groups == {name: names[name[3:]] for name in HRF if int(name[:2]) > 5}
    fives = {entry["name"]: entry["group"] for entry in datalist(tmp_path / "FIVES", "test")}
    assert fives == {"test_1_D": "diabetic_retinopathy", "test_2_G": "glaucoma"}
    assert {entry["group"] for entry in datalist(tmp_path / "plain", "test")} == {""}


def test_a_digest_follows_a_file_that_changes(tmp_path) -> None:
    write_plain(tmp_path)
    before = digest(tmp_path)
    assert digest(tmp_path) == before
    (tmp_path / "images" / "eye0.jpg").write_bytes(b"something else")
    assert digest(tmp_path) != before


def test_fives_names_that_occur_in_both_parts(tmp_path) -> None:
    write_fives(tmp_path)
    assert {entry["name"] for entry in datalist(tmp_path, "test")} == {"test_1_D", "test_2_G"}
    assert {entry["subject"] for entry in datalist(tmp_path, "test")} == {"test_1_D", "test_2_G"}


def test_folder_names_in_another_case(tmp_path) -> None:
    write_fives(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "Ground truth").rename(tmp_path / part / "Ground Truth")
    assert len(datalist(tmp_path, "test")) == 2


def test_drive_trains_without_test_masks(tmp_path) -> None:
    write_drive(tmp_path)
    shutil.rmtree(tmp_path / "test" / "1st_manual")
    assert len(datalist(tmp_path, "train")) == 4
    with pytest.raises(DatasetError, match=r"01_test\.tif \(mask expected: .*1st_manual.01_manual1\.gif\)"):
        datalist(tmp_path, "test")


def test_one_half_of_drive_or_fives(tmp_path) -> None:
    write_drive(tmp_path / "drive")
    write_fives(tmp_path / "fives")
    assert find_samples(tmp_path / "drive" / "training").name == "DRIVE"
    assert find_samples(tmp_path / "fives" / "train").name == "FIVES"


def test_hidden_files_are_no_images(tmp_path) -> None:
    plain(tmp_path, "a", "b", "c")
    for name in ("images/._a.png", "masks/.DS_Store", "images/Thumbs.db"):
        (tmp_path / name).write_bytes(b"no image")
    assert [sample.name for sample in find_samples(tmp_path).samples] == ["a", "b", "c"]


def test_plain_eyes_of_one_person_stay_together(tmp_path) -> None:
    plain(tmp_path, *(f"p{i}_{eye}" for i in range(6) for eye in ("L", "R")))
    people = [subjects(tmp_path, part) for part in ("train", "validation", "test")]
    assert set.union(*people) == {f"p{i}" for i in range(6)}
    assert [len(p) for p in people] == [3, 1, 2]


# --- splits ----------------------------------------------------------------------------------------------------------


def test_splits_file(tmp_path) -> None:
    plain(tmp_path, "a", "b", "c", "d")
    splits = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    assert {part: [e["name"] for e in datalist(tmp_path, part)] for part in splits} == splits


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a"], "test": ["b"]}, "in the folder but in no part: c;"),
        ({"train": ["a", "b", "c"], "test": ["x"]}, "in a part but not in the folder: x;"),
        ({"train": ["a", "b", "c"], "test": ["a"]}, "in two parts: a;"),
        ({"train": ["a", "b", "c"], "tset": []}, "unknown part .*: tset;"),
        (["a"], "is not JSON of the form"),
    ],
)
def test_splits_file_errors(tmp_path, splits, message) -> None:
    plain(tmp_path, "a", "b", "c")
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(DatasetError, match=rf"splits\.json: {message}"):
        datalist(tmp_path, "train")


def test_splits_file_that_is_no_json(tmp_path) -> None:
    plain(tmp_path, "a", "b")
    (tmp_path / "splits.json").write_text("{train")
    with pytest.raises(DatasetError, match="is not JSON"):
        datalist(tmp_path, "train")


def test_subjects_file(tmp_path) -> None:
    plain(tmp_path, "a", "b", "c", "d")
    (tmp_path / "subjects.csv").write_text("name,subject\na,anna\nb,anna\nc,berta\nd,carla\n")
    assert {s.name: s.subject for s in find_samples(tmp_path).samples} == {
        "a": "anna",
        "b": "anna",
        "c": "berta",
        "d": "carla",
    }
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a", "c"], "test": ["b", "d"]}))
    with pytest.raises(DatasetError, match=r"subject\(s\) in more than one part: anna"):
        datalist(tmp_path, "train")
    (tmp_path / "subjects.csv").write_text("image,subject\na,anna\n")
    with pytest.raises(DatasetError, match=r"subjects\.csv: needs the columns name and subject, got \['image'"):
        datalist(tmp_path, "train")


def test_validation_depends_on_seed_and_fraction_alone(tmp_path) -> None:
    dataset = find_samples(plain(tmp_path, *(f"eye{i:02d}" for i in range(40))))
    train = {s.name for s in split(dataset, "train", 0)}
    assert len(train) == 30
    draws = [{s.name for s in split(dataset, "validation", 0.2, seed)} for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert [len(draw) for draw in draws] == [6, 6, 6]
    assert all(draw < train for draw in draws)
    assert len(split(dataset, "validation", 0.001)) == 1
    assert {s.name for s in split(dataset, "train", 0.2)} == train - draws[0]


def test_split_is_the_same_wherever_the_folder_lies(tmp_path) -> None:
    names = [f"eye{i:02d}" for i in range(12)]
    roots = [plain(tmp_path / where / "data", *names) for where in ("here", "there")]
    first, second = ([e["name"] for e in datalist(root, "test")] for root in roots)
    assert first == second


# --- several data sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ", ", os.pathsep, None])
def test_several_data_sets(tmp_path, separator) -> None:
    write_chase(tmp_path / "c")
    write_hrf(tmp_path / "h")
    folders = [str(tmp_path / "c"), str(tmp_path / "h")]
    both = folders if separator is None else separator.join(folders)
    assert find_samples(both).name == "CHASE_DB1+HRF"
    assert [len(datalist(both, part)) for part in ("train", "validation", "test")] == [16 + 12, 4 + 3, 8 + 30]
    names = {entry["name"] for entry in datalist(both, "test")}
    assert {"CHASE_DB1-Image_11L", "HRF-06_h"} < names
    assert digest(both) == digest(find_samples(both))


def test_folder_with_a_comma_in_its_name(tmp_path) -> None:
    assert len(find_samples(plain(tmp_path / "eyes, 2024", "a", "b")).samples) == 2


def test_two_data_sets_of_one_name(tmp_path) -> None:
    folders = [plain(tmp_path / where / "data", "a", "b") for where in ("x", "y")]
    with pytest.raises(DatasetError, match=r"two folders hold a data set called 'data': .*rename or leave out one"):
        find_samples(folders)


def test_folder_of_several_data_sets(tmp_path) -> None:
    write_chase(tmp_path / "CHASE_DB1")
    write_hrf(tmp_path / "HRF")
    with pytest.raises(DatasetError, match=r"is not itself a data set, but holds 2: give .*CHASE_DB1 or .*HRF"):
        datalist(tmp_path, "train")


# --- what can be wrong -----------------------------------------------------------------------------------------------


def test_folder_is_missing(tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"dataset_dir .*nowhere does not exist .*give the folder of a data set"):
        datalist(tmp_path / "nowhere", "train")
    with pytest.raises(DatasetError, match="dataset_dir is empty"):
        datalist([], "train")


def test_folder_is_a_file(tmp_path) -> None:
    write(tmp_path, "a.png")
    with pytest.raises(DatasetError, match=r"a\.png is a file, not a folder"):
        datalist(tmp_path / "a.png", "train")


def test_folder_is_empty(tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"is an empty folder.*known layouts: FIVES, "):
        datalist(tmp_path, "train")


def test_folder_of_something_else(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(DatasetError, match=r"is not a data set: found notes\.txt"):
        datalist(tmp_path, "train")


def test_compressed_files(tmp_path) -> None:
    (tmp_path / "stare-images").mkdir()
    (tmp_path / "stare-images" / "im0001.ppm.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="holds compressed files and no data set; decompress them first"):
        datalist(tmp_path, "train")


@pytest.mark.parametrize("folder", ["images/", ""])
def test_no_masks_at_all(tmp_path, folder) -> None:
    write(tmp_path, f"{folder}a.png", f"{folder}b.png")
    with pytest.raises(DatasetError, match=r"holds 2 image\(s\) but no masks; put the masks in .*masks"):
        datalist(tmp_path, "train")
    samples = find_samples(tmp_path, require_labels=False).samples
    assert [(s.name, s.label) for s in samples] == [("a", None), ("b", None)]


def test_image_without_mask(tmp_path) -> None:
    plain(tmp_path, *(f"eye{i:02d}" for i in range(30)))
    (tmp_path / "splits.json").write_text(
        json.dumps({"train": [f"eye{i:02d}" for i in range(20)], "test": [f"eye{i}" for i in range(20, 30)]})
    )
    for i in range(12):
        (tmp_path / "masks" / f"eye{i:02d}.png").rename(tmp_path / "masks" / f"typo{i:02d}.png")
    message = r"12 image\(s\) without a mask: .*eye00\.png \(mask expected: .*masks.eye00\.png or eye00_mask\.png\)"
    with pytest.raises(DatasetError, match=message + r".* and 2 more; masks that belong to no image: .*typo00\.png"):
        datalist(tmp_path, "train", validation_fraction=0)
    assert len(datalist(tmp_path, "test")) == 10
    assert len(find_samples(tmp_path).missing) == 12


def test_mask_without_image_is_a_warning(tmp_path, caplog) -> None:
    plain(tmp_path, "a", "b", "c")
    write(tmp_path, "masks/z.png")
    with caplog.at_level(logging.WARNING):
        dataset = find_samples(tmp_path)
    assert [path.name for path in dataset.orphans] == ["z.png"]
    assert "1 mask(s) belong to no image" in caplog.text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("masks/a_mask.png", r"two masks for image .*a\.png: .*"),
        ("masks/a.gif", r"two masks for image .*a\.png: .*"),
        ("images/a.jpg", r"two images share one name: .*"),
    ],
)
def test_ambiguous_pairs(tmp_path, extra, message) -> None:
    write(plain(tmp_path, "a", "b"), extra)
    with pytest.raises(DatasetError, match=message):
        find_samples(tmp_path)


def test_foreign_images_among_those_of_a_data_set(tmp_path) -> None:
    write_chase(tmp_path)
    write(tmp_path, "images/holiday.jpg")
    with pytest.raises(DatasetError, match=r"CHASE_DB1: 1 image\(s\) not named as in this data set: .*holiday\.jpg"):
        datalist(tmp_path, "train")


def test_unknown_part_and_bad_fraction(tmp_path) -> None:
    plain(tmp_path, "a", "b", "c")
    with pytest.raises(DatasetError, match="unknown part 'tset': choose from train, validation, test, all"):
        datalist(tmp_path, "tset")
    with pytest.raises(DatasetError, match=r"validation_fraction must be in \[0, 1\), got 1"):
        datalist(tmp_path, "train", validation_fraction=1)


def test_nothing_validates_with_fraction_0_unless_the_data_set_says_so(tmp_path) -> None:
    dataset = find_samples(plain(tmp_path, *(f"eye{i:02d}" for i in range(12))))
    assert has_validation(dataset, 0.2)
    assert not has_validation(dataset, 0)
    stated = {part: [s.name for s in dataset.samples[i::3]] for i, part in enumerate(("train", "validation", "test"))}
    (tmp_path / "splits.json").write_text(json.dumps(stated))
    assert has_validation(find_samples(tmp_path), 0)
    assert len(datalist(tmp_path, "validation", validation_fraction=0)) == 4


def test_all_parts_at_once(tmp_path) -> None:
    write_chase(tmp_path)
    parts = [datalist(tmp_path, part) for part in ("train", "validation", "test")]
    assert all(parts)
    every = datalist(tmp_path, "all")
    assert sorted(entry["name"] for entry in every) == sorted(entry["name"] for part in parts for entry in part)


def test_empty_part(tmp_path) -> None:
    plain(tmp_path, "a")
    with pytest.raises(DatasetError, match=r"the test part is empty \(1 images in all\)"):
        datalist(tmp_path, "test")
    with pytest.raises(DatasetError, match="the train part is empty"):
        datalist(tmp_path, "train")
    assert [e["name"] for e in datalist(tmp_path, "train", validation_fraction=0)] == ["a"]


# --- digest ----------------------------------------------------------------------------------------------------------


def test_digest_follows_names_and_contents_and_nothing_else(tmp_path) -> None:
    here, there = plain(tmp_path / "x" / "d", "a", "b"), plain(tmp_path / "y" / "d", "a", "b")
    same = digest(here)
    assert len(same) == 64
    assert digest(there) == digest(find_samples(there).samples[::-1]) == same
    mask = there / "masks" / "b.png"
    Image.new("L", (2, 2), 77).save(mask)
    changed = digest(there)
    assert changed != same
    for folder in ("images", "masks"):
        (here / folder / "b.png").rename(here / folder / "c.png")
    assert digest(here) not in (same, changed)


# --- real photographs ------------------------------------------------------------------------------------------------


def test_chase_on_disk(real_data) -> None:
    root = real_data / "CHASE_DB1"
    assert len(find_samples(root).samples) == 28
    assert [len(datalist(root, part, 0)) for part in ("train", "test")] == [20, 8]
    people = [subjects(root, part) for part in ("train", "validation", "test")]
    assert [len(p) for p in people] == [8, 2, 4]
    assert len(set.union(*people)) == 14


def test_hrf_on_disk(real_data) -> None:
    root = real_data / "HRF"
    dataset = find_samples(root)
    assert (len(dataset.samples), dataset.missing, dataset.orphans) == (42, {}, ())
    assert [len(datalist(root, part, 0)) for part in ("train", "test")] == [15, 27]


def test_both_on_disk(real_data) -> None:
    with pytest.raises(DatasetError, match=r"CHASE_DB1 or .*HRF"):
        datalist(real_data, "train")
    both = [real_data / "CHASE_DB1", real_data / "HRF"]
    assert len(datalist(both, "test")) == 35
