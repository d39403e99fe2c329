"""Masks as DICOM segmentations and as NIfTI images."""

import copy
import gzip
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .. import __version__
from ..fundus.io import FundusReadError
from .dicom import INSTALL, is_dicom, pixel_spacing, read_header, silence, without_values

_NAME = "reg4pru-monai"
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
# Type 2 in every image: present, maybe empty. Cameras and de-identification leave them out.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_MOMENTS = (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"), ("StudyDate", "StudyTime"))
_NO_DATE, _NO_TIME = "19000101", "000000"  # where the source has none: the same for every run
_SINGLE_FRAME = "1.2.840.10008.5.1.4.1.1.77.1.4"  # VL Photographic Image Storage
_MAX_NIFTI = 32767  # sizes are 16-bit in NIfTI-1


def encode_dicom_seg(
    source: bytes | str | os.PathLike[str], masks: Sequence[np.ndarray], weights_digest: str, settings_digest: str
) -> bytes:
    """A DICOM Segmentation: BINARY, one segment, one frame per frame of the source.

    source: the DICOM photograph, its bytes or its path; patient and study are copied from it, as the standard demands.
    masks: (H, W) bool, one for each frame of the source.
    weights_digest, settings_digest: of what made the masks. The identifiers are derived from them and from those of
    the source, and the dates are those of the source: running again writes the same bytes.
    Raises ValueError where the source is not DICOM or does not fit, FundusReadError where it cannot be read.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise ValueError(f"DICOM segmentations need highdicom: {INSTALL}") from None
    header, shape = _source_header(source)
    stack = _stack(masks, shape)
    silence()
    try:
        segmentation = _segmentation(header, stack, weights_digest, settings_digest)
        stream = io.BytesIO()
        segmentation.save_as(stream, enforce_file_format=True)
    except Exception as error:  # their messages quote the data set
        raise ValueError(
            f"no DICOM segmentation can be made of this source ({type(error).__name__}); check that its patient and "
            "study elements are valid"
        ) from None
    return stream.getvalue()


def encode_nifti(mask: np.ndarray, millimetres_per_pixel: tuple[float, float] | None = None) -> bytes:
    """Mask (H, W) bool as NIfTI-1 (W, H, 1) uint8 of 0 and 1, gzipped.

    The first axis runs along a row of the photograph and the second down its columns. The affine calls them left and
    posterior (L, P of LPS; -R, -A of RAS), as ITK does with a photograph: viewers in the radiological convention show
    the mask as the photograph, those in the neurological one mirror left and right. It is no position in the patient.
    millimetres_per_pixel: (between rows, between columns), where known; else the units are unknown and 1 is a pixel.
    Equal masks give equal bytes. Raises ValueError.
    """
    _check_mask(mask)
    if max(mask.shape) > _MAX_NIFTI:
        raise ValueError(f"NIfTI holds at most {_MAX_NIFTI} pixels a side, got {mask.shape}; write PNG masks")
    row, column = millimetres_per_pixel or (1.0, 1.0)
    image = nib.Nifti1Image(mask.T[..., None].astype(np.uint8), np.diag([-column, -row, 1.0, 1.0]))
    image.header.set_xyzt_units("mm" if millimetres_per_pixel else "unknown")
    image.set_qform(image.affine, code="aligned")
    image.set_sform(image.affine, code="aligned")
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def _check_mask(mask: np.ndarray) -> None:
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask must be (H, W) bool, got {mask.shape} {mask.dtype}; threshold or squeeze it first")


def _source_header(source: bytes | str | os.PathLike[str]) -> tuple[Any, tuple[int, int, int]]:
    """The data set of the photograph without its pixels, and its frames, rows and columns."""
    name: str | os.PathLike[str] = "the source" if isinstance(source, bytes) else source
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise FundusReadError(name, f"cannot be opened: {error.strerror}; check its permissions") from error
    if not is_dicom(data[:132]):
        raise ValueError(f"{name}: is not DICOM, and a DICOM segmentation needs a DICOM photograph; write PNG masks")
    header = read_header(data, name)
    with without_values(name):
        missing = [keyword for keyword in _REQUIRED if not header.get(keyword)]
        shape = (int(header.get("NumberOfFrames") or 1), int(header.get("Rows") or 0), int(header.get("Columns") or 0))
    if missing:
        raise ValueError(f"{name}: a DICOM segmentation needs its {', '.join(missing)}, which it lacks")
    return header, shape


def _stack(masks: Sequence[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """(N, H, W) bool. Raises ValueError unless the masks have the shape of the frames."""
    for mask in masks:
        _check_mask(mask)
    shapes = {mask.shape for mask in masks}
    if len(masks) != shape[0] or shapes != {shape[1:]}:
        found = f"{len(masks)} of {' and '.join(map(str, sorted(shapes)))}"
        raise ValueError(f"masks must be {shape[0]} of {shape[1:]} as the frames of their source, got {found}")
    return np.stack(masks)


def _segmentation(header: Any, stack: np.ndarray, weights_digest: str, settings_digest: str) -> Any:
    """The data set (highdicom) to write."""
    from highdicom.seg import Segmentation
    from pydicom.uid import generate_uid

    def uid(kind: str, *of_source: str) -> str:
        return generate_uid(entropy_srcs=[_NAME, __version__, kind, *of_source, weights_digest, settings_digest])

    day, moment = _moment(header)
    segmentation = Segmentation(
        source_images=[_stand_in(header)],
        pixel_array=stack[0],
        segmentation_type="BINARY",
        segment_descriptions=[_segment(weights_digest, settings_digest)],
        series_instance_uid=uid("series", header.SeriesInstanceUID),
        series_number=1,
        sop_instance_uid=uid("instance", header.SOPInstanceUID),
        instance_number=max(int(header.get("InstanceNumber") or 1), 1),
        manufacturer=_NAME,
        manufacturer_model_name=_NAME,
        software_versions=__version__,
        device_serial_number=weights_digest[:64],
        omit_empty_frames=False,
        content_label="RETINAL_VESSELS",
        series_description="Retinal blood vessels",
        content_date=day,
        content_time=moment,
    )
    segmentation.InstanceCreationDate = segmentation.ContentDate
    segmentation.InstanceCreationTime = segmentation.ContentTime
    for equipment in segmentation.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)  # the moment of this run
    segmentation.PatientOrientation = header.get("PatientOrientation")
    organization = uid("dimensions", header.SOPInstanceUID)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    _set_source_class(segmentation, header.SOPClassUID)
    if len(stack) > 1:
        _set_frames(segmentation, stack)
    return segmentation


def _segment(weights_digest: str, settings_digest: str) -> Any:
    """Blood vessel (CID 7166) of the retina (CID 8134) as an anatomical structure (CID 7150), all SNOMED CT."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=_NAME,
        version=__version__,
        family=codes.DCM.ArtificialIntelligence,
        parameters={"weights": weights_digest, "settings": settings_digest},
    )
    return SegmentDescription(
        segment_number=1,
        segment_label="Retinal blood vessel",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.BloodVessel,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=[codes.SCT.Retina],
    )


