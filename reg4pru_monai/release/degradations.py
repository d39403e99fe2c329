"""What goes wrong with photographs, done to good ones: each with its ground truth moved alike."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

BLUR = 0.0025  # width of the Gaussian, of the diameter of the field of view
DARKNESS = 0.35  # of the light
JPEG_QUALITY = 30
ROTATION = 30.0  # degrees
CAST = (1.15, 0.85, 0.6)  # red, green, blue: a warm lamp
NOISE = 4.0  # of 255 levels
GRAINS = 540  # of noise across the field of view: the pixels of a photograph of an old camera
CROP = 0.6  # of height and width
MAX_PIXELS = 20_000_000  # a change that makes more is left out


class Degradation(NamedTuple):
    """A change of a photograph.

    image: (H, W, 3) uint8 and the diameter of its field of view in px -> the same, maybe of another size. mask: (H, W)
    bool -> where its pixels are afterwards. growth: by how much the number of pixels is multiplied, at most. cut: what
    of the photograph is left is unchanged, so that the clean result can be scored on the same pixels. tells_angle:
    whether the angle of view stays known.
    """

    name: str
    title: str
    image: Callable[[np.ndarray, float], np.ndarray]
    mask: Callable[[np.ndarray], np.ndarray] = lambda mask: mask
    growth: float = 1.0
    cut: bool = False
    tells_angle: bool = True


def levels(values: np.ndarray) -> np.ndarray:
    """The nearest of the levels that a photograph can have, 0 to 255, as uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def blurred(image: np.ndarray, diameter: float) -> np.ndarray:
    """Out of focus, alike in photographs of every resolution."""
    sigma = BLUR * diameter
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def darkened(image: np.ndarray, diameter: float) -> np.ndarray:
    """Underexposed."""
    return levels(image * DARKNESS)


def compressed(image: np.ndarray, diameter: float) -> np.ndarray:
    """Through JPEG of a low quality."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(buffer).convert("RGB"))


def rotated(image: np.ndarray, diameter: float) -> np.ndarray:
    """Turned, the frame enlarged so that nothing is cut off."""
    return np.asarray(Image.fromarray(image).rotate(ROTATION, Image.Resampling.BICUBIC, expand=True))


def rotated_mask(mask: np.ndarray) -> np.ndarray:
    """Where a mask is after :func:`rotated`."""
    turned = Image.fromarray(mask.astype(np.uint8) * 255).rotate(ROTATION, Image.Resampling.BILINEAR, expand=True)
    return np.asarray(turned) >= 128


def scaled(factor: float) -> Callable[[np.ndarray, float], np.ndarray]:
    """Photographed with another number of pixels."""

    def change(image: np.ndarray, diameter: float) -> np.ndarray:
        how = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(image).resize(_size(image, factor), how))

    return change


def scaled_mask(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Where a mask is after :func:`scaled`: pixels that it covers by half."""

    def change(mask: np.ndarray) -> np.ndarray:
        how = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
        picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(_size(mask, factor), how)
        return np.asarray(picture) >= 128

    return change


def _size(image: np.ndarray, factor: float) -> tuple[int, int]:
    return round(image.shape[1] * factor), round(image.shape[0] * factor)


def tinted(image: np.ndarray, diameter: float) -> np.ndarray:
    """With the colours of another lamp."""
    return levels(image * np.array(CAST))


def noisy(image: np.ndarray, diameter: float) -> np.ndarray:
    """Through a sensor of few and noisy pixels, the same noise each time, alike in photographs of every resolution."""
    factor = min(1.0, GRAINS / diameter)
    shape = tuple(max(1, round(side * factor)) for side in image.shape[:2])
    noise = np.random.default_rng(0).normal(0, NOISE, (3, *shape)).astype(np.float32)
    size = image.shape[1::-1]
    enlarged = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BILINEAR)) for each in noise]
    return levels(image + np.stack(enlarged, -1))


def cropped(array: np.ndarray, diameter: float = 0.0) -> np.ndarray:
    """The rectangle in the middle, which shows no edge of the field of view."""
    rows, columns = (round(side * (1 - CROP) / 2) for side in array.shape[:2])
    return array[rows : array.shape[0] - rows, columns : array.shape[1] - columns]


DEGRADATIONS = (
    Degradation("blur", f"blur: Gaussian of {BLUR:.2%} of the field-of-view diameter", blurred),
    Degradation("darkness", f"darkness: {DARKNESS:.0%} of the light", darkened),
    Degradation("jpeg", f"JPEG of quality {JPEG_QUALITY}", compressed),
    Degradation("rotation", f"rotation by {ROTATION:.0f} degrees", rotated, rotated_mask, growth=2.0),
    Degradation("half", "resolution × 0.5", scaled(0.5), scaled_mask(0.5)),
    Degradation("double", "resolution × 2", scaled(2.0), scaled_mask(2.0), growth=4.0),
    Degradation("colour", "colour cast: red {} green {} blue {}".format(*(f"× {c:g}" for c in CAST)), tinted),
    Degradation("noise", f"noise: {NOISE:g} of 255 levels, grains of 1/{GRAINS} of the field-of-view diameter", noisy),
    Degradation("angle", "angle of view not told", lambda image, diameter: image, tells_angle=False),
    Degradation("crop", f"field of view cropped to the central {CROP:.0%} of each side", cropped, cropped, cut=True),
)
