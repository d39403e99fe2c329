"""What is written for a photograph: one function for each output, complete files only."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image
from skimage.measure import block_reduce
from skimage.segmentation import find_boundaries

from ..files import replacing
from ..fundus.io import write_mask
from ..plots import FOUND, overlay
from .names import output_path
from .volumes import write_nifti

THUMBNAIL_SIDE = 320  # px
SEGMENTATIONS = "segmentations"  # folder of the DICOM segmentations


class Result(NamedTuple):
    """One segmented frame, in the frame of the photograph.

    pixels: (H, W, 3) uint8 or float32. probability: (H, W) float32. mask: (H, W) bool. spacing: millimetres per row and
    column, or None.
    """

    pixels: np.ndarray
    probability: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float] | None


def write_probability(path: Path, result: Result) -> None:
    """16-bit PNG: 65535 times the probability."""
    data = imagecodecs.png_encode(np.rint(result.probability * 65535).astype(np.uint16), level=1)
    with replacing(path) as beside:
        beside.write_bytes(data)


def write_overlay(path: Path, result: Result) -> None:
    """The photograph with its vessels painted, JPEG."""
    _write_jpeg(path, overlay(result.pixels, result.mask))


def write_contour(path: Path, result: Result) -> None:
    """The photograph with the outlines of its vessels, JPEG: what lies below a vessel stays to be seen."""
    picture = overlay(result.pixels, np.zeros_like(result.mask))
    picture[find_boundaries(result.mask, mode="outer")] = FOUND
    _write_jpeg(path, picture)


def write_thumbnail(path: Path, result: Result) -> None:
    """The overlay at most THUMBNAIL_SIDE px wide and high, JPEG, for the report."""
    # Painted after shrinking, so that thin vessels do not vanish.
    step = max(1, -(-max(result.mask.shape) // THUMBNAIL_SIDE))
    share = block_reduce(result.mask, (step, step), np.mean)
    plain = Image.fromarray(overlay(result.pixels, np.zeros_like(result.mask)))
    small = np.asarray(plain.resize(share.shape[::-1], Image.Resampling.BOX))
    _write_jpeg(path, overlay(small, share > 0.35), 80)


def _write_jpeg(path: Path, picture: np.ndarray, level: int = 90) -> None:
    data = imagecodecs.jpeg8_encode(picture, level=level)
    with replacing(path) as beside:
        beside.write_bytes(data)


class Writer(NamedTuple):
    """folder and suffix of an output, and the function that writes it."""

    folder: str
    suffix: str
    write: Callable[[Path, Result], None]


WRITERS = {
    "mask": Writer("masks", ".png", lambda path, result: write_mask(path, result.mask)),
    "probability": Writer("probabilities", ".png", write_probability),
    "overlay": Writer("overlays", ".jpg", write_overlay),
    "contour": Writer("contours", ".jpg", write_contour),
    "nifti": Writer("nifti", ".nii.gz", lambda path, result: write_nifti(path, result.mask, result.spacing)),
}


def write_outputs(
    output: Path, name: str, frame: int | None, outputs: tuple[str, ...], result: Result
) -> dict[str, int]:
    """Write the outputs of a photograph. Returns their sizes in bytes, by path in the output folder. Raises OSError.

    frame: which one of its file, None where the file holds no other.
    """
    written = []
    for key in outputs:
        if key in WRITERS:
            path = output_path(output, WRITERS[key].folder, name, WRITERS[key].suffix, frame)
            WRITERS[key].write(path, result)
            written.append(path)
    return sizes(output, written)


def sizes(output: Path, written: Sequence[Path]) -> dict[str, int]:
    """Sizes in bytes of files, by their path relative to the output folder. Raises OSError."""
    return {path.relative_to(output).as_posix(): path.stat().st_size for path in written}
