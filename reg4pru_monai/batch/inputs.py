"""What to segment: files, folders, globs and manifests -> photographs with names, the same from run to run."""

import glob
import heapq
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..fundus.datasets import find_samples
from ..fundus.io import IMAGE_SUFFIXES
from ..fundus.remote import is_url, without_file_protocol
from .items import InputError, Item
from .manifests import MANIFEST_SUFFIXES, Line, read_manifest
from .photograph import is_photograph
from .settings import SETTINGS

if TYPE_CHECKING:
    from .urls import UrlInputs

_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom", ".ima")
# Not opened: text, tables, documents, films …, and raw files of cameras, which are TIFF with a small picture.
_RAW = (".3fr", ".arw", ".cr2", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".nef", ".nrw", ".pef", ".sr2", ".srw")
_TYPES = mimetypes.MimeTypes().types_map[True]  # Python's own, the same on every machine
_OTHERS = {*_RAW, *(suffix for suffix, kind in _TYPES.items() if not kind.startswith(("image/", "application/octet")))}
_HEAD = 512  # bytes; the kind of a DICOM file follows its preamble of 132
_MEDIA_DIRECTORY = "DICOMDIR", b"1.2.840.10008.1.3.10"  # PS3.10: its file name, and its SOP class
_WORD = re.compile(r"\d+(?:st|nd|rd|th)?|[A-Z]?[a-z]+|[A-Z]+")
_MASKS = ("masks", "labels")
_MASK = (
    *("mask", "manual", "manuals", "label", "observer", "observers", "segmentation", "segmentations"),
    *("truth", "groundtruth", *_MASKS),
)


class Listing(NamedTuple):
    """root: absolute folder, or URL, that all names are relative to. items: by name.

    ignored: files of other kinds, by suffix.
    notices: sentences about what was left out (folders that cannot be read, links that lead in circles).
    """

    root: str
    items: list[Item]
    ignored: dict[str, int]
    notices: list[str]


def list_inputs(inputs: Sequence[str | os.PathLike[str]], output: str | Path, root: str | None = None) -> Listing:
    """Find the photographs.

    inputs: files (whatever their names), folders (searched for photographs by suffix, otherwise by content; links to
        folders are followed; hidden files and the output folder are skipped), globs, and manifests (see
        :func:`read_manifest`). All may also be URLs, of one server or bucket; there only suffixes decide.
    Folders that hold results of this command are left out, wherever they come up.
    root: folder that names are relative to; default: the deepest folder that holds all inputs.
    Raises InputError.
    """
    found = _Found(output)
    for entry in inputs:
        found.add(without_file_protocol(os.fspath(entry)))
    found.ask()
    if not found.paths:
        reasons = [*found.notices, *([f"only {counted(found.ignored)}"] if found.ignored else [])]
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise InputError(f"no photograph in {', '.join(map(str, inputs))}{why}")
    base = _common(found.bases) if root is None else _absolute(without_file_protocol(root))
    items = [Item(_name(path, base), path, found.listed(path)) for path in found.paths]
    found.paths.clear()  # of a million photographs it takes as much memory as the list
    items.sort()
    return Listing(base, items, dict(sorted(found.ignored.items())), found.notices)


def parse_shard(text: str) -> tuple[int, int]:
    """I/N. Raises InputError."""
    try:
        number, count = (int(part) for part in str(text).split("/"))
    except ValueError:
        raise InputError(f"shard must be I/N, such as 1/4, got {text!r}") from None
    return number, count


def shard(items: Sequence[Item], number: int, count: int) -> list[Item]:
    """The items of shard ``number`` (from 1) of ``count``: all shards have about the same number of bytes.

    The largest file goes to the shard that has least so far, then the next (Graham, "Bounds on multiprocessing timing
    anomalies", 1969). So who lists the same files gets the same shards; a file that comes or goes may move others.
    A file that cannot be reached counts nothing. Raises InputError.
    """
    if not 1 <= number <= count:
        raise InputError(f"shard must be I/N with 1 <= I <= N, got {number}/{count}")
    if count == 1:
        return list(items)
    sizes = [_size(item) for item in items]
    own = []
    filled = [(0, 0, each) for each in range(1, count + 1)]  # bytes, items, shard: a heap
    for index in sorted(range(len(items)), key=lambda index: (-sizes[index], items[index].name)):
        total, held, least = filled[0]
        heapq.heapreplace(filled, (total + sizes[index], held + 1, least))
        if least == number:
            own.append(index)
    return [items[index] for index in sorted(own)]


