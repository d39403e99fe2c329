"""Indicators of the quality of a photograph: what the pixels say, never whether it is good enough.

Focus, illumination and contrast are the generic indicators of Pires Dias et al. (Information Fusion 19, 2014). Focus is
measured as the ratio of fine to coarse details (Kautsky et al., Pattern Recognition Letters 23, 2002, with Gaussian
bands in place of wavelets), contrast as that of a band (Peli, Journal of the Optical Society of America A 7, 1990). All
work on the green channel, in which vessels show best, with the field of view brought to one size, so that cameras of
different resolution can be compared.
"""

import math

import numpy as np
from scipy import ndimage

from ..fundus import FieldOfView, canonical_frame
from .columns import Column

_DIAMETER = 512  # px of the field of view in the working copy; all the following px are px of that copy
_RIM = 0.04 * _DIAMETER  # px left out along the edge, where cameras shade and the background shines in
_FINE, _VESSEL, _COARSE = 1.0, 2.0, 8.0  # px, widths of Gaussians: edges of vessels, vessels, surroundings of vessels
_ILLUMINATION = 16.0  # px, width of the Gaussian that leaves the illumination

COLUMNS = (
    Column(
        "focus",
        "",
        "Strength of the fine details (1/500 to 1/250 of the field-of-view diameter: edges of vessels) over that of "
        "coarser ones (1/250 to 1/60: vessels), both as root mean square of a band of the green channel. Blur lowers "
        "it; brightness and contrast do not change it. Noise and sharpening raise it, and eyes differ: compare "
        "photographs of one camera.",
    ),
    Column(
        "illumination_mean",
        "",
        "Mean of the green channel in the field of view, from 0 for black to 1 for the highest value it can have. Low "
        "in underexposed photographs, high in overexposed ones.",
    ),
    Column(
        "illumination_evenness",
        "",
        "Dark over bright parts of the field of view: 5th over 95th percentile of the green channel after smoothing "
        "over 1/32 of the field-of-view diameter. 1 for even light; vignetting, shadows and reflections lower it, a "
        "bright optic disc too. The overall brightness does not change it.",
    ),
    Column(
        "contrast",
        "",
        "Local contrast at the size of vessels, root mean square: each pixel's difference to its surroundings over the "
        "brightness of these, as in the band-limited contrast of Peli (1990). 0.1 means 10 %. Haze and overexposure "
        "lower it; brightness alone does not change it.",
    ),
    Column(
        "fov_completeness_fraction",
        "",
        "Part of the disc of the field of view that lies in the photograph: 1 for a whole disc, less where the frame "
        "cuts it. Where no disc was found, the part of the smallest disc around the photograph that it fills.",
    ),
)


def quality_indicators(image: np.ndarray, fov: FieldOfView) -> dict[str, float]:
    """What blur, light and cropping do to a photograph, as numbers; the keys are the names in COLUMNS, in their order.

    image: (H, W, 3) uint8, or float in [0, 1]. fov: of the same image. Raises ValueError for another shape.
    """
    if image.shape != (*fov.shape, 3):
        raise ValueError(f"image must have the shape of its field of view, {(*fov.shape, 3)}, got {image.shape}")
    light = canonical_frame(fov, _DIAMETER).forward_image(image[..., 1])
    if image.dtype == np.uint8:
        light /= 255
    inner = _inner(fov, light.shape)
    fine, vessel = (ndimage.gaussian_filter(light, sigma) for sigma in (_FINE, _VESSEL))
    coarse, illumination = (_local_mean(light, inner, sigma)[inner] for sigma in (_COARSE, _ILLUMINATION))
    fine, vessel = fine[inner], vessel[inner]
    dark, bright = np.percentile(illumination, (5, 95))
    seen = coarse > 0
    return {
        "focus": _ratio(_root_mean_square(fine - vessel), _root_mean_square(vessel - coarse)),
        "illumination_mean": float(light[inner].mean()),
        "illumination_evenness": _ratio(dark, bright),
        "contrast": _root_mean_square(fine[seen] / coarse[seen] - 1),
        "fov_completeness_fraction": _completeness(fov),
    }


def _inner(fov: FieldOfView, shape: tuple[int, ...]) -> np.ndarray:
    """The visible field of view in the working copy without its rim, (h, w) bool; of a narrow strip, the middle."""
    scale = _DIAMETER / fov.diameter
    row, column = (
        (middle + 0.5 - start) * scale - 0.5 for middle, start in zip(fov.center, fov.surroundings[:2], strict=True)
    )
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    depth = np.minimum(
        np.minimum(rows + 1, shape[0] - rows), np.minimum(columns + 1, shape[1] - columns)
    )  # px to the edge
    if fov.has_rim:
        edge = fov.edge_at(np.arctan2(rows - row, columns - column)) * scale
        depth = np.minimum(depth, edge - np.hypot(rows - row, columns - column))
    return depth > min(_RIM, depth.max() / 2)


def _local_mean(light: np.ndarray, inner: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the pixels of inner only (normalized convolution, Knutsson and Westin, 1993), (h, w) float."""
    weight = inner.astype(light.dtype)
    return ndimage.gaussian_filter(light * weight, sigma) / np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-6)


def _completeness(fov: FieldOfView) -> float:
    return min(1.0, float(np.count_nonzero(fov.mask)) / (math.pi / 4 * fov.diameter**2))


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
