"""Reg4Pru (Wyatt, Clark, Voiculescu, arXiv 2602.02163): random token routing while training.

A random half of the tokens skips a random run of blocks, so that the network learns to live with the stale features
that pruned tokens carry when they come back.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..tokens import Tokens
from .base import FINAL, Decision, Policy, Stage, Step, Trace, Window


class Reg4Pru(Policy):
    """Adds the random window to any policy; at inference it is that policy.

    route_keep: share of the tokens that pass through the window.
    route_opens: first and last block after which it may open. Default: from where the first stage removes tokens to the
        block before half the depth. So each block that a pruned token can miss is missed in training too, as in the
        paper, whose window and whose first stage both begin behind block 2 of 12 (docs/decisions/0014-window.md).
    route_closes: last block after which it may close; default the last but one. Both draws are uniform.
    """

    OPTIONS = ("route_keep", "route_opens", "route_closes")

    def __init__(
        self,
        base: Policy,
        route_keep: float = 0.5,
        route_opens: Sequence[int] | None = None,
        route_closes: int | None = None,
    ):
        super().__init__(base.stages)
        if not 0.0 < route_keep <= 1.0:
            raise ValueError(f"route_keep must be in (0, 1], got {route_keep}")
        if route_opens is not None and not (len(route_opens) == 2 and 0 <= route_opens[0] <= route_opens[1]):
            raise ValueError(f"route_opens must be two blocks, the earlier first, got {route_opens}")
        if route_closes is not None and route_closes <= (route_opens[1] if route_opens else 2):
            raise ValueError(f"route_closes must lie behind the last block of route_opens, got {route_closes}")
        self.base = base
        self.route_keep = route_keep
        self.route_opens = None if route_opens is None else (int(route_opens[0]), int(route_opens[1]))
        self.route_closes = route_closes
        self._leave = first_stage(base.stages)

    @classmethod
    def over(cls, build: Callable[..., Policy], dim: int, stages: Sequence[Stage], **options: Any) -> "Reg4Pru":
        """The window over the policy that ``build`` makes; options of either, by name."""
        own = {name: options.pop(name) for name in cls.OPTIONS if name in options}
        return cls(build(dim=dim, stages=stages, **options), **own)

    def decide(self, stage: int, tokens: Tokens, others: int, step: Step = FINAL) -> Decision:
        """As the policy below."""
        return self.base.decide(stage, tokens, others, step)

    def active_stages(self, step: Step) -> tuple[Stage, ...]:
        """As the policy below."""
        return self.base.active_stages(step)

    def draw(self, progress: float, depth: int) -> Step:
        """The window, beside what the policy below draws.

        Opens after block l ~ U{s-1..max(s-1, L/2-1)}, s the first stage's block (or 2), closes after block
        n ~ U{l+1..max(l+1, L-2)}.
        """
        step = self.base.draw(progress, depth)
        first, last = self.route_opens or self._where_tokens_leave(depth)
        if not self.training or depth <= first + 1:
            return step
        opened = _uniform(first, min(last, depth - 2))
        closed = _uniform(opened + 1, max(opened + 1, min(self.route_closes or depth, depth - 2)))
        return step._replace(window=Window(opened + 1, closed + 1, self.route_keep))

    def _where_tokens_leave(self, depth: int) -> tuple[int, int]:
        return self._leave - 1, max(self._leave, depth // 2) - 1

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """As the policy below."""
        return self.base.loss(trace, label, progress)

    def with_keep_rate(self, keep: float | Sequence[float]) -> "Policy":
        """The policy below with other keep rates, under the same random window."""
        twin = super().with_keep_rate(keep)
        twin._modules = {**self._modules, "base": self.base.with_keep_rate(keep)}
        return twin


def first_stage(stages: Sequence[Stage]) -> int:
    """The first block that pruned tokens miss, which the window may begin with; 2 where nothing is pruned."""
    return min((stage.block for stage in stages), default=2)


def _uniform(low: int, high: int) -> int:
    """An integer in [low, high], from torch's global generator, whose state is kept in checkpoints."""
    return int(torch.randint(low, high + 1, ()))
