"""Segmentation loss and policy losses, from logits and trace."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .segmenter import Segmenter


def segmentation_loss(logits: Tensor, label: Tensor, weight: float = 5.0) -> Tensor:
    """Binary cross-entropy plus Dice loss over the pixels of the field of view, each times ``weight``.

    logits: (B, 1, H, W). label: (B, 1, H, W) float, 1 vessel, 0 background, negative ignored. The weights are EoMT's;
    the Dice term is over the whole batch, 1 - (2 sum pt + 1) / (sum p + sum t + 1): crops without a vessel count too.
    """
    inside = (label >= 0).to(logits.dtype)
    target = label.clamp(min=0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross_entropy = (cross_entropy * inside).sum() / inside.sum().clamp(min=1)
    probability = logits.sigmoid() * inside
    overlap = (probability * target).sum()
    dice = 1 - (2 * overlap + 1) / (probability.sum() + (target * inside).sum() + 1)
    return weight * (cross_entropy + dice)


class TrainingStep(nn.Module):
    """Network and losses in one module, so that data-parallel training sees a single forward pass."""

    def __init__(self, network: Segmenter):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, label: Tensor, fov: Tensor, progress: float) -> dict[str, Tensor]:
        """The loss terms of one batch.

        image: (B, 3, H, W). label: (B, 1, H, W), 1 vessel, 0 background. fov: (B, 1, H, W), non-zero inside.
        progress: share of the training done. Every prediction of the deep supervision counts the same (EoMT).
        """
        label = torch.where(fov > 0, label, torch.full_like(label, -1.0))
        logits, trace = self.network.forward_with_trace(image, fov, self.network.draw(progress))
        terms = [segmentation_loss(each.float(), label) for each in (*trace.auxiliary, logits)]
        policy_terms = self.network.encoder.policy.loss(trace, label, progress)
        return {"segmentation": torch.stack(terms).sum(), **policy_terms}
