"""Find the field of view: coarsely on a small copy of the photograph, then its edge at full resolution.

1. Threshold maps of the small copy (distance from the border's colour, brightness, saturation) at several levels: no
   single one suits shaded discs, bright backgrounds and stray light alike. Fit a circle to each region by RANSAC.
2. Follow rays from the centre to the region's edge, and fit an outline to these points: a disc or an ellipse, and the
   straight lines that cut it.
3. Along the same rays, find where the photograph is halfway between inside and outside, to a fraction of a pixel, and
   fit the outline again.
"""

import itertools
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from .fov import Box, FieldOfView, whole_frame
from .io import FundusReadError, read_image
from .outline import (
    ANGLES,
    RAYS,
    Curve,
    Outline,
    Rays,
    fit_outline,
    fitted_circle,
    fitted_line,
    points_on_rays,
)

_WORKING_SIDE = 320  # of the small copy; px below are its pixels
_LEVELS = (0.08, 0.14, 0.24, 0.38, 0.55)
_PLAIN = 0.04  # deviation of a border that has one colour
_SMALLEST = 0.01  # of the frame: smaller regions are text or dust
_SAME = 0.01  # of a region: another that differs by less has its outline
_SECOND = 0.25  # of the largest region: one as large may be another eye
_MARGIN = 3  # px; an edge nearer to the frame is where the frame cuts the disc
_TOLERANCE = 1.5  # px between a circle and the edge of a region
_ON_COARSE, _ON = 0.008, 0.006  # of the radius: points as near to an outline belong to it
_STRAIGHT = 0.75  # px from a line
_TRIALS = 200
_MIN_POINTS = 30
_MIN_RADIUS = 8  # px
_MIN_ARC = 0.06  # share of the whole circle that must be seen
_MIN_CONFIDENCE = 0.7
_SURE = 0.96
_TWO = 0.86  # of two discs in one photograph
_NO_DISC = 0.4  # confidence at full resolution: less of a sharp edge is no disc; in between it is doubtful
_CONTRAST = 0.5  # the step at the edge, as a share of the difference between disc and background
_REACH = 3.0  # px on each side of the coarse edge, where the fine one is sought
_SAMPLES = 31
_FAINT = 0.12  # of the median step at the edge: less is no edge
_SHARP = 0.35  # largest share of the samples between inside and outside at a sharp step
_UNSURE = 0.5  # highest confidence of a disc that is larger than the frame, or has its centre outside
_PANEL = 0.1  # of the frame


class TwoDiscsError(ValueError):
    """A photograph shows two fields of view, which have no common scale."""


class _Copy(NamedTuple):
    """pixels: (3, h, w) float32 in [0, 1], smoothed. step: px of the photograph per pixel. skip: px between samples."""

    pixels: np.ndarray
    step: float
    skip: int

    def to_image(self, position: float) -> float:
        """A row or column of the copy, in px of the photograph."""
        return (position + 0.5) * self.step - 0.5 * self.skip


class _Candidate(NamedTuple):
    """outline: in px of the copy. region: (h, w) bool. contrast: in [0, 1], the step at the edge."""

    outline: Outline
    region: np.ndarray
    confidence: float
    contrast: float

    @property
    def score(self) -> float:
        return self.confidence * min(1.0, self.contrast / _CONTRAST)


def detect_fov(image: np.ndarray) -> FieldOfView:
    """Find the field of view of a fundus photograph; deterministic.

    image: (H, W, 3) uint8, or float in [0, 1]. Raises ValueError for another shape, TwoDiscsError for two discs.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be (H, W, 3), got {image.shape}; use read_image")
    copy = _small_copy(image)
    found = _best(copy)
    if found is not None:
        return _field_of_view(image, copy, found)
    panel = _panel(copy)
    if panel is None:
        return whole_frame(image.shape[:2])
    r0, c0, r1, c1 = _box_in(copy, panel, image.shape[:2])
    upright = panel.region.sum() > _SURE * np.prod(np.ptp(np.argwhere(panel.region), axis=0) + 1)
    if upright and (r1 - r0, c1 - c0) != image.shape[:2]:
        inner = detect_fov(image[r0:r1, c0:c1])
        if not inner.full_frame:
            return inner.moved((r0, c0), (image.shape[0], image.shape[1]))
    return _field_of_view(image, copy, panel)


def read_fov(path: str | os.PathLike[str]) -> FieldOfView:
    """The field of view of a photograph on disk. Raises FundusReadError, also for two discs."""
    return named_fov(read_image(path), path)


def named_fov(image: np.ndarray, name: str | os.PathLike[str]) -> FieldOfView:
    """As detect_fov, with the photograph's name in the error for two discs: a FundusReadError."""
    try:
        return detect_fov(image)
    except TwoDiscsError as error:
        raise FundusReadError(name, str(error)) from None


