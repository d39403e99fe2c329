import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from networks import SMALL, disc, small_network
from reg4pru_monai.accounting import (
    Speed,
    block_cost,
    compare_speed,
    count_flops,
    decoder_cost,
    network_cost,
    paired_ratio,
    peak_memory,
    seconds,
    token_share,
)
from reg4pru_monai.blocks import Block
from reg4pru_monai.decoder import SkipDecoder
from reg4pru_monai.policies import POLICIES, Stage, StageTrace, Trace
from reg4pru_monai.segmenter import build_segmenter
from reg4pru_monai.tokens import Route

CPU = torch.device("cpu")


def block_flops(count: int, dim: int) -> int:
    """Linear layers 3 D, D and 2 x 4 D wide, two attention products; a multiply-add is 2."""
    return 2 * count * dim * (3 + 1 + 8) * dim + 2 * 2 * count**2 * dim


def test_count_flops_of_a_block_is_analytic() -> None:
    block, x = Block(64, 4, 4.0, True, 1.0).eval(), torch.randn(2, 33, 64)
    assert count_flops(lambda: block(x)) == 2 * block_flops(33, 64)
    mask = torch.rand(2, 33) < 0.5
    assert count_flops(lambda: block(x, None, mask)) == 2 * block_flops(33, 64)
    wider = 2 * 2 * 4 * (33 * 34 * (16 + 8) - 33 * 33 * 16)  # of soft attention: one key more, heads wider by 8
    assert count_flops(lambda: block(x, None, torch.rand(2, 33))) == 2 * (block_flops(33, 64) + wider)
    assert block_cost(block, 33) == block_flops(33, 64)


@pytest.mark.parametrize("decoder", ["eomt", "skip"])
@pytest.mark.parametrize("policy", [*POLICIES, "cropr+reg4pru"])
def test_the_cost_of_a_network_follows_from_its_trace(policy: str, decoder: str) -> None:
    """Exactly, as torch counts it: both leave out normalisation, activations, resizing and gathering."""
    network, image = small_network(policy, decoder).eval(), torch.randn(2, 3, 48, 64)
    for variant in (network, network.with_keep_rate(0.4), network.dense()):
        with torch.no_grad():
            trace = variant.forward_with_trace(image)[1]
        assert 2 * network_cost(variant, trace).total == count_flops(lambda v=variant: v(image))


@pytest.mark.parametrize("options", [{"stages": "jump1"}, {"stages": "per_block", "keep_rate": 0.9, "reactivate": 8}])
def test_the_cost_of_other_schedules(options: dict[str, Any]) -> None:
    network, image = small_network("cropr", **options).eval(), torch.randn(1, 3, 36, 50)  # no multiple of the patch
    with torch.no_grad():
        trace = network.forward_with_trace(image)[1]
    assert len(trace.stages) == (1 if options["stages"] == "jump1" else 7)
    assert network_cost(network, trace).total == count_flops(lambda: network(image))


def test_the_cost_of_tokens_from_convolutions() -> None:
    network, image = small_network("dense", preset=replace(SMALL, stem_width=4)).eval(), torch.randn(1, 3, 36, 50)
    with torch.no_grad():
        trace = network.forward_with_trace(image)[1]
    assert network_cost(network, trace).total == count_flops(lambda: network(image))


def test_the_cost_within_a_field_of_view() -> None:
    network, image = small_network("reg4pru").eval(), torch.randn(1, 3, 48, 48)
    fov = disc((48, 48), (24, 24), 20)
    with torch.no_grad():
        trace = network.forward_with_trace(image, fov)[1]
    assert max(trace.lengths) < 12 * 12
    assert network_cost(network, trace).total == count_flops(lambda: network(image, fov))


