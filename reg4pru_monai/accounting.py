"""Tokens, FLOPs, time and memory of the path that predicts."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .blocks import Block
from .decoder import EomtDecoder, SkipDecoder
from .policies import Policy, Trace
from .segmenter import Segmenter

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


class Cost(NamedTuple):
    """Floating-point operations of a forward pass per image, by part, a multiply-add counted as 2.

    Linear layers, convolutions and the two products of attention; normalisation, activations, resizing and the moving
    of tokens are left out, as FlopCounterMode does.
    """

    embedding: int
    blocks: int
    selectors: int
    decoder: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self)


def network_cost(network: Segmenter, trace: Trace) -> Cost:
    """What a forward pass costs, from the lengths in its trace and the shapes of the weights."""
    return Cost(
        embedding_cost(network.patch_embed, trace.grid),
        sum(block_cost(block, n) for block, n in zip(network.encoder.blocks, trace.lengths, strict=True)),
        selector_cost(network.encoder.policy, trace),
        decoder_cost(network.decoder, trace.grid, network.patch_embed.patch),
    )


def embedding_cost(embedding: nn.Module, grid: tuple[int, int]) -> int:
    """Operations that make the tokens of a grid (h, w): each convolution before the last sees four times the pixels."""
    convolutions = [m for m in embedding.modules() if isinstance(m, nn.Conv2d)]
    *stem, last = (2 * grid[0] * grid[1] * m.weight.numel() for m in convolutions)
    return last + sum(cost * 4**level for level, cost in enumerate(reversed(stem)))


def block_cost(block: nn.Module, count: int) -> int:
    """Operations of a block on a sequence of N tokens: 2 N (4 D^2 + 2 D hidden) + 4 N^2 D."""
    assert isinstance(block, Block)
    return 2 * count * _linear_weights(block) + 4 * count**2 * block.attn.proj.in_features


def selector_cost(policy: Policy, trace: Trace) -> int:
    """Operations of the scorers of a policy: each is a list with one module per stage, which sees the stage's pool."""
    scorers = [m for m in policy.modules() if isinstance(m, nn.ModuleList) and len(m) == len(trace.stages)]
    pools = [record.pool.index.shape[1] for record in trace.stages]
    return sum(2 * n * _linear_weights(m) for per_stage in scorers for n, m in zip(pools, per_stage, strict=True))


def decoder_cost(decoder: EomtDecoder | SkipDecoder, grid: tuple[int, int], patch: int) -> int:
    """Operations of one decoding of a token grid (h, w) into patch*h x patch*w logits."""
    if isinstance(decoder, EomtDecoder):
        return _eomt_cost(decoder, grid[0] * grid[1])
    full = grid[0] * patch, grid[1] * patch
    half = -(-full[0] // 2), -(-full[1] // 2)
    quarter = -(-half[0] // 2), -(-half[1] // 2)
    levels = (
        (full, (decoder.stem_1, decoder.join_full, decoder.logit)),
        (half, (decoder.stem_2, decoder.join_half, decoder.to_full)),
        (quarter, (decoder.stem_4, decoder.join_quarter, decoder.to_half)),
        (grid, (decoder.tokens,)),
    )
    return sum(2 * h * w * sum(map(_convolution_weights, parts)) for (h, w), parts in levels)


def _eomt_cost(decoder: EomtDecoder, pixels: int) -> int:
    """The mask embedding of the query, the upscaling of the tokens, and their product with it."""
    operations = 2 * decoder.query.shape[1] * _linear_weights(decoder.mask_mlp)
    for step in decoder.upscale:
        up, depthwise = (m for m in step.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
        operations += 2 * pixels * up.weight.numel()  # a transposed convolution works on its input pixels
        pixels *= 4
        operations += 2 * pixels * depthwise.weight.numel()
    return operations + 2 * pixels * decoder.query.shape[1] * decoder.query.shape[2]


def _linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _convolution_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


class Ratio(NamedTuple):
    """A ratio with the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def paired_ratio(baseline: Sequence[float], own: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Median over interleaved repetitions of baseline / own, with its percentile bootstrap interval.

    baseline, own: seconds, repetition by repetition, at least two. The pairs keep a machine that is now slow, now fast
    out of the ratio.
    """
    ratios = np.divide(baseline, own)
    if len(ratios) < 2:
        raise ValueError(f"a confidence interval needs at least 2 repetitions, got {len(ratios)}")
    found = bootstrap(
        (ratios,), np.median, confidence_level=confidence, method="percentile", random_state=0
    ).confidence_interval
    return Ratio(float(np.median(ratios)), float(found.low), float(found.high))


class Speed(NamedTuple):
    """images_per_second: 1 / median seconds per image. speedup: its ratio to the baseline's."""

    images_per_second: float
    speedup: float


def compare_speed(times: dict[str, list[float]], baseline: str) -> dict[str, Speed]:
    """Speeds of variants that were timed interleaved on the same images. times: seconds per image, in one order."""
    return {name: Speed(1 / median(own), median(times[baseline]) / median(own)) for name, own in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
