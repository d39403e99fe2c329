"""What every policy is, and what it leaves behind."""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tokens import Route, Tokens


class Stage(NamedTuple):
    """A pruning stage: before which block it acts, and what it keeps.

    keep: share of the tokens still there; where ``constant``, what the stage leaves if it loses its 1 - keep of the
    *whole* grid, the same number of tokens at every stage.
    """

    block: int
    keep: float
    constant: bool = False


def plan(blocks: Sequence[int], keep_rate: float | Sequence[float], constant: bool = False) -> tuple[Stage, ...]:
    """Stages at the given blocks, with one keep rate for all or one for each. Raises ValueError."""
    if isinstance(keep_rate, str):
        raise ValueError(f"keep_rate must be a number or a list of numbers, got {keep_rate!r}; write 0.5, not 5e-1")
    rates = [keep_rate] * len(blocks) if isinstance(keep_rate, int | float) else list(keep_rate)
    if len(rates) != len(blocks):
        raise ValueError(
            f"keep_rate must be one number or one for each of {len(blocks)} stages {list(blocks)}, got {keep_rate}"
        )
    return tuple(Stage(int(block), float(rate), constant) for block, rate in zip(blocks, rates, strict=True))


def active_targets(stages: Sequence[Stage], progress: float, ramp: float) -> list[float]:
    """Cumulative keep targets, ramped from 1 to their final values over the first share ``ramp`` of the training.

    For cumulative target c: 1 - alpha (1 - c) with alpha = min(1, progress / ramp).
    """
    alpha = 1.0 if ramp <= 0 else min(1.0, progress / ramp)
    targets, cumulative = [], 1.0
    for stage in stages:
        cumulative = cumulative - (1.0 - stage.keep) if stage.constant else cumulative * stage.keep
        targets.append(1.0 - alpha * (1.0 - cumulative))
    return targets


def active_rates(stages: Sequence[Stage], progress: float, ramp: float) -> list[float]:
    """The targets of :func:`active_targets` as shares of the tokens that the stage before left."""
    targets = active_targets(stages, progress, ramp)
    return [target / before for target, before in zip(targets, [1.0, *targets], strict=False)]


class Window(NamedTuple):
    """A run of blocks [start, end) that only a random share ``keep`` of the tokens passes through."""

    start: int
    end: int
    keep: float


class Step(NamedTuple):
    """What one training step draws by chance, outside of any compiled graph, and how far the training is.

    progress: share of the training done, for policies that remove fewer tokens at its start; 1 at inference.
    window: random run of blocks, or None.
    keep: keep rate of every stage in this step, or None for the stages' own.
    """

    progress: float = 1.0
    window: Window | None = None
    keep: float | None = None


FINAL = Step()


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

    grid: (h, w). patch: pixels per side of a patch. lengths: sequence length of each block. stages: a record of each.
    auxiliary: logits (B, 1, H, W) of the deep supervision, first to last; empty for decoders without it.
    """

    grid: tuple[int, int]
    patch: int
    lengths: tuple[int, ...]
    stages: tuple[StageTrace, ...]
    auxiliary: tuple[Tensor, ...]


class Policy(nn.Module):
    """Decides at its stages which tokens go on. Subclasses override what differs.

    ramp: share of the training over which the budget falls from all tokens to its target.
    keep_range: lowest and highest keep rate. Every training step draws one between them, uniformly, for all its stages:
    one network then serves every budget. None: the stages' own rates.
    unmask: whether soft weights end at the reactivation block, as removal does.
    """

    unmask = False

    def __init__(
        self, stages: Sequence[Stage] = (), ramp: float = 0.0, keep_range: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        blocks = [stage.block for stage in stages]
        if blocks != sorted(set(blocks)):
            raise ValueError(f"pruning stages must be at different, ascending blocks, got {blocks}")
        if keep_range is not None and not (len(keep_range) == 2 and 0.0 < keep_range[0] <= keep_range[1] <= 1.0):
            raise ValueError(f"keep_range must be two keep rates in (0, 1], the lower first, got {keep_range}")
        self.stages = _checked(stages)
        self.ramp = ramp
        self.keep_range = None if keep_range is None else (float(keep_range[0]), float(keep_range[1]))
        if keep_range is not None:
            _checked([stage._replace(keep=keep_range[0]) for stage in stages])

    def draw(self, progress: float, depth: int) -> Step:
        """What this training step leaves to chance, from torch's global generator. depth: number of blocks."""
        if not self.training or self.keep_range is None:
            return Step(progress)
        low, high = self.keep_range
        return Step(progress, keep=low + (high - low) * float(torch.rand(())))

    def active_stages(self, step: Step) -> tuple[Stage, ...]:
        """The stages with the keep rate of this step."""
        if step.keep is None:
            return self.stages
        return _checked([stage._replace(keep=step.keep) for stage in self.stages])

    def rate(self, stage: int, step: Step) -> float:
        """The share of the tokens it is shown that a stage physically keeps.

        The ramp comes in quarters: a budget that changed at every step would make a compiler start over each time.
        """
        ramped = min(1.0, step.progress / self.ramp) if self.training and self.ramp > 0 else 1.0
        return active_rates(self.active_stages(step), math.floor(4 * ramped) / 4, 1.0)[stage]

    def decide(self, stage: int, tokens: Tokens, others: int, step: Step = FINAL) -> Decision:
        """Decide at ``self.stages[stage]`` about tokens (B, P, D); ``others`` prefix tokens share their sequence.

        ``tokens.weight`` carries what earlier stages decided: bool where a token is padding, float where it is soft.
        """
        raise NotImplementedError

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """The policy's own loss terms, already weighted.

        label: (B, 1, H, W) float, 1 vessel, 0 background, negative ignored. progress: share of the training done.
        """
        return {}

    def with_keep_rate(self, keep: float | Sequence[float]) -> "Policy":
        """A policy that shares all parameters with this one and keeps another share of tokens at every stage."""
        constant = any(stage.constant for stage in self.stages)
        twin = copy.copy(self)
        twin.stages = _checked(plan([stage.block for stage in self.stages], keep, constant))
        return twin


def _checked(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, if they leave tokens at every stage. Raises ValueError."""
    stages = tuple(Stage(*stage) for stage in stages)
    for stage, left in zip(stages, active_targets(stages, 1.0, 0.0), strict=True):
        if not 0.0 < stage.keep <= 1.0:
            raise ValueError(f"keep_rate must be in (0, 1], got {stage.keep} at block {stage.block}")
        if left < 1e-9:
            raise ValueError(
                f"keep_rate {stage.keep} of all tokens at each of {len(stages)} stages leaves none at block "
                f"{stage.block}; it must be above {1 - 1 / len(stages):.3f}"
            )
    return stages


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
