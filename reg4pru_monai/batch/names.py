"""Where the results of a photograph lie: names that cannot collide, and never outside of the output folder."""

import hashlib
import os
import re
from pathlib import Path

LONGEST = 200  # bytes of one part of a path: file systems allow 255, and something is put behind
_FRAMES = "~frames"

# Endings that are given out here, and the beginning of files being written (see files.replacing).
_RESERVED = re.compile(rf".*~([0-9a-f]{{16}}|{_FRAMES[1:]})|\.[0-9a-f]{{8}}-\d+-.*", re.IGNORECASE | re.DOTALL)


class OutputError(OSError):
    """An output that cannot be written where it belongs."""


def output_name(kind: str, name: str, suffix: str, frame: int | None = None) -> str:
    """``kind/name + suffix``, e.g. masks/left/eye.jpg.png; with a frame, masks/left/eye.dcm~frames/2.png.

    Different names and frames give different paths, none of which is a folder of another one: the suffix is added to
    the whole name, so that a.jpg and a.png differ, and a part of a path that is too long for a file system, a folder
    that ends like a result, and a part that looks like a name made here are given a hash of the whole as their end.
    """
    *folders, last = name.split("/")
    parts = [_part(folder, taken=folder.lower().endswith(suffix)) for folder in folders]
    parts += [_part(last) + suffix] if frame is None else [_part(last) + _FRAMES, f"{frame}{suffix}"]
    return "/".join((kind, *parts))


def sample_name(name: str, frame: int | None = None) -> str:
    """The key of a photograph or a frame in an archive: as in output_name, without dots, where WebDataset ends keys.

    They become %2E, and per cent signs %25, so that the name can be told back.
    """
    *folders, last = name.split("/")
    parts = [_part(folder) for folder in folders]
    parts += [_part(last)] if frame is None else [_part(last) + _FRAMES, str(frame)]
    return "/".join(parts).replace("%", "%25").replace(".", "%2E")


def path_within(output: Path, name: str) -> Path:
    """The path of a name in the output folder. Raises OutputError where links inside of it lead out of it."""
    path = output / name
    parent = os.path.realpath(path.parent)
    if os.path.commonpath((parent, os.path.realpath(output))) != os.path.realpath(output):
        raise OutputError(f"{path} would lie outside of the output folder: a link leads to {parent}; remove the link")
    return path


def _part(part: str, taken: bool = False) -> str:
    """The part of a path as it is where that is safe. taken: a result may have this name."""
    data = os.fsencode(part)
    if len(data) <= LONGEST and not taken and not _RESERVED.fullmatch(part):
        return part
    beginning = data[: LONGEST - 17].decode("utf-8", "ignore")  # without half a character at its end
    return beginning + "~" + hashlib.sha256(data).hexdigest()[:16]
