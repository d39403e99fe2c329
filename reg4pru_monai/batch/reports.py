"""Tables and report of everything in an output folder, whichever run or shard made it."""

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from .inputs import Listing
from .journal import Record, locked, read_journals
from .report import write_report
from .rows import COLUMNS
from .settings import Settings
from .status import present_records
from .tables import errors, rows, write_tables
from .work import thumbnail_path


def versions() -> dict[str, str]:
    """Of this package and those that results depend on."""
    names = ("torch", "monai", "numpy", "scipy", "scikit-image", "skan", "pillow", "imagecodecs", "tifffile")
    return {
        "reg4pru-monai": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def write_reports(output: Path, listing: Listing, settings: Settings, parquet: bool) -> None:
    """Write them. Raises OSError."""
    with locked(output, "reports", wait=True):  # so that the last shard to finish sees all
        records = present_records(output, settings.digest, listing.root)
        runs = [{**run.header, "end": run.end} for run, _ in read_journals(output)]
        counts = Counter(record.status for record in records)
        run = {
            "settings": settings.to_dict(),
            "settings_digest": settings.digest,
            "root": listing.root,
            "counts": {"listed": len(listing.items), "done": counts["done"], "failed": counts["failed"]},
            "ignored": listing.ignored,
            "notices": listing.notices,
            "runs": runs,
        }
        write_tables(output, records, run, parquet)
        _write_report(output, records, run)


def _write_report(output: Path, records: Sequence[Record], run: dict[str, Any]) -> None:
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
        ("Not done yet", f"{max(counts['listed'] - counts['done'] - counts['failed'], 0):,}"),
        ("Computing time, all runs", f"{spent:,.0f} s"),
        ("Photographs per second", f"{finished / spent:.2f}" if spent else ""),
        ("Last run began", runs[-1]["started"]),
        ("Device", runs[-1]["device"]),
        ("Weights", run["settings"]["weights"][:16]),
    ]
    settings = {**run["settings"], "versions": runs[-1]["versions"], "root": run["root"]}
    write_report(
        output / "report.html",
        "Vessel segmentation",
        summary,
        settings,
        lambda: ({"name": row["path"], **row} for row in rows(records)),
        COLUMNS,
        lambda: ({"name": row["path"], **row} for row in errors(records)),
        thumbnail,
        run["notices"],
    )
