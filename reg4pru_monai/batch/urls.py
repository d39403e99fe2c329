"""What URLs among the inputs name: files and folders of object storage and web servers, by the rules of local ones."""

import glob
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING

from ..fundus.remote import REMEDY, Entry, RemoteError, UrlError, checked, find, info, infos, is_url, match
from .folder import FOLDERS
from .inputs import BESIDE_IMAGES, holds_masks
from .items import InputError
from .journal import STATE
from .manifests import MANIFEST_SUFFIXES, Line, read_manifest
from .settings import SETTINGS

if TYPE_CHECKING:
    from .inputs import _Found


class UrlInputs:
    """Puts what URLs name into what was found: its paths, with size and version, bases, ignored and notices."""

    def __init__(self, found: "_Found") -> None:
        self._found = found
        self._unasked: list[Line] = []
        self._results: dict[str, bool] = {}

    def add(self, given: str) -> None:
        """A URL that the user gave. Raises InputError."""
        url = checked_input(given)
        if given.endswith("/"):  # web servers do not say which of their files are folders
            return self._folder(url)
        try:
            with _reached(url):
                entry = info(url)
        except FileNotFoundError:
            if not self._glob(url):
                raise InputError(f"{url}: no such file or folder, and no file matches it; check the address") from None
            return
        if entry.folder:
            self._folder(url)
        elif url.lower().endswith(MANIFEST_SUFFIXES):
            for line in read_manifest(url):
                self._found.line(line)
        else:
            self._file(entry)

    def line(self, given: str, angle: float | None) -> None:
        """A URL in a manifest. A file that is not there is listed, and fails by itself. Raises InputError."""
        url = checked_input(given)
        if given.endswith("/"):
            self._folder(url)
        elif not glob.has_magic(url) or not self._glob(url):
            self._unasked.append(Line(url, angle))

    def ask(self) -> None:
        """Find size and version of the files that no listing told of. Raises InputError."""
        unasked = [*self._unasked, *(Line(url) for url, status in self._found.paths.items() if status == (0, 0))]
        urls = [line.path for line in unasked]
        with _reached(", ".join(urls[:1])):
            for (url, angle), entry in zip(unasked, infos(urls), strict=True):
                with self._found.told(angle):
                    if entry is not None and entry.folder:
                        self._folder(url)
                    else:
                        self._file(entry or Entry(url, False, None, 0))

    def _file(self, entry: Entry) -> None:
        self._found.put(entry.url, entry.status)
        self._found.bases.add(above(entry.url))

    def _glob(self, pattern: str) -> bool:
        """Whether anything matches."""
        if not glob.has_magic(pattern):
            return False
        with _reached(pattern):
            matches = match(pattern)
        searched = ""
        for url in (entry.url for entry in matches if entry.folder):
            if not searched or not url.startswith(below(searched)):
                self._folder(url)
                searched = url
        shown = pattern.count("/.")
        for entry in (entry for entry in matches if not entry.folder and entry.url.count("/.") <= shown):
            if not self._is_result(above(entry.url)) and self._found.takes(entry.url):
                self._file(entry)
        return bool(matches)

    def _folder(self, url: str) -> None:
        try:
            with _reached(url):
                files = {entry.url[len(below(url)) :]: entry.status for entry in find(url)}
        except FileNotFoundError:
            raise InputError(f"{url}: no such folder; check the address") from None
        tree = _Tree(url, files)
        if self._is_result(url) or "" in tree.left_out:
            self._found.notices.append(f"{url} holds results of this command and was left out")
            return
        self._found.bases.add(url)
        self._found.notices.extend(tree.notices())
        unnamed = 0
        for name, status in files.items():
            folder, _, last = name.rpartition("/")
            if "//" in f"/{name}":
                unnamed += 1
            elif not last.startswith(".") and tree.enters(folder) and self._found.takes(below(url) + name):
                self._found.put(below(url) + name, status)
        if unnamed:
            self._found.notices.append(f"{url} has {unnamed} keys with an empty part (//), which were left out")

    def _is_result(self, folder: str) -> bool:
        """Whether a folder lies in one that holds results, as far as the names of folders in those tell."""
        parts = folder.split("/")
        outputs = ("/".join(parts[:index]) for index in range(3, len(parts)) if parts[index] in (STATE, *FOLDERS))
        return any(self._holds_results(each) for each in outputs)

    def _holds_results(self, folder: str) -> bool:
        if folder not in self._results:
            try:
                info(f"{folder}/{SETTINGS}")
                self._results[folder] = True
            except OSError:
                self._results[folder] = False
        return self._results[folder]


class _Tree:
    """The folders of a listing. left_out: those that are not entered, and why."""

    def __init__(self, url: str, files: Iterable[str]) -> None:
        self._url = url
        self._folders: dict[str, bool | None] = {"": True}
        for name in files:
            folder = name.rpartition("/")[0]
            while folder not in self._folders:
                self._folders[folder] = None
                folder = folder.rpartition("/")[0]
        self.left_out: dict[str, str] = {}
        for folder in self._folders:
            parent, _, last = folder.rpartition("/")
            if last == STATE:
                self.left_out[parent] = "holds results of this command and was left out"
            elif holds_masks(last) and posixpath.join(parent, "images") in self._folders:
                self.left_out.setdefault(folder, BESIDE_IMAGES)

    def enters(self, folder: str) -> bool:
        """Whether files in a folder count: it is not hidden, nor left out, nor any above it."""
        known = self._folders[folder]
        if known is None:
            parent, _, last = folder.rpartition("/")
            known = not last.startswith(".") and folder not in self.left_out and self.enters(parent)
            self._folders[folder] = known
        return known

    def notices(self) -> Iterator[str]:
        """A sentence for each folder that is left out by itself."""
        for folder, why in sorted(self.left_out.items()):
            parent, _, last = folder.rpartition("/")
            if not last.startswith(".") and self.enters(parent):
                yield f"{below(self._url)}{folder} {why}"


def checked_input(url: str) -> str:
    """See :func:`checked`. Raises InputError."""
    try:
        return checked(url)
    except UrlError as error:
        raise InputError(str(error)) from None


def common(bases: Iterable[str]) -> str:
    """The deepest folder above all of them. Raises InputError where some are elsewhere."""
    servers = {"/".join(base.split("/")[:3]) if is_url(base) else "": base for base in sorted(bases)}
    if len(servers) > 1:
        one, other = list(servers.values())[:2]
        raise InputError(f"the inputs have no folder in common: {one} and {other}; segment them into two outputs")
    parts = [base.split("/") for base in bases]
    pairs = zip(min(parts), max(parts), strict=False)
    return "/".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def below(folder: str) -> str:
    """What the URLs of all files in a folder begin with."""
    return folder if folder.endswith("/") else f"{folder}/"


def above(url: str) -> str:
    """The folder of a file."""
    folder = url.rpartition("/")[0]
    return folder if "://" in folder else f"{folder}/"


def name_below(url: str, root: str) -> str | None:
    """The path of a URL below a root; None where it lies elsewhere."""
    return url[len(below(root)) :] if url.startswith(below(root)) else None


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Let a listing that fails name its URL: InputError."""
    try:
        yield
    except RemoteError as error:
        raise InputError(f"{url} cannot be listed: {error}; {REMEDY}") from error
