"""Soft evaluation: a policy's decisions as masks at inference, to tell what removal costs from what masking costs."""

from collections.abc import Sequence

from torch import Tensor

from ..tokens import Tokens
from .base import FINAL, Decision, Policy, Step
from .random import hashed


class Soft(Policy):
    """Masks what another policy would remove: nobody else attends to such a token, but it is computed to the end.

    Tokens that are kept pass through the network exactly as if the others were gone. The others stay fresh where the
    other policy leaves them stale. Removes nothing, so it saves nothing. For evaluation only.
    above: keep the tokens with at least this score, as DynamicViT does in training with 0, instead of as many as the
        other policy keeps.
    noise: add to the scores the logistic noise that DynamicViT adds in training, as a fixed function of position and
        stage; it acts on ``above`` only.
    unmask: masked tokens are seen by all again from the reactivation block on, as removed ones are; else by none to
        the end, as in the training of DynamicViT.
    """

    def __init__(self, base: Policy, above: float | None = None, noise: bool = False, unmask: bool = False):
        super().__init__(base.stages)
        self.base = base
        self.above = above
        self.noise = noise
        self.unmask = unmask

    def decide(self, stage: int, tokens: Tokens, others: int, step: Step = FINAL) -> Decision:
        """The decision of the other policy, 1 or 0 for each token, as a weight.

        Raises ValueError in training mode, and for a policy that removes tokens after the stage's own block.
        """
        if self.training:
            raise ValueError("soft pruning is a way to evaluate: call eval() on the network first")
        decision = self.base.decide(stage, tokens, others, step)
        if decision.after is not None:
            raise ValueError(
                f"{type(self.base).__name__} removes tokens after the stage's own block; soft pruning masks from that "
                "block on, which is another network: give it a policy that removes before the block"
            )
        keep = decision.keep if self.above is None else self._above(stage, tokens, decision.score, self.above)
        return Decision(keep, None, None, decision.score, keep)

    def _above(self, stage: int, tokens: Tokens, score: Tensor, threshold: float) -> Tensor:
        if self.noise:
            uniform = hashed(tokens.pos.expand(score.shape[0], -1, -1), stage).clamp(1e-7, 1 - 1e-7)
            score = score + uniform.logit()
        keep = (score >= threshold).to(score.dtype)
        return keep if tokens.weight is None else keep * tokens.weight  # dropped once, dropped for good

    def with_keep_rate(self, keep: float | Sequence[float]) -> "Policy":
        """The other policy with other keep rates, softly."""
        return Soft(self.base.with_keep_rate(keep), self.above, self.noise, self.unmask).train(self.training)
