import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from reg4pru_monai.batch.quality import COLUMNS, quality_indicators
from reg4pru_monai.fundus import FieldOfView, detect_fov
from reg4pru_monai.fundus.io import read_image
from reg4pru_monai.fundus.phantom import make_phantom

REAL = ("CHASE_DB1/images/Image_01L.jpg", "CHASE_DB1/images/Image_12R.jpg", "HRF/images/15_h.jpg")


@pytest.fixture(params=[0, 1, *REAL], ids=str)
def photograph(request: pytest.FixtureRequest) -> tuple[np.ndarray, FieldOfView]:
    """Phantoms and real photographs, (H, W, 3) float, and their field of view."""
    if isinstance(request.param, int):
        image = make_phantom(600, request.param).image
    else:
        image = read_image(request.getfixturevalue("real_data") / request.param)
    return image.astype(np.float32) / 255, detect_fov(image)


def _distance(fov: FieldOfView) -> np.ndarray:
    """(H, W, 1) distance from the centre, in radii of the disc."""
    rows, columns = np.ogrid[: fov.shape[0], : fov.shape[1]]
    return np.hypot(rows - fov.center[0], columns - fov.center[1])[..., None] / (fov.diameter / 2)


def test_blur_lowers_focus(photograph):
    image, fov = photograph
    focus = [quality_indicators(image, fov)["focus"]]
    for share in (0.0007, 0.0014, 0.003, 0.006):
        green = ndimage.gaussian_filter(image[..., 1], share * fov.diameter, truncate=3)
        focus.append(quality_indicators(np.stack([green] * 3, axis=2), fov)["focus"])
    assert np.all(np.diff(focus) < 0)
    assert focus[-1] < 0.5 * focus[0]


def test_less_light_lowers_the_mean_of_illumination_alone(photograph):
    image, fov = photograph
    bright, dark = quality_indicators(image, fov), quality_indicators(0.4 * image, fov)
    assert dark["illumination_mean"] == pytest.approx(0.4 * bright["illumination_mean"], rel=1e-4)
    for name in ("focus", "illumination_evenness", "contrast", "fov_completeness_fraction"):
        assert dark[name] == pytest.approx(bright[name], rel=1e-3)


def test_vignetting_lowers_evenness(photograph):
    image, fov = photograph
    evenness = [
        quality_indicators(image * (1 - strength * _distance(fov) ** 2), fov)["illumination_evenness"]
        for strength in (0.0, 0.3, 0.6, 0.9)
    ]
    assert np.all(np.diff(evenness) < -0.02)


def test_haze_lowers_contrast_and_not_focus(photograph):
    image, fov = photograph
    values = [quality_indicators(haze + (1 - haze) * image, fov) for haze in (0.0, 0.1, 0.3, 0.6)]
    contrast = [value["contrast"] for value in values]
    assert np.all(np.diff(contrast) < 0)
    assert contrast[-1] < 0.3 * contrast[0]
    assert values[-1]["focus"] == pytest.approx(values[0]["focus"], rel=1e-3)


def test_cutting_the_disc_lowers_completeness(photograph):
    image, fov = photograph
    row, column = (round(middle) for middle in fov.center)
    whole = quality_indicators(image, fov)["fov_completeness_fraction"]
    half = image[:, :column].copy()
    assert quality_indicators(half, detect_fov(half))["fov_completeness_fraction"] == pytest.approx(whole / 2, rel=0.03)
    side = round(fov.diameter / 2 / 2**0.5) - 5  # of a square inside the disc
    inside = image[row - side : row + side, column - side : column + side]
    square = detect_fov(inside)
    assert square.full_frame
    assert quality_indicators(inside, square)["fov_completeness_fraction"] == pytest.approx(2 / np.pi, rel=1e-3)


def test_whole_and_cut_discs():
    image = np.zeros((100, 100, 3), np.float32)
    whole = FieldOfView((100, 100), (49.5, 49.5), 90.0, (5, 5, 95, 95), 1.0, False)
    assert quality_indicators(image, whole)["fov_completeness_fraction"] == pytest.approx(1, abs=0.01)
    half = FieldOfView((100, 100), (49.5, -0.5), 90.0, (5, 0, 95, 45), 1.0, False)
    assert quality_indicators(image, half)["fov_completeness_fraction"] == pytest.approx(0.5, abs=0.01)


def test_resolution_hardly_matters(photograph):
    image, fov = photograph
    height, width = (round(side * 1.5) for side in image.shape[:2])
    if fov.diameter > 2000:
        height, width = (round(side / 2.5) for side in image.shape[:2])
    eight_bit = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    other = np.asarray(eight_bit.resize((width, height), Image.Resampling.BICUBIC))
    one, two = quality_indicators(image, fov), quality_indicators(other, detect_fov(other))
    assert two["focus"] == pytest.approx(one["focus"], rel=0.05)
    assert two["contrast"] == pytest.approx(one["contrast"], rel=0.03)
    assert two["illumination_mean"] == pytest.approx(one["illumination_mean"], rel=0.02)
    assert two["illumination_evenness"] == pytest.approx(one["illumination_evenness"], rel=0.03)
    assert two["fov_completeness_fraction"] == pytest.approx(one["fov_completeness_fraction"], abs=0.01)


def test_the_background_and_the_other_channels_do_not_matter():
    image = make_phantom(300, 2).image
    fov = detect_fov(image)
    other = image.copy()
    other[..., (0, 2)] = 0
    other[_distance(fov)[..., 0] > 1.05] = 200
    before, after = quality_indicators(image, fov), quality_indicators(other, fov)
    assert after == pytest.approx(before, rel=0.01)


def test_eight_bits_and_floats_agree():
    image = make_phantom(300, 3).image
    fov = detect_fov(image)
    unit = image.astype(np.float32) / 255
    assert quality_indicators(unit, fov) == pytest.approx(quality_indicators(image, fov), rel=1e-4)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_photographs_without_any_detail(value):
    image = np.full((120, 90, 3), value, np.uint8)
    found = quality_indicators(image, detect_fov(image))
    assert list(found) == [column.name for column in COLUMNS]
    assert all(type(number) is float for number in found.values())
    assert found["focus"] == 0
    assert found["contrast"] == pytest.approx(0, abs=1e-5)
    assert found["illumination_mean"] == pytest.approx(value / 255)
    assert found["illumination_evenness"] == pytest.approx(1 if value else 0, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3), (40, 40)])
def test_tiny_and_narrow_photographs(shape):
    image = np.random.default_rng(0).integers(1, 255, (*shape, 3), dtype=np.uint8)
    assert all(np.isfinite(number) for number in quality_indicators(image, detect_fov(image)).values())


def test_another_shape_is_an_error():
    fov = detect_fov(np.zeros((40, 50, 3), np.uint8))
    with pytest.raises(ValueError, match=r"image must have the shape of its field of view, \(40, 50, 3\)"):
        quality_indicators(np.zeros((50, 40, 3), np.uint8), fov)