def _small_copy(image: np.ndarray) -> _Copy:
    """At most _WORKING_SIDE px a side."""
    height, width = image.shape[:2]
    scale = max(1.0, max(height, width) / _WORKING_SIDE)
    skip = max(1, int(scale / 1.4))  # averaging every pixel of a large photograph takes longer than all the rest
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    pixels = np.empty((3, size[1], size[0]), np.float32)
    for channel, plane in enumerate(pixels):
        sampled = np.ascontiguousarray(image[::skip, ::skip, channel], np.float32)
        small = np.asarray(Image.fromarray(sampled).resize(size, Image.Resampling.BOX))
        ndimage.gaussian_filter(small, 1.0, output=plane, truncate=2)
    return _Copy(pixels / 255 if image.dtype == np.uint8 else pixels, max(height / size[1], width / size[0]), skip)


class _Candidates:
    """The outlines of regions; regions that are nearly the same are fitted once."""

    def __init__(self, copy: _Copy) -> None:
        self._copy = copy
        self._seen: list[tuple[np.ndarray, _Candidate | None]] = []

    def among(self, regions: list[np.ndarray]) -> list[_Candidate]:
        return [disc for disc in map(self._of, regions) if disc is not None]

    def _of(self, region: np.ndarray) -> _Candidate | None:
        for other, disc in self._seen:
            if np.count_nonzero(region ^ other) < _SAME * np.count_nonzero(other):
                return disc
        disc = _candidate(self._copy, region)
        self._seen.append((region, disc))
        return disc


def _best(copy: _Copy) -> _Candidate | None:
    """The region that looks most like a field of view; at a tie, the first map and the lowest level.

    Raises TwoDiscsError if there is another next to it.
    """
    candidates = _Candidates(copy)
    best: _Candidate | None = None
    for regions in itertools.chain.from_iterable(_regions(level_map) for level_map in _maps(copy.pixels)):
        for disc in candidates.among(regions):
            if best is None or disc.score > best.score + 0.01:
                best = disc
        if best is not None and best.score > _SURE:
            break
    if best is not None and best.score > _TWO and _another(copy, best, candidates):
        raise TwoDiscsError("it shows two discs; save each eye as a separate file")
    return best


def _another(copy: _Copy, found: _Candidate, candidates: _Candidates) -> bool:
    """Whether the rest of the photograph shows a disc as well."""
    rest = ~ndimage.binary_dilation(found.outline.inside(found.region.shape), iterations=2)
    smallest = _SECOND * float(np.count_nonzero(~rest))
    levels = itertools.chain.from_iterable(_regions(level_map, rest, smallest) for level_map in _maps(copy.pixels))
    return any(disc.score > _TWO for regions in levels for disc in candidates.among(regions))


