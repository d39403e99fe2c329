"""Segmentation loss and policy losses, from logits and trace."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import processes
from .segmenter import Segmenter


def segmentation_loss(logits: Tensor, label: Tensor, weight: float = 5.0) -> Tensor:
    """Binary cross-entropy plus Dice loss over the pixels of the field of view, each times ``weight``.

    logits: (B, 1, H, W). label: (B, 1, H, W) float, 1 vessel, 0 background, negative ignored. The weights are EoMT's;
    the Dice term is over the whole batch, 1 - (2 sum pt + 1) / (sum p + sum t + 1): crops without a vessel count too.
    The whole batch is that of all processes: each has the same value, and the gradient of `processes.sums`.
    """
    inside = (label >= 0).to(logits.dtype)
    target = label.clamp(min=0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid() * inside
    entropy, pixels, overlap, predicted, vessel = processes.sums(
        (cross_entropy * inside).sum(),
        inside.sum(),
        (probability * target).sum(),
        probability.sum(),
        (target * inside).sum(),
    )
    dice = 1 - (2 * overlap + 1) / (predicted + vessel + 1)
    return weight * (entropy / pixels.clamp(min=1) + dice)


class TrainingStep(nn.Module):
    """Network and losses in one module, so that data-parallel training sees a single forward pass."""

    def __init__(self, network: Segmenter):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, label: Tensor, fov: Tensor, progress: float) -> dict[str, Tensor]:
        """The loss terms of one batch. Their mean over processes is that of the whole batch, and so is their gradient.

        image: (B, 3, H, W). label: (B, 1, H, W), 1 vessel, 0 background. fov: (B, 1, H, W), non-zero inside.
        progress: share of the training done. Every prediction of the deep supervision counts the same (EoMT).
        """
        label = torch.where(fov > 0, label, torch.full_like(label, -1.0))
        logits, trace = self.network.forward_with_trace(image, fov, self.network.draw(progress))
        terms = [segmentation_loss(each.float(), label) for each in (*trace.auxiliary, logits)]
        policy_terms = self.network.encoder.policy.loss(trace, label, progress)
        return {"segmentation": torch.stack(terms).sum(), **policy_terms}
