"""What every policy is, and what it leaves behind."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tokens import Route, Tokens


class Stage(NamedTuple):
    """A pruning stage: before which block it acts, and which share of the tokens still there it keeps."""

    block: int
    keep: float


def plan(blocks: Sequence[int], keep_rate: float | Sequence[float]) -> tuple[Stage, ...]:
    """Stages at the given blocks, with one keep rate for all or one for each. Raises ValueError."""
    if isinstance(keep_rate, str):
        raise ValueError(f"keep_rate must be a number or a list of numbers, got {keep_rate!r}; write 0.5, not 5e-1")
    rates = [keep_rate] * len(blocks) if isinstance(keep_rate, int | float) else list(keep_rate)
    if len(rates) != len(blocks):
        raise ValueError(
            f"keep_rate must be one number or one for each of {len(blocks)} stages {list(blocks)}, got {keep_rate}"
        )
    return tuple(Stage(int(block), float(rate)) for block, rate in zip(blocks, rates, strict=True))


class Window(NamedTuple):
    """A run of blocks [start, end) that only a random share ``keep`` of the tokens passes through."""

    start: int
    end: int
    keep: float


class Decision(NamedTuple):
    """What a policy decided at a stage, about the P tokens it was shown.

    weight: (B, P) soft keep that gates attention from this block on, or None.
    before: tokens that go on into the stage's own block, or None for all.
    after: tokens that go on after the stage's own block, or None for all; the weight ends with that block.
    score: (B, P) float, the higher the rather kept.
    keep: (B, P) float, 1 kept and 0 dropped (with a straight-through gradient where the policy learns by it).
    """

    weight: Tensor | None
    before: Route | None
    after: Route | None
    score: Tensor
    keep: Tensor


class StageTrace(NamedTuple):
    """A decision in grid coordinates. pool: the tokens it was about; score, keep: (B, P), as in Decision."""

    stage: Stage
    pool: Route
    score: Tensor
    keep: Tensor


class Trace(NamedTuple):
    """What happened in one forward pass; losses, FLOPs and token maps are computed from it.

    grid: (h, w). lengths: sequence length of each block. stages: one record per stage.
    auxiliary: logits (B, 1, H, W) of the deep supervision, first to last; empty for decoders without it.
    """

    grid: tuple[int, int]
    lengths: tuple[int, ...]
    stages: tuple[StageTrace, ...]
    auxiliary: tuple[Tensor, ...]


class Policy(nn.Module):
    """Decides at its stages which tokens go on. Subclasses override what differs."""

    def __init__(self, stages: Sequence[Stage] = ()):
        super().__init__()
        blocks = [stage.block for stage in stages]
        if blocks != sorted(set(blocks)):
            raise ValueError(f"pruning stages must be at different, ascending blocks, got {blocks}")
        for stage in stages:
            if not 0.0 < stage.keep <= 1.0:
                raise ValueError(f"keep_rate must be in (0, 1], got {stage.keep} at block {stage.block}")
        self.stages = tuple(Stage(*stage) for stage in stages)

    def decide(self, stage: int, tokens: Tokens, others: int, progress: float = 1.0) -> Decision:
        """Decide at ``self.stages[stage]`` about tokens (B, P, D); ``others`` prefix tokens share their sequence.

        progress: share of the training done, for policies that remove fewer tokens at its start.

        ``tokens.weight`` carries what earlier stages decided: bool where a token is padding, float where it is soft.
        """
        raise NotImplementedError

    def sample_window(self, depth: int) -> Window | None:
        """The random window of this training step, or None. Drawn from torch's global generator."""
        return None

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """The policy's own loss terms, already weighted.

        label: (B, 1, H, W) float, 1 vessel, 0 background, negative ignored. progress: share of the training done.
        """
        return {}

    def with_keep_rate(self, keep: float | Sequence[float]) -> "Policy":
        """A policy that shares all parameters with this one and keeps another share of tokens at every stage."""
        stages = plan([stage.block for stage in self.stages], keep)
        twin = copy.copy(self)
        twin.stages = stages
        return twin


def active_targets(stages: Sequence[Stage], progress: float, ramp: float) -> list[float]:
    """Cumulative keep targets, ramped from 1 to their final values over the first share ``ramp`` of the training.

    For cumulative target c: 1 - alpha (1 - c) with alpha = min(1, progress / ramp).
    """
    alpha = 1.0 if ramp <= 0 else min(1.0, progress / ramp)
    targets, cumulative = [], 1.0
    for stage in stages:
        cumulative *= stage.keep
        targets.append(1.0 - alpha * (1.0 - cumulative))
    return targets


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of (B, P) over the valid tokens of each image: (B,)."""
    if valid is None:
        return values.mean(1)
    return (values * valid).sum(1) / valid.sum(1).clamp(min=1)


def kept(route: Route, count: int) -> Tensor:
    """A route as a map over the tokens it chose from: (B, count) float, 1 kept and 0 dropped."""
    ones = torch.ones_like(route.index, dtype=torch.float32) if route.valid is None else route.valid.float()
    empty = torch.zeros(route.index.shape[0], count, device=route.index.device)
    return empty.scatter(1, route.index, ones)