def _size(item: Item) -> int:
    try:
        return item.status()[0]
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return 0


class _Found:
    """Collects paths, of URLs with their status. bases: folders that hold them. angles: of view, as manifests tell."""

    def __init__(self, output: str | Path) -> None:
        self.output = os.path.realpath(output)
        self.paths: dict[str, tuple[int, int] | None] = {}
        self.angles: dict[str, float] = {}
        self.bases: set[str] = set()
        self.ignored: Counter[str] = Counter()
        self.notices: list[str] = []
        self._urls: UrlInputs | None = None
        self._results: dict[str, bool] = {}
        self._angle: float | None = None

    def put(self, path: str, status: tuple[int, int] | None = None) -> None:
        """Keep a photograph. Raises InputError where it was told another angle of view before."""
        self.paths[path] = status
        if self._angle is not None and self.angles.setdefault(path, self._angle) != self._angle:
            raise InputError(
                f"{path}: its angle of view is {self.angles[path]:g} degrees on one line of a manifest and "
                f"{self._angle:g} on another; correct the manifest"
            )

    def listed(self, path: str) -> tuple[int, int] | tuple[int, int, float] | None:
        """See Item."""
        status, angle = self.paths[path], self.angles.get(path)
        return status if angle is None else (*(status or (0, 0)), angle)

    @contextmanager
    def told(self, angle: float | None) -> Iterator[None]:
        """Give an angle of view to the photographs that are found meanwhile."""
        self._angle = angle
        try:
            yield
        finally:
            self._angle = None

    def add(self, entry: str) -> None:
        if is_url(entry):
            self.urls.add(entry)
        elif os.path.isdir(entry):
            self._folder(entry)
        elif entry.lower().endswith(MANIFEST_SUFFIXES) and os.path.exists(entry):
            for line in read_manifest(entry):
                self.line(line)
        elif os.path.lexists(entry):
            self._file(entry)
        elif not self._glob(entry):
            raise InputError(f"{entry}: no such file or folder, and no file matches it; check the path")

    @property
    def urls(self) -> "UrlInputs":
        """Takes the URLs."""
        if self._urls is None:
            from .urls import UrlInputs

            self._urls = UrlInputs(self)
        return self._urls

    def ask(self) -> None:
        """Learn what is still unknown of URLs."""
        if self._urls is not None:
            self._urls.ask()

    def line(self, line: Line) -> None:
        """A line of a manifest: what is not there is listed, and fails as a file of its own."""
        path, angle = line
        with self.told(angle):
            if is_url(path):
                self.urls.line(path, angle)
            elif os.path.isdir(path):
                self._folder(path)
            elif os.path.lexists(path) or not glob.has_magic(path) or not self._glob(path):
                self._file(path)

    def _file(self, path: str) -> None:
        path = os.path.abspath(path)
        self.put(path)
        self.bases.add(os.path.dirname(path))

    def _glob(self, pattern: str) -> bool:
        """Whether anything matches."""
        matches = sorted(glob.glob(pattern, recursive=True))
        seen: set[str] = set()
        for path in matches:
            if os.path.isdir(path):
                self._folder(path)
            elif os.path.realpath(path) not in seen and not self._is_result(os.path.dirname(os.path.abspath(path))):
                seen.add(os.path.realpath(path))  # links that lead in circles match again and again
                if self.takes(path):
                    self._file(path)
        return bool(matches)

    def _is_result(self, folder: str) -> bool:
        """Whether a folder lies in the output, or in an earlier one."""
        if folder not in self._results:
            above = os.path.dirname(folder)
            # Not the folder that they lie in: sweeps keep locks in one of that name, where photographs may be as well.
            results = os.path.isfile(os.path.join(folder, SETTINGS))
            own = os.path.realpath(folder) == self.output or results
            self._results[folder] = own or (above != folder and self._is_result(above))
        return self._results[folder]

    def takes(self, path: str) -> bool:
        """Whether to take a file that was not named: by its suffix, or by its first bytes if the suffix is unknown.

        Files of other kinds are counted. For URLs only the suffix decides: each look would cost a request.
        """
        suffix = os.path.splitext(path)[1].lower()
        directory = os.path.basename(path).upper().startswith(_MEDIA_DIRECTORY[0])
        if suffix in _SUFFIXES and not directory:
            return True
        why = ""
        if suffix not in _OTHERS and not is_url(path):
            try:
                if _holds_photograph(path):
                    return True
            except OSError as error:
                why = f" ({error.strerror})"
        self.ignored[f"{suffix or 'no suffix'}{why}"] += 1
        return False

    def _folder(self, folder: str) -> None:
        folder = os.path.abspath(folder)
        if os.path.realpath(folder) == self.output:
            self.notices.append(f"{folder} is the --output itself and was left out; give another --output")
            return
        if self._is_result(folder):
            self.notices.append(f"{folder} holds results of this command and was left out")
            return
        self.bases.add(folder)
        entered, masks = {os.path.realpath(folder)}, _masks(folder)
        for top, folders, files in os.walk(folder, followlinks=True, onerror=self._unreadable):
            if "images" in folders:
                folders[:] = [name for name in folders if not self._holds_masks(os.path.join(top, name))]
            # In order, and real folders before links, so that a folder with two names always gets the same.
            inside = sorted(folders, key=lambda name, top=top: (os.path.islink(os.path.join(top, name)), name))  # type: ignore[misc]
            folders[:] = [name for name in inside if self._enter(os.path.join(top, name), entered)]
            for path in (os.path.join(top, name) for name in files if not name.startswith(".")):
                if path not in masks and self.takes(path):
                    self.put(path)
        if masks:
            self.notices.append(f"{folder} is a data set: its {len(masks)} masks are not segmented")

    def _holds_masks(self, folder: str) -> bool:
        found = holds_masks(os.path.basename(folder))
        if found:
            self.notices.append(f"{folder} {BESIDE_IMAGES}")
        return found

    def _enter(self, folder: str, entered: set[str]) -> bool:
        """Whether to go down: not into hidden folders, the output, or a folder that was entered before."""
        if os.path.basename(folder).startswith("."):
            return False
        if self._is_result(folder):
            self.notices.append(f"{folder} holds results of this command and was left out")
            return False
        place = os.path.realpath(folder)  # not its inode number: some network file systems give all files 0
        if place in entered:
            self.notices.append(f"{folder} leads to a folder that is searched already and was left out")
            return False
        entered.add(place)
        return True

    def _unreadable(self, error: OSError) -> None:
        self.notices.append(f"{error.filename} cannot be listed ({error.strerror}) and was left out")


