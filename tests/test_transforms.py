import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd
from PIL import Image
from scipy.ndimage import gaussian_filter

from reg4pru_monai.fundus import FieldOfView, FundusReadError, detect_fov, read_image, read_mask
from reg4pru_monai.transforms import (
    CanonicalFundusd,
    NormalizeFundusd,
    ReadFundusd,
    global_normalization,
    local_normalization,
    preprocessing,
)

SIZE, CENTER, DIAMETER = (300, 440), (140, 230), 260  # neither square nor centred
LANDMARKS = [(60, 200), (140, 330), (220, 250), (150, 120)]


def disc(diameter: float = DIAMETER) -> np.ndarray:
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.hypot(rows - CENTER[0], cols - CENTER[1]) <= diameter / 2


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """A photograph and its mask on disk: a textured disc with four square vessels."""
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    red = np.where(disc(), 140 + 30 * np.sin(cols / 20) * np.cos(rows / 15), 3)
    mask = np.zeros(SIZE, bool)
    for row, col in LANDMARKS:
        mask[row - 4 : row + 5, col - 4 : col + 5] = True
    image = np.stack([red, np.where(mask, 0.3, 0.6) * red, red / 4], axis=2).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    return {"image": str(tmp_path / "photo.png"), "label": str(tmp_path / "mask.png")}


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_read_gives_what_the_files_hold(pair: dict[str, str]) -> None:
    data = ReadFundusd(label_key="label")(pair)
    assert isinstance(data["image"], MetaTensor)
    assert data["image"].meta["filename_or_obj"] == pair["image"]
    np.testing.assert_array_equal(data["image"].numpy(), read_image(pair["image"]).transpose(2, 0, 1) / np.float32(255))
    np.testing.assert_array_equal(data["label"].numpy(), read_mask(pair["label"])[None].astype(np.float32))
    assert {data[key].dtype for key in data} == {torch.float32}


def test_read_keeps_16_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 50_001, np.uint16)).save(tmp_path / "a.png")
    image = ReadFundusd()({"image": tmp_path / "a.png"})["image"]
    np.testing.assert_allclose(image.numpy(), 50_001 / 65535, rtol=1e-6)


def test_read_refuses_a_mask_of_another_size(pair: dict[str, str]) -> None:
    Image.fromarray(np.zeros((SIZE[1], SIZE[0]), np.uint8)).save(pair["label"])
    with pytest.raises(ValueError, match=r"photo\.png is 300 x 440 but its mask .*mask\.png is 440 x 300"):
        ReadFundusd(label_key="label")(pair)


def test_read_errors_and_limit_pass_through(pair: dict[str, str]) -> None:
    with pytest.raises(FundusReadError, match="no such file"):
        ReadFundusd()({"image": "absent.png"})
    with pytest.raises(FundusReadError, match="max_pixels=100"):
        ReadFundusd(max_pixels=100)(pair)


def canonical(pair: dict[str, str], diameter: float = 400) -> tuple[Compose, dict]:
    steps = Compose([ReadFundusd(label_key="label"), CanonicalFundusd(diameter=diameter)])
    return steps, steps(pair)


