"""Reg4Pru (Wyatt, Clark, Voiculescu, arXiv 2602.02163): random token routing while training.

A random half of the tokens skips a random run of blocks, so that the network learns to live with the stale features
that pruned tokens carry when they come back.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..tokens import Tokens
from .base import Decision, Policy, Stage, Trace, Window
from .dynamicvit import DynamicViT


class Reg4Pru(Policy):
    """Adds the random window to any policy; at inference it is that policy.

    route_keep: share of the tokens that pass through the window.
    """

    def __init__(self, base: Policy, route_keep: float = 0.5):
        super().__init__(base.stages)
        if not 0.0 < route_keep <= 1.0:
            raise ValueError(f"route_keep must be in (0, 1], got {route_keep}")
        self.base = base
        self.route_keep = route_keep

    @classmethod
    def over_dynamicvit(cls, dim: int, stages: Sequence[Stage], route_keep: float = 0.5, **options: Any) -> "Reg4Pru":
        """The published method: the window over DynamicViT's soft masks."""
        return cls(DynamicViT(dim, stages, **options), route_keep)

    def decide(self, stage: int, tokens: Tokens, others: int, progress: float = 1.0) -> Decision:
        """As the policy below."""
        return self.base.decide(stage, tokens, others, progress)

    def sample_window(self, depth: int) -> Window | None:
        """Opens after block l ~ U{2..max(2, min(L/2, L-2))}, closes after block n ~ U{l+1..max(l+1, L-2)}."""
        if not self.training or depth < 4:
            return None
        opened = _uniform(2, max(2, min(depth // 2, depth - 2)))
        closed = _uniform(opened + 1, max(opened + 1, depth - 2))
        return Window(opened + 1, closed + 1, self.route_keep)

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
