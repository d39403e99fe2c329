"""The outline of a field of view, fitted to points of its edge: a disc or an ellipse, and the lines that cut it."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .fov import FieldOfView

RAYS = 720
ANGLES = np.arange(RAYS) * (2 * math.pi / RAYS)
_PASSES = 4
_NEAR = 0.05  # of the radius, and at least three times the tolerance: points farther from the first circle do not count
_FLATTENING = 0.004  # of the radius: less is noise
_GAIN = 0.1  # share of the rays that an ellipse must explain beyond those of a circle
_MAX_LINES = 6
_TRIALS = 200
_MIN_POINTS = 8
_NARROWEST = 5  # rays across a notch
_BEYOND = 0.15  # share of the rays through a cut that may continue behind it


def points_on_rays(
    center: tuple[float, float], angle: np.ndarray, distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, cols) of points on rays from a centre, (A, P) each. angle: (A,) radians. distance: (P,) or (A, P) px."""
    turn = angle[:, None]
    return center[0] + distance * np.sin(turn), center[1] + distance * np.cos(turn)


class Rays(NamedTuple):
    """Rays from a centre. edge: (RAYS,) px to the edge, NaN where unknown. visible: (RAYS,) bool, ends in the frame."""

    center: tuple[float, float]
    edge: np.ndarray
    visible: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """(K, 2) rows and columns of the known edge."""
        rows, cols = points_on_rays(self.center, ANGLES, self.edge[:, None])
        points = np.concatenate([rows, cols], axis=1)
        return points[np.isfinite(self.edge)]


class Curve(NamedTuple):
    """A disc, or a slightly flattened ellipse. bend: amplitude of the second harmonic, px along cosine and sine."""

    center: tuple[float, float]
    radius: float
    bend: tuple[float, float] = (0.0, 0.0)

    def at(self, angle: np.ndarray) -> np.ndarray:
        """Px from the centre to the curve."""
        return self.radius + self.bend[0] * np.cos(2 * angle) + self.bend[1] * np.sin(2 * angle)


class Line(NamedTuple):
    """A cut: what lies farther than `distance` px from the centre in the direction `angle` (radians) is cut off."""

    angle: float
    distance: float

    def at(self, angle: np.ndarray) -> np.ndarray:
        """Px from the centre to the line, infinite where a ray never meets it."""
        cosine = np.cos(angle - self.angle)
        return np.where(cosine > 1e-6, self.distance / np.maximum(cosine, 1e-6), np.inf)


class Outline(NamedTuple):
    """center: (row, col). radius: px, of the disc. edge: (RAYS,) px to the visible edge. lines: the cuts.

    arc: share of all rays that end on the disc. support: share of the visible rays that end sharply on the outline,
    or share of the rays through its arcs that end on them, whichever is less.
    """

    center: tuple[float, float]
    radius: float
    edge: np.ndarray
    lines: tuple[Line, ...]
    arc: float
    support: float

    def inside(self, shape: tuple[int, ...]) -> np.ndarray:
        """(H, W) bool: pixels within the outline."""
        view = FieldOfView(
            (shape[0], shape[1]), self.center, 2 * self.radius, (0, 0, shape[0], shape[1]), 1.0, False, tuple(self.edge)
        )
        return view.mask


def fit_outline(rays: Rays, radius: float, tolerance: float, sharp: np.ndarray, disc: bool = True) -> Outline:
    """The outline that explains most of the points.

    radius: of the first guess, px. tolerance: px between the outline and a point on it. sharp: (RAYS,) bool, points
    that count; where a shadow ends is no edge. disc: False for a region bounded by lines alone.
    """
    known = np.isfinite(rays.edge)
    points = rays.points
    curve = _curve(points, Curve(rays.center, radius), tolerance) if disc else Curve(rays.center, radius)
    angle, distance = _polar(points, curve.center)
    lines = _lines(angle, distance, distance < curve.at(angle) - tolerance, curve, tolerance)

    def shape(turn: np.ndarray) -> np.ndarray:
        return np.minimum.reduce([curve.at(turn), *(line.at(turn) for line in lines)])

    gap = shape(angle) - distance
    on = sharp[known] & (np.abs(gap) <= tolerance)
    on_arc = on & (np.abs(curve.at(angle) - distance) <= tolerance)
    within = np.zeros(RAYS, bool)
    within[known] = sharp[known] & (gap > 2 * tolerance)
    notch = ndimage.binary_opening(np.tile(within, 3), np.ones(_NARROWEST))[RAYS : 2 * RAYS][known]
    edge = shape(ANGLES)
    if notch.any():
        order = np.argsort(angle)
        depth = np.interp(ANGLES, angle[order], np.where(notch, gap, 0)[order], period=2 * math.pi)
        edge = edge - np.maximum(depth, 0)
    support = on.sum() / max(int(rays.visible.sum()), 1)
    if disc:
        on_curve = rays.visible & (shape(ANGLES) == curve.at(ANGLES))
        support = min(support, on_arc.sum() / max(int(on_curve.sum()), 1))
    return Outline(curve.center, curve.radius, edge, lines, float(on_arc.sum() / RAYS), float(support))


