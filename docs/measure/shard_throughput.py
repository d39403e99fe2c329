"""Photographs per second with 1, 2, … shards at once, one processor and one thread each, and their efficiency over one.

python docs/measure/shard_throughput.py PHOTOGRAPHS [--shards 1 2] [--rounds 3] [--folder runs/shard_throughput]

Each shard is a process of `reg4pru segment` that may use one processor alone, as a job of a cluster with one CPU does:
reading and writing share it with the network. Start-up is not counted. Rounds alternate, and the median of each is
printed. The machine must have nothing else to do.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median


def rate(photographs: str, folder: Path, shards: int) -> float:
    """Photographs per second of all shards together."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "reg4pru_monai.cli", "segment", photographs, "--output", str(folder), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, "--workers", "1", "--shard", f"{number + 1}/{shards}"],
            env=environment,
            preexec_fn=partial(os.sched_setaffinity, 0, {number}),
        )
        for number in range(shards)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a shard failed")
    runs = [run["end"] for run in json.loads((folder / "run.json").read_text())["runs"]]
    return sum(run["done"] for run in runs) / max(run["seconds"] for run in runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each number of shards."""
    parser = argparse.ArgumentParser(description="Throughput of shards.")
    parser.add_argument("photographs")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/shard_throughput"))
    given = parser.parse_args(arguments)
    found: dict[int, list[float]] = {shards: [] for shards in given.shards}
    for _ in range(given.rounds):
        for shards, rates in found.items():
            rates.append(rate(given.photographs, given.folder, shards))
    one = median(found[given.shards[0]]) / given.shards[0]
    print("| shards | photographs per second | efficiency |\n|---|---|---|")
    for shards, rates in found.items():
        print(f"| {shards} | {median(rates):.3f} | {median(rates) / shards / one:.2f} |")


if __name__ == "__main__":
    main()
