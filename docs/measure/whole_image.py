"""How long a 2048 x 2048 photograph takes from file to mask file, through our windows and through MONAI's.

python docs/measure/whole_image.py [PHOTOGRAPH] [--diameter 768 2000] [--repeats 9]

Same checkpoint, preprocessing, window, overlap, blending and postprocessing; only the inferer differs. MONAI's gets
no field of view. Every repeat runs all inferers, and a ratio is taken within a repeat: its median and quartiles. CPU
ratios are of processor seconds, which other processes on the machine disturb less. Without a photograph a generated
one is used. OMP_NUM_THREADS sets the threads.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from reg4pru_monai.bundle import trained
from reg4pru_monai.evaluation import predict
from reg4pru_monai.fundus import read_image
from reg4pru_monai.fundus.io import write_mask
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.inference import CHECKPOINT, Pipeline, load_pipeline
from reg4pru_monai.transforms import preprocessing
from reg4pru_monai.windows import FundusWindowInferer

SIDE, WINDOW, OVERLAP = 2048, 256, 0.25
STAGES = ("read", "preprocess", "network", "back", "write")
BASELINE = "MONAI, batch 8"


class Run(NamedTuple):
    """One photograph, file to file. wall: seconds by stage; cpu: processor seconds of all; mask: (H, W) bool."""

    wall: dict[str, float]
    cpu: float
    mask: np.ndarray

    @property
    def total(self) -> float:
        """Wall seconds."""
        return sum(self.wall.values())


def monai_inferer(batch_size: int) -> Callable[..., Any]:
    """MONAI's sliding windows, called like ours; the field of view is left out, as it cuts no windows of it."""
    inferer = SlidingWindowInferer(WINDOW, sw_batch_size=batch_size, overlap=OVERLAP, mode="gaussian")
    return lambda image, network, fov=None: inferer(image, network)


def inferers() -> dict[str, Callable[..., Any]]:
    """All that are compared. Batch 8 is what the bundle's configurations say."""
    return {
        BASELINE: monai_inferer(8),
        "MONAI, batch 2": monai_inferer(2),
        "ours, batch 8": FundusWindowInferer(WINDOW, OVERLAP, batch_size=8),
        "ours, default batch": FundusWindowInferer(WINDOW, OVERLAP),
    }


def square_photograph(source: Path | None) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: the photograph on a black square, resized; or a generated one."""
    if source is None:
        return make_phantom(SIDE, seed=0).image
    pixels = read_image(source)
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return np.asarray(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def run(pipeline: Pipeline, inferer: Any, source: Path, target: Path) -> Run:
    """Segment one file into another."""
    marks, cpu = [time.perf_counter()], time.process_time()
    reading, *rest = pipeline.preprocessing.transforms
    item = reading({"image": str(source)})
    marks.append(time.perf_counter())
    item = Compose(rest)(item)
    marks.append(time.perf_counter())
    found = predict(pipeline.network, item, pipeline.preprocessing, inferer, pipeline.device)
    mask = found.probability[0].numpy() >= 0.5
    marks.append(time.perf_counter())
    write_mask(target, mask)
    marks.append(time.perf_counter())
    cpu = time.process_time() - cpu
    read, prepare, predicted, write = (end - start for start, end in pairwise(marks))
    stages = (read, prepare, found.seconds, predicted - found.seconds, write)
    return Run(dict(zip(STAGES, stages, strict=True)), cpu, mask)


def ratio(baseline: Sequence[float], own: Sequence[float]) -> str:
    """Median of the paired ratios and, in brackets, their quartiles."""
    values = [first / second for first, second in zip(baseline, own, strict=True)]
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:.2f} [{low:.2f}–{high:.2f}]"


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks (H, W) bool, both empty outside the field of view."""
    return 2 * float((first & second).sum()) / max(float(first.sum() + second.sum()), 1)


def measure(pipeline: Pipeline, source: Path, target: Path, repeats: int) -> dict[str, list[Run]]:
    """All inferers, interleaved, after one round of warming up; the order turns from repeat to repeat."""
    compared, runs = inferers(), defaultdict(list)
    for number in range(repeats + 1):
        names = list(compared)[number % len(compared) :] + list(compared)[: number % len(compared)]
        for name in names:
            result = run(pipeline, compared[name], source, target)
            if number:
                runs[name].append(result)
    return {name: runs[name] for name in compared}


def report(runs: dict[str, list[Run]]) -> None:
    """One row for each inferer: median seconds by stage, ratios of the whole, agreement with the baseline."""
    print("| inferer | " + " | ".join(STAGES) + " | total, s | total ratio | network ratio | CPU ratio | Dice |")
    print("|---" * (len(STAGES) + 6) + "|")
    base = runs[BASELINE]
    for name, own in runs.items():
        cells = [f"{median(r.wall[stage] for r in own):.3f}" for stage in STAGES]
        cells += [f"{median(r.total for r in own):.2f}", ratio([r.total for r in base], [r.total for r in own])]
        cells += [ratio([r.wall["network"] for r in base], [r.wall["network"] for r in own])]
        cells += [ratio([r.cpu for r in base], [r.cpu for r in own]), f"{dice(base[0].mask, own[0].mask):.4f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


class Operations(TorchDispatchMode):
    """Counts the operations that torch carries out, each of them a kernel launch on a GPU; views are not counted."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and carry out."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def report_overhead(item: dict[str, Any], repeats: int) -> None:
    """What the windows cost by themselves: milliseconds and operations with a network that returns its input."""
    image, fov = (item[key].as_tensor()[None] for key in ("image", "fov"))

    def nothing(windows: torch.Tensor, fov: torch.Tensor | None = None) -> torch.Tensor:
        return windows[:, :1]

    print("\n| windows alone | CPU time, ms | operations |")
    print("|---|---|---|")
    for name, inferer in inferers().items():
        spent = []
        for _ in range(repeats + 1):
            start = time.process_time()
            inferer(image, nothing, fov=fov)
            spent.append(time.process_time() - start)
        with Operations() as operations:
            inferer(image, nothing, fov=fov)
        print(f"| {name} | {1e3 * median(spent[1:]):.1f} | {operations.count} |")


def main() -> None:
    """Measure at each diameter and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photograph", nargs="?", type=Path, help="default: a generated one")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--diameter", type=float, nargs="+", help="of the FOV, px; default: as trained, and 2000")
    parser.add_argument("--keep-rate", type=float, help="default: as trained")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    settings = trained(str(options.checkpoint))
    pipeline = load_pipeline(options.checkpoint, options.device, options.keep_rate)
    print(f"torch {torch.__version__}, {pipeline.device}, {torch.get_num_threads()} threads, {options.repeats} repeats")
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "photograph.jpg"), Path(folder, "mask.png")
        Image.fromarray(square_photograph(options.photograph)).save(source, quality=95)
        for diameter in options.diameter or (settings["diameter"], 2000):
            pipeline.preprocessing = preprocessing(diameter, False, settings["normalization"], rim=settings["rim"])
            item = pipeline.prepare(source)
            print(f"\nDiameter {diameter:g}: the network sees {tuple(item['image'].shape[1:])}\n")
            report(measure(pipeline, source, target, options.repeats))
            with torch.inference_mode():
                report_overhead(item, options.repeats)


if __name__ == "__main__":
    main()
