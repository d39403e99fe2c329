"""Why a photograph could not be segmented, and what its owner can do about it."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..fundus.io import FundusReadError
from ..fundus.remote import REMEDY
from ..runtime import root_cause
from .columns import Column
from .dicom import INSTALL
from .inputs import Item
from .names import OutputError

# Of the output folder or the machine, not of one photograph. Some do not exist on every system.
_NAMES = "ENOSPC EDQUOT EROFS EACCES EPERM EIO ENOTCONN ESTALE EMFILE ENFILE ETIMEDOUT EHOSTDOWN ENODEV ENXIO EFBIG"
FATAL = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))

COLUMNS = (
    Column("path", "", "The file, relative to the root folder.", str),
    Column(
        "stage", "", "What was being done: read, prepare, network, measure or write; process where that ended.", str
    ),
    Column("type", "", "The kind of the exception.", str),
    Column("message", "", "What went wrong.", str),
    Column("remedy", "", "What to do about it.", str),
)


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class StageError(Exception):
    """A failure of one photograph at one stage. cause: the first error, without what MONAI wrapped around it."""

    def __init__(self, stage: str, error: BaseException) -> None:
        self.stage = stage
        self.cause = root_cause(error)
        super().__init__(f"{stage}: {self.cause!r}")


class NetworkError(RuntimeError):
    """The network returned values that are no numbers."""


class DeviceError(RuntimeError):
    """The device stopped working, and no other photograph would fare better."""


class ProcessEndedError(RuntimeError):
    """The process ended, as when the system kills it for its memory, each time while it worked on one file alone."""


class ClusterError(RuntimeError):
    """The Ray cluster cannot be reached, or broke down as a whole."""


class WriteError(OSError):
    """The output folder cannot be written to, which no other photograph would survive either."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of what is done within say which path cannot be written: WriteError."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            error.errno,
            f"{path} cannot be written: {error.strerror or error}; make room for it or mend that, then give the same "
            "command again: results are kept",
        ) from error


def error_row(item: Item, stage: str, error: BaseException) -> dict[str, Any]:
    """The row of errors.csv."""
    message = _halves(error)[0]
    first = message.strip().splitlines()[0][:500] if message.strip() else type(error).__name__
    return {
        "path": item.name,
        "stage": stage,
        "type": type(error).__name__,
        "message": first,
        "remedy": remedy(stage, error),
    }


def _halves(error: BaseException) -> tuple[str, str]:
    """What went wrong, and what an error of ours says behind its last semicolon about what to do; "" where nothing."""
    if isinstance(error, OutputError):
        message, _, tail = str(error).rpartition("; ")
        return message, tail
    if not isinstance(error, FundusReadError):
        return str(error) or repr(error), ""
    message, _, tail = error.reason.rpartition("; ")
    return (message, tail) if message else (tail, "")


_UNDECODED = "cannot be decoded: it is truncated or damaged"
_GONE = (
    "Look whether it was moved or its disk or network share is gone; if it is a link, whether it leads anywhere. Then "
    "run again."
)
_BYTES = re.compile("[\udc80-\udcff]")  # of a name that is not UTF-8
_NOT_UTF8 = (
    "Its name is not UTF-8. If a manifest names it, save the manifest as UTF-8 (Excel: CSV UTF-8); if none does, check "
    "whether it was moved. Then run again."
)
_FORBIDDEN = "Let yourself read it and enter its folders (chmod, or ask its owner), then run again."
_UNREACHABLE = "Check the disk or the network share it lies on, then run again."
_DAMAGED = "Copy or export it again; if a viewer shows it whole, save it there as PNG and segment that."
_LESS_MEMORY = "Give --batch-size 1, fewer --workers or a smaller --max-pixels, or use a machine with more memory."
# What the reason of a FundusReadError says, and what helps; the first that fits.
_READING = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        ("^is empty", "Copy or download it again: its content never arrived."),
        ("^no such file", _GONE),
        (f"^cannot be opened: .*{REMEDY}", f"{REMEDY.capitalize()}, then run again."),
        ("^cannot be opened: (Permission|Operation not)", _FORBIDDEN),
        ("^cannot be opened", _UNREACHABLE),
        ("^is a folder or a special file", "Leave it out of the inputs; of a folder, give the photographs in it."),
        (
            "^is not JPEG",
            "Open it in a program that knows it and save it as PNG or TIFF; if it is no photograph, leave it out.",
        ),
        ("^is DICOM but not a photograph", "Leave it out of the inputs, or give the photographs of the same study."),
        ("TIFF colour space", "Save it as RGB, as TIFF or PNG."),
        (
            "floating-point values",
            "Save it with values from 0 to 1, none of them missing, or with 8 or 16 bit integers.",
        ),
        ("COMPRESSION", "Save it without compression, as TIFF or PNG."),
        (r"^has a PhotometricInterpretation .* not read", "Export it again as RGB or MONOCHROME2."),
        ("^has another number of", "Export it again, uncompressed."),
        ("^is DICOM, which needs pydicom", f"Install pydicom: {INSTALL}"),
        (f"^{_UNDECODED}", _DAMAGED),
        ("^has [0-9]+ MiB, more", "A photograph is seldom so large; if it is one, give a larger --max-pixels."),
    )
)
_SIZE = re.compile(r"^has (?:(\d+) frames of )?(\d+) x (\d+) pixels, more than (?:(\d+) times )?max_pixels")


def remedy(stage: str, error: BaseException) -> str:
    """What helps, one or two sentences."""
    if isinstance(error, FundusReadError):
        return _reading_remedy(error)
    if is_out_of_memory(error):
        return _LESS_MEMORY
    if isinstance(error, ProcessEndedError):
        return "Segment it by itself on a machine with more memory, or with a smaller --max-pixels."
    if isinstance(error, NetworkError):
        return "Look at the photograph; if it is normal, report it: the weights may be damaged (see run.json)."
    if isinstance(error, OSError):
        return _writing_remedy(error) if stage == "write" else _file_remedy(error)
    return "Run again; if it fails again, report it with this line and run.json."


def _reading_remedy(error: FundusReadError) -> str:
    if size := _SIZE.match(error.reason):
        frames, width, height, times = (int(group or 1) for group in size.groups())
        needed = -(-frames * width * height // times)
        return f"If it really is that large and memory suffices, give --max-pixels {needed}; if not, leave it out."
    for pattern, text in _READING:
        if pattern.search(error.reason):
            return text
    return _sentence(_halves(error)[1]) or _DAMAGED


def _file_remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return _NOT_UTF8 if _BYTES.search(str(error.filename)) else _GONE
    return _FORBIDDEN if isinstance(error, PermissionError) else _UNREACHABLE


def _writing_remedy(error: OSError) -> str:
    if isinstance(error, OutputError):
        return _sentence(_halves(error)[1])
    if error.errno == errno.ENAMETOOLONG:
        return "Give an --output with a shorter path, or a --root further down."
    return "Look at what lies at that place in the output folder and move it away, then run again."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether a GPU failed for good: after such an error every further call fails."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def is_fatal(error: BaseException) -> bool:
    """Whether an error of writing concerns the output folder, not the photograph."""
    return isinstance(error, OSError) and error.errno in FATAL
