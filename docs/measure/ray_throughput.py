"""Photographs per second on Ray with 1, 2, … actors of one thread each, and their efficiency over one actor.

python docs/measure/ray_throughput.py PHOTOGRAPHS [--actors 1 2] [--limit 20] [--folder runs/ray_throughput]

The cluster is one of this machine, with one CPU more than actors for the files. The time is counted from the first
result to the last, so that neither the start of the processes nor the loading of the network is in it. Efficiency is
(rate of n) / (n x rate of one). The machine must have nothing else to do.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from reg4pru_monai.batch import segment_photographs, settings_of
from reg4pru_monai.batch.journal import Record
from reg4pru_monai.batch.ray_plan import RayOptions
from reg4pru_monai.inference import load_pipeline


def rate(photographs: str, folder: Path, actors: int, limit: int) -> float:
    """Photographs per second."""
    shutil.rmtree(folder, ignore_errors=True)
    moments: list[float] = []

    def progress(_: Record) -> None:
        moments.append(time.perf_counter())

    pipeline = load_pipeline(device="cpu")
    options = RayOptions(actors=actors, cpus=1, gpus=0)
    ray.init(address="local", num_cpus=actors + 1, include_dashboard=False, log_to_driver=False)
    try:
        segment_photographs(
            [photographs], folder, pipeline, settings_of(pipeline), ray=options, limit=limit, progress=progress
        )
    finally:
        ray.shutdown()
    return (len(moments) - 1) / (moments[-1] - moments[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each number of actors."""
    parser = argparse.ArgumentParser(description="Throughput on Ray.")
    parser.add_argument("photographs")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs/ray_throughput"))
    given = parser.parse_args(arguments)
    print("| actors | photographs per second | efficiency |\n|---|---|---|")
    one = None
    for actors in given.actors:
        found = rate(given.photographs, given.folder, actors, given.limit)
        one = one or found / actors
        print(f"| {actors} | {found:.3f} | {found / actors / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
