import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reg4pru_monai.blocks import (
    Attention,
    Block,
    PatchEmbedding,
    grid_positions,
    masked_rows,
    rotary_table,
    rotate,
    soft_attention,
)

CPU = torch.device("cpu")


def qkv(batch: int = 2, heads: int = 2, count: int = 7, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, heads, count, dim, requires_grad=True) for _ in range(3))
    return q, k, v


def test_soft_attention_by_hand() -> None:
    """Two tokens, scores 0 and ln 2 scaled: e_i0 = 1/2, e_i1 = 1 after the row maximum is taken off."""
    q = torch.tensor([[[[1.0], [1.0]]]])
    k = torch.tensor([[[[0.0], [math.log(2.0)]]]])
    v = torch.tensor([[[[10.0], [20.0]]]])
    weight = torch.tensor([[0.5, 0.25]])
    eps = 1e-6
    row_0 = [0.5 * 1.0, 1.0 * 0.25]  # sees itself fully
    row_1 = [0.5 * 0.5, 1.0 * 1.0]
    expected = [((a + eps / 2) * 10 + (b + eps / 2) * 20) / (a + b + eps) for a, b in (row_0, row_1)]
    assert soft_attention(q, k, v, weight).flatten().tolist() == pytest.approx(expected, rel=1e-6)


