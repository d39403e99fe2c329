"""How cameras, scanners and exports frame an eye: discs, cuts, backgrounds and borders, each with its exact truth."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

REACH = 1.1  # radii: how far an eye is painted, so that a notch can show what lies beyond the disc
_OWN_RIM = 0.985  # of a photograph's radius: beyond it the photograph fades

Colour = tuple[float, float, float]
BLACK, GREY, WHITE = (0.0, 0.0, 0.0), (118.0, 118.0, 118.0), (255.0, 255.0, 255.0)
RIGHT, BOTTOM, LEFT, TOP = 0, 90, 180, 270  # directions, degrees


@dataclass(frozen=True)
class Phantom:
    """A photograph and its truth; pixel centres are at whole numbers, as in FieldOfView.

    image: (H, W, 3) uint8. mask: (H, W) bool, vessels inside the field of view. fov: (H, W) bool, the visible field of
    view: pixels that it covers at least by half. center: (row, col) float, px. diameter: float, px; of an ellipse, that
    of the circle of the same area. The last two are None for two eyes.
    """

    image: np.ndarray
    mask: np.ndarray
    fov: np.ndarray
    center: tuple[float, float] | None
    diameter: float | None


@dataclass(frozen=True)
class Eye:
    """What a field of view shows, without an edge: a square that reaches REACH radii from the centre.

    image: (N, N, 3) uint8. mask: (N, N) bool, vessels. center: (row, col) px. radius: px.
    """

    image: np.ndarray
    mask: np.ndarray
    center: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Notch:
    """A mark at the border. direction: degrees. width, depth: radii; it bulges outwards where depth is positive."""

    direction: float
    width: float
    depth: float
    pointed: bool = False


@dataclass(frozen=True)
class Layout:
    """Where the discs lie in one picture. Lengths in px; pixel centres are at whole numbers.

    shape: (H, W). window: (r0, c0, r1, c1) of the photograph within a border. centers: of each disc. radius: of the
    circle of the same area. stretch: width over height of a disc. cuts: (direction in degrees, distance from the centre
    in radii). edge: width over which the border fades, px, half of it on each side.
    """

    shape: tuple[int, int]
    window: tuple[int, int, int, int]
    centers: tuple[tuple[float, float], ...]
    radius: float
    stretch: float
    cuts: tuple[tuple[float, float], ...]
    notch: Notch | None
    edge: float

    @property
    def radii(self) -> tuple[float, float]:
        """Vertical and horizontal radius, px."""
        return self.radius / math.sqrt(self.stretch), self.radius * math.sqrt(self.stretch)

    def inside(self) -> np.ndarray:
        """(H, W) float32: distance from the border of the field of view in px, negative outside."""
        return np.maximum.reduce([self._inside(center) for center in self.centers])

    def _inside(self, center: tuple[float, float]) -> np.ndarray:
        rows, cols = (np.arange(side, dtype=np.float32) - c for side, c in zip(self.shape, center, strict=True))
        y, x = rows[:, None], cols[None, :]
        ry, rx = self.radii
        level = np.hypot(y / ry, x / rx)  # 1 on the border; divided by its slope, px
        distance = (1 - level) * level / np.maximum(np.hypot(y / ry**2, x / rx**2), 1e-6)
        if self.notch is not None:
            distance = self._notched(distance, y, x, self.notch)
        for direction, reach in self.cuts:
            distance = np.minimum(distance, reach * self.radius - _along(y, x, direction))
        return distance

    def _notched(self, distance: np.ndarray, y: np.ndarray, x: np.ndarray, notch: Notch) -> np.ndarray:
        outwards = _along(y, x, notch.direction)
        side = np.abs(_along(y, x, notch.direction + 90))
        half, depth = notch.width / 2 * self.radius, notch.depth * self.radius
        if notch.pointed:
            away = (self.radius + depth * (1 - side / half) - outwards) / math.hypot(1, depth / half)
        else:
            away = self.radius + depth - outwards
        if notch.depth > 0:
            return np.maximum(distance, np.minimum(np.minimum(away, half - side), outwards))
        return np.minimum(distance, np.maximum(away, side - half))

    def visible(self) -> np.ndarray:
        """(H, W) bool: the window."""
        mask = np.zeros(self.shape, bool)
        mask[self.window[0] : self.window[2], self.window[1] : self.window[3]] = True
        return mask


def _along(y: np.ndarray, x: np.ndarray, direction: float) -> np.ndarray:
    return x * np.float32(math.cos(math.radians(direction))) + y * np.float32(math.sin(math.radians(direction)))


@dataclass
class Picture:
    """A picture being painted. image: (H, W, 3) float32, 0 … 255. inside: (H, W), see Layout.inside.

    coverage: (H, W) float32, share of each pixel in the field of view. colour: (3,) float, mean of the eye.
    """

    image: np.ndarray
    layout: Layout
    inside: np.ndarray
    coverage: np.ndarray
    colour: np.ndarray


Step = Callable[[Picture, np.random.Generator], None]


# --- what lies around, over and beside the eye -----------------------------------------------------------------------


def _plain(colour: Colour, noise: float = 0.8, grain: float = 0.0) -> Step:
    """A background. noise: of the sensor; grain: a few px wide. Both in grey levels."""

    def paint(picture: Picture, rng: np.random.Generator) -> None:
        coarse = ndimage.gaussian_filter(rng.standard_normal(picture.layout.shape, np.float32), 1.2) * 4.2
        fine = rng.standard_normal(picture.image.shape, np.float32)
        picture.image += np.array(colour, np.float32) + noise * fine + grain * coarse[..., None]

    return paint


def _blocks(picture: Picture, rng: np.random.Generator) -> None:
    """A background as strong compression leaves it: a few grey levels in blocks of 8 px."""
    height, width = (-(-side // 8) for side in picture.layout.shape)
    levels = rng.choice([0, 5, 10], (height, width), p=[0.5, 0.35, 0.15]).astype(np.float32)
    blocks = levels.repeat(8, 0).repeat(8, 1)[: picture.layout.shape[0], : picture.layout.shape[1]]
    picture.image += blocks[..., None]


def _stray_ring(reach: float = 1.15, brightness: float = 0.15, shift: float = 0.0) -> Step:
    """A dim ring around the disc. reach, shift: radii; brightness: share of the eye's."""

    def paint(picture: Picture, rng: np.random.Generator) -> None:
        radius = picture.layout.radius
        turn = rng.uniform(0, 2 * math.pi)
        row, col = picture.layout.centers[0]
        row, col = row + shift * radius * math.sin(turn), col + shift * radius * math.cos(turn)
        rows, cols = (np.arange(side, dtype=np.float32) for side in picture.layout.shape)
        away = np.hypot((rows - row)[:, None], (cols - col)[None, :]) / radius
        weight = np.clip((reach - away) / 0.012 + 0.5, 0, 1)
        picture.image += weight[..., None] * (brightness * picture.colour).astype(np.float32)

    return paint


