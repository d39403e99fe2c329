"""Masks drawn by hand, with answers counted by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from reg4pru_monai import mask_metrics as cm
from reg4pru_monai.fundus import FieldOfView
from reg4pru_monai.metrics import VesselMetrics, score_histogram


def empty(rows: int = 40, columns: int = 40) -> np.ndarray:
    return np.zeros((rows, columns), bool)


def bar(top: int, bottom: int, left: int = 5, right: int = 35) -> np.ndarray:
    """Rows top to bottom, the last exclusive, of a 40 x 40 mask."""
    mask = empty()
    mask[top:bottom, left:right] = True
    return mask


def field(shape: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> FieldOfView:
    """A rectangle, all by default; a px of it is one at canonical scale."""
    return FieldOfView(shape, (0.0, 0.0), 1024.0, box or (0, 0, *shape), 0.0, True)


# --- boundaries ------------------------------------------------------------------------------------------------------


def test_boundary_region_is_what_erosion_takes() -> None:
    """A square of 10 in 30 x 40 (diagonal 50), share 0.04: d = 2, so the inner 6 x 6 is not boundary."""
    square, shifted = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    square[10:20, 10:20] = True
    shifted[10:20, 12:22] = True  # 2 to the right
    assert cm.compute_boundary_counts(square, square, 0.04).tolist() == [64, 64]
    # rings of 64 each: they share 2 rows of 8 above, 2 below, and 2 x 6 of each in the other's side
    both = cm.compute_boundary_counts(square, shifted, 0.04)
    ring = square.copy()
    ring[12:18, 12:18] = False
    moved = np.roll(ring, 2, axis=1)
    assert both.tolist() == [(ring & moved).sum(), (ring | moved).sum()] == [32, 96]
    assert cm.compute_share(both) == pytest.approx(1 / 3)


def test_boundary_goes_along_the_edge_of_the_image() -> None:
    """As in the code of Cheng et al., a mask cut by the image has a boundary there."""
    full = np.ones((30, 40), bool)
    assert cm.compute_boundary_counts(full, full, 0.02).tolist() == [30 * 40 - 28 * 38] * 2


def test_boundary_iou_of_thin_masks_is_their_iou() -> None:
    one, two = bar(10, 13), bar(11, 14)
    assert cm.compute_share(cm.compute_boundary_counts(one, two, 0.05)) == pytest.approx(2 / 4)  # d = 3


def test_surface_dice_and_hd95_of_shifted_bars() -> None:
    """One-pixel lines 3 px apart: all of both boundaries is 3 px away."""
    one, two = bar(10, 11), bar(13, 14)
    assert cm.compute_hd95(one, two) == 3
    assert cm.compute_hd95(one, two, scale=2.0) == 6
    assert cm.compute_surface_dice(one, two, tolerance=3) == 1
    assert cm.compute_surface_dice(one, two, tolerance=2.9) == 0
    assert cm.compute_surface_dice(one, two, scale=0.5) == 1  # 1.5 px at canonical scale


def test_hd95_forgives_a_twentieth() -> None:
    """100 px on the line, and 4 px 20 px away from it: less than 5 % of one direction; then 6."""
    line = np.zeros((60, 120), bool)
    line[10, 10:110] = True
    few, more = line.copy(), line.copy()
    few[30, 10:14] = True
    more[30, 10:18] = True
    assert cm.compute_hd95(few, line) == cm.compute_hd95(line, few) == 0
    assert cm.compute_hd95(more, line) == cm.compute_hd95(line, more) == 20
    assert cm.compute_surface_dice(few, line) == pytest.approx(200 / 204)


def test_distances_without_a_boundary() -> None:
    assert cm.compute_hd95(empty(), bar(3, 5), worst=77.0) == 77
    assert cm.compute_hd95(bar(3, 5), empty(), worst=77.0) == 77
    assert math.isnan(cm.compute_hd95(empty(), empty(), worst=77.0))
    assert cm.compute_surface_dice(empty(), bar(3, 5)) == cm.compute_surface_dice(bar(3, 5), empty()) == 0
    assert math.isnan(cm.compute_surface_dice(empty(), empty()))


# --- topology --------------------------------------------------------------------------------------------------------

DRAWINGS = {
    "ring": ("###", "#.#", "###", 1, 1),
    "diamond, closed by corners": (".#.", "#.#", ".#.", 1, 1),
    "corners touch": ("#..", ".#.", "..#", 1, 0),
    "two pieces": ("#.#", "#.#", "#.#", 2, 0),
    "hole open to the frame": ("#.#", "#.#", "###", 1, 0),
    "nothing": ("...", "...", "...", 0, 0),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_betti_numbers(name: str) -> None:
    *lines, pieces, holes = DRAWINGS[name]
    mask = np.array([[letter == "#" for letter in str(line)] for line in lines])
    assert cm.compute_betti_numbers(mask) == (pieces, holes)
    assert cm.compute_betti_numbers(np.pad(mask, 2)) == (pieces, holes)


# --- thin vessels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("turned", [False, True])
def test_widths_of_bars_are_exact(width: int, turned: bool) -> None:
    mask = bar(8, 8 + width).T if turned else bar(8, 8 + width)
    skeleton = np.argwhere(cm.skeleton_of(mask))
    middle = skeleton[np.abs(skeleton[:, 0 if turned else 1] - 20) < 5]
    assert len(middle) >= 9
    np.testing.assert_allclose(cm._widths(mask, middle), width)


def test_thin_vessel_recall_counts_thin_vessels_only() -> None:
    thin, wide = bar(5, 6), bar(20, 29)
    truth = thin | wide
    half = thin.copy()
    half[:, :20] = False
    found, all_of_them = cm.compute_thin_vessel_counts(wide | half, truth)
    assert (found, all_of_them) == (15, 30)
    assert cm.compute_thin_vessel_counts(wide | half, truth, scale=4.0).tolist() == [0, 0]  # 4 px wide now
    assert cm.compute_thin_vessel_counts(thin, bar(20, 23)).tolist()[0] == 0
    assert cm.compute_thin_vessel_counts(thin, bar(20, 24) & bar(0, 40, 8, 32)).tolist()[0] == 0
    assert math.isnan(cm.compute_share(cm.compute_thin_vessel_counts(thin, empty())))


def test_three_pixels_are_thin_and_four_are_not() -> None:
    """Of a bar 4 px wide only its ends are, where the distance is to the end."""
    assert cm.compute_thin_vessel_counts(bar(5, 8), bar(5, 8))[1] == cm.skeleton_of(bar(5, 8)).sum()
    assert cm.compute_thin_vessel_counts(bar(5, 9), bar(5, 9))[1] <= 4


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_sensitivity_at_specificity_by_hand() -> None:
    """20 background pixels allow one false positive at 0.95: the threshold 0.6 finds 3 of 4 vessel pixels."""
    background = [0.7, 0.55] + [0.1] * 18
    scores = np.array([0.9, 0.8, 0.6, 0.5, *background], np.float32)
    label = np.array([1] * 4 + [0] * 20)
    histogram = np.stack(score_histogram(scores, label))
    assert cm.compute_sensitivity_at_specificity(histogram) == 0.75
    assert cm.compute_sensitivity_at_specificity(histogram, 0.9) == 1
    assert cm.compute_sensitivity_at_specificity(histogram, 1.0) == 0.5
    assert cm.compute_sensitivity_at_specificity(np.stack([histogram, histogram])).tolist() == [0.75, 0.75]


def test_sensitivity_at_specificity_needs_both_classes_and_splits_no_ties() -> None:
    constant = np.full(10, 0.3, np.float32)
    label = np.arange(10) < 5
    assert cm.compute_sensitivity_at_specificity(np.stack(score_histogram(constant, label))) == 0
    for label in (np.zeros(10), np.ones(10)):
        assert math.isnan(cm.compute_sensitivity_at_specificity(np.stack(score_histogram(constant, label))))


@pytest.mark.parametrize("seed", range(3))
def test_sensitivity_at_specificity_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.random(5000) < 0.1
    scores = np.clip(0.3 * label + 0.7 * rng.random(5000), 0, 1).astype(np.float32)
    false, true, _ = roc_curve(label, scores, drop_intermediate=False)
    found = cm.compute_sensitivity_at_specificity(np.stack(score_histogram(scores, label)))
    assert found == pytest.approx(true[false <= 0.05].max(), abs=1 / label.sum() + 1e-9)


def test_calibration_by_hand() -> None:
    """Ten pixels at 0.2 of which 5 are vessel, ten at 0.9 of which 9 are: ECE = (0.3 + 0) / 2."""
    probability = np.repeat([0.2, 0.9], 10)[None]
    truth = np.repeat([True, False, True, False], [5, 5, 9, 1])[None]
    bins = cm.compute_calibration_bins(probability, truth, np.ones_like(truth))
    assert bins.sum(0).tolist() == pytest.approx([20, 11, 14])
    assert bins[3].tolist() == pytest.approx([10, 2, 5])  # 3/15 to 4/15
    assert cm.compute_ece(bins) == pytest.approx(0.15)
    assert math.isnan(cm.compute_ece(np.zeros_like(bins)))


def test_calibration_keeps_zero_and_one_and_leaves_the_outside_out() -> None:
    probability = np.array([[0.0, 1.0, 1.0]])
    bins = cm.compute_calibration_bins(probability, np.array([[False, True, False]]), np.array([[True, True, False]]))
    assert bins[0].tolist() == [1, 0, 0]
    assert bins[-1].tolist() == [1, 1, 1]
    assert cm.compute_ece(bins) == 0


# --- accumulator -----------------------------------------------------------------------------------------------------


def images(count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and truths, in 40 x 40."""
    rng = np.random.default_rng(0)
    truths = [bar(5 + 2 * i, 9 + 2 * i) | bar(30, 31) for i in range(count)]
    return [((0.45 * truth + 0.55 * rng.random((40, 40))).astype(np.float32), truth) for truth in truths]


