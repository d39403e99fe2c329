"""One file to segment, and the error of inputs that name none."""

import os
from typing import NamedTuple

from ..fundus.remote import is_url


class InputError(ValueError):
    """Inputs that name nothing, or nothing that can be listed."""


class Item(NamedTuple):
    """One file to segment. name: its path below the root, with "/"; identifies it in every output.

    path: absolute, or a URL. listed: of a URL, its status when it was listed; then the angle of view, in degrees, where
    its manifest tells it. One field for both, as a million items are held and most know neither.
    """

    name: str
    path: str
    listed: tuple[int, int] | tuple[int, int, float] | None = None

    @property
    def angle(self) -> float | None:
        """Of view, in degrees, as its manifest tells; None where it does not."""
        return self.listed[2] if self.listed is not None and len(self.listed) == 3 else None

    def status(self) -> tuple[int, int]:
        """Size in bytes and time of change in ns, by which a file is known again; of a URL as Entry.status has it.

        (0, 0) for a URL of which nothing is known. Raises OSError, and ValueError for a path with a NUL.
        """
        if is_url(self.path):
            size, version = (self.listed or (0, 0))[:2]
            return size, version
        found = os.stat(self.path)
        return found.st_size, found.st_mtime_ns
