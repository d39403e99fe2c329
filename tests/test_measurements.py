from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from reg4pru_monai.batch.measurements import COLUMNS, measure_vessels
from reg4pru_monai.fundus import FieldOfView, detect_fov
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.fundus.phantom import Phantom, make_phantom

SIZE = 600
CENTRE = np.array([299.6, 300.2])
DEGREES = [0, 3, 10, 22.5, 30, 45, 67.5, 88, 90, 113, 135, 160]


def _full(height: int, width: int) -> FieldOfView:
    """No disc: the whole frame is visible."""
    center = ((height - 1) / 2, (width - 1) / 2)
    return FieldOfView((height, width), center, float(np.hypot(height, width)), (0, 0, height, width), 0.0, True)


def _square(mask: np.ndarray) -> tuple[np.ndarray, FieldOfView]:
    """A square mask, and a field of view whose diameter is its side."""
    side = len(mask)
    return mask, FieldOfView((side, side), ((side - 1) / 2,) * 2, float(side), (0, 0, side, side), 0.0, True)


def _measure(mask: np.ndarray) -> dict[str, float]:
    return measure_vessels(mask, _full(*mask.shape))


def _bar(degrees: float, length: float, width: float, centre: np.ndarray = CENTRE) -> np.ndarray:
    """A straight bar with square ends, (SIZE, SIZE) bool."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - centre[:, None, None]
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (np.abs(columns * cos + rows * sin) <= length / 2) & (np.abs(rows * cos - columns * sin) <= width / 2)


def _star(degrees: list[float], length: float, width: float) -> np.ndarray:
    """Bars that start in one point."""
    arms = []
    for degree in degrees:
        along = length / 2 * np.array([np.sin(np.deg2rad(degree)), np.cos(np.deg2rad(degree))])
        arms.append(_bar(degree, length, width, CENTRE + along))
    return np.any(arms, axis=0)


def _ring(radius: float, width: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] - CENTRE[:, None, None]
    return np.abs(np.hypot(rows, columns) - radius) <= width / 2


@pytest.fixture(scope="module", params=[0, 1])
def eye(request: pytest.FixtureRequest) -> Phantom:
    return make_phantom(512, request.param)


@pytest.fixture(scope="module")
def phantom(eye: Phantom) -> tuple[np.ndarray, FieldOfView]:
    rows, cols = np.flatnonzero(eye.fov.any(axis=1)), np.flatnonzero(eye.fov.any(axis=0))
    box = (int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
    return eye.mask, FieldOfView(eye.fov.shape, eye.center, eye.diameter, box, 1.0, False)


# --- shapes with known answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("degrees", DEGREES)
def test_bars(degrees, width):
    mask = _bar(degrees, 400, width)
    found = _measure(mask)
    assert found["mean_width_px"] == pytest.approx(mask.sum() / 400, rel=0.01)  # pixels round the width of a bar
    assert 400 - width - 3 < found["skeleton_length_px"] < 401  # ends half a width early, or in a corner
    assert 1 - 1e-9 < found["tortuosity"] < 1.01
    assert found["branch_count"] == 1
    assert found["branch_point_count"] == 0


@pytest.mark.parametrize("degrees", DEGREES)
def test_thin_lines(degrees):
    found = _measure(_bar(degrees, 400, 1.5))
    assert 1 - 1e-9 < found["tortuosity"] < 1.002  # steps from pixel to pixel give 1.08 at 22.5°
    assert found["fractal_dimension"] == pytest.approx(1, abs=0.07)


def test_one_pixel_wide():
    mask = np.zeros((50, 90), bool)
    mask[20, 10:70] = True
    found = _measure(mask)
    assert found["skeleton_length_px"] == pytest.approx(59)  # from the first to the last pixel's centre
    assert found["mean_width_px"] == pytest.approx(1)
    assert found["tortuosity"] == pytest.approx(1)


@pytest.mark.parametrize(("radius", "width"), [(40, 3), (100, 5), (100, 12), (200, 20)])
def test_rings(radius, width):
    found = _measure(_ring(radius, width))
    assert found["skeleton_length_px"] == pytest.approx(2 * np.pi * radius, rel=0.005)
    assert found["mean_width_px"] == pytest.approx(width, rel=0.01)
    assert found["branch_count"] == 1
    assert found["branch_point_count"] == 0
    assert found["tortuosity"] is None


@pytest.mark.parametrize("radius", [5, 20, 80, 250])
def test_discs(radius):
    found = _measure(_ring(0, 2 * radius))
    assert found["mean_width_px"] == pytest.approx(np.pi / 4 * 2 * radius, rel=0.05)  # the mean chord
    assert found["branch_count"] == found["branch_point_count"] == 0


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 200])
def test_a_semicircle(degrees):
    rows, columns = np.mgrid[:SIZE, :SIZE] - CENTRE[:, None, None]
    angle = np.deg2rad(degrees)
    found = _measure(_ring(200, 3) & (rows * np.cos(angle) > columns * np.sin(angle)))
    assert found["tortuosity"] == pytest.approx(np.pi / 2, rel=0.01)
    assert found["branch_count"] == 1


@pytest.mark.parametrize("width", [3, 5, 9])
@pytest.mark.parametrize("turn", [0, 15, 30, 45, 80])
@pytest.mark.parametrize("arms", [[0, 90, 180], [0, 120, 240], [0, 60, 180, 240], [0, 90, 180, 270]], ids="TYXx")
def test_branching(arms, turn, width):
    found = _measure(_star([arm + turn for arm in arms], 200, width))
    assert found["branch_count"] == len(arms)
    assert found["branch_point_count"] == 1
    assert found["mean_width_px"] == pytest.approx(width, rel=0.05, abs=0.2)
    assert found["skeleton_length_px"] == pytest.approx(200 * len(arms), rel=0.04)
    assert found["tortuosity"] == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("arm", [3, 50])
def test_spurs_are_no_branches(arm):
    mask = _bar(0, 400, 7)
    top = np.flatnonzero(mask[:, 300])[0]
    mask[top - arm : top, 299:302] = True
    found = _measure(mask)
    assert (found["branch_count"], found["branch_point_count"]) == ((1, 0) if arm == 3 else (3, 1))
    assert found["skeleton_length_px"] == pytest.approx(393 if arm == 3 else 446, abs=4)


def test_vessels_that_zhang_and_suen_lose():
    mask = _bar(45, 400, 9, np.array([300.211, 299.637]))
    assert skeletonize(mask).sum() < 10
    assert _measure(mask)["skeleton_length_px"] == pytest.approx(391, abs=4)


def _sierpinski_triangle(order: int) -> np.ndarray:
    numbers = np.arange(2**order)
    return (numbers[:, None] & numbers) == 0


def _sierpinski_carpet(order: int) -> np.ndarray:
    mask = np.ones((1, 1), bool)
    for _ in range(order):
        mask = np.kron([[1, 1, 1], [1, 0, 1], [1, 1, 1]], mask).astype(bool)
    return mask


@pytest.mark.parametrize("margin", [0, 30, 55])
@pytest.mark.parametrize(
    ("mask", "dimension"),
    [
        (np.ones((256, 256), bool), 2),
        (_sierpinski_triangle(8), np.log2(3)),
        (_sierpinski_carpet(5), np.log(8) / np.log(3)),
    ],
    ids=["square", "triangle", "carpet"],
)
def test_fractal_dimension(mask, dimension, margin):
    found = measure_vessels(*_square(np.pad(mask, margin)))["fractal_dimension"]
    assert found == pytest.approx(dimension, abs=0.07)
    if margin == 0:  # the boxes fit
        assert found == pytest.approx(dimension, abs=0.02)


def test_area_is_of_the_visible_field_of_view():
    disc = FieldOfView((200, 200), (99.5, 99.5), 200.0, (0, 0, 200, 100), 1.0, False)
    mask = np.zeros((200, 200), bool)
    mask[80:120, 90:130] = True
    found = measure_vessels(mask, disc)
    assert found["vessel_area_fraction"] == pytest.approx(400 / (np.pi * 100**2 / 2), rel=0.001)


# --- units -----------------------------------------------------------------------------------------------------------


def test_units(phantom):
    mask, fov = phantom
    plain, scaled = measure_vessels(mask, fov), measure_vessels(mask, fov, 0.02)
    for name in ("skeleton_length", "mean_width"):
        assert plain[f"{name}_fov"] == pytest.approx(plain[f"{name}_px"] / fov.diameter)
        assert scaled[f"{name}_mm"] == pytest.approx(plain[f"{name}_px"] * 0.02)
        assert plain[f"{name}_mm"] is None
    density = plain["skeleton_length_px"] / fov.mask.sum()
    assert plain["skeleton_density_per_px"] == pytest.approx(density)
    assert plain["skeleton_density_per_fov"] == pytest.approx(density * fov.diameter)
    assert plain["skeleton_density_per_mm"] is None
    assert scaled["skeleton_density_per_mm"] == pytest.approx(density / 0.02)
    assert {k: v for k, v in scaled.items() if not k.endswith("_mm")} == {
        k: v for k, v in plain.items() if not k.endswith("_mm")
    }


# --- laws ------------------------------------------------------------------------------------------------------------


def _close(one: dict[str, float], two: dict[str, float], tolerance: float, branches: float) -> None:
    """Assert equal measurements; those that count branches may differ more, as one pixel can decide."""
    for name, value in one.items():
        if value is not None:
            assert two[name] == pytest.approx(value, rel=branches if "branch" in name else tolerance), name


@pytest.mark.parametrize(("turns", "mirror"), [(1, False), (2, False), (3, False), (0, True), (1, True)])
def test_turning_and_mirroring_change_nothing(eye, turns, mirror):
    image, mask = (np.rot90(array[:, ::-1] if mirror else array, turns) for array in (eye.image, eye.mask))
    before, after = measure_vessels(eye.mask, detect_fov(eye.image)), measure_vessels(mask, detect_fov(image))
    _close(before, after, 0.01, 0.05)


def test_twice_the_size(phantom):
    mask, fov = phantom
    large = FieldOfView(
        (2 * fov.shape[0], 2 * fov.shape[1]),
        (2 * fov.center[0] + 0.5, 2 * fov.center[1] + 0.5),
        2 * fov.diameter,
        tuple(2 * edge for edge in fov.box),
        fov.confidence,
        fov.full_frame,
    )
    one, two = measure_vessels(mask, fov), measure_vessels(mask.repeat(2, axis=0).repeat(2, axis=1), large)
    for name in ("skeleton_length_px", "mean_width_px"):
        assert two[name] == pytest.approx(2 * one[name], rel=0.02)
    assert two["skeleton_density_per_px"] == pytest.approx(one["skeleton_density_per_px"] / 2, rel=0.02)
    _close(*({k: v for k, v in found.items() if not k.endswith("px")} for found in (one, two)), 0.02, 0.12)


@pytest.mark.parametrize("degrees", [0, 20, 45])
def test_two_parallel_bars_are_twice_one(degrees):
    apart = 40 * np.array([np.cos(np.deg2rad(degrees)), -np.sin(np.deg2rad(degrees))])
    bar = _bar(degrees, 300, 5)
    pair = bar | _bar(degrees, 300, 5, CENTRE + np.round(apart))
    one, two = _measure(bar), _measure(pair)
    for name in ("vessel_area_fraction", "skeleton_length_px", "skeleton_density_per_fov", "branch_count"):
        assert two[name] == pytest.approx(2 * one[name], rel=0.01)
    assert two["mean_width_px"] == pytest.approx(one["mean_width_px"], rel=0.01)
    assert two["tortuosity"] == pytest.approx(one["tortuosity"], rel=0.001)


def test_the_same_vessels_wider(phantom):
    mask, fov = phantom
    wider = ndimage.binary_dilation(mask) & fov.mask
    one, two = measure_vessels(mask, fov), measure_vessels(wider, fov)
    assert two["mean_width_px"] == pytest.approx(one["mean_width_px"] + 2, abs=0.5)
    assert two["skeleton_length_px"] == pytest.approx(one["skeleton_length_px"], rel=0.1)


def test_what_lies_outside_the_field_of_view_does_not_count(phantom):
    mask, fov = phantom
    assert measure_vessels(mask | ~fov.mask, fov) == measure_vessels(mask & fov.mask, fov)
    assert measure_vessels(~fov.mask, fov) == measure_vessels(np.zeros_like(mask), fov)


def test_threads(phantom):
    mask, fov = phantom
    expected = measure_vessels(mask, fov)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: measure_vessels(mask, fov), range(12))) == [expected] * 12


def test_a_real_mask_at_half_the_resolution(real_data):
    fov = detect_fov(read_image(real_data / "HRF/images/15_h.jpg"))
    vessels = read_mask(real_data / "HRF/masks/15_h.tif")
    small = FieldOfView(
        vessels[::2, ::2].shape,
        (fov.center[0] / 2, fov.center[1] / 2),
        fov.diameter / 2,
        tuple((edge + 1) // 2 for edge in fov.box),
        fov.confidence,
        fov.full_frame,
    )
    one, two = measure_vessels(vessels, fov), measure_vessels(vessels[::2, ::2], small)
    _close(*({k: v for k, v in found.items() if not k.endswith("px")} for found in (one, two)), 0.03, 0.1)


# --- borders ---------------------------------------------------------------------------------------------------------


def test_the_keys_are_the_columns(phantom):
    mask, fov = phantom
    names = [column.name for column in COLUMNS]
    for found in (measure_vessels(mask, fov), measure_vessels(~mask & mask, fov), measure_vessels(mask, fov, 0.01)):
        assert list(found) == names
        assert all(value is None or type(value) in (int, float) for value in found.values())


def test_no_vessels():
    found = _measure(np.zeros((80, 120), bool))
    nothing = {"mean_width_px", "mean_width_fov", "fractal_dimension", "tortuosity"}
    assert {name for name, value in found.items() if value is None} == nothing | {
        f"{name}_mm" for name in ("skeleton_length", "skeleton_density_per", "mean_width")
    }
    assert all(value == 0 for value in found.values() if value is not None)


@pytest.mark.parametrize("place", [(0, 0), (40, 60), (79, 119)])
def test_one_pixel(place):
    mask = np.zeros((80, 120), bool)
    mask[place] = True
    found = _measure(mask)
    assert found["vessel_area_fraction"] == 1 / 9600
    assert found["skeleton_length_px"] == found["branch_count"] == found["branch_point_count"] == 0
    assert found["mean_width_px"] == 1
    assert found["fractal_dimension"] == pytest.approx(0)
    assert found["tortuosity"] is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (64, 64), (300, 200)])
def test_all_vessel(shape):
    found = _measure(np.ones(shape, bool))
    assert found["vessel_area_fraction"] == 1
    assert 0 < found["mean_width_px"] <= max(shape)
    assert found["fractal_dimension"] is None or 0 <= found["fractal_dimension"] <= 2


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.95])
def test_noise(share):
    found = _measure(np.random.default_rng(0).random((200, 300)) < share)
    assert all(value is None or (np.isfinite(value) and value >= 0) for value in found.values())
    assert found["vessel_area_fraction"] == pytest.approx(share, rel=0.2)


def test_wrong_arguments():
    fov = _full(40, 50)
    with pytest.raises(ValueError, match=r"mask must have the shape of its photograph, \(40, 50\), got \(50, 40\)"):
        measure_vessels(np.zeros((50, 40), bool), fov)
    with pytest.raises(ValueError, match="mask must be bool, got uint8; compare it with a threshold first"):
        measure_vessels(np.zeros((40, 50), np.uint8), fov)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="millimetres_per_pixel must be positive"):
            measure_vessels(np.zeros((40, 50), bool), fov, scale)
