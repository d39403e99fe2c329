"""The field of view of a fundus photograph: the part that shows the retina, usually a disc or a disc cut by lines."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]  # r0, c0, r1, c1; the last two exclusive

REACH = 0.04  # of the diameter: how far beyond its edge the retina is continued; more than a decoder sees
DOUBTFUL = 0.8  # confidence below which a person should look at the field of view
_STEEPEST = 0.2  # sine of the smallest angle between a ray and the edge; below it, the sides of a notch


@dataclass(frozen=True)
class FieldOfView:
    """The part of an image that shows the retina, in its pixels.

    shape: (H, W) of the image. center: (row, col) float, px, of the disc. diameter: float, px, of the disc before
    anything cuts it; of an ellipse, that of the disc of the same area. box: (r0, c0, r1, c1), the bounding box of the
    visible part, r1 and c1 exclusive. confidence: in [0, 1], agreement (IoU) of this field of view with the bright
    region, times the share of its visible edge that is sharp in the image. full_frame: no disc was found, and
    diameter is the diagonal of the box, because an image without a border lies inside the disc.
    edge: px from the center to the edge, at len(edge) evenly spaced angles from the direction of growing columns
    towards that of growing rows; empty for a whole disc or frame.
    """

    shape: tuple[int, int]
    center: tuple[float, float]
    diameter: float
    box: Box
    confidence: float
    full_frame: bool
    edge: tuple[float, ...] = ()

    @cached_property
    def mask(self) -> np.ndarray:
        """The visible part, (H, W) bool."""
        r0, c0, r1, c1 = self.box
        mask = np.zeros(self.shape, bool)
        mask[r0:r1, c0:c1] = self.inside(np.arange(r0, r1), np.arange(c0, c1))
        return mask

    @property
    def has_rim(self) -> bool:
        """Whether any of its edge lies inside the frame."""
        return not self.full_frame or bool(self.edge)

    @property
    def surroundings(self) -> Box:
        """The box, extended by up to REACH diameters where a line cuts the disc inside the frame.

        The network sees the mirrored retina there, as it does beyond an arc, instead of the end of the picture.
        """
        reach, radius = round(REACH * self.diameter), self.diameter / 2
        low = (max(0, start - reach, math.ceil(c - radius)) for start, c in zip(self.box[:2], self.center, strict=True))
        high = (
            min(side, stop + reach, math.floor(c + radius) + 1)
            for side, stop, c in zip(self.shape, self.box[2:], self.center, strict=True)
        )
        (r0, c0), (r1, c1) = low, high
        return (min(r0, self.box[0]), min(c0, self.box[1]), max(r1, self.box[2]), max(c1, self.box[3]))

    @property
    def doubtful(self) -> bool:
        """Whether a person should look at it: no disc was found, or one of low confidence."""
        return self.full_frame or self.confidence < DOUBTFUL

    def inside(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """(len(rows), len(cols)) bool: which points of a grid lie within the edge. rows, cols: float, px."""
        if not self.has_rim:
            return np.ones((len(rows), len(cols)), bool)
        down, right = (rows - self.center[0])[:, None], (cols - self.center[1])[None, :]
        squared = down**2 + right**2
        if not self.edge:
            return squared <= (self.diameter / 2) ** 2
        inside = squared <= min(self.edge) ** 2
        between = ~inside & (squared <= max(self.edge) ** 2)  # only here is the angle needed, which costs most
        at_row, at_col = np.nonzero(between)
        angle = np.arctan2(down[at_row, 0], right[0, at_col])
        inside[between] = squared[between] <= self.edge_at(angle) ** 2
        return inside

    def edge_at(self, angle: np.ndarray, inset: float = 0.0) -> np.ndarray:
        """Px from the center to the edge, or to a curve `inset` px inside it, at each angle (radians)."""
        if not self.edge:
            return np.full(np.shape(angle), self.diameter / 2 - inset)
        edge = np.asarray(self.edge)
        if inset:
            edge = _inset(edge, inset)
        steps = np.asarray(angle) * (len(edge) / (2 * math.pi))
        return np.interp(steps % len(edge), np.arange(len(edge) + 1), np.append(edge, edge[0]))

    def moved(self, offset: tuple[int, int], shape: tuple[int, int]) -> "FieldOfView":
        """The same in a larger image, in which this image begins at offset (row, col)."""
        (down, right), (row, col), (r0, c0, r1, c1) = offset, self.center, self.box
        box = (r0 + down, c0 + right, r1 + down, c1 + right)
        return replace(self, shape=shape, center=(row + down, col + right), box=box)

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
            tuple(float(value) for value in numbers.get("edge") or ()),
        )


def whole_frame(shape: tuple[int, ...]) -> FieldOfView:
    """The whole frame, for shape (H, W): a photograph without a border lies inside the disc."""
    height, width = shape
    center = ((height - 1) / 2, (width - 1) / 2)
    return FieldOfView((height, width), center, math.hypot(height, width), (0, 0, height, width), 0.0, True)


def _inset(edge: np.ndarray, inset: float) -> np.ndarray:
    """The polar curve `inset` px inside another: where each ray first comes that near to the edge."""
    turn = np.arange(len(edge)) * (2 * math.pi / len(edge))
    apart = turn[:, None] - turn[None, :]
    along, across = edge * np.cos(apart), edge * np.sin(apart)  # of the points, seen from each ray
    reach = inset**2 - across**2
    entry = np.where((reach >= 0) & (along > 0), along - np.sqrt(np.maximum(reach, 0)), np.inf).min(axis=1)
    slope = (np.roll(edge, -1) - np.roll(edge, 1)) / (2 * turn[1])
    sine = edge / np.hypot(edge, slope)  # of the angle between the ray and the edge
    return np.maximum(np.minimum(entry, edge - inset / np.maximum(sine, _STEEPEST)), 0.0)
