"""Gumbel pruning: the noisy decision gates one block, then the tokens with the highest noisy scores go on, for real."""

from torch import Tensor

from ..tokens import Tokens, route_top
from .base import FINAL, Decision, Step, Trace, active_rates
from .dynamicvit import DynamicViT, straight_through


class Gumbel(DynamicViT):
    """Tokens are removed in training as at inference; the decision's own block is where the selector learns.

    Arguments as in DynamicViT. At inference both are the same.
    """

    def decide(self, stage: int, tokens: Tokens, others: int, step: Step = FINAL) -> Decision:
        """In training the decision weights the keys of the stage's own block, after which the top-k go on."""
        if not self.training:
            return super().decide(stage, tokens, others, step)
        score = self.score(stage, tokens)
        keep = straight_through((score >= 0).to(score.dtype), score.sigmoid())
        if tokens.weight is not None:
            keep = keep * tokens.weight
        valid = tokens.weight if tokens.weight is None else tokens.weight > 0
        return Decision(keep, None, route_top(score, valid, self.rate(stage, step), others), score, keep)

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """Budget loss: squared distance of the mean keep among those still there from the stage's own rate."""
        return self._budget(trace, active_rates([record.stage for record in trace.stages], progress, self.ramp))
