"""The canonical scale: crop a photograph to its field of view and resize it, and the way back."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .fov import Box, FieldOfView

DEFAULT_DIAMETER = 1024


@dataclass(frozen=True)
class CanonicalFrame:
    """Crop to a box and resize, and the way back.

    original: (H, W). box: (r0, c0, r1, c1) in the original. size: (h, w) of the crop at canonical scale.
    """

    original: tuple[int, int]
    box: Box
    size: tuple[int, int]

    def forward_image(self, image: np.ndarray) -> np.ndarray:
        """(..., H, W) float -> (..., h, w) float32, antialiased."""
        return resize(self._crop(image), self.size)

    def forward_coverage(self, mask: np.ndarray) -> np.ndarray:
        """(..., H, W) bool or {0, 1} -> (..., h, w) float32 in [0, 1]: about the part of each pixel that it covers."""
        return resize(self._crop(mask), self.size, sharp=True)

    def forward_mask(self, mask: np.ndarray) -> np.ndarray:
        """(..., H, W) bool or {0, 1} -> (..., h, w) bool: pixels at least half covered."""
        return self.forward_coverage(mask) >= 0.5

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """(..., h, w) float -> (..., H, W) float32 in the same range, Lanczos, 0 outside the box.

        Raises ValueError for another size.
        """
        if array.shape[-2:] != self.size:
            raise ValueError(f"array must end in (h, w) = {self.size}, got {array.shape}")
        r0, c0, r1, c1 = self.box
        out = np.zeros((*array.shape[:-2], *self.original), np.float32)
        out[..., r0:r1, c0:c1] = resize(array, (r1 - r0, c1 - c0), sharp=True)
        return out

    def _crop(self, array: np.ndarray) -> np.ndarray:
        if array.shape[-2:] != self.original:
            raise ValueError(f"array must end in (H, W) = {self.original}, got {array.shape}")
        r0, c0, r1, c1 = self.box
        return array[..., r0:r1, c0:c1]


def canonical_frame(fov: FieldOfView, diameter: float = DEFAULT_DIAMETER) -> CanonicalFrame:
    """The crop to the visible field of view, scaled so that its disc measures `diameter` pixels."""
    if diameter <= 0:
        raise ValueError(f"diameter must be positive, got {diameter}")
    r0, c0, r1, c1 = box = fov.surroundings
    scale = diameter / fov.diameter
    size = (max(1, round((r1 - r0) * scale)), max(1, round((c1 - c0) * scale)))
    return CanonicalFrame(fov.shape, box, size)


def resize(array: np.ndarray, size: tuple[int, ...], sharp: bool = False) -> np.ndarray:
    """(..., H, W) -> (..., h, w) float32, antialiased where it shrinks; bilinear, or Lanczos within its own range."""
    planes = np.asarray(array, np.float32).reshape(-1, *array.shape[-2:])
    method = Image.Resampling.LANCZOS if sharp else Image.Resampling.BILINEAR
    done = np.empty((len(planes), *size), np.float32)
    for plane, out in zip(planes, done, strict=True):
        out[:] = Image.fromarray(np.ascontiguousarray(plane)).resize((size[1], size[0]), method)
        if sharp:
            np.clip(out, plane.min(), plane.max(), out=out)
    return done.reshape(*array.shape[:-2], *size)
