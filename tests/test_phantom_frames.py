import math
import time

import numpy as np
import pytest
from scipy import ndimage

from reg4pru_monai.fundus.phantom import make_eye, make_phantom
from reg4pru_monai.fundus.phantom_frames import (
    FRAMES,
    Eye,
    Layout,
    Notch,
    Phantom,
    eye_of,
    frame_eye,
    frame_photograph,
    lay_out,
)

SEED = 1
LONGER = 400
# Mean grey level around the disc and of the border around the photograph, by kind; black in all others.
AROUND = {
    "grey_background": 118,
    "white_background": 251,
    "dark_green_noisy": 17.7,
    "jpeg_blocks": 3.25,
    "second_ring": 7,
    "second_ring_off_centre": 5,
    "glare": 5,
}
BORDER = {
    "square_padding_white": 255,
    "square_padding_grey": 118,
    "white_border": 248,
    "patient_panel": 250,
    "patient_panel_black": 6,
}


@pytest.fixture(scope="module")
def eye() -> Eye:
    return make_eye(190, SEED)


@pytest.fixture(scope="module")
def pictures(eye) -> dict[str, Phantom]:
    return {kind: frame_eye(eye, kind, LONGER, SEED) for kind in FRAMES}


def segment(distance: float) -> float:
    """Area of a circle of radius 1 beyond a chord, by the chord's distance from the centre."""
    return math.acos(distance) - distance * math.sqrt(1 - distance**2) if distance < 1 else 0.0


def notch_area(notch: Notch) -> float:
    """Area that a notch adds to a circle of radius 1, to first order in its depth."""
    half = notch.width / 2
    chord = half - (half * math.sqrt(1 - half**2) + math.asin(half)) / 2  # between the circle and its tangent
    if notch.pointed:
        return math.copysign(abs(notch.depth) * half + math.copysign(2 * chord, notch.depth), notch.depth)
    return notch.width * notch.depth + 2 * chord


def analytic_area(layout: Layout) -> float:
    """Area of the visible field of view in px, from formulas alone: its cuts must not overlap inside the disc."""
    (top, left, bottom, right), (ry, rx) = layout.window, layout.radii
    area = 0.0
    for row, col in layout.centers:
        limits = [(row + 0.5 - top) / ry, (bottom - row - 0.5) / ry, (col + 0.5 - left) / rx, (right - col - 0.5) / rx]
        chords = [reach for _, reach in layout.cuts] + limits
        area += (math.pi - sum(segment(chord) for chord in chords)) * layout.radius**2
        if layout.notch is not None:
            area += notch_area(layout.notch) * layout.radius**2
    return area


# --- the truth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("size", [400, 1600])
def test_area_is_the_analytic_one(kind, size) -> None:
    layout = lay_out(kind, size, SEED)
    assert max(layout.shape) == size
    inside, visible = layout.inside(), layout.visible()
    expected = analytic_area(layout)
    assert np.clip(0.5 + inside, 0, 1)[visible].sum() == pytest.approx(expected, rel=0.001)
    # along an upright cut a mask can only be right to half a pixel
    rounding = sum(math.sqrt(1 - reach**2) * layout.radius for _, reach in layout.cuts if size < 1000)
    assert (inside[visible] >= 0).sum() == pytest.approx(expected, rel=0, abs=max(0.002 * expected, rounding))


@pytest.mark.parametrize("kind", FRAMES)
def test_truth_fits_the_layout(kind, pictures) -> None:
    made, layout = pictures[kind], lay_out(kind, LONGER, SEED)
    assert made.image.shape == (*layout.shape, 3)
    assert (made.image.dtype, made.mask.dtype, made.fov.dtype) == (np.uint8, bool, bool)
    assert np.array_equal(made.fov, (layout.inside() >= 0) & layout.visible())
    assert made.mask.any()
    assert not (made.mask & ~made.fov).any()
    if kind == "two_eyes":
        assert (made.center, made.diameter) == (None, None)
        assert ndimage.label(made.fov)[1] == 2
    else:
        assert made.center == layout.centers[0]
        assert made.diameter == 2 * layout.radius


