"""Our network against the shape that the authors of Reg4Pru time, dense and pruned, with the FLOPs of each.

The yardstick is rebuilt from a description (12 blocks of ViT-S, rotary positions of DINOv3, one decode at a quarter of
the resolution, attention never masked), in the order of operations of the authors' code: tokens are removed after the
stage's own block, kept in the order of their scores, and put back one block before the end. Weights are random.

python docs/measure/yardstick.py [--size 512 1024] [--threads 2] [--repeats 5] [--late]
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reg4pru_monai.accounting import count_flops, seconds
from reg4pru_monai.policies import Decision, Policy
from reg4pru_monai.segmenter import build_segmenter
from reg4pru_monai.tokens import keep_count

DIM, DEPTH, HEADS, PATCH, PREFIX = 384, 12, 6, 16, 5
QUERY_AT, REACTIVATE, STAGES = 9, 11, (2, 5, 8)
CPU = torch.device("cpu")


class YardstickBlock(nn.Module):
    """Pre-norm block with layer scale; q and k are split, rotated and joined, then copied with v."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
        self.gamma1, self.gamma2 = nn.Parameter(torch.full((DIM,), 0.1)), nn.Parameter(torch.full((DIM,), 0.1))

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """x: (B, P + K, D), P tokens without a position in front. rope: (1 or B, K, 2 * 64), sine and cosine."""
        batch, count, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, count, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotated(q, rope).to(v.dtype), rotated(k, rope).to(v.dtype)
        y = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        x = x + self.gamma1 * self.proj(y.transpose(1, 2).reshape(batch, count, DIM))
        return x + self.gamma2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """(B, heads, P + K, 64): the last K rows are rotated."""
    others = x.shape[2] - rope.shape[1]
    sine, cosine = rope.unsqueeze(1).chunk(2, dim=-1)
    plain, spatial = x[:, :, :others], x[:, :, others:]
    first, second = spatial.chunk(2, dim=-1)
    return torch.cat((plain, spatial * cosine + torch.cat((-second, first), dim=-1) * sine), dim=2)


def rotary_table(height: int, width: int, device: torch.device) -> Tensor:
    """Sine and cosine for a grid, coordinates in [-1, 1], base 100: (1, h * w, 2 * 64)."""
    rows, columns = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in (height, width))
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    quarter = DIM // HEADS // 4
    angles = 2 * math.pi * place.unsqueeze(-1) / 100.0 ** (torch.arange(quarter, device=device) / quarter)
    angles = angles.flatten(1).tile(2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).unsqueeze(0)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def upscale() -> nn.Sequential:
    """Twice the resolution."""
    return nn.Sequential(
        nn.ConvTranspose2d(DIM, DIM, 2, stride=2),
        nn.GELU(),
        nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM, bias=False),
        ChannelNorm(DIM),
    )


