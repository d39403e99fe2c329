"""What a million photographs cost beside segmenting them: listing, sharding, journal, resuming, status and tables.

python docs/measure/million_rows.py [--count 1000000] [--folder runs/million_rows]

The photographs are a few bytes each, hard links to a hundred files, and their results are written straight into the
journal, with made-up values in all columns. Each step runs in a process of its own; its processor time, wall time and
the largest memory it held are printed. Half of the photographs are done, the rest are missing.
"""

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reg4pru_monai.batch.agenda import make_agenda
from reg4pru_monai.batch.command import status
from reg4pru_monai.batch.index import Index
from reg4pru_monai.batch.inputs import list_inputs, shard
from reg4pru_monai.batch.journal import Journal, Record
from reg4pru_monai.batch.rows import COLUMNS
from reg4pru_monai.batch.settings import STATE
from reg4pru_monai.batch.status import save_listing
from reg4pru_monai.batch.tables import write_tables

SETTINGS = "0" * 64
LINKS = 10_000  # to one file; file systems allow 65,000
SHARDS = 20
VALUES = {str: "a" * 12, int: 1234, float: 0.123456789012345}


def photographs(folder: Path, count: int) -> Path:
    """The files, and a manifest that names them."""
    for number in range(count):
        path = folder / "photographs" / f"{number // 1000:04}" / f"photograph_{number:07}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        if number % LINKS == 0:
            path.write_bytes(b"a photograph")
            first = path
        else:
            os.link(first, path)
    manifest = folder / "manifest.csv"
    with open(manifest, "w") as file:
        file.write("path\n")
        file.writelines(f"photographs/{n // 1000:04}/photograph_{n:07}.jpg\n" for n in range(count))
    return manifest


def journal(folder: Path, count: int) -> None:
    """Half of them done, one in a thousand failed."""
    output = folder / "results"
    with patch("reg4pru_monai.batch.journal.os.fsync"):  # of the disk, not of what is measured here
        written = Journal(output, {"settings": SETTINGS, "shard": "1/1", "own": count, "started": "", "device": ""})
        for number in range(0, count, 2):
            name = f"{number // 1000:04}/photograph_{number:07}.jpg"
            written.begin(name, alone=False)
            written.add(_record(folder / "photographs" / name, name, failed=number % 1000 == 0))
        written.close(done=count // 2, failed=0, seconds=1.0)
    claim = {"settings": {}, "digest": SETTINGS, "root": str((folder / "photographs").absolute())}
    (output / STATE / "settings.json").write_text(json.dumps(claim))


def _record(path: Path, name: str, failed: bool) -> Record:
    found = path.stat()
    if failed:
        error = {
            "path": name,
            "stage": "read",
            "type": "FundusReadError",
            "message": "is damaged",
            "remedy": "Copy it.",
        }
        row = {"path": name, "status": "failed"}
        return Record(name, "failed", found.st_size, found.st_mtime_ns, [row], error, {})
    row = {column.name: VALUES[column.kind] for column in COLUMNS} | {"path": name, "status": "done"}
    return Record(name, "done", found.st_size, found.st_mtime_ns, [row], None, {})


def steps(folder: Path, manifest: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each by its name."""
    output = folder / "results"

    def listed() -> Any:
        return list_inputs([manifest], output, str(folder / "photographs"))

    def resumed() -> int:
        items = listed().items
        with Index(output, SETTINGS) as index:
            return len(make_agenda(index, items, moved=False))

    def tables() -> None:
        with Index(output, SETTINGS) as index:
            write_tables(output, index.records, index.failures, {})

    yield "list the manifest", lambda: len(listed().items)
    yield f"list it, take shard 1 of {SHARDS}", lambda: len(shard(listed().items, 1, SHARDS))
    yield "list it, remember the list", lambda: save_listing(output, (item.name for item in listed().items))
    yield "list it, find what is left to do", resumed
    yield "status", lambda: status(output).splitlines()[0]
    yield "write results.csv and errors.csv", tables


def measured(step: Callable[[], Any]) -> tuple[float, float, float, Any]:
    """Processor seconds, wall seconds, MiB and result of a step in a process of its own."""
    receiver, sender = get_context("fork").Pipe(duplex=False)

    def run() -> None:
        started, computed = time.perf_counter(), time.process_time()
        result = step()
        spent = (time.process_time() - computed, time.perf_counter() - started)
        sender.send((*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, result))

    process = get_context("fork").Process(target=run)
    process.start()
    found: tuple[float, float, float, Any] = receiver.recv()
    process.join()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files, measure every step, print a table."""
    parser = argparse.ArgumentParser(description="A million photographs, without segmenting them.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/million_rows"))
    given = parser.parse_args(arguments)
    shutil.rmtree(given.folder, ignore_errors=True)
    manifest = photographs(given.folder, given.count)
    _, _, before, _ = measured(lambda: None)
    journal(given.folder, given.count)
    size = sum(path.stat().st_size for path in (given.folder / "results" / STATE / "journal").iterdir())
    print(f"{given.count:,} photographs, journal {size / 2**20:,.0f} MiB, {before:.0f} MiB of memory for the program\n")
    print("| step | CPU (s) | wall (s) | memory (MiB) | result |\n|---|---|---|---|---|")
    for name, step in steps(given.folder, manifest):
        computed, seconds, memory, result = measured(step)
        print(
            f"| {name} | {computed:.1f} | {seconds:.1f} | {memory:.0f} | {'' if result is None else result} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