@pytest.mark.parametrize("size", [(28, 42), (56, 14)])
def test_the_cost_of_the_skip_decoder_at_odd_sizes(size: tuple[int, int]) -> None:
    """A half and a quarter of a patch of 14 are rounded up."""
    decoder, image = SkipDecoder(32, 4).eval(), torch.randn(1, 3, *size)
    grid = torch.randn(1, 32, size[0] // 14, size[1] // 14)
    counted = count_flops(lambda: decoder(image, decoder.query, grid))
    assert decoder_cost(decoder, (grid.shape[2], grid.shape[3]), 14) == counted


def test_the_published_cost() -> None:
    """METHOD section 11: 511.393 and 316.355 GFLOPs at 1024 x 1024 for ViT-S, eomt, one decoding, their lengths."""
    with torch.device("meta"):
        network = build_segmenter("small", "dynamicvit", "eomt")
        pools = [Route(torch.zeros(1, count), None) for count in (4096, 2867, 2003)]
    dense = network_cost(network.dense(), Trace((64, 64), 16, (4101,) * 9 + (4102,) * 3, (), ()))
    assert dense.total / 1e9 == pytest.approx(511.393, rel=1e-4)
    assert dense.blocks / 1e9 == pytest.approx(484.2, abs=0.1)
    assert dense.selectors == 0
    lengths = (4101,) * 3 + (2872,) * 3 + (2008,) * 3 + (1408,) * 2 + (4102,)
    stages = tuple(StageTrace(Stage(5, 0.7), pool, torch.zeros(0), torch.zeros(0)) for pool in pools)
    pruned = network_cost(network, Trace((64, 64), 16, lengths, stages, ()))
    assert pruned.total / 1e9 == pytest.approx(316.355, rel=1e-4)


def test_flops_fall_with_the_keep_rate() -> None:
    network, image = small_network("reg4pru").eval(), torch.randn(1, 3, 48, 64)
    variants = map(network.with_keep_rate, (0.9, 0.7, 0.5, 0.3))
    counts = [count_flops(lambda n=n: n(image)) for n in variants]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[0] < count_flops(lambda: network.with_keep_rate(1.0)(image))


def test_token_share() -> None:
    assert token_share(Trace((2, 5), 4, (10, 10, 5, 5), (), ())) == 0.75
    assert token_share(Trace((2, 5), 4, (10, 10), (), ())) == 1.0


def test_token_share_of_the_publication() -> None:
    """METHOD section 3: 0.6876 at 512 x 512 where tokens leave after the stage's block; here they leave before it."""
    lengths = (1029,) * 2 + (720,) * 3 + (504,) * 3 + (351, 352, 352, 1030)
    network = small_network("dense")
    assert token_share(Trace((32, 32), 16, lengths, (), ())) == pytest.approx(sum(lengths) / (1030 * 12))
    assert token_share(Trace((32, 32), 16, lengths, (), ())) < 0.6876
    with torch.no_grad():
        assert token_share(network.eval().forward_with_trace(torch.randn(1, 3, 8, 8))[1]) == pytest.approx(1, abs=0.1)


def test_the_speed_up_is_the_ratio_of_the_images_per_second() -> None:
    """Of medians, so that one interruption counts for nothing. Image by image the median ratio would be 2."""
    times = {"dense": [2.0, 4.0, 60.0], "pruned": [1.0, 1.0, 60.0]}
    speeds = compare_speed(times, baseline="dense")
    assert speeds == {"dense": Speed(0.25, 1.0), "pruned": Speed(1.0, 4.0)}


def test_paired_ratio_is_free_of_what_slows_the_whole_machine() -> None:
    """Both take ten times as long in every other repetition; the ratio of their medians would depend on the draw."""
    slow = np.tile([1.0, 10.0], 10)
    ratio = paired_ratio(list(3 * slow), list(2 * slow))
    assert ratio == pytest.approx((1.5, 1.5, 1.5))


def test_paired_ratio_covers_the_truth() -> None:
    """The 95 % interval of the median holds the true ratio in about 95 of 100 experiments, and narrows with more."""
    draw = np.random.default_rng(0)
    found = [paired_ratio(list(1.6 * draw.lognormal(0, 0.1, 21)), [1.0] * 21) for _ in range(60)]
    assert 50 <= sum(ratio.low <= 1.6 <= ratio.high for ratio in found) <= 60
    few, many = (paired_ratio(list(draw.lognormal(0, 0.1, n)), [1.0] * n) for n in (8, 200))
    assert many.high - many.low < few.high - few.low


def test_paired_ratio_needs_two_repetitions() -> None:
    with pytest.raises(ValueError, match="at least 2 repetitions, got 1"):
        paired_ratio([1.0], [2.0])


def test_seconds_times_and_returns() -> None:
    elapsed, result = seconds(lambda: time.sleep(0.02) or "done", CPU)
    assert result == "done"
    assert 0.02 <= elapsed < 2


def test_peak_memory_sees_an_allocation() -> None:
    def allocate() -> None:
        held = torch.ones(64, 2**20 // 4)  # 64 MiB
        time.sleep(0.05)
        del held

    assert peak_memory(allocate, CPU) >= 40
    assert peak_memory(lambda: time.sleep(0.01), CPU) < 40


def test_peak_memory_ends_its_watcher_when_the_call_fails() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0, CPU)
    assert threading.active_count() == before
