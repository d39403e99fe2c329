"""The field of view of a fundus photograph, and the exact way into the canonical scale and back."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.morphology import convex_hull_image

DEFAULT_DIAMETER = 1024

_WORKING_SIDE = 512  # detection runs on a copy of this size; all the following px are px of that copy
_LEVELS = (0.08, 0.12, 0.18, 0.26, 0.38)
_MARGIN = 3  # px; an edge nearer to the frame is a cut, not the disc's own
_TOLERANCE = 2.0  # px from the circle
_BAR = 4  # px
_BLUR = 1.0  # px; the smoothing, the width of its Gaussian, carries the border outwards by as much at low thresholds
_TRIALS = 100
_MIN_POINTS = 30
_MIN_CONFIDENCE = 0.75
_MIN_ARC = 0.3  # share of the circle that must be seen where not the frame cuts it
_TIE = 0.02
_MAX_OUTSIDE = 0.4  # brightness of the surroundings over that of the disc

Box = tuple[int, int, int, int]  # r0, c0, r1, c1; the last two exclusive


@dataclass(frozen=True)
class FieldOfView:
    """A disc cut by a rectangle, in the pixels of one image.

    shape: (H, W) of the image. center: (row, col) float, px. diameter: float, px. box: (r0, c0, r1, c1), the bounding
    box of the visible part, r1 and c1 exclusive. confidence: in [0, 1], agreement (IoU) of the disc with the bright
    region, times the share of its visible circle that has an edge. full_frame: no disc was found; the box is all there
    is, and diameter its diagonal, because an image without a border lies inside the disc.
    """

    shape: tuple[int, int]
    center: tuple[float, float]
    diameter: float
    box: Box
    confidence: float
    full_frame: bool

    @cached_property
    def mask(self) -> np.ndarray:
        """The visible part, (H, W) bool."""
        r0, c0, r1, c1 = self.box
        mask = np.zeros(self.shape, bool)
        mask[r0:r1, c0:c1] = True
        if not self.full_frame:
            mask[r0:r1, c0:c1] = _disc(self.center, self.diameter / 2, np.arange(r0, r1), np.arange(c0, c1))
        return mask

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for metadata and reports."""
        return asdict(self)

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> "FieldOfView":
        """The inverse of to_dict, also after a data loader has made tensors and lists of the numbers."""
        height, width = (int(value) for value in numbers["shape"])
        row, col = (float(value) for value in numbers["center"])
        r0, c0, r1, c1 = (int(value) for value in numbers["box"])
        return cls(
            (height, width),
            (row, col),
            float(numbers["diameter"]),
            (r0, c0, r1, c1),
            float(numbers["confidence"]),
            bool(numbers["full_frame"]),
        )


