"""Streaming ranking metrics: histograms of scores that add up over images, and AP, AUC and curves from them.

A pixel counts where ``fov`` > 0 and ``label`` >= 0; a negative label means *ignore*. A ratio without a denominator is
NaN (see docs/metrics.md for every empty case).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# Score bins follow the float32 format: a score below 1/2 is binned by its own bits, a score above by the bits of
# 1 - score (exact there). So the resolution is relative to the distance from 0 and from 1, which keeps saturated scores
# apart where bins uniform in probability merge them, needs no logarithm, and puts the edge between "below 1/2" and
# "1/2 or more" exactly in the middle. Distances of 2**-16 and more get four times the bins per octave of smaller ones.
DEFAULT_BINS = 2**20  # 16384 and 4096 per octave, 16 MiB of counts
_MIN_BINS = 64
_MAX_BINS = _MIN_BINS * 2**23  # every distance of 2**-16 and more its own bin
_LOWEST_EXPONENT = 127 - 64  # scores below 2**-64 share the first bin
_COARSE_OCTAVES = 48  # from 2**-64 to 2**-16
_SCORE_TOLERANCE = 1e-4  # interpolation may overshoot [0, 1] by rounding

Array = np.ndarray | torch.Tensor


# --- pixels -----------------------------------------------------------------------------------------------------------


def plain(array: Array) -> torch.Tensor:
    """The tensor without metadata, detached."""
    tensor = torch.as_tensor(array).detach()
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor


def scored_pixels(label: Array, fov: Array | None, shape: torch.Size) -> torch.Tensor:
    """Where a pixel counts: bool, flat. Raises ValueError when the shapes differ."""
    label = plain(label)
    valid = label >= 0
    if label.shape != shape or (fov is not None and tuple(fov.shape) != tuple(shape)):
        raise ValueError(
            f"prediction, label and fov must have one shape, got {tuple(shape)}, {tuple(label.shape)} and "
            f"{None if fov is None else tuple(fov.shape)}: bring them to the same pixel frame"
        )
    return (valid if fov is None else valid & (plain(fov).to(valid.device) > 0)).reshape(-1)


def checked_scores(scores: torch.Tensor) -> torch.Tensor:
    """Scores as float32 in [0, 1]. Raises ValueError for NaN and for values that are no probabilities."""
    scores = scores.to(torch.float32)
    if scores.numel() == 0:
        return scores
    low, high = (value.item() for value in torch.aminmax(scores))
    if np.isnan(low) or np.isnan(high):
        raise ValueError(f"probability holds {int(scores.isnan().sum())} NaN of {scores.numel()} scores")
    if low < -_SCORE_TOLERANCE or high > 1 + _SCORE_TOLERANCE:
        raise ValueError(f"probability must be in [0, 1], got {low:.4g} to {high:.4g}: apply a sigmoid to logits first")
    return scores.clamp(0, 1)


def score_bins(scores: torch.Tensor, bins: int = DEFAULT_BINS) -> torch.Tensor:
    """Bin of each score, int32 in [0, bins), monotonic in the score; scores of 1/2 and more take the upper half.

    scores: any shape, float32 in [0, 1]. bins: a power of two from 2**6 to 2**29.
    """
    if not _MIN_BINS <= bins <= _MAX_BINS or bins & (bins - 1):
        raise ValueError(f"bins must be a power of two from {_MIN_BINS} to {_MAX_BINS}, got {bins}")
    mantissa_bits = (bins // _MIN_BINS).bit_length() - 1
    distance = torch.minimum(scores, 1 - scores)
    fine = distance.view(torch.int32) >> (23 - mantissa_bits)
    fine.sub_(_LOWEST_EXPONENT << mantissa_bits).clamp_(min=0)
    code = torch.maximum(fine >> 2, fine - (_COARSE_OCTAVES * 3 // 4 << mantissa_bits))  # equal at 2**-16
    return torch.where(scores < 0.5, code, bins - 1 - code)


def score_histogram(
    probability: Array, label: Array, fov: Array | None = None, bins: int = DEFAULT_BINS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count vessel and background pixels per score bin, ascending in score.

    probability, label, fov: one shape; probability in [0, 1], compared as float32; label > 0 is vessel, < 0 is ignored.
    Returns (positives, negatives), each (bins,) int64. Histograms of several images add up.
    Raises ValueError for NaN or non-probabilities inside the field of view, and for shapes that differ.
    """
    scores = plain(probability)
    valid = scored_pixels(label, fov, scores.shape).to(scores.device)
    scores = checked_scores(scores.reshape(-1)[valid])
    vessel = plain(label).to(scores.device).reshape(-1)[valid] > 0
    counts = torch.bincount(score_bins(scores, bins) * 2 + vessel, minlength=2 * bins).view(bins, 2)
    return counts[:, 1].contiguous(), counts[:, 0].contiguous()


