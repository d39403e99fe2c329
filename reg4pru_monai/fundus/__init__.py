"""Fundus photographs: decoding, field of view, canonical scale; data sets and phantoms in their own modules."""

from reg4pru_monai.fundus.detection import detect_fov
from reg4pru_monai.fundus.fov import FieldOfView
from reg4pru_monai.fundus.frame import DEFAULT_DIAMETER, CanonicalFrame, canonical_frame
from reg4pru_monai.fundus.io import (
    DEFAULT_MAX_PIXELS,
    IMAGE_SUFFIXES,
    FundusReadError,
    read_image,
    read_mask,
    write_mask,
)

__all__ = [
    "DEFAULT_DIAMETER",
    "DEFAULT_MAX_PIXELS",
    "IMAGE_SUFFIXES",
    "CanonicalFrame",
    "FieldOfView",
    "FundusReadError",
    "canonical_frame",
    "detect_fov",
    "read_image",
    "read_mask",
    "write_mask",
]
