"""How a phantom eye is painted: vessels, retina, lesions, camera. Every length is in radii of the field of view."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .vessel_tree import ARTERY, VEIN, Anatomy, Vessel


@dataclass(frozen=True)
class Canvas:
    """Pixel grid over an eye. x, y: (1, W) and (H, 1) float32 in radii of the field of view; radius: px."""

    x: np.ndarray
    y: np.ndarray
    radius: float
    mirrored: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.y.shape[0], self.x.shape[1]

    def distance(self, point: tuple[float, float], stretch: float = 1.0) -> np.ndarray:
        """(H, W) float32, distance from a point; stretch: of the vertical axis."""
        return np.hypot(self.x - point[0], (self.y - point[1]) / stretch)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) as (row, col) px, float; pixel (i, j) has its centre at i + 0.5, j + 0.5."""
        rows = (points[:, 1] - self.y[0, 0]) * self.radius + 0.5
        cols = (points[:, 0] - self.x[0, 0]) * self.radius * (-1 if self.mirrored else 1) + 0.5
        return np.stack([rows, cols], axis=1)

    def sample(self, grid: np.ndarray) -> np.ndarray:
        """A coarse grid (n, n) stretched over [-1.1, 1.1]²: (H, W) float32."""
        n = len(grid)
        x = (self.x[0] / 2.2 + 0.5) * (n - 1)
        y = (self.y[:, 0] / 2.2 + 0.5) * (n - 1)
        return _bicubic(_bicubic(grid, y).T, x).T


def make_canvas(height: int, width: int, rng: np.random.Generator) -> Canvas:
    """Where the disc lies in the frame; half of the eyes are left eyes."""
    side = min(height, width)
    radius = side * rng.uniform(0.455, 0.49)
    row = height / 2 + side * rng.uniform(-0.01, 0.01)
    col = width / 2 + side * rng.uniform(-0.01, 0.01)
    return lay_canvas((height, width), (row, col), radius, bool(rng.random() < 0.5))


def lay_canvas(shape: tuple[int, int], center: tuple[float, float], radius: float, mirrored: bool) -> Canvas:
    """A grid whose disc lies at center (row, col), px; pixel (i, j) has its centre at i + 0.5, j + 0.5."""
    y, x = ((np.arange(side, dtype=np.float32) + 0.5 - c) / radius for side, c in zip(shape, center, strict=True))
    return Canvas((-x if mirrored else x)[None], y[:, None], radius, mirrored)


# --- vessels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """Vessels of one kind, all (H, W) float32. coverage: share of each pixel inside, 0 … 1.

    depth: thickness of blood in radii of the field of view. centre: 1 on the axis of a vessel, 0 at its wall.
    """

    coverage: np.ndarray
    depth: np.ndarray
    centre: np.ndarray


def draw_vessels(vessels: list[Vessel], canvas: Canvas) -> dict[str, Layer]:
    """Coverage and thickness of arteries and veins, by kind."""
    layers = {}
    for kind in (ARTERY, VEIN):
        layer = Layer(*(np.zeros(canvas.shape, np.float32) for _ in range(3)))
        pieces = [_pieces(v, canvas) for v in vessels if v.kind == kind]
        start, end, radius = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        reach = np.ceil(radius + 1.5 + 0.5 * np.hypot(*(end - start).T)).astype(int)
        for size in np.unique(reach):  # pieces that touch equally many pixels are drawn together
            chosen = reach == size
            _draw_capsules(layer, start[chosen], end[chosen], radius[chosen], int(size), canvas)
        layers[kind] = layer
    return layers


def _pieces(vessel: Vessel, canvas: Canvas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Straight pieces of about a vessel radius or 1.5 px: start (n, 2), end (n, 2) px, radius (n,) px."""
    points = canvas.pixels(vessel.points)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    radius = vessel.radius * canvas.radius
    count = max(2, math.ceil(along[-1] / max(radius, 1.5)) + 1)
    at = np.linspace(0, along[-1], count)
    fine = np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], axis=1)
    return fine[:-1], fine[1:], np.full(count - 1, radius)


