"""onnxruntime against torch on the CPU: the figures of docs/export.md.

OMP_NUM_THREADS=1 python docs/measure/onnx_speed.py   (both use as many threads as torch does; minutes)
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from reg4pru_monai.export import export, probes
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.segmenter import Segmenter, build_segmenter

ROUNDS = 15


def session(path: Path) -> Callable[[Tensor], Any]:
    """The file in onnxruntime: images (B, 3, H, W) -> logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: run.run(None, {"image": images.numpy()})


def seconds(run: Callable[[Tensor], Any], images: Tensor) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def measure(network: Segmenter, size: int, batches: Sequence[int]) -> Iterator[list[tuple[float, float]]]:
    """For each number of images: (torch, onnxruntime) seconds of every round, in turn, after two rounds of warm-up."""
    images = probes(network, size, count=max(batches))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        export(network, Path(folder) / "network.onnx", size)
        other = session(Path(folder) / "network.onnx")
        for batch in batches:
            given = images[:batch]
            yield [(seconds(network, given), seconds(other, given)) for _ in range(ROUNDS + 2)][2:]


def main() -> None:
    """Print one Markdown table. The ratio is the median over rounds, with the quartiles."""
    shipped = load_pipeline(device="cpu").network
    small = build_segmenter("small", "reg4pru", "skip").eval()  # its speed does not depend on its weights
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, threads: {torch.get_num_threads()}\n")
    print("| network | image | batch | torch, ms | onnxruntime, ms | times faster |\n|---|---|---|---|---|---|")
    for name, pruned, size, batches in (("bundle", shipped, 256, (1, 4)), ("`small`", small, 512, (1,))):
        for how, network in (("dense", pruned.dense()), ("pruned", pruned)):
            for batch, rounds in zip(batches, measure(network, size, batches), strict=True):
                torch_ms, onnx_ms = (1000 * statistics.median(times) for times in zip(*rounds, strict=True))
                low, middle, high = statistics.quantiles([first / second for first, second in rounds], n=4)
                cells = (f"{name}, {how}", f"{size}²", batch, f"{torch_ms:.0f}", f"{onnx_ms:.0f}")
                print(f"| {' | '.join(map(str, cells))} | {middle:.2f} ({low:.2f}–{high:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
