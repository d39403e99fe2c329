"""Frames of DICOM pixel data as RGB photographs."""

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import imagecodecs
import numpy as np

from ..fundus.jpeg import DamagedJpeg, decode_strictly

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))  # from 201: high-throughput
_RLE = "1.2.840.10008.1.2.5"
_LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_START_OF_FRAME = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}
_RGB_COMPONENTS = (b"RGB", b"rgb")


class Refused(Exception):
    """Why a file is refused, in words that quote no text of the data set."""


class Layout(NamedTuple):
    """What the Image Pixel module says, checked; `start` is the offset of the pixel data's value in the file."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    colour: str
    frames: int
    syntax: str
    start: int


def decode_frame(data: bytes, dataset: Any, layout: Layout, index: int) -> np.ndarray:
    """One frame of the pixel data, by its index from 0.

    data: the whole file; dataset: its elements before the pixel data.
    Returns (H, W, 3) uint8, or float32 in [0, 1] above 8 bits: the full range of the stored bits. Windows (VOI),
    rescaling and colour profiles are for displays and are not applied.
    Raises Refused; anything else where the data are damaged.
    """
    from pydicom.pixels import apply_color_lut, convert_color_space

    native = layout.syntax in NATIVE
    pixels = _native(data, layout, index) if native else _compressed(data, dataset, layout, index)
    if layout.colour == "PALETTE COLOR":
        coloured = np.asarray(apply_color_lut(pixels, dataset))[..., :3]
        return _scaled(coloured, 8 * coloured.dtype.itemsize)
    if layout.colour.startswith("YBR_FULL") and layout.syntax not in _LOSSY_JPEG:
        pixels = np.asarray(convert_color_space(pixels, "YBR_FULL", "RGB"))
    pixels = _scaled(pixels, layout.stored)
    if layout.colour == "MONOCHROME1":
        pixels = (255 if pixels.dtype == np.uint8 else 1) - pixels
    return np.ascontiguousarray(np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3)))


def _scaled(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers of so many bits -> uint8 of 0 to 255, or float32 in [0, 1] above 8 bits."""
    top = (1 << bits) - 1
    if bits > 8:
        return pixels.astype(np.float32) / np.float32(top)
    return pixels if bits == 8 else np.rint(pixels * np.float32(255 / top)).astype(np.uint8)


def _native(data: bytes, layout: Layout, index: int) -> np.ndarray:
    """(H, W) or (H, W, 3) integers without unused bits, interleaved, subsampling undone."""
    from pydicom.pixels import pixel_array
    from pydicom.uid import UID

    syntax = UID(layout.syntax)  # the data set may come without a header that says it
    return np.asarray(pixel_array(io.BytesIO(data), index=index, raw=True, transfer_syntax_uid=syntax))


def _compressed(data: bytes, dataset: Any, layout: Layout, index: int) -> np.ndarray:
    """(H, W) or (H, W, 3) integers, as :func:`_native`; of lossy JPEG as RGB."""
    from pydicom.encaps import get_frame

    stream = io.BytesIO(data)
    stream.seek(layout.start)
    tables = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
    frame = get_frame(stream, index, number_of_frames=layout.frames, extended_offsets=tables if all(tables) else None)
    pixels = CODECS[layout.syntax](frame, layout)
    if pixels.shape[1:] == (layout.rows, layout.columns):  # JPEG-LS may hold plane after plane
        pixels = np.moveaxis(pixels, 0, -1)
    expected = (layout.rows, layout.columns, 3)[: 2 if layout.samples == 1 else 3]
    if pixels.shape != expected:
        raise Refused("has another number of colours in its image data than SamplesPerPixel (0028,0002) says")
    if pixels.dtype != (np.uint8 if layout.stored <= 8 else np.uint16) or int(pixels.max()) >> layout.stored:
        raise Refused("has another number of bits in its image data than BitsStored (0028,0101) says")
    return pixels


