"""What ``reg4pru benchmark`` times: networks that share all weights, peers, and their input, ready to run."""

import copy
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .accounting import count_flops, network_cost, peak_memory
from .peers import PEERS, why_not
from .segmenter import Segmenter, build_segmenter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DENSE = "dense"
TOLERANCE = 0.01  # of the counted FLOPs; what is left out of the analytic ones is far less
SEED = 0


class BenchmarkError(RuntimeError):
    """A variant that cannot be measured, or FLOPs that do not agree with torch's count."""


class Setting(NamedTuple):
    """What rows must share to be compared. size: side of the square image in pixels. dtype: float32, or of autocast."""

    preset: str
    decoder: str
    size: int
    batch: int
    device: str
    dtype: str
    compiled: bool

    @property
    def condition(self) -> tuple[int, int, str, str, bool]:
        """The part that peers share too: all but preset and decoder."""
        return self[2:]

    def __str__(self) -> str:
        return f"{self.preset}, {self.decoder}, {condition(*self.condition)}"


def condition(size: int, batch: int, device: str, dtype: str, compiled: bool) -> str:
    """The condition of a measurement in words."""
    state = "compiled" if compiled else "not compiled"
    return f"{size} x {size} px, batch {batch}, {device}, {dtype}, {state}"


def label(name: str, keep: float | None) -> str:
    """The name of a row: policy@keep, or the bare name where no keep rate applies."""
    return name if keep is None else f"{name}@{keep:g}"


@dataclass
class Variant:
    """A network with its input, run by the forward pass that predicts.

    flops: per image, from the trace, None for peers. counted: by FlopCounterMode. memory: peak, MiB.
    """

    name: str
    keep: float | None
    setting: Setting
    network: nn.Module
    image: Tensor
    fov: Tensor | None = None
    flops: int | None = None
    counted: float = 0.0
    memory: float = 0.0

    def __str__(self) -> str:
        return f"{label(self.name, self.keep)} ({self.setting})"

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.setting.device)

    def __call__(self) -> Any:
        """One forward pass."""
        dtype = DTYPES[self.setting.dtype]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.network(self.image) if self.fov is None else self.network(self.image, self.fov)

    def prepare(self, warmup: int) -> None:
        """Count, compile where asked for, warm up, and take the peak memory. Raises BenchmarkError."""
        self.counted = count_flops(self) / self.setting.batch
        if isinstance(self.network, Segmenter):
            with torch.inference_mode():
                trace = self.network.forward_with_trace(self.image, self.fov)[1]
            self.flops = network_cost(self.network, trace).total
            check_count(str(self), self.flops, self.counted)
        if self.setting.compiled:
            self.network = _compiled(self.network)
        for _ in range(warmup + self.setting.compiled):  # the first call compiles
            self()
        self.memory = peak_memory(self, self.device)


def check_count(name: str, analytic: float, counted: float) -> None:
    """Raise BenchmarkError where analytic and counted FLOPs differ by more than TOLERANCE."""
    if abs(analytic - counted) > TOLERANCE * counted:
        raise BenchmarkError(
            f"{name}: {analytic / 1e9:.4g} GFLOPs follow from the trace, but torch counts {counted / 1e9:.4g}; "
            "accounting.network_cost does not know a part of this network"
        )


class Source(NamedTuple):
    """Where networks come from: built with random weights, or from a checkpoint. stages, reactivate: of the former."""

    stages: str | Sequence[int] | None = None
    reactivate: str | int | None = None
    checkpoint: Path | None = None

    def build(self, preset: str, decoder: str, policy: str) -> Segmenter:
        """A network, the same one at every call. Raises ValueError, and CheckpointError where a scorer is missing."""
        if self.checkpoint is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                # The keep rate is set later; 1 suits every schedule.
                return build_segmenter(preset, policy, decoder, 1.0, self.stages, self.reactivate).eval()
        from .inference import ARCHITECTURE
        from .weights import load_network

        trained = self.trained()
        settings = {key: trained[key] for key in ARCHITECTURE} | {"policy": policy, "policy_options": None}
        return cast(Segmenter, load_network(build_segmenter(**settings), self.checkpoint)).eval()

    def trained(self) -> dict[str, Any]:
        """The configuration of the checkpoint."""
        from .inference import trained

        return trained(str(self.checkpoint))


