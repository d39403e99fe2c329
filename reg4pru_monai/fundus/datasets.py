"""Public vessel data sets on disk: which one it is, image–mask pairs by name, and splits by subject."""

import csv
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from .io import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

DatasetDir: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

PARTS = ("train", "validation", "test")
TEST_FRACTION = 0.25  # of the subjects, where neither the data set nor splits.json states a split
SPLITS_FILE, SUBJECTS_FILE = "splits.json", "subjects.csv"
LABEL_SUFFIXES = (
    "mask",
    "manual1",
    "manual",
    "1stho",
    "vessels",
    "vessel",
    "labels",
    "label",
    "gt",
    "segmentation",
    "ah",
)
_LABEL = re.compile(rf"(?P<key>.+)[._-](?:{'|'.join(LABEL_SUFFIXES)})", re.IGNORECASE)
_SECOND_OBSERVER = re.compile(r".+[._-](?:2ndho|manual2|vk)", re.IGNORECASE)


class DatasetError(ValueError):
    """A data set folder that cannot be used; the message names it, what is wrong, and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One photograph. label: its vessel mask, or None. subject: the eyes of one person share it. part: train or test."""

    image: Path
    label: Path | None
    subject: str
    name: str
    part: str = "train"
    dataset: str = ""


@dataclass(frozen=True)
class Dataset:
    """What was found. missing: image -> where its mask was expected. orphans: masks of no image.

    unrecognised: images not named as the data set names them, and therefore not used.
    """

    name: str
    samples: tuple[Sample, ...]
    missing: Mapping[Path, str] = field(default_factory=dict)
    orphans: tuple[Path, ...] = ()
    unrecognised: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Place:
    """A folder of images and the folder of their masks, relative to the data set. part: where the folder decides it."""

    images: str
    labels: str
    part: str | None = None


@dataclass(frozen=True)
class Layout:
    """How one data set names its files.

    places: alternatives, each a tuple of places used together. image: pattern of an image's stem; its group `key`
    is what the mask is named after (`label` shows how). subject: stem -> subject. is_test: subject -> bool, the
    official split where no folder states it; None: no official split.
    """

    name: str
    places: tuple[tuple[Place, ...], ...]
    image: str
    label: str
    subject: Callable[[str], str] = str
    is_test: Callable[[str], bool] | None = None

    def key(self, stem: str) -> str | None:
        """What the mask of the image with this stem is named after; None: not an image of this data set."""
        match = re.fullmatch(self.image, stem)
        return match["key"] if match else None


def _chase_subject(stem: str) -> str:
    return stem[len("Image_") : -1]


def plain_subject(stem: str) -> str:
    """The stem without a trailing eye: ``p01_L`` and ``p01_R`` are one person."""
    return re.sub(r"[._-](?:l|r|od|os|left|right)$", "", stem, flags=re.IGNORECASE) or stem


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="FIVES",
        places=(
            (
                Place("train/Original", "train/Ground truth", "train"),
                Place("test/Original", "test/Ground truth", "test"),
            ),
        ),
        image=r"(?P<key>\d+_[ADGN])",
        label="{key}.png",
    ),
    Layout(
        name="DRIVE",
        places=(
            (Place("training/images", "training/1st_manual", "train"), Place("test/images", "test/1st_manual", "test")),
        ),
        image=r"(?P<key>\d\d)_(?:training|test)",
        label="{key}_manual1.gif",
        subject=lambda stem: stem[:2],
    ),
    Layout(
        name="STARE",
        places=tuple((Place(images, "labels-ah"),) for images in ("stare-images", "images", "."))
        + ((Place(".", "."),),),
        image=r"(?P<key>im\d{4})",
        label="{key}.ah.ppm",
    ),
    Layout(
        name="HRF",
        places=((Place("images", "manual1"),), (Place("images", "masks"),)),
        image=r"(?P<key>\d\d_(?:h|dr|g))",
        label="{key}.tif",
        is_test=lambda subject: int(subject[:2]) > 5,
    ),
    Layout(
        name="CHASE_DB1",
        places=((Place("images", "masks"),), (Place(".", "."),)),
        image=r"(?P<key>Image_\d\d[LR])",
        label="{key}_1stHO.png",
        subject=_chase_subject,
        is_test=lambda subject: int(subject) > 10,
    ),
    Layout(
        name="plain",
        places=((Place("images", "masks"),), (Place("images", "labels"),)),
        image=r"(?P<key>.+)",
        label="{key}.png or {key}_mask.png",
        subject=plain_subject,
    ),
)
_IMAGES_ONLY = Layout("images", ((Place("images", ""),), (Place(".", ""),)), r"(?P<key>.+)", "", plain_subject)


