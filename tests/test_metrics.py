import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.transforms import Activationsd, Compose
from skimage.morphology import skeletonize
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from reg4pru_monai import metrics as m
from reg4pru_monai.histograms import lowest_scores, score_bins

PIXELS = 50_000
Image = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _labels(rng: np.random.Generator) -> np.ndarray:
    return rng.random(PIXELS) < 0.12


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.sigmoid(torch.from_numpy(logits).float()).numpy()


SCORES = {
    "random": lambda rng, y: rng.random(PIXELS),
    "informative": lambda rng, y: 0.3 * y + 0.7 * rng.random(PIXELS),
    "one octave": lambda rng, y: 0.25 + 0.1 * y * rng.random(PIXELS) + 0.1 * rng.random(PIXELS),
    "tied": lambda rng, y: np.round(rng.random(PIXELS), 1),
    "constant": lambda rng, y: np.full(PIXELS, 0.3),
    "perfect": lambda rng, y: y.astype(float),
    "saturated sigmoid": lambda rng, y: _sigmoid(rng.normal(-5, 15, PIXELS) + 10 * y),
    "within 1e-6 of 0 and 1": lambda rng, y: np.where(
        rng.random(PIXELS) < 0.2 + 0.5 * y, 1 - 1e-6 * rng.random(PIXELS), 1e-6 * rng.random(PIXELS) * (1 + y)
    ),
    "down to 1e-15": lambda rng, y: 10 ** (-15 * rng.random(PIXELS)) * (0.5 + 0.5 * y),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("seed", [0, 1])
def test_histogram_agrees_with_scikit_learn(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = _labels(rng)
    score = SCORES[kind](rng, label).astype(np.float32)
    histogram = m.score_histogram(score, label)
    assert m.average_precision_from_histogram(*histogram) == pytest.approx(
        average_precision_score(label, score), abs=1e-4
    )
    assert m.roc_auc_from_histogram(*histogram) == pytest.approx(roc_auc_score(label, score), abs=1e-4)


def test_saturated_scores_need_bins_near_one() -> None:
    rng = np.random.default_rng(0)
    label = _labels(rng)
    score = (1 - 1e-6 * rng.random(PIXELS) * (1.5 - label)).astype(np.float32)
    merged = np.floor(score * 65535)  # uniform bins in probability see one value
    assert abs(average_precision_score(label, merged) - average_precision_score(label, score)) > 0.1
    assert m.average_precision_from_histogram(*m.score_histogram(score, label)) == pytest.approx(
        average_precision_score(label, score), abs=1e-4
    )


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40), st.sampled_from([64, 2**10, 2**20, 2**29]))
@settings(max_examples=100, deadline=None)
def test_bins_rise_with_the_score(scores: list[float], bins: int) -> None:
    index = score_bins(torch.tensor(sorted(scores), dtype=torch.float32), bins)
    assert (index.diff() >= 0).all()
    assert index.min() >= 0
    assert index.max() < bins
    assert torch.equal(index >= bins // 2, torch.tensor(sorted(scores)) >= 0.5)


@given(st.integers(0, 2**31), st.integers(0, 8))
@settings(max_examples=20, deadline=None)
def test_reduced_histogram_is_the_histogram_of_fewer_bins(seed: int, shift: int) -> None:
    scores = torch.sigmoid(20 * torch.randn(500, generator=torch.Generator().manual_seed(seed)))
    label = scores > 0.7
    fine, coarse = (
        m.score_histogram(scores, label, bins=2**16),
        m.score_histogram(scores, label, bins=2 ** (16 - shift)),
    )
    for many, few in zip(fine, coarse, strict=True):
        assert torch.equal(m.reduce_histogram(many, len(few)), few)


def test_histograms_add_up_and_count_every_pixel_once() -> None:
    rng = np.random.default_rng(3)
    score, label = rng.random(1000), rng.random(1000) < 0.2
    whole = torch.stack(m.score_histogram(score, label))
    parts = torch.stack([torch.stack(m.score_histogram(score[i::2], label[i::2])) for i in range(2)])
    assert torch.equal(whole, parts.sum(0))
    assert whole.sum(1).tolist() == [label.sum(), (~label).sum()]
    assert whole.dtype == torch.int64


def test_field_of_view_and_negative_labels_are_the_same() -> None:
    rng = np.random.default_rng(4)
    score, label, fov = rng.random((1, 30, 40)), rng.random((1, 30, 40)) < 0.2, rng.random((1, 30, 40)) < 0.6
    ignored = np.where(fov, label.astype(int), -1)
    for given_, marked in zip(m.score_histogram(score, label, fov), m.score_histogram(score, ignored), strict=True):
        assert torch.equal(given_, marked)
    assert m.average_precision_from_histogram(*m.score_histogram(score, label, fov)) == pytest.approx(
        average_precision_score(label[fov], score[fov]), abs=1e-4
    )
    confusion = m.compute_confusion(score >= 0.5, ignored)
    assert (confusion == m.compute_confusion(score >= 0.5, label, fov)).all()
    assert confusion.sum() == fov.sum()


def test_scores_outside_the_field_of_view_do_not_matter() -> None:
    score, label, fov = torch.tensor([0.2, math.nan]), torch.tensor([1.0, 0.0]), torch.tensor([1, 0])
    assert m.average_precision_from_histogram(*m.score_histogram(score, label, fov)) == 1


def test_precision_recall_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    label, score = rng.random(300) < 0.3, rng.integers(0, 20, 300) / 20
    precision, recall = m.precision_recall_from_histogram(*m.score_histogram(score, label))
    expected_precision, expected_recall, _ = precision_recall_curve(label, score)
    np.testing.assert_allclose(precision, expected_precision[-2::-1])
    np.testing.assert_allclose(recall, expected_recall[-2::-1])


def test_ranking_metrics_of_empty_classes() -> None:
    score, one, none = torch.tensor([0.1, 0.9]), torch.ones(2), torch.zeros(2)
    assert np.isnan(m.average_precision_from_histogram(*m.score_histogram(score, none)))
    assert m.average_precision_from_histogram(*m.score_histogram(score, one)) == 1
    for label in (one, none):
        assert np.isnan(m.roc_auc_from_histogram(*m.score_histogram(score, label)))
    assert np.isnan(m.average_precision_from_histogram(*m.score_histogram(score, one, none)))


def test_histogram_errors() -> None:
    label = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="holds 1 NaN of 4"):
        m.score_histogram(torch.tensor([[[0.1, math.nan], [0.2, 0.3]]]), label)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got -2 to 7: apply a sigmoid"):
        m.score_histogram(torch.tensor([[[-2.0, 7.0], [0.2, 0.3]]]), label)
    with pytest.raises(ValueError, match="one shape, got"):
        m.score_histogram(torch.zeros(1, 2, 3), label)
    with pytest.raises(ValueError, match="one shape, got"):
        m.score_histogram(torch.zeros(1, 2, 2), label, torch.ones(2, 2))
    for bins in (32, 1000, 2**30):
        with pytest.raises(ValueError, match="bins must be a power of two"):
            score_bins(torch.zeros(2), bins)
    with pytest.raises(ValueError, match="cannot be refined"):
        m.reduce_histogram(torch.zeros(128), 256)


