"""The output folder as a whole: earlier results put aside, remains of killed runs removed."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..files import is_leftover
from .archives import ARCHIVES
from .journal import STATE
from .locks import locked
from .names import OutputError
from .settings import is_claimed
from .writers import PLACES

logger = logging.getLogger(__name__)

FOLDERS = (*(folder for folder, _ in PLACES.values()), ARCHIVES)
TABLES = ("results.csv", "results.parquet", "errors.csv", "run.json", "report.html")


def check_output(output: Path) -> None:
    """Raises OutputError where results could not be written into the folder, as far as that is seen beforehand."""
    above = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        raise OutputError(f"{above} is in the way: it is no folder; give another --output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{above} cannot be written to; give another --output, or change its permissions")
    real = os.path.realpath(output)
    for path in (output / name for name in (STATE, *FOLDERS)):
        target = os.path.realpath(path)
        if path.is_symlink() and os.path.commonpath((target, real)) != real:
            raise OutputError(
                f"{path} would lie outside of the output folder: it is a link to {target}; remove the link"
            )


def put_aside(output: Path, own_lock: str) -> None:
    """Move the results of earlier runs, and nothing else, into ``earlier/<time>``. Raises LockedError, OSError."""
    if not is_claimed(output):
        return  # nothing there is ours
    with _alone(output, own_lock):
        target = output / "earlier" / time.strftime("%Y%m%dT%H%M%S")
        state = [path for path in (output / STATE).iterdir() if path.suffix != ".lock"]
        for path in [*(output / name for name in (*FOLDERS, *TABLES)), *state]:
            if path.exists():
                place = target / path.relative_to(output)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
        logger.info("earlier results: %s", target)


@contextmanager
def _alone(output: Path, own_lock: str) -> Iterator[None]:
    """Beside the lock that is held, hold those of all other shards. Raises LockedError while one of them is at work."""
    with ExitStack() as held:
        for path in (output / STATE).glob("shard-*.lock"):
            if path.stem != own_lock:
                held.enter_context(locked(output, path.stem, mark=False))
        yield


def sweep(output: Path) -> None:
    """Remove what killed runs left half-written."""
    for folder in (output, output / STATE, *(output / name for name in FOLDERS), output / STATE / "thumbnails"):
        for path in folder.glob(".*") if folder in (output, output / STATE) else folder.rglob(".*"):
            if is_leftover(path):
                path.unlink(missing_ok=True)
