"""DynamicViT (Rao et al., NeurIPS 2021): soft masks while training, the lowest-scoring tokens removed at inference."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Tokens, route_top
from .base import Decision, Policy, Stage, Trace, active_targets, kept, masked_mean


def selector(dim: int, keep_logit: float) -> nn.Sequential:
    """LayerNorm and a three-layer MLP, (B, P, D) -> (B, P, 2): logits to keep and to drop."""
    net = nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
    )
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([keep_logit / 2, -keep_logit / 2]))
    return net


class DynamicViT(Policy):
    """Straight-through Gumbel decisions that gate attention in training; hard top-k at inference.

    budget_weight: weight of the budget loss. ramp: share of the training over which the budget falls to its target.
    keep_logit: initial log-odds of keeping a token. The published form is 0, which drops half the tokens at every stage
    from the first step on, whatever the ramp says; the default keeps 98 %.
    """

    def __init__(
        self,
        dim: int,
        stages: Sequence[Stage],
        budget_weight: float = 4.0,
        ramp: float = 0.2,
        keep_logit: float = 4.0,
    ):
        super().__init__(stages)
        self.budget_weight = budget_weight
        self.ramp = ramp
        self.selectors = nn.ModuleList(selector(dim, keep_logit) for _ in stages)

    def decide(self, stage: int, tokens: Tokens, others: int, progress: float = 1.0) -> Decision:
        """Soft in training: nothing is removed. Hard at inference: the top-k go on, before the stage's own block."""
        logits = self.selectors[stage](tokens.x).float()  # noise in half precision would be too coarse
        if self.training:
            return self._soft(logits, tokens.weight)
        score = logits[..., 0] - logits[..., 1]  # ranks as the keep probability does, which saturates into ties
        valid = tokens.weight if tokens.weight is None else tokens.weight > 0
        route = route_top(score, valid, self.stages[stage].keep, others)
        return Decision(None, route, None, score, kept(route, score.shape[1]))

    def _soft(self, logits: Tensor, earlier: Tensor | None) -> Decision:
        score = F.gumbel_softmax(logits, tau=1.0, hard=False)[..., 0]
        hard = (score >= 0.5).to(score.dtype)
        keep = hard - score.detach() + score
        if earlier is not None:
            keep = keep * earlier  # dropped once, dropped for good; the gradient reaches the earlier stages too
        return Decision(keep, None, None, score, keep)

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """Budget loss: squared distance of the mean keep from its cumulative target, per image, mean over stages."""
        targets = active_targets(self.stages, progress, self.ramp)
        terms = [
            (masked_mean(record.keep, record.pool.valid) - target).square().mean()
            for record, target in zip(trace.stages, targets, strict=True)
        ]
        if not terms:
            return {}
        return {"budget": self.budget_weight * torch.stack(terms).mean()}
