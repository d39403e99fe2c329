"""Small DICOM photographs, written with pydicom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, OphthalmicPhotography8BitImageStorage, generate_uid

ROWS, COLUMNS = 24, 32
_Y, _X = np.mgrid[:ROWS, :COLUMNS]
RGB = np.stack([8 * _X, 10 * _Y, 255 - 4 * (_X + _Y)], axis=2).astype(np.uint8)
GREY = np.ascontiguousarray(RGB[..., 0])
GREY3 = np.repeat(GREY[..., None], 3, axis=2)
# A name, a number and an address that no message, warning, log or table may show.
SECRET = "GEHEIM"


def data_set(pixels: np.ndarray, *, frames: int | None = None, **elements: Any) -> Dataset:
    """An ophthalmic photograph with the layout of one frame, (H, W) or (H, W, 3), and no pixel data yet."""
    photograph = Dataset()
    photograph.SOPClassUID = OphthalmicPhotography8BitImageStorage
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(photograph, keyword, generate_uid(entropy_srcs=["test", keyword]))
    photograph.Modality = "OP"
    photograph.Manufacturer, photograph.ManufacturerModelName = "Maker", "Model 7"
    photograph.PatientName, photograph.PatientID = f"{SECRET}^Anna", "P-17"
    photograph.PatientBirthDate, photograph.PatientSex = "19500102", "F"
    photograph.PatientAddress = f"{SECRET} street 1"
    photograph.ReferringPhysicianName = f"{SECRET}^Doctor"
    photograph.StudyDate, photograph.StudyTime = "20240305", "101112"
    photograph.AccessionNumber = photograph.StudyID = ""
    photograph.ImageLaterality = "L"
    photograph.PixelSpacing = [0.011, 0.012]
    photograph.Rows, photograph.Columns = pixels.shape[:2]
    photograph.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    photograph.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        photograph.PlanarConfiguration = 0
    photograph.BitsAllocated = photograph.BitsStored = 8 * pixels.dtype.itemsize
    photograph.PixelRepresentation = 0
    if frames is not None:
        photograph.NumberOfFrames = frames
    for keyword, value in elements.items():
        setattr(photograph, keyword, value)
    photograph.HighBit = elements.get("HighBit", photograph.BitsStored - 1)
    return photograph


def save(path: Path, photograph: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    photograph.file_meta = FileMetaDataset()
    photograph.file_meta.TransferSyntaxUID = syntax
    explicit = (
        {"implicit_vr": False, "little_endian": True} if photograph.file_meta.TransferSyntaxUID.is_private else {}
    )
    photograph.save_as(path, enforce_file_format=True, **explicit)
    return path


def native(
    path: Path, pixels: np.ndarray, values: bytes | None = None, syntax: str = ExplicitVRLittleEndian, **elements: Any
) -> Path:
    """Write pixels (H, W) or (H, W, 3) uncompressed, as ``values`` where these are given."""
    photograph = data_set(pixels, **elements)
    photograph.PixelData = pixels.tobytes() if values is None else values
    photograph.PixelData += b"\0" * (len(photograph.PixelData) % 2)
    photograph["PixelData"].VR = "OW" if photograph.BitsAllocated > 8 else "OB"
    return save(path, photograph, syntax)


def encapsulated(path: Path, streams: Sequence[bytes], pixels: np.ndarray, syntax: str, **elements: Any) -> Path:
    """Write frames that a codec made from pixels of this layout."""
    if len(streams) > 1:
        elements = {"frames": len(streams), **elements}
    photograph = data_set(pixels, **elements)
    photograph.PixelData = encapsulate([bytes(stream) for stream in streams])
    photograph["PixelData"].VR = "OB"
    return save(path, photograph, syntax)


def ybr(rgb: np.ndarray) -> np.ndarray:
    """YBR_FULL of (H, W, 3) uint8, by the equations of PS3.3 C.7.6.3.1.2."""
    equations = [[0.2990, 0.5870, 0.1140], [-0.1687, -0.3313, 0.5000], [0.5000, -0.4187, -0.0813]]
    return np.rint(rgb @ np.transpose(equations) + [0, 128, 128]).clip(0, 255).astype(np.uint8)


def jpeg(rgb: np.ndarray, **options: Any) -> bytes:
    """A JPEG stream without subsampling, almost lossless."""
    return bytes(imagecodecs.jpeg8_encode(rgb, level=100, subsampling="444", **options))
