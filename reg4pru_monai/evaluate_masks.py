"""Anybody's masks or probabilities against ground truth: files paired by name, and all metrics of them."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import mask_metrics as cm
from .files import table_reader
from .fundus import DEFAULT_DIAMETER, FieldOfView
from .fundus.detection import read_fov
from .fundus.fov import whole_frame
from .fundus.io import IMAGE_SUFFIXES, decode_grey, has_two_values, read_bytes, read_grey
from .fundus.layouts import LABEL_NAME, LAYOUTS, SECOND_OBSERVER_NAME, listing
from .fundus.truth import LABEL_MAP, check_truth, read_truth

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Result:
    """What ``evaluate_masks`` found.

    predictions: metrics of the predictions. groups: name -> metrics of its images. second_observer: the second observer
    as prediction of the ground truth, on the same images. settings: with what it was computed. notes: for the reader.
    """

    predictions: cm.ComparisonMetrics
    groups: dict[str, list[bool]]
    second_observer: cm.ComparisonMetrics | None
    settings: dict[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for metrics.json; NaN becomes None."""
        found: dict[str, Any] = {"settings": self.settings, "notes": list(self.notes)}
        found |= {"pooled": self.predictions.pooled(), "per_image": self.predictions.per_image()}
        found["groups"] = {
            name: {"images": sum(chosen), "per_image": self.predictions.per_image(chosen)}
            for name, chosen in self.groups.items()
        }
        if self.second_observer:
            found["second_observer"] = {
                "images": len(self.second_observer.rows),
                "pooled": self.second_observer.pooled(),
                "per_image": self.second_observer.per_image(),
            }
        if self.predictions.probabilities:
            found["calibration"] = _calibration(self.predictions.calibration)
        return _plain(found)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of per_image.csv."""
        group = {
            row["name"]: name
            for name, chosen in self.groups.items()
            for row, member in zip(self.predictions.rows, chosen, strict=True)
            if member
        }
        parts = {"prediction": self.predictions, "second_observer": self.second_observer}
        return [
            {"masks": part, "name": row["name"], "group": group.get(row["name"], "")} | row
            for part, found in parts.items()
            for row in (found.rows if found else [])
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _calibration(bins: np.ndarray) -> list[dict[str, Any]]:
    return [
        _plain({"from": k / len(bins), "to": (k + 1) / len(bins), "pixels": int(pixels)})
        | {"mean_probability": total / pixels if pixels else None, "vessel_share": vessels / pixels if pixels else None}
        for k, (pixels, total, vessels) in enumerate(bins.tolist())
    ]


def evaluate_masks(
    predictions: PathLike,
    ground_truth: PathLike,
    *,
    photographs: PathLike | None = None,
    groups: PathLike | None = None,
    second_observer: PathLike | None = None,
    diameter: float = DEFAULT_DIAMETER,
) -> Result:
    """Compare the predictions in one folder with the masks in another, files paired by name.

    photographs: folder, for the fields of view; without it the whole frame counts. groups: CSV file with the columns
    name and group; without it those of HRF and FIVES are recognised. second_observer: folder of masks. diameter: of the
    field of view at canonical scale, px. Raises ValueError and OSError naming the file: nothing pairs, sizes, …
    """
    predicted, truth = find_files(predictions), find_files(ground_truth, LABEL_NAME)
    names = sorted(predicted.keys() & truth.keys())
    if not names:
        raise ValueError(_why_no_pair(Path(predictions), predicted, Path(ground_truth), truth))
    pictures = _all_of(names, find_files(photographs), photographs) if photographs is not None else None
    membership = read_groups(groups, names) if groups is not None else _known_groups(names)
    second = find_files(second_observer, SECOND_OBSERVER_NAME) if second_observer is not None else {}
    if second_observer is not None and not second.keys() & set(names):
        raise ValueError(_why_no_pair(Path(second_observer), second, Path(ground_truth), truth))
    probabilities = any(holds_probabilities(predicted[name]) for name in names)
    if probabilities:
        _check_no_label_maps([predicted[name] for name in names])
    found = cm.ComparisonMetrics(diameter, probabilities)
    human = cm.ComparisonMetrics(diameter, probabilities=False) if second else None
    for name in names:
        label = read_truth(truth[name])
        fov = whole_frame(label.shape) if pictures is None else read_fov(pictures[name])
        _add(found, read_prediction(predicted[name], probabilities), label, fov, name, (predicted, truth))
        if human and name in second:
            _add(human, read_truth(second[name]).astype(np.float32), label, fov, name, (second, truth))
    left = {"predictions": len(predicted) - len(names), "ground_truth": len(truth) - len(names)}
    notes = _notes(left, pictures is None, human, found)
    order = sorted(set(membership.values()), key=list(membership.values()).index)
    chosen = {group: [membership[name] == group for name in names] for group in order}
    return Result(found, chosen, human, _settings(found, pictures is None), notes)


def _add(
    found: cm.ComparisonMetrics,
    probability: np.ndarray,
    label: np.ndarray,
    fov: FieldOfView,
    name: str,
    files: tuple[Mapping[str, Path], Mapping[str, Path]],
) -> None:
    if files[0][name].samefile(files[1][name]):
        raise ValueError(f"{name}: {files[0][name]} would be compared with itself; give another folder")
    check_truth(label, fov, name, files[1][name])
    try:
        found.update(probability, label, fov, name, _subject(name))
    except ValueError as error:
        raise ValueError(f"{error} ({files[0][name]}, {files[1][name]})") from None


def _settings(found: cm.ComparisonMetrics, whole_frame: bool) -> dict[str, Any]:
    return {
        "images": len(found.rows),
        "predictions": "probabilities" if found.probabilities else "masks",
        "field_of_view": "whole frame" if whole_frame else "from photographs",
        "canonical_diameter_px": found.diameter,
        "threshold": 0.5,
        "boundary_share": cm.BOUNDARY_SHARE,
        "boundary_share_narrow": cm.NARROW_SHARE,
        "surface_tolerance_px": cm.SURFACE_TOLERANCE,
        "thin_width_px": cm.THIN_WIDTH,
        "fixed_specificity": cm.SPECIFICITY,
        "calibration_bins": cm.CALIBRATION_BINS,
    }


def _notes(left: Mapping[str, int], whole_frame: bool, human: Any, found: cm.ComparisonMetrics) -> tuple[str, ...]:
    notes, images = [], len(found.rows)
    called = [row["name"] for row in found.rows if _share_called(row) > 0.5]
    if called:
        notes.append(f"more than half of the field of view is vessel in {listing(called)}: are they inverted?")
    if whole_frame:
        notes.append(
            "field of view: the whole frame, its diagonal taken as the diameter; give the photographs to find the disc"
        )
    if left["predictions"]:
        notes.append(f"{left['predictions']} prediction(s) without ground truth were left out")
    if left["ground_truth"]:
        notes.append(f"{left['ground_truth']} ground truth mask(s) without prediction were left out")
    if human and len(human.rows) < images:
        notes.append(f"second observer: {len(human.rows)} of {images} images")
    return tuple(notes)


def _share_called(row: Mapping[str, Any]) -> float:
    """Share of the field of view that a prediction calls vessel."""
    vessel = row["vessel_pixels"] / row["pixels"]
    return float(row["sensitivity"] * vessel + (1 - row["specificity"]) * (1 - vessel))


# --- files ------------------------------------------------------------------------------------------------------------


def find_files(folder: PathLike, preferred: re.Pattern[str] | None = None) -> dict[str, Path]:
    """Image files in a folder and below it, by the name that pairs them.

    preferred: which stem wins where several files share a name, as where photographs and masks lie together. Without
    it, the ones that are no masks by name. Raises ValueError: no such folder, or two files of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}; give a folder of images")
    files: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not hidden:
            files.setdefault(pairing_name(path), []).append(path)
    return {name: _only(name, found, preferred) for name, found in files.items()}