@pytest.mark.parametrize("kind", sorted(k for k, f in FRAMES.items() if not f.notch and f.eyes == 1))
def test_the_arc_lies_on_the_circle_of_the_truth(kind, pictures) -> None:
    """Pixels along the border that no cut has made are half a diameter from the centre, of an ellipse in its metric."""
    made, layout = pictures[kind], lay_out(kind, LONGER, SEED)
    border = made.fov & ~ndimage.binary_erosion(made.fov)
    rows, cols = np.nonzero(border)
    ry, rx = layout.radii
    away = np.hypot((rows - made.center[0]) / ry, (cols - made.center[1]) / rx) * layout.radius
    arc = away > made.diameter / 2 - 1.5
    assert arc.sum() > 60
    assert away.max() <= made.diameter / 2 + 1e-3


@pytest.mark.parametrize("kind", ["disc", "cut_rotated", "ellipse", "grey_background", "very_red", "notch_square"])
def test_light_is_half_way_where_the_truth_ends(kind, pictures) -> None:
    """The red channel, whose share of the way from outside to inside is measured along the whole border."""
    made, layout = pictures[kind], lay_out(kind, LONGER, SEED)
    inside, red = layout.inside(), made.image[..., 0].astype(float)
    steps = np.arange(-6, 6.5, 0.5)
    profile = np.array([red[abs(inside - step) < 0.25].mean() for step in steps])
    share = (profile - profile[:3].mean()) / (profile[-3:].mean() - profile[:3].mean())
    assert np.interp(0.5, share[6:18], steps[6:18]) == pytest.approx(0, abs=0.3)


def test_soft_edge_fades_over_its_share_of_the_diameter(eye) -> None:
    made, layout = frame_eye(eye, "soft_edge", 1600, SEED), lay_out("soft_edge", 1600, SEED)
    assert layout.edge == pytest.approx(0.005 * made.diameter)
    inside, red = layout.inside(), made.image[..., 0].astype(float)
    at = [red[abs(inside - share * layout.edge) < 0.3].mean() for share in (-0.6, -0.25, 0.0, 0.25, 0.6)]
    share = (np.array(at) - at[0]) / (at[-1] - at[0])
    assert share == pytest.approx([0, 0.156, 0.5, 0.844, 1], abs=0.04)


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FRAMES)
def test_background_and_border_are_as_declared(kind, pictures) -> None:
    made, layout = pictures[kind], lay_out(kind, LONGER, SEED)
    visible, grey = layout.visible(), made.image.mean(2)
    around = ndimage.binary_erosion(visible, iterations=8, border_value=1) & (layout.inside() < -6)
    if around.any():
        assert grey[around].mean() == pytest.approx(AROUND.get(kind, 2), abs=3)
    border = ~ndimage.binary_dilation(visible, iterations=8)
    if border.any():
        assert grey[border].mean() == pytest.approx(BORDER.get(kind, 0), abs=8)
    assert around.any() or border.any()


@pytest.mark.parametrize("kind", sorted(set(FRAMES) - {"dark"}))
def test_field_of_view_is_brighter_than_black(kind, pictures) -> None:
    made = pictures[kind]
    assert made.image[made.fov].max(1).mean() > 80


def test_dark_is_dark(pictures) -> None:
    made = pictures["dark"]
    assert 5 < made.image[made.fov].max(1).mean() < 16


def test_declared_colours(pictures) -> None:
    red, green, blue = pictures["very_red"].image[pictures["very_red"].fov].mean(0)
    assert red > 100 > 15 > max(green, blue)
    assert np.ptp(pictures["red_free"].image.astype(int), axis=2).max() <= 2
    ring = pictures["second_ring"]
    away = lay_out("second_ring", LONGER, SEED).inside() / (ring.diameter / 2)
    stray = ring.image[(away < -0.05) & (away > -0.12)].mean() / ring.image[ring.fov].mean()
    assert stray == pytest.approx(0.15, abs=0.04)
    assert ring.image[away < -0.19].mean() < 4


def test_small_discs_fill_their_share(pictures) -> None:
    for share in (3, 8, 15):
        assert pictures[f"small_disc_{share}"].fov.mean() == pytest.approx(share / 100, rel=0.04)


