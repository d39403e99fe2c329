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
    route_opens: first and last block after which it may open; default 2 and half the depth.
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

        Opens after block l ~ U{2..max(2, min(L/2, L-2))}, closes after block n ~ U{l+1..max(l+1, L-2)}.
        """
        step = self.base.draw(progress, depth)
        first, last = self.route_opens or (2, max(2, min(depth // 2, depth - 2)))
        if not self.training or depth <= first + 1:
            return step
        opened = _uniform(first, min(last, depth - 2))
        closed = _uniform(opened + 1, max(opened + 1, min(self.route_closes or depth, depth - 2)))
        return step._replace(window=Window(opened + 1, closed + 1, self.route_keep))

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """As the policy below."""
        return self.base.loss(trace, label, progress)

    def with_keep_rate(self, keep: float | Sequence[float]) -> "Policy":
        """The policy below with other keep rates, under the same random window."""
        twin = super().with_keep_rate(keep)
        twin._modules = {**self._modules, "base": self.base.with_keep_rate(keep)}
        return twin


def _uniform(low: int, high: int) -> int:
    """An integer in [low, high], from torch's global generator, whose state is kept in checkpoints."""
    return int(torch.randint(low, high + 1, ()))
