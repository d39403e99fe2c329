"""JPEG decoding that notices damage: Pillow and imagecodecs drop what libjpeg-turbo warns of."""

import re
from collections.abc import Iterator

import numpy as np
import simplejpeg

# Warnings of libjpeg-turbo (jerror.h) about image data. The others are about headers: profiles, versions, odd scans.
_DAMAGE = re.compile("premature end|bad Huffman code|bad arithmetic code|instead of RST", re.IGNORECASE)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x(..)")
# Encoders in cameras end a scan with what is left in their buffers, a few bytes; holes in a file leave hundreds.
_LEFT_OVER = 16
START_OF_SCAN, _END_OF_IMAGE, _START_OF_TILE = b"\xff\xda", b"\xff\xd9", b"\xff\x90"
# Application segments that matter for the pixels, with the shortest content that their standards allow.
_KNOWN = {
    0xE0: (b"JFIF\0", 14),
    0xE1: (b"Exif\0\0", 14),
    0xE2: (b"ICC_PROFILE\0", 15),
    0xEE: (b"Adobe", 12),
}


class DamagedJpeg(ValueError):
    """The image data of a JPEG file are truncated or damaged; the text is libjpeg-turbo's."""


def decode_strictly(data: bytes, colour: str = "RGB") -> np.ndarray | None:
    """Decode 8-bit JPEG, with the pixels that Pillow gives; bytes after the end of the image are ignored.

    Noticed is whatever makes the image data longer or shorter than the image, of any scan and restart interval: a
    missing end, and nearly every overwritten sector. Not noticed is damage that still decodes to the right length, as
    many single changed bytes do, and damage of the tables for colours and frequencies. Nor is any damage in a file with
    a fault in its header that does no harm, as libjpeg-turbo tells only its first warning.

    colour: "RGB" or "GRAY".
    Returns (H, W, 3) or (H, W, 1) uint8, or None where this decoder has another reason to stop: ask another one.
    Raises DamagedJpeg.
    """
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colour))
    except ValueError as error:
        warning = str(error)
    extraneous, scan = _EXTRANEOUS.search(warning), _first_scan(data)
    if extraneous and scan is not None:
        count = int(extraneous[1])
        zeros = data.find(bytes(count) + _END_OF_IMAGE, scan) if extraneous[2] == "d9" else -1
        if zeros >= 0 and data[zeros - _LEFT_OVER : zeros].strip(b"\0"):  # else more of them were taken for image data
            return decode_strictly(data[:zeros] + data[zeros + count :], colour)  # shows what else there is to warn of
        damaged = count > _LEFT_OVER
    else:
        damaged = _DAMAGE.search(warning) is not None
    if damaged:
        raise DamagedJpeg(warning.removeprefix("Corrupt JPEG data: "))
    return None


def segments(data: bytes, at: int = 2) -> Iterator[tuple[int, int, int]]:
    """Markers of the header with the bounds of their contents, up to the first scan.

    Stops at bytes that belong to no segment. JPEG 2000, whose header has the same form, is read up to its first tile.
    """
    while len(data) >= at + 4 and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at + 4, end
        if data[at : at + 2] in (START_OF_SCAN, _START_OF_TILE):
            return
        at = end


def _first_scan(data: bytes) -> int | None:
    """Where the segments of the header end; None where other bytes lie between them: these are extraneous, too."""
    return next((start - 4 for marker, start, _ in segments(data) if marker == START_OF_SCAN[1]), None)


def without_metadata(data: bytes) -> bytes:
    """Drop application segments and comments, except EXIF, profile and colour segments that are long enough."""
    kept, last = [data[:2]], 2
    for marker, start, end in segments(data):
        content = data[start:end]
        name, shortest = _KNOWN.get(marker, (b"", 2**16))
        metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not metadata or (content.startswith(name) and len(content) >= shortest):
            kept.append(data[start - 4 : end])
        last = end
    return b"".join((*kept, data[last:]))