def test_another_threshold_gives_the_metrics_of_its_masks() -> None:
    probability, truth = images(1)[0]
    ours = cm.ComparisonMetrics(threshold=0.3, bootstrap=0).update(probability, truth, field((40, 40)), "a", "a")
    masks = cm.ComparisonMetrics(bootstrap=0).update(
        (probability >= 0.3).astype(np.float32), truth, field((40, 40)), "a", "a"
    )
    for name in ("dice", "cldice", "sensitivity", "boundary_iou", "surface_dice", "hd95_px", "betti0_error"):
        assert ours[name] == masks[name], name
    half = cm.ComparisonMetrics(bootstrap=0).update(probability, truth, field((40, 40)), "a", "a")
    assert half["surface_dice"] != ours["surface_dice"]


def test_what_exists_is_taken_from_vessel_metrics() -> None:
    ours, known = cm.ComparisonMetrics(bootstrap=20), VesselMetrics(bootstrap=20)
    view = field((40, 40), (2, 3, 38, 36))
    for number, (probability, truth) in enumerate(images()):
        row = ours.update(probability, truth, view, f"{number}", number)
        expected = known.update(probability[None], truth[None], view.mask[None], f"{number}", number)
        assert row == row | {key: pytest.approx(value) for key, value in expected.items()}
    pooled, summary = ours.pooled(), known.summary()
    for name in ("ap", "auc", "dice", "sensitivity", "specificity", "precision", "accuracy", "cldice"):
        ends = {end: pytest.approx(summary[f"{name}_{end}"]) for end in ("low", "high")}
        assert pooled[name] == {"value": pytest.approx(summary[name])} | ends
        assert ours.per_image()[name]["value"] == pytest.approx(summary[f"per_image/{name}"])


