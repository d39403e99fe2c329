"""The vessels of a phantom eye as curves with widths: grown from the optic disc, branching after Murray's law.

Coordinates are (x right, y down) in radii of the field of view, its centre at the origin. Right eye: disc on the right.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ARTERY, VEIN = "artery", "vein"
SMALLEST_RADIUS = 0.0023
_STEP = 0.012
_REACH = 1.06  # vessels are grown to just outside the field of view
_SHORTEST = 5  # points; stumps that are stopped earlier are left out
_CELL = 0.01
_AVASCULAR = 0.09  # around the fovea

Point = tuple[float, float]


@dataclass(frozen=True)
class Anatomy:
    """Where things are. disc, fovea: (x, y). disc_radius: of the optic disc. All in radii of the field of view."""

    disc: Point
    disc_radius: float
    fovea: Point


@dataclass(frozen=True)
class Vessel:
    """A stretch between two bifurcations. points: (n, 2) float; radius: constant; parent: index in the tree or None."""

    kind: str
    points: np.ndarray
    radius: float
    parent: int | None


class _Bud(NamedTuple):
    """A vessel to be grown. course: which field steers it. sign: +1 runs along the upper arcade, -1 the lower."""

    kind: str
    position: Point
    heading: float
    radius: float
    course: str
    sign: int
    parent: int | None


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """A right eye, centred between disc and fovea or, less often, on the disc and closer."""
    disc_radius = rng.uniform(0.115, 0.15)
    disc = (rng.uniform(0.38, 0.6), rng.uniform(-0.08, 0.08))
    if rng.random() < 0.25:
        disc_radius = rng.uniform(0.15, 0.185)
        disc = (rng.uniform(0.0, 0.25), rng.uniform(-0.08, 0.08))
    distance = disc_radius * rng.uniform(4.6, 5.3)
    tilt = math.radians(rng.uniform(2, 11))
    return Anatomy(disc, disc_radius, (disc[0] - distance * math.cos(tilt), disc[1] + distance * math.sin(tilt)))


def grow_vessels(anatomy: Anatomy, rng: np.random.Generator) -> list[Vessel]:
    """Arteries and veins; at a bifurcation r0³ = r1³ + r2³ (Murray, PNAS 1926).

    Thickest first, parents before children.
    """
    vessels: list[Vessel] = []
    occupied: dict[str, dict[tuple[int, int], int]] = {ARTERY: {}, VEIN: {}}
    queue = [(-bud.radius, i, bud) for i, bud in enumerate(_trunks(anatomy, rng))]
    heapq.heapify(queue)
    count = len(queue)
    while queue:
        _, _, bud = heapq.heappop(queue)
        points, blocked = _grow(bud, anatomy, occupied[bud.kind], vessels, rng)
        if blocked and len(points) < _SHORTEST:
            continue
        index = len(vessels)
        vessels.append(Vessel(bud.kind, np.array(points), bud.radius, bud.parent))
        for x, y in points[:-1]:
            occupied[bud.kind].setdefault(_cell(x, y), index)
        for child in () if blocked else _fork(bud, points, index, anatomy, rng):
            count += 1
            heapq.heappush(queue, (-child.radius, count, child))
    return vessels


def _trunks(anatomy: Anatomy, rng: np.random.Generator) -> Iterator[_Bud]:
    """The vessels that leave the optic disc: four arcades and a few small ones of each kind."""
    x, y = anatomy.disc
    scale = (anatomy.disc_radius / 0.13) ** 0.5 * rng.uniform(0.75, 0.95)
    for kind, radius, spread in ((ARTERY, 0.0105, 0.0), (VEIN, 0.0138, 0.22)):
        for sign in (1, -1):
            for course, angle, share in (("arcade", 1.75, 1.0), ("nasal", 0.85, 0.72)):
                heading = -sign * (angle + spread * (1 if course == "arcade" else -1) + rng.normal(0, 0.12))
                start = (x + rng.normal(0.015, 0.012), y - sign * rng.uniform(0.0, 0.012))
                yield _Bud(kind, start, heading, radius * share * scale * rng.uniform(0.9, 1.1), course, sign, None)
        for _ in range(rng.integers(2, 5)):
            sign = rng.choice((1, -1))
            heading = math.pi + rng.uniform(-0.9, 0.9)
            yield _Bud(kind, (x, y), heading, rng.uniform(0.0032, 0.0048) * scale, "macular", int(sign), None)
        for _ in range(rng.integers(1, 4)):
            heading = rng.uniform(-1.2, 1.2)
            yield _Bud(
                kind, (x, y), heading, rng.uniform(0.0032, 0.006) * scale, "nasal", 1 if heading < 0 else -1, None
            )


def _grow(
    bud: _Bud, anatomy: Anatomy, occupied: dict[tuple[int, int], int], vessels: list[Vessel], rng: np.random.Generator
) -> tuple[list[Point], bool]:
    """The points of one stretch, and whether it came to an end: it left the field of view or met its own kind."""
    length = rng.uniform(0.09, 0.22) if bud.radius > 0.006 else rng.uniform(0.14, 0.42)
    if bud.parent is None:
        length += anatomy.disc_radius
    steps = max(3, round(length / _STEP))
    tortuosity = 0.02 + 0.055 * min(1.0, 0.004 / bud.radius)
    kicks = rng.normal(0, tortuosity, steps)
    (x, y), heading, bend = bud.position, bud.heading, 0.0
    points = [(x, y)]
    for kick in kicks:
        bend = 0.8 * bend + kick
        turn = _wrapped(_course(bud, x, y, anatomy) - heading)
        heading += (0.07 if bud.course != "macular" else 0.045) * turn + 0.6 * bend
        x, y = x + _STEP * math.cos(heading), y + _STEP * math.sin(heading)
        points.append((x, y))
        passed = bud.course == "macular" and abs(turn) > 1.9
        if passed or math.hypot(x, y) > _REACH or math.dist((x, y), anatomy.fovea) < _AVASCULAR:
            return points, True
        if _meets(x, y, heading, bud, occupied, vessels):
            return points, True
    return points, False


def _course(bud: _Bud, x: float, y: float, anatomy: Anatomy) -> float:
    """The direction (angle) in which vessels of this course run at a place."""
    fx, fy = anatomy.fovea
    dx, dy = x - fx, y - fy
    if bud.course == "nasal":
        return math.atan2(y - anatomy.disc[1], x - anatomy.disc[0] + 0.15)
    if bud.course == "macular":
        return math.atan2(-dy, -dx)
    if bud.course == "temporal":
        return math.atan2(-0.8 * dy, -0.6)
    if bud.course == "outer":
        return math.atan2(dy - 0.25 * bud.sign, dx - 0.35)
    return _arcade(bud.sign, dx, dy, math.dist(anatomy.disc, anatomy.fovea))


def _arcade(sign: int, dx: float, dy: float, width: float) -> float:
    """Direction along an ellipse around the fovea through the disc, held on it at first and leaving it temporally."""
    height = 0.9 * width
    tx, ty = sign * dy * width / height, -sign * dx * height / width
    norm, out = math.hypot(tx, ty) or 1.0, math.hypot(dx, dy) or 1.0
    off = math.hypot(dx / width, dy / height) - 1
    drift = min(0.7, max(-0.7, -1.5 * off)) if dx > 0 else 0.3 + 0.9 * min(1.0, -dx / width)
    return math.atan2(ty / norm + drift * dy / out, tx / norm + drift * dx / out)


def _meets(
    x: float, y: float, heading: float, bud: _Bud, occupied: dict[tuple[int, int], int], vessels: list[Vessel]
) -> bool:
    """Whether another vessel of this kind lies just ahead; parent and siblings do not count."""
    for angle in (heading, heading + 0.7, heading - 0.7):
        other = occupied.get(_cell(x + 0.028 * math.cos(angle), y + 0.028 * math.sin(angle)))
        if other is not None and other != bud.parent and vessels[other].parent != bud.parent:
            return True
    return False


def _fork(bud: _Bud, points: list[Point], index: int, anatomy: Anatomy, rng: np.random.Generator) -> Iterator[_Bud]:
    """Two children, the thicker one nearly straight on; angles of least work (Murray, J Gen Physiol 1926)."""
    share = rng.uniform(0.06, 0.3) if bud.radius > 0.006 else rng.uniform(0.15, 0.5)
    thick, thin = bud.radius * (1 - share) ** (1 / 3), bud.radius * share ** (1 / 3)
    (x0, y0), (x, y) = points[-2], points[-1]
    heading = math.atan2(y - y0, x - x0)
    side = rng.choice((1, -1))
    inwards = math.cos(heading + 0.8 * side - math.atan2(anatomy.fovea[1] - y, anatomy.fovea[0] - x)) > 0.3
    temporal = x < anatomy.fovea[0] + 0.1
    course = {"arcade": ("temporal" if temporal else "macular") if inwards else "outer"}.get(bud.course, bud.course)
    for radius, other, turn, way in ((thick, thin, -side, bud.course), (thin, thick, side, course)):
        if radius >= SMALLEST_RADIUS:
            angle = _fork_angle(bud.radius, radius, other) * rng.uniform(0.7, 1.2)
            yield _Bud(bud.kind, (x, y), heading + turn * angle, radius, way, bud.sign, index)


def _fork_angle(parent: float, radius: float, other: float) -> float:
    """Angle between a parent and a child: cos = (r0⁴ + r1⁴ - r2⁴) / (2 r0² r1²)."""
    cosine = (parent**4 + radius**4 - other**4) / (2 * parent**2 * radius**2)
    return math.acos(min(1.0, max(-1.0, cosine)))


def _cell(x: float, y: float) -> tuple[int, int]:
    return math.floor(x / _CELL), math.floor(y / _CELL)


def _wrapped(angle: float) -> float:
    return math.remainder(angle, 2 * math.pi)
