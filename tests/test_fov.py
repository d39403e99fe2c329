import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reg4pru_monai.fundus import CanonicalFrame, FieldOfView, canonical_frame, detect_fov, read_image, read_mask


def photograph(
    size: tuple[int, int],
    center: tuple[float, float],
    diameter: float,
    brightness: float = 150,
    background: float = 4,
    noise: float = 3,
) -> np.ndarray:
    """(H, W, 3) uint8: a shaded, textured disc on a dark background."""
    rows, cols = np.arange(size[0])[:, None], np.arange(size[1])[None]
    rho = np.hypot(rows - center[0], cols - center[1]) / (diameter / 2)
    retina = brightness * (1 - 0.5 * rho**2 + 0.2 * np.sin(cols / 17) * np.cos(rows / 23))
    red = np.where(rho <= 1, retina, background)
    pixels = np.stack([red, red * 0.5, red * 0.25], axis=2)
    return (pixels + np.random.default_rng(0).normal(0, noise, pixels.shape)).clip(0, 255).astype(np.uint8)


DISCS = {
    "landscape": ((600, 800), (300, 400), 560, {}),
    "portrait": ((800, 600), (400, 300), 560, {}),
    "off centre": ((700, 900), (300, 350), 500, {}),
    "cut at top and bottom": ((500, 800), (250, 400), 700, {}),
    "cut at the sides": ((800, 500), (400, 250), 700, {}),
    "cut at two corners": ((600, 800), (200, 500), 700, {}),
    "a quarter of a disc": ((400, 400), (400, 400), 700, {}),
    "dark": ((600, 800), (300, 400), 560, {"brightness": 15, "background": 0, "noise": 1}),
    "noisy": ((600, 800), (300, 400), 560, {"noise": 25}),
    "grey background": ((600, 800), (300, 400), 560, {"background": 30}),
    "large": ((2000, 3000), (1000, 1500), 2700, {}),
    "small": ((120, 160), (60, 80), 110, {}),
}


@pytest.mark.parametrize("name", DISCS)
def test_disc_is_found(name: str) -> None:
    size, center, diameter, options = DISCS[name]
    fov = detect_fov(photograph(size, center, diameter, **options))
    assert not fov.full_frame
    if diameter > np.hypot(*size):  # no frame shows enough of such a disc to be sure of it
        assert fov.doubtful
    else:
        assert fov.confidence > 0.9
    assert fov.diameter == pytest.approx(diameter, rel=0.005)
    np.testing.assert_allclose(fov.center, center, atol=0.003 * diameter)
    rows, cols = np.mgrid[: size[0], : size[1]]
    truth = np.hypot(rows - center[0], cols - center[1]) <= diameter / 2
    assert (fov.mask & truth).sum() / (fov.mask | truth).sum() > 0.995
    assert fov.mask.shape == size
    r0, c0, r1, c1 = fov.box
    inside_rows, inside_cols = np.flatnonzero(fov.mask.any(axis=1)), np.flatnonzero(fov.mask.any(axis=0))
    assert (inside_rows[0], inside_cols[0], inside_rows[-1] + 1, inside_cols[-1] + 1) == (r0, c0, r1, c1)


def test_turning_the_photograph_turns_the_field_of_view() -> None:
    image = photograph((600, 800), (280, 420), 500)
    upright, turned = detect_fov(image), detect_fov(np.rot90(image))
    assert turned.diameter == pytest.approx(upright.diameter, rel=0.002)
    np.testing.assert_allclose(turned.center, (799 - upright.center[1], upright.center[0]), atol=1)


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turned in an enlarged frame, black around it."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC, expand=True))


@pytest.mark.parametrize("degrees", [10, 30, 45, 75])
@pytest.mark.parametrize("name", ["cut at top and bottom", "cut at the sides", "cut at two corners"])
def test_a_disc_cut_by_the_frame_is_found_when_turned(name: str, degrees: float) -> None:
    size, center, diameter, options = DISCS[name]
    image = turned(photograph(size, center, diameter, **options), degrees)
    fov = detect_fov(image)
    assert not fov.full_frame
    assert fov.diameter == pytest.approx(diameter, rel=0.02)
    retina = image[..., 0] > 60
    assert (fov.mask & retina).sum() > 0.99 * retina.sum()