def _glare(picture: Picture, rng: np.random.Generator) -> None:
    """A bright crescent of stray light along part of the border, weaker and narrower outside the disc."""
    row, col = picture.layout.centers[0]
    rows, cols = (np.arange(side, dtype=np.float32) for side in picture.layout.shape)
    angle = np.arctan2((rows - row)[:, None], (cols - col)[None, :]) - rng.uniform(-math.pi, math.pi)
    depth = picture.inside / picture.layout.radius
    within = np.exp(-((np.maximum(depth, 0) / 0.07) ** 2))
    without = 0.25 * np.exp(-((np.minimum(depth, 0) / 0.03) ** 2))
    light = np.clip(np.cos(angle), 0, 1) ** 4 * (without + picture.coverage * (within - without))
    picture.image += light[..., None] * np.array([130, 150, 140], np.float32)


def _filter(red: float, green: float, blue: float, noise: float = 0.0) -> Step:
    """Scale each channel, and add sensor noise."""

    def paint(picture: Picture, rng: np.random.Generator) -> None:
        picture.image *= np.array([red, green, blue], np.float32)
        if noise:
            picture.image += noise * rng.standard_normal(picture.image.shape, np.float32)

    return paint


def _red_free(picture: Picture, rng: np.random.Generator) -> None:
    """Green light alone, as bright as an exposure for it would be."""
    picture.image[:] = picture.image[..., 1:2] * min(3.0, 140 / max(float(picture.colour[1]), 1.0))


def _border(colour: Colour) -> Step:
    """What an export or a scan puts around the photograph: one colour without noise."""

    def paint(picture: Picture, rng: np.random.Generator) -> None:
        picture.image[~picture.layout.visible()] = colour

    return paint


