"""What the values of a decoded file mean: their range, their colour profile, their transparency."""

from functools import lru_cache
from typing import Any, NamedTuple

import imagecodecs
import numpy as np

DEFAULT_MAX_PIXELS = 150_000_000
RAISE_LIMIT = "if you trust the file, raise max_pixels (--max-pixels on the command line)"
# How many times max_pixels all frames together may have: a file with more is damaged or hostile.
MAX_FULL_FRAMES = 4
BLACK = (
    "holds nothing but black, or is transparent everywhere; look at it in a viewer, and export it again or leave it out"
)

# Integers wider than their values are common: 8 bits in 16 or 32, and the 12 bits of sensors in 16.
_USUAL_BITS = (8, 12)
_DARKEST = 4 / 255  # the noise of JPEG and of a covered lens
_SPACES = {(b"GRAY", 1): "gray", (b"RGB ", 1): "rgb", (b"RGB ", 3): "rgb"}
_SRGB = imagecodecs.cms_profile("srgb")
_NO_CHANGE = 2  # of 255: sRGB profiles differ in rounding


class Refused(Exception):
    """Why an intact file is not read; the message quotes no text from it."""

    def within(self, part: str) -> "Refused":
        """The same, for a part of the file, such as "page 2"."""
        return Refused(str(self).replace(";", f" ({part});", 1))


class Picture(NamedTuple):
    """What a decoder found.

    values: (H, W, C) integers or floats, C 1 for grey, 3 for RGB, 4 for CMYK. bits: how many the integers use, where
    the file states it; floats are in [0, 1]. alpha: (H, W, 1), of the same kind as values; None where all is
    opaque. profile: ICC. orientation: EXIF, 1 to 8. inverted: whether 0 is white.
    """

    values: np.ndarray
    bits: int | None = None
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    orientation: int = 1
    inverted: bool = False


def check_size(width: int, height: int, max_pixels: int, frames: int = 1) -> None:
    """Raise Refused for more pixels than max_pixels, or for more frames than memory should have to hold."""
    if width * height > max_pixels:
        raise Refused(f"has {width} x {height} pixels, more than max_pixels={max_pixels}; {RAISE_LIMIT}")
    if frames * width * height > MAX_FULL_FRAMES * max_pixels:
        raise Refused(
            f"has {frames} frames of {width} x {height} pixels, more than {MAX_FULL_FRAMES} times "
            f"max_pixels={max_pixels}; {RAISE_LIMIT}"
        )


def photograph(picture: Picture) -> np.ndarray:
    """sRGB, upright, transparency on black: (H, W, 3) uint8, or float32 in [0, 1] above 8 bits.

    Integers far below the range of their type are taken to have fewer bits. Profiles that are unreadable or for
    another number of channels are ignored. Raises Refused for floats outside [0, 1], and where all is black.
    """
    bits = _stated_bits(picture)
    if bits is not None and bits == _container(picture.values.dtype):
        highest = int(picture.values.max())
        bits = next((usual for usual in _USUAL_BITS if usual < bits and highest < 1 << usual), bits)
    pixels = _rendered(picture, bits, picture.profile)
    if is_black(pixels):
        raise Refused(BLACK)
    return pixels


def literal(picture: Picture) -> np.ndarray:
    """As :func:`photograph`, for masks and probabilities: by the stated range, without a profile; may be all black."""
    return _rendered(picture, _stated_bits(picture), None)


def is_black(pixels: np.ndarray) -> bool:
    """Whether a photograph (H, W, 3), uint8 or float in [0, 1], has nothing brighter than noise."""
    return bool(pixels.max() <= _DARKEST * _top(pixels))


def _container(dtype: np.dtype[Any]) -> int:
    return np.iinfo(dtype).bits - (dtype.kind == "i")


def _stated_bits(picture: Picture) -> int | None:
    """Bits of the values' range; values above the stated range prove it wrong. None for floats."""
    values, bits = picture.values, picture.bits
    if values.dtype.kind == "f":
        return None
    container = _container(values.dtype)
    return bits if bits is not None and bits < container and int(values.max()) < 1 << bits else container


def _rendered(picture: Picture, bits: int | None, profile: bytes | None) -> np.ndarray:
    colour = _in_range(picture.values, bits)
    if picture.inverted:
        colour = _top(colour) - colour
    colour = _to_srgb(colour, profile)
    if picture.alpha is not None:
        share = _in_range(picture.alpha, bits)
        if not (share == _top(share)).all():
            blend = colour.astype(np.float32) * (share / np.float32(_top(share)))
            colour = (np.rint(blend) if colour.dtype == np.uint8 else blend).astype(colour.dtype)
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    return np.ascontiguousarray(_upright(colour, picture.orientation))


def _in_range(values: np.ndarray, bits: int | None) -> np.ndarray:
    """Integers of that many bits -> uint8 of 0 to 255, or float32 in [0, 1] above 8 bits; floats as float32."""
    if bits is None:
        if not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
            raise Refused(
                f"has floating-point values of {values.min():g} to {values.max():g}, which must be in [0, 1]; "
                "save it with 8 or 16 bits"
            )
        return values.astype(np.float32)
    if values.dtype == np.uint8 and bits == 8:
        return values
    top = (1 << bits) - 1
    values = values.clip(0, top)
    if bits > 8:
        return values.astype(np.float32) / np.float32(top)
    return np.rint(values * np.float32(255 / top)).astype(np.uint8)


def _top(pixels: np.ndarray) -> int:
    return 255 if pixels.dtype == np.uint8 else 1


def _to_srgb(colour: np.ndarray, profile: bytes | None) -> np.ndarray:
    """(H, W, C) -> (H, W, 1 or 3), by the profile, else unchanged; CMYK by the light that its inks leave."""
    channels = colour.shape[2]
    space = _SPACES.get((profile[16:20], channels)) if profile else None
    if profile and space and not (space == "rgb" and _is_srgb(profile)):
        try:
            wide = np.broadcast_to(colour, (*colour.shape[:2], 3)) if channels == 1 and space == "rgb" else colour
            return _transformed(wide, profile, space)
        except imagecodecs.CmsError:  # a photograph with a damaged profile is still a photograph
            pass
    if channels != 4:
        return colour
    ink = 1 - colour / np.float32(_top(colour))
    light = ink[..., :3] * ink[..., 3:]
    return np.rint(light * 255).astype(np.uint8) if colour.dtype == np.uint8 else light


def _transformed(colour: np.ndarray, profile: bytes, space: str) -> np.ndarray:
    plain = colour[..., 0] if space == "gray" else colour
    changed = imagecodecs.cms_transform(
        np.ascontiguousarray(plain), profile, _SRGB, colorspace=space, outcolorspace="rgb"
    )
    return np.asarray(changed) if colour.dtype == np.uint8 else np.clip(changed, 0, 1)


@lru_cache(maxsize=8)
def _is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile leaves a cube of colours unchanged, whatever its name."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3)
    try:
        changed = _transformed(cube, profile, "rgb")
    except imagecodecs.CmsError:
        return False
    return bool(np.abs(changed.astype(int) - cube).max() <= _NO_CHANGE)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (EXIF 2.3, tag 0x0112) on (H, W, 3)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
