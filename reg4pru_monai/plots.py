"""Pictures: overlays, kept tokens, precision-recall curves, accuracy against speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from skimage.util import img_as_ubyte

from .files import replacing

FOUND, MISSED, FALSE = (0, 220, 80), (255, 60, 60), (60, 140, 255)


def overlay(image: np.ndarray, mask: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
    """Vessels drawn onto the photograph: green found, and with a label also red missed and blue false.

    image: (H, W, 3) uint8 or float in [0, 1]. mask, label: (H, W) bool. Returns (H, W, 3) uint8.
    """
    picture = img_as_ubyte(np.clip(image, 0, 1)) if image.dtype != np.uint8 else image.copy()
    if label is None:
        return _paint(picture, mask, FOUND)
    for region, colour in ((mask & label, FOUND), (label & ~mask, MISSED), (mask & ~label, FALSE)):
        picture = _paint(picture, region, colour)
    return picture


def _paint(picture: np.ndarray, region: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    picture = picture.copy()
    picture[region] = (0.35 * picture[region] + 0.65 * np.array(colour)).astype(np.uint8)
    return picture


def token_map(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The photograph with the tokens that were dropped darkened.

    image: (H, W, 3) uint8. kept: (h, w) in [0, 1], how far through the network each token went. Returns (H, W, 3).
    """
    scale = np.array(image.shape[:2]) / np.array(kept.shape)
    rows = np.minimum((np.arange(image.shape[0]) / scale[0]).astype(int), kept.shape[0] - 1)
    columns = np.minimum((np.arange(image.shape[1]) / scale[1]).astype(int), kept.shape[1] - 1)
    return (image * (0.15 + 0.85 * kept[rows][:, columns, None])).astype(np.uint8)


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 picture; the folder is made."""
    with replacing(path) as beside:
        Image.fromarray(picture).save(beside, quality=90)


def save_curves(
    path: str | Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], average_precision: Mapping[str, float]
) -> None:
    """Plot precision-recall curves. curves: name -> (precision, recall)."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for name, (precision, recall) in curves.items():
        axes.plot(recall, precision, label=f"{name}, AP {average_precision[name]:.3f}")
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1), title="Pixels in the field of view")
    axes.legend(loc="lower left")
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)


def save_reliability(path: str | Path, calibrations: Mapping[str, np.ndarray]) -> None:
    """Plot the share of vessel pixels over the mean probability of each bin, and below how many pixels there are.

    calibrations: name -> (bins, 3) as of ``mask_metrics.compute_calibration_bins``.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    from .mask_metrics import compute_ece

    figure = Figure(figsize=(5, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="grey", linestyle="--", linewidth=1, label="calibrated")
    for number, (name, bins) in enumerate(calibrations.items()):
        used, error = bins[bins[:, 0] > 0], float(compute_ece(bins))
        label, colour = f"{name}, ECE {error:.3f}", f"C{number}"
        dashes, marker = ("-", "o") if number == 0 else ("--", "x")  # so that equal curves both show
        above.plot(used[:, 1] / used[:, 0], used[:, 2] / used[:, 0], dashes, marker=marker, label=label, color=colour)
        below.stairs(bins[:, 0], np.linspace(0, 1, len(bins) + 1), color=colour, linestyle=dashes)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="Share of vessel pixels", title="Pixels in the field of view")
    above.legend(loc="upper left")
    below.set(yscale="log", ylabel="Pixels", xlabel="Predicted probability of vessel")
    below.minorticks_off()  # they take longest to draw
    figure.savefig(path, dpi=120)


class Measured(NamedTuple):
    """A point of accuracy against speed. keep: keep rate, or None. low, high: interval of the speed-up."""

    network: str
    keep: float | None
    speedup: float
    low: float
    high: float
    ap: float


def save_ap_against_speed(path: str | Path, panels: Mapping[str, Sequence[Measured]]) -> None:
    """Plot AP against speed-up over dense, one panel per setting. panels: title -> points."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 4.5 * columns, 0.5 + 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    names = list(dict.fromkeys(point.network for points in panels.values() for point in points))
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=False):
        for number, name in enumerate(names):
            if own := [point for point in points if point.network == name]:
                _draw_series(axes, own, f"C{number}")
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="Speed-up over dense", ylabel="Average precision")
        axes.label_outer()
        axes.grid(alpha=0.3)
        axes.axvline(1, color="grey", linestyle="--", linewidth=1)
        axes.margins(0.12)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    named = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, title="keep rates beside points,\n95 % intervals", loc="outside right center")
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)


def _draw_series(axes: Any, points: Sequence[Measured], colour: str) -> None:
    """One network over its keep rates, joined by a line, each point named by its keep rate."""
    points = sorted(points, key=lambda point: point.keep or 0.0)
    x, y = [point.speedup for point in points], [point.ap for point in points]
    error = [[p.speedup - p.low for p in points], [p.high - p.speedup for p in points]]
    marker = "o" if any(point.keep is not None for point in points) else "D"
    axes.errorbar(x, y, xerr=error, color=colour, marker=marker, capsize=3, label=points[0].network)
    for point in points:
        if point.keep is not None:
            axes.annotate(f"{point.keep:g}", (point.speedup, point.ap), (5, 5), textcoords="offset points", fontsize=8)
