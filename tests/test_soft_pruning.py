"""Masking what a policy would remove: between dense, training and removal, and what it shares with each."""

from typing import Any

import pytest
import torch
from torch import Tensor

from networks import Recorder, disc, small_network
from reg4pru_monai import processes
from reg4pru_monai.blocks import grid_positions
from reg4pru_monai.policies import POLICIES
from reg4pru_monai.policies.base import Decision
from reg4pru_monai.policies.random import hashed
from reg4pru_monai.segmenter import Segmenter

PRUNING = sorted(set(POLICIES) - {"dense"})
SIZE = (24, 40)  # 6 x 10 patches


@pytest.fixture(params=PRUNING)
def network(request: pytest.FixtureRequest) -> Segmenter:
    return small_network(request.param).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("unmask", [False, True])
def test_where_all_are_kept_it_is_the_dense_network(network: Segmenter, image: Tensor, unmask: bool) -> None:
    soft = network.with_keep_rate(1.0).with_soft_pruning(unmask=unmask)
    assert torch.allclose(soft(image), network.dense()(image), atol=1e-5)
    assert not torch.allclose(network.with_soft_pruning(unmask=unmask)(image), network.dense()(image), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("policy", ["dynamicvit", "reg4pru"])
def test_a_threshold_of_zero_is_the_mask_of_training(
    policy: str, noise: bool, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network(policy, keep_logit=0.0).train()
    stages = iter(range(3))

    def drawn(rows: int, *shape: int, device: torch.device) -> Tensor:
        if not noise:
            return torch.full((rows, *shape), 0.5)  # logistic noise of 0
        return hashed(grid_positions(6, 10, device).expand(rows, -1, -1), next(stages))

    monkeypatch.setattr(processes, "uniform", drawn)
    expected, trace = network.forward_with_trace(image, step=network.draw()._replace(window=None))
    soft = network.eval().with_soft_pruning(above=0.0, noise=noise)
    found, own = soft.forward_with_trace(image)
    assert torch.allclose(found, expected, atol=1e-5)
    for ours, theirs in zip(own.stages, trace.stages, strict=True):
        assert 0 < float(ours.keep.mean()) < 1
        assert torch.equal(ours.keep, theirs.keep)


@torch.no_grad()
def test_kept_tokens_pass_as_if_the_others_were_gone(network: Segmenter, image: Tensor) -> None:
    hard = Recorder(network)
    _, removed = network.forward_with_trace(image)
    soft = Recorder(network)  # on the same blocks, of the second pass alone
    _, masked = network.with_soft_pruning().forward_with_trace(image)
    last = removed.stages[-1]
    survivors = last.pool.index[last.keep > 0].view(2, -1)
    assert torch.equal(masked.stages[-1].keep.nonzero()[:, 1].view(2, -1), survivors)
    assert masked.lengths == (65,) * 6 + (66,) * 2
    full = soft.outputs[6][:, 6:].gather(1, survivors.unsqueeze(-1).expand(-1, -1, 32))
    assert torch.allclose(full, hard.outputs[6][:, 6:], atol=1e-5)


@torch.no_grad()
def test_unmasked_tokens_are_seen_by_all_from_the_reactivation_block_on(image: Tensor) -> None:
    for unmask in (False, True):
        network = small_network("dynamicvit").eval()
        record = Recorder(network)
        network.with_soft_pruning(unmask=unmask)(image)
        assert all(weight is not None for weight in record.weights[1:7])
        assert (record.weights[7] is None) == unmask


@torch.no_grad()
def test_it_is_the_pruned_network_where_nothing_can_be_stale(network: Segmenter, image: Tensor) -> None:
    fov = torch.cat((disc(SIZE, (12, 20), 11), torch.ones(1, 1, *SIZE, dtype=torch.bool)))
    for block in network.encoder.blocks[1:7]:  # blocks that do nothing, between the first stage and reactivation
        block.gamma_1.zero_()
        block.gamma_2.zero_()
    assert torch.allclose(network.with_soft_pruning(unmask=True)(image, fov), network(image, fov), atol=1e-5)
    assert not torch.allclose(network.with_soft_pruning()(image, fov), network(image, fov), atol=1e-5)


@torch.no_grad()
def test_an_image_is_treated_alike_in_every_batch(network: Segmenter, image: Tensor) -> None:
    fov = torch.cat((disc(SIZE, (12, 20), 11), torch.ones(1, 1, *SIZE, dtype=torch.bool)))
    soft = network.with_soft_pruning()
    alone = torch.cat([soft(image[i : i + 1], fov[i : i + 1]) for i in range(2)])
    assert torch.allclose(soft(image, fov), alone, atol=1e-5)


@torch.no_grad()
def test_keep_rate_is_that_of_the_policy_below(network: Segmenter, image: Tensor) -> None:
    after = network.with_keep_rate(0.4).with_soft_pruning()(image)
    assert torch.equal(network.with_soft_pruning().with_keep_rate(0.4)(image), after)


def test_a_policy_that_removes_after_its_block_is_refused(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network("dynamicvit").eval()
    policy = network.encoder.policy
    decide = policy.decide

    def late(*arguments: Any) -> Decision:
        found = decide(*arguments)
        return found._replace(before=None, after=found.before)

    monkeypatch.setattr(policy, "decide", late)
    with pytest.raises(ValueError, match="DynamicViT removes tokens after the stage's own block"):
        network.with_soft_pruning()(image)


def test_it_is_no_way_to_train(image: Tensor) -> None:
    network = small_network("dynamicvit").train().with_soft_pruning()
    with pytest.raises(ValueError, match=r"call eval\(\) on the network first"):
        network(image)
