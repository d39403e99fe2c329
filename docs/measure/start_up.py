"""Seconds from the command `reg4pru segment` to its first photograph being read, and being done.

python docs/measure/start_up.py [--repeats 5] [--photograph FILE]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.plots import save_picture


def start(photograph: Path, output: Path) -> tuple[float, float]:
    """Run the command, and watch its journal for the two moments."""
    begun = time.perf_counter()
    arguments = ["-m", "reg4pru_monai.cli", "segment", str(photograph), "--output", str(output), "--quiet"]
    process = subprocess.Popen([sys.executable, *arguments])
    found: dict[str, float] = {}
    while process.poll() is None or "record" not in found:
        text = "".join(path.read_text() for path in (output / ".reg4pru" / "journal").glob("*.jsonl"))
        for word in ("begun", "record"):
            if f'"{word}"' in text:
                found.setdefault(word, time.perf_counter() - begun)
        if process.poll() not in (None, 0):
            raise SystemExit(f"the command ended with {process.returncode}")
        time.sleep(0.01)
    return found["begun"], found["record"]


def main() -> None:
    """Print the medians and the ranges."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photograph", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photograph = arguments.photograph or Path(folder, "photograph.png")
        if arguments.photograph is None:
            save_picture(photograph, make_phantom((960, 999), seed=0).image)
        times = [start(photograph, Path(folder, str(number))) for number in range(arguments.repeats)]
    for name, values in zip(("read", "done"), zip(*times, strict=True), strict=True):
        median = statistics.median(values)
        print(f"first photograph {name}: median {median:.1f} s, from {min(values):.1f} to {max(values):.1f} s")


if __name__ == "__main__":
    main()
