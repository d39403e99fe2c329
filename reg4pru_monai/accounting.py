"""Tokens, FLOPs, time and memory of the path that predicts."""

import os
import time
from collections.abc import Callable
from itertools import accumulate
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .policies import Trace

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory announces itself on stderr


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
    """Peak memory of a call in MiB beyond what was allocated before it, as PyTorch's allocators count it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0)) / 2**20


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