def test_canonical_scale(pair: dict[str, str]) -> None:
    _, data = canonical(pair)
    fov = FieldOfView.from_dict(data["image"].meta["fov"])
    assert fov == detect_fov(read_image(pair["image"]).astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(data["image"].shape, (3, 400, 400), atol=2)
    assert data["image"].shape[1:] == data["label"].shape[1:] == data["fov"].shape[1:]
    assert set(np.unique(data["fov"].numpy())) == {0, 1}
    assert data["fov"].mean().item() == pytest.approx(np.pi / 4, rel=0.02)
    assert 0 <= data["label"].min() <= data["label"].max() <= 1
    assert data["label"].sum().item() == pytest.approx(4 * 81 * (400 / fov.diameter) ** 2, rel=0.02)


@pytest.mark.parametrize("diameter", [150, 256, 700])
def test_inverse_restores_the_frame(pair: dict[str, str], diameter: float) -> None:
    steps, data = canonical(pair, diameter)
    inverted = steps.inverse(data)
    assert inverted["label"].shape == inverted["fov"].shape == (1, *SIZE)
    assert inverted["image"].shape == (3, *SIZE)
    assert dice(inverted["label"].numpy()[0] > 0, read_mask(pair["label"])) > 0.97
    assert dice(inverted["fov"].numpy()[0] > 0, disc()) > 0.98
    inside = disc(DIAMETER - 12)
    difference = inverted["image"].numpy() - read_image(pair["image"]).transpose(2, 0, 1) / np.float32(255)
    assert np.abs(difference[:, inside]).mean() < 0.01
    assert not inverted["image"].numpy()[:, ~disc(DIAMETER + 8)].any()


@pytest.mark.parametrize("normalization", ["local", "global", "imagenet"])
def test_predictions_return_through_a_loader_and_invertd(pair: dict[str, str], normalization: str) -> None:
    """Landmarks of a prediction are at their own pixels: not transposed, not shifted, 0 outside."""
    steps = preprocessing(380, normalization=normalization, soft_label=True)
    batch = next(iter(DataLoader(CacheDataset([pair, pair], steps, progress=False), batch_size=2)))
    batch["pred"] = batch["label"] * 0.9
    assert isinstance(batch["pred"], MetaTensor)
    post = Invertd(keys="pred", orig_keys="image", transform=steps, nearest_interp=False)
    for item in decollate_batch(batch):
        probability = post(item)["pred"]
        assert probability.shape == (1, *SIZE)
        found = probability.numpy()[0]
        assert not found[~disc(DIAMETER + 8)].any()
        assert 0.85 < found.max() <= 0.9  # a probability stays one
        assert dice(found >= 0.45, read_mask(pair["label"])) > 0.97
        for row, col in LANDMARKS:
            window = found[row - 10 : row + 11, col - 10 : col + 11]
            assert (window.sum(1) @ np.arange(-10, 11)) / window.sum() == pytest.approx(0, abs=0.2)
            assert (window.sum(0) @ np.arange(-10, 11)) / window.sum() == pytest.approx(0, abs=0.2)
        fov = FieldOfView.from_dict(item["image"].meta["fov"])
        assert fov.mask.shape == SIZE


def test_prediction_of_ones_is_the_field_of_view(pair: dict[str, str]) -> None:
    steps = preprocessing(300, with_label=False)
    data = steps({"image": pair["image"]})
    data["pred"] = torch.ones_like(data["fov"])
    inverted = Invertd(keys="pred", orig_keys="image", transform=steps, nearest_interp=False)(data)["pred"]
    fov = FieldOfView.from_dict(data["image"].meta["fov"])
    np.testing.assert_array_equal(inverted.numpy()[0], fov.mask)
    assert "label" not in data


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_photographs_give_turned_results(pair: dict[str, str], tmp_path: Path, turns: int) -> None:
    turned = {key: str(tmp_path / f"turned_{key}.png") for key in pair}
    for key, path in pair.items():
        Image.fromarray(np.rot90(np.asarray(Image.open(path)), turns)).save(turned[key])
    first, second = canonical(pair)[1], canonical(turned)[1]
    expected = np.rot90(first["image"].numpy(), turns, axes=(1, 2))
    height, width = (min(a, b) for a, b in zip(expected.shape[1:], second["image"].shape[1:], strict=True))
    difference = expected[:, :height, :width] - second["image"].numpy()[:, :height, :width]
    assert np.abs(difference).mean() < 0.01


def test_without_a_border_the_frame_round_trips(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(90, 110, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    steps = preprocessing(120, with_label=False)
    data = steps({"image": tmp_path / "a.png"})
    assert data["image"].meta["fov"]["full_frame"]
    assert data["image"].meta["fov"]["confidence"] == 0
    data["pred"] = torch.ones_like(data["fov"])
    inverted = Invertd(keys="pred", orig_keys="image", transform=steps, nearest_interp=False)(data)["pred"]
    np.testing.assert_array_equal(inverted.numpy(), np.ones((1, 60, 90)))


def test_preprocessing_labels_are_zero_and_one_unless_soft(pair: dict[str, str]) -> None:
    hard = preprocessing(150)(pair)["label"].numpy()
    soft = preprocessing(150, soft_label=True)(pair)["label"].numpy()
    assert set(np.unique(hard)) == {0, 1}
    assert len(np.unique(soft)) > 2
    np.testing.assert_array_equal(hard, soft >= 0.5)


def test_preprocessing_is_deterministic_and_the_same_with_and_without_label(pair: dict[str, str]) -> None:
    first, second = preprocessing(200)(pair), preprocessing(200, with_label=False)(dict(pair))
    np.testing.assert_array_equal(first["image"].numpy(), second["image"].numpy())
    assert {first[key].dtype for key in ("image", "label", "fov")} == {torch.float32}


RNG = np.random.default_rng(0)
INSIDE = np.hypot(*(np.mgrid[:200, :240] - np.array([100, 120])[:, None, None])) <= 95
PIXELS = (RNG.random((3, 200, 240)) * 0.4 + np.linspace(0.1, 0.5, 240)).astype(np.float32)


@pytest.mark.parametrize("method", ["local", "global", "imagenet"])
def test_nothing_outside_the_field_of_view_matters(method: str) -> None:
    step = NormalizeFundusd(method=method, sigma=8)
    fov = torch.from_numpy(INSIDE[None].astype(np.float32))
    results = []
    for outside in (0.0, 0.37, 1.0):
        image = np.where(INSIDE, PIXELS, np.float32(outside))
        results.append(step({"image": torch.from_numpy(image), "fov": fov})["image"].numpy())
    for result in results:
        assert not result[:, ~INSIDE].any()
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, results[0], atol=1e-5)


@pytest.mark.parametrize(
    "normalize", [lambda x: local_normalization(x, INSIDE, 8), lambda x: global_normalization(x, INSIDE)]
)
def test_brightness_and_contrast_do_not_matter(normalize: Callable[[np.ndarray], np.ndarray]) -> None:
    reference = normalize(PIXELS)[:, INSIDE]
    changed = normalize(PIXELS * np.float32(0.5) + np.float32(0.2))[:, INSIDE]
    assert np.abs(reference - changed).max() < 0.05
    assert np.abs(reference).max() <= 5


def test_global_normalization_has_mean_0_and_deviation_1() -> None:
    values = global_normalization(PIXELS, INSIDE)[:, INSIDE]
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=2e-3)


def test_local_normalization_removes_shading() -> None:
    """The ramp across PIXELS is gone, and the noise on it has the same strength everywhere."""
    values = local_normalization(PIXELS, INSIDE, 8)[0]
    left, right = values[:, 40:100][INSIDE[:, 40:100]], values[:, 140:200][INSIDE[:, 140:200]]
    assert left.mean() == pytest.approx(right.mean(), abs=0.05)
    assert left.std() == pytest.approx(right.std(), rel=0.05)
    assert values[INSIDE].std() == pytest.approx(1, rel=0.1)


def test_local_normalization_follows_its_formula() -> None:
    """Against the formula written out at full resolution; the difference is that of the quarter-size fields."""

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values * INSIDE, 16, mode="constant") / gaussian_filter(
            INSIDE * 1.0, 16, mode="constant"
        )

    with np.errstate(invalid="ignore", divide="ignore"):
        mean = blur(PIXELS[0])
        variance = blur(PIXELS[0] ** 2) - mean**2
    expected = (PIXELS[0] - mean) / np.sqrt((variance + variance[INSIDE].mean()) / 2)
    found = local_normalization(PIXELS[:1], INSIDE, 16)[0]
    assert np.abs(found - expected)[INSIDE].max() < 0.15
    assert np.abs(found - expected)[INSIDE].mean() < 0.02