def _only(name: str, files: list[Path], preferred: re.Pattern[str] | None) -> Path:
    if len(files) > 1:
        patterns = (LABEL_NAME, SECOND_OBSERVER_NAME) if preferred is None else (preferred,)
        matches = [any(p.fullmatch(_stem(path)) for p in patterns) for path in files]
        files = [f for f, match in zip(files, matches, strict=True) if match is (preferred is not None)] or files
    if len(files) > 1:
        raise ValueError(f"two files for {name!r}: {files[0]} and {files[1]}; give a folder with one of them")
    return files[0]


def _stem(path: Path) -> str:
    """The name without suffixes of images: that of ``a.jpg.png`` is ``a``."""
    name = path
    while name.suffix.lower() in (*IMAGE_SUFFIXES, ".dcm"):
        name = name.with_suffix("")
    return name.name


def pairing_name(path: Path) -> str:
    """What a photograph, its masks and its predictions have in common: ``Image_01L`` of ``Image_01L_1stHO.png``."""
    stem = _stem(path)
    if LABEL_NAME.fullmatch(stem) or SECOND_OBSERVER_NAME.fullmatch(stem):
        stem = re.sub(r"[._-][^._-]+$", "", stem)
    return next((key for layout in LAYOUTS if (key := layout.key(stem))), stem)