def _write(lines: tuple[str, ...], place: tuple[float, float], colour: Colour, height: float = 0.03) -> Step:
    """Lines of text. place: (row, col) of the upper left corner, shares of the frame; height: share of its height."""

    def paint(picture: Picture, rng: np.random.Generator) -> None:
        rows, cols = picture.layout.shape
        pixels = max(8.0, height * rows)
        sheet = Image.new("L", (cols, rows))
        ImageDraw.Draw(sheet).multiline_text(
            (place[1] * cols, place[0] * rows), "\n".join(lines), 255, ImageFont.load_default(pixels), spacing=pixels
        )
        weight = (np.asarray(sheet, np.float32) / 255 * (picture.coverage <= 0))[..., None]
        picture.image += weight * (np.array(colour, np.float32) - picture.image)

    return paint


# --- the frames ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A kind of photograph.

    aspect: width over height, where only the longer side is given. window: (top, left, bottom, right) of the photograph
    within a border, shares of the frame. fill: diameter over the shorter side of the window. share: of the frame that
    the disc fills; replaces fill. place: (row, col) of the centre, shares of the window. eyes: side by side.
    softness: share of the diameter over which the border fades; at least 1 to 2 px. cuts, stretch, notch: see Layout.
    behind: painted before the eye. over: painted after it. quality: of the JPEG compression.
    """

    aspect: float = 4 / 3
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    fill: float = 0.93
    share: float | None = None
    place: tuple[float, float] = (0.5, 0.5)
    eyes: int = 1
    cuts: tuple[tuple[float, float], ...] = ()
    stretch: float = 1.0
    notch: Notch | None = None
    softness: float = 0.0
    behind: tuple[Step, ...] = field(default=(_plain((2.0, 2.0, 2.0)),))
    over: tuple[Step, ...] = ()
    quality: int = 90


_FOUR_SIDES = ((RIGHT, 0.76), (BOTTOM, 0.78), (LEFT, 0.77), (TOP, 0.75))
_PANEL = ("Name  XXXXXX", "ID  0012345", "01.02.1950", "", "OD  45°", "1/60  ISO 200", "", "Comment:", "--- -- ----")

FRAMES: dict[str, Frame] = {
    "disc": Frame(),
    "cut_top_bottom": Frame(cuts=((TOP, 0.8), (BOTTOM, 0.84))),
    "cut_sides": Frame(cuts=((LEFT, 0.83), (RIGHT, 0.86))),
    "cut_one_side": Frame(cuts=((BOTTOM, 0.72),)),
    "cut_four_sides": Frame(aspect=1.0, cuts=_FOUR_SIDES),
    "cut_by_frame": Frame(fill=1.14),
    "cut_by_frame_four_sides": Frame(aspect=1.06, fill=1.24),
    "cut_rotated": Frame(aspect=1.15, fill=0.88, cuts=((BOTTOM + 17, 0.8), (TOP + 17, 0.82))),
    "cut_rotated_four_sides": Frame(aspect=1.0, fill=0.9, cuts=tuple((d - 8, r) for d, r in _FOUR_SIDES)),
    "ellipse": Frame(stretch=1.06, fill=0.92),
    "letterbox": Frame(window=(0.125, 0.0, 0.875, 1.0), fill=1.15, over=(_border(BLACK),)),
    "letterbox_16_9": Frame(16 / 9, (0.03, 0.11, 0.93, 0.87), 1.08, over=(_border(BLACK),)),
    "square_padding": Frame(1.0, (0.125, 0.0, 0.875, 1.0), 1.12, over=(_border(BLACK),)),
    "square_padding_white": Frame(1.0, (0.125, 0.0, 0.875, 1.0), 1.12, over=(_border(WHITE),)),
    "square_padding_grey": Frame(1.0, (0.125, 0.0, 0.875, 1.0), 0.94, over=(_border(GREY),)),
    "grey_background": Frame(behind=(_plain(GREY, 1.5),)),
    "white_background": Frame(behind=(_plain((251.0, 251.0, 251.0), 1.5),)),
    "dark_green_noisy": Frame(behind=(_plain((10.0, 30.0, 13.0), 3.0, 4.0),)),
    "jpeg_blocks": Frame(behind=(_blocks,), quality=20),
    "patient_panel": Frame(1.6, (0.0, 0.0, 1.0, 0.75), over=(_border(WHITE), _write(_PANEL, (0.06, 0.77), BLACK))),
    "patient_panel_black": Frame(
        1.6, (0.0, 0.25, 1.0, 1.0), over=(_border(BLACK), _write(_PANEL, (0.06, 0.02), (235.0, 235.0, 235.0)))
    ),
    "corner_text": Frame(
        over=(
            _write(("OD 45°", "ID 0012345"), (0.02, 0.015), (240.0, 240.0, 240.0)),
            _write(("2019-03-07", "10:42:11"), (0.9, 0.84), (250.0, 200.0, 40.0)),
        )
    ),
    "white_border": Frame(window=(0.05, 0.04, 0.95, 0.96), over=(_border((248.0, 248.0, 248.0)),)),
    "notch_square": Frame(fill=0.9, notch=Notch(-35, 0.09, 0.05)),
    "notch_pointed": Frame(fill=0.9, notch=Notch(RIGHT, 0.1, 0.06, pointed=True)),
    "notch_inward": Frame(notch=Notch(-50, 0.14, -0.07, pointed=True)),
    "second_ring": Frame(fill=0.82, behind=(_plain((2.0, 2.0, 2.0)), _stray_ring())),
    "second_ring_off_centre": Frame(fill=0.8, behind=(_plain((2.0, 2.0, 2.0)), _stray_ring(shift=0.04))),
    "dark": Frame(over=(_filter(0.06, 0.06, 0.06, noise=1.0),)),
    "very_red": Frame(over=(_filter(1.1, 0.04, 0.02),)),
    "glare": Frame(fill=0.9, over=(_glare,)),
    "small_disc_3": Frame(share=0.03),
    "small_disc_8": Frame(share=0.08, place=(0.42, 0.63)),
    "small_disc_15": Frame(share=0.15),
    "red_free": Frame(over=(_red_free,)),
    "soft_edge": Frame(softness=0.005),
    "two_eyes": Frame(aspect=2.05, fill=0.9, eyes=2),
}


def lay_out(kind: str, size: int | tuple[int, int], seed: int = 0) -> Layout:
    """Where the discs of a picture lie; they vary a little with the seed.

    kind: one of FRAMES. size: the longer side, or (H, W), px. Raises ValueError.
    """
    if kind not in FRAMES:
        raise ValueError(f"frame must be one of {', '.join(FRAMES)}, got {kind}")
    frame = FRAMES[kind]
    rng = np.random.default_rng([seed, 4])
    if isinstance(size, int):
        size = (round(size / max(frame.aspect, 1.0)), round(size * min(frame.aspect, 1.0)))
    r0, c0, r1, c1 = (round(share * side) for share, side in zip(frame.window, (*size, *size), strict=True))
    shorter = min(r1 - r0, (c1 - c0) / frame.eyes)
    diameter = frame.fill * shorter if frame.share is None else math.sqrt(frame.share * size[0] * size[1] * 4 / math.pi)
    diameter *= rng.uniform(0.985, 1.015)
    row = r0 + frame.place[0] * (r1 - r0) - 0.5 + 0.01 * shorter * rng.uniform(-1, 1)
    col = c0 + frame.place[1] * (c1 - c0) - 0.5 + 0.01 * shorter * rng.uniform(-1, 1)
    step = (c1 - c0) / frame.eyes
    centers = tuple((row, col + (i - (frame.eyes - 1) / 2) * step) for i in range(frame.eyes))
    cuts = tuple((float(direction), reach + 0.015 * rng.uniform(-1, 1)) for direction, reach in frame.cuts)
    edge = max(rng.uniform(1.0, 2.0), frame.softness * diameter)
    return Layout(size, (r0, c0, r1, c1), centers, diameter / 2, frame.stretch, cuts, frame.notch, edge)


def frame_eye(eye: Eye, kind: str, size: int | tuple[int, int], seed: int = 0) -> Phantom:
    """Show an eye in a frame; its position and noise vary with the seed. Arguments: see lay_out. Raises ValueError.

    Nothing is resampled if the eye has the radius and the subpixel position that lay_out gives.
    """
    layout = lay_out(kind, size, seed)
    frame = FRAMES[kind]
    rng = np.random.default_rng([seed, 5])
    inside, visible = layout.inside(), layout.visible()
    ramp = np.clip(0.5 + inside / layout.edge, 0, 1) * visible
    coverage = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    colour = eye.image[:: max(1, len(eye.image) // 200), :: max(1, len(eye.image) // 200)].mean((0, 1))
    picture = Picture(np.zeros((*layout.shape, 3), np.float32), layout, inside, coverage, colour)
    for step in frame.behind:
        step(picture, rng)
    mask = np.zeros(layout.shape, bool)
    nearest = np.argmin([abs(np.arange(layout.shape[1]) - col) for _, col in layout.centers], axis=0)
    for number, center in enumerate(layout.centers):
        window, pixels, vessels = _place(eye, center, layout, mirrored=number % 2 == 1)
        chosen = (nearest == number)[window[1]]
        weight = (coverage[window] * chosen)[..., None]
        picture.image[window] += weight * (pixels - picture.image[window])
        mask[window] |= vessels & chosen
    for step in frame.over:
        step(picture, rng)
    fov = (inside >= 0) & visible
    one = len(layout.centers) == 1
    return Phantom(
        _compress(picture.image, frame.quality),
        mask & fov,
        fov,
        layout.centers[0] if one else None,
        2 * layout.radius if one else None,
    )


def _place(
    eye: Eye, center: tuple[float, float], layout: Layout, mirrored: bool
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The eye resampled for one disc: its window in the picture, pixels (h, w, 3) float32 and vessels (h, w) bool."""
    pixels, mask, middle = eye.image, eye.mask, list(eye.center)
    if mirrored:
        pixels, mask, middle[1] = pixels[:, ::-1], mask[:, ::-1], mask.shape[1] - 1 - middle[1]
    windows, starts, ends = [], [], []
    for axis in (0, 1):
        scale = eye.radius / layout.radii[axis]  # px of the eye in one px of the picture
        origin = middle[axis] + 0.5 - (center[axis] + 0.5) * scale
        first = max(0, math.ceil(-origin / scale - 1e-6))
        last = min(layout.shape[axis], math.floor((mask.shape[axis] - origin) / scale + 1e-6))
        windows.append(slice(first, last))
        starts.append(max(0.0, origin + first * scale))
        ends.append(min(float(mask.shape[axis]), origin + last * scale))
    size = windows[1].stop - windows[1].start, windows[0].stop - windows[0].start
    box = starts[1], starts[0], ends[1], ends[0]
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC, box)
    vessels = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR, box)
    return (windows[0], windows[1]), np.asarray(resized, np.float32), np.asarray(vessels) >= 128


