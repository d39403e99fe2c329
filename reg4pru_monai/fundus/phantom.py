"""Procedural fundus photographs with their exact vessel masks, for the demo and for tests, never for claims."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import replacing
from .io import write_mask
from .layouts import DatasetError, listing
from .phantom_painting import absorb, add_lesions, background, draw_vessels, make_canvas, photograph
from .splits import SPLITS_FILE
from .vessel_tree import ARTERY, VEIN, grow_vessels, random_anatomy

PARAMETERS_FILE = "phantoms.json"
VERSION = 1  # of the pictures: sets written by another version are not reused
_SMALLEST_SIDE = 32
_FOLDERS = ("images", "masks")


@dataclass(frozen=True)
class Phantom:
    """A photograph. image: (H, W, 3) uint8; mask: (H, W) bool, vessels; fov: (H, W) bool, field of view."""

    image: np.ndarray
    mask: np.ndarray
    fov: np.ndarray


def make_phantom(size: int | tuple[int, int] = 512, seed: int = 0) -> Phantom:
    """One phantom. size: side or (H, W), px. seed: the same seed is the same eye at every size. Raises ValueError."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < _SMALLEST_SIDE:
        raise ValueError(f"size must be at least {_SMALLEST_SIDE} pixels, got {size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    eye, look, lesions, noise = (np.random.default_rng([seed, stream]) for stream in range(4))
    anatomy = random_anatomy(eye)
    canvas = make_canvas(height, width, eye)
    vessels = grow_vessels(anatomy, eye)
    fov = canvas.distance((0, 0)) <= 1
    covered = draw_vessels(vessels, canvas)
    image = background(canvas, anatomy, look)
    add_lesions(image, canvas, anatomy, lesions)
    absorb(image, canvas, covered, look)
    mask = (np.maximum(covered[ARTERY].coverage, covered[VEIN].coverage) >= 0.5) & fov
    return Phantom(photograph(image, canvas, noise), mask, fov)


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