def explicit(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """The published formula, with its N x N matrix."""
    count = q.shape[-2]
    score = (q @ k.mT) * q.shape[-1] ** -0.5
    itself = torch.eye(count, dtype=q.dtype)
    gate = weight.unsqueeze(-2) * (1 - itself) + itself
    value = (score - score.amax(-1, keepdim=True).detach()).exp() * gate.unsqueeze(1)
    return ((value + eps / count) / (value.sum(-1, keepdim=True) + eps)) @ v


@pytest.mark.parametrize(
    ("dtype", "kept", "eps", "tolerance"),
    [
        (torch.float64, 0.5, 1e-6, 1e-5),
        # Where nearly nothing is left, the guard of the published formula shows; without it both are one.
        (torch.float64, 0.02, 0.0, 1e-8),
        (torch.float32, 0.5, 1e-6, 2e-5),
        (torch.float32, 0.02, 0.0, 1e-5),
        (torch.bfloat16, 0.5, 1e-6, 4e-2),
        (torch.bfloat16, 0.02, 0.0, 4e-2),
        (torch.float16, 0.02, 0.0, 5e-3),
    ],
    ids=str,
)
def test_soft_attention_is_the_published_formula(dtype: torch.dtype, kept: float, eps: float, tolerance: float) -> None:
    """Forward and all gradients; errors relative to the largest entry."""
    generator = torch.Generator().manual_seed(0)
    shape, double = (2, 3, 150, 32), torch.float64
    q, k, v = (torch.randn(shape, generator=generator, dtype=double).to(dtype).double() for _ in range(3))
    weight = (torch.rand(2, 150, generator=generator) < kept).double()
    upstream = torch.randn(shape, generator=generator, dtype=double).to(dtype)
    results = []
    for compute, kind in ((explicit, double), (soft_attention, dtype)):
        given = [each.to(kind).requires_grad_() for each in (q, k, v)]
        given.append(weight.to(torch.promote_types(kind, torch.float32)).requires_grad_())
        out = compute(*given, eps=eps) if compute is explicit else compute(*given)  # type: ignore[operator]
        gradients = torch.autograd.grad((out * upstream.to(kind)).sum(), given)
        results.append([out.detach(), *gradients])
    for wanted, found in zip(*results, strict=True):
        assert (wanted - found).abs().max() <= tolerance * wanted.abs().max()


def test_soft_attention_with_large_scores() -> None:
    """Scores of a few hundred: exact where the kept keys hold a share of the softmax, finite where they hold none."""
    q, k, v = (each.double() * 20 for each in qkv(count=30))
    weight = (torch.rand(2, 30) < 0.5).double().requires_grad_()
    found, wanted = soft_attention(q, k, v, weight), explicit(q, k, v, weight, eps=0.0)
    score = (q @ k.mT) * 8**-0.5
    share = (score.softmax(-1) * weight[:, None, None, :]).sum(-1)
    clear = share > 1e-6
    assert 0.3 < clear.double().mean() < 1.0
    assert torch.allclose(found[clear], wanted[clear], atol=1e-4)
    gradients = torch.autograd.grad(found.sum(), [q, k, v, weight])
    assert all(each.isfinite().all() for each in (found, *gradients))


def test_soft_attention_makes_no_square_matrix() -> None:
    from reg4pru_monai.accounting import peak_memory

    q, k, v = qkv(1, 4, 2000, 16)
    weight = torch.ones(1, 2000)
    needed = peak_memory(lambda: soft_attention(q, k, v, weight).sum().backward(), CPU)
    assert needed < 20  # MiB; one matrix of 4 x 2000 x 2000 has 61


@pytest.mark.parametrize("kind", ["none", "hidden", "soft"])
def test_masked_rows_equal_a_full_mask(kind: str) -> None:
    """Only the first two rows are masked: the same as a mask for all rows, and as the formula with soft weights."""
    q, k, v = qkv(count=9)
    torch.manual_seed(1)
    visible = torch.rand(2, 2, 9) < 0.4
    visible[:, :, :2] = True
    weight = {"none": None, "hidden": torch.rand(2, 9) < 0.7, "soft": torch.rand(2, 9)}[kind]
    if weight is not None:
        weight[:, :2] = 1
    full = torch.cat((visible, torch.ones(2, 7, 9, dtype=torch.bool)), dim=1).double()
    gate = torch.ones(2, 1, 9) if weight is None else weight.unsqueeze(1)
    score = ((q @ k.mT) * 8**-0.5).exp() * (full * gate).unsqueeze(1)
    wanted = ((score / score.sum(-1, keepdim=True)) @ v.double())[:, :, :2]
    assert torch.allclose(masked_rows(q[:, :, :2], k, v, visible, weight).double(), wanted, atol=1e-5)


def test_attention_masks_the_first_rows_and_no_others() -> None:
    torch.manual_seed(0)
    layer, x = Attention(16, 4, qkv_bias=True), torch.randn(2, 6, 16)
    visible = torch.tensor([[[True, True, False, True, False, False]]]).expand(2, -1, -1)
    out = layer(x, None, None, visible)
    assert torch.allclose(out[:, 1:], layer(x)[:, 1:], atol=1e-6)
    assert torch.allclose(out[:, 0], layer(x[:, visible[0, 0]])[:, 0], atol=1e-6)


def test_soft_attention_with_full_weight_is_plain_attention() -> None:
    q, k, v = qkv()
    plain = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(soft_attention(q, k, v, torch.ones(2, 7)), plain, atol=2e-6)


def test_soft_attention_with_zero_and_one_is_masking_except_oneself() -> None:
    q, k, v = qkv()
    weight = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1.0]])
    mask = (weight[:, None, None, :] > 0) | torch.eye(7, dtype=torch.bool)
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(soft_attention(q, k, v, weight), masked, atol=2e-6)


def test_no_gradient_through_the_own_weight() -> None:
    q, k, v = qkv(batch=1)
    weight = torch.rand(1, 7, requires_grad=True)
    for i in range(7):
        out = soft_attention(q, k, v, weight)[0, :, i].sum()
        (gradient,) = torch.autograd.grad(out, weight)
        assert gradient[0, i].abs() < 1e-6
        assert (gradient[0, torch.arange(7) != i] != 0).all()