def own_variants(
    settings: Sequence[Setting], networks: Sequence[tuple[str, float | None]], source: Source, fov: bool
) -> Iterator[Variant]:
    """Dense and pruned networks that share all weights, for every setting. networks: (policy, keep rate)."""
    built: dict[tuple[str, ...], Segmenter] = {}
    for setting in settings:
        image, disc = make_image(setting), make_disc(setting) if fov else None
        for name, keep in networks:
            for policy in (DENSE, name):
                key = setting.preset, setting.decoder, setting.device, policy
                if key not in built:
                    built[key] = source.build(setting.preset, setting.decoder, policy).to(setting.device)
            shared = built[(*key[:3], DENSE)].with_policy(built[key].encoder.policy)
            yield Variant(name, keep, setting, shared if keep is None else shared.with_keep_rate(keep), image, disc)


class Skipped(NamedTuple):
    """A peer that was not measured, and why."""

    network: str
    size: int
    reason: str


def peer_variants(
    settings: Sequence[Setting], names: Sequence[str], warmup: int
) -> tuple[list[Variant], list[Skipped]]:
    """The peers that run, prepared, and those that do not; once per condition, with its first setting."""
    firsts: dict[tuple[Any, ...], Setting] = {}
    for setting in settings:
        firsts.setdefault(setting.condition, setting)
    variants, skipped = [], dict[Skipped, None]()
    for setting, name in product(firsts.values(), names):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                network = PEERS[name](setting.size).to(setting.device).eval()
            variant = Variant(name, None, setting, network, make_image(setting))
            variant.prepare(warmup)
            variants.append(variant)
        except Exception as error:  # foreign code may raise anything; the reason is shown
            skipped[Skipped(name, setting.size, why_not(error))] = None
    return variants, list(skipped)


def make_image(setting: Setting) -> Tensor:
    """Noise, (B, 3, size, size) float32."""
    noise = torch.Generator().manual_seed(SEED)
    return torch.randn(setting.batch, 3, setting.size, setting.size, generator=noise).to(setting.device)


def make_disc(setting: Setting) -> Tensor:
    """The field of view inscribed in the image, (B, 1, size, size) bool."""
    offset = torch.arange(setting.size) + 0.5 - setting.size / 2
    disc = offset[:, None] ** 2 + offset**2 <= (setting.size / 2) ** 2
    return disc.expand(setting.batch, 1, -1, -1).to(setting.device)


def _compiled(network: nn.Module) -> nn.Module:
    """A compiled copy, so that the network itself stays as it is."""
    network = copy.deepcopy(network)
    if isinstance(network, Segmenter):
        return network.compile_blocks()
    network.compile()
    return network


@contextmanager
def compiling() -> Iterator[None]:
    """Lets torch compile for every setting, and say so where it gives up, instead of running uncompiled in silence."""
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=256, fail_on_recompile_limit_hit=True):
        yield


# Every kind of layer that the networks have, in a process of its own: on a CPU without the instructions it is killed.
PROBE = """
import torch
from torch import nn
with torch.inference_mode(), torch.autocast("cpu", torch.{}):
    x = nn.Conv2d(3, 64, 16, 16)(torch.ones(1, 3, 256, 256))
    nn.ConvTranspose2d(64, 64, 2, 2)(x)
    x = nn.Linear(64, 64)(x.flatten(2).mT)[None]
    nn.functional.scaled_dot_product_attention(x, x, x)
"""


def check_dtype(device: torch.device, name: str) -> None:
    """Raise ValueError where autocast to a dtype does not run on a device."""
    if name == "float32":
        return
    if device.type == "cuda" and name == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("bfloat16 does not run on this GPU; leave it out of --dtypes")
    if device.type == "cpu":
        done = subprocess.run([sys.executable, "-W", "error", "-c", PROBE.format(name)], capture_output=True, text=True)
        if done.returncode:
            killed = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
            reason = killed or (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"{name} does not run on this CPU ({reason}); leave it out of --dtypes")
