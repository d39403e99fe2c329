"""Segmentation metrics: pure ``compute_*`` functions, then accumulators around them; AP and AUC from ``histograms``.

A pixel counts where ``fov`` > 0 and ``label`` >= 0; a negative label means *ignore*. A ratio without a denominator is
NaN (see docs/metrics.md for every empty case).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.metrics import CumulativeIterationMetric
from monai.transforms import MapTransform
from monai.utils import evenly_divisible_all_gather
from skimage.morphology import skeletonize

from .histograms import (
    DEFAULT_BINS,
    Array,
    average_precision_from_histogram,
    checked_scores,
    lowest_scores,
    plain,
    precision_recall_from_histogram,
    ratio,
    reduce_histogram,
    roc_auc_from_histogram,
    score_histogram,
    scored_pixels,
)

STORED_BINS = 2**15  # per image, for the bootstrap: 512 and 128 per octave, 256 KiB of int32 counts
Statistic = Callable[[np.ndarray], np.ndarray]


# --- metrics at one threshold -----------------------------------------------------------------------------------------


def compute_confusion(prediction: Array, label: Array, fov: Array | None = None) -> np.ndarray:
    """Pixel counts (4,) int64: true positive, false positive, false negative, true negative.

    prediction: bool or > 0; label: > 0 vessel, < 0 ignored; fov: > 0 inside; one shape.
    """
    predicted = plain(prediction)
    valid = scored_pixels(label, fov, predicted.shape).to(predicted.device)
    predicted = (predicted > 0).reshape(-1)[valid]
    vessel = plain(label).to(predicted.device).reshape(-1)[valid] > 0
    true, called, real = (int(mask.sum()) for mask in (predicted & vessel, predicted, vessel))
    return np.array([true, called - true, real - true, int(valid.sum()) - called - real + true], dtype=np.int64)


def compute_dice(confusion: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) from counts (..., 4); NaN when neither prediction nor label holds a vessel pixel."""
    tp, fp, fn, _ = np.moveaxis(confusion, -1, 0)
    return ratio(2 * tp, 2 * tp + fp + fn)


def compute_sensitivity(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FN) from counts (..., 4); NaN without vessels."""
    return ratio(confusion[..., 0], confusion[..., 0] + confusion[..., 2])


def compute_specificity(confusion: np.ndarray) -> np.ndarray:
    """TN / (TN + FP) from counts (..., 4); NaN without background."""
    return ratio(confusion[..., 3], confusion[..., 3] + confusion[..., 1])


def compute_precision(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FP) from counts (..., 4); NaN when no pixel is predicted."""
    return ratio(confusion[..., 0], confusion[..., 0] + confusion[..., 1])


def compute_accuracy(confusion: np.ndarray) -> np.ndarray:
    """(TP + TN) / all from counts (..., 4); NaN without pixels."""
    return ratio(confusion[..., 0] + confusion[..., 3], np.sum(confusion, -1))