def test_a_perfect_prediction() -> None:
    found = cm.ComparisonMetrics(bootstrap=20)
    for number, (_, truth) in enumerate(images()):
        found.update(truth.astype(np.float32), truth, field((40, 40)), f"{number}", number)
    best = dict.fromkeys(cm.NAMES, 1.0) | dict.fromkeys(("hd95_px", "betti0_error", "betti1_error", "ece"), 0.0)
    assert {name: value["value"] for name, value in found.per_image().items()} == best
    pooled = found.pooled()
    assert {name: value["value"] for name, value in pooled.items()} == {name: best[name] for name in pooled}
    assert pooled["boundary_iou"] == {"value": 1, "low": 1, "high": 1}
    assert not pooled.keys() & {"surface_dice", "hd95_px", "betti0_error", "betti1_error"}


def test_what_lies_outside_the_field_of_view_changes_nothing() -> None:
    (probability, truth), view = images()[0], field((40, 40), (2, 3, 38, 30))
    changed, scribbled = probability.copy(), truth.copy()
    changed[:, 30:], scribbled[:, 30:] = 1.0, True
    rows = [cm.ComparisonMetrics(bootstrap=1).update(probability, truth, view, "a", 0)]
    rows.append(cm.ComparisonMetrics(bootstrap=1).update(changed, scribbled, view, "a", 0))
    assert rows[0] == rows[1]