def mlp(*widths: int) -> list[nn.Module]:
    """Linear layers with a GELU between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    return layers[:-1]


class Removed:
    """The tokens that left: their features, and where in the grid they belong."""

    def __init__(self, batch: int, count: int, device: torch.device) -> None:
        self.kept = torch.arange(count, device=device).expand(batch, -1)
        self.features: list[Tensor] = []
        self.places: list[Tensor] = []

    def split(self, x: Tensor, order: Tensor, count: int) -> Tensor:
        """Sequence (B, P + K, D), order of its last K tokens by score -> (B, P + count, D), in order of score."""
        others = x.shape[1] - order.shape[1]
        spatial = x[:, others:]
        kept, dropped = order[:, :count], order[:, count:]
        self.features.append(take(spatial, dropped))
        self.places.append(self.kept.gather(1, dropped))
        self.kept = self.kept.gather(1, kept)
        return torch.cat((x[:, :others], take(spatial, kept)), dim=1)

    def merged(self, x: Tensor) -> Tensor:
        """Sequence (B, P + K, D) -> (B, P + h * w, D), every token at its place."""
        others = x.shape[1] - self.kept.shape[1]
        features, places = torch.cat(self.features, dim=1), torch.cat(self.places, dim=1)
        grid = x.new_zeros(x.shape[0], self.kept.shape[1] + places.shape[1], DIM)
        grid = grid.scatter(1, self.kept.unsqueeze(-1).expand(-1, -1, DIM), x[:, others:])
        grid = grid.scatter(1, places.unsqueeze(-1).expand(-1, -1, DIM), features)
        return torch.cat((x[:, :others], grid), dim=1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, D), (B, K) -> (B, K, D)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class Yardstick(nn.Module):
    """keep: share of the tokens left by each stage, or None for the dense network."""

    def __init__(self, keep: float | None = None) -> None:
        super().__init__()
        self.keep = keep
        self.patch = nn.Conv2d(3, DIM, PATCH, stride=PATCH)
        self.prefix, self.query = nn.Parameter(torch.randn(1, PREFIX, DIM)), nn.Parameter(torch.randn(1, 1, DIM))
        self.blocks = nn.ModuleList(YardstickBlock() for _ in range(DEPTH))
        self.selectors = nn.ModuleList(nn.Sequential(nn.LayerNorm(DIM), *mlp(DIM, DIM, DIM // 4, 2)) for _ in STAGES)
        self.norm = nn.LayerNorm(DIM)
        self.mask_mlp = nn.Sequential(*mlp(DIM, DIM, DIM, DIM))
        self.upscale = nn.Sequential(upscale(), upscale())

    def pruned(self, keep: float) -> "Yardstick":
        """The same network, pruned; weights are shared."""
        with torch.device("meta"):
            twin = Yardstick(keep)
        twin._modules = self._modules
        twin._parameters = self._parameters
        return twin.train(self.training)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) -> logits (B, 1, H/4, W/4)."""
        batch, _, height, width = image.shape
        grid = (height // PATCH, width // PATCH)
        x = torch.cat((self.prefix.repeat(batch, 1, 1), self.patch(image).flatten(2).transpose(1, 2)), dim=1)
        table = rope = rotary_table(*grid, image.device)
        removed = Removed(batch, table.shape[1], image.device)
        stages = () if self.keep is None else STAGES
        for number, block in enumerate(self.blocks):
            if number == QUERY_AT:
                x = torch.cat((self.query.repeat(batch, 1, 1), x), dim=1)
            if number == REACTIVATE and stages:
                x, rope = removed.merged(x), table
            order = self.order(number, x) if number in stages else None
            x = block(x, rope)
            if order is not None:
                x = removed.split(x, order, self.count(number, order.shape[1]))
                rope = take(table.expand(batch, -1, -1), removed.kept)
        return self.decode(x, grid)

    def order(self, block: int, x: Tensor) -> Tensor:
        """The spatial tokens from the highest score to the lowest: (B, K)."""
        score = self.selectors[STAGES.index(block)](x[:, PREFIX:]).softmax(-1)[..., 0]
        return score.argsort(dim=1, descending=True)

    def count(self, block: int, pool: int) -> int:
        """How many of them stay; behind the last stage there is room for the query."""
        assert self.keep is not None
        return keep_count(pool, self.keep, PREFIX) - (block + 1 == QUERY_AT)

    def decode(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + P + h * w, D) -> logits (B, 1, 4 h, 4 w)."""
        x = self.norm(x)
        spatial = x[:, 1 + PREFIX :].transpose(1, 2).unflatten(2, grid)
        return torch.einsum("bqd,bdhw->bqhw", self.mask_mlp(x[:, :1]), self.upscale(spatial))


class Late(Policy):
    """A policy whose stages remove their tokens after their own block, as the authors' code does."""

    def __init__(self, base: Policy) -> None:
        super().__init__(base.stages)
        self.base = base

    def decide(self, *arguments: Any, **options: Any) -> Decision:
        """The decision of the policy below, carried out one block later."""
        decision = self.base.decide(*arguments, **options)
        return decision._replace(before=None, after=decision.before)


def networks(keep: float, late: bool) -> dict[str, nn.Module]:
    """All that is compared, by the names of the table. Nothing is built twice: pruned networks share weights."""
    yardstick = Yardstick()
    ours = build_segmenter("small", "reg4pru", "eomt", keep_rate=keep)
    found = {
        "yardstick dense": yardstick,
        "yardstick pruned": yardstick.pruned(keep),
        "ours dense": ours.dense(),
        "ours pruned": ours,
    }
    if late:
        found["ours pruned, late"] = ours.with_policy(Late(ours.encoder.policy))
    return {name: network.eval() for name, network in found.items()}


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other in every round, every other round backwards; one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            elapsed = seconds(calls[name], CPU)[0]
            if turn:
                times[name].append(elapsed)
    return times


def ratio(above: list[float], below: list[float]) -> str:
    """Median of the ratios of each round, and their quartiles."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return f"{median(ratios):.3f} ({low:.3f} to {high:.3f})"


def compare(size: int, found: dict[str, nn.Module], repeats: int) -> None:
    """Print the tables of one image size, in Markdown."""
    image = torch.randn(1, 3, size, size)
    calls = {name: partial(network, image) for name, network in found.items()}
    flops = {name: count_flops(call) for name, call in calls.items()}
    times = interleaved(calls, repeats)
    print(f"\n| {size} x {size} | seconds, median | GFLOPs | speed-up | FLOP ratio | efficiency |\n" + "|---" * 6 + "|")
    for name in found:
        dense = f"{name.split()[0]} dense"
        speedup = median(d / t for d, t in zip(times[dense], times[name], strict=True))
        possible = flops[dense] / flops[name]
        cells = [f"{median(times[name]):.3f}", f"{flops[name] / 1e9:.1f}", *(f"{x:.2f}" for x in (speedup, possible))]
        print(f"| {name} | " + " | ".join([*cells, f"{speedup / possible:.3f}"]) + " |")
    print("\n| ratio of times | median (quartiles) |\n|---|---|")
    for above, below in PAIRS:
        if above in times and below in times:
            print(f"| {above} / {below} | {ratio(times[above], times[below])} |")


PAIRS = (
    ("ours dense", "yardstick dense"),
    ("ours pruned", "yardstick pruned"),
    ("ours pruned, late", "yardstick pruned"),
    ("ours pruned", "ours pruned, late"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Our network against the shape of the authors'.")
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], help="pixels per side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="rounds, beside one to warm up")
    parser.add_argument("--keep-rate", type=float, default=0.7)
    parser.add_argument("--late", action="store_true", help="also ours with removal after the stage's own block")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    found = networks(given.keep_rate, given.late)
    print(f"torch {torch.__version__}, {given.threads} threads, float32, batch 1, {given.repeats} rounds")
    with torch.inference_mode():
        for size in given.size:
            compare(size, found, given.repeats)


if __name__ == "__main__":
    main()