def skeleton_of(mask: np.ndarray) -> np.ndarray:
    """One-pixel skeleton (H, W) bool; computed on the bounding box, with a border so that edges thin like the rest."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    skeleton = np.zeros_like(mask)
    if rows.size:
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        skeleton[box] = skeletonize(np.pad(mask[box], 1))[1:-1, 1:-1]
    return skeleton


def compute_skeleton_counts(prediction: Array, label: Array, fov: Array | None = None) -> np.ndarray:
    """Pixel counts (4,) int64 for clDice: skeleton of the prediction on the label, all of it; and the reverse.

    prediction, label, fov: (H, W) or (1, H, W); masks are cut to the field of view before they are thinned.
    """
    plane = plain(prediction).shape[-2:]
    inside = scored_pixels(label, fov, plain(prediction).shape).cpu().numpy().reshape(plane)
    predicted, vessel = ((plain(a) > 0).cpu().numpy().reshape(plane) & inside for a in (prediction, label))
    thin_predicted, thin_vessel = skeleton_of(predicted), skeleton_of(vessel)
    parts = (thin_predicted & vessel, thin_predicted, thin_vessel & predicted, thin_vessel)
    return np.array([part.sum() for part in parts], dtype=np.int64)


def compute_cldice(skeleton_counts: np.ndarray) -> np.ndarray:
    """Centreline Dice from counts (..., 4): harmonic mean of topology precision and sensitivity.

    Shit et al., CVPR 2021, eq. 2. NaN when both skeletons are empty, 0 when one is.
    """
    on_label, predicted, on_prediction, vessel = np.moveaxis(np.asarray(skeleton_counts, dtype=np.float64), -1, 0)
    precision, sensitivity = np.nan_to_num(ratio(on_label, predicted)), np.nan_to_num(ratio(on_prediction, vessel))
    value = np.nan_to_num(ratio(2 * precision * sensitivity, precision + sensitivity))
    return np.where(predicted + vessel == 0, np.nan, value)


# --- intervals --------------------------------------------------------------------------------------------------------


def mean_statistic(sums: np.ndarray) -> np.ndarray:
    """Mean from sums of (value, 1) rows: (..., 2) to (...)."""
    return ratio(sums[..., 0], sums[..., 1])


def bootstrap_interval(
    rows: np.ndarray,
    statistic: Statistic | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval over images (Efron and Tibshirani 1993, ch. 13).

    rows: (I, ...) one row per image; a resample is summed over its images and ``statistic`` maps (R, ...) sums to (R,).
    Without a statistic rows are values (I,) and their mean is taken, NaN left out.
    groups: (I,) e.g. the subject: images of one group are drawn together. Returns (low, high), NaN below two groups.
    """
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n must be positive and level in (0, 1), got n={n} and level={level}")
    rows = np.asarray(rows, dtype=np.float64)
    if statistic is None:
        known = np.isfinite(rows)
        rows, statistic = np.stack([np.where(known, rows, 0.0), known], -1), mean_statistic
    labels = list(range(len(rows))) if groups is None else list(groups)
    if len(labels) != len(rows):
        raise ValueError(f"groups must name the group of each of the {len(rows)} images, got {len(labels)}")
    names = {name: i for i, name in enumerate(dict.fromkeys(labels))}
    if len(names) < 2:
        return float("nan"), float("nan")
    pooled = np.zeros((len(names), *rows.shape[1:]))
    np.add.at(pooled, [names[name] for name in labels], rows)
    values = _resample(pooled, statistic, n, seed)
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def histogram_interval(
    statistic: Statistic, pooled: np.ndarray, stored: np.ndarray, **options: Any
) -> tuple[float, float]:
    """``bootstrap_interval`` of a share from histograms (I, 2, bins), whose bins are wider than those of ``pooled``.

    Moved by what the wider bins change in the value of all images, and kept in [0, 1].
    """
    low, high = bootstrap_interval(stored, statistic, **options)
    shift = float(statistic(pooled) - statistic(stored.sum(0)))
    return float(np.clip(low + shift, 0, 1)), float(np.clip(high + shift, 0, 1))