def _maps(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Maps that may tell the retina from its surroundings, (h, w) float32 each."""
    sides = [pixels[:, :_MARGIN], pixels[:, -_MARGIN:], pixels[:, :, :_MARGIN], pixels[:, :, -_MARGIN:]]
    border = np.concatenate([side.reshape(3, -1) for side in sides], axis=1)
    colour = np.median(border, axis=1)
    if np.median(np.abs(border - colour[:, None]).max(axis=0)) < _PLAIN:
        yield np.maximum.reduce([np.abs(plane - level) for plane, level in zip(pixels, colour, strict=True)])
    brightest = np.maximum.reduce(pixels)
    yield brightest
    yield brightest - np.minimum.reduce(pixels)


def _regions(values: np.ndarray, within: np.ndarray | None = None, smallest: float = 0.0) -> Iterator[list[np.ndarray]]:
    """For each level, the largest regions above it without their holes, (h, w) bool each.

    within: (h, w) bool, where to look. smallest: px.
    """
    dark, bright = np.percentile(values, (0.5, 98))
    smallest = max(_SMALLEST * values.size, smallest)
    for level in _LEVELS:
        above = values > dark + level * (bright - dark)
        if within is not None:
            above &= within
        if np.count_nonzero(above) < smallest:
            continue
        labels, count = ndimage.label(above)
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        regions = []
        for index in np.argsort(-areas)[:3]:
            if areas[index] < max(smallest, _SECOND * areas.max()):
                break
            region = ndimage.binary_fill_holes(labels == index + 1)
            if within is not None:
                region &= within
            if region.mean() < 0.995:
                regions.append(region)
        yield regions


def _candidate(copy: _Copy, region: np.ndarray) -> _Candidate | None:
    """The outline of a region, or None if it does not look like a field of view."""
    edge = region & ~ndimage.binary_erosion(region, border_value=1)
    edge[:_MARGIN] = edge[-_MARGIN:] = False
    edge[:, :_MARGIN] = edge[:, -_MARGIN:] = False
    points = np.argwhere(edge).astype(float)
    if len(points) < _MIN_POINTS:
        return None
    best: _Candidate | None = None
    for some in (points, _without_lines(points)):  # where four lines cut a disc, most of its edge is straight
        outline = _outline(region, some) if len(some) >= _MIN_POINTS else None
        if outline is not None:
            confidence = _overlap(outline, region) * outline.support
            if confidence > max(_MIN_CONFIDENCE, best.confidence if best else 0):
                best = _Candidate(outline, region, confidence, _contrast(copy.pixels, outline))
        if best is not None and best.confidence > _SURE:
            break
    return best


def _outline(region: np.ndarray, points: np.ndarray) -> Outline | None:
    """Fit an outline, from the circle through most points of a region's edge; None if no circle fits the frame."""
    near = _inliers(points, math.hypot(*region.shape))
    if near.sum() < _MIN_POINTS:
        return None
    circle = fitted_circle(points[near])
    if not _plausible(circle, region.shape):
        return None
    rays = _region_rays(region, circle.center, circle.radius)
    outline = fit_outline(rays, circle.radius, max(_TOLERANCE, _ON_COARSE * circle.radius), np.ones(RAYS, bool))
    return outline if _plausible(outline, region.shape) and outline.arc >= _MIN_ARC else None


def _without_lines(points: np.ndarray) -> np.ndarray:
    """Drop the points that lie on long straight lines."""
    longest = max(_MIN_POINTS, 0.2 * float(np.ptp(points, axis=0).max()))  # px; longer than any piece of a circle
    rest = np.ones(len(points), bool)
    while rest.sum() >= _MIN_POINTS:
        line, on = fitted_line(points - points.mean(axis=0), rest, _STRAIGHT)
        if line is None or on.sum() < longest:
            break
        rest &= ~on
    return points[rest]


def _plausible(disc: Curve | Outline, shape: tuple[int, ...]) -> bool:
    return _MIN_RADIUS <= disc.radius <= math.hypot(*shape) and _is_in(disc.center, shape, 0.1 * disc.radius)


def _is_in(center: tuple[float, float], shape: tuple[int, ...], slack: float = 0.0) -> bool:
    return all(-slack <= middle <= side - 1 + slack for middle, side in zip(center, shape, strict=True))


def _inliers(points: np.ndarray, largest: float) -> np.ndarray:
    """RANSAC (Fischler and Bolles, 1981): the points near the best of the circles through three of them.

    Not scikit-image's, which warns where it finds none and whose circle model changes between versions.
    points: (P, 2) float. largest: radius, px. Returns (P,) bool.
    """
    first, second, third = points[np.random.default_rng(0).integers(len(points), size=(3, _TRIALS))]
    (ay, ax), (by, bx) = (second - first).T, (third - first).T
    cross = 2 * (ax * by - ay * bx)
    valid = np.abs(cross) > 1.0
    cross = np.where(valid, cross, 1.0)
    a, b = ax**2 + ay**2, bx**2 + by**2
    x, y = (by * a - ay * b) / cross, (ax * b - bx * a) / cross
    radius = np.hypot(x, y)
    valid &= radius < largest
    some = points[:: max(1, len(points) // 400)]
    distance = np.hypot(some[:, :1] - (first[:, 0] + y), some[:, 1:] - (first[:, 1] + x))
    best = int(((np.abs(distance - radius) <= _TOLERANCE) & valid).sum(axis=0).argmax())
    middle = first[best] + (y[best], x[best])
    return np.abs(np.hypot(*(points - middle).T) - radius[best]) <= 2 * _TOLERANCE


def _region_rays(region: np.ndarray, center: tuple[float, float], radius: float) -> Rays:
    """Where each ray leaves a region for the last time, to half a pixel."""
    height, width = region.shape
    distance = np.arange(0.2 * radius, 1.06 * radius + 2, 0.5)
    rows, cols = points_on_rays(center, ANGLES, distance)
    at_row, at_col = np.rint(rows).astype(int), np.rint(cols).astype(int)
    in_frame = (at_row >= 0) & (at_row < height) & (at_col >= 0) & (at_col < width)
    inside = in_frame & region[np.clip(at_row, 0, height - 1), np.clip(at_col, 0, width - 1)]
    last = inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)
    edge = distance[last] + 0.25
    row, col = (position[:, 0] for position in points_on_rays(center, ANGLES, edge[:, None]))
    cut = np.minimum.reduce([row, col, height - 1 - row, width - 1 - col]) < _MARGIN  # by the frame
    known = inside.any(axis=1) & ~cut & (last < len(distance) - 1)
    return Rays(center, np.where(known, edge, np.nan), ~cut)


def _overlap(outline: Outline, region: np.ndarray) -> float:
    """Intersection over union."""
    model = outline.inside(region.shape)
    return float((model & region).sum() / max((model | region).sum(), 1))


def _contrast(pixels: np.ndarray, outline: Outline) -> float:
    """The step at the edge, as a share of the difference between the disc and the background next to it."""
    edge = outline.edge
    rows, cols = points_on_rays(outline.center, ANGLES, np.stack([edge - _REACH, edge + _REACH, 0.8 * edge], axis=1))
    height, width = pixels.shape[1:]
    at = np.rint(rows).astype(int), np.rint(cols).astype(int)
    seen = (at[0][:, 1] >= 0) & (at[0][:, 1] < height) & (at[1][:, 1] >= 0) & (at[1][:, 1] < width)
    if not seen.any():
        return 0.0
    values = pixels[:, np.clip(at[0][seen], 0, height - 1), np.clip(at[1][seen], 0, width - 1)]
    within, beyond, interior = values.transpose(2, 0, 1)
    whole = np.abs(np.median(interior, axis=1) - np.median(beyond, axis=1)).max()
    return float(min(1.0, np.median(np.abs(within - beyond).max(axis=0)) / max(whole, 1e-3)))


def _panel(copy: _Copy) -> _Candidate | None:
    """A region with straight sides and no arc, upright or turned: a photograph without a border, on a background."""
    for values in _maps(copy.pixels):
        for region in (largest for regions in _regions(values) for largest in regions[:1]):
            row, col = ndimage.center_of_mass(region)
            radius = math.hypot(*region.shape)
            rays = _region_rays(region, (float(row), float(col)), radius)
            outline = fit_outline(rays, radius, _TOLERANCE, np.ones(RAYS, bool), disc=False)
            if region.mean() > _PANEL and outline.support > _SURE and _overlap(outline, region) > _SURE:
                return _Candidate(outline, region, 0.0, 0.0)
    return None


def _field_of_view(image: np.ndarray, copy: _Copy, found: _Candidate) -> FieldOfView:
    """Find a candidate's edge at full resolution. A confidence of 0 means that it is no disc."""
    shape = (image.shape[0], image.shape[1])
    disc = found.confidence > 0
    rays, sharp = _fine_rays(image, copy, found.outline)
    coarse = found.outline.radius * copy.step
    tolerance = max(1.0, _ON * coarse) if disc else _TOLERANCE
    outline = fit_outline(rays, coarse, tolerance, sharp, disc)
    confidence = _overlap(found.outline, found.region) * outline.support if disc else 0.0
    if disc and confidence < _NO_DISC:
        return whole_frame(shape)
    if not _is_in(outline.center, shape) or 2 * outline.radius > math.hypot(*shape):
        confidence = min(confidence, _UNSURE)
    box = _box(outline, shape)
    diameter = 2 * outline.radius if disc else math.hypot(box[2] - box[0], box[3] - box[1])
    edge = outline.edge if _is_cut(outline, shape) or not disc else ()
    return FieldOfView(
        shape, outline.center, diameter, box, round(confidence, 4), not disc, tuple(round(float(px), 2) for px in edge)
    )


def _fine_rays(image: np.ndarray, copy: _Copy, coarse: Outline) -> tuple[Rays, np.ndarray]:
    """Along each ray, where the photograph is halfway between inside and outside; and which changes are sharp."""
    center = (copy.to_image(coarse.center[0]), copy.to_image(coarse.center[1]))
    edge = coarse.edge * copy.step
    first, _, _ = _halfway(image, center, edge, copy.step, _SAMPLES // 2)
    edge = ndimage.median_filter(np.where(np.isfinite(first), first, edge), 5, mode="wrap")
    fine, visible, sharp = _halfway(image, center, edge, copy.step)
    return Rays(center, fine, visible), sharp


def _halfway(
    image: np.ndarray, center: tuple[float, float], edge: np.ndarray, step: float, samples: int = _SAMPLES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Refine the edge along rays: px from the centre, NaN where there is none; which rays are visible; which are sharp.

    On each ray, colours are projected onto the line from outside to inside colour, so any difference counts.
    """
    height, width = image.shape[:2]
    distance = np.maximum(edge[:, None] + np.linspace(-_REACH, _REACH, samples) * step, 0)
    rows, cols = points_on_rays(center, ANGLES, distance)
    visible = ((rows >= 0) & (rows <= height - 1) & (cols >= 0) & (cols <= width - 1)).all(axis=1)
    sampled = [
        ndimage.map_coordinates(image[..., channel], (rows, cols), np.float32, order=1, mode="nearest")
        for channel in range(3)
    ]
    colours = ndimage.gaussian_filter(
        np.stack(sampled, axis=-1), (1.5, 0.03 * samples, 0), mode=("wrap", "nearest", "nearest")
    )
    quarter = samples // 4
    within, beyond = colours[:, :quarter].mean(axis=1), colours[:, -quarter:].mean(axis=1)
    difference = (within - beyond)[:, None, :]
    square = (difference**2).sum(axis=2)
    share = ((colours - beyond[:, None, :]) * difference).sum(axis=2) / np.maximum(square, 1e-9)
    index = samples - 1 - np.argmax((share >= 0.5)[:, ::-1], axis=1)  # the outermost that is more inside than outside
    index = np.clip(index, 0, samples - 2)
    ray = np.arange(len(index))
    here, there = share[ray, index], share[ray, index + 1]
    fraction = np.clip((here - 0.5) / np.maximum(here - there, 1e-6), 0, 1)
    fine = distance[ray, index] + fraction * (distance[:, 1] - distance[:, 0])
    strength = np.sqrt(square[:, 0])
    clear = visible & (strength > _FAINT * np.median(strength[visible])) if visible.any() else visible
    sharp = clear & (((share > 0.25) & (share < 0.75)).mean(axis=1) < _SHARP)
    return np.where(clear, fine, np.nan), visible, sharp


def _is_cut(outline: Outline, shape: tuple[int, int]) -> bool:
    """Whether the outline differs from a whole disc anywhere inside the frame."""
    other = np.abs(outline.edge - outline.radius) > 0.25
    for distance in (outline.edge, np.full(RAYS, outline.radius)):
        rows, cols = (position[:, 0] for position in points_on_rays(outline.center, ANGLES, distance[:, None]))
        if (other & (rows > 0) & (rows < shape[0] - 1) & (cols > 0) & (cols < shape[1] - 1)).any():
            return True
    return False


def _box(outline: Outline, shape: tuple[int, int]) -> Box:
    """The bounding box of the outline, clipped to the frame."""
    rows, cols = points_on_rays(outline.center, ANGLES, outline.edge[:, None])
    box = [
        max(0, math.ceil(rows.min())),
        max(0, math.ceil(cols.min())),
        min(shape[0], math.floor(rows.max()) + 1),
        min(shape[1], math.floor(cols.max()) + 1),
    ]
    return (box[0], box[1], box[2], box[3])


def _box_in(copy: _Copy, panel: _Candidate, shape: tuple[int, ...]) -> Box:
    """The bounding box of a region of the copy in the photograph, without the pixels next to its edge."""
    rows, cols = np.flatnonzero(panel.region.any(axis=1)), np.flatnonzero(panel.region.any(axis=0))
    low = [math.ceil(copy.to_image(some[0] + 0.5)) for some in (rows, cols)]
    high = [math.floor(copy.to_image(some[-1] - 0.5)) + 1 for some in (rows, cols)]
    return (max(0, low[0]), max(0, low[1]), min(shape[0], high[0]), min(shape[1], high[1]))
