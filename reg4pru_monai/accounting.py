"""Tokens, FLOPs, time and memory of the path that predicts."""

import gc
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .policies import Trace


def token_share(trace: Trace) -> float:
    """Block-token steps of a forward pass as a share of what they are when no block drops a token."""
    return sum(trace.lengths) / (max(trace.lengths) * len(trace.lengths))


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of a call, a multiply-add counted as 2. Fused attention on the CPU is included."""

    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={cpu: attention}) as counter, torch.inference_mode():
        function()
    return int(counter.get_total_flops())


def seconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of a call, GPU work included, and what it returned."""
    _synchronize(device)
    start = time.perf_counter()
    result = function()
    _synchronize(device)
    return time.perf_counter() - start, result


def peak_memory(function: Callable[[], Any], device: torch.device) -> float:
    """Peak memory of a call in MiB: allocated on the GPU, or the growth of this process on the CPU (sampled)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) / 2**20
    gc.collect()
    process = psutil.Process()
    before = peak = process.memory_info().rss
    finished = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not finished.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        function()
    finally:
        finished.set()
        watcher.join()
    return (peak - before) / 2**20


class Speed(NamedTuple):
    """images_per_second: 1 / median seconds per image. speedup: median ratio to the baseline, image by image."""

    images_per_second: float
    speedup: float


def compare_speed(times: dict[str, list[float]], baseline: str) -> dict[str, Speed]:
    """Speeds of variants that were timed interleaved on the same images. times: seconds per image, in one order."""
    return {
        name: Speed(1 / median(own), median(b / t for b, t in zip(times[baseline], own, strict=True)))
        for name, own in times.items()
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


