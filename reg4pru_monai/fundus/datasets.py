"""Vessel data sets: image-mask pairs of one part of FIVES, CHASE_DB1, HRF, DRIVE, STARE or any folder of both."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

from .angle import checked_angle
from .layouts import LAYOUTS, Dataset, DatasetError, Sample, collect, listing, recognise
from .splits import EVERY, PARTS, SPLITS_FILE, validation_subjects, with_parts

__all__ = [
    "LAYOUTS",
    "Dataset",
    "DatasetError",
    "Sample",
    "check_complete",
    "datalist",
    "digest",
    "find_samples",
    "folders_of",
    "split",
]

DatasetDir: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def datalist(
    dataset_dir: DatasetDir,
    part: str,
    validation_fraction: float = 0.2,
    seed: int = 0,
    angle: float | str | None = None,
) -> list[dict[str, str]]:
    """One part of a data set, or "all" of it, as MONAI wants it: a dict of text for each image. Raises DatasetError.

    image, label, name, subject; dataset, its name; group, second_observer (the path of a mask) and angle (of view, in
    degrees), empty where the data set has none. angle: of the photographs whose data set tells none; ValueError where
    it is no angle.
    """
    told = checked_angle(angle)
    dataset = find_samples(dataset_dir)
    samples = split(dataset, part, validation_fraction, seed)
    check_complete(dataset, samples)
    return [_entry(sample, told) for sample in samples]


def _entry(s: Sample, angle: float | None) -> dict[str, str]:
    own = {"image": str(s.image), "label": str(s.label), "name": s.name, "subject": s.subject, "dataset": s.dataset}
    known = s.angle or angle
    more = {"second_observer": str(s.second_observer or ""), "angle": f"{known:g}" if known else ""}
    return own | {"group": s.group} | more


def find_samples(dataset_dir: DatasetDir, require_labels: bool = True) -> Dataset:
    """Recognise the data set in a folder, or in several (a list, or separated by a comma or os.pathsep), and pair it.

    require_labels: False also takes folders of images alone; their labels are None. Names and subjects of several data
    sets are prefixed by the data set's name. Raises DatasetError.
    """
    folders = _existing(dataset_dir)
    found = [_find(folder, require_labels) for folder in folders]
    if len(found) == 1:
        return found[0]
    names = [dataset.name for dataset in found]
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(
                f"two folders hold a data set called {name!r}: {listing(folders)}; rename or leave out one"
            )
    return _joined(found)


def split(dataset: Dataset, part: str, validation_fraction: float = 0.2, seed: int = 0) -> tuple[Sample, ...]:
    """The samples of one part, or of "all".

    Validation is taken from the training subjects of each data set, at least one of each.
    validation_fraction: in [0, 1), share of the training subjects; 0: none. Raises DatasetError.
    """
    if part not in (*PARTS, EVERY):
        raise DatasetError(f"unknown part {part!r}: choose from {', '.join((*PARTS, EVERY))}")
    if not 0 <= validation_fraction < 1:
        raise DatasetError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    held_out = validation_subjects(dataset, validation_fraction, seed)
    chosen = []
    for sample in dataset.samples:
        is_held_out = sample.part == "train" and (sample.dataset, sample.subject) in held_out
        if part in (EVERY, "validation" if is_held_out else sample.part):
            chosen.append(sample)
    if not chosen:
        raise DatasetError(
            f"{dataset.name}: the {part} part is empty ({len(dataset.samples)} images in all); "
            f"add images, change validation_fraction={validation_fraction}, or state the split in {SPLITS_FILE}"
        )
    return tuple(chosen)


def has_validation(dataset: Dataset, validation_fraction: float) -> bool:
    """Whether anything validates: a share of the training subjects, or a part that the data set states."""
    return validation_fraction != 0 or any(sample.part == "validation" for sample in dataset.samples)


def check_complete(dataset: Dataset, samples: Iterable[Sample]) -> None:
    """Raise DatasetError if one of the samples has no mask, or images of the data set would be left out unnoticed."""
    missing = [dataset.missing[s.image] for s in samples if s.label is None]
    if missing:
        spare = f"; masks that belong to no image: {listing(dataset.orphans)}" if dataset.orphans else ""
        raise DatasetError(
            f"{dataset.name}: {len(missing)} image(s) without a mask: {listing(missing)}{spare}; "
            "add the masks or take the images out"
        )
    if dataset.unrecognised:
        raise DatasetError(
            f"{dataset.name}: {len(dataset.unrecognised)} image(s) not named as in this data set: "
            f"{listing(dataset.unrecognised)}; take them out or rename them"
        )


def digest(source: DatasetDir | Dataset | Iterable[Sample]) -> str:
    """SHA-256 over the sorted names and the contents of all images and masks: the identity of a data set."""
    if isinstance(source, Dataset):
        samples: list[Sample] = list(source.samples)
    elif isinstance(source, str | os.PathLike):
        samples = list(find_samples(source).samples)
    else:
        items = list(source)
        samples = [s for s in items if isinstance(s, Sample)]
        if len(samples) < len(items):
            samples = list(find_samples([os.fspath(i) for i in items if not isinstance(i, Sample)]).samples)
    total = hashlib.sha256()
    for sample in sorted(samples, key=lambda s: s.name):
        files = [_content(path) if path else "" for path in (sample.image, sample.label)]
        parts = [sample.name, *files]
        total.update("\0".join(parts).encode() + b"\n")
    return total.hexdigest()


def folders_of(dataset_dir: DatasetDir) -> list[Path]:
    """The folder or folders meant, whether they exist or not: a list, or text with commas or os.pathsep between."""
    if isinstance(dataset_dir, str) and not Path(dataset_dir).exists():
        items: list[str | os.PathLike[str]] = [
            p.strip() for p in re.split(f"[,{os.pathsep}]", dataset_dir) if p.strip()
        ]
    else:
        items = [dataset_dir] if isinstance(dataset_dir, str | os.PathLike) else list(dataset_dir)
    return [Path(item).expanduser() for item in items]


def _existing(dataset_dir: DatasetDir) -> list[Path]:
    """The folder or folders meant. Raises DatasetError where one does not exist."""
    folders = folders_of(dataset_dir)
    if not folders:
        raise DatasetError("dataset_dir is empty: give the folder of a data set")
    for folder in folders:
        if not folder.is_dir():
            state = "is a file, not a folder" if folder.exists() else "does not exist"
            raise DatasetError(f"dataset_dir {folder} {state} (from {Path.cwd()}); give the folder of a data set")
    return folders


def _find(root: Path, require_labels: bool) -> Dataset:
    layout, places = recognise(root, require_labels)
    dataset = collect(root, layout, places)
    return replace(dataset, samples=tuple(with_parts(root, layout, list(dataset.samples))))


def _joined(found: Sequence[Dataset]) -> Dataset:
    samples = [
        replace(s, name=f"{dataset.name}-{s.name}", subject=f"{dataset.name}-{s.subject}")
        for dataset in found
        for s in dataset.samples
    ]
    return Dataset(
        "+".join(dataset.name for dataset in found),
        tuple(samples),
        {file: text for dataset in found for file, text in dataset.missing.items()},
        tuple(file for dataset in found for file in dataset.orphans),
        tuple(file for dataset in found for file in dataset.unrecognised),
    )


def _content(path: Path) -> str:
    """Digest of a file, read once as long as it does not change: a run asks for a whole data set and for its parts."""
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, size: int, changed: int) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