def _draw_capsules(
    layer: Layer, start: np.ndarray, end: np.ndarray, radius: np.ndarray, reach: int, canvas: Canvas
) -> None:
    """Capsules (start, end (n, 2) px; radius (n,) px) into a layer; `reach` px around their middle are touched."""
    height, width = canvas.shape
    middle = np.floor((start + end) / 2).astype(int)
    offsets = np.arange(-reach, reach + 1)
    rows = (middle[:, 0, None] + offsets)[:, :, None]
    cols = (middle[:, 1, None] + offsets)[:, None, :]
    dy, dx = ((end - start)[:, axis, None, None] for axis in (0, 1))
    py, px = rows + 0.5 - start[:, 0, None, None], cols + 0.5 - start[:, 1, None, None]
    t = np.clip((py * dy + px * dx) / np.maximum(dy**2 + dx**2, 1e-9), 0, 1)
    d = np.hypot(py - t * dy, px - t * dx)
    r = radius[:, None, None]
    coverage = np.minimum(d + r, 0.5) - np.maximum(d - r, -0.5)  # of a pixel-wide window across the vessel
    inside = (coverage > 0) & (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    flat = (rows * width + cols)[inside]
    coverage, ratio = coverage[inside], np.minimum(1, d / r)[inside]
    thickness = coverage * np.sqrt(1 - 0.85 * ratio**2) * np.broadcast_to(r, inside.shape)[inside] / canvas.radius
    for target, value in ((layer.coverage, coverage), (layer.depth, thickness), (layer.centre, 1 - ratio)):
        np.maximum.at(target.reshape(-1), flat, value.astype(np.float32))


def absorb(image: np.ndarray, canvas: Canvas, layers: dict[str, Layer], rng: np.random.Generator) -> None:
    """Darken the image (H, W, 3) where blood is: more in green and blue, more where it is thicker; reflexes on top."""
    strength = rng.uniform(0.85, 1.3)
    fade = 0.8 + 0.25 * canvas.sample(_noise(rng, 9))
    for kind, colour in ((ARTERY, (0.04, 0.33, 0.28)), (VEIN, (0.17, 0.46, 0.36))):
        layer = layers[kind]
        amount = np.clip(strength * fade, 0.35, 1.4) * (1 - np.exp(-layer.depth / 0.006))
        reflex = (0.11 if kind == ARTERY else 0.04) * np.clip(3 * layer.centre - 2, 0, 1) * (layer.depth / 0.007)
        for channel in range(3):
            image[..., channel] *= 1 - colour[channel] * amount
            image[..., channel] *= 1 + reflex


# --- the retina ------------------------------------------------------------------------------------------------------


def background(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """The eye without vessels: (H, W, 3) float32, 0 … about 255."""
    colour = np.array([rng.uniform(165, 225), 0, 0], np.float32)
    colour[1] = colour[0] * rng.uniform(0.3, 0.5)
    colour[2] = colour[1] * rng.uniform(0.12, 0.5)
    texture = _texture(canvas, anatomy, rng)
    macula = np.exp(-((canvas.distance(anatomy.fovea) / (1.6 * anatomy.disc_radius)) ** 2))
    pit = np.exp(-((canvas.distance(anatomy.fovea) / (0.4 * anatomy.disc_radius)) ** 2))
    depth = rng.uniform(0.16, 0.34)
    light = _illumination(canvas, rng)
    image = np.empty((*canvas.shape, 3), np.float32)
    for channel, (grain, dark) in enumerate(((0.5, 0.55), (1.0, 1.0), (1.1, 1.2))):
        shade = (1 - depth * dark * macula) * (1 - 0.5 * depth * dark * pit)
        image[..., channel] = colour[channel] * (1 + grain * texture) * shade
    _add_disc(image, canvas, anatomy, colour, rng)
    return image * light[..., None]


def _illumination(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 about 1: a bright spot off the centre, falling off, and slow unevenness."""
    spot = (rng.uniform(-0.35, 0.35), rng.uniform(-0.25, 0.25))
    falloff = rng.uniform(0.12, 0.38)
    slow = canvas.sample(_noise(rng, 5))
    return np.clip(1.12 - falloff * canvas.distance(spot) ** 2 + 0.06 * slow, 0.2, None).astype(np.float32)


def _texture(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 about 0: blotches, choroidal vessels as pale winding bands, nerve fibres as rays from the disc."""
    blotches = sum(a * canvas.sample(_noise(rng, n)) for n, a in ((7, 0.05), (17, 0.04), (45, 0.03), (130, 0.026)))
    warped = canvas.sample(_noise(rng, 25)) + 0.5 * canvas.sample(_noise(rng, 50))
    bands = np.exp(-((warped / 0.35) ** 2)) - 0.45
    show = rng.uniform(0.0, 0.09) * np.clip(canvas.distance(anatomy.fovea) / 0.5 - 0.3, 0, 1)
    angle = np.arctan2(canvas.y - anatomy.disc[1], canvas.x - anatomy.disc[0])
    near = np.exp(-canvas.distance(anatomy.disc) / 0.35)
    rays = np.interp(angle.ravel(), np.linspace(-np.pi, np.pi, 400), np.resize(rng.normal(0, 1, 399), 400))
    return (blotches + show * bands + 0.022 * near * rays.reshape(angle.shape)).astype(np.float32)


def _add_disc(
    image: np.ndarray, canvas: Canvas, anatomy: Anatomy, colour: np.ndarray, rng: np.random.Generator
) -> None:
    """The optic disc: pale yellow with a soft, uneven edge, a brighter cup, and sometimes a crescent beside it."""
    r = anatomy.disc_radius
    stretch = rng.uniform(1.03, 1.18)
    wobble = 0.05 * r * canvas.sample(_noise(rng, 13))
    edge = rng.uniform(0.03, 0.08) * r
    away = canvas.distance(anatomy.disc, stretch) + wobble
    rim = _sigmoid((r * 0.95 - away) / edge)
    cup_centre = (anatomy.disc[0] - rng.uniform(0.05, 0.22) * r, anatomy.disc[1] + rng.uniform(-0.1, 0.1) * r)
    cup = _sigmoid((r * rng.uniform(0.3, 0.58) - canvas.distance(cup_centre, stretch) - wobble) / (0.07 * r))
    halo = np.exp(-((np.maximum(0, away - r) / (0.6 * r)) ** 2)) * rng.uniform(0.02, 0.08)
    crescent = _sigmoid((r * 1.18 - canvas.distance((anatomy.disc[0] - 0.12 * r, anatomy.disc[1]), stretch)) / edge)
    pale = colour * [rng.uniform(1.02, 1.12), rng.uniform(1.45, 1.85), rng.uniform(1.5, 2.4)]
    bright = pale * [rng.uniform(1.0, 1.06), rng.uniform(1.15, 1.4), rng.uniform(1.5, 2.5)]
    for shade, share in ((pale, 0.6), (bright, 0.8)):
        shade[2] = min(shade[2], share * shade[1])  # never pink
    weight_crescent = rng.choice([0.0, 0.0, 0.35]) * crescent
    for channel in range(3):
        plane = image[..., channel]
        plane *= 1 + halo
        for weight, target in ((weight_crescent, pale), (0.85 * rim, pale), (0.8 * cup * rim, bright)):
            plane += weight * (target[channel] - plane)


def add_lesions(image: np.ndarray, canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Things that are no vessels: haemorrhages, dark dots, exudates and drusen, in about two of three eyes."""
    dark, pale = np.array([0.62, 0.4, 0.4], np.float32), np.array([1.14, 1.5, 1.35], np.float32)
    kinds = ((dark, 0.5, 7, 0.008, 0.035), (dark, 0.6, 25, 0.003, 0.007), (pale, 0.35, 40, 0.004, 0.013))
    for tint, chance, most, smallest, largest in kinds:
        present = rng.random() < chance
        around = (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)) if rng.random() < 0.5 else anatomy.fovea
        for _ in range(int(rng.integers(1, most + 1)) if present else 0):
            spread = rng.uniform(0.1, 0.5)
            place = (around[0] + rng.normal(0, spread), around[1] + rng.normal(0, spread))
            _add_blot(
                image, canvas, place, rng.uniform(smallest, largest), 1 + rng.uniform(0.25, 0.9) * (tint - 1), rng
            )


def _add_blot(
    image: np.ndarray,
    canvas: Canvas,
    place: tuple[float, float],
    radius: float,
    tint: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """An irregular blot that multiplies the colour by tint (3,), drawn in the pixels around its place (x, y)."""
    waves, phases, turn = rng.uniform(0, 0.16, 3), rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.6, 1.0)
    cols = np.flatnonzero(np.abs(canvas.x[0] - place[0]) < 2.2 * radius)
    rows = np.flatnonzero(np.abs(canvas.y[:, 0] - place[1]) < 2.2 * radius)
    if not len(cols) or not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    dx, dy = canvas.x[:, window[1]] - place[0], (canvas.y[window[0]] - place[1]) / turn
    angle = np.arctan2(dy, dx)
    edge = 1 + sum(w * np.cos((k + 2) * angle + p) for k, (w, p) in enumerate(zip(waves, phases, strict=True)))
    weight = _sigmoid((edge - np.hypot(dx, dy) / radius) / 0.14)
    image[window] *= 1 + weight[..., None] * (tint - 1)


# --- the camera ------------------------------------------------------------------------------------------------------


def field_stop(canvas: Canvas) -> np.ndarray:
    """(H, W) float32: how much light the round stop lets through; soft, and dark where the mask ends."""
    return _sigmoid((0.997 - canvas.distance((0, 0))) / 0.0022)


def photograph(image: np.ndarray, canvas: Canvas, rng: np.random.Generator, stop: np.ndarray) -> np.ndarray:
    """Blur, the field stop (H, W), sensor noise: (H, W, 3) uint8."""
    blur = rng.uniform(0.0012, 0.0026) * canvas.radius
    haze = rng.uniform(0.0, 0.1) * np.clip(canvas.distance((0, 0)) - 0.75, 0, 0.25) * 4
    level = rng.uniform(1.0, 2.6)
    for channel in range(3):
        plane = ndimage.gaussian_filter(image[..., channel], blur) * (1 - haze) + 90 * haze
        grain = rng.standard_normal(canvas.shape, np.float32)
        grain = 0.7 * grain + 0.9 * ndimage.uniform_filter(grain, 2)
        plane = plane * stop + level * grain * (0.2 + 0.8 * stop * np.sqrt(np.clip(plane, 0, None) / 100))
        image[..., channel] = plane
    return np.clip(image + 2, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, n) float32 standard normal: what is smooth between its points is the same at every resolution."""
    return rng.standard_normal((n, n), np.float32)


def _bicubic(grid: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows of grid (n, m) at positions at (k,), cubic: (k, m) float32."""
    points = np.arange(len(grid))
    weights = ndimage.map_coordinates(
        np.eye(len(grid), dtype=np.float32), np.meshgrid(at, points, indexing="ij"), order=3, mode="nearest"
    )
    return weights @ grid


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32)
