"""Random pruning: the same budget, no scores. What a learned selector has to beat."""

from collections.abc import Sequence

from torch import Tensor

from .. import processes
from ..tokens import Tokens, route_top
from .base import FINAL, Decision, Policy, Stage, Step, kept


class Random(Policy):
    """Keeps a uniform random set of tokens at every stage. Has no parameters, so it can stand in for any other policy.

    In training each image and step draws its own set. At inference the set is a fixed function of position, stage and
    ``seed``: results repeat and do not depend on the batch. Evaluate several seeds to see the spread.
    """

    def __init__(
        self,
        dim: int,
        stages: Sequence[Stage],
        ramp: float = 0.2,
        keep_range: Sequence[float] | None = None,
        seed: int = 0,
    ):
        super().__init__(stages, ramp, keep_range)
        self.seed = seed

    def decide(self, stage: int, tokens: Tokens, others: int, step: Step = FINAL) -> Decision:
        """Removal before the stage's own block, in training and at inference."""
        batch, count, _ = tokens.x.shape
        if self.training:
            score = processes.uniform(batch, count, device=tokens.x.device)
        else:
            score = hashed(tokens.pos.expand(batch, -1, -1), self.seed * 64 + stage)
        valid = tokens.weight if tokens.weight is None else tokens.weight > 0
        route = route_top(score, valid, self.rate(stage, step), others)
        return Decision(None, route, None, score, kept(route, count))


def hashed(pos: Tensor, salt: int) -> Tensor:
    """A number in [0, 1) for every position and salt, without any pattern in space. pos: (B, P, 2). Returns (B, P).

    The multiply and shift rounds of MurmurHash3's finalizer, on 32 bits.
    """
    row, column = pos.long().unbind(-1)
    h = (row * 0x1F123BB5 + column * 0x159A55E5 + (salt + 1) * 0x9E3779B1) & 0xFFFFFFFF
    for factor in (0x45D9F3B, 0x45D9F3B):
        h = ((h ^ (h >> 16)) * factor) & 0xFFFFFFFF
    return (h ^ (h >> 16)).double().div(2**32).float()