def fitted_circle(points: np.ndarray) -> Curve:
    """The least-squares circle, from x² + y² = 2ax + 2by + c (Kåsa, 1976). points: (P, 2) float, rows and columns."""
    origin = points.mean(axis=0)
    y, x = (points - origin).T
    (b, a, c), *_ = np.linalg.lstsq(np.stack([2 * y, 2 * x, np.ones_like(x)], axis=1), x**2 + y**2, rcond=None)
    return Curve((float(b + origin[0]), float(a + origin[1])), float(np.sqrt(max(c + a * a + b * b, 0.0))))


def _polar(points: np.ndarray, center: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    down, right = points[:, 0] - center[0], points[:, 1] - center[1]
    return np.arctan2(down, right), np.hypot(down, right)


def _curve(points: np.ndarray, first: Curve, tolerance: float) -> Curve:
    """The circle through most points near the first guess, or an ellipse where that explains many more."""
    _, distance = _polar(points, first.center)
    near = points[np.abs(distance - first.radius) < max(_NEAR * first.radius, 3 * tolerance)]
    if len(near) < _MIN_POINTS:
        return first
    circle = _trimmed(near, first, tolerance, ellipse=False)
    if len(near) < RAYS / 2:
        return circle
    ellipse = _trimmed(near, circle, tolerance, ellipse=True)
    gain = _explained(near, ellipse, tolerance) - _explained(near, circle, tolerance)
    return ellipse if math.hypot(*ellipse.bend) > _FLATTENING * circle.radius and gain > _GAIN * RAYS else circle


def _explained(points: np.ndarray, curve: Curve, tolerance: float) -> int:
    angle, distance = _polar(points, curve.center)
    return int((np.abs(distance - curve.at(angle)) <= tolerance).sum())


def _trimmed(points: np.ndarray, curve: Curve, tolerance: float, ellipse: bool) -> Curve:
    """Repeated least squares, each time without the points far off the last curve."""
    for _ in range(_PASSES):
        angle, distance = _polar(points, curve.center)
        residual = np.abs(distance - curve.at(angle))
        some = residual <= max(3 * 1.4826 * float(np.median(residual)), tolerance / 2)
        if some.sum() < _MIN_POINTS:
            return curve
        curve = _harmonic(points[some], curve.center) if ellipse else fitted_circle(points[some])
    return curve


def _harmonic(points: np.ndarray, center: tuple[float, float]) -> Curve:
    """Mean radius, shift of the centre and second harmonic of the distance from a centre: an ellipse to first order."""
    angle, distance = _polar(points, center)
    terms = [np.ones_like(angle), np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]
    (radius, right, down, cosine, sine), *_ = np.linalg.lstsq(np.stack(terms, axis=1), distance, rcond=None)
    return Curve((center[0] + float(down), center[1] + float(right)), float(radius), (float(cosine), float(sine)))


def _lines(
    angle: np.ndarray, distance: np.ndarray, inner: np.ndarray, curve: Curve, tolerance: float
) -> tuple[Line, ...]:
    """The straight cuts, one by one: the line that explains most of the remaining points inside the curve."""
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * distance[:, None]
    rest, lines = inner.copy(), []
    for _ in range(_MAX_LINES):
        line, on = fitted_line(points, rest, tolerance / 2) if rest.sum() >= _MIN_POINTS else (None, rest)
        if line is None:
            break
        rest &= ~on
        across = line.at(angle) < curve.at(angle)
        beyond = across & (distance > line.at(angle) + tolerance)
        if on.sum() >= _MIN_POINTS and beyond.sum() <= _BEYOND * across.sum():
            lines.append(line)
    return tuple(lines)


def fitted_line(points: np.ndarray, some: np.ndarray, tolerance: float) -> tuple[Line | None, np.ndarray]:
    """RANSAC on `some` of the points, then least squares on those near the best line; also returns which these are."""
    chosen = points[some]
    one, other = chosen[np.random.default_rng(0).integers(len(chosen), size=(2, _TRIALS))]
    normal = np.stack([other[:, 1] - one[:, 1], one[:, 0] - other[:, 0]], axis=1)
    length = np.hypot(*normal.T)
    normal = normal[length > 4 * tolerance] / length[length > 4 * tolerance, None]
    if not len(normal):
        return None, some
    offset = (normal * one[length > 4 * tolerance]).sum(axis=1)
    near = np.abs(chosen @ normal.T - offset) <= tolerance
    on = chosen[near[:, int(near.sum(axis=0).argmax())]]
    for _ in range(2):
        middle = on.mean(axis=0)
        normal_of_best = np.linalg.svd(on - middle, full_matrices=False)[2][1]
        away = float(normal_of_best @ middle)
        if away < 0:
            normal_of_best, away = -normal_of_best, -away
        is_on = some & (np.abs(points @ normal_of_best - away) <= tolerance)
        if is_on.sum() < 2:
            return None, some
        on = points[is_on]
    return Line(math.atan2(normal_of_best[1], normal_of_best[0]), away), is_on