def test_the_same_eye_in_every_frame(eye, pictures) -> None:
    """Where two pictures show the same place of the eye, their vessels are the same."""
    whole = pictures["disc"]
    for kind in ("cut_four_sides", "cut_by_frame", "letterbox", "grey_background", "small_disc_15", "red_free"):
        made = pictures[kind]
        rows, cols = np.nonzero(made.fov)
        scale = whole.diameter / made.diameter
        there = [
            np.clip(np.rint((at - here) * scale + center).astype(int), 0, side - 1)
            for at, here, center, side in zip((rows, cols), made.center, whole.center, whole.fov.shape, strict=True)
        ]
        assert np.corrcoef(made.mask[rows, cols], whole.mask[tuple(there)])[0, 1] > 0.7, kind


def test_same_seed_same_picture_and_another_lies_elsewhere(eye) -> None:
    first, again, other = (frame_eye(eye, "cut_rotated", 200, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert first.center != other.center
    assert first.diameter != other.diameter


def test_phantom_is_drawn_in_its_frame() -> None:
    """make_phantom paints at the scale of the frame: the vessels of its truth are those of the eye, pixel for pixel."""
    made = make_phantom(256, SEED, frame="cut_sides")
    row, col = made.center
    eye = make_eye(made.diameter / 2, SEED, (row % 1, col % 1))
    first = [math.floor(c) - math.floor(e) for c, e in zip(made.center, eye.center, strict=True)]
    rows, cols = np.nonzero(made.fov)
    assert np.array_equal(made.mask[rows, cols], eye.mask[rows - first[0], cols - first[1]])
    inner = lay_out("cut_sides", 256, SEED).inside() > 4
    rows, cols = np.nonzero(inner)
    difference = made.image[rows, cols].astype(int) - eye.image[rows - first[0], cols - first[1]]
    assert abs(difference).mean() < 4  # JPEG
    assert np.array_equal(make_phantom(256, SEED, "cut_sides").image, made.image)


@pytest.mark.parametrize("seed", range(3))
def test_plain_phantom_says_where_its_disc_is(seed) -> None:
    made = make_phantom((180, 220), seed)
    assert ndimage.center_of_mass(made.fov) == pytest.approx(made.center, abs=0.1)
    assert made.fov.sum() == pytest.approx(math.pi / 4 * made.diameter**2, rel=0.002)


def test_frames_of_exact_size() -> None:
    assert lay_out("cut_sides", (300, 500)).shape == (300, 500)
    assert lay_out("two_eyes", 410).shape == (200, 410)


def test_a_photograph_in_another_frame() -> None:
    """A photograph with a rim of its own: the rim is left out, and the retina lies where the truth says."""
    photograph = make_phantom((320, 360), 2)
    made = frame_photograph(
        photograph.image, photograph.center, photograph.diameter, "grey_background", 320, SEED, photograph.mask
    )
    layout = lay_out("grey_background", 320, SEED)
    rim = (layout.inside() > 2) & (layout.inside() < 6)
    assert np.percentile(made.image[rim][:, 0], 1) > 90  # nothing of the black rim between grey and retina
    green = made.image[..., 1].astype(float)
    near = (
        ndimage.binary_dilation(made.mask, iterations=4) & ~ndimage.binary_dilation(made.mask) & (layout.inside() > 6)
    )
    assert green[made.mask].mean() < 0.95 * green[near].mean()
    without = frame_photograph(photograph.image, photograph.center, photograph.diameter, "disc", 320)
    assert not without.mask.any()


def test_photograph_cut_by_its_own_frame_is_continued() -> None:
    photograph = make_phantom((300, 300), 2)
    cut = photograph.image[20:-20]
    eye = eye_of(cut, (photograph.center[0] - 20, photograph.center[1]), photograph.diameter)
    assert len(eye.image) >= 1.1 * photograph.diameter
    assert eye.image[..., 0].min() > 40  # no black anywhere
    middle = eye.image.shape[0] // 2
    row, col = (round(value) for value in photograph.center)
    assert np.array_equal(eye.image[middle, middle], photograph.image[row, col])


def test_framing_is_fast(eye) -> None:
    start = time.process_time()
    frame_eye(eye, "cut_four_sides", 1000, SEED)
    assert time.process_time() - start < 2


def test_unknown_frame() -> None:
    with pytest.raises(ValueError, match=r"frame must be one of disc, cut_top_bottom, .*, two_eyes, got round"):
        make_phantom(64, frame="round")
