"""What is written for a photograph: one function for each output."""

from collections.abc import Callable
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image
from skimage.measure import block_reduce
from skimage.segmentation import find_boundaries

from ..fundus.io import encode_mask
from ..plots import FOUND, overlay
from .names import output_name, sample_name
from .store import Store
from .volumes import encode_nifti

THUMBNAIL_SIDE = 320  # px


class Result(NamedTuple):
    """One segmented frame, in the frame of the photograph.

    pixels: (H, W, 3) uint8 or float32. probability: (H, W) float32. mask: (H, W) bool. spacing: millimetres per row and
    column, or None.
    """

    pixels: np.ndarray
    probability: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float] | None


def encode_probability(result: Result) -> bytes:
    """16-bit PNG: 65535 times the probability."""
    return bytes(imagecodecs.png_encode(np.rint(result.probability * 65535).astype(np.uint16), level=1))


def encode_overlay(result: Result) -> bytes:
    """The photograph with its vessels painted, JPEG."""
    return _jpeg(overlay(result.pixels, result.mask))


def encode_contour(result: Result) -> bytes:
    """The photograph with the outlines of its vessels, JPEG: what lies below a vessel stays to be seen."""
    picture = overlay(result.pixels, np.zeros_like(result.mask))
    picture[find_boundaries(result.mask, mode="outer")] = FOUND
    return _jpeg(picture)


def encode_thumbnail(result: Result) -> bytes:
    """The overlay at most THUMBNAIL_SIDE px wide and high, JPEG, for the report."""
    # Painted after shrinking, so that thin vessels do not vanish.
    step = max(1, -(-max(result.mask.shape) // THUMBNAIL_SIDE))
    share = block_reduce(result.mask, (step, step), np.mean)
    plain = Image.fromarray(overlay(result.pixels, np.zeros_like(result.mask)))
    small = np.asarray(plain.resize(share.shape[::-1], Image.Resampling.BOX))
    return _jpeg(overlay(small, share > 0.35), 80)


def _jpeg(picture: np.ndarray, level: int = 90) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(picture, level=level))


class Writer(NamedTuple):
    """folder and suffix of an output, and the function that gives its bytes."""

    folder: str
    suffix: str
    encode: Callable[[Result], bytes]


WRITERS = {
    "mask": Writer("masks", ".png", lambda result: encode_mask(result.mask)),
    "probability": Writer("probabilities", ".png", encode_probability),
    "overlay": Writer("overlays", ".jpg", encode_overlay),
    "contour": Writer("contours", ".jpg", encode_contour),
    "nifti": Writer("nifti", ".nii.gz", lambda result: encode_nifti(result.mask, result.spacing)),
}

PLACES = {
    **{name: (writer.folder, writer.suffix) for name, writer in WRITERS.items()},
    "dicom-seg": ("segmentations", ".dcm"),
}


class Outputs:
    """Takes the outputs of one file, one after the other, so that those of many frames are not held together.

    name: of the file. store: where they go at once; None: they are kept for an archive. sizes: bytes of those in the
    store, by their names there. archived: those that were kept, by their names in an archive.
    """

    def __init__(self, name: str, store: Store | None) -> None:
        self.name, self.store = name, store
        self.sizes: dict[str, int] = {}
        self.archived: dict[str, bytes] = {}

    def add(self, kind: str, data: bytes, frame: int | None = None) -> None:
        """kind: of PLACES. frame: which one of the file, None where it holds no other. Raises OSError."""
        folder, suffix = PLACES[kind]
        if self.store is None:
            self.archived[f"{sample_name(self.name, frame)}.{kind}{suffix}"] = data
            return
        place = output_name(folder, self.name, suffix, frame)
        self.store.put(place, data)
        self.sizes[place] = len(data)
