import threading
import time

import pytest
import torch

from networks import SMALL, small_network
from reg4pru_monai.accounting import Speed, compare_speed, count_flops, peak_memory, seconds, token_share
from reg4pru_monai.blocks import Block
from reg4pru_monai.policies import Trace

CPU = torch.device("cpu")


def block_flops(count: int, dim: int) -> int:
    """Linear layers 3 D, D and 2 x 4 D wide, two attention products; a multiply-add is 2."""
    return 2 * count * dim * (3 + 1 + 8) * dim + 2 * 2 * count**2 * dim


def test_count_flops_of_a_block_is_analytic() -> None:
    block, x = Block(64, 4, 4.0, True, 1.0).eval(), torch.randn(2, 33, 64)
    assert count_flops(lambda: block(x)) == 2 * block_flops(33, 64)
    mask = torch.rand(2, 33) < 0.5
    assert count_flops(lambda: block(x, None, mask)) == 2 * block_flops(33, 64)
    assert count_flops(lambda: block(x, None, torch.rand(2, 33))) == 2 * block_flops(33, 64)  # soft attention


@pytest.mark.parametrize("decoder", ["eomt", "skip"])
def test_count_flops_of_a_network_follows_from_its_trace(decoder: str) -> None:
    network, image = small_network("dynamicvit", decoder).eval(), torch.randn(1, 3, 48, 64)
    dim = SMALL.dim
    with torch.no_grad():
        trace = network.forward_with_trace(image)[1]
    grid, query = torch.zeros(1, dim, 12, 16), network.decoder.query.detach()
    head = count_flops(lambda: network.decoder(image, query, grid))
    embedding = 2 * 12 * 16 * dim * 3 * SMALL.patch**2
    selectors = sum(2 * s.pool.index.shape[1] * (dim * dim + dim * dim // 4 + dim // 4 * 2) for s in trace.stages)
    blocks = sum(block_flops(length, dim) for length in trace.lengths)
    assert count_flops(lambda: network(image)) == blocks + embedding + selectors + head


def test_flops_fall_with_the_keep_rate() -> None:
    network, image = small_network("reg4pru").eval(), torch.randn(1, 3, 48, 64)
    variants = map(network.with_keep_rate, (0.9, 0.7, 0.5, 0.3))
    counts = [count_flops(lambda n=n: n(image)) for n in variants]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[0] < count_flops(lambda: network.with_keep_rate(1.0)(image))


def test_token_share() -> None:
    assert token_share(Trace((2, 5), (10, 10, 5, 5), (), ())) == 0.75
    assert token_share(Trace((2, 5), (10, 10), (), ())) == 1.0


def test_token_share_of_the_publication() -> None:
    """METHOD section 3: 0.6876 at 512 x 512 where tokens leave after the stage's block; here they leave before it."""
    lengths = (1029,) * 2 + (720,) * 3 + (504,) * 3 + (351, 352, 352, 1030)
    network = small_network("dense")
    assert token_share(Trace((32, 32), lengths, (), ())) == pytest.approx(sum(lengths) / (1030 * 12))
    assert token_share(Trace((32, 32), lengths, (), ())) < 0.6876
    with torch.no_grad():
        assert token_share(network.eval().forward_with_trace(torch.randn(1, 3, 8, 8))[1]) == pytest.approx(1, abs=0.1)


def test_compare_speed_takes_medians_image_by_image() -> None:
    times = {"dense": [2.0, 4.0, 60.0], "pruned": [1.0, 1.0, 60.0]}
    speeds = compare_speed(times, baseline="dense")
    assert speeds == {"dense": Speed(0.25, 1.0), "pruned": Speed(1.0, 2.0)}


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
