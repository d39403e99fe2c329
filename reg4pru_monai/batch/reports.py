"""Tables and report of everything in an output folder, whichever run or shard made it."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from .failures import naming
from .folder import TABLES
from .inputs import Listing, counted
from .locks import locked
from .report import write_report
from .rows import COLUMNS, doubtful_fields
from .settings import Settings
from .status import Status, read_status
from .store import ObjectStore, store_of
from .tables import errors, rows, write_tables
from .work import thumbnail_path

_READABLE = str.maketrans({"T": " ", "Z": " UTC"})  # of 2030-01-31T12:00:00Z


def versions() -> dict[str, str]:
    """Of this package and those that results depend on."""
    names = ("torch", "monai", "numpy", "scipy", "scikit-image", "pillow", "imagecodecs", "tifffile")
    return {
        "reg4pru-monai": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def write_reports(output: Path, listing: Listing, settings: Settings, parquet: bool) -> None:
    """Write them. Raises WriteError."""
    # One at a time, so that the last shard to finish sees all.
    with naming(output), locked(output, "reports", wait=True), read_status(output) as status:
        run = {
            "settings": settings.to_dict(),
            "settings_digest": settings.digest,
            "root": listing.root,
            "counts": {
                "listed": status.listed,
                "done": status.done,
                "failed": status.failed,
                "missing": status.missing,
            },
            "ignored": listing.ignored,
            "notices": listing.notices,
            "runs": [{**each.header, "end": each.end} for each in status.which.runs],
        }
        doubtful = write_tables(output, status.which.records, status.which.failures, run, parquet)
        with naming(output / "report.html"):
            _write_report(output, status, run, doubtful)
        store = store_of(output, settings.store)
        if isinstance(store, ObjectStore):
            store.publish(output, TABLES)


def _write_report(output: Path, status: Status, run: dict[str, Any], doubtful: int) -> None:
    def thumbnail(name: str) -> bytes | None:
        path = thumbnail_path(output, name)
        return path.read_bytes() if path.is_file() else None

    counts, runs = run["counts"], run["runs"]
    spent = sum((each["end"] or {}).get("seconds", 0.0) for each in runs)
    finished = sum((each["end"] or {}).get("done", 0) for each in runs)
    summary = [
        ("Photographs", f"{counts['listed']:,}"),
        ("Done", f"{counts['done']:,}"),
        ("Failed", f"{counts['failed']:,}"),
        ("Not done yet", f"{counts['missing']:,}"),
        ("Computing time, all runs", duration(spent)),
        ("Photographs per second", f"{finished / spent:.2f}" if spent else ""),
        ("Last run began", runs[-1]["started"].translate(_READABLE)),
        ("Device", runs[-1]["device"]),
        ("Weights", run["settings"]["weights"][:16]),
    ]
    ignored = [f"files of other kinds were ignored: {counted(run['ignored'])}"] if run["ignored"] else []
    notices = [doubtful_fields(doubtful)] if doubtful else []
    notices = [*notices, *run["notices"], *ignored]
    settings = {**run["settings"], "versions": runs[-1]["versions"], "root": run["root"]}
    write_report(
        output / "report.html",
        "Vessel segmentation",
        summary,
        settings,
        lambda: ({"name": row["path"], **row} for row in rows(status.which.records())),
        COLUMNS,
        lambda: ({"name": row["path"], **row} for row in errors(status.which.failures())),
        thumbnail,
        notices,
        missing=counts["missing"],
    )


def duration(seconds: float) -> str:
    """Two units at most, e.g. 3 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