@pytest.mark.parametrize("method", ["local", "global", "imagenet"])
def test_flat_and_empty_images_stay_finite(method: str) -> None:
    for inside in (torch.ones(1, 40, 50), torch.zeros(1, 40, 50)):
        data = {"image": torch.full((3, 40, 50), 0.4), "fov": inside}
        assert torch.isfinite(NormalizeFundusd(method=method, sigma=5)(data)["image"]).all()


def test_unknown_normalization() -> None:
    with pytest.raises(ValueError, match="one of local, global, imagenet, got 'zscore'"):
        preprocessing(normalization="zscore")


@pytest.mark.parametrize("name", ["02_g", "13_dr"])
def test_real_mask_survives_the_pipeline(real_data: Path, name: str) -> None:
    """Files through preprocessing and Invertd at the default diameter; all 42 in docs/decisions/0001."""
    paths = {"image": next((real_data / "HRF/images").glob(f"{name}.*")), "label": real_data / f"HRF/masks/{name}.tif"}
    steps = preprocessing(soft_label=True)
    data = steps(paths)
    data["pred"] = data["label"].clone()
    back = Invertd(keys="pred", orig_keys="image", transform=steps, nearest_interp=False)(data)["pred"]
    assert back.shape == (1, 2336, 3504)
    assert dice(back.numpy()[0] >= 0.5, read_mask(paths["label"])) >= 0.97


def test_local_normalization_is_quick() -> None:
    image = RNG.random((3, 1024, 1024), np.float32)
    start = time.process_time()
    local_normalization(image, np.ones((1024, 1024), bool), 34)
    assert time.process_time() - start < 1.5  # 0.07 s measured
