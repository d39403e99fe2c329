import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score

from reg4pru_monai.fundus import phantom as module
from reg4pru_monai.fundus.datasets import DatasetError, datalist, digest
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.fundus.phantom import Phantom, make_phantom, write_phantoms
from reg4pru_monai.fundus.phantom_painting import draw_vessels, make_canvas
from reg4pru_monai.fundus.vessel_tree import ARTERY, SMALLEST_RADIUS, VEIN, Vessel, grow_vessels, random_anatomy

SEEDS = range(8)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(384, seed) for seed in SEEDS]


def tree(seed: int) -> list[Vessel]:
    rng = np.random.default_rng(seed)
    return grow_vessels(random_anatomy(rng), rng)


def ring(mask: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """Background close to vessels."""
    near = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(mask, iterations=2)
    return near & ndimage.binary_erosion(fov, iterations=6)


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, (96, 160), (160, 96), 200])
def test_shapes_and_types(size) -> None:
    shape = (size, size) if isinstance(size, int) else size
    made = make_phantom(size, 3)
    assert (made.image.shape, made.image.dtype) == ((*shape, 3), np.uint8)
    assert (made.mask.shape, made.mask.dtype, made.fov.shape, made.fov.dtype) == (shape, bool, shape, bool)
    assert made.mask.any()
    assert not (made.mask & ~made.fov).any()


def test_same_seed_same_picture() -> None:
    first, again, other = make_phantom(96, 5), make_phantom(96, 5), make_phantom(96, 6)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.mask, other.mask)


def test_same_seed_is_the_same_eye_at_every_resolution() -> None:
    small, large = make_phantom(256, 4), make_phantom(512, 4)
    assert (large.fov[::2, ::2] == small.fov).mean() > 0.99
    halved = large.mask.reshape(256, 2, 256, 2).mean((1, 3))
    assert np.corrcoef(halved.ravel(), small.mask.ravel())[0, 1] > 0.85
    inside = ndimage.binary_erosion(small.fov, iterations=4)
    halved_image = large.image.astype(float).reshape(256, 2, 256, 2, 3).mean((1, 3))
    for channel in range(3):
        smooth = [ndimage.gaussian_filter(i[..., channel].astype(float), 2) for i in (halved_image, small.image)]
        assert np.corrcoef(*(plane[inside] for plane in smooth))[0, 1] > 0.95


def test_field_of_view_is_a_bright_disc_on_black(phantoms) -> None:
    for made in phantoms:
        rows, cols = np.nonzero(made.fov)
        diameter = np.ptp(rows) + 1
        assert 0.9 * 384 <= diameter <= 0.99 * 384
        assert abs(diameter - np.ptp(cols) - 1) <= 1
        assert made.fov.sum() == pytest.approx(math.pi * diameter**2 / 4, rel=0.02)
        outside = ~ndimage.binary_dilation(made.fov, iterations=4)
        assert made.image[outside].max() < 20
        red, green, blue = made.image[ndimage.binary_erosion(made.fov, iterations=4)].mean(0)
        assert red > 1.5 * green > 1.5 * blue > 0


def test_left_and_right_eyes(phantoms) -> None:
    """The optic disc is the brightest spot of green light; it lies on either side."""
    sides = set()
    for made in phantoms:
        green = ndimage.gaussian_filter(made.image[..., 1].astype(float), 8)
        sides.add(bool(np.unravel_index(green.argmax(), green.shape)[1] > 192))
    assert sides == {True, False}


def test_colours_vary(phantoms) -> None:
    means = np.array([made.image[made.fov].mean(0) for made in phantoms])
    assert (means.std(0) > (5, 5, 3)).all()


def test_vessels_fill_about_a_tenth(phantoms) -> None:
    fractions = [made.mask.sum() / made.fov.sum() for made in phantoms]
    assert min(fractions) > 0.07
    assert max(fractions) < 0.17
    assert 0.09 < np.mean(fractions) < 0.14


def test_vessels_are_darker_in_green_than_their_surroundings(phantoms) -> None:
    for made in phantoms:
        green = made.image[..., 1].astype(float)
        around = green[ring(made.mask, made.fov)].mean()
        assert 0.03 < 1 - green[made.mask].mean() / around < 0.3


def test_mask_fits_its_own_picture_better_than_a_moved_one(phantoms) -> None:
    for made in phantoms:
        green = ndimage.gaussian_filter(made.image[..., 1].astype(float), 0.7)
        inside = ndimage.binary_erosion(made.fov, iterations=12)
        moves = [(0, 0), (0, 3), (3, 0), (0, -3), (-3, 0)]
        means = [green[np.roll(made.mask, move, (0, 1)) & inside].mean() for move in moves]
        assert min(means) == means[0]


