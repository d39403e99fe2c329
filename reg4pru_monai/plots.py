"""Pictures: overlays, kept tokens, precision-recall curves."""

from collections.abc import Mapping
from pathlib import Path

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