@pytest.mark.parametrize("degrees", [10, 30, 45])
def test_a_rectangle_without_a_border_is_no_disc_when_turned(degrees: float) -> None:
    inside = photograph((900, 900), (450, 450), 890)[200:700, 150:750]
    assert detect_fov(turned(inside, degrees)).full_frame


def test_same_image_same_answer_in_any_type() -> None:
    image = photograph((300, 400), (150, 200), 280)
    first, second = detect_fov(image), detect_fov(image.astype(np.float32) / 255)
    assert first.box == second.box
    assert first.diameter == pytest.approx(second.diameter, rel=1e-3)
    assert detect_fov(image) == first


def test_black_bars_bound_the_disc() -> None:
    image = photograph((700, 700), (350, 350), 660)
    image[:100] = image[-90:] = 0
    fov = detect_fov(image)
    assert fov.diameter == pytest.approx(660, rel=0.02)
    np.testing.assert_allclose(fov.box, (100, 20, 610, 680), atol=3)
    assert not fov.mask[:95].any()


@pytest.mark.parametrize("side", [(300, 400), (1, 1), (5, 7)])
@pytest.mark.parametrize("value", [0, 90, 255])
def test_without_a_border_the_frame_is_the_field_of_view(side: tuple[int, int], value: int) -> None:
    fov = detect_fov(np.full((*side, 3), value, np.uint8))
    assert (fov.full_frame, fov.confidence, fov.box) == (True, 0.0, (0, 0, *side))
    assert fov.mask.all()
    assert fov.diameter == pytest.approx(np.hypot(*side))


def test_noise_is_not_a_disc() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    assert detect_fov(noise).full_frame


def test_shaded_retina_is_not_a_disc() -> None:
    inside = photograph((900, 900), (450, 450), 890)[250:650, 200:700]
    assert detect_fov(inside).full_frame


def test_rectangle_between_black_bars() -> None:
    image = np.zeros((600, 800, 3), np.uint8)
    image[50:550, 100:700] = photograph((900, 900), (450, 450), 890)[200:700, 150:750]
    fov = detect_fov(image)
    assert fov.full_frame
    np.testing.assert_allclose(fov.box, (50, 100, 550, 700), atol=3)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (0, 4, 3)])
def test_detect_wants_an_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\), got"):
        detect_fov(np.zeros(shape, np.uint8))


def test_numbers_survive_json() -> None:
    fov = detect_fov(photograph((300, 400), (150, 200), 280))
    assert FieldOfView.from_dict(json.loads(json.dumps(fov.to_dict()))) == fov


@pytest.mark.parametrize(("name", "diameter"), [("CHASE_DB1", 919), ("HRF", 3263)])
def test_real_photographs(real_data: Path, name: str, diameter: float) -> None:
    """One camera, one diameter. Child 08 of CHASE_DB1 was taken with another one (891 px)."""
    paths = sorted((real_data / name / "images").iterdir())
    paths = [path for path in paths if "08" not in path.stem] if name == "CHASE_DB1" else paths[::5]
    found = [detect_fov(read_image(path)) for path in paths]
    assert min(fov.confidence for fov in found) > 0.95
    assert not any(fov.full_frame for fov in found)
    np.testing.assert_allclose([fov.diameter for fov in found], diameter, rtol=0.005)


def test_real_photograph_dark_cut_and_without_border(real_data: Path) -> None:
    image = read_image(real_data / "CHASE_DB1/images/Image_07R.jpg")
    whole = detect_fov(image)
    for view in (detect_fov((image * 0.05).astype(np.uint8)), detect_fov(image[:500]), detect_fov(image[:500, :520])):
        assert view.diameter == pytest.approx(whole.diameter, rel=0.01)
        np.testing.assert_allclose(view.center, whole.center, atol=4)
    assert detect_fov(image[250:700, 250:700]).full_frame