def test_rounding_beyond_the_unit_interval_is_clipped() -> None:
    counts = torch.stack(m.score_histogram(torch.tensor([1.00001, -0.00001, 1.0, 0.0]), torch.tensor([1, 0, 1, 0])))
    assert counts[0, -1] == 2
    assert counts[1, 0] == 2


# --- one threshold ----------------------------------------------------------------------------------------------------


def test_confusion_counts_by_hand() -> None:
    prediction = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1]])
    label = torch.tensor([[1, 1, 0, 1, 0, 0, 0, -1]])
    counts = m.compute_confusion(prediction, label)
    assert counts.tolist() == [2, 1, 1, 3]
    assert m.compute_dice(counts) == pytest.approx(4 / 6)
    assert m.compute_sensitivity(counts) == pytest.approx(2 / 3)
    assert m.compute_specificity(counts) == pytest.approx(3 / 4)
    assert m.compute_precision(counts) == pytest.approx(2 / 3)
    assert m.compute_accuracy(counts) == pytest.approx(5 / 7)


def test_empty_cases_of_confusion() -> None:
    rates = (m.compute_dice, m.compute_sensitivity, m.compute_precision, m.compute_specificity, m.compute_accuracy)
    nothing_predicted, no_vessels = np.array([0, 0, 5, 5]), np.array([0, 5, 0, 5])
    np.testing.assert_equal([float(f(nothing_predicted)) for f in rates], [0, 0, np.nan, 1, 0.5])
    np.testing.assert_equal([float(f(no_vessels)) for f in rates], [0, np.nan, 0, 0.5, 0.5])
    np.testing.assert_equal([float(f(np.array([0, 0, 0, 9]))) for f in rates], [np.nan, np.nan, np.nan, 1, 1])
    assert all(np.isnan(f(np.zeros(4, int))) for f in rates)