def test_it_is_not_solved_by_a_trivial_detector(phantoms) -> None:
    truth, score = [], []
    for made in phantoms:
        green = made.image[..., 1].astype(float)
        darkness = ndimage.gaussian_filter(green, 6) - ndimage.gaussian_filter(green, 0.5)
        truth.append(made.mask[made.fov])
        score.append(darkness[made.fov])
    precision = average_precision_score(np.concatenate(truth), np.concatenate(score))
    assert 0.4 < precision < 0.8


def test_contrast_grows_with_width() -> None:
    """Wide vessels absorb more: the pixels deepest inside the mask are the darkest against their surroundings."""
    made = make_phantom(768, 1)
    green = made.image[..., 1].astype(float)
    relative = green / ndimage.median_filter(ndimage.zoom(green, 0.25, order=1), 25).repeat(4, 0).repeat(4, 1)
    depth = ndimage.distance_transform_edt(made.mask)
    inside = ndimage.binary_erosion(made.fov, iterations=30)
    core = ndimage.maximum_filter(depth, 9)
    thin, wide = (relative[made.mask & inside & (core > low) & (core <= high)].mean() for low, high in ((0, 2), (3, 9)))
    assert wide < thin - 0.04
    assert thin < 1


@pytest.mark.parametrize("size", [16, (512, 8)])
def test_too_small(size) -> None:
    with pytest.raises(ValueError, match="size must be at least 32 pixels"):
        make_phantom(size)


def test_negative_seed() -> None:
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        make_phantom(64, -1)


# --- the vessels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_murray_law_at_every_bifurcation(seed) -> None:
    vessels = tree(seed)
    forks = 0
    for index, vessel in enumerate(vessels):
        children = [v.radius for v in vessels if v.parent == index]
        if len(children) == 2:
            forks += 1
            assert sum(r**3 for r in children) == pytest.approx(vessel.radius**3)
        else:  # a child that is too thin, or outside the field of view, is not drawn
            assert sum(r**3 for r in children) < vessel.radius**3
    assert forks > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_tree_is_connected_and_ordered(seed) -> None:
    for index, vessel in enumerate(vessels := tree(seed)):
        assert vessel.radius >= SMALLEST_RADIUS
        if vessel.parent is not None:
            parent = vessels[vessel.parent]
            assert vessel.parent < index
            assert vessel.kind == parent.kind
            assert np.array_equal(parent.points[-1], vessel.points[0])


def test_all_vessels_leave_the_optic_disc() -> None:
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        anatomy = random_anatomy(rng)
        for vessel in grow_vessels(anatomy, rng):
            if vessel.parent is None:
                assert math.dist(vessel.points[0], anatomy.disc) < anatomy.disc_radius


def test_macula_lies_two_and_a_half_disc_diameters_from_the_disc() -> None:
    for seed in SEEDS:
        anatomy = random_anatomy(np.random.default_rng(seed))
        assert 2.2 < math.dist(anatomy.disc, anatomy.fovea) / (2 * anatomy.disc_radius) < 2.8
        assert anatomy.fovea[0] < anatomy.disc[0]


def test_veins_are_wider_than_arteries() -> None:
    widest = {
        kind: np.mean([max(v.radius for v in tree(s) if v.kind == kind) for s in SEEDS]) for kind in (ARTERY, VEIN)
    }
    assert 1.15 < widest[VEIN] / widest[ARTERY] < 1.6


def test_widths_reach_from_several_pixels_to_less_than_one() -> None:
    widths = 2 * 256 * np.array([v.radius for v in tree(0)])  # in a picture of 512 pixels
    assert widths.max() > 5
    assert widths.min() < 1.5


@pytest.mark.parametrize("mirrored_seed", [0, 1, 2, 3])
@pytest.mark.parametrize(("radius", "angle"), [(0.03, 0.0), (0.03, 0.4), (0.05, 1.1), (0.004, 0.0)])
def test_coverage_is_the_area_of_the_vessel(mirrored_seed, radius, angle) -> None:
    """A straight capsule of known area: also one thinner than a pixel."""
    canvas = make_canvas(256, 256, np.random.default_rng(mirrored_seed))
    points = np.outer(np.linspace(-0.5, 0.5, 9), (math.cos(angle), math.sin(angle)))
    offside = np.array([[0.0, 0.9], [0.01, 0.9]])
    vessels = [Vessel(VEIN, points, radius, None), Vessel(ARTERY, offside, 0.01, None)]
    layer = draw_vessels(vessels, canvas)[VEIN]
    area = (2 * radius + math.pi * radius**2) * canvas.radius**2
    assert layer.coverage.sum() == pytest.approx(area, rel=0.03)
    assert layer.coverage.max() <= 1
    centre = np.average(np.argwhere(layer.coverage > 0) + 0.5, axis=0, weights=layer.coverage[layer.coverage > 0])
    assert centre == pytest.approx(canvas.pixels(np.zeros((1, 2)))[0], abs=0.1)


# --- sets of phantoms ------------------------------------------------------------------------------------------------


@pytest.fixture
def few() -> dict[str, int]:
    return {"train": 4, "test": 2, "size": 48, "seed": 1}


