"""Ophthalmic photographs from DICOM files (pydicom).

A data set names a patient. So no error here quotes a text of it, only keywords, tags and sizes, and what pydicom and
highdicom would warn or log, which does quote it, is silenced for the whole process.
"""

import difflib
import io
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..fundus.angle import checked_angle
from ..fundus.io import FundusReadError
from ..fundus.picture import Refused, check_size
from .columns import Value
from .dicom_frames import CODECS, JPEG_2000, NATIVE, Layout, decode_frame

INSTALL = "pip install pydicom highdicom"

_MAGIC = b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXEL_DATA = {"little": b"\xe0\x7f\x10\0", "big": b"\x7f\xe0\0\x10"}
_MODALITIES = ("OP", "XC", "SC", "OT", "")
# Secondary Capture (but of single bits), VL Photographic, Ophthalmic Photography of 8 and 16 bits and wide-field.
_PHOTOGRAPHS = (
    *(f"1.2.840.10008.5.1.4.1.1.7{kind}" for kind in ("", ".2", ".3", ".4")),
    "1.2.840.10008.5.1.4.1.1.77.1.4",
    *(f"1.2.840.10008.5.1.4.1.1.77.1.5.{kind}" for kind in (1, 2, 5, 6)),
)
_COLOURS = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
_AGAIN = "export it again from the camera or the archive"
_ONE_LINE = ("AE", "AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "SH", "SL", "SS", "TM", "UI", "UL", "US")
_PERSONAL = re.compile("Birth|Death|Address|Telephone|Telecom|Residence|CameraOwner|ContactDisplay")
_MAX_TEXT = 64  # of the representations LO, SH and UI (PS3.5 table 6.2-1)


class DicomPhotographs(NamedTuple):
    """A checked file: its bytes, its data set (pydicom) up to the pixel data, and what results.csv says of it."""

    data: bytes
    path: str | os.PathLike[str]
    dataset: Any
    layout: Layout
    details: dict[str, Value]

    def frame(self, number: int) -> np.ndarray:
        """Frame 1 … frames: (H, W, 3) uint8, or float32 in [0, 1] above 8 bits. Raises FundusReadError."""
        with without_values(self.path):
            try:
                return decode_frame(self.data, self.dataset, self.layout, number - 1)
            except Refused as refused:
                raise (refused.within(f"frame {number}") if self.layout.frames > 1 else refused) from None


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes (132 or more) is DICOM, or may be DICOM without its preamble."""
    return head[128:132] == _MAGIC or (head[:1] in (b"\2", b"\x08") and head[1:2] == b"\0" == head[3:4])


def read_dicom(
    data: bytes, path: str | os.PathLike[str], *, max_pixels: int, identifiers: Sequence[str] = ()
) -> DicomPhotographs:
    """Check everything that can be known before decoding; ``path`` is for the error messages. Raises FundusReadError.

    max_pixels: refuse larger frames. identifiers: keywords whose values become the identifier, joined by "|".
    """
    with without_values(path):
        dataset, start = _parse(data)
        layout = _layout(data, dataset, start, max_pixels)
        return DicomPhotographs(data, path, dataset, layout, _details(dataset, layout, identifiers))


def read_header(data: bytes, path: str | os.PathLike[str]) -> Any:
    """The data set (pydicom) up to the pixel data. Raises FundusReadError."""
    with without_values(path):
        return _parse(data)[0]


def check_identifiers(identifiers: Sequence[str]) -> None:
    """Refuse keywords that are unknown, personal (names, birth dates, addresses …) or no single line: ValueError."""
    if not identifiers:
        return
    try:
        from pydicom.datadict import dictionary_VR, keyword_dict
    except ImportError:
        raise ValueError(f"identifiers are DICOM keywords and need pydicom: {INSTALL}") from None
    for keyword in identifiers:
        if keyword not in keyword_dict:
            close = difflib.get_close_matches(keyword, keyword_dict, n=1, cutoff=0)[0]
            raise ValueError(f"identifiers: {keyword!r} is not a DICOM keyword; did you mean {close!r}?")
        representation = dictionary_VR(keyword)
        if representation == "PN" or _PERSONAL.search(keyword):
            raise ValueError(
                f"identifiers: {keyword} is personal and never enters results; use PatientID, StudyInstanceUID or "
                "SOPInstanceUID"
            )
        if representation not in _ONE_LINE:
            raise ValueError(f"identifiers: {keyword} ({representation}) does not hold one line; use PatientID")


@contextmanager
def without_values(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every error into FundusReadError, and never show the text of one that may quote the data set."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise FundusReadError(path, f"is DICOM, which needs pydicom: {INSTALL}") from None
    silence()
    try:
        yield
    except Refused as refused:
        raise FundusReadError(path, str(refused)) from None
    except MemoryError:  # may suffice another time
        raise MemoryError("not enough memory to decode the photographs") from None
    except Exception as error:  # pydicom and decoders raise anything on damaged files
        raise FundusReadError(
            path,
            f"cannot be decoded: it is truncated or damaged, or of a kind that is not read ({type(error).__name__}); "
            "copy or export it again",
        ) from None


def silence() -> None:
    """Keep pydicom and highdicom from writing values into logs. For good: workers in threads share these settings."""
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def _parse(data: bytes) -> tuple[Any, int]:
    """The data set up to the pixel data, and the offset where that begins."""
    from pydicom import dcmread
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID_dictionary

    stream = io.BytesIO(data)
    stream.seek(132 if data[128:132] == _MAGIC else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, _, __: tag.group != 2)
    if meta.get("TransferSyntaxUID") == _DEFLATED:  # pydicom would inflate all of it, whatever its size
        raise Refused(f"has a deflated data set, which is not read; {_remedy('dcmconv +te (DCMTK)')}")
    stream.seek(0)
    dataset = dcmread(stream, stop_before_pixels=True, force=True)
    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    if data[128:132] != _MAGIC and kind not in UID_dictionary:
        raise Refused("is not JPEG, PNG, TIFF, BMP, GIF, PPM or DICOM; convert it to one of these")
    return dataset, stream.tell()


def _remedy(tool: str) -> str:
    return f"convert it to Explicit VR Little Endian, for example with {tool}"


def _layout(data: bytes, dataset: Any, start: int, max_pixels: int) -> Layout:
    _check_kind(dataset)
    syntax, implicit, order = _encoding(dataset)
    if data[start : start + 4] != _PIXEL_DATA[order]:
        raise Refused(f"holds no PixelData (7FE0,0010): it is no image, or it is cut off; {_AGAIN}")
    value = start + (8 if implicit else 12)
    length = int.from_bytes(data[value - 4 : value], "big" if order == "big" else "little")
    layout = _image_pixel(dataset, syntax, value)
    check_size(layout.columns, layout.rows, max_pixels, layout.frames)
    if syntax in NATIVE:
        _check_native_length(layout, length, len(data) - value)
    elif length != 0xFFFFFFFF or layout.frames * 8 > len(data) - value:  # 8 bytes are the header of a fragment
        raise Refused(f"has PixelData (7FE0,0010) that cannot hold its frames; {_AGAIN}")
    return layout


def _check_kind(dataset: Any) -> None:
    from pydicom.uid import UID_dictionary

    kind = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind in UID_dictionary and kind not in _PHOTOGRAPHS:
        raise Refused(f"is DICOM but not a photograph ({UID_dictionary[kind][0]}); give photographs of the fundus")
    if str(dataset.get("Modality") or "").strip() not in _MODALITIES:
        raise Refused("is DICOM but not a photograph: Modality (0008,0060) is not OP, XC, SC or OT")


def _encoding(dataset: Any) -> tuple[str, bool, str]:
    """Transfer syntax, whether its data set is implicit, and its byte order."""
    from pydicom.uid import UID_dictionary

    implicit, little = dataset.original_encoding
    guess = NATIVE[0] if implicit else NATIVE[1] if little else NATIVE[2]
    syntax = str(dataset.file_meta.get("TransferSyntaxUID") or guess)
    if syntax not in NATIVE and syntax not in CODECS:
        name = UID_dictionary[syntax][0] if syntax in UID_dictionary else "unknown"
        raise Refused(
            f"has a transfer syntax (0002,0010) that cannot be decoded ({name}); {_remedy('gdcmconv --raw (GDCM)')}, "
            "or take single frames from a video"
        )
    return syntax, bool(implicit), "little" if little else "big"


def _image_pixel(dataset: Any, syntax: str, start: int) -> Layout:
    colour = str(dataset.get("PhotometricInterpretation") or "").strip()
    if colour not in _COLOURS:
        raise Refused(f"has a PhotometricInterpretation (0028,0004) that is not read, only {', '.join(_COLOURS)} are")
    samples = _integer(dataset, "SamplesPerPixel", (_COLOURS[colour],))
    allocated = _integer(dataset, "BitsAllocated", (8, 16))
    stored = _integer(dataset, "BitsStored", range(1, allocated + 1))
    _integer(dataset, "PixelRepresentation", (0,))  # no photograph has signed values
    if syntax in NATIVE and dataset.get("HighBit") is not None:
        _integer(dataset, "HighBit", (stored - 1,))
    if syntax in NATIVE and samples == 3:
        _integer(dataset, "PlanarConfiguration", (0, 1))
    if colour in ("YBR_ICT", "YBR_RCT") and syntax not in JPEG_2000:
        raise Refused(f"has a PhotometricInterpretation (0028,0004) that only JPEG 2000 may have; {_AGAIN}")
    if colour.startswith("YBR_FULL") and stored != 8:
        raise Refused(f"has YBR colours (0028,0004) of more or fewer than 8 bits, which are not read; {_AGAIN} as RGB")
    rows, columns = (_integer(dataset, keyword, range(1, 65536)) for keyword in ("Rows", "Columns"))
    frames = _integer(dataset, "NumberOfFrames", range(1, 2**31)) if dataset.get("NumberOfFrames") is not None else 1
    return Layout(rows, columns, samples, allocated, stored, colour, frames, syntax, start)


def _integer(dataset: Any, keyword: str, allowed: Sequence[int]) -> int:
    value = dataset.get(keyword)
    tag = f"{keyword} {_tag(keyword)}"
    if value is None:
        raise Refused(f"has no {tag}; {_AGAIN}")
    if int(value) not in allowed:
        wanted = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else " or ".join(map(str, allowed))
        raise Refused(f"has a {tag} that is not {wanted}, which its other image elements demand; {_AGAIN}")
    return int(value)


def _tag(keyword: str) -> str:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _check_native_length(layout: Layout, length: int, available: int) -> None:
    samples = 2 if layout.colour == "YBR_FULL_422" else layout.samples
    frame = layout.rows * layout.columns * samples * layout.allocated // 8
    needed = layout.frames * frame
    if min(length, available) < needed:
        raise Refused(f"has PixelData (7FE0,0010) that are cut off; {_AGAIN}")
    # One byte more makes the length even. A whole frame more, or full colours where 4:2:2 is said, is a wrong element.
    if length > needed + 1 and (length // frame > layout.frames or (samples == 2 and 2 * length >= 3 * needed)):
        raise Refused(f"has more PixelData (7FE0,0010) than its image elements (0028,eeee) describe; {_AGAIN}")


def _details(dataset: Any, layout: Layout, identifiers: Sequence[str]) -> dict[str, Value]:
    spacing = pixel_spacing(dataset)
    values = [_text(dataset, keyword) or "" for keyword in identifiers]
    return {
        "identifier": "|".join(values) if any(values) else None,
        "format": "DICOM",
        "camera_maker": _text(dataset, "Manufacturer"),
        "camera_model": _text(dataset, "ManufacturerModelName"),
        "laterality": _laterality(dataset),
        "row_spacing_mm": spacing[0],
        "column_spacing_mm": spacing[1],
        "angle_of_view_deg": _angle_of_view(dataset),
        "bits": layout.stored,
        "frames": layout.frames,
    }


def _text(dataset: Any, keyword: str) -> str | None:
    """One element's value, several joined by a backslash; None where it is absent or cannot be read.

    A damaged length takes in the elements that follow, so maybe the patient. Such a text is longer than allowed or has
    their binary headers in it, and is not read.
    """
    try:
        value = dataset.get(keyword)
        several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
        text = ("\\".join(map(str, value)) if several else "" if value is None else str(value)).strip(" \0")
    except Exception:
        return None
    return text if 0 < len(text) <= _MAX_TEXT and is_plain(text) else None


def is_plain(text: str) -> bool:
    """No control characters, nothing unassigned."""
    return not any(unicodedata.category(character).startswith("C") for character in text)


def _laterality(dataset: Any) -> str | None:
    """R or L where ImageLaterality and Laterality do not contradict each other."""
    sides = {_text(dataset, keyword) for keyword in ("ImageLaterality", "Laterality")} - {None}
    side = sides.pop() if len(sides) == 1 else None
    return side if side in ("R", "L") else None


def _angle_of_view(dataset: Any) -> float | None:
    """Degrees, where the file gives an angle that a photograph can have."""
    try:
        return checked_angle(dataset.get("HorizontalFieldOfView"))
    except Exception:  # absent, unreadable or of a wide-field projection: the photograph is still a photograph
        return None


def pixel_spacing(dataset: Any) -> tuple[float, float] | tuple[None, None]:
    """Millimetres between the centres of rows and of columns."""
    try:
        holder = dataset
        if "PixelSpacing" not in dataset and "SharedFunctionalGroupsSequence" in dataset:
            holder = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        row, column = (float(value) for value in holder.PixelSpacing)
    except Exception:  # absent or unreadable: the photograph is still a photograph
        return None, None
    return (row, column) if 0 < row < float("inf") and 0 < column < float("inf") else (None, None)
