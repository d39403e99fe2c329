"""``reg4pru benchmark``: cost and speed of the path that predicts, pruned against dense against peers, in one run.

All variants are timed interleaved: once each per repetition, in an order drawn anew. A speed-up is the median over the
repetitions of dense / own time within the same repetition, so that a machine that is now slow, now fast falls out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .accounting import Ratio, paired_ratio, seconds
from .benchmark_variants import (
    DENSE,
    DTYPES,
    SEED,
    BenchmarkError,
    Setting,
    Skipped,
    Source,
    Variant,
    check_dtype,
    compiling,
    label,
    own_variants,
    peer_variants,
)
from .peers import chosen_peers
from .runtime import bar_interval, select_device


@dataclass(frozen=True)
class Plan:
    """What to measure: every combination of the lists, a dense row for each of them, and peers. Raises ValueError.

    policies: names in POLICIES. keep_rates: for all but dense. compiled: False, True or both. stages, reactivate: as in
    build_segmenter. checkpoint: file whose weights and architecture are taken, so that scorers are real; without one
    weights are random. presets, decoders: default small and skip, or those of the checkpoint. fov: images show a disc,
    tokens outside are skipped. threads: of the CPU, default torch's. peers: "all", "none", or names in PEERS.
    """

    policies: Sequence[str] = (DENSE, "dynamicvit", "reg4pru")
    keep_rates: Sequence[float] = (0.7, 0.5)
    presets: Sequence[str] = ()
    decoders: Sequence[str] = ()
    sizes: Sequence[int] = (512,)
    batch_sizes: Sequence[int] = (1,)
    devices: Sequence[str] = ("auto",)
    dtypes: Sequence[str] = ("float32",)
    compiled: Sequence[bool] = (False,)
    stages: str | Sequence[int] | None = None
    reactivate: str | int | None = None
    fov: bool = False
    peers: Sequence[str] = ("all",)
    checkpoint: Path | None = None
    repeats: int = 10
    warmup: int = 2
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("policies", "keep_rates", "sizes", "batch_sizes", "devices", "dtypes", "compiled", "peers"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        for name, least in {"repeats": 2, "warmup": 0, "threads": 1, "sizes": 1, "batch_sizes": 1}.items():
            given = getattr(self, name)
            for value in given if isinstance(given, Sequence) else [given]:
                if value is not None and value < least:
                    raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.checkpoint and (self.presets or self.decoders or (self.stages, self.reactivate) != (None, None)):
            raise ValueError("presets, decoders, stages and reactivate are those of the checkpoint; leave them out")
        if unknown := [name for name in self.dtypes if name not in DTYPES]:
            raise ValueError(f"dtypes must be some of {', '.join(DTYPES)}, got {unknown[0]!r}")
        chosen_peers(self.peers)

    @property
    def source(self) -> Source:
        """Where the networks come from."""
        return Source(self.stages, self.reactivate, self.checkpoint)

    def settings(self) -> list[Setting]:
        """Every combination, each once."""
        presets, decoders = self.presets or ("small",), self.decoders or ("skip",)
        if self.checkpoint:
            trained = self.source.trained()
            presets, decoders = (trained["preset"],), (trained["decoder"],)
        devices = [str(select_device(name)) for name in self.devices]
        lists = (presets, decoders, self.sizes, self.batch_sizes, devices, self.dtypes, self.compiled)
        return [Setting(*values) for values in dict.fromkeys(product(*lists))]

    def networks(self) -> list[tuple[str, float | None]]:
        """Policies with their keep rates, each once; dense comes first, asked for or not."""
        pruned = [name for name in self.policies if name != DENSE]
        return [(DENSE, None), *dict.fromkeys(product(pruned, map(float, self.keep_rates)))]

    def labels(self) -> list[str]:
        """Names of the rows: dense, policy@keep, peers."""
        return [*(label(*network) for network in self.networks()), *chosen_peers(self.peers)]


@dataclass
class Row:
    """One line of the result. Times in ms per forward pass; GFLOPs per image, a multiply-add counted as 2.

    preset, decoder, gflops (from the trace and the shapes of the weights), flop_ratio (dense / own) and efficiency
    (speedup / flop_ratio): None for peers. gflops_counted: by FlopCounterMode. speedup: over dense of the same setting,
    for peers over the first dense of the same condition; low, high: 95 % interval. latencies_ms: in the order taken.
    """

    network: str
    keep_rate: float | None
    preset: str | None
    decoder: str | None
    size: int
    batch: int
    device: str
    dtype: str
    compiled: bool
    latency_ms: float
    latency_p95_ms: float
    images_per_second: float
    gflops: float | None
    gflops_counted: float
    peak_memory_mib: float
    speedup: float
    speedup_low: float
    speedup_high: float
    flop_ratio: float | None
    efficiency: float | None
    efficiency_low: float | None
    efficiency_high: float | None
    ap: float | None
    latencies_ms: list[float] = field(repr=False)

    @property
    def label(self) -> str:
        """Name in the table: dense, policy@keep, or a peer's."""
        return label(self.network, self.keep_rate)

    @property
    def condition(self) -> tuple[int, int, str, str, bool]:
        """What a peer shares with our rows, see Setting."""
        return self.size, self.batch, self.device, self.dtype, self.compiled


