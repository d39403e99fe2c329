"""Where the results of a photograph lie: names that cannot collide, and never outside of the output folder."""

import hashlib
import os
from pathlib import Path

LONGEST = 200  # bytes of one part of a path: file systems allow 255, and something is put behind


class OutputError(OSError):
    """An output that cannot be written where it belongs."""


def output_path(output: Path, kind: str, name: str, suffix: str) -> Path:
    """``output/kind/name + suffix``, e.g. masks/left/eye.jpg.png.

    The suffix is added to the whole name, so that a.jpg and a.png differ. A part that is too long for a file system
    is cut and ends with a hash of the whole. Raises OutputError where links inside the output folder lead out of it.
    """
    *folders, last = name.split("/")
    path = Path(output, kind, *map(_short, folders), _short(last) + suffix)
    parent = os.path.realpath(path.parent)
    if os.path.commonpath((parent, os.path.realpath(output))) != os.path.realpath(output):
        raise OutputError(f"{path} would lie outside of the output folder: a link leads to {parent}; remove the link")
    return path


def _short(part: str) -> str:
    data = os.fsencode(part)
    if len(data) <= LONGEST:
        return part
    beginning = data[: LONGEST - 17].decode("utf-8", "ignore")  # without half a character at its end
    return beginning + "~" + hashlib.sha256(data).hexdigest()[:16]