# --- what the rest of the package calls ------------------------------------------------------------------------------


def datalist(
    dataset_dir: DatasetDir, part: str, validation_fraction: float = 0.2, seed: int = 0
) -> list[dict[str, str]]:
    """One part of a data set as MONAI wants it: dicts of image, label, name, subject. Raises DatasetError."""
    dataset = find_samples(dataset_dir)
    samples = split(dataset, part, validation_fraction, seed)
    check_complete(dataset, samples)
    return [{"image": str(s.image), "label": str(s.label), "name": s.name, "subject": s.subject} for s in samples]


def find_samples(dataset_dir: DatasetDir, require_labels: bool = True) -> Dataset:
    """Recognise the data set in a folder, or in several (a list, or separated by a comma or os.pathsep), and pair it.

    require_labels: False also takes folders of images alone; their labels are None. Names and subjects of several data
    sets are prefixed by the data set's name. Raises DatasetError.
    """
    folders = _folders(dataset_dir)
    found = [_find(folder, require_labels) for folder in folders]
    if len(found) == 1:
        return found[0]
    names = [dataset.name for dataset in found]
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(
                f"two folders hold a data set called {name!r}: {_listing(folders)}; rename or leave out one"
            )
    return _joined(found)


def split(dataset: Dataset, part: str, validation_fraction: float = 0.2, seed: int = 0) -> tuple[Sample, ...]:
    """The samples of one part. Validation is taken from the training subjects of each data set, at least one of each.

    validation_fraction: in [0, 1), share of the training subjects; 0: none. Raises DatasetError.
    """
    if part not in PARTS:
        raise DatasetError(f"unknown part {part!r}: choose from {', '.join(PARTS)}")
    if not 0 <= validation_fraction < 1:
        raise DatasetError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    held_out = _validation_subjects(dataset, validation_fraction, seed)
    chosen = []
    for sample in dataset.samples:
        is_held_out = sample.part == "train" and (sample.dataset, sample.subject) in held_out
        if ("validation" if is_held_out else sample.part) == part:
            chosen.append(sample)
    if not chosen:
        raise DatasetError(
            f"{dataset.name}: the {part} part is empty ({len(dataset.samples)} images in all); "
            f"add images, change validation_fraction={validation_fraction}, or state the split in {SPLITS_FILE}"
        )
    return tuple(chosen)


