import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reg4pru_monai.tokens import Route, Tokens, compose, gather, keep_count, restore, route_mask, route_top

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(0, 10_000))


def make_tokens(batch: int, count: int, dim: int, seed: int, weighted: bool = False) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, count, dim, generator=generator)
    pos = torch.rand(1, count, 2, generator=generator)
    return Tokens(x, pos, torch.rand(batch, count, generator=generator) if weighted else None)


def make_route(batch: int, count: int, seed: int, padded: bool) -> Route:
    generator = torch.Generator().manual_seed(seed + 1)
    kept = int(torch.randint(1, count + 1, (), generator=generator))
    index = torch.rand(batch, count, generator=generator).argsort(1)[:, :kept]
    valid = torch.rand(batch, kept, generator=generator) < 0.6
    return Route(index, valid if padded else None)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, padded=st.booleans(), weighted=st.booleans())
def test_restore_inverts_gather(shape: tuple[int, int, int, int], padded: bool, weighted: bool) -> None:
    batch, count, dim, seed = shape
    full = make_tokens(batch, count, dim, seed, weighted)
    route = make_route(batch, count, seed, padded)
    back = restore(gather(full, route), full, route)
    assert torch.equal(back.x, full.x)
    assert back.pos is full.pos
    assert back.weight is full.weight


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, padded=st.booleans())
def test_restore_writes_the_route_and_nothing_else(shape: tuple[int, int, int, int], padded: bool) -> None:
    batch, count, dim, seed = shape
    full, route = make_tokens(batch, count, dim, seed), make_route(batch, count, seed, padded)
    active = gather(full, route)
    back = restore(active._replace(x=active.x + 1), full, route).x
    for b in range(batch):
        valid = torch.ones(route.index.shape[1], dtype=torch.bool) if route.valid is None else route.valid[b]
        expected = full.x[b].clone()
        expected[route.index[b][valid]] += 1
        assert torch.equal(back[b], expected)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, padded=st.booleans())
def test_compose_is_gather_after_gather(shape: tuple[int, int, int, int], padded: bool) -> None:
    batch, count, dim, seed = shape
    full, outer = make_tokens(batch, count, dim, seed), make_route(batch, count, seed, padded)
    inner = make_route(batch, outer.index.shape[1], seed + 7, padded)
    twice, once = gather(gather(full, outer), inner), gather(full, compose(outer, inner))
    assert torch.equal(twice.x, once.x)
    assert torch.equal(twice.pos, once.pos)
    assert (twice.weight is None) == (once.weight is None)
    if twice.weight is not None and once.weight is not None:
        assert torch.equal(twice.weight, once.weight)


def attention(q: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, keys, keys, attn_mask=mask)


def test_gathering_equals_masking_keys() -> None:
    full, route = make_tokens(2, 12, 8, seed=3), make_route(2, 12, 5, padded=False)
    kept = torch.zeros(2, 12, dtype=torch.bool).scatter(1, route.index, True)
    active = gather(full, route).x
    masked = attention(full.x, full.x, kept[:, None, :].expand(2, 12, 12))
    rows = masked.gather(1, route.index.unsqueeze(-1).expand(-1, -1, 8))
    assert torch.allclose(attention(active, active), rows, atol=1e-6)


def test_padding_becomes_an_invisible_key() -> None:
    full, valid = make_tokens(1, 6, 2, seed=0), torch.tensor([[True, True, False]])
    route = Route(torch.tensor([[4, 1, 0]]), valid)
    weight = gather(full, route).weight
    assert weight is not None
    assert weight.dtype == torch.bool
    assert torch.equal(weight, valid)
    soft = gather(full._replace(weight=torch.full((1, 6), 0.25)), route).weight
    assert soft is not None
    assert soft.tolist() == [[0.25, 0.25, 0.0]]


def test_order_of_the_kept_does_not_matter() -> None:
    full = make_tokens(1, 10, 4, seed=1)
    index = torch.tensor([[7, 2, 5, 0]])
    shuffled = index[:, [2, 0, 3, 1]]
    results = []
    for each in (index, shuffled):
        route = Route(each, None)
        active = gather(full, route)
        results.append(restore(active._replace(x=attention(active.x, active.x)), full, route).x)
    assert torch.allclose(results[0], results[1], atol=1e-6)


@pytest.mark.parametrize(("pool", "expected"), [(4096, [2867, 2003, 1402]), (1024, [715, 499, 346])])
def test_keep_counts_of_the_publication(pool: int, expected: list[int]) -> None:
    found = []
    for others in (5, 5, 6):
        pool = keep_count(pool, 0.7, others)
        found.append(pool)
    assert found == expected


def test_keep_counts_of_the_random_window() -> None:
    assert keep_count(4096, 0.5, 5) == 2051
    assert keep_count(1024, 0.5, 5) == 515


@given(st.integers(0, 5000), st.floats(0.01, 1.0), st.integers(0, 8))
def test_keep_count_is_bounded_and_near_the_rate(pool: int, rate: float, others: int) -> None:
    count = keep_count(pool, rate, others)
    assert min(pool, 1) <= count <= pool
    assert abs(count - pool * rate) <= max(4.0, 1.0)
    if rate < 1 and 1 < count < pool:
        assert (count + others) % 8 == 0
    if rate == 1.0:
        assert count == pool


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01])
def test_keep_rate_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match=r"keep rate must be in \(0, 1\], got"):
        keep_count(10, rate, 5)


def test_route_top_takes_the_best_in_ascending_order() -> None:
    score = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    route = route_top(score, None, 0.5, others=5)
    count = keep_count(40, 0.5, 5)
    assert route.valid is None
    assert torch.equal(route.index, score.argsort(1, descending=True)[:, :count].sort(1).values)


def test_route_top_counts_each_image_on_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    score, valid = torch.rand(3, 64, generator=generator), torch.rand(3, 64, generator=generator) < 0.5
    valid[1] = True
    valid[2] = False
    route = route_top(score, valid, 0.5, others=5)
    assert route.valid is not None
    for b in range(2):
        inside = valid[b].nonzero().squeeze(1)
        alone = route_top(score[b, inside][None], None, 0.5, others=5)
        assert torch.equal(route.index[b][route.valid[b]], inside[alone.index[0]])
    assert not route.valid[2].any()
    assert all(len(set(row)) == len(row) for row in route.index.tolist())


def test_route_mask_keeps_grid_order_and_pads() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    route = route_mask(mask)
    assert route.valid is not None
    assert route.valid.sum(1).tolist() == [3, 1, 0]
    assert route.index[0].tolist() == [1, 2, 4]
    assert route.index[1, 0] == 0
    assert all(len(set(row)) == len(row) for row in route.index.tolist())
    assert route_mask(mask[:1]).valid is None


def test_gather_and_restore_script() -> None:
    full, route = make_tokens(2, 9, 3, seed=2, weighted=True), make_route(2, 9, 2, padded=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted_gather, scripted_restore = torch.jit.script(gather), torch.jit.script(restore)
        active = scripted_gather(full, route)
        assert torch.equal(active.weight, gather(full, route).weight)
        assert torch.equal(scripted_restore(active, full, route).x, full.x)
        plain = Route(route.index, None)
        assert torch.equal(scripted_gather(full._replace(weight=None), plain).x, gather(full, plain).x)