def _stand_in(header: Any) -> Any:
    """The source as a photograph of one frame without a frame of reference.

    highdicom takes multi-frame sources only with functional groups, which ophthalmic photographs do not have.
    """
    source = copy.deepcopy(header)
    source.SOPClassUID = _SINGLE_FRAME
    for keyword in ("NumberOfFrames", "FrameOfReferenceUID", "SharedFunctionalGroupsSequence", "PixelSpacing"):
        source.pop(keyword, None)
    spacing = pixel_spacing(header)
    if spacing[0] is not None:
        source.PixelSpacing = list(spacing)
        source.SliceThickness = 1  # means nothing here, but highdicom does not read a segmentation without it
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, "")
    return source


def _set_source_class(segmentation: Any, sop_class: str) -> None:
    """Refer to the true class of the source, not that of its stand-in."""
    for element in segmentation.iterall():
        if element.keyword == "ReferencedSOPClassUID" and element.value == _SINGLE_FRAME:
            element.value = sop_class


def _set_frames(segmentation: Any, stack: np.ndarray) -> None:
    """From one frame to as many as the source has, each of which refers to its own and follows the one before."""
    from pydicom import Dataset
    from pydicom.datadict import tag_for_keyword
    from pydicom.pixels import pack_bits

    first = segmentation.PerFrameFunctionalGroupsSequence[0]
    items = [copy.deepcopy(first) for _ in stack]
    for number, item in enumerate(items, start=1):
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
        item.FrameContentSequence[0].TemporalPositionIndex = number
        item.FrameContentSequence[0].DimensionIndexValues = [1, number]
    dimension = Dataset()
    dimension.DimensionOrganizationUID = segmentation.DimensionIndexSequence[0].DimensionOrganizationUID
    dimension.DimensionIndexPointer = tag_for_keyword("TemporalPositionIndex")
    dimension.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    dimension.DimensionDescriptionLabel = "Frame"
    segmentation.DimensionIndexSequence.append(dimension)
    segmentation.PerFrameFunctionalGroupsSequence = items
    segmentation.NumberOfFrames = len(stack)
    segmentation.PixelData = pack_bits(stack.astype(np.uint8).ravel())


def _moment(header: Any) -> tuple[str, str]:
    """Date and time of the photograph."""
    for day, moment in _MOMENTS:
        if header.get(day):
            return str(header.get(day)), str(header.get(moment) or _NO_TIME)
    return _NO_DATE, _NO_TIME
