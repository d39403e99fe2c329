"""Ground truth: vessel masks drawn by people, and checks for files that are not one."""

import os
from pathlib import Path

import numpy as np

from .fov import FieldOfView
from .io import has_two_values, mask_of, read_grey

LABEL_MAP = 15  # of 255 or 65535: the highest value of all predictions that is taken for the number of a class
PICTURE = 0.25  # share of pixels neither dark nor bright: of a JPEG of a mask they are the edges of vessels alone
_REMEDY = "give masks of two values"


def read_truth(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a vessel mask as (H, W) bool.

    Raises ValueError for a label map and for a picture, which have other values than a mask, and FundusReadError.
    """
    grey = read_grey(path)
    if not has_two_values(grey):
        unit = grey / np.float32(255) if grey.dtype == np.uint8 else grey
        if unit.max() <= LABEL_MAP / 255:
            raise ValueError(f"{path}: is this a label map? It has several values, none above {LABEL_MAP}; {_REMEDY}")
        if (between := float(((unit > 0.25) & (unit < 0.75)).mean())) > PICTURE:
            raise ValueError(
                f"{path}: is this a photograph or an overlay? {between:.0%} of its pixels are neither dark nor bright; "
                f"{_REMEDY}"
            )
    return mask_of(grey)


def check_truth(label: np.ndarray, fov: FieldOfView, name: str, path: Path) -> None:
    """Raise ValueError for a mask without vessels and for one that is mostly vessel: empty, of another eye, inverted.

    label: (H, W) bool. fov: of the photograph; sizes are compared elsewhere. name, path:
    of the photograph and of the mask, for the message.
    """
    if label.shape != fov.shape:
        return
    inside = label[fov.mask]
    if not inside.any():
        raise ValueError(
            f"{name}: the ground truth has no vessel pixel in the field of view; correct or remove it ({path})"
        )
    if (share := float(inside.mean())) > 0.5:
        raise ValueError(
            f"{name}: {share:.0%} of the field of view is vessel in the ground truth; is it inverted? ({path})"
        )