def _disc(center: tuple[float, float], radius: float, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """(len(rows), len(cols)) bool: pixel centres within radius of center."""
    return ((rows - center[0]) ** 2)[:, None] + ((cols - center[1]) ** 2)[None, :] <= radius**2


class _Found(NamedTuple):
    """A disc in the working copy: confidence, center (row, col), radius, box of the visible part."""

    confidence: float
    center: tuple[float, float]
    radius: float
    box: Box


def detect_fov(image: np.ndarray) -> FieldOfView:
    """Find the bright disc of a fundus photograph; deterministic.

    Several thresholds are tried, because none suits both shaded discs and bright backgrounds. The one whose region is
    most like a disc wins, and the lowest of equals, so that photographs of one camera get one diameter.

    image: (H, W, 3) uint8, or float in [0, 1]. Raises ValueError for another shape.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be (H, W, 3), got {image.shape}; use read_image")
    light, step = _working_copy(image)
    shape = (image.shape[0], image.shape[1])
    discs: list[_Found] = []
    for level in _LEVELS:
        disc = _fit_disc(light, _region(light, level))
        if disc is not None:
            discs.append(disc)
            if disc.confidence > 1 - _TIE:
                break
    if not discs:
        return _without_disc(shape, light, step)
    best = max(disc.confidence for disc in discs)
    return _scaled(shape, next(disc for disc in discs if disc.confidence > best - _TIE), step)


def _working_copy(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Brightest channel, smoothed, at most 512 px a side, (h, w) float32; and how many px of the image one px is."""
    step = max(1.0, max(image.shape[:2]) / _WORKING_SIDE)
    size = tuple(max(1, round(side / step)) for side in image.shape[:2])
    brightest = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    return ndimage.gaussian_filter(resize(brightest, size), _BLUR), step


def _region(light: np.ndarray, level: float) -> np.ndarray:
    """The largest bright region without holes, (h, w) bool; empty where there is next to no background around it.

    level: threshold between the darkest (0) and the bright (1) parts of the image.
    """
    dark, bright = np.percentile(light, (0.5, 90))
    labels, count = ndimage.label(light > dark + level * (bright - dark))
    if count == 0:
        return np.zeros(light.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    region = ndimage.binary_fill_holes(labels == largest)
    return region if region.mean() < 0.995 else np.zeros_like(region)


def _edge(region: np.ndarray) -> np.ndarray:
    """The region's outermost pixels, (h, w) bool, without those where the frame cuts it."""
    edge = region & ~ndimage.binary_erosion(region, border_value=1)
    inner = np.zeros_like(edge)
    inner[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = True
    return edge & inner


def _fit_disc(light: np.ndarray, region: np.ndarray) -> _Found | None:
    """The disc behind a region of the working copy, or None if it does not look like one."""
    edge = _edge(region)
    points = np.argwhere(edge)[:, ::-1].astype(float)
    if len(points) < _MIN_POINTS:
        return None
    inliers = _inliers(points)
    if inliers.sum() < _MIN_POINTS:
        return None
    col, row, radius = _circle(points[inliers])
    radius += 0.5  # edge pixels belong to the region: their centres lie half a pixel inside its border
    disc = _disc((row, col), radius, *(np.arange(side) for side in region.shape))
    largest = math.hypot(*region.shape)  # a circle beyond it is a straight edge
    if not 0.2 * min(region.shape) <= radius <= largest or not (disc & region).any():
        return None
    box = _bounding_box(disc & region)
    upright = disc & _rectangle(region.shape, box)
    confidence = _overlap(upright, region) * _support(edge, (row, col), radius, box)
    if confidence >= _MIN_CONFIDENCE:
        visible = upright
    else:  # cut as by a frame, and then turned: the cuts are straight, but not those of a box
        hull = convex_hull_image(region)
        visible = upright & hull
        confidence = _overlap(visible, region) * _support(edge, (row, col), radius, box, hull)
    if confidence < _MIN_CONFIDENCE or not _is_dark_outside(light, visible):
        return None
    return _Found(confidence, (row, col), radius - _BLUR, box)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((one & other).sum() / (one | other).sum())


def _support(
    edge: np.ndarray, center: tuple[float, float], radius: float, box: Box, hull: np.ndarray | None = None
) -> float:
    """Which part of the circle, as far as it runs inside the box, has an edge pixel beside it; 0 … 1.

    hull: (h, w) bool, where the circle can be seen at all; 0 where too little of it can.
    """
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    rows, cols = center[0] + radius * np.sin(angle), center[1] + radius * np.cos(angle)
    r0, c0, r1, c1 = box
    limits = (rows > r0 + _MARGIN) & (rows < r1 - 1 - _MARGIN) & (cols > c0 + _MARGIN) & (cols < c1 - 1 - _MARGIN)
    if hull is not None:
        reach = 1 - 2 * _MARGIN / radius
        inner = (
            np.clip(np.rint(m + (v - m) * reach), 0, n - 1).astype(int)
            for m, v, n in zip(center, (rows, cols), hull.shape, strict=True)
        )
        limits &= ndimage.binary_erosion(hull, iterations=_MARGIN)[tuple(inner)]
        if limits.mean() < _MIN_ARC:
            return 0.0
    if not limits.any():
        return 0.0
    distance = ndimage.distance_transform_edt(~edge)
    near = distance[np.rint(rows[limits]).astype(int), np.rint(cols[limits]).astype(int)] <= 1.5 * _TOLERANCE
    return float(near.mean())


def _is_dark_outside(light: np.ndarray, visible: np.ndarray) -> bool:
    """Whether what surrounds the visible part is a background, and not a shaded part of the retina."""
    outside = ~ndimage.binary_dilation(visible, iterations=_MARGIN)
    if not outside.any():
        return False
    return bool(np.median(light[outside]) < _MAX_OUTSIDE * np.median(light[visible]))


def _inliers(points: np.ndarray) -> np.ndarray:
    """RANSAC (Fischler and Bolles, 1981): the points near the best of the circles through three of them.

    Not scikit-image's, which warns where it finds none and whose circle model changes between versions.
    points: (P, 2) float. Returns (P,) bool.
    """
    first, second, third = points[np.random.default_rng(0).integers(len(points), size=(3, _TRIALS))]
    (ax, ay), (bx, by) = (second - first).T, (third - first).T
    cross = 2 * (ax * by - ay * bx)
    valid = np.abs(cross) > 1.0
    cross = np.where(valid, cross, 1.0)
    a, b = ax**2 + ay**2, bx**2 + by**2
    x, y = (by * a - ay * b) / cross, (ax * b - bx * a) / cross
    distance = np.hypot(*(points[:, None] - (first + np.stack([x, y], axis=1))).transpose(2, 0, 1))
    near = (np.abs(distance - np.hypot(x, y)) <= _TOLERANCE) & valid
    return near[:, int(near.sum(axis=0).argmax())]


def _circle(points: np.ndarray) -> tuple[float, float, float]:
    """(x, y, radius) of the least-squares circle, from x² + y² = 2ax + 2by + c (Kåsa, 1976). points: (P, 2) float."""
    origin = points.mean(axis=0)
    x, y = (points - origin).T
    (a, b, c), *_ = np.linalg.lstsq(np.stack([2 * x, 2 * y, np.ones_like(x)], axis=1), x**2 + y**2, rcond=None)
    return float(a + origin[0]), float(b + origin[1]), float(np.sqrt(max(c + a * a + b * b, 0.0)))


def _bounding_box(mask: np.ndarray) -> Box:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1


def _rectangle(shape: tuple[int, ...], box: Box) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


def _scaled(shape: tuple[int, int], found: _Found, step: float) -> FieldOfView:
    """From the working copy to the image; pixel centres are at whole numbers in both."""
    row, col = ((value + 0.5) * step - 0.5 for value in found.center)
    radius = found.radius * step
    low = [max(0, math.ceil(middle - radius)) for middle in (row, col)]
    high = [min(side, math.floor(middle + radius) + 1) for middle, side in zip((row, col), shape, strict=True)]
    for axis in (0, 1):  # black bars cut the disc well inside its own bounding box
        start, stop = found.box[axis] * step, found.box[axis + 2] * step
        low[axis] = round(start) if start > low[axis] + _BAR * step else low[axis]
        high[axis] = round(stop) if stop < high[axis] - _BAR * step else high[axis]
    box = (low[0], low[1], high[0], high[1])
    return FieldOfView(shape, (row, col), 2 * radius, box, round(found.confidence, 4), False)


def _without_disc(shape: tuple[int, int], light: np.ndarray, step: float) -> FieldOfView:
    """The whole frame, or the rectangle that black bars leave of it; confidence 0."""
    box: Box = (0, 0, *shape)
    region = _region(light, _LEVELS[0])
    if region.mean() > 0.2:
        inner = _bounding_box(region)
        rectangle = _rectangle(region.shape, inner)
        if region.sum() > 0.98 * rectangle.sum() and _is_dark_outside(light, rectangle):
            scaled = [round(edge * step) for edge in inner]
            box = (scaled[0], scaled[1], min(scaled[2], shape[0]), min(scaled[3], shape[1]))
    center = ((box[0] + box[2] - 1) / 2, (box[1] + box[3] - 1) / 2)
    return FieldOfView(shape, center, math.hypot(box[2] - box[0], box[3] - box[1]), box, 0.0, True)


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
    r0, c0, r1, c1 = fov.box
    scale = diameter / fov.diameter
    size = (max(1, round((r1 - r0) * scale)), max(1, round((c1 - c0) * scale)))
    return CanonicalFrame(fov.shape, fov.box, size)


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
