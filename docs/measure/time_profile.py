"""Where the time of a forward pass on the CPU goes, dense and pruned, as torch's profiler sees it. Weights are random.

python docs/measure/time_profile.py [--size 1024] [--preset small] [--decoder eomt] [--threads 2] [--repeats 5]
"""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from reg4pru_monai.blocks import Block
from reg4pru_monai.policies import POLICIES
from reg4pru_monai.presets import PRESETS
from reg4pru_monai.segmenter import Segmenter, build_segmenter

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr
KERNEL, LINEAR = "attention kernel", "linear layers of the blocks"
PARTS = {
    "patch": "patch embedding",
    "attn": "rotary positions, heads apart and together",
    "norm": "LayerNorm of the blocks",
    "mlp": "GELU",
    "block": "layer scale and residual",
    "policy": "selectors",
    "encoder": "rotary table, top-k, gather, scatter, joining",
    "decoder": "decoder",
    "network": "final LayerNorm, the rest",
}


def parts(network: Segmenter) -> dict[nn.Module, str]:
    """Which part of the table a module belongs to; what runs inside a module counts for the innermost one."""
    found: dict[nn.Module, str] = {
        network: "network",
        network.patch_embed: "patch",
        network.encoder: "encoder",
        network.decoder: "decoder",
    }
    for scorers in network.encoder.policy.modules():
        if isinstance(scorers, nn.ModuleList):
            found.update(dict.fromkeys(scorers, "policy"))
    for block in network.encoder.blocks:
        assert isinstance(block, Block)
        found[block] = "block"
        found.update({block.attn: "attn", block.norm1: "norm", block.norm2: "norm", block.mlp: "mlp"})
    return found


class Marked:
    """A context in which the profiler sees the parts as ranges named after them."""

    def __init__(self, network: Segmenter) -> None:
        self.parts = parts(network)
        self.open: list[Any] = []
        self.handles: list[Any] = []

    def __enter__(self) -> "Marked":
        for module in self.parts:
            self.handles.append(module.register_forward_pre_hook(self._enter))
            self.handles.append(module.register_forward_hook(self._leave))
        return self

    def __exit__(self, *failure: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.open.append(record_function("part:" + self.parts[module]))
        self.open[-1].__enter__()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.open.pop().__exit__(None, None, None)


def row(event: Any) -> str | None:
    """The row of the table that an operator's own time belongs to; None outside of the network."""
    within = []
    while event is not None and not event.name.startswith("part:"):
        within.append(event.name)
        event = event.cpu_parent
    if event is None:
        return None
    part = event.name.removeprefix("part:")
    if part == "attn" and "aten::scaled_dot_product_attention" in within:
        return KERNEL
    return LINEAR if part in ("attn", "mlp") and "aten::linear" in within else PARTS[part]


def times(network: Segmenter, image: Tensor) -> Counter[str]:
    """Milliseconds of one forward pass, by row."""
    with Marked(network), profile(activities=[ProfilerActivity.CPU]) as record:
        network(image)
    found: Counter[str] = Counter()
    for event in record.events():
        name = row(event)
        if name is not None:
            found[name] += event.self_cpu_time_total / 1e3
    return found


def measure(networks: Sequence[Segmenter], image: Tensor, repeats: int) -> list[dict[str, float]]:
    """Median milliseconds by row, for each network, interleaved; one round to warm up."""
    rounds = [[times(network, image) for network in networks] for _ in range(repeats + 1)][1:]
    return [{name: median(each[n][name] for each in rounds) for name in rounds[0][n]} for n in range(len(networks))]


def table(dense: dict[str, float], pruned: dict[str, float]) -> str:
    """Markdown; the dearest row of the pruned network first."""
    lines = ["| | dense, ms | share | pruned, ms | share | pruned / dense |", "|---|---|---|---|---|---|"]
    totals = sum(dense.values()), sum(pruned.values())
    for name in sorted(dense | pruned, key=lambda name: -pruned.get(name, 0.0)):
        a, b = dense.get(name, 0.0), pruned.get(name, 0.0)
        share = f"{b / a:.2f}" if a else ""
        lines.append(f"| {name} | {a:.1f} | {a / totals[0]:.1%} | {b:.1f} | {b / totals[1]:.1%} | {share} |")
    lines.append(f"| all | {totals[0]:.1f} | | {totals[1]:.1f} | | {totals[1] / totals[0]:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Where the time of a forward pass goes.")
    parser.add_argument("--size", type=int, nargs="+", default=[1024], help="pixels per side")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--policy", choices=POLICIES, default="reg4pru")
    parser.add_argument("--decoder", choices=["eomt", "skip"], default="eomt")
    parser.add_argument("--keep-rate", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="rounds, beside one to warm up")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    network = build_segmenter(given.preset, given.policy, given.decoder, keep_rate=given.keep_rate).eval()
    print(f"torch {torch.__version__}, {given.threads} threads, float32, batch 1, median of {given.repeats} rounds")
    with torch.inference_mode():
        for size in given.size:
            found = measure((network.dense(), network), torch.randn(1, 3, size, size), given.repeats)
            print(f"\n{size} x {size}\n\n{table(*found)}")


if __name__ == "__main__":
    main()