def _cross(size: int = 40, width: int = 5) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[size // 2 - width // 2 : size // 2 + width // 2 + 1, 4:-4] = True
    mask[4:-4, size // 2 - width // 2 : size // 2 + width // 2 + 1] = True
    return mask


def test_cldice_ignores_width_and_sees_gaps() -> None:
    thick, thin = _cross(width=7), _cross(width=3)
    assert m.compute_cldice(m.compute_skeleton_counts(thick, thick)) == 1
    assert m.compute_cldice(m.compute_skeleton_counts(thin, thick)) > 0.9
    assert m.compute_dice(m.compute_confusion(thin, thick)) < 0.75
    half = thick.copy()
    half[:, 20:] = False
    counts = m.compute_skeleton_counts(half, thick)
    skeleton = skeletonize(thick)
    assert counts[2:].tolist() == [(skeleton & half).sum(), skeleton.sum()]
    precision, sensitivity = counts[0] / counts[1], counts[2] / counts[3]
    expected = 2 * precision * sensitivity / (precision + sensitivity)
    assert m.compute_cldice(counts) == pytest.approx(expected)
    assert 0.4 < expected < 0.85


def test_skeleton_of_the_bounding_box_is_that_of_the_frame() -> None:
    rng = np.random.default_rng(6)
    for _ in range(5):
        mask = np.zeros((60, 80), bool)
        mask[11:49, 7:62] = np.kron(rng.random((19, 11)) < 0.5, np.ones((2, 5), bool))
        np.testing.assert_array_equal(m.skeleton_of(mask), skeletonize(mask))


def test_cldice_is_cut_to_the_field_of_view() -> None:
    mask, fov = _cross(), np.zeros((40, 40), bool)
    fov[:, :18] = True
    outside = mask | ~fov
    a, b = m.compute_skeleton_counts(outside, mask, fov), m.compute_skeleton_counts(mask & fov, mask & fov)
    assert a.tolist() == b.tolist()
    assert m.compute_cldice(a) == 1


def test_empty_cases_of_cldice() -> None:
    mask, empty = _cross(), np.zeros((40, 40), bool)
    assert np.isnan(m.compute_cldice(m.compute_skeleton_counts(empty, empty)))
    assert m.compute_cldice(m.compute_skeleton_counts(empty, mask)) == 0
    assert m.compute_cldice(m.compute_skeleton_counts(mask, empty)) == 0
    apart = np.roll(_cross(40, 1)[:, ::-1], 0)
    assert m.compute_cldice(m.compute_skeleton_counts(apart & _half(0), apart & _half(1))) == 0


def _half(side: int) -> np.ndarray:
    half = np.zeros((40, 40), bool)
    half[:, slice(0, 10) if side == 0 else slice(30, 40)] = True
    return half


# --- intervals --------------------------------------------------------------------------------------------------------


def test_bootstrap_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 200)
    low, high = m.bootstrap_interval(values, n=4000)
    half_width = 1.96 * values.std() / np.sqrt(200)
    assert low == pytest.approx(values.mean() - half_width, abs=0.002)
    assert high == pytest.approx(values.mean() + half_width, abs=0.002)
    assert m.bootstrap_interval(values, seed=1) == m.bootstrap_interval(values, seed=1)
    assert m.bootstrap_interval(values, seed=1) != m.bootstrap_interval(values, seed=2)
    inner = m.bootstrap_interval(values, level=0.5)
    assert low < inner[0] < inner[1] < high


def test_bootstrap_leaves_out_undefined_images() -> None:
    values = np.array([0.5, np.nan, 0.5, np.nan])
    assert m.bootstrap_interval(values) == (0.5, 0.5)
    assert np.isnan(m.bootstrap_interval(np.full(3, np.nan))).all()


def test_bootstrap_draws_groups_together() -> None:
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 20), 2)  # both eyes of a subject are the same
    alone = m.bootstrap_interval(values)
    paired = m.bootstrap_interval(values, groups=[f"subject {i // 2}" for i in range(40)])
    assert paired[1] - paired[0] > 1.2 * (alone[1] - alone[0])
    each = m.bootstrap_interval(values, groups=list(range(40)))
    assert each == alone