BESIDE_IMAGES = (
    "was left out: its name says that it holds masks of the folder images next to it; if it holds photographs, name it "
    "as an input too"
)


def holds_masks(name: str) -> bool:
    """Whether a folder of this name, next to one called images, holds masks: 1st_manual, but not manual_exposure.

    Its last word, numbers aside, decides, or a first word "masks" or "labels"; "no", "not" and "without" negate.
    """
    words = [word.lower() for word in _WORD.findall(name) if not word[0].isdigit()]
    return bool(words) and (words[-1] in _MASK or words[0] in _MASKS) and not {"no", "not", "without"} & set(words)


def _holds_photograph(path: str) -> bool:
    """Whether a file holds a photograph; a DICOMDIR only lists others. Raises OSError."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb", buffering=0) as file:
        head = file.read(_HEAD)
    return is_photograph(head) and _MEDIA_DIRECTORY[1] not in head


def _masks(folder: str) -> frozenset[str]:
    """The masks of a data set whose photographs and masks share a folder; none where it is no data set."""
    try:
        samples = find_samples(folder).samples
    except (ValueError, OSError):  # the search reports what cannot be read
        return frozenset()
    labels = [sample.label for sample in samples if sample.label is not None]
    return frozenset(os.path.abspath(label) for label in labels if label.parent == samples[0].image.parent)


def _absolute(root: str) -> str:
    if not is_url(root):
        return os.path.abspath(root)
    from .urls import checked_input

    return checked_input(root)


def _common(bases: Iterable[str]) -> str:
    if any(map(is_url, bases)):
        from .urls import common

        return common(bases)
    try:
        return os.path.commonpath(sorted(bases))
    except ValueError:  # Windows: on several drives
        raise InputError("the inputs have no folder in common; give --root, or segment them into two outputs") from None


def _name(path: str, root: str) -> str:
    if is_url(path) or is_url(root):
        from .urls import name_below

        relative = name_below(path, root) or os.pardir
    else:
        relative = os.path.relpath(path, root)
    if relative == os.pardir or relative.startswith(os.pardir + os.sep):
        raise InputError(
            f"{path} lies outside of {root}, which the names in the output are relative to; "
            "give another --output, or --root with a folder above both"
        )
    return relative.replace(os.sep, "/")


def counted(ignored: Mapping[str, int]) -> str:
    """Numbers of files by suffix, in words."""
    return ", ".join(f"{count} x {suffix}" for suffix, count in sorted(ignored.items()))