def test_attention_with_bool_weight_ignores_hidden_keys() -> None:
    torch.manual_seed(0)
    layer, x = Attention(16, 4, qkv_bias=True), torch.randn(2, 6, 16)
    weight = torch.tensor([[True, True, False, True, False, True]]).expand(2, -1)
    out = layer(x, None, weight)[:, weight[0]]
    assert torch.allclose(out, layer(x[:, weight[0]]), atol=1e-6)


def test_block_gathered_equals_block_masked() -> None:
    """The law of the token algebra on a whole block, rotary positions included."""
    torch.manual_seed(0)
    block, x, kept = Block(16, 2, 4.0, True, 0.5), torch.randn(1, 12, 16), torch.tensor([0, 3, 4, 8, 11])
    rope = rotary_table(grid_positions(3, 4, CPU) / 4, 8)
    weight = torch.zeros(1, 12, dtype=torch.bool)
    weight[0, kept] = True
    masked = block(x, rope, weight)[:, kept]
    assert torch.allclose(block(x[:, kept], rope[:, :, kept]), masked, atol=1e-6)


def test_block_permutes_with_its_tokens() -> None:
    torch.manual_seed(0)
    block, x, order = Block(16, 2, 4.0, False, 0.5), torch.randn(1, 9, 16), torch.randperm(9)
    rope = rotary_table(grid_positions(3, 3, CPU), 8)
    assert torch.allclose(block(x, rope)[:, order], block(x[:, order], rope[:, :, order]), atol=1e-6)


def test_rotary_table_by_hand() -> None:
    """Head dimension 8: periods 1 and 10 for the row, then for the column, then all once more."""
    table = rotary_table(torch.tensor([[[0.25, 0.5]]]), 8)
    angles = [2 * math.pi * a for a in (0.25, 0.025, 0.5, 0.05)] * 2
    assert table[0, 0, 0].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-6)
    assert table[1, 0, 0].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-6)


def test_rotation_pairs_a_channel_with_the_one_half_way_on() -> None:
    quarter_turn = torch.tensor([[[[1.0] * 4]], [[[0.0] * 4]]])  # sine 1, cosine 0
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert rotate(x, quarter_turn).flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_rotary_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(a: tuple[float, float], b: tuple[float, float]) -> float:
        at = [rotary_table(torch.tensor([[p]]), 16) for p in (a, b)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert score((0.1, -0.3), (0.4, 0.2)) == pytest.approx(score((-0.5, 0.1), (-0.2, 0.6)), abs=1e-5)
    assert score((0.1, -0.3), (0.4, 0.2)) != pytest.approx(score((0.1, -0.3), (0.1, 0.2)), abs=1e-3)


def test_rotation_keeps_half_precision() -> None:
    x = torch.randn(1, 1, 2, 8, dtype=torch.float16)
    assert rotate(x, rotary_table(torch.zeros(1, 2, 2), 8)).dtype == torch.float16


def test_layer_scale_zero_is_the_identity() -> None:
    x = torch.randn(1, 5, 16)
    assert torch.equal(Block(16, 2, 4.0, False, 0.0)(x), x)


def test_norm_epsilon_reaches_the_block() -> None:
    block = Block(8, 2, 4.0, True, 1.0, norm_eps=1e-6)
    assert (block.norm1.eps, block.norm2.eps) == (1e-6, 1e-6)


def test_patches_and_positions_are_in_raster_order() -> None:
    embedding = PatchEmbedding(2, 1)
    torch.nn.init.constant_(embedding.proj.weight, 1 / 12)
    torch.nn.init.zeros_(embedding.proj.bias)
    image = torch.arange(6.0).view(1, 1, 2, 3).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(1, 3, 4, 6)
    assert embedding(image).flatten().tolist() == pytest.approx([0, 1, 2, 3, 4, 5])
    positions = grid_positions(2, 3, CPU)[0].tolist()
    assert positions == [[0.5, 0.5], [0.5, 1.5], [0.5, 2.5], [1.5, 0.5], [1.5, 1.5], [1.5, 2.5]]
