"""JPEG decoding that notices damage: Pillow and imagecodecs drop what libjpeg-turbo warns of."""

import re

import numpy as np
import simplejpeg

# Warnings of libjpeg-turbo (jerror.h) about image data. The others are about headers: profiles, versions, odd scans.
_DAMAGE = re.compile("premature end|bad Huffman code|bad arithmetic code|instead of RST", re.IGNORECASE)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x(..)")
# Encoders in cameras end a scan with what is left in their buffers, a few bytes; holes in a file leave hundreds.
_LEFT_OVER = 16
START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


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


def _first_scan(data: bytes) -> int | None:
    """Where the segments of the header end; None where other bytes lie between them: these are extraneous, too."""
    at = 2
    while data[at : at + 1] == b"\xff":
        if data[at : at + 2] == START_OF_SCAN:
            return at
        at += 1 if data[at + 1 : at + 2] == b"\xff" else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