def _check_stream(frame: bytes, rows: int, columns: int, layout: Layout) -> None:
    """Before anything of that size is decoded. JPEG decoders fill what is cut off with grey, without an error."""
    if (rows, columns) != (layout.rows, layout.columns):
        raise Refused(
            f"has image data of {columns} x {rows} pixels where Columns (0028,0011) and Rows (0028,0010) say "
            f"{layout.columns} x {layout.rows}; export it again"
        )
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise Refused("has image data that are cut off; copy or export it again")


def _jpeg_header(frame: bytes) -> tuple[int, int, bytes, dict[int, bytes]]:
    """Rows, columns, component identifiers and APP segments of a JPEG or JPEG-LS stream (ISO/IEC 10918-1 B.2)."""
    applications: dict[int, bytes] = {}
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker in _START_OF_FRAME:
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return rows, columns, frame[at + 10 : at + 10 + 3 * components : 3], applications
        if 0xFFE0 <= marker <= 0xFFEF:
            applications[marker] = frame[at + 4 : at + 2 + length]
        at += 2 + length


def _jpeg(frame: bytes, layout: Layout) -> np.ndarray:
    """Any JPEG of ISO/IEC 10918-1: baseline, 12 bits, lossless."""
    rows, columns, components, applications = _jpeg_header(frame)
    _check_stream(frame, rows, columns, layout)
    strict = _strict(frame, "RGB" if len(components) == 3 else "GRAY")
    if len(components) != 3:
        return imagecodecs.jpeg8_decode(frame) if strict is None else strict[..., 0]
    if layout.syntax in _LOSSY_JPEG and _is_ycbcr(components, applications, layout.colour):
        # Never against what the stream says or, without a word, libjpeg assumes: then strict is of the right colours.
        return imagecodecs.jpeg8_decode(frame, colorspace="YCBCR", outcolorspace="RGB") if strict is None else strict
    return imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")


def _strict(frame: bytes, colour: str) -> np.ndarray | None:
    try:
        return decode_strictly(frame, colour)
    except DamagedJpeg as error:
        raise Refused(f"has image data that are truncated or damaged ({error}); copy or export it again") from None


def _is_ycbcr(components: bytes, applications: dict[int, bytes], colour: str) -> bool:
    """What the stream says of itself goes before PhotometricInterpretation, which is often wrong on lossy JPEG."""
    if components in _RGB_COMPONENTS:
        return False
    if applications.get(0xFFE0, b"").startswith(b"JFIF"):
        return True
    adobe = applications.get(0xFFEE, b"")
    if adobe.startswith(b"Adobe") and len(adobe) >= 12:
        return adobe[11] != 0
    return colour != "RGB"


def _jpeg_ls(frame: bytes, layout: Layout) -> np.ndarray:
    rows, columns, _, _ = _jpeg_header(frame)
    _check_stream(frame, rows, columns, layout)
    return imagecodecs.jpegls_decode(frame)


def _jpeg_2000(frame: bytes, layout: Layout) -> np.ndarray:
    """JPEG 2000, also high-throughput; its own colour transformation is undone by the decoder."""
    size = frame.index(b"\xff\x4f\xff\x51") + 8  # the SIZ segment always comes first (ISO/IEC 15444-1 A.5.1)
    right, bottom, left, top = struct.unpack_from(">4I", frame, size)
    _check_stream(frame, bottom - top, right - left, layout)
    return imagecodecs.jpeg2k_decode(frame)


def _rle(frame: bytes, layout: Layout) -> np.ndarray:
    """Run lengths (PS3.5 annex G): planes of colour, one after another."""
    dtype = f"<u{layout.allocated // 8}"
    values = np.frombuffer(imagecodecs.dicomrle_decode(frame, dtype), dtype)
    planes = values.reshape(layout.samples, layout.rows, layout.columns)
    return np.moveaxis(planes, 0, -1) if layout.samples == 3 else planes[0]


CODECS: dict[str, Callable[[bytes, Layout], np.ndarray]] = {
    _RLE: _rle,
    **dict.fromkeys((*_LOSSY_JPEG, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), _jpeg),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), _jpeg_ls),
    **dict.fromkeys(JPEG_2000, _jpeg_2000),
}
