"""Where the outputs of photographs go: into the output folder, or onto object storage (fsspec)."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ..files import replacing
from ..fundus.remote import REMEDY, filesystem, listing, reaching
from .archives import is_archive
from .failures import WriteError
from .journal import STATE
from .names import OutputError, path_within
from .settings import SETTINGS, Settings, SettingsError, create_once

_FOLDERS = 16  # whose lists are remembered: photographs come in the order of their names


class Store(Protocol):
    """Takes outputs by name, such as masks/left/eye.jpg.png."""

    def put(self, name: str, data: bytes) -> None:
        """Keep an output, complete or not at all. Raises OSError."""

    def holds(self, outputs: Mapping[str, int]) -> bool:
        """Whether all of these are there, with these sizes in bytes."""


class FolderStore:
    """The output folder. Of archives, which grow, the sizes are those that they have at least."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def put(self, name: str, data: bytes) -> None:
        """See Store. Raises OutputError where links lead out of the folder."""
        with replacing(path_within(self.output, name)) as beside:
            beside.write_bytes(data)

    def holds(self, outputs: Mapping[str, int]) -> bool:
        """See Store."""
        try:
            return all(self._has(name, size) for name, size in outputs.items())
        except OSError:
            return False

    def _has(self, name: str, size: int) -> bool:
        found = os.stat(self.output / name).st_size
        return found >= size if is_archive(name) else found == size


class ObjectStore:
    """A folder of object storage. What it holds is listed once, folder by folder, when somebody asks."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._listed: dict[str, dict[str, int]] = {}

    def claim(self, output: Path, settings: Settings) -> None:
        """Take it for the results of an output folder; so it is known beforehand that it can be written to.

        Raises SettingsError where it holds those of another folder or of other settings, WriteError.
        """
        create_once(output / STATE / "store.json", {"folder": uuid.uuid4().hex})
        folder = json.loads((output / STATE / "store.json").read_text(encoding="utf-8"))["folder"]
        ours = {"digest": settings.digest, "folder": folder}
        url = f"{self.url}/{SETTINGS}"
        with _asked(url, "read"):
            files, path = filesystem(url)
            found = files.cat_file(path) if files.exists(path) else None
        if found is None:
            self.put(SETTINGS, json.dumps(ours).encode())
        elif json.loads(found) != ours:
            raise SettingsError(
                f"{self.url} holds results of another --output, or of other settings, which are not mixed: give "
                "another --store and another --output"
            )

    def put(self, name: str, data: bytes) -> None:
        """See Store. Raises OutputError for a name that no object can have.

        Raises WriteError for all else, as no other output would fare better: drivers try again by themselves.
        """
        try:
            name.encode()
        except UnicodeEncodeError:
            raise OutputError(
                f"{name!r} is not UTF-8, as names of objects must be; rename the photograph, then run again"
            ) from None
        url = f"{self.url}/{name}"
        with _asked(url, "written"):
            files, path = filesystem(url)
            files.pipe_file(path, data)

    def publish(self, output: Path, names: Sequence[str]) -> None:
        """Copy files of the output folder, those that are there. Raises WriteError."""
        for name in names:
            url = f"{self.url}/{name}"
            if (output / name).is_file():
                with _asked(url, "written"):
                    files, path = filesystem(url)
                    files.put_file(str(output / name), path)

    def holds(self, outputs: Mapping[str, int]) -> bool:
        """See Store. Raises WriteError where it cannot be asked."""
        return all(self._sizes(os.path.dirname(name)).get(os.path.basename(name)) == outputs[name] for name in outputs)

    def _sizes(self, folder: str) -> dict[str, int]:
        if folder not in self._listed:
            if len(self._listed) >= _FOLDERS:
                self._listed.pop(next(iter(self._listed)))
            url = f"{self.url}/{folder}"
            with _asked(url, "listed"):
                self._listed[folder] = _list(url)
        return self._listed[folder]


def _list(url: str) -> dict[str, int]:
    """Sizes of what lies in a folder, by name."""
    try:
        with listing(url) as (files, folder):
            return {os.path.basename(each["name"]): each["size"] for each in files.ls(folder, detail=True)}
    except FileNotFoundError:
        return {}


@contextmanager
def _asked(url: str, what: str) -> Iterator[None]:
    """Let whatever a driver raises name the URL, and what could not be done with it: WriteError."""
    try:
        with reaching():
            yield
    except OSError as error:
        raise WriteError(
            f"{url} cannot be {what}: {error}; {REMEDY}, then give the same command again: results are kept"
        ) from error


def store_of(output: Path, url: str | None) -> FolderStore | ObjectStore:
    """Where the outputs of an output folder go. url: of object storage, or None."""
    return FolderStore(output) if url is None else ObjectStore(url)