def run_benchmark(plan: Plan, ap: Mapping[str, float] | None = None) -> tuple[list[Row], list[Skipped]]:
    """Measure a plan. ap: average precision by label. Raises ValueError, CheckpointError and BenchmarkError."""
    settings = plan.settings()
    variants = list(own_variants(settings, plan.networks(), plan.source, plan.fov))
    for device, dtype in dict.fromkeys((setting.device, setting.dtype) for setting in settings):
        check_dtype(torch.device(device), dtype)
    with _threads(plan.threads), compiling() if any(plan.compiled) else nullcontext():
        for variant in _bar(variants, "preparing"):
            _prepare(variant, plan.warmup)
        peers, skipped = peer_variants(settings, chosen_peers(plan.peers), plan.warmup)
        variants += peers
        times = interleaved(variants, [variant.device for variant in variants], plan.repeats)
    dense = {variant.setting: number for number, variant in enumerate(variants) if variant.name == DENSE}
    baselines = [dense[variant.setting] for variant in variants]
    rows = [_row(v, own, variants[b], times[b], ap or {}) for v, own, b in zip(variants, times, baselines, strict=True)]
    return rows, skipped


def interleaved(calls: Sequence[Callable[[], Any]], devices: Sequence[torch.device], repeats: int) -> list[list[float]]:
    """Seconds of each call, repetition by repetition: (calls, repeats). Each repetition has its own order."""
    order = np.random.default_rng(SEED)
    times: list[list[float]] = [[] for _ in calls]
    for _ in _bar(range(repeats), "measuring"):
        for number in order.permutation(len(calls)):
            times[number].append(seconds(calls[number], devices[number])[0])
    return times


def _prepare(variant: Variant, warmup: int) -> None:
    """As the variant does; what torch raises gets the name of the variant."""
    try:
        variant.prepare(warmup)
    except BenchmarkError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchmarkError(f"{variant} does not run here: {reason}") from error


def _row(
    variant: Variant, own: Sequence[float], dense: Variant, baseline: Sequence[float], ap: Mapping[str, float]
) -> Row:
    setting, speedup, median = variant.setting, paired_ratio(baseline, own), float(np.median(own))
    is_peer = variant.flops is None
    ratio = None if variant.flops is None or dense.flops is None else dense.flops / variant.flops
    efficiency = (None, None, None) if ratio is None else Ratio(*(value / ratio for value in speedup))
    return Row(
        variant.name,
        variant.keep,
        None if is_peer else setting.preset,
        None if is_peer else setting.decoder,
        *setting.condition,
        latency_ms=1e3 * median,
        latency_p95_ms=1e3 * float(np.percentile(own, 95)),
        images_per_second=setting.batch / median,
        gflops=None if variant.flops is None else variant.flops / 1e9,
        gflops_counted=variant.counted / 1e9,
        peak_memory_mib=variant.memory,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        flop_ratio=ratio,
        efficiency=efficiency[0],
        efficiency_low=efficiency[1],
        efficiency_high=efficiency[2],
        ap=ap.get(label(variant.name, variant.keep)),
        latencies_ms=[1e3 * value for value in own],
    )


def _bar(items: Any, name: str) -> Any:
    return tqdm(items, desc=name, mininterval=bar_interval(), disable=None, leave=False)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
