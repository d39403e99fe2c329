"""Photographs in TIFF: one from each page of full resolution, or from pages that hold one channel each."""

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile

from .picture import Picture, Refused, check_size

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PHOTOMETRIC, _COMPRESSION, _UNASSOCIATED = tifffile.PHOTOMETRIC, tifffile.COMPRESSION, tifffile.EXTRASAMPLE.UNASSALPHA
_COLOURS = tuple(_PHOTOMETRIC[name] for name in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "MASK", "SEPARATED"))


def decode(data: bytes, max_pixels: int) -> Iterator[Picture]:
    """The pictures of a file, decoded one by one. Raises Refused."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        check_size(file.pages.first.imagewidth, file.pages.first.imagelength, max_pixels)
        for each in _full_resolution(file):
            check_size(each.keyframe.imagewidth, each.keyframe.imagelength, max_pixels, _frames(each))
            yield from (_picture(values, page) for values, page in _arrays(each))


def _full_resolution(file: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """Series at full resolution; tifffile knows pyramids, and which pages of OME, ImageJ and others belong together."""
    try:
        series = list(file.series)
    except Exception:  # a photograph with a damaged description is still a photograph
        pages = [page.aspage() for page in file.pages]
        series = [tifffile.TiffPageSeries([page], page.shape, page.dtype, page.axes) for page in pages]
    if not series:
        raise Refused("holds no picture; copy or export it again")
    return [each for each in series if not (each.keyframe.is_reduced or each.keyframe.is_mask)] or series


def _channel(axes: str) -> str:
    """The axis of colours: samples within a page, else channels in pages."""
    return "S" if "S" in axes else "C"


def _frames(series: tifffile.TiffPageSeries) -> int:
    inside = ("Y", "X", _channel(series.axes))
    return math.prod(size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in inside)


def _arrays(series: tifffile.TiffPageSeries) -> Iterator[tuple[np.ndarray, tifffile.TiffPage]]:
    """(H, W, C) arrays, each with the page that describes it."""
    pages, axes = list(series.pages), series.axes
    if None in pages:
        raise Refused("has channels or frames in other files, which are not read; save it as one RGB file")
    if len(pages) == _frames(series):
        for page in (each.aspage() for each in pages if each is not None):
            yield _channels_last(page.asarray(), page.axes)[0], page
        return
    if "C" in axes and _channel(axes) == "C" and (channels := series.shape[axes.index("C")]) not in (1, 3, 4):
        raise Refused(f"has {channels} channels that are not red, green and blue; save it as RGB")
    for values in _channels_last(series.asarray(), axes):
        yield values, series.keyframe


def _channels_last(values: np.ndarray, axes: str) -> np.ndarray:
    """An array with named axes as (frames, H, W, C)."""
    channel = _channel(axes)
    if channel not in axes:
        values, axes = values[..., None], axes + channel
    order = sorted(range(len(axes)), key=lambda at: ("YX" + channel).find(axes[at]))  # other axes stay first
    values = values.transpose(order)
    return values.reshape(-1, *values.shape[-3:])


def _picture(values: np.ndarray, page: tifffile.TiffPage) -> Picture:
    coded = page.compression in (_COMPRESSION.JPEG, _COMPRESSION.OJPEG)  # comes back as RGB
    if page.photometric not in _COLOURS and not (coded and page.photometric == _PHOTOMETRIC.YCBCR):
        raise Refused(f"has a TIFF colour space that is not read ({page.photometric!s}); save it as RGB")
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    profile, orientation = _tag(page, "InterColorProfile"), _tag(page, "Orientation")
    profile = profile if isinstance(profile, bytes) else None
    orientation = orientation if isinstance(orientation, int) else 1
    if page.photometric == _PHOTOMETRIC.PALETTE:
        entries = np.asarray(page.colormap)
        entries = entries if entries.max() < 256 else entries >> 8  # some write 8 bits where 16 belong
        return Picture(entries.astype(np.uint8).T[values[..., 0]], None, None, profile, orientation)
    channels, alpha = values.shape[-1], None
    colours = 4 if page.photometric == _PHOTOMETRIC.SEPARATED else 3 if channels >= 3 else 1
    # No other extra sample hides anything: colours are multiplied by it already, or it is infrared or unknown.
    if _UNASSOCIATED in page.extrasamples:
        at = channels - len(page.extrasamples) + page.extrasamples.index(_UNASSOCIATED)
        alpha = values[..., at : at + 1]
    inverted = page.photometric == _PHOTOMETRIC.MINISWHITE
    return Picture(values[..., :colours], _bits(page), alpha, profile, orientation, inverted)


def _bits(page: tifffile.TiffPage) -> int:
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    highest = _tag(page, "MaxSampleValue")
    if bits > 8 and highest is not None:
        # Some programs write the value of the brightest pixel, not the highest possible one.
        bits = min(bits, int(np.max(highest)).bit_length())
    return bits


def _tag(page: tifffile.TiffPage, name: str) -> Any:
    found = page.tags.get(name)
    return None if found is None else found.value
