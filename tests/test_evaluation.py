import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from networks import small_network
from reg4pru_monai.evaluation import Evaluation, Prediction, check_labels, predict
from reg4pru_monai.fundus import detect_fov
from reg4pru_monai.fundus.datasets import datalist
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.mask_metrics import NAMES
from reg4pru_monai.segmenter import Segmenter
from reg4pru_monai.transforms import preprocessing
from reg4pru_monai.windows import FundusWindowInferer

CPU = torch.device("cpu")
STEPS, INFERER = preprocessing(96), FundusWindowInferer(48)


@pytest.fixture(scope="module")
def entries(phantom_set: Path) -> list[dict[str, str]]:
    return datalist(phantom_set, "test")


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return small_network(decoder="skip").eval()


@pytest.fixture(scope="module")
def evaluated(
    entries: list[dict[str, str]], network: Segmenter, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, Evaluation(entries, STEPS, INFERER, CPU, folder, overlays=1).run(network)


def probabilities(network: Segmenter, entries: list[dict[str, str]]) -> list[np.ndarray]:
    items = [STEPS(dict(entry)) for entry in entries]
    return [predict(network, item, STEPS, INFERER, CPU).probability[0].numpy() for item in items]


class Bright(torch.nn.Module):
    """A network whose logit is the green channel, so that its answer is known in every pixel."""

    def forward(self, image: torch.Tensor, fov: torch.Tensor) -> torch.Tensor:
        return image[:, 1:2]


def test_a_prediction_lies_in_the_frame_of_the_photograph(entries: list[dict[str, str]], tmp_path: Path) -> None:
    """A bright bar near the upper left of an upright photograph is found there, not transposed, turned or scaled."""
    rows, columns = np.mgrid[:150, :100]
    disc = (rows - 60) ** 2 + (columns - 50) ** 2 < 40**2
    bar = (rows >= 35) & (rows < 41) & (columns >= 30) & (columns < 60)
    pixels = np.where(disc[..., None], np.where(bar, 250, 90)[..., None], 0).astype(np.uint8).repeat(3, axis=2)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    steps = preprocessing(96, with_label=False, normalization="global")
    item = steps({"image": str(tmp_path / "upright.png")})
    network: Any = Bright()
    found = predict(network, item, steps, INFERER, CPU)
    assert isinstance(found, Prediction)
    assert found.probability.shape == (1, 150, 100)
    assert found.probability.dtype == torch.float32
    assert found.seconds > 0
    mask, inside = found.probability[0].numpy() >= 0.8, detect_fov(pixels).mask
    assert 2 * (mask & bar).sum() / (mask.sum() + bar.sum()) > 0.9
    assert not found.probability[0].numpy()[~inside].any()


def test_metrics_are_those_of_scikit_learn_on_the_same_probabilities(
    evaluated: tuple[Path, dict[str, float]], entries: list[dict[str, str]], network: Segmenter
) -> None:
    result = evaluated[1]
    for name, variant in (("pruned", network), ("dense", network.dense())):
        found = probabilities(variant, entries)
        labels = [read_mask(entry["label"]) for entry in entries]
        inside = [detect_fov(read_image(entry["image"])).mask for entry in entries]
        score = np.concatenate([p[i] for p, i in zip(found, inside, strict=True)])
        truth = np.concatenate([label[i] for label, i in zip(labels, inside, strict=True)])
        whole, every = np.concatenate([p.ravel() for p in found]), np.concatenate([label.ravel() for label in labels])
        assert result[f"{name}/ap"] == pytest.approx(average_precision_score(truth, score), abs=1e-4)
        assert result[f"{name}/auc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-4)
        assert result[f"{name}/full_frame/ap"] == pytest.approx(average_precision_score(every, whole), abs=1e-4)
        overlap, sizes = ((score >= 0.5) & truth).sum(), (score >= 0.5).sum() + truth.sum()
        assert result[f"{name}/dice"] == pytest.approx(2 * overlap / sizes, abs=1e-6)
        assert result[f"{name}/sensitivity"] == pytest.approx(overlap / truth.sum(), abs=1e-6)
    assert result["pruned/ap"] != result["dense/ap"]


def test_speed_and_cost_are_consistent(evaluated: tuple[Path, dict[str, float]]) -> None:
    result = evaluated[1]
    assert result["dense/speedup"] == 1
    assert result["pruned/gflops"] < result["dense/gflops"]
    ratio = result["dense/gflops"] / result["pruned/gflops"]
    assert result["efficiency"] == pytest.approx(result["pruned/speedup"] / ratio)
    assert 0.1 < result["pruned/speedup"] < 10
    assert min(result["pruned/images_per_second"], result["pruned/peak_memory_mib"]) > 0


def test_the_folder_of_an_evaluation_holds_what_was_returned(evaluated: tuple[Path, dict[str, float]]) -> None:
    folder, result = evaluated
    written = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)  # no NaN: that is not JSON
    assert written == {name: value if np.isfinite(value) else None for name, value in result.items()}
    with open(folder / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["variant"]) for row in rows] == [
        *(("phantom_004", "pruned"), ("phantom_005", "pruned"), ("phantom_004", "dense"), ("phantom_005", "dense")),
    ]
    front = ["image", "group", "variant", "ap", "dice", "auc", "cldice", "sensitivity", "specificity"]
    assert list(rows[0])[:9] == front
    assert {*front[3:], *NAMES} <= rows[0].keys()
    for name in ("dice", "hd95_px", "ece"):
        mean = np.mean([float(row[name]) for row in rows if row["variant"] == "dense"])
        assert result[f"dense/per_image/{name}"] == pytest.approx(mean)
    assert {row["group"] for row in rows} == {""}
    with open(folder / "precision_recall.csv", newline="") as file:
        curve = [{k: v if k == "variant" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert list(curve[0]) == ["variant", "threshold", "precision", "recall"]
    at_half = min((row for row in curve if row["variant"] == "pruned"), key=lambda row: abs(row["threshold"] - 0.5))
    assert at_half["recall"] == pytest.approx(result["pruned/sensitivity"], abs=0.02)
    assert [path.name for path in (folder / "overlays").iterdir()] == ["phantom_004.jpg"]
    assert read_image(folder / "precision_recall.png").shape == (600, 600, 3)


def test_groups_and_a_second_observer_have_metrics_of_their_own(
    entries: list[dict[str, str]], network: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (9, 9), 255).save(tmp_path / "small.png")
    first = entries[0] | {"group": "healthy", "second_observer": entries[0]["label"]}
    second = entries[1] | {"group": "glaucoma", "second_observer": str(tmp_path / "small.png")}
    result = Evaluation([first, second], STEPS, INFERER, CPU, tmp_path, overlays=0).run(network)
    assert (result["second_observer/images"], result["second_observer/dice"]) == (1, 1)
    assert result["second_observer/per_image/hd95_px"] == 0
    assert "second_observer/ap" not in result  # of masks there is none
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message.startswith(f"second observer left out: {second['name']}: prediction (9, 9), ground truth (112, 128)")
    assert "small.png" in message
    groups = [result[f"pruned/group/{name}/ap"] for name in ("healthy", "glaucoma")]
    assert np.mean(groups) == pytest.approx(result["pruned/per_image/ap"])
    assert groups[0] != groups[1]
    assert (result["group/healthy/images"], result["group/glaucoma/images"]) == (1, 1)
    with open(tmp_path / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == ["healthy", "glaucoma"] * 2
    assert float(rows[0]["ap"]) == pytest.approx(groups[0])


def test_keeping_every_token_is_dense(entries: list[dict[str, str]], network: Segmenter, tmp_path: Path) -> None:
    result = Evaluation(entries[:1], STEPS, INFERER, CPU, tmp_path).run(network.with_keep_rate(1.0))
    timed = ("images_per_second", "latency_ms", "speedup", "gflops", "peak_memory_mib")  # the selectors still compute
    for name in [name for name in result if name.startswith("pruned/") and not name.endswith(timed)]:
        assert result[name] == pytest.approx(result[name.replace("pruned", "dense")], abs=1e-6, nan_ok=True), name
    images = [probabilities(each, entries[:1])[0] for each in (network.with_keep_rate(1.0), network.dense())]
    assert np.allclose(*images, atol=1e-5)


def test_a_mask_that_is_none_is_refused(tmp_path: Path) -> None:
    photograph = make_phantom((60, 80), seed=1)
    Image.fromarray(photograph.image).save(tmp_path / "eye.png")
    vessels, label = photograph.mask.astype(np.uint8), str(tmp_path / "mask.png")
    entry = {"image": str(tmp_path / "eye.png"), "label": label, "name": "eye"}
    for pixels, message in (
        (0 * vessels, r"eye: the ground truth has no vessel pixel in the field of view; .*mask\.png"),
        (255 - 255 * vessels, r"eye: \d+% of the field of view is vessel .*; is it inverted\? .*mask\.png"),
        (vessels + np.triu(vessels), r"mask\.png: is this a label map\?"),
    ):
        Image.fromarray(pixels).save(label)
        with pytest.raises(ValueError, match=message):
            check_labels([entry])
    Image.fromarray(255 * vessels).save(label)
    check_labels([entry])
