"""A file of photographs: its digest, its photographs one at a time, and what it says of its camera and eye."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..fundus.io import DEFAULT_MAX_PIXELS, decode_images, is_image, opened, read_bytes
from .columns import Column, Value
from .dicom import DicomPhotographs, check_identifiers, is_dicom, is_plain, read_dicom

COLUMNS = (
    Column(
        "identifier",
        "",
        "Values of the DICOM elements that `--identifiers` names, joined by `|`; empty where none was asked for or the "
        "file is not DICOM.",
        str,
    ),
    Column("format", "", "What the content of the file is: JPEG, PNG, TIFF, BMP, GIF, PPM or DICOM.", str),
    Column("camera_maker", "", "EXIF Make, or DICOM Manufacturer (0008,0070).", str),
    Column("camera_model", "", "EXIF Model, or DICOM ManufacturerModelName (0008,1090).", str),
    Column(
        "laterality",
        "",
        "R or L from DICOM ImageLaterality (0020,0062) and Laterality (0020,0060); empty where both are absent, say "
        "both eyes or contradict each other.",
        str,
    ),
    Column(
        "row_spacing_mm",
        "mm",
        "Distance on the retina between the centres of a pixel and the one below it, from DICOM PixelSpacing "
        "(0028,0030): the nominal value of the camera.",
    ),
    Column("column_spacing_mm", "mm", "The same distance, between a pixel and the one beside it."),
    Column(
        "angle_of_view_deg",
        "degrees",
        "Angle of view of the camera: the column `angle` of the manifest, else `--angle`, else DICOM "
        "HorizontalFieldOfView (0022,000C) from 10 to 90. With weights that were trained by angle it decides the scale "
        "at which the network sees the photograph; where it is empty, 45 degrees are assumed.",
    ),
    Column("bits", "", "Bits per channel: DICOM BitsStored (0028,0101); else 8, or 16 for anything deeper.", int),
    Column(
        "frames",
        "",
        "Photographs in the file, each with a row: frames of DICOM, full-resolution pages of TIFF; 1 for anything "
        "else. Of an animation, the first picture is read.",
        int,
    ),
)

_FORMATS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"II", "TIFF"),
    (b"MM", "TIFF"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"P", "PPM"),
)
# With a preamble; or without one, a group length, or an element with a value representation or a short length.
_DICOM = re.compile(rb".{128}DICM|\x02\0.\0UL|\x08\0.\0(?:[A-Z]{2}|[\x02-\x40]\0{3})", re.DOTALL)
_MAKE, _MODEL = 0x010F, 0x0110
_MAX_TEXT = 64


class Photograph(NamedTuple):
    """One photograph: pixels (H, W, 3) RGB, uint8 or float32 in [0, 1]; frame from 1; details as COLUMNS say."""

    pixels: np.ndarray
    frame: int
    frames: int
    details: dict[str, Value]


class DicomFrames:
    """The photographs of a DICOM file, each decoded when it is taken and not kept."""

    def __init__(self, dicom: DicomPhotographs) -> None:
        self._dicom = dicom

    def __len__(self) -> int:
        return self._dicom.layout.frames

    def __getitem__(self, index: int) -> Photograph:
        frame = range(1, len(self) + 1)[index]
        return Photograph(self._dicom.frame(frame), frame, len(self), dict(self._dicom.details))

    def __iter__(self) -> Iterator[Photograph]:
        return (self[index] for index in range(len(self)))


class Source(NamedTuple):
    """A file: its bytes, their SHA-256, and its photographs.

    Taking a photograph out of DicomFrames decodes it, which raises FundusReadError where its data are damaged.
    """

    data: bytes
    sha256: str
    photographs: list[Photograph] | DicomFrames


def is_photograph(head: bytes) -> bool:
    """Whether a file that starts with these bytes (132 or more) is JPEG, PNG, TIFF, BMP, GIF, PPM or DICOM."""
    return is_image(head) or _DICOM.match(head) is not None


def read_photographs(
    path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS, identifiers: Sequence[str] = ()
) -> Source:
    """Read a file once; its content, never its suffix, decides what it is.

    max_pixels: refuse photographs with more pixels than this before decoding, and larger files before reading them.
    identifiers: DICOM keywords whose values name the row; names, birth dates and the like are refused (ValueError).
    Raises FundusReadError, which quotes nothing of a DICOM file's data set.
    """
    check_identifiers(identifiers)
    data = read_bytes(path, max_pixels=max_pixels, accepts=is_photograph)
    digest = hashlib.sha256(data).hexdigest()
    if is_dicom(data[:132]):
        dicom = read_dicom(data, path, max_pixels=max_pixels, identifiers=identifiers)
        return Source(data, digest, DicomFrames(dicom))
    found = decode_images(data, path, max_pixels=max_pixels)
    photographs = [
        Photograph(pixels, frame, len(found), _details(data, pixels, len(found)))
        for frame, pixels in enumerate(found, 1)
    ]
    return Source(data, digest, photographs)


def _details(data: bytes, pixels: np.ndarray, frames: int) -> dict[str, Value]:
    kind = next(name for magic, name in _FORMATS if data.startswith(magic))
    maker, model = _camera(data, kind)
    return {
        "identifier": None,
        "format": kind,
        "camera_maker": maker,
        "camera_model": model,
        "laterality": None,
        "row_spacing_mm": None,
        "column_spacing_mm": None,
        "angle_of_view_deg": None,
        "bits": 8 if pixels.dtype == np.uint8 else 16,
        "frames": frames,
    }


def _camera(data: bytes, kind: str) -> tuple[str | None, str | None]:
    """Maker and model from EXIF."""
    try:
        exif = Image.Exif()
        exif.load(_exif_bytes(data, kind))
        return _text(exif.get(_MAKE)), _text(exif.get(_MODEL))
    except Exception:  # a photograph with damaged EXIF is still a photograph
        return None, None


def _exif_bytes(data: bytes, kind: str) -> bytes:
    """EXIF is a TIFF file without an image, so a TIFF file is its own. Nothing is decoded for it."""
    if kind == "TIFF":
        return data
    with opened(data) as image:
        return bytes(image.info.get("exif", b""))


def _text(value: object) -> str | None:
    text = value.split("\0")[0].strip()[:_MAX_TEXT] if isinstance(value, str) else ""
    return text if text and is_plain(text) else None