def reduce_histogram(histogram: torch.Tensor, bins: int) -> torch.Tensor:
    """Merge neighbouring bins: (..., N) to (..., bins), equal to the histogram computed with fewer bins."""
    if bins > histogram.shape[-1]:
        raise ValueError(f"a histogram of {histogram.shape[-1]} bins cannot be refined to {bins}")
    return histogram.reshape(*histogram.shape[:-1], bins, -1).sum(-1)


def lowest_scores(index: np.ndarray, bins: int = DEFAULT_BINS) -> np.ndarray:
    """The lowest score (K,) float32 that ``score_bins`` puts into each of the given bins (K,) or a higher one.

    By bisection over the bits of float32, which ascend with the number, from 0 to 1.
    """
    wanted = torch.as_tensor(np.asarray(index))
    low, high = torch.zeros_like(wanted, dtype=torch.int32), torch.full_like(wanted, 0x3F800000, dtype=torch.int32)
    while bool((low < high).any()):
        middle = (low + high) // 2
        enough = score_bins(middle.view(torch.float32), bins) >= wanted
        low, high = torch.where(enough, low, middle + 1).int(), torch.where(enough, middle, high).int()
    return low.view(torch.float32).numpy()


# --- ranking metrics from histograms ----------------------------------------------------------------------------------


def ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Elementwise quotient, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    empty = denominator == 0
    return np.where(empty, np.nan, numerator / np.where(empty, 1.0, denominator))


def _descending(counts: Array) -> np.ndarray:
    """Counts as float64, highest score first (sums stay exact below 2**53)."""
    return np.flip(np.asarray(counts, dtype=np.float64), axis=-1)


def average_precision_from_histogram(positives: Array, negatives: Array) -> np.ndarray:
    """Area under the precision-recall steps, sum over bins of (R_n - R_(n-1)) P_n, as in scikit-learn.

    positives, negatives: (..., bins) counts, ascending in score. Returns (...) float64, NaN without positives.
    """
    hits = _descending(positives)
    true = hits.cumsum(-1)
    predicted = true + _descending(negatives).cumsum(-1)
    precision = true / np.maximum(predicted, 1e-300)
    return ratio((hits * precision).sum(-1), hits.sum(-1))


def roc_auc_from_histogram(positives: Array, negatives: Array) -> np.ndarray:
    """Area under the ROC curve by trapezoids: P(vessel scores higher) + P(same bin) / 2.

    positives, negatives: (..., bins) counts, ascending in score. Returns (...) float64, NaN unless both classes occur.
    """
    hits, misses = np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)
    lower_or_tied = misses.cumsum(-1) - misses / 2
    return ratio((hits * lower_or_tied).sum(-1), hits.sum(-1) * misses.sum(-1))


def precision_recall_from_histogram(positives: Array, negatives: Array) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (K,) float64 at every occupied bin, from the highest score down; one histogram (bins,)."""
    hits, misses = _descending(positives), _descending(negatives)
    occupied = (hits + misses) > 0
    true, false = hits[occupied].cumsum(), misses[occupied].cumsum()
    return ratio(true, true + false), ratio(true, hits.sum())
