"""Why a photograph could not be segmented, and what its owner can do about it."""

import errno
from typing import Any

import torch

from ..fundus.io import FundusReadError
from ..runtime import root_cause
from .columns import Column
from .inputs import Item

# Of the output folder or the machine, not of one photograph. Some do not exist on every system.
_NAMES = "ENOSPC EDQUOT EROFS EACCES EPERM EIO ENOTCONN ESTALE EMFILE ENFILE ETIMEDOUT EHOSTDOWN ENODEV ENXIO EFBIG"
FATAL = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))

COLUMNS = (
    Column("path", "", "The file, relative to the root folder."),
    Column("stage", "", "What was being done: read, prepare, network, measure or write; process where that ended."),
    Column("type", "", "The kind of the exception."),
    Column("message", "", "What went wrong."),
    Column("remedy", "", "What to do about it."),
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


class WriteError(OSError):
    """The output folder cannot be written to, which no other photograph would survive either."""


def error_row(item: Item, stage: str, error: BaseException) -> dict[str, Any]:
    """The row of errors.csv."""
    message = error.reason if isinstance(error, FundusReadError) else str(error) or repr(error)
    first = message.strip().splitlines()[0][:500] if message.strip() else type(error).__name__
    return {
        "path": item.name,
        "stage": stage,
        "type": type(error).__name__,
        "message": first,
        "remedy": remedy(stage, error),
    }


def remedy(stage: str, error: BaseException) -> str:
    """What helps, one sentence."""
    if isinstance(error, FundusReadError):
        return "Open the file in a viewer; if it is damaged there too, copy or export it again, then run again."
    if is_out_of_memory(error):
        return "Give --batch-size 1, fewer --workers or a smaller --max-pixels, or use a machine with more memory."
    if isinstance(error, ProcessEndedError):
        return "Segment it by itself on a machine with more memory, or with a smaller --max-pixels."
    if isinstance(error, NetworkError):
        return "Look at the photograph; if it is normal, report it: the weights may be damaged (see run.json)."
    if isinstance(error, OSError):
        return "Check that the file and its folder are still there and can be read, then run again."
    return "Run again; if it fails again, report it with this line and run.json."


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
