"""DynamicViT (Rao et al., NeurIPS 2021): soft masks while training, the lowest-scoring tokens removed at inference."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import processes
from ..tokens import Tokens, route_top
from .base import FINAL, Decision, Policy, Stage, Step, Trace, active_rates, active_targets, kept, masked_mean


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


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of ``hard`` with the gradient of ``soft``."""
    return hard - soft.detach() + soft


class DynamicViT(Policy):
    """Straight-through Gumbel decisions that gate attention in training; hard top-k at inference.

    budget_weight: weight of the budget loss. ramp, keep_range: see Policy; where a keep rate is drawn for every step,
    exactly that share of the noisy scores is kept instead of those above one half.
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
        keep_range: Sequence[float] | None = None,
    ):
        super().__init__(stages, ramp, keep_range)
        self.budget_weight = budget_weight
        self.selectors = nn.ModuleList(selector(dim, keep_logit) for _ in stages)

    def decide(self, stage: int, tokens: Tokens, others: int, step: Step = FINAL) -> Decision:
        """Soft in training: nothing is removed. Hard at inference: the top-k go on, before the stage's own block."""
        score = self.score(stage, tokens)
        if self.training:
            keep = self._sampled(stage, score, tokens.weight, others, step)
            if tokens.weight is not None:
                keep = keep * tokens.weight  # dropped once, dropped for good; the gradient reaches earlier stages too
            return Decision(keep, None, None, score, keep)
        valid = tokens.weight if tokens.weight is None else tokens.weight > 0
        route = route_top(score, valid, self.rate(stage, step), others)
        return Decision(None, route, None, score, kept(route, score.shape[1]))

    def score(self, stage: int, tokens: Tokens) -> Tensor:
        """Log-odds of keeping each token, (B, P) float32, in training with the noise of a Gumbel softmax at tau 1.

        The softmax of two logits with Gumbel noise is the sigmoid of their difference with logistic noise. The log-odds
        rank as the probability does, which saturates into ties.
        """
        logits = self.selectors[stage](tokens.x).float()  # noise in half precision would be too coarse
        score = logits[..., 0] - logits[..., 1]
        if not self.training:
            return score
        uniform = processes.uniform(*score.shape, device=score.device).clamp(1e-7, 1 - 1e-7)
        return score + uniform.log() - (-uniform).log1p()

    def _sampled(self, stage: int, score: Tensor, earlier: Tensor | None, others: int, step: Step) -> Tensor:
        """Which tokens to keep: 0 or 1, with the gradient of the keep probability. (B, P)."""
        if step.keep is None:
            return straight_through((score >= 0).to(score.dtype), score.sigmoid())
        rate = active_rates(self.active_stages(step), step.progress, self.ramp)[stage]
        there = None if earlier is None else earlier > 0.5
        hard = kept(route_top(score, there, rate, others), score.shape[1])
        # The gradient belongs to the threshold that was applied: scores are measured from the lowest one that is kept.
        threshold = score.masked_fill(hard == 0, torch.inf).amin(1, keepdim=True).detach()
        return straight_through(hard, (score - threshold).sigmoid())

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """Budget loss: squared distance of the mean keep from its cumulative target, per image, mean over stages."""
        return self._budget(trace, active_targets([record.stage for record in trace.stages], progress, self.ramp))

    def _budget(self, trace: Trace, targets: Sequence[float]) -> dict[str, Tensor]:
        terms = [
            (masked_mean(record.keep, record.pool.valid) - target).square().mean()
            for record, target in zip(trace.stages, targets, strict=True)
        ]
        return {"budget": self.budget_weight * torch.stack(terms).mean()} if terms else {}