def disc(size: tuple[int, int], center: tuple[float, float], diameter: float) -> FieldOfView:
    return detect_fov(photograph(size, center, diameter))


@pytest.mark.parametrize("diameter", [100, 280.5, 640])
def test_canonical_size_follows_the_box(diameter: float) -> None:
    fov = disc((250, 400), (125, 200), 350)
    frame = canonical_frame(fov, diameter)
    r0, c0, r1, c1 = fov.box
    scale = diameter / fov.diameter
    np.testing.assert_allclose(frame.size, ((r1 - r0) * scale, (c1 - c0) * scale), atol=0.5)


def test_canonical_diameter_is_positive() -> None:
    with pytest.raises(ValueError, match="diameter must be positive, got 0"):
        canonical_frame(disc((250, 400), (125, 200), 350), 0)


def test_frame_of_scale_one_is_a_crop() -> None:
    frame = CanonicalFrame((9, 12), (2, 3, 8, 11), (6, 8))
    image = np.random.default_rng(0).random((3, 9, 12), np.float32)
    forward = frame.forward_image(image)
    np.testing.assert_array_equal(forward, image[:, 2:8, 3:11])
    back = frame.inverse(forward)
    np.testing.assert_allclose(back[:, 2:8, 3:11], image[:, 2:8, 3:11], atol=1e-6)
    back[:, 2:8, 3:11] = 0
    assert not back.any()


def test_landmarks_come_back_to_their_pixels() -> None:
    """Four spots in a frame that is neither square nor centred."""
    frame = CanonicalFrame((300, 500), (20, 60, 280, 470), (130, 205))
    spots = [(40, 90), (50, 440), (250, 100), (200, 300)]
    image = np.zeros((300, 500), np.float32)
    for row, col in spots:
        image[row - 4 : row + 5, col - 4 : col + 5] = 1
    back = frame.inverse(frame.forward_image(image))
    assert back.shape == image.shape
    for row, col in spots:
        window = back[row - 12 : row + 13, col - 12 : col + 13]
        offsets = np.arange(-12, 13)
        assert (window.sum(1) @ offsets) / window.sum() == pytest.approx(0, abs=0.2)
        assert (window.sum(0) @ offsets) / window.sum() == pytest.approx(0, abs=0.2)


def test_values_stay_in_range() -> None:
    frame = CanonicalFrame((90, 120), (0, 0, 90, 120), (30, 40))
    back = frame.inverse((np.random.default_rng(0).random((1, 30, 40)) > 0.5).astype(np.float32))
    assert (back.min(), back.max()) == (0.0, 1.0)


def test_mask_is_what_is_at_least_half_covered() -> None:
    frame = CanonicalFrame((8, 8), (0, 0, 8, 8), (4, 4))
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    expected = np.zeros((4, 4), bool)
    expected[:, :2] = True
    np.testing.assert_array_equal(frame.forward_mask(mask), expected)


def test_frame_refuses_other_sizes() -> None:
    frame = CanonicalFrame((8, 9), (0, 0, 8, 9), (4, 5))
    with pytest.raises(ValueError, match=r"must end in \(H, W\) = \(8, 9\), got \(9, 8\)"):
        frame.forward_image(np.zeros((9, 8)))
    with pytest.raises(ValueError, match=r"must end in \(h, w\) = \(4, 5\), got \(5, 4\)"):
        frame.inverse(np.zeros((5, 4)))


@pytest.mark.parametrize("name", ["01_h", "06_dr", "14_g"])
def test_vessel_mask_survives_the_canonical_scale(real_data: Path, name: str) -> None:
    """All 42 in docs/decisions/0001-canonical-diameter.md: mean 0.980, lowest 0.971."""
    image = next((real_data / "HRF/images").glob(f"{name}.*"))
    fov = detect_fov(read_image(image))
    mask = read_mask(real_data / f"HRF/masks/{name}.tif") & fov.mask
    frame = canonical_frame(fov)
    back = frame.inverse(frame.forward_coverage(mask)) >= 0.5
    assert 2 * (mask & back).sum() / (mask.sum() + back.sum()) >= 0.97
