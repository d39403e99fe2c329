"""Cropr (Bergner, Lippert and Mahendran, CVPR 2025): a scorer that learns from the task's own labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import processes
from ..tokens import Tokens, route_top
from .base import FINAL, Decision, Policy, Stage, StageTrace, Step, Trace, kept


class Cropr(Policy):
    """One linear scorer per stage says which patches hold a vessel; the others are removed, in training too.

    The scorers read detached features: they watch the network and do not bend it.
    scorer_weight: weight of their loss. ramp, keep_range: see Policy.
    """

    def __init__(
        self,
        dim: int,
        stages: Sequence[Stage],
        scorer_weight: float = 4.0,
        ramp: float = 0.2,
        keep_range: Sequence[float] | None = None,
    ):
        super().__init__(stages, ramp, keep_range)
        self.scorer_weight = scorer_weight
        self.scorers = nn.ModuleList(nn.Linear(dim, 1) for _ in stages)

    def decide(self, stage: int, tokens: Tokens, others: int, step: Step = FINAL) -> Decision:
        """The top-k go on, before the stage's own block, in training and at inference."""
        score = self.scorers[stage](tokens.x.detach()).squeeze(-1).float()
        valid = tokens.weight if tokens.weight is None else tokens.weight > 0
        route = route_top(score.detach(), valid, self.rate(stage, step), others)
        return Decision(None, route, None, score, kept(route, score.shape[1]))

    def loss(self, trace: Trace, label: Tensor, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of the scores against "this patch holds a vessel", mean over stages.

        Over the tokens that each stage was shown and that lie inside the label; a vessel patch counts
        clamp(background patches / vessel patches, 1, 50) times.
        """
        if not trace.stages:
            return {}
        patches = patch_labels(label, trace.patch)
        return {"scorer": self.scorer_weight * torch.stack([_scored(each, patches) for each in trace.stages]).mean()}


def patch_labels(label: Tensor, patch: int) -> Tensor:
    """1 where a patch holds a vessel pixel, 0 where none, -1 where nothing of it is labelled.

    label: (B, 1, H, W), vessel at least 0.5, negative ignored; padded to whole patches at the right and below. Returns
    (B, h*w) float.
    """
    padded = F.pad(label, (0, -label.shape[-1] % patch, 0, -label.shape[-2] % patch), value=-1.0)
    highest = F.max_pool2d(padded, patch).flatten(1)
    return torch.where(highest < 0, -1.0, (highest >= 0.5).to(highest.dtype))


def _scored(record: StageTrace, patches: Tensor) -> Tensor:
    target = patches.gather(1, record.pool.index)
    counted = target >= 0 if record.pool.valid is None else (target >= 0) & record.pool.valid
    vessel, every = processes.sums((counted & (target > 0)).sum(), counted.sum())
    factor = ((every - vessel) / vessel.clamp(min=1)).clamp(1.0, 50.0)
    loss = F.binary_cross_entropy_with_logits(record.score, target.clamp(min=0), pos_weight=factor, reduction="none")
    return processes.sums((loss * counted).sum())[0] / every.clamp(min=1)