def test_bootstrap_of_counts_is_pooled() -> None:
    confusion = np.array([[8, 2, 2, 50], [80, 20, 20, 500]])  # the same Dice at another size
    low, high = m.bootstrap_interval(confusion, m.compute_dice)
    assert low == pytest.approx(0.8)
    assert high == pytest.approx(0.8)


def test_bootstrap_errors() -> None:
    assert np.isnan(m.bootstrap_interval(np.ones(1))).all()
    assert np.isnan(m.bootstrap_interval(np.ones(4), groups=[0, 0, 0, 0])).all()
    with pytest.raises(ValueError, match="n must be positive"):
        m.bootstrap_interval(np.ones(3), n=0)
    with pytest.raises(ValueError, match="level in"):
        m.bootstrap_interval(np.ones(3), level=95)
    with pytest.raises(ValueError, match="group of each of the 3 images, got 2"):
        m.bootstrap_interval(np.ones(3), groups=["a", "b"])


# --- accumulators -----------------------------------------------------------------------------------------------------


def _image(seed: int, shape: tuple[int, int] = (48, 56)) -> Image:
    """Probability, label and disc of one image, (1, H, W) each; the label has vessels beyond the disc too."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.random((shape[0] // 4, shape[1] // 4)) < 0.2, np.ones((4, 4)))[None]
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    fov = ((rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 < (min(shape) / 2.2) ** 2)[None]
    probability = _sigmoid((rng.normal(-2, 2, label.shape) + 3 * label) * 1.5) * fov
    return torch.from_numpy(probability), torch.from_numpy(label).float(), torch.from_numpy(fov)


def _filled(count: int = 4, **options: object) -> tuple[m.VesselMetrics, list[Image]]:
    images = [_image(seed) for seed in range(count)]
    metrics = m.VesselMetrics(**options)  # type: ignore[arg-type]
    for i, image in enumerate(images):
        metrics.update(*image, name=f"eye {i}")
    return metrics, images


def test_summary_against_scikit_learn() -> None:
    metrics, images = _filled()
    summary = metrics.summary()
    probability, label, fov = (torch.cat([image[k].reshape(-1) for image in images]).numpy() for k in range(3))
    assert summary["images"] == 4
    assert summary["ap"] == pytest.approx(average_precision_score(label[fov], probability[fov]), abs=1e-4)
    assert summary["auc"] == pytest.approx(roc_auc_score(label[fov], probability[fov]), abs=1e-4)
    assert summary["full_frame/ap"] == pytest.approx(average_precision_score(label, probability), abs=1e-4)
    assert summary["full_frame/ap"] < summary["ap"]
    assert summary["dice"] == pytest.approx(float(m.compute_dice(m.compute_confusion(probability >= 0.5, label, fov))))
    assert summary["full_frame/sensitivity"] == pytest.approx(
        float(m.compute_sensitivity(m.compute_confusion(probability >= 0.5, label)))
    )
    own = [average_precision_score(y[f].numpy(), p[f].numpy()) for p, y, f in images]
    assert summary["per_image/ap"] == pytest.approx(np.mean(own), abs=1e-4)
    assert [row["ap"] for row in metrics._rows] == pytest.approx(own, abs=1e-4)


def test_summary_names_and_intervals() -> None:
    metrics, _ = _filled(6)
    summary = metrics.summary()
    names = ["ap", "auc", "dice", "sensitivity", "specificity", "precision", "accuracy", "cldice"]
    for name in names:
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"] <= 1
        assert summary[f"per_image/{name}_low"] <= summary[f"per_image/{name}"] <= summary[f"per_image/{name}_high"]
        assert 0 <= summary[f"full_frame/{name}"] <= 1
    assert len(summary) == 1 + len(names) * 7
    assert all(type(value) is float for value in summary.values())
    assert summary == metrics.summary()


def test_pooled_cldice_is_the_sum_of_counts() -> None:
    metrics, images = _filled(3)
    counts = np.sum([m.compute_skeleton_counts(p[0] >= 0.5, y[0], f[0]) for p, y, f in images], axis=0)
    frame = np.sum([m.compute_skeleton_counts(p[0] >= 0.5, y[0]) for p, y, _ in images], axis=0)
    assert metrics.summary()["cldice"] == pytest.approx(float(m.compute_cldice(counts)))
    assert metrics.summary()["full_frame/cldice"] == pytest.approx(float(m.compute_cldice(frame)))


def test_options_of_vessel_metrics() -> None:
    metrics, images = _filled(2, with_cldice=False, bootstrap=0, threshold=0.9)
    summary = metrics.summary()
    assert not [key for key in summary if "cldice" in key or key.endswith(("_low", "_high"))]
    counts = np.sum([m.compute_confusion(p >= 0.9, y, f) for p, y, f in images], axis=0)
    assert summary["dice"] == pytest.approx(float(m.compute_dice(counts)))
    metrics.reset()
    with pytest.raises(ValueError, match="no image was added"):
        metrics.summary()
    with pytest.raises(ValueError, match="threshold must be in"):
        m.VesselMetrics(threshold=1.5)


def test_both_eyes_of_a_subject_widen_the_interval() -> None:
    widths = []
    for groups in (list(range(8)), [i // 2 for i in range(8)]):
        metrics = m.VesselMetrics(with_cldice=False)
        for i, group in enumerate(groups):
            probability, label, fov = _image(i // 2)
            metrics.update(probability, label, fov, group=group)
        summary = metrics.summary()
        widths.append(summary["ap_high"] - summary["ap_low"])
    assert widths[1] > widths[0]


def test_an_image_without_vessels_counts_only_where_it_is_defined() -> None:
    metrics, _ = _filled(2)
    before = metrics.summary()
    row = metrics.update(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), torch.ones(1, 8, 8), name="healthy")
    after = metrics.summary()
    assert np.isnan([row["ap"], row["auc"], row["dice"], row["cldice"], row["sensitivity"]]).all()
    assert row["specificity"] == 1
    assert row["vessel_pixels"] == 0
    assert after["per_image/ap"] == before["per_image/ap"]
    assert after["dice"] == before["dice"]
    assert after["specificity"] > before["specificity"]


def test_an_operating_point_is_what_its_threshold_gives() -> None:
    rng = np.random.default_rng(5)
    scores, label = rng.random(4000, dtype=np.float32), rng.random(4000) < 0.2
    scores[:50], scores[50:100] = 0.0, 1.0
    found = m.VesselMetrics(bootstrap=0)
    found.update(scores[None, None], label[None, None], np.ones((1, 1, 4000)))
    points = list(zip(*found.operating_points(40), strict=True))
    assert len(points) > 20
    for threshold, precision, recall in points:
        called = scores >= threshold
        assert precision == (called & label).sum() / called.sum()
        assert recall == (called & label).sum() / label.sum()
    assert np.all(np.diff([threshold for threshold, *_ in points]) < 0)


@given(st.floats(0, 1, width=32), st.sampled_from([2**6, 2**15, 2**20]))
def test_the_lowest_score_of_a_bin_is_in_it_and_the_one_below_is_not(score: float, bins: int) -> None:
    index = int(score_bins(torch.tensor([score]), bins)[0])
    (lowest,) = lowest_scores(np.array([index]), bins)
    assert 0 <= lowest <= np.float32(score)
    assert int(score_bins(torch.tensor([lowest]), bins)[0]) == index
    below = torch.nextafter(torch.tensor([lowest]), torch.tensor([0.0]))
    assert lowest == 0 or int(score_bins(below, bins)[0]) < index


def test_curve_runs_from_the_first_bin_to_full_recall() -> None:
    metrics, _ = _filled(2)
    _, precision, recall = metrics.operating_points(points=50)
    assert len(precision) == len(recall) <= 50
    assert (np.diff(recall) > 0).all()
    assert recall[-1] == 1
    area = np.trapezoid(precision, recall) + precision[0] * recall[0]
    assert area == pytest.approx(metrics.summary()["ap"], abs=0.02)
    empty = m.VesselMetrics()
    empty.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    assert [len(part) for part in empty.operating_points()] == [0, 0, 0]


def test_errors_name_the_image() -> None:
    metrics, label, fov = m.VesselMetrics(), torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    with pytest.raises(ValueError, match="Image_05L: probability holds 16 NaN of 16"):
        metrics.update(torch.full((1, 4, 4), math.nan), label, fov, name="Image_05L")
    with pytest.raises(ValueError, match="image 0: probability must be in"):
        metrics.update(torch.full((1, 4, 4), 3.0), label, fov)
    with pytest.raises(ValueError, match="image 0: prediction, label and fov must have one shape"):
        metrics.update(torch.zeros(1, 4, 5), label, fov)
    assert metrics._rows == []


def test_meta_tensors_and_numpy_give_the_same() -> None:
    probability, label, fov = _image(0)
    rows = []
    for kind in (lambda a: a, MetaTensor, lambda a: a.numpy()):
        rows.append(m.VesselMetrics().update(kind(probability), kind(label), kind(fov), name="eye"))
    assert rows[0] == rows[1] == rows[2]


# --- in a MONAI evaluator ---------------------------------------------------------------------------------------------


class _Logits(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1] * 4 - 2


def _evaluator(images: list[dict[str, torch.Tensor]], batch_size: int) -> SupervisedEvaluator:
    transform = from_engine(["pred", "target"])
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(images), batch_size=batch_size, num_workers=0),
        network=_Logits(),
        postprocessing=Compose([Activationsd("pred", sigmoid=True), m.IgnoreOutsideFovd()]),
        key_val_metric={
            "val_ap": IgniteMetricHandler(m.StreamingAveragePrecision(), output_transform=transform),
        },
        additional_metrics={"val_dice": IgniteMetricHandler(m.VesselDice(), output_transform=transform)},
        decollate=True,
    )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_key_metric_of_an_evaluator(batch_size: int) -> None:
    images = []
    for seed in range(3):
        probability, label, fov = _image(seed)
        images.append({"image": probability.repeat(3, 1, 1), "label": label, "fov": fov.float()})
    evaluator = _evaluator(images, batch_size)
    seen: list[str] = []
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(engine.state.key_metric_name))
    evaluator.run()
    score = torch.cat([torch.sigmoid(i["image"][:1] * 4 - 2)[i["fov"] > 0] for i in images])
    label = torch.cat([i["label"][i["fov"] > 0] for i in images])
    expected = average_precision_score(label.numpy(), score.numpy())
    assert evaluator.state.metrics["val_ap"] == pytest.approx(expected, abs=1e-4)
    assert evaluator.state.best_metric == evaluator.state.metrics["val_ap"]
    assert seen == ["val_ap"]
    confusion = m.compute_confusion(score >= 0.5, label)
    assert evaluator.state.metrics["val_dice"] == pytest.approx(float(m.compute_dice(confusion)))
    assert evaluator.state.metric_details["val_ap"].shape == (3, 1)
    first = evaluator.state.metrics["val_ap"]
    evaluator.run()
    assert evaluator.state.metrics["val_ap"] == first


def test_metrics_take_batches_and_lists() -> None:
    images = [_image(seed) for seed in range(2)]
    probabilities, labels = [p for p, _, _ in images], [y for _, y, _ in images]
    for metric in (m.StreamingAveragePrecision(), m.VesselDice()):
        own = metric(probabilities, labels)
        pooled = metric.aggregate()
        metric.reset()
        assert torch.equal(metric(torch.stack(probabilities), torch.stack(labels)), own)
        assert torch.equal(metric.aggregate(), pooled)
        assert torch.equal(metric.get_buffer(), own)
        with pytest.raises(ValueError, match="got 2 predictions and 1 labels"):
            metric(probabilities, labels[:1])


def test_metric_without_images_is_undefined() -> None:
    for metric in (m.StreamingAveragePrecision(), m.VesselDice()):
        assert metric.aggregate().isnan()
        assert metric.get_buffer().shape == (0, 1)
    with pytest.raises(ValueError, match="threshold must be in"):
        m.VesselDice(threshold=0)


def test_the_configuration_in_the_documentation_builds() -> None:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    parser = ConfigParser(yaml.safe_load(text.split("```yaml")[1].split("```")[0]))
    parser["imports"] = ["$import monai"]
    data = {"pred": torch.zeros(1, 2, 2), "label": torch.ones(1, 2, 2), "fov": torch.zeros(1, 2, 2)}
    result = parser.get_parsed_content("postprocessing")(data)
    assert (result["pred"] == 0.5).all()
    assert (result["target"] == -1).all()
    handler = parser.get_parsed_content("key_metric")["val_ap"]
    handler.update(handler._output_transform([result]))
    assert handler.metric_fn.aggregate().isnan()


def test_ignore_outside_keeps_the_label() -> None:
    label, fov = torch.tensor([[[255.0, 0.0, 1.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
    result = m.IgnoreOutsideFovd()({"label": MetaTensor(label), "fov": fov, "pred": 1})
    assert result["target"].tolist() == [[[1, 0, -1]]]
    assert torch.equal(result["label"], label)
    with pytest.raises(ValueError, match="name one label key"):
        m.IgnoreOutsideFovd(keys=["label", "other"])