def _compress(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 after JPEG compression."""
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream))


# --- photographs in another frame ------------------------------------------------------------------------------------


def eye_of(image: np.ndarray, center: tuple[float, float], diameter: float, mask: np.ndarray | None = None) -> Eye:
    """What a photograph shows inside its own rim, mirrored beyond it.

    image: (H, W, 3) uint8. center: (row, col) px, pixel centres at whole numbers. diameter: px. mask: (H, W) bool.
    """
    reach = math.ceil(REACH * diameter / 2) + 1
    middle = [round(value) for value in center]
    first = [value - reach for value in middle]
    pads = [(max(0, -f), max(0, f + 2 * reach + 1 - side)) for f, side in zip(first, image.shape[:2], strict=True)]
    window = tuple(slice(f + p[0], f + p[0] + 2 * reach + 1) for f, p in zip(first, pads, strict=True))
    vessels = np.zeros(image.shape[:2], np.uint8) if mask is None else mask.astype(np.uint8)
    layers = np.pad(np.dstack([image, vessels]), [*pads, (0, 0)], "symmetric")[window]
    row, col = (c - f for c, f in zip(center, first, strict=True))
    radius = _OWN_RIM * diameter / 2
    rows, cols = (np.arange(2 * reach + 1) - value for value in (row, col))
    away = np.hypot(rows[:, None], cols[None, :])
    beyond = away > radius
    factor = (2 * radius - away[beyond]) / away[beyond]
    y, x = np.nonzero(beyond)
    layers[beyond] = layers[np.rint(row + rows[y] * factor).astype(int), np.rint(col + cols[x] * factor).astype(int)]
    return Eye(layers[..., :3], layers[..., 3] > 0, (row, col), radius)


def frame_photograph(
    image: np.ndarray,
    center: tuple[float, float],
    diameter: float,
    kind: str,
    size: int | tuple[int, int],
    seed: int = 0,
    mask: np.ndarray | None = None,
) -> Phantom:
    """A photograph whose disc is known, in another frame with exact truth. Arguments: see eye_of and lay_out."""
    return frame_eye(eye_of(image, center, diameter, mask), kind, size, seed)
