"""Procedural fundus photographs with their exact vessel masks, for the demo and for tests, never for claims."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import replacing
from .io import write_mask
from .layouts import DatasetError, listing
from .phantom_frames import REACH, Eye, Phantom, frame_eye, lay_out
from .phantom_painting import (
    Canvas,
    absorb,
    add_lesions,
    background,
    draw_vessels,
    field_stop,
    lay_canvas,
    make_canvas,
    photograph,
)
from .splits import SPLITS_FILE
from .vessel_tree import ARTERY, VEIN, grow_vessels, random_anatomy

PARAMETERS_FILE = "phantoms.json"
VERSION = 1  # of the pictures: sets written by another version are not reused
_SMALLEST_SIDE = 32
_FOLDERS = ("images", "masks")


def make_phantom(size: int | tuple[int, int] = 512, seed: int = 0, frame: str = "disc") -> Phantom:
    """One phantom. seed: the same seed gives the same eye at every size and in every frame. Raises ValueError.

    frame: one of FRAMES. size: (H, W), or one number: the side for "disc", the longer side for other frames, px. Light
    falls to half at 0.997 of the radius for "disc", at the radius for other frames.
    """
    if min((size, size) if isinstance(size, int) else size) < _SMALLEST_SIDE:
        raise ValueError(f"size must be at least {_SMALLEST_SIDE} pixels, got {size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if frame != "disc":
        layout = lay_out(frame, size, seed)
        row, col = layout.centers[0]
        return frame_eye(make_eye(layout.radius, seed, (row % 1, col % 1)), frame, size, seed)
    height, width = (size, size) if isinstance(size, int) else size
    image, mask, canvas = _paint(seed, lambda rng: make_canvas(height, width, rng), field_stop)
    fov = canvas.distance((0, 0)) <= 1
    row, col = canvas.pixels(np.zeros((1, 2)))[0] - 0.5
    return Phantom(image, mask & fov, fov, (float(row), float(col)), 2 * canvas.radius)


def make_eye(radius: float, seed: int = 0, fraction: tuple[float, float] = (0.0, 0.0)) -> Eye:
    """The eye of make_phantom without an edge, to be framed many times. fraction: subpixel position of its centre."""
    side = 2 * (math.ceil(REACH * radius) + 1)
    center = side // 2 + fraction[0], side // 2 + fraction[1]

    def place(rng: np.random.Generator) -> Canvas:
        mirrored = make_canvas(_SMALLEST_SIDE, _SMALLEST_SIDE, rng).mirrored
        return lay_canvas((side, side), (center[0] + 0.5, center[1] + 0.5), radius, mirrored)

    image, mask, _ = _paint(seed, place, lambda canvas: np.ones(canvas.shape, np.float32))
    return Eye(image, mask, center, radius)


def _paint(
    seed: int, place: Callable[[np.random.Generator], Canvas], stop: Callable[[Canvas], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, Canvas]:
    """The photograph (H, W, 3) uint8 of an eye, its vessels (H, W) bool, and where it lies."""
    eye, look, lesions, noise = (np.random.default_rng([seed, stream]) for stream in range(4))
    anatomy = random_anatomy(eye)
    canvas = place(eye)
    covered = draw_vessels(grow_vessels(anatomy, eye), canvas)
    image = background(canvas, anatomy, look)
    add_lesions(image, canvas, anatomy, lesions)
    absorb(image, canvas, covered, look)
    mask = np.maximum(covered[ARTERY].coverage, covered[VEIN].coverage) >= 0.5
    return photograph(image, canvas, noise, stop(canvas)), mask, canvas


# --- sets of phantoms ------------------------------------------------------------------------------------------------


def write_phantoms(
    directory: str | os.PathLike[str], train: int = 24, test: int = 6, size: int | tuple[int, int] = 512, seed: int = 0
) -> Path:
    """Write a data set of phantoms (images/, masks/, splits.json) and return its folder; reused if it is there already.

    The same parameters give the same files; a half-written set is completed. Raises DatasetError if the folder holds
    anything else, ValueError.
    """
    if train < 2 or test < 0:
        raise ValueError(f"a set of phantoms needs train >= 2 and test >= 0, got train={train}, test={test}")
    folder = Path(directory)
    height, width = (size, size) if isinstance(size, int) else size
    parameters = {"train": train, "test": test, "size": [height, width], "seed": seed, "version": VERSION}
    names = [f"phantom_{i:03d}" for i in range(train + test)]
    if _is_complete(folder, parameters, names):
        return folder
    _check_ours(folder, parameters, names)
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / PARAMETERS_FILE, json.dumps({**parameters, "complete": False}))
    for part in _FOLDERS:
        (folder / part).mkdir(exist_ok=True)
    for i, name in enumerate(names):
        phantom = make_phantom((height, width), seed * 100_003 + i)
        _write_png(folder / "images" / f"{name}.png", phantom.image)
        write_mask(folder / "masks" / f"{name}.png", phantom.mask)
    splits = {"train": names[:train], "test": names[train:]}
    _write_text(folder / SPLITS_FILE, json.dumps(splits, indent=1))
    _write_text(folder / PARAMETERS_FILE, json.dumps({**parameters, "complete": True}))
    return folder


def _is_complete(folder: Path, parameters: dict[str, object], names: list[str]) -> bool:
    files = [folder / part / f"{name}.png" for part in _FOLDERS for name in names]
    return (
        _parameters(folder) == {**parameters, "complete": True}
        and (folder / SPLITS_FILE).is_file()
        and all(file.is_file() for file in files)
    )


def _parameters(folder: Path) -> dict[str, object] | None:
    """What was written here, or None if that is not known."""
    try:
        found = json.loads((folder / PARAMETERS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _check_ours(folder: Path, parameters: dict[str, object], names: list[str]) -> None:
    """Raise DatasetError unless the folder is absent, empty, or an unfinished or outdated set of these phantoms."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file; give another folder for the phantoms")
    expected = {PARAMETERS_FILE, SPLITS_FILE, *_FOLDERS, *(f"{part}/{name}.png" for part in _FOLDERS for name in names)}
    found = [f for f in folder.iterdir() if not f.name.startswith(".")]
    found += [f for part in _FOLDERS for f in (folder / part).glob("*") if not f.name.startswith(".")]
    written = _parameters(folder)
    if found and written is None:
        raise DatasetError(f"{folder} holds other files ({listing(f.name for f in found)}); choose an empty folder")
    fixed = {k: v for k, v in parameters.items() if k != "version"}
    if written is not None and fixed != {k: written.get(k) for k in fixed}:
        raise DatasetError(
            f"{folder} holds phantoms with other parameters ({written}), not {fixed}; choose another folder"
        )
    foreign = sorted(name for name in (f.relative_to(folder).as_posix() for f in found) if name not in expected)
    if foreign:
        raise DatasetError(f"{folder} holds files that are no phantoms: {listing(foreign)}; move them elsewhere")


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with replacing(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")
