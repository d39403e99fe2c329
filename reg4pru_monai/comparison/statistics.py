"""Statistics of a comparison: pure functions on arrays, without MLflow."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from ..metrics import bootstrap_interval

RESAMPLES = 2000
RECALL_POINTS = 401


class ImageMean(NamedTuple):
    """A mean over images and its 95 % bootstrap interval over images; nan where it cannot be had."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean paired difference: intervals over images, and over images and seeds; how many images are higher."""

    value: float
    low: float
    high: float
    seeds_low: float
    seeds_high: float
    images: int
    higher: int


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) over seeds; nan for the deviation of fewer than two."""
    known = np.asarray(values, dtype=np.float64)
    if not known.size:
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1)) if known.size > 1 else float("nan")


def image_mean(values: np.ndarray, groups: Sequence[Hashable]) -> ImageMean:
    """Mean over images of the mean over seeds.

    values: (S, I) one row per seed, nan where the metric is undefined; groups: (I,) images drawn together.
    An image that is undefined for one of the seeds is left out, so that every seed has the same images.
    """
    complete = np.isfinite(values).all(0)
    means = values[:, complete].mean(0)
    if not means.size:
        return ImageMean(*[float("nan")] * 3)
    chosen = [group for group, kept in zip(groups, complete, strict=True) if kept]
    return ImageMean(float(means.mean()), *bootstrap_interval(means, n=RESAMPLES, groups=chosen))


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, groups: Sequence[Hashable], same_seeds: bool, seed: int = 0
) -> Difference | None:
    """Mean over images of ours minus theirs, paired by image.

    ours: (S, I), theirs: (T, I), one row per seed, the same images in the same order. groups: (I,) images that are
    drawn together. same_seeds: row s of both has the same seed, and both are drawn together. Returns None where no
    image is defined in all rows.
    """
    complete = np.isfinite(ours).all(0) & np.isfinite(theirs).all(0)
    if not complete.any():
        return None
    ours, theirs = ours[:, complete], theirs[:, complete]
    chosen = [group for group, kept in zip(groups, complete, strict=True) if kept]
    differences = ours.mean(0) - theirs.mean(0)
    low, high = bootstrap_interval(differences, n=RESAMPLES, seed=seed, groups=chosen)
    both = _over_both(ours, theirs, chosen, same_seeds, seed)
    higher = int((differences > 0).sum())
    return Difference(float(differences.mean()), low, high, *both, len(chosen), higher)


def _over_both(
    ours: np.ndarray, theirs: np.ndarray, groups: Sequence[Hashable], same_seeds: bool, seed: int
) -> tuple[float, float]:
    """Percentile interval where seeds and groups of images are both drawn; nan with one seed on both sides."""
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(names) < 2 or max(len(ours), len(theirs)) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    weights = _draws(generator, len(names))[:, [names[name] for name in groups]]
    first = _draws(generator, len(ours)) / len(ours)
    second = first if same_seeds else _draws(generator, len(theirs)) / len(theirs)
    differences = ((first @ ours - second @ theirs) * weights).sum(1) / weights.sum(1)
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)


def _draws(generator: np.random.Generator, count: int) -> np.ndarray:
    """How often each of ``count`` is drawn: (RESAMPLES, count)."""
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def pareto_front(speeds: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the points that none beats in both, by ascending speed. Higher is better; nan is left out.

    Of points that are equal in both, all are kept.
    """
    points = [(speed, value) for speed, value in zip(speeds, values, strict=True)]

    def beaten(point: tuple[float, float]) -> bool:
        return any(p[0] >= point[0] and p[1] >= point[1] and p != point for p in points)

    known = [i for i, point in enumerate(points) if np.isfinite(point).all() and not beaten(point)]
    return sorted(known, key=lambda i: points[i])


def mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds of precision at equal recall, for drawing.

    curves: (recall, precision), each (K,). Returns recall (RECALL_POINTS,) in [0, 1] and precision, nan at recalls
    below the lowest measured one.
    """
    grid = np.linspace(0, 1, RECALL_POINTS)
    sampled = []
    for recall, precision in curves:
        order = np.lexsort((-precision, recall))
        sampled.append(np.interp(grid, recall[order], precision[order], left=float("nan")))
    return grid, np.mean(sampled, axis=0)
