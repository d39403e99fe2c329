import math

import pytest
import torch

from networks import disc, small_network
from reg4pru_monai.losses import TrainingStep, segmentation_loss


def by_hand(pairs: list[tuple[float, float]]) -> float:
    """(logit, target) of every pixel that counts."""
    probability = [(1 / (1 + math.exp(-logit)), target) for logit, target in pairs]
    entropy = -sum(math.log(p if t else 1 - p) for p, t in probability) / len(pairs)
    overlap = sum(p * t for p, t in probability)
    dice = 1 - (2 * overlap + 1) / (sum(p for p, _ in probability) + sum(t for _, t in probability) + 1)
    return 5 * (entropy + dice)


def test_segmentation_loss_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0], [-1.0, 0.5]]]])
    label = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert float(segmentation_loss(logits, label)) == pytest.approx(
        by_hand([(0, 0), (2, 1), (-1, 0), (0.5, 1)]), rel=1e-6
    )
    assert float(segmentation_loss(logits, label, weight=1.0)) * 5 == pytest.approx(
        float(segmentation_loss(logits, label))
    )


def test_ignored_pixels_do_not_count() -> None:
    logits = torch.tensor([[[[0.0, 2.0], [-1.0, 0.5]]]], requires_grad=True)
    label = torch.tensor([[[[-1.0, 1.0], [0.0, -1.0]]]])
    loss = segmentation_loss(logits, label)
    assert loss.item() == pytest.approx(by_hand([(2, 1), (-1, 0)]), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[label < 0] == 0).all()
    assert (logits.grad[label >= 0] != 0).all()


def test_all_ignored_is_zero_and_finite() -> None:
    assert float(segmentation_loss(torch.randn(1, 1, 3, 3), torch.full((1, 1, 3, 3), -1.0))) == 0.0


def test_a_crop_without_vessel_still_teaches() -> None:
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    segmentation_loss(logits, torch.zeros(1, 1, 2, 2)).backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_a_perfect_prediction_costs_nothing() -> None:
    label = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    assert float(segmentation_loss((label - 0.5) * 100, label)) == pytest.approx(0.0, abs=1e-6)


def test_training_step_sums_every_prediction_and_adds_the_policy() -> None:
    network = small_network("dynamicvit", "eomt").train()
    image, fov = torch.randn(2, 3, 24, 40), torch.cat((disc((24, 40), (12, 20), 11), disc((24, 40), (5, 9), 9)))
    label = (torch.rand(2, 1, 24, 40) < 0.3).float()
    torch.manual_seed(4)
    terms = TrainingStep(network)(image, label, fov, progress=0.3)
    torch.manual_seed(4)
    logits, trace = network.forward_with_trace(image, fov)
    inside = torch.where(fov, label, -torch.ones(()))
    wanted = torch.stack([segmentation_loss(each, inside) for each in (*trace.auxiliary, logits)]).sum()
    assert set(terms) == {"segmentation", "budget"}
    assert torch.allclose(terms["segmentation"], wanted)
    assert torch.allclose(terms["budget"], network.encoder.policy.loss(trace, inside, 0.3)["budget"])


def test_labels_outside_the_field_of_view_do_not_matter() -> None:
    network = small_network("dense", "eomt").eval()
    image, fov = torch.randn(1, 3, 24, 40), disc((24, 40), (12, 20), 9)
    losses = []
    for outside in (0.0, 1.0):
        label = torch.where(fov, torch.zeros(()), torch.full((), outside))
        losses.append(TrainingStep(network)(image, label, fov, 0.0)["segmentation"].item())
    assert losses[0] == losses[1]


def test_dense_has_no_loss_of_its_own() -> None:
    network = small_network("dense", "skip").train()
    label = torch.zeros(2, 1, 24, 40)
    assert set(TrainingStep(network)(torch.randn(2, 3, 24, 40), label, label + 1, 0.0)) == {"segmentation"}
