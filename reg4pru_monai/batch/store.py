"""Where the outputs of photographs go: into the output folder, or onto object storage (fsspec)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..files import replacing
from ..fundus.remote import filesystem, reaching
from .archives import is_archive
from .failures import naming
from .journal import STATE
from .names import path_within
from .settings import Settings, SettingsError

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

    def claim(self, settings: Settings) -> None:
        """Take it for results of these settings; so it is known beforehand that it can be written to.

        Raises SettingsError where it holds results of others, WriteError.
        """
        name, ours = f"{STATE}/settings.txt", settings.digest.encode()
        with naming(self.url), reaching():
            files, path = filesystem(f"{self.url}/{name}")
            found = files.cat_file(path) if files.exists(path) else ours
        if found != ours:
            raise SettingsError(
                f"{self.url} holds results of other settings, and those of different settings are not mixed: give "
                "another --store"
            )
        self.put(name, ours)

    def put(self, name: str, data: bytes) -> None:
        """See Store. Raises WriteError, as no other output would fare better: drivers try again by themselves."""
        url = f"{self.url}/{name}"
        with naming(url), reaching():
            files, path = filesystem(url)
            files.pipe_file(path, data)

    def publish(self, output: Path, names: Sequence[str]) -> None:
        """Copy files of the output folder, those that are there. Raises WriteError."""
        for name in names:
            url = f"{self.url}/{name}"
            if (output / name).is_file():
                with naming(url), reaching():
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
            with naming(url), reaching():
                self._listed[folder] = _list(*filesystem(url))
        return self._listed[folder]


def _list(files: Any, folder: str) -> dict[str, int]:
    """Sizes of what lies in a folder, by name."""
    files.invalidate_cache()
    try:
        return {os.path.basename(each["name"]): each["size"] for each in files.ls(folder, detail=True)}
    except FileNotFoundError:
        return {}


def store_of(output: Path, url: str | None) -> FolderStore | ObjectStore:
    """Where the outputs of an output folder go. url: of object storage, or None."""
    return FolderStore(output) if url is None else ObjectStore(url)