def check_complete(dataset: Dataset, samples: Iterable[Sample]) -> None:
    """Raise DatasetError if one of the samples has no mask, or images of the data set would be left out unnoticed."""
    missing = [dataset.missing[s.image] for s in samples if s.label is None]
    if missing:
        spare = f"; masks that belong to no image: {_listing(dataset.orphans)}" if dataset.orphans else ""
        raise DatasetError(
            f"{dataset.name}: {len(missing)} image(s) without a mask: {_listing(missing)}{spare}; "
            "add the masks or take the images out"
        )
    if dataset.unrecognised:
        raise DatasetError(
            f"{dataset.name}: {len(dataset.unrecognised)} image(s) not named as in this data set: "
            f"{_listing(dataset.unrecognised)}; take them out or rename them"
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
        parts = [sample.name, _file_digest(sample.image), _file_digest(sample.label) if sample.label else ""]
        total.update("\0".join(parts).encode() + b"\n")
    return total.hexdigest()


# --- recognising and pairing -----------------------------------------------------------------------------------------


def _folders(dataset_dir: DatasetDir) -> list[Path]:
    """The folder or folders meant, each of which exists."""
    if isinstance(dataset_dir, str) and not Path(dataset_dir).exists():
        items: list[str | os.PathLike[str]] = [
            p.strip() for p in re.split(f"[,{os.pathsep}]", dataset_dir) if p.strip()
        ]
    else:
        items = [dataset_dir] if isinstance(dataset_dir, str | os.PathLike) else list(dataset_dir)
    folders = [Path(item).expanduser() for item in items]
    if not folders:
        raise DatasetError("dataset_dir is empty: give the folder of a data set")
    for folder in folders:
        if not folder.is_dir():
            state = "is a file, not a folder" if folder.exists() else "does not exist"
            raise DatasetError(f"dataset_dir {folder} {state} (from {Path.cwd()}); give the folder of a data set")
    return folders


def _find(root: Path, require_labels: bool) -> Dataset:
    for layout in LAYOUTS if require_labels else (*LAYOUTS, _IMAGES_ONLY):
        for places in layout.places:
            if _matches(root, layout, places):
                return _collect(root, layout, places)
    raise DatasetError(_why_not(root))


def _matches(root: Path, layout: Layout, places: tuple[Place, ...]) -> bool:
    """Whether the folders exist and most of their images are named as in this layout."""
    if layout is not _IMAGES_ONLY and not any(_labels_of(root, place) for place in places):
        return False
    files = [file for place in places for file in _images_of(root, place)]
    return 2 * sum(layout.key(file.stem) is not None for file in files) > len(files)


def _images_of(root: Path, place: Place) -> list[Path]:
    """Files where a layout has its images; those that are masks of a folder shared by both are left out."""
    shared = place.images == place.labels
    files = _image_files(_subfolder(root, place.images))
    return [f for f in files if not (shared and (_LABEL.fullmatch(f.stem) or _SECOND_OBSERVER.fullmatch(f.stem)))]


def _labels_of(root: Path, place: Place) -> list[Path]:
    """Files where a layout has its masks, without those of a second observer."""
    if not place.labels:
        return []
    shared = place.images == place.labels
    files = [f for f in _image_files(_subfolder(root, place.labels)) if not _SECOND_OBSERVER.fullmatch(f.stem)]
    return [f for f in files if _LABEL.fullmatch(f.stem)] if shared else files


def _collect(root: Path, layout: Layout, places: tuple[Place, ...]) -> Dataset:
    name = layout.name if layout.name not in ("plain", "images") else root.resolve().name
    samples: list[Sample] = []
    missing: dict[Path, str] = {}
    orphans: list[Path] = []
    unrecognised: list[Path] = []
    for place in places:
        files = _images_of(root, place)
        unrecognised += [file for file in files if layout.key(file.stem) is None]
        images = _by_key(files, layout)
        labels, spare = _pair(images, _labels_of(root, place))
        orphans += spare
        for key, file in images.items():
            samples.append(Sample(file, labels.get(key), layout.subject(file.stem), file.stem, place.part or "", name))
            if key not in labels:
                missing[file] = f"{file} (mask expected: {root / place.labels / layout.label.format(key=key)})"
    if orphans:
        logger.warning("%s: %d mask(s) belong to no image: %s", root, len(orphans), _listing(orphans))
    samples = _with_parts(root, layout, _distinct(samples))
    return Dataset(name, tuple(samples), missing, tuple(orphans), tuple(unrecognised))


def _by_key(files: Iterable[Path], layout: Layout) -> dict[str, Path]:
    """Images by the key that their mask is named after."""
    images: dict[str, Path] = {}
    for file in files:
        key = layout.key(file.stem)
        if key is None:
            continue
        if key in images:
            raise DatasetError(f"two images share one name: {images[key]} and {file.name}; rename or remove one")
        images[key] = file
    return images


def _pair(images: Mapping[str, Path], files: Iterable[Path]) -> tuple[dict[str, Path], list[Path]]:
    """Masks by key, and the masks that belong to no image."""
    labels: dict[str, Path] = {}
    orphans = []
    for file in files:
        match = _LABEL.fullmatch(file.stem)
        key = file.stem if file.stem in images or not match else match["key"]
        if key not in images:
            orphans.append(file)
        elif key in labels:
            raise DatasetError(f"two masks for image {images[key]}: {labels[key]} and {file.name}; keep one of them")
        else:
            labels[key] = file
    return labels, orphans


def _distinct(samples: list[Sample]) -> list[Sample]:
    """Names that occur in two parts (FIVES counts anew in each) get the part in front; so do the subjects."""
    names = Counter(sample.name for sample in samples)
    return [
        replace(s, name=f"{s.part}_{s.name}", subject=f"{s.part}_{s.subject}") if names[s.name] > 1 else s
        for s in samples
    ]


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


# --- splits ----------------------------------------------------------------------------------------------------------


def _with_parts(root: Path, layout: Layout, samples: list[Sample]) -> list[Sample]:
    """Samples with their part: from splits.json, the folder, the official rule, or a hash of the subject."""
    stated = _stated_subjects(root)
    samples = [replace(s, subject=stated.get(s.name, s.subject)) for s in samples]
    if (root / SPLITS_FILE).exists():
        return _stated_parts(root / SPLITS_FILE, samples)
    subjects = _ranked({s.subject for s in samples}, "test")
    drawn = set(subjects[: round(TEST_FRACTION * len(subjects))])
    is_test = layout.is_test or drawn.__contains__
    return [s if s.part else replace(s, part="test" if is_test(s.subject) else "train") for s in samples]


def _stated_subjects(root: Path) -> dict[str, str]:
    """Name -> subject from subjects.csv (columns name, subject), if there is one."""
    path = root / SUBJECTS_FILE
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"name", "subject"} <= set(rows.fieldnames or ()):
            raise DatasetError(f"{path}: needs the columns name and subject, got {rows.fieldnames}")
        return {row["name"]: row["subject"] for row in rows}


