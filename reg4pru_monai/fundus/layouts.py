"""How the public vessel data sets name their files: recognising them on disk and pairing images with masks."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .io import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

# stem of a mask: what it is the mask of, then a word that says it is one
LABEL_NAME = re.compile(r"(?P<key>.+)[._-](?:mask|manual1?|1stho|vessels?|labels?|gt|segmentation|ah)", re.IGNORECASE)
SECOND_OBSERVER_NAME = re.compile(r"(?P<key>.+)[._-](?:2ndho|manual2|vk)", re.IGNORECASE)


class DatasetError(ValueError):
    """A data set folder that cannot be used; the message names it, what is wrong, and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One photograph. label: its vessel mask, or None. subject: the eyes of one person share it.

    name: of files made from it, unique in the data set. part: train or test, validation where a file states it.
    group: healthy, or a disease, where the data set tells. second_observer: the mask that another observer drew.
    angle: of view, in degrees, where the data set tells.
    """

    image: Path
    label: Path | None
    subject: str
    name: str
    part: str = "train"
    dataset: str = ""
    group: str = ""
    second_observer: Path | None = None
    angle: float | None = None


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
    """A folder of images and the folder of their masks, relative to the data set. part: where the folder decides it.

    second: folder of the masks of a second observer where they have their own; not every image need have one.
    """

    images: str
    labels: str
    part: str | None = None
    second: str = ""


@dataclass(frozen=True)
class Layout:
    """How one data set names its files.

    places: alternatives, each a tuple of places used together. image: pattern of an image's stem; its group `key`
    is what the mask is named after (`label` shows how). subject: stem -> subject. is_test: subject -> bool, the
    official split where no folder states it; None: no official split. groups: the pattern's group `group` -> its name.
    angle: of view of the camera, in degrees, as the paper of the data set says.
    """

    name: str
    places: tuple[tuple[Place, ...], ...]
    image: str
    label: str
    subject: Callable[[str], str] = str
    is_test: Callable[[str], bool] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    angle: float | None = None

    def group(self, stem: str) -> str:
        """Healthy, or the disease, that the name of an image tells; empty where it tells nothing."""
        match = re.fullmatch(self.image, stem) if self.groups else None
        return self.groups[match["group"]] if match else ""

    def key(self, stem: str) -> str | None:
        """What the mask of the image with this stem is named after; None: not an image of this data set."""
        match = re.fullmatch(self.image, stem)
        return match["key"] if match else None


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
            (Place("Original", "Ground truth"),),
        ),
        image=r"(?P<key>\d+_(?P<group>[ADGN]))",
        label="{key}.png",
        groups={
            **{"A": "age_related_macular_degeneration", "D": "diabetic_retinopathy"},
            **{"G": "glaucoma", "N": "healthy"},
        },
        angle=50,
    ),
    Layout(
        name="DRIVE",
        places=(
            (
                Place("training/images", "training/1st_manual", "train"),
                Place("test/images", "test/1st_manual", "test", "test/2nd_manual"),
            ),
            (Place("images", "1st_manual", second="2nd_manual"),),
        ),
        image=r"(?P<key>\d\d)_(?:training|test)",
        label="{key}_manual1.gif",
        subject=lambda stem: stem[:2],
        is_test=lambda subject: int(subject) <= 20,
        angle=45,
    ),
    Layout(
        name="STARE",
        places=(
            (Place("stare-images", "labels-ah", second="labels-vk"),),
            (Place("images", "labels-ah", second="labels-vk"),),
            (Place(".", "labels-ah", second="labels-vk"),),
            (Place(".", "."),),
        ),
        image=r"(?P<key>im\d{4})",
        label="{key}.ah.ppm",
        angle=35,
    ),
    Layout(
        name="HRF",
        places=((Place("images", "manual1"),), (Place("images", "masks"),)),
        image=r"(?P<key>\d\d_(?P<group>h|dr|g))",
        label="{key}.tif",
        is_test=lambda subject: int(subject[:2]) > 5,
        groups={"h": "healthy", "dr": "diabetic_retinopathy", "g": "glaucoma"},
        angle=60,
    ),
    Layout(
        name="CHASE_DB1",
        places=((Place("images", "masks", second="masks_2nd_observer"),), (Place(".", "."),)),
        image=r"(?P<key>Image_\d\d[LR])",
        label="{key}_1stHO.png",
        subject=lambda stem: stem[len("Image_") : -1],
        is_test=lambda subject: int(subject) > 10,
        angle=30,
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


def recognise(root: Path, require_labels: bool = True) -> tuple[Layout, tuple[Place, ...]]:
    """The layout of a folder and where it has its files. require_labels: False also takes images alone.

    Raises DatasetError.
    """
    for layout in LAYOUTS if require_labels else (*LAYOUTS, _IMAGES_ONLY):
        for places in layout.places:
            if _matches(root, layout, places):
                return layout, places
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
    return [
        f for f in files if not (shared and (LABEL_NAME.fullmatch(f.stem) or SECOND_OBSERVER_NAME.fullmatch(f.stem)))
    ]


def _labels_of(root: Path, place: Place) -> list[Path]:
    """Files where a layout has its masks, without those of a second observer."""
    if not place.labels:
        return []
    shared = place.images == place.labels
    files = [f for f in _image_files(_subfolder(root, place.labels)) if not SECOND_OBSERVER_NAME.fullmatch(f.stem)]
    return [f for f in files if LABEL_NAME.fullmatch(f.stem)] if shared else files


def _second_observer(root: Path, place: Place) -> dict[str, Path]:
    """Masks of a second observer, by what they are masks of; they may lie among those of the first."""
    names = dict.fromkeys(name for name in (place.labels, place.second) if name)  # of two masks, that of its own folder
    files = [file for name in names for file in _image_files(_subfolder(root, name))]
    matches = {file: SECOND_OBSERVER_NAME.fullmatch(file.stem) for file in files}
    return {match["key"]: file for file, match in matches.items() if match}


def collect(root: Path, layout: Layout, places: tuple[Place, ...]) -> Dataset:
    """Images and masks of a data set, paired by name; parts only where folders state them. Raises DatasetError."""
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
        second = _second_observer(root, place)
        for key, file in images.items():
            stem, part = file.stem, place.part or ""
            own = (layout.group(stem), second.get(key), layout.angle)
            samples.append(Sample(file, labels.get(key), layout.subject(stem), stem, part, name, *own))
            if key not in labels:
                missing[file] = f"{file} (mask expected: {root / place.labels / layout.label.format(key=key)})"
    if orphans:
        logger.warning("%s: %d mask(s) belong to no image: %s", root, len(orphans), listing(orphans))
    return Dataset(name, tuple(_distinct(samples)), missing, tuple(orphans), tuple(unrecognised))


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
        match = LABEL_NAME.fullmatch(file.stem)
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
            same = sorted(f for f in folder.iterdir() if f.name.lower() == part.lower() and f.is_dir())
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
        names = " or ".join(map(str, inside))
        return f"{root} is not itself a data set, but holds {len(inside)}: give {names}, or several as a list"
    if not content:
        return f"{root} is an empty folder; give the folder of a data set; {remedy}"
    if any(f.suffix.lower() in (".gz", ".zip", ".rar", ".7z", ".tar") for f in (*content, *root.glob("*/*"))):
        return f"{root} holds compressed files and no data set; decompress them first (gunzip -r, unzip, tar); {remedy}"
    images = [f for folder in (root, _subfolder(root, "images")) for f in _image_files(folder)]
    if images:
        return f"{root} holds {len(images)} image(s) but no masks; put the masks in {root / 'masks'}; {remedy}"
    return f"{root} is not a data set: found {listing(f.name for f in content)}; {remedy}"


def listing(items: Iterable[object], limit: int = 10) -> str:
    """The first few, then a count."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