def _resample(rows: np.ndarray, statistic: Statistic, n: int, seed: int) -> np.ndarray:
    """The statistic of n resamples (n,), in chunks so that the sums stay near 32 MiB."""
    weights = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n)
    flat = rows.reshape(len(rows), -1)
    chunk = max(1, 2**22 // max(1, flat.shape[1]))
    parts = (weights[i : i + chunk] @ flat for i in range(0, n, chunk))
    return np.concatenate([statistic(part.reshape(-1, *rows.shape[1:])) for part in parts])


# --- accumulators -----------------------------------------------------------------------------------------------------

FROM_CONFUSION: dict[str, Statistic] = {
    "dice": compute_dice,
    "sensitivity": compute_sensitivity,
    "specificity": compute_specificity,
    "precision": compute_precision,
    "accuracy": compute_accuracy,
}
FROM_HISTOGRAM: dict[str, Statistic] = {
    "ap": lambda h: average_precision_from_histogram(h[..., 0, :], h[..., 1, :]),
    "auc": lambda h: roc_auc_from_histogram(h[..., 0, :], h[..., 1, :]),
}
FROM_SKELETON: dict[str, Statistic] = {"cldice": compute_cldice}


def _occupied(histograms: Array) -> np.ndarray:
    """(..., 2, bins) without the bins that are empty everywhere: they change no metric and are most of them."""
    histograms = np.asarray(histograms)
    return histograms[..., histograms.any(tuple(range(histograms.ndim - 1)))]


def _apply(table: Mapping[str, Statistic], counts: Array) -> dict[str, float]:
    return {name: float(statistic(np.asarray(counts))) for name, statistic in table.items()}


class VesselMetrics:
    """Metrics of a test set, image by image: pooled, full-frame, per image, with intervals.

    Memory: two histograms of ``DEFAULT_BINS``, and 256 KiB per image for the interval of AP and AUC.
    """

    def __init__(self, threshold: float = 0.5, with_cldice: bool = True, bootstrap: int = 1000, seed: int = 0) -> None:
        """``threshold``: a score of at least this is vessel. ``bootstrap``: number of resamples, 0 for no intervals."""
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold}")
        self.threshold, self.with_cldice, self.bootstrap, self.seed = threshold, with_cldice, bootstrap, seed
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._inside = torch.zeros(2, DEFAULT_BINS, dtype=torch.int64)
        self._outside = torch.zeros(2, DEFAULT_BINS, dtype=torch.int64)
        self._rows: list[dict[str, Any]] = []
        self._groups: list[Hashable] = []
        self._stored: dict[str, list[np.ndarray]] = {"histogram": [], "confusion": [], "skeleton": []}
        self._frame_counts = np.zeros((2, 4), dtype=np.int64)  # confusion and skeleton of the full frame

    def update(
        self, probability: Array, label: Array, fov: Array, name: str | None = None, group: Hashable | None = None
    ) -> dict[str, Any]:
        """Add one image and return its row: name, pixels and vessel_pixels inside the FOV, and each metric there.

        probability: (1, H, W) in [0, 1]; label: (1, H, W), > 0 vessel; fov: (1, H, W), > 0 inside.
        group: images that belong together in the bootstrap (both eyes of a subject); by default each its own.
        Raises ValueError naming the image for NaN, scores outside [0, 1] and shapes that differ.
        """
        name = f"image {len(self._rows)}" if name is None else name
        try:
            scores = checked_scores(plain(probability))
            label, fov = (plain(array).to(scores.device) for array in (label, fov))
            outside = fov <= 0
            inside_counts = torch.stack(score_histogram(scores, label, fov)).cpu()
            outside_counts = torch.stack(score_histogram(scores, label, outside)).cpu()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        predicted = scores >= self.threshold
        confusion = compute_confusion(predicted, label, fov)
        row = {"name": name, "pixels": int(confusion.sum()), "vessel_pixels": int(confusion[[0, 2]].sum())}
        row |= _apply(FROM_HISTOGRAM, _occupied(inside_counts)) | _apply(FROM_CONFUSION, confusion)
        self._frame_counts[0] += confusion + compute_confusion(predicted, label, outside)
        if self.with_cldice:
            row |= self._add_skeletons(predicted, label, fov, outside)
        self._inside += inside_counts
        self._outside += outside_counts
        self._stored["histogram"].append(reduce_histogram(inside_counts, STORED_BINS).numpy().astype(np.int32))
        self._stored["confusion"].append(confusion)
        self._groups.append(len(self._rows) if group is None else ("group", group))
        self._rows.append(row)
        return row

    def extend(self, other: VesselMetrics) -> None:
        """Add the images of another one behind these; it stays as it is."""
        before = len(self._rows)
        self._inside = self._inside + other._inside
        self._outside = self._outside + other._outside
        self._frame_counts = self._frame_counts + other._frame_counts
        self._groups += [before + group if isinstance(group, int) else group for group in other._groups]
        self._rows += other._rows
        for name, counts in other._stored.items():
            self._stored[name] += counts

    def _add_skeletons(
        self, predicted: torch.Tensor, label: torch.Tensor, fov: torch.Tensor, outside: torch.Tensor
    ) -> dict[str, float]:
        """ClDice inside the FOV; the full frame is thinned only where it differs."""
        counts = compute_skeleton_counts(predicted, label, fov)
        beyond = bool(((predicted | (label > 0)) & outside).any())
        self._stored["skeleton"].append(counts)
        self._frame_counts[1] += compute_skeleton_counts(predicted, label) if beyond else counts
        return _apply(FROM_SKELETON, counts)

    def operating_points(self, points: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds, and pooled precision and recall inside the FOV; (K,) float64 each, recall ascending, K <= points.

        A score of at least the threshold is vessel.
        """
        precision, recall = precision_recall_from_histogram(self._inside[0], self._inside[1])
        if not self._inside[0].any():
            return np.empty(0), np.empty(0), np.empty(0)
        chosen = np.unique(np.searchsorted(recall, np.linspace(recall[0], 1, points)).clip(max=len(recall) - 1))
        occupied = np.flatnonzero(np.asarray(self._inside).any(0))[::-1]
        return lowest_scores(occupied[chosen]), precision[chosen], recall[chosen]

    def summary(self) -> dict[str, float]:
        """Flat dictionary: ``ap`` … pooled in the FOV, ``full_frame/…``, ``per_image/…`` means, ``…_low``, ``…_high``.

        Raises ValueError before the first image.
        """
        if not self._rows:
            raise ValueError("no image was added: call update() for each image first")
        result = {"images": float(len(self._rows))}
        result |= _apply(FROM_HISTOGRAM, _occupied(self._inside)) | _apply(
            FROM_CONFUSION, np.sum(self._stored["confusion"], 0)
        )
        frame = _apply(FROM_HISTOGRAM, _occupied(self._inside + self._outside)) | _apply(
            FROM_CONFUSION, self._frame_counts[0]
        )
        if self.with_cldice:
            result |= _apply(FROM_SKELETON, np.sum(self._stored["skeleton"], 0))
            frame |= _apply(FROM_SKELETON, self._frame_counts[1])
        result |= {f"full_frame/{key}": value for key, value in frame.items()}
        for key in frame:
            values = np.array([row[key] for row in self._rows])
            result[f"per_image/{key}"] = float(mean_statistic(np.array([np.nansum(values), np.isfinite(values).sum()])))
        return result | (self._intervals(list(frame)) if self.bootstrap else {})

    def _intervals(self, keys: list[str]) -> dict[str, float]:
        """Bootstrap bounds of the pooled metrics and of the means per image."""
        bounds: dict[str, tuple[float, float]] = {}
        pooled, histograms = _occupied(self._inside), _occupied(np.stack(self._stored["histogram"]))
        for key, statistic in FROM_HISTOGRAM.items():
            options = {"n": self.bootstrap, "seed": self.seed, "groups": self._groups}
            bounds[key] = histogram_interval(statistic, pooled, histograms, **options)
        for table, rows in ((FROM_CONFUSION, "confusion"), (FROM_SKELETON, "skeleton")):
            if self._stored[rows]:
                bounds |= {key: self._interval(np.stack(self._stored[rows]), table[key]) for key in table}
        for key in keys:
            bounds[f"per_image/{key}"] = self._interval(np.array([row[key] for row in self._rows]), None)
        ends = ("low", "high")
        return {f"{key}_{end}": value for key, pair in bounds.items() for end, value in zip(ends, pair, strict=True)}

    def _interval(self, rows: np.ndarray, statistic: Statistic | None) -> tuple[float, float]:
        return bootstrap_interval(rows, statistic, self.bootstrap, self.seed, groups=self._groups)


class IgnoreOutsideFovd(MapTransform):
    """Write the label with -1 outside the field of view (metrics ignore it there) under another key.

    A MONAI evaluator hands a metric two tensors, prediction and label; this is how the field of view reaches it.
    Use it as a post-processing step, then ``output_transform=from_engine(["pred", "target"])``.
    """

    def __init__(self, keys: KeysCollection = "label", fov_key: str = "fov", output_key: str = "target") -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"IgnoreOutsideFovd writes one {output_key!r}: name one label key, got {self.keys}")
        self.fov_key, self.output_key = fov_key, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add ``output_key``, the shape of the label: 1 vessel, 0 background, -1 outside."""
        result = dict(data)
        label = plain(data[self.keys[0]])
        inside = plain(data[self.fov_key]).to(label.device) > 0
        result[self.output_key] = torch.where(inside, (label >= 0.5).float(), -1.0)
        return result


class _PooledMetric(CumulativeIterationMetric):
    """Sums counts over all images and keeps one value per image; takes lists of (1, H, W), and (B, 1, H, W)."""

    def _counts(self, probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _value(self, counts: np.ndarray) -> float:
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        nothing = torch.zeros(1, 1, 1)
        self._sum = self._counts(nothing, nothing - 1)

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Any:
        """Add images: y_pred probabilities, y labels with negatives ignored. Returns their own values (B, 1)."""
        if y is None or len(y_pred) != len(y):
            raise ValueError(f"{self}: got {len(y_pred)} predictions and {0 if y is None else len(y)} labels")
        return super().__call__(y_pred, y, **kwargs)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        assert y is not None  # checked in __call__
        values = []
        for probability, label in zip(y_pred, y, strict=True):
            counts = self._counts(probability, label).cpu()
            self._sum = self._sum + counts
            values.append([self._value(counts.numpy())])
        return torch.tensor(values, dtype=torch.float32)

    def aggregate(self) -> torch.Tensor:
        """The metric of all pixels pooled, over all processes: float32 scalar, NaN where undefined."""
        counts = evenly_divisible_all_gather(self._sum[None], concat=True).sum(0)
        return torch.tensor(self._value(counts.cpu().numpy()))

    def get_buffer(self) -> torch.Tensor:
        """The metric of each image, over all processes: (I, 1) float32, also where a process saw no image."""
        own = torch.stack(self._buffers[0]) if self._buffers else torch.empty(0, 1)
        return evenly_divisible_all_gather(own, concat=True)


class StreamingAveragePrecision(_PooledMetric):
    """Pooled average precision in constant memory, for ``monai.handlers.IgniteMetricHandler``."""

    def __init__(self, bins: int = DEFAULT_BINS) -> None:
        self.bins = bins
        super().__init__()

    def _counts(self, probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.stack(score_histogram(probability, label, bins=self.bins))

    def _value(self, counts: np.ndarray) -> float:
        return float(FROM_HISTOGRAM["ap"](_occupied(counts)))


class VesselDice(_PooledMetric):
    """Pooled Dice of the mask ``probability >= threshold``, for ``monai.handlers.IgniteMetricHandler``."""

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold}")
        self.threshold = threshold
        super().__init__()

    def _counts(self, probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compute_confusion(checked_scores(plain(probability)) >= self.threshold, label))

    def _value(self, counts: np.ndarray) -> float:
        return float(compute_dice(counts))