def _stated_parts(path: Path, samples: list[Sample]) -> list[Sample]:
    """Samples with the parts of splits.json: {"train": [names], "test": [names], "validation": [names], optional}."""
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        parts = {str(name): part for part in splits for name in splits[part]}
        total = sum(len(splits[part]) for part in splits)
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f'{path}: is not JSON of the form {{"train": [names], "test": [names]}}: {error}') from error
    names = {s.name for s in samples}
    problems = {
        f"unknown part (choose from {', '.join(PARTS)})": sorted(set(splits) - set(PARTS)),
        "in two parts": sorted(n for n in parts if sum(n in splits[p] for p in splits) > 1)
        if total > len(parts)
        else [],
        "in the folder but in no part": sorted(names - set(parts)),
        "in a part but not in the folder": sorted(set(parts) - names),
    }
    for problem, items in problems.items():
        if items:
            raise DatasetError(f"{path}: {problem}: {_listing(items)}; correct the file")
    samples = [replace(s, part=parts[s.name]) for s in samples]
    _check_disjoint(path, samples)
    return samples


def _check_disjoint(path: Path, samples: Iterable[Sample]) -> None:
    parts: dict[str, set[str]] = {}
    for sample in samples:
        parts.setdefault(sample.subject, set()).add(sample.part)
    torn = sorted(subject for subject, found in parts.items() if len(found) > 1)
    if torn:
        raise DatasetError(f"{path}: subject(s) in more than one part: {_listing(torn)}; keep each person in one part")


def _validation_subjects(dataset: Dataset, fraction: float, seed: int) -> set[tuple[str, str]]:
    """(data set, subject) held out from training; none where the split itself names a validation part."""
    held_out: set[tuple[str, str]] = set()
    stated = {s.dataset for s in dataset.samples if s.part == "validation"}
    for name in {s.dataset for s in dataset.samples} - stated if fraction else ():
        subjects = _ranked({s.subject for s in dataset.samples if s.dataset == name and s.part == "train"}, str(seed))
        held_out |= {(name, subject) for subject in subjects[: max(1, round(fraction * len(subjects)))]}
    return held_out


def _ranked(subjects: Iterable[str], salt: str) -> list[str]:
    """Subjects in an order that depends on nothing but their names and the salt."""
    return sorted(subjects, key=lambda subject: (hashlib.sha256(f"{salt}:{subject}".encode()).digest(), subject))


# --- files and messages ----------------------------------------------------------------------------------------------


def _image_files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    files = [f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")]
    return sorted(f for f in files if f.is_file())


def _subfolder(root: Path, relative: str) -> Path | None:
    """The folder, whatever the case of its name (``Ground Truth``); None where there is none."""
    folder = root
    for part in Path(relative).parts:
        if not (folder / part).is_dir():
            same = sorted(f for f in folder.iterdir() if f.is_dir() and f.name.lower() == part.lower())
            if not same:
                return None
            part = same[0].name
        folder = folder / part
    return folder


def _recognised(root: Path) -> bool:
    return any(_matches(root, layout, places) for layout in LAYOUTS for places in layout.places)


def _why_not(root: Path) -> str:
    """What is wrong with a folder in which no layout is recognised."""
    content = sorted(f for f in root.iterdir() if not f.name.startswith("."))
    inside = [f for f in content if f.is_dir() and _recognised(f)]
    remedy = f"known layouts: {', '.join(layout.name for layout in LAYOUTS)} (docs/datasets.md)"
    if inside:
        return f"{root} holds {len(inside)} data set(s), not one: give {' or '.join(map(str, inside))}, or several as a list"
    if not content:
        return f"{root} is an empty folder; give the folder of a data set; {remedy}"
    if any(f.suffix.lower() in (".gz", ".zip", ".rar", ".7z", ".tar") for f in root.rglob("*")):
        return f"{root} holds compressed files and no data set; decompress them first (gunzip -r, unzip, tar); {remedy}"
    images = [f for folder in (root, _subfolder(root, "images")) for f in _image_files(folder)]
    if images:
        return f"{root} holds {len(images)} image(s) but no masks; put the masks in {root / 'masks'}; {remedy}"
    return f"{root} is not a data set: found {_listing(f.name for f in content)}; {remedy}"


def _listing(items: Iterable[object], limit: int = 10) -> str:
    """The first few, then a count."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def _file_digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
