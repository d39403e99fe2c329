"""Whether memory stays flat over many photographs: resident memory of `segment_photographs` while it runs.

python docs/measure/batch_memory.py [--count 10000] [--folder runs/batch_memory]

The photographs are small generated ones, each under many names, and the network is untrained: what could grow with
their number (queues, journal, tables, report, caches) is the same.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from reg4pru_monai.batch import segment_photographs, settings_of
from reg4pru_monai.batch.journal import Record
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.inference import Pipeline
from reg4pru_monai.plots import save_picture
from reg4pru_monai.segmenter import build_segmenter
from reg4pru_monai.transforms import preprocessing
from reg4pru_monai.windows import FundusWindowInferer

DIFFERENT = 20  # photographs


def photographs(folder: Path, count: int) -> None:
    """Files of 20 different sizes, hard links beyond."""
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        first = folder / "000" / f"{number % DIFFERENT:06}.png"
        if number < DIFFERENT:
            save_picture(path, make_phantom((80 + number, 96), seed=number).image)
        else:
            path.hardlink_to(first)


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment and print the memory at every tenth."""
    parser = argparse.ArgumentParser(description="Memory over many photographs.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/batch_memory"))
    given = parser.parse_args(arguments)
    shutil.rmtree(given.folder, ignore_errors=True)
    photographs(given.folder / "photographs", given.count)
    torch.manual_seed(0)
    inferer = FundusWindowInferer(64)
    pipeline = Pipeline(build_segmenter("tiny"), preprocessing(64, False), inferer, torch.device("cpu"))
    process, seen = psutil.Process(), 0

    def resident() -> str:
        return f"{process.memory_info().rss / 2**20:.0f} MiB"

    def progress(_: Record) -> None:
        nonlocal seen
        seen += 1
        if seen % max(given.count // 10, 1) == 0:
            print(f"| {seen} | {resident()} |", flush=True)

    print("| photographs | resident memory |\n|---|---|")
    folders = [given.folder / "photographs"]
    summary = segment_photographs(
        folders, given.folder / "results", pipeline, settings_of(pipeline), workers=2, progress=progress
    )
    print(f"| {summary.done} and the report | {resident()} |")


if __name__ == "__main__":
    main()