def test_nothing_predicted_is_the_worst_not_undefined() -> None:
    truth = bar(5, 6)
    row = cm.ComparisonMetrics(512.0, False, 1).update(np.zeros((40, 40), np.float32), truth, field((40, 40)), "a", 0)
    assert row["hd95_px"] == 512
    assert row["surface_dice"] == row["thin_vessel_recall"] == row["boundary_iou"] == row["dice"] == 0
    assert (row["betti0_error"], row["betti1_error"]) == (1, 0)


def test_masks_have_no_ranking_metrics() -> None:
    found = cm.ComparisonMetrics(probabilities=False, bootstrap=20)
    for number, (_, truth) in enumerate(images()):
        found.update(truth.astype(np.float32), truth, field((40, 40)), f"{number}", number)
    assert not set(cm.RANKING) & (found.rows[0].keys() | found.pooled().keys() | found.per_image().keys())


def test_pooled_counts_and_means_differ() -> None:
    """Thin vessels: 30 of 30 found in one image, 0 of 10 in another."""
    found, short = cm.ComparisonMetrics(1024, False, 20), bar(5, 6, 5, 15)
    found.update(bar(5, 6).astype(np.float32), bar(5, 6), field((40, 40)), "a", 0)
    found.update(bar(20, 21).astype(np.float32), short, field((40, 40)), "b", 1)
    assert found.pooled()["thin_vessel_recall"]["value"] == 0.75
    assert found.per_image()["thin_vessel_recall"]["value"] == 0.5
    assert found.per_image([False, True])["thin_vessel_recall"]["value"] == 0
    assert found.pooled()["thin_vessel_recall"]["low"] == 0


def test_the_interval_of_a_ranking_metric_holds_its_value_however_close_the_scores_are() -> None:
    """They fall into one of the wider bins that are kept for the interval, where nothing is left of the ranking."""
    found = cm.ComparisonMetrics(bootstrap=50)
    for number, (probability, truth) in enumerate(images()):
        found.update((0.6 + 1e-4 * probability).astype(np.float32), truth, field((40, 40)), f"{number}", number)
    value = found.pooled()["sensitivity_at_95_specificity"]
    assert value["value"] > 0.1
    assert value["low"] <= value["value"] <= value["high"] <= 1


def test_errors_name_the_image_and_the_remedy() -> None:
    found = cm.ComparisonMetrics(bootstrap=1)
    with pytest.raises(ValueError, match=r"^a: .*\(40, 40\).*\(41, 40\).*same pixel frame"):
        found.update(np.zeros((40, 40), np.float32), empty(41), field((41, 40)), "a", 0)
    with pytest.raises(ValueError, match="diameter must be positive, got 0"):
        cm.ComparisonMetrics(0)


def test_one_behind_the_other_is_all_in_one() -> None:
    """Subjects that occur in both parts are still drawn together, and the parts stay as they are."""
    rng = np.random.default_rng(0)
    images = [(rng.random((40, 40)).astype(np.float32), bar(9 + i, 12 + i), f"{i}", "ABAC"[i]) for i in range(4)]
    whole, first, second = (cm.ComparisonMetrics(bootstrap=20) for _ in range(3))
    for number, (probability, truth, name, subject) in enumerate(images):
        for metrics in (whole, first if number < 2 else second):
            metrics.update(probability, truth, field((40, 40)), name, subject)
    before, joined = first.summary(), cm.ComparisonMetrics(bootstrap=20)
    for part in (first, second):
        joined.extend(part)
    assert joined.summary() == pytest.approx(whole.summary(), nan_ok=True)
    assert (joined.rows, joined.calibration.tolist()) == (whole.rows, whole.calibration.tolist())
    assert first.summary() == pytest.approx(before, nan_ok=True)


def test_images_without_a_group_stay_apart_in_one_behind_the_other() -> None:
    whole, joined = VesselMetrics(bootstrap=50), VesselMetrics(bootstrap=50)
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.random((1, 40, 40)).astype(np.float32), bar(9 + number, 12 + number)[None], np.ones((1, 40, 40))
        alone = VesselMetrics()
        for metrics in (whole, alone):
            metrics.update(*image)
        joined.extend(alone)
    names = ("ap", "ap_low", "ap_high", "cldice_low")
    assert [joined.summary()[name] for name in names] == pytest.approx([whole.summary()[name] for name in names])
