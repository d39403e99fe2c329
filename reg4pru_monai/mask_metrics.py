"""Metrics of boundaries, topology, thin vessels and calibration: ``compute_*`` functions, then an accumulator.

Masks are cut to the field of view by the caller. Lengths are px at canonical scale: ``scale`` is how many of them one
px of the mask is. Definitions and their sources: docs/evaluate.md.
"""

import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import euler_number, label

from .fundus import DEFAULT_DIAMETER, FieldOfView
from .histograms import DEFAULT_BINS, ratio, reduce_histogram, score_histogram
from .metrics import STORED_BINS, Statistic, VesselMetrics, bootstrap_interval, histogram_interval, skeleton_of

BOUNDARY_SHARE = 0.02  # of the image diagonal, Cheng et al.; wider than vessels, so that this is nearly their plain IoU
NARROW_SHARE = 0.002  # 3 px of a field of view of 1024
SURFACE_TOLERANCE = 2.0  # px at canonical scale
THIN_WIDTH = 3.0  # px at canonical scale
SPECIFICITY = 0.95
CALIBRATION_BINS = 15  # Guo et al.
_QUARTERS = np.array([(row, column) for row in (-0.25, 0.25) for column in (-0.25, 0.25)])


# --- boundaries -------------------------------------------------------------------------------------------------------


def compute_boundary_counts(prediction: np.ndarray, truth: np.ndarray, share: float = BOUNDARY_SHARE) -> np.ndarray:
    """Pixels (2,) int64 in the intersection and in the union of the two boundary regions.

    A boundary region is what of a mask lies within d px of its outside, counted with 8-connected steps, where d is
    ``share`` of the image diagonal, rounded, at least 1; beyond the image is outside (Cheng et al., CVPR 2021).
    prediction, truth: (H, W) bool.
    """
    distance = max(1, round(share * float(np.hypot(*truth.shape))))
    regions = []
    for mask in (prediction, truth):
        depth = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
        regions.append(mask & (depth <= distance))
    return np.array([(regions[0] & regions[1]).sum(), (regions[0] | regions[1]).sum()], dtype=np.int64)


def compute_share(counts: np.ndarray) -> np.ndarray:
    """First over second of counts (..., 2): boundary IoU, thin-vessel recall; NaN where the second is 0."""
    return ratio(counts[..., 0], counts[..., 1])


def compute_surface_dice(
    prediction: np.ndarray, truth: np.ndarray, scale: float = 1.0, tolerance: float = SURFACE_TOLERANCE
) -> float:
    """Share of both boundaries that lies within ``tolerance`` of the other one; ``monai.metrics`` computes it.

    Nikolov et al. 2021. prediction, truth: (H, W) bool. NaN when both are empty, 0 when one is.
    """
    from monai.metrics import compute_surface_dice as surface_dice

    if not (prediction.any() and truth.any()):
        return 0.0 if prediction.any() or truth.any() else float("nan")
    with _quiet():
        return float(
            surface_dice(_batch(prediction), _batch(truth), [tolerance], include_background=True, spacing=scale)
        )


def compute_hd95(prediction: np.ndarray, truth: np.ndarray, scale: float = 1.0, worst: float = float("inf")) -> float:
    """95th percentile of the distances between the boundaries, the larger of both directions; from ``monai.metrics``.

    Taha and Hanbury 2015. prediction, truth: (H, W) bool. NaN when both are empty, ``worst`` when one is.
    """
    from monai.metrics import compute_hausdorff_distance as hausdorff_distance

    if not (prediction.any() and truth.any()):
        return worst if prediction.any() or truth.any() else float("nan")
    with _quiet():
        return float(
            hausdorff_distance(_batch(prediction), _batch(truth), include_background=True, percentile=95, spacing=scale)
        )


def _batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides that MONAI calls a function of its own with an argument that it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        yield


# --- topology and thin vessels ----------------------------------------------------------------------------------------


