from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from networks import write_checkpoint
from reg4pru_monai.batch.command import Network, load
from reg4pru_monai.batch.settings import settings_of
from reg4pru_monai.fundus.io import FundusReadError
from reg4pru_monai.fundus.phantom import Phantom, make_phantom
from reg4pru_monai.inference import Pipeline, Segmentation, load_pipeline, trained
from reg4pru_monai.released import CHECKPOINT
from reg4pru_monai.weights import CheckpointError, write_release
from runs import BUNDLE

SIZE = (150, 190)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SIZE, seed=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.pt", diameter=128)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint, device="cpu", window_size=64)


def test_result_is_in_the_frame_of_the_photograph(pipeline: Pipeline, phantom: Phantom) -> None:
    found = pipeline(phantom.image).probability
    assert found.shape == SIZE
    assert found.dtype == np.float32
    inside = found > 0
    assert (inside == phantom.fov).mean() > 0.97
    assert 0 <= found.min() < found.max() <= 1


def test_random_removes_the_tokens_that_its_training_was_evaluated_with(phantom: Phantom, tmp_path: Path) -> None:
    """In Python, in the bundle's evaluation and in its inference."""
    found = {}
    for seed in (0, 3):
        path = write_checkpoint(tmp_path / f"{seed}.pt", 128, policy="random", policy_options={"seed": seed})
        found[seed] = load_pipeline(path, device="cpu")
        for name in ("evaluate", "inference"):
            parser = ConfigParser()
            parser.read_config(str(BUNDLE / "configs" / f"{name}.yaml"))
            parser["checkpoint"] = str(path)
            assert parser.get_parsed_content("network_def").encoder.policy.seed == seed
    assert found[3].network.encoder.policy.seed == 3
    assert not np.array_equal(*(pipeline(phantom.image).probability for pipeline in found.values()))


def test_file_and_array_give_the_same(pipeline: Pipeline, phantom: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "eye.png"
    Image.fromarray(phantom.image).save(path)
    expected = pipeline(path).probability
    np.testing.assert_array_equal(pipeline(str(path)).probability, expected)
    np.testing.assert_array_equal(pipeline(phantom.image).probability, expected)
    np.testing.assert_allclose(pipeline(phantom.image / 255.0).probability, expected, atol=1e-5)


def test_preparation_is_that_of_the_bundle(pipeline: Pipeline, phantom: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "eye.png"
    Image.fromarray(phantom.image).save(path)
    expected = pipeline.preprocessing({"image": str(path)})
    for key in ("image", "fov"):
        assert torch.equal(pipeline.prepare(path)[key].as_tensor(), expected[key].as_tensor())


def test_network_sees_the_diameter_it_was_trained_with(pipeline: Pipeline, phantom: Phantom) -> None:
    item = pipeline.prepare(phantom.image)
    assert item["image"].shape[0] == 3
    assert item["image"].shape[1:] == item["fov"].shape[1:]
    assert abs(max(item["fov"].shape) - 128) <= 2


def test_keep_rate_replaces_the_trained_one(pipeline: Pipeline, checkpoint: Path, phantom: Phantom) -> None:
    whole = load_pipeline(checkpoint, device="cpu", keep_rate=1.0, window_size=64)
    dense = Pipeline(pipeline.network.dense(), pipeline.preprocessing, pipeline.inferer, pipeline.device)
    expected = dense(phantom.image).probability
    np.testing.assert_allclose(whole(phantom.image).probability, expected, atol=1e-5)
    assert np.abs(pipeline(phantom.image).probability - expected).max() > 1e-4


def test_mask_is_the_thresholded_probability() -> None:
    found = Segmentation(np.array([[0.0, 0.4], [0.5, 0.9]], np.float32))
    assert found.mask().tolist() == [[False, False], [True, True]]
    assert found.mask(0.3).tolist() == [[False, True], [True, True]]


def test_the_threshold_of_a_release_is_the_default_everywhere(
    checkpoint: Path, phantom: Phantom, tmp_path: Path
) -> None:
    path = tmp_path / "released.pt"
    write_release(checkpoint, path, threshold=0.35)
    released = load_pipeline(path, device="cpu", window_size=64)
    found = released(phantom.image)
    assert np.array_equal(found.mask(), found.probability >= 0.35)
    assert settings_of(released).threshold == 0.35
    assert load(Network(None, path, "cpu", None, None), print).threshold == 0.35
    assert trained(str(path))["threshold"] == 0.35
    assert trained(str(checkpoint))["threshold"] == 0.5
    write_release(path, tmp_path / "again.pt")
    assert trained(str(tmp_path / "again.pt"))["threshold"] == 0.35


def test_flips_are_an_option(pipeline: Pipeline, checkpoint: Path, phantom: Phantom) -> None:
    flipping = load(Network(None, checkpoint, "cpu", None, None, flips=True), print).pipeline
    assert settings_of(flipping).window["flips"] is True
    assert "flips" not in settings_of(pipeline).window
    flipping.inferer.window_size = (64, 64)
    assert np.abs(flipping(phantom.image).probability - pipeline(phantom.image).probability).max() > 1e-3


@pytest.mark.parametrize("threshold", [0.0, 1.0, 50])
def test_threshold_must_be_a_probability(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\), got"):
        Segmentation(np.zeros((2, 2), np.float32)).mask(threshold)


def test_wrong_photographs_are_named(pipeline: Pipeline, phantom: Phantom, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) RGB, got shape \(150, 190\)"):
        pipeline(phantom.image[..., 0])
    with pytest.raises(ValueError, match=r"float in \[0, 1\], got float64 from "):
        pipeline(phantom.image.astype(float))
    with pytest.raises(ValueError, match="got int64"):
        pipeline(phantom.image.astype(np.int64))
    with pytest.raises(ValueError, match="from nan to nan"):
        pipeline(np.full((64, 64, 3), np.nan))
    (tmp_path / "eye.png").write_text("no image")
    with pytest.raises(FundusReadError, match=r"eye\.png"):
        pipeline(tmp_path / "eye.png")


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        load_pipeline(tmp_path / "none.pt")


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not in the bundle")
def test_the_checkpoint_of_the_bundle_finds_vessels() -> None:
    phantom = make_phantom(512, seed=1)
    mask = load_pipeline(device="cpu")(phantom.image).mask()
    dice = 2 * (mask & phantom.mask).sum() / (mask.sum() + phantom.mask.sum())
    assert dice > 0.5
