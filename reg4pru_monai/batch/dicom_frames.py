"""Frames of DICOM pixel data as RGB photographs."""

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import imagecodecs
import numpy as np

from ..fundus.jpeg import DamagedJpeg, decode_strictly, segments
from ..fundus.picture import Picture, Refused, photograph

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))  # from 201: high-throughput
_RLE = "1.2.840.10008.1.2.5"
_LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_J2K_START, _J2K_CODING_STYLE = b"\xff\x4f\xff\x51", 0x52  # the size always comes first (ISO/IEC 15444-1 A.5.1)
_RGB_COMPONENTS = (b"RGB", b"rgb")


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
    Returns (H, W, 3) uint8, or float32 in [0, 1] above 8 bits: scaled by the stored bits, and converted to sRGB where
    there is a colour profile (see photograph). Windows (VOI) and rescaling are for displays and are not applied.
    Raises Refused; anything else where the data are damaged.
    """
    from pydicom.pixels import apply_color_lut

    native = layout.syntax in NATIVE
    pixels = _native(data, layout, index) if native else _compressed(data, dataset, layout, index)
    bits = layout.stored
    if layout.colour == "PALETTE COLOR":
        pixels = np.asarray(apply_color_lut(pixels, dataset))[..., :3]
        bits = 8 * pixels.dtype.itemsize
    values = pixels.reshape(*pixels.shape[:2], -1)
    profile = dataset.get("ICCProfile")
    profile = profile if isinstance(profile, bytes) else None
    return photograph(Picture(values, bits, profile=profile, inverted=layout.colour == "MONOCHROME1"))


def _native(data: bytes, layout: Layout, index: int) -> np.ndarray:
    """(H, W) or (H, W, 3) RGB integers without unused bits, interleaved, subsampling undone."""
    from pydicom.pixels import pixel_array
    from pydicom.uid import UID

    syntax = UID(layout.syntax)  # the data set may come without a header that says it
    pixels = np.asarray(pixel_array(io.BytesIO(data), index=index, raw=True, transfer_syntax_uid=syntax))
    return _rgb(pixels) if layout.colour.startswith("YBR_FULL") else pixels


def _rgb(ybr: np.ndarray) -> np.ndarray:
    from pydicom.pixels import convert_color_space

    return np.asarray(convert_color_space(ybr, "YBR_FULL", "RGB"))


def _compressed(data: bytes, dataset: Any, layout: Layout, index: int) -> np.ndarray:
    """(H, W) or (H, W, 3) RGB integers, as :func:`_native`."""
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
    return _rgb(pixels) if layout.colour.startswith("YBR_FULL") and not _decoded_as_rgb(frame, layout) else pixels


def _decoded_as_rgb(frame: bytes, layout: Layout) -> bool:
    """Whether the decoder has undone a colour transformation; the stream decides, not its label."""
    if layout.syntax in JPEG_2000:
        start = frame.index(_J2K_START)
        style = next(at for marker, at, _ in segments(frame, start + 2) if marker == _J2K_CODING_STYLE)
        return frame[style + 4] == 1  # multiple component transformation (ISO/IEC 15444-1 A.6.1)
    return layout.syntax in _LOSSY_JPEG


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
    for marker, start, end in segments(frame):
        if marker in _START_OF_FRAME:
            rows, columns, components = struct.unpack_from(">HHB", frame, start + 1)
            return rows, columns, frame[start + 6 : start + 6 + 3 * components : 3], applications
        if 0xE0 <= marker <= 0xEF:
            applications[marker] = frame[start:end]
    raise ValueError("no frame header")


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
    if applications.get(0xE0, b"").startswith(b"JFIF"):
        return True
    adobe = applications.get(0xEE, b"")
    if adobe.startswith(b"Adobe") and len(adobe) >= 12:
        return adobe[11] != 0
    return colour != "RGB"


def _jpeg_ls(frame: bytes, layout: Layout) -> np.ndarray:
    rows, columns, _, _ = _jpeg_header(frame)
    _check_stream(frame, rows, columns, layout)
    return imagecodecs.jpegls_decode(frame)


def _jpeg_2000(frame: bytes, layout: Layout) -> np.ndarray:
    """JPEG 2000, also high-throughput; its own colour transformation is undone by the decoder."""
    size = frame.index(_J2K_START) + 8
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
