"""AP and Dice of what is tried on photographs: other weights, worse photographs, test-time flips."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from skimage.util import img_as_ubyte
from tqdm import tqdm

from ..evaluation import predict
from ..fundus import FieldOfView, detect_fov
from ..fundus.io import read_image, read_mask
from ..histograms import DEFAULT_BINS, average_precision_from_histogram, score_bins, score_histogram
from ..inference import Pipeline
from ..metrics import VesselMetrics, compute_dice
from ..networks import Network, variants
from ..runtime import bar_interval
from ..windows import FundusWindowInferer
from .degradations import DEGRADATIONS, MAX_PIXELS

Entries = Sequence[Mapping[str, str]]
GRID = np.round(np.arange(0.05, 0.951, 0.01), 2)


class Score:
    """AP, and Dice at one threshold, of pixels in the field of view, pooled over photographs."""

    def __init__(self, threshold: float) -> None:
        self._metrics = VesselMetrics(threshold, with_cldice=False, bootstrap=0)

    def add(self, probability: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> None:
        """One photograph: (H, W) float32 in [0, 1], bool, bool."""
        self._metrics.update(probability[None], truth[None], inside[None])

    def result(self) -> dict[str, float]:
        """The two, by name."""
        summary = self._metrics.summary()
        return {name: summary[name] for name in ("ap", "dice")}


def choose_threshold(pipeline: Pipeline, entries: Entries) -> dict[str, Any]:
    """The threshold of GRID with the highest mean Dice of the photographs: of the validation part.

    Not of their pooled pixels: the camera with the most pixels would choose for all others.
    """
    histogram = np.zeros((2, DEFAULT_BINS), dtype=np.int64)
    dice = np.zeros(len(GRID))
    for entry in _bar(entries, "threshold"):
        item = pipeline.prepare(entry["image"], entry["angle"])
        inside = FieldOfView(**item["image"].meta["fov"]).mask
        own = torch.stack(score_histogram(_probability(pipeline, item), read_mask(entry["label"]), inside)).numpy()
        histogram += own
        dice += dice_over(GRID, *own) / len(entries)
    best, half = int(dice.argmax()), int(np.argmin(np.abs(GRID - 0.5)))
    return {
        "value": float(GRID[best]),
        "dice": float(dice[best]),
        "dice_at_half": float(dice[half]),
        "ap": float(average_precision_from_histogram(*histogram)),
        "images": len(entries),
        "subjects": len({entry["subject"] for entry in entries}),
        "grid": [float(GRID[0]), float(GRID[-1]), len(GRID)],
    }


def dice_over(thresholds: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Dice (K,) of masks of scores of at least each threshold (K,), exact to the width of a bin.

    positives, negatives: (bins,) as of ``score_histogram``.
    """
    first = score_bins(torch.as_tensor(thresholds, dtype=torch.float32), len(positives)).numpy()
    above = [np.append(np.cumsum(each[::-1])[::-1], 0)[first] for each in (positives, negatives)]
    missed = positives.sum() - above[0]
    return compute_dice(np.stack([above[0], above[1], missed, np.zeros_like(missed)], -1))


def compare(pipeline: Pipeline, entries: Entries) -> dict[str, dict[str, float]]:
    """AP and Dice of a network, dense and pruned."""
    measured = variants(pipeline.network)
    scores = {name: Score(pipeline.threshold) for name in measured}
    for entry in _bar(entries, "original weights"):
        item, truth = pipeline.prepare(entry["image"], entry["angle"]), read_mask(entry["label"])
        inside = FieldOfView(**item["image"].meta["fov"]).mask
        for name, network in measured.items():
            scores[name].add(_probability(pipeline, item, network), truth, inside)
    return {name: score.result() for name, score in scores.items()}


def robustness(pipeline: Pipeline, entries: Entries) -> dict[str, Any]:
    """Clean and degraded photographs, all scored in the field of view of the clean one, moved alike.

    A degradation that would make one of them larger than MAX_PIXELS is left out.
    """
    largest = max(_pixels(entry) for entry in entries)
    degradations = [each for each in DEGRADATIONS if each.tells_angle or _scaled_by_angle(pipeline, entries)]
    tried = [each for each in degradations if largest * each.growth <= MAX_PIXELS]
    clean = Score(pipeline.threshold)
    scores = {each.name: Score(pipeline.threshold) for each in tried}
    same_pixels = {each.name: Score(pipeline.threshold) for each in tried if each.cut}
    for entry in _bar(entries, "robustness"):
        pixels, truth = read_image(entry["image"]), read_mask(entry["label"])
        pixels = pixels if pixels.dtype == np.uint8 else img_as_ubyte(pixels)
        fov = detect_fov(pixels)
        found = pipeline(pixels, entry["angle"]).probability
        clean.add(found, truth, fov.mask)
        for each in tried:
            masks = [each.mask(mask) for mask in (truth, fov.mask)]
            angle = entry["angle"] if each.tells_angle else None
            scores[each.name].add(pipeline(each.image(pixels, fov.diameter), angle).probability, *masks)
            if each.cut:
                same_pixels[each.name].add(each.mask(found), *masks)
    rows = {
        each.name: {
            "title": each.title,
            "clean": same_pixels.get(each.name, clean).result(),
            "degraded": scores[each.name].result(),
        }
        for each in tried
    }
    left_out = [each.title for each in degradations if each not in tried]
    return {"photographs": [entry["name"] for entry in entries], "rows": rows, "left_out": left_out}


def flips(pipeline: Pipeline, entries: Entries) -> dict[str, Any]:
    """The network with and without test-time flips, in turn: AP, Dice, and how many times as long it takes."""
    own = pipeline.inferer
    other = FundusWindowInferer(own.window_size, own.overlap, own.batch_size, own.blend, own.device, flips=True)
    inferers = {"plain": own, "flips": other}
    scores = {name: Score(pipeline.threshold) for name in inferers}
    times: dict[str, list[float]] = {name: [] for name in inferers}
    for number, entry in enumerate(_bar(entries, "flips")):
        item, truth = pipeline.prepare(entry["image"], entry["angle"]), read_mask(entry["label"])
        inside = FieldOfView(**item["image"].meta["fov"]).mask
        for name in sorted(inferers, reverse=bool(number % 2)):
            found = predict(pipeline.network, item, pipeline.preprocessing, inferers[name], pipeline.device)
            times[name].append(found.seconds)
            scores[name].add(found.probability[0].numpy(), truth, inside)
    cost = float(np.median(np.divide(times["flips"], times["plain"])))
    return {"images": len(entries), "cost": cost, **{name: score.result() for name, score in scores.items()}}


def _probability(pipeline: Pipeline, item: Mapping[str, Any], network: Network | None = None) -> np.ndarray:
    network = pipeline.network if network is None else network
    return predict(network, item, pipeline.preprocessing, pipeline.inferer, pipeline.device).probability[0].numpy()


def _pixels(entry: Mapping[str, str]) -> int:
    return int(np.prod(read_image(entry["image"]).shape[:2]))


def _scaled_by_angle(pipeline: Pipeline, entries: Entries) -> bool:
    """Whether it makes a difference that the angle of view is known."""
    return pipeline.by_angle and any(entry["angle"] for entry in entries)


def _bar(entries: Entries, title: str) -> tqdm:
    return tqdm(entries, desc=title, mininterval=bar_interval())