def times(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.*")}


def test_written_set_is_read_by_the_loader(tmp_path, few) -> None:
    folder = write_phantoms(tmp_path / "a" / "set", **few)
    parts = {part: [e["name"] for e in datalist(folder, part)] for part in ("train", "validation", "test")}
    assert parts["test"] == ["phantom_004", "phantom_005"]
    assert sorted(parts["train"] + parts["validation"]) == [f"phantom_{i:03d}" for i in range(4)]
    entry = datalist(folder, "test")[0]
    made = make_phantom(48, 1 * 100_003 + 4)
    assert np.array_equal(read_image(entry["image"]), made.image)
    assert np.array_equal(read_mask(entry["label"]), made.mask)


def test_finished_set_is_not_written_again(tmp_path, few) -> None:
    before = times(write_phantoms(tmp_path / "set", **few))
    assert times(write_phantoms(tmp_path / "set", **few)) == before
    assert len(before) == 2 * 6 + 2


def test_same_parameters_same_files(tmp_path, few) -> None:
    first, second = (digest(write_phantoms(tmp_path / name, **few)) for name in ("x", "y"))
    other = digest(write_phantoms(tmp_path / "z", **{**few, "seed": 2}))
    assert first == second != other


def test_interrupted_set_is_completed(tmp_path, few, monkeypatch) -> None:
    finished = digest(write_phantoms(tmp_path / "whole", **few))
    seeds = []

    def stop_at_third(size, seed) -> Phantom:
        seeds.append(seed)
        if len(seeds) == 3:
            raise KeyboardInterrupt
        return make_phantom(size, seed)

    with monkeypatch.context() as patched:
        patched.setattr(module, "make_phantom", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            write_phantoms(tmp_path / "set", **few)
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2
    assert digest(write_phantoms(tmp_path / "set", **few)) == finished


def test_missing_file_is_written_again(tmp_path, few) -> None:
    folder = write_phantoms(tmp_path / "set", **few)
    before = digest(folder)
    (folder / "masks" / "phantom_002.png").unlink()
    (folder / "splits.json").unlink()
    assert digest(write_phantoms(folder, **few)) == before
    assert len(datalist(folder, "test")) == 2


def test_set_of_an_older_version_is_written_again(tmp_path, few, monkeypatch) -> None:
    folder = write_phantoms(tmp_path / "set", **few)
    before = times(folder)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    after = times(write_phantoms(folder, **few))
    assert after.keys() == before.keys()
    assert all(after[file] > before[file] for file in before)


def test_nothing_half_written_is_left_when_the_disk_is_full(tmp_path, few, monkeypatch) -> None:
    def full(self, *args, **kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_phantoms(tmp_path / "set", **few)
    assert [file.name for file in (tmp_path / "set").rglob("*") if file.is_file()] == ["phantoms.json"]


def test_foreign_files_are_never_touched(tmp_path, few) -> None:
    photograph = tmp_path / "images" / "phantom_000.png"
    photograph.parent.mkdir()
    photograph.write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"holds other files \(images, phantom_000\.png\); choose an empty folder"):
        write_phantoms(tmp_path, **few)
    assert photograph.read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["images"]


def test_foreign_file_among_phantoms(tmp_path, few) -> None:
    folder = write_phantoms(tmp_path / "set", **few)
    (folder / "images" / "mine.png").write_bytes(b"mine")
    (folder / "masks" / "phantom_001.png").unlink()
    with pytest.raises(DatasetError, match=r"holds files that are no phantoms: images/mine\.png; move them"):
        write_phantoms(folder, **few)
    assert (folder / "images" / "mine.png").read_bytes() == b"mine"


def test_other_parameters_in_the_folder(tmp_path, few) -> None:
    folder = write_phantoms(tmp_path / "set", **few)
    before = times(folder)
    with pytest.raises(DatasetError, match=r"holds phantoms with other parameters .*'seed': 1.*choose another folder"):
        write_phantoms(folder, **{**few, "seed": 2})
    assert times(folder) == before


def test_parameters_are_written_down(tmp_path, few) -> None:
    folder = write_phantoms(tmp_path / "set", **{**few, "size": (40, 56)})
    expected = {"train": 4, "test": 2, "size": [40, 56], "seed": 1, "version": module.VERSION, "complete": True}
    assert json.loads((folder / "phantoms.json").read_text()) == expected
    assert read_mask(folder / "masks" / "phantom_000.png").shape == (40, 56)


def test_folder_is_a_file(tmp_path, few) -> None:
    (tmp_path / "set").write_text("a file")
    with pytest.raises(DatasetError, match="is a file; give another folder for the phantoms"):
        write_phantoms(tmp_path / "set", **few)


def test_too_few() -> None:
    with pytest.raises(ValueError, match="needs train >= 2 and test >= 0, got train=1, test=0"):
        write_phantoms("never", train=1, test=0)
    assert not Path("never").exists()