def compute_betti_numbers(mask: np.ndarray) -> tuple[int, int]:
    """Betti-0 and Betti-1 of (H, W) bool: connected pieces, and holes.

    Pieces are 8-connected and the background is 4-connected, so that holes = pieces - Euler number.
    """
    pieces = int(label(mask, connectivity=2, return_num=True)[1])
    return pieces, pieces - int(euler_number(mask, connectivity=2))


def compute_thin_vessel_counts(
    prediction: np.ndarray, truth: np.ndarray, scale: float = 1.0, width: float = THIN_WIDTH
) -> np.ndarray:
    """Skeleton pixels (2,) int64 of the truth's thin vessels: those in the prediction, and all.

    A skeleton pixel is thin where the vessel is at most ``width`` px wide. prediction, truth: (H, W) bool.
    """
    skeleton = np.argwhere(skeleton_of(truth))
    thin = skeleton[_widths(truth, skeleton) * scale <= width + 1e-6]
    return np.array([prediction[tuple(thin.T)].sum(), len(thin)], dtype=np.int64)


def _widths(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Vessel width (P,) in px at points (P, 2) of its skeleton: twice the distance to the outside.

    Measured between quarters of pixels: between whole ones, widths of 1 and 2 px, and of 3 and 4, are the same.
    """
    if not len(points):
        return np.zeros(0)
    padded = np.pad(mask, 2)  # beyond the image is outside
    outside = np.argwhere(ndimage.binary_dilation(padded) & ~padded) - 2
    tree = KDTree((outside[:, None] + _QUARTERS).reshape(-1, 2))
    distance, _ = tree.query((points[:, None] + _QUARTERS).reshape(-1, 2))
    return 2 * distance.reshape(-1, 4).max(1)


# --- probabilities ----------------------------------------------------------------------------------------------------


def compute_sensitivity_at_specificity(histograms: np.ndarray, specificity: float = SPECIFICITY) -> np.ndarray:
    """The highest sensitivity of all thresholds whose specificity is at least the given one.

    histograms: (..., 2, bins) counts of vessel and background pixels, ascending in score, as of ``score_histogram``.
    Returns (...) float64, NaN unless both classes occur.
    """
    counts = np.flip(np.asarray(histograms, dtype=np.float64), -1).cumsum(-1)
    true, false = counts[..., 0, :], counts[..., 1, :]
    allowed = false <= (1 - specificity) * false[..., -1:] + 1e-9  # the rounding of 1 - 0.95
    best = np.where(allowed, true, 0.0).max(-1)
    return np.where(false[..., -1] == 0, np.nan, ratio(best, true[..., -1]))


def compute_calibration_bins(
    probability: np.ndarray, truth: np.ndarray, fov: np.ndarray, bins: int = CALIBRATION_BINS
) -> np.ndarray:
    """Per bin of equal width in [0, 1]: pixels, sum of their probabilities, vessel pixels; (bins, 3) float64.

    probability: (H, W) in [0, 1]; truth, fov: (H, W) bool. Bins include their lower edge. Arrays of images add up.
    """
    scores, vessel = probability[fov].astype(np.float64), truth[fov]
    index = np.minimum((scores * bins).astype(np.int64), bins - 1)
    return np.stack([np.bincount(index, weights, bins) for weights in (None, scores, vessel)], -1).astype(np.float64)


def compute_ece(calibration: np.ndarray) -> np.ndarray:
    """Expected calibration error from (..., bins, 3): mean over pixels of |mean probability - vessel share| of the bin.

    Guo et al., ICML 2017, eq. 3, of the probability of vessel. Returns (...), NaN without pixels.
    """
    pixels, scores, vessels = np.moveaxis(calibration, -1, 0)
    return ratio(np.abs(scores - vessels).sum(-1), pixels.sum(-1))


# --- accumulator ------------------------------------------------------------------------------------------------------

LOWER_IS_BETTER = ("hd95_px", "betti0_error", "betti1_error", "ece")
RANKING = ("ap", "auc", "sensitivity_at_95_specificity", "ece")  # need probabilities
NAMES = (
    *("ap", "auc", "dice", "sensitivity", "specificity", "precision", "accuracy", "sensitivity_at_95_specificity"),
    *("cldice", "thin_vessel_recall", "boundary_iou", "boundary_iou_narrow", "surface_dice", "hd95_px"),
    *("betti0_error", "betti1_error", "ece"),
)
_POOLED: dict[str, Statistic] = {
    "sensitivity_at_95_specificity": compute_sensitivity_at_specificity,
    "thin_vessel_recall": compute_share,
    "boundary_iou": compute_share,
    "boundary_iou_narrow": compute_share,
    "ece": compute_ece,
}
Values = dict[str, dict[str, float]]


def flat(values: Values) -> dict[str, float]:
    """``name``, ``name_low``, ``name_high`` for each name."""
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {f"{name}{ends[end]}": number for name, each in values.items() for end, number in each.items()}


class ComparisonMetrics:
    """All metrics of a set of predictions inside the field of view: per image, their means, and pooled.

    vessels: the ``VesselMetrics`` that it builds on. Memory: theirs, and another 256 KiB per image for probabilities.
    """

    def __init__(
        self,
        diameter: float = DEFAULT_DIAMETER,
        probabilities: bool = True,
        bootstrap: int = 1000,
        seed: int = 0,
        threshold: float = 0.5,
    ) -> None:
        """``diameter``: px of the field of view at canonical scale. ``probabilities``: False leaves RANKING out.

        ``threshold``: a probability of at least this is vessel.
        """
        if diameter <= 0:
            raise ValueError(f"diameter must be positive, got {diameter}")
        self.diameter, self.probabilities = diameter, probabilities
        self.names = tuple(name for name in NAMES if probabilities or name not in RANKING)
        self.rows: list[dict[str, Any]] = []
        self.calibration = np.zeros((CALIBRATION_BINS, 3))
        self.vessels = VesselMetrics(threshold, bootstrap=bootstrap, seed=seed)
        self._options: dict[str, Any] = {"n": bootstrap, "seed": seed}
        self._subjects: list[Hashable] = []
        self._counts: dict[str, list[np.ndarray]] = {}
        self._histogram = np.zeros((2, DEFAULT_BINS), dtype=np.int64)

    def update(
        self, probability: np.ndarray, truth: np.ndarray, fov: FieldOfView, name: str, subject: Hashable
    ) -> dict[str, Any]:
        """Add one image and return its row.

        probability: (H, W) float32 in [0, 1], or 0 and 1. truth: (H, W) bool. subject: both eyes of one are drawn
        together for the intervals. Raises ValueError naming the image for shapes that differ.
        """
        if not probability.shape == truth.shape == fov.shape:
            raise ValueError(
                f"{name}: prediction {probability.shape}, ground truth {truth.shape} and photograph {fov.shape} "
                "differ in size (rows, columns); bring them to the same pixel frame"
            )
        r0, c0, r1, c1 = fov.box
        box = np.s_[r0:r1, c0:c1]
        inside, scores = fov.mask[box], probability[box]
        vessel, predicted = truth[box] & inside, (scores >= self.vessels.threshold) & inside
        known = self.vessels.update(probability[None], truth[None], fov.mask[None], name, subject)
        values = known | self._shape(predicted, vessel, self.diameter / fov.diameter)
        if self.probabilities:
            values |= self._ranking(scores, vessel, inside)
        row = {key: values[key] for key in ("name", "pixels", "vessel_pixels", *self.names)}
        self._subjects.append(subject)
        self.rows.append(row)
        return row

    def extend(self, other: "ComparisonMetrics") -> None:
        """Add the images of another one behind these; it stays as it is."""
        self.vessels.extend(other.vessels)
        self.rows += other.rows
        self.calibration = self.calibration + other.calibration
        self._histogram = self._histogram + other._histogram
        self._subjects += other._subjects
        for name, counts in other._counts.items():
            self._counts.setdefault(name, []).extend(counts)

    def _shape(self, predicted: np.ndarray, vessel: np.ndarray, scale: float) -> dict[str, float]:
        """Metrics of masks that ``VesselMetrics`` has not."""
        pieces, holes = (abs(a - b) for a, b in zip(*map(compute_betti_numbers, (predicted, vessel)), strict=True))
        counted = {
            "boundary_iou": compute_boundary_counts(predicted, vessel),
            "boundary_iou_narrow": compute_boundary_counts(predicted, vessel, NARROW_SHARE),
            "thin_vessel_recall": compute_thin_vessel_counts(predicted, vessel, scale),
        }
        return self._keep(counted) | {
            "surface_dice": compute_surface_dice(predicted, vessel, scale),
            "hd95_px": compute_hd95(predicted, vessel, scale, worst=self.diameter),
            "betti0_error": float(pieces),
            "betti1_error": float(holes),
        }

    def _ranking(self, scores: np.ndarray, vessel: np.ndarray, inside: np.ndarray) -> dict[str, float]:
        """Metrics of probabilities that ``VesselMetrics`` has not."""
        key = "sensitivity_at_95_specificity"
        histogram = torch.stack(score_histogram(scores, vessel, inside))
        calibration = compute_calibration_bins(scores, vessel, inside)
        self._histogram += histogram.numpy()
        self.calibration += calibration
        self._counts.setdefault(key, []).append(reduce_histogram(histogram, STORED_BINS).numpy().astype(np.int32))
        return self._keep({"ece": calibration}) | {key: float(compute_sensitivity_at_specificity(histogram.numpy()))}

    def _keep(self, counted: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Remember the counts for pooling; returns the values of this image."""
        for key, counts in counted.items():
            self._counts.setdefault(key, []).append(counts)
        return {key: float(_POOLED[key](counts)) for key, counts in counted.items()}

    def pooled(self) -> Values:
        """Each metric that can be pooled: value, low, high (95 % bootstrap over subjects)."""
        known = self.vessels.summary()
        result: Values = {}
        for name in self.names:
            if name in _POOLED:
                result[name] = self._pool(name)
            elif name in known:
                ends = {end: known[f"{name}_{end}"] for end in ("low", "high")}
                result[name] = {"value": known[name]} | ends
        return result

    def _pool(self, name: str) -> dict[str, float]:
        rows = np.stack(self._counts[name])
        statistic, total, options = _POOLED[name], rows.sum(0), {**self._options, "groups": self._subjects}
        if rows.shape[1:] == (2, STORED_BINS):
            total = self._histogram
            low, high = histogram_interval(statistic, total, rows, **options)
        else:
            low, high = bootstrap_interval(rows, statistic, **options)
        return {"value": float(statistic(total)), "low": low, "high": high}

    def summary(self) -> dict[str, float]:
        """Flat, as ``VesselMetrics.summary`` and with what that has not: ``ece``, ``per_image/hd95_px_low``, …"""
        known = self.vessels.summary()
        images = {f"per_image/{name}": value for name, value in self.per_image().items()}
        found = {name: self._pool(name) for name in self.names if name in _POOLED} | images
        return known | flat({name: value for name, value in found.items() if name not in known})

    def per_image(self, chosen: list[bool] | None = None) -> Values:
        """Mean of each metric over the images for which it is defined: value, low, high. chosen: (I,) some images."""
        kept = [number for number in range(len(self.rows)) if chosen is None or chosen[number]]
        subjects = [self._subjects[number] for number in kept]
        result: Values = {}
        for name in self.names:
            values = np.array([self.rows[number][name] for number in kept], dtype=np.float64)
            mean = float(ratio(np.nansum(values), np.isfinite(values).sum()))
            low, high = bootstrap_interval(values, groups=subjects, **self._options)
            result[name] = {"value": mean, "low": low, "high": high}
        return result
