"""PNG by libpng, with the colour information of its metadata; damage to other metadata does no harm."""

import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np

from .picture import Picture, check_size

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_COLOURS = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"sBIT")
_LARGEST_PROFILE = 16 * 2**20  # bytes that are inflated at most; a few KiB can hold GiB
_SRGB_GAMMA = 0.45455
_SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue


def header(data: bytes, *, whole: bool = True) -> bytes:
    """The file without its pixels; whole=False also drops what neither pixels nor orientation need, such as texts."""
    kept = (*_PIXELS, b"eXIf")
    return MAGIC + b"".join(chunk for kind, chunk in _chunks(data) if kind != b"IDAT" and (whole or kind in kept))


def decode(data: bytes, max_pixels: int, orientation: int) -> Picture:
    """Raises Refused for more than max_pixels, and imagecodecs.PngError or ValueError for damaged image data."""
    width, height = struct.unpack_from(">II", data, 16)
    check_size(width, height, max_pixels)
    chunks = list(_chunks(data))
    pixels = np.asarray(imagecodecs.png_decode(MAGIC + b"".join(chunk for kind, chunk in chunks if kind in _PIXELS)))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    colours = 1 if pixels.shape[2] < 3 else 3
    alpha = pixels[..., colours:] if pixels.shape[2] > colours else None
    said = {kind: chunk[8:-4] for kind, chunk in chunks if kind in _COLOURS}
    # Values should be shifted to the upper bits; some are not.
    bits = max(said.get(b"sBIT", b""), default=None) if pixels.dtype == np.uint16 else None
    return Picture(pixels[..., :colours], bits, alpha, _profile(said), orientation)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kinds and whole chunks up to the end of the image, without ancillary ones with wrong checksums."""
    at, kind = len(MAGIC), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        if len(chunk) < 12 + length:
            raise ValueError(f"truncated chunk {kind.decode('ascii', 'replace')}")
        ancillary = kind[0] & 0x20
        if not ancillary or zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"):
            yield kind, chunk
        at += 12 + length


def _profile(chunks: dict[bytes, bytes]) -> bytes | None:
    """The ICC profile of a file, or one made from its gamma and primaries; None for sRGB."""
    if b"iCCP" in chunks:
        compressed = chunks[b"iCCP"].partition(b"\0")[2][1:]
        try:
            return zlib.decompressobj().decompress(compressed, _LARGEST_PROFILE)
        except zlib.error:
            return None
    if b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return None
    gamma = int.from_bytes(chunks[b"gAMA"], "big") / 1e5
    found = chunks.get(b"cHRM", b"")
    chromaticities = [value / 1e5 for value in struct.unpack(">8I", found)] if len(found) == 32 else None
    if not 0.1 < gamma < 10 or (chromaticities is None and abs(gamma - _SRGB_GAMMA) < 0.005):
        return None
    white = chromaticities or list(_SRGB_CHROMATICITIES)
    try:
        return bytes(imagecodecs.cms_profile("rgb", whitepoint=white[:2], primaries=white[2:], gamma=1 / gamma))
    except imagecodecs.CmsError:
        return None