def _subject(name: str) -> str:
    """Person, from the name: the first layout that knows it; ``plain`` knows all."""
    return next(layout.subject(name) for layout in LAYOUTS if layout.key(name))


def _all_of(names: Sequence[str], files: dict[str, Path], folder: PathLike) -> dict[str, Path]:
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(f"{folder} holds no photograph of {listing(missing)}; add them or leave the option out")
    return files


def _why_no_pair(first: Path, found: Iterable[str], second: Path, others: Iterable[str]) -> str:
    inside = [first / name for name in ("probabilities", "masks") if (first / name).is_dir()]
    if inside:
        return f"no file below {first} pairs by name with one in {second}; give {' or '.join(map(str, inside))}"
    names = [f"{folder} has {listing(sorted(n), 3) or 'no images'}" for folder, n in ((first, found), (second, others))]
    return f"no file pairs by name: {', '.join(names)}; name predictions like their photographs"


def holds_probabilities(path: Path) -> bool:
    """Whether a file has more than two values and is no JPEG, which adds values to any mask. Raises FundusReadError."""
    data = read_bytes(path)
    if data.startswith(b"\xff\xd8\xff"):
        return False
    return not has_two_values(decode_grey(data, path))


def _check_no_label_maps(paths: Iterable[Path]) -> None:
    """Raise ValueError where no value of any file is above LABEL_MAP: read as probabilities, all would be about 0."""
    highest: dict[Path, int] = {}
    for path in paths:
        grey = read_grey(path)
        highest[path] = round(float(grey.max()) * (1 if grey.dtype == np.uint8 else 65535))
        if highest[path] > LABEL_MAP:
            return
    path = max(highest, key=lambda each: highest[each])
    raise ValueError(
        f"{path}: is this a label map? No prediction has a value above {highest[path]}; give masks of 0 and 255, or "
        "probabilities over the whole range of the file"
    )


def read_prediction(path: Path, probabilities: bool) -> np.ndarray:
    """(H, W) float32 in [0, 1]: the values over their highest possible one, or of masks 0 and 1."""
    if not probabilities:
        return read_truth(path).astype(np.float32)
    grey = read_grey(path)
    return grey / np.float32(255) if grey.dtype == np.uint8 else grey


def read_groups(path: PathLike, names: Iterable[str]) -> dict[str, str]:
    """Group of each name from a CSV file with the columns name and group. Raises ValueError, OSError."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = table_reader(file)
        if not {"name", "group"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must have the columns name and group, got {listing(reader.fieldnames or ())}")
        rows = [(pairing_name(Path((row["name"] or "").strip())), (row["group"] or "").strip()) for row in reader]
    groups = dict(rows)
    twice = sorted({name for name, group in rows if groups[name] != group})
    if twice:
        raise ValueError(f"{path} puts {listing(twice)} in two groups; keep one")
    missing = [name for name in names if not groups.get(name)]
    if missing:
        raise ValueError(f"{path} names no group for {listing(missing)}; add a row for each")
    return {name: groups[name] for name in names}


def _known_groups(names: Sequence[str]) -> dict[str, str]:
    """The groups of the data set whose names all of these are, as of HRF and FIVES; none where there is no such set."""
    found = ({name: layout.group(name) for name in names} for layout in LAYOUTS)
    return next((groups for groups in found if all(groups.values())), {})
