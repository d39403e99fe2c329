"""The mirrored rim: what lies at the edge of the disc is replaced, and nothing else changes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reg4pru_monai.fundus import CanonicalFrame, FieldOfView, canonical_frame
from reg4pru_monai.fundus.rim import NARROWEST, REACH, WIDEST, mirror_rim
from reg4pru_monai.transforms import NormalizeFundusd, preprocessing

SHAPE, CENTER, DIAMETER = (260, 300), (130.0, 150.0), 200.0
RIM = 0.03


def field(shape: tuple[int, int] = SHAPE, box: tuple[int, int, int, int] = (30, 50, 231, 251)) -> FieldOfView:
    return FieldOfView(shape, CENTER, DIAMETER, box, 1.0, False)


def radius_and_angle() -> tuple[np.ndarray, np.ndarray]:
    """Of the pixels of the crop, px and radians."""
    rows, cols = np.mgrid[30:231, 50:251]
    return np.hypot(rows - CENTER[0], cols - CENTER[1]), np.arctan2(rows - CENTER[0], cols - CENTER[1])


def test_a_ray_goes_on_beyond_the_inner_edge_of_the_rim() -> None:
    """A wedge that reaches the edge goes on beyond it, and a dark rim is gone."""
    radius, angle = radius_and_angle()
    wedge = 1.0 + np.cos(6 * angle)
    image = np.where(radius <= 97, wedge, 0).astype(np.float32)[None]  # black within 3 px of the edge
    filled, defined = mirror_rim(image, canonical_frame(field(), DIAMETER), field(), RIM)
    edge = DIAMETER * (0.5 - RIM)
    np.testing.assert_array_equal(filled[0][radius < edge], image[0][radius < edge])
    assert np.abs(filled[0] - wedge)[radius <= 100].max() < 0.05
    np.testing.assert_array_equal(defined, radius <= DIAMETER * (0.5 + REACH))
    np.testing.assert_array_equal(filled[:, ~defined], image[:, ~defined])


def test_a_rim_is_at_least_as_wide_as_jpeg_smears_an_edge() -> None:
    """In pixels of the photograph, whatever the scale; in a tiny one at most a twentieth of the diameter."""
    radius, _ = radius_and_angle()
    image = np.random.default_rng(0).random((1, 201, 201), dtype=np.float32)
    filled, _ = mirror_rim(image, canonical_frame(field(), DIAMETER), field(), 0.005)
    changed = (filled != image)[0]
    assert not changed[radius < DIAMETER / 2 - NARROWEST].any()
    assert changed[(radius > DIAMETER / 2 - NARROWEST + 0.5) & (radius < DIAMETER / 2)].mean() > 0.99
    tiny = FieldOfView((44, 44), (22.0, 22.0), 40.0, (2, 2, 43, 43), 1.0, False)
    small = np.random.default_rng(0).random((1, 41, 41), dtype=np.float32)
    inside = np.hypot(*(np.mgrid[2:43, 2:43] - 22.0)) < 40 * (0.5 - WIDEST)
    filled, _ = mirror_rim(small, canonical_frame(tiny, 40.0), tiny, 0.005)
    np.testing.assert_array_equal(filled[0][inside], small[0][inside])


def test_distances_are_mirrored_at_any_scale() -> None:
    radius, _ = radius_and_angle()
    for scale in (0.5, 1.0, 2.3):
        frame = canonical_frame(field(), DIAMETER * scale)
        image = CanonicalFrame(SHAPE, (30, 50, 231, 251), frame.size).forward_image(
            np.pad(radius.astype(np.float32), ((30, 29), (50, 49)))
        )
        filled, defined = mirror_rim(image[None], frame, field(), RIM)
        outside = defined & (image > DIAMETER * (0.5 - RIM) + 1)
        edge, width = DIAMETER * (0.5 - RIM), DIAMETER * RIM
        expected = edge - np.maximum(image[outside] - edge - width, 0)
        assert np.abs(filled[0][outside] - expected).max() < 1.5 / min(scale, 1)


def test_a_cut_disc_keeps_the_side_where_it_is_cut() -> None:
    """There the photograph ends sharply, without a rim."""
    radius, _ = radius_and_angle()
    cut = field((131, 300), (30, 50, 131, 251))
    image = np.random.default_rng(0).random((1, 101, 201), dtype=np.float32)
    filled, _ = mirror_rim(image, canonical_frame(cut, DIAMETER), cut, RIM)
    same = radius[:101] < DIAMETER * (0.5 - RIM)
    np.testing.assert_array_equal(filled[0][same], image[0][same])
    assert same[-1].sum() > 180


@pytest.mark.parametrize("method", ["local", "global", "imagenet"])
def test_only_the_image_changes_and_only_at_the_edge(tmp_path: Path, method: str) -> None:
    rows, cols = np.mgrid[:300, :300]
    radius = np.hypot(rows - 150, cols - 150)
    pixels = np.where(radius < 130, 120 + 20 * np.sin(cols / 5), 2) * np.clip((130 - radius) / 4, 0, 1)
    Image.fromarray(np.stack([pixels] * 3, 2).astype(np.uint8)).save(tmp_path / "a.png")
    kept, mirrored = (
        preprocessing(256, with_label=False, normalization=method, rim=rim)({"image": str(tmp_path / "a.png")})
        for rim in (0.0, 0.02)
    )
    assert torch.equal(kept["fov"], mirrored["fov"])
    height, width = kept["fov"].shape[1:]
    rows, cols = np.mgrid[:height, :width]
    edge = np.abs(np.hypot(rows - (height - 1) / 2, cols - (width - 1) / 2) - 126) < 2
    dark = kept["image"].numpy()[:, edge].mean() - kept["image"].numpy()[:, ~edge].mean()
    light = mirrored["image"].numpy()[:, edge].mean() - mirrored["image"].numpy()[:, ~edge].mean()
    assert dark < -0.2
    assert abs(light) < 0.15


def test_no_disc_no_rim(tmp_path: Path) -> None:
    texture = np.random.default_rng(0).integers(90, 160, (120, 150, 3), dtype=np.uint8)
    Image.fromarray(texture).save(tmp_path / "full.png")
    kept, asked = (
        preprocessing(128, with_label=False, rim=rim)({"image": str(tmp_path / "full.png")})["image"]
        for rim in (0.0, 0.01)
    )
    assert torch.equal(kept, asked)


def test_a_rim_needs_a_field_of_view_and_a_sensible_width() -> None:
    data = {"image": torch.rand(3, 20, 20), "fov": torch.ones(1, 20, 20)}
    with pytest.raises(ValueError, match="use CanonicalFundusd first"):
        NormalizeFundusd(rim=0.01)(data)
    with pytest.raises(ValueError, match=r"rim must be a share of the diameter in \[0, 0.1\), got 0.5"):
        NormalizeFundusd(rim=0.5)
