"""Attention, MLP, block, patch embedding and rotary positions. Knows nothing of pruning.

Parameter names are timm's, so that public DINOv2 and DINOv3 backbones load (see ``weights.py``).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def rotary_table(coordinates: Tensor, head_dim: int, base: float = 100.0) -> Tensor:
    """Axial rotary position table of DINOv3 (Siméoni et al. 2025).

    coordinates: (B, N, 2) float, already scaled (DINOv3: -1 to 1 along each axis). Returns (2, B, N, head_dim) float32:
    sine and cosine, laid out for :func:`rotate`.
    """
    quarter = head_dim // 4
    periods = base ** (torch.arange(quarter, device=coordinates.device, dtype=torch.float32) / quarter)
    angles = 2 * math.pi * coordinates.float().unsqueeze(-1) / periods
    angles = angles.flatten(2).repeat(1, 1, 2)
    return torch.stack((angles.sin(), angles.cos()))


def rotate(x: Tensor, rope: Tensor | None) -> Tensor:
    """Rotate (B, heads, N, head_dim) by a table (2, B, N, head_dim), in the table's precision; None does nothing."""
    if rope is None:
        return x
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * rope[1].unsqueeze(1) + turned * rope[0].unsqueeze(1)).to(x.dtype)


def soft_attention(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, rope: Tensor | None = None) -> Tensor:
    """Attention in which each key counts as much as its soft keep weight; a token always sees itself.

    q, k, v: (B, heads, N, head_dim), rotated by ``rope`` if given. weight: (B, N) float in [0, 1]. Returns
    (B, heads, N, head_dim). With e = exp(score) and g_ij = weight_j for i != j, g_ii = 1: A_ij = e_ij g_ij / sum_j
    e_ij g_ij (DynamicViT, Rao et al. 2021, eq. 10-11).

    No N x N matrix is made: plain softmax over all keys, by the fused kernel, of the values [weight v, weight] gives
    numerator and denominator without the self term. That needs the share P_ii of the softmax, for which one more key
    scores against row i what key i does, and carries a value of its own. Its mass cancels in the ratio. What is cheap
    on either side of the kernel is computed again for the gradient instead of being kept.
    """
    share = weight.to(v.dtype)[:, None, :, None]
    q, k, values = _again(_with_self_key, q, k, v, share, rope)
    y = F.scaled_dot_product_attention(q, k, values, scale=v.shape[-1] ** -0.5)
    return _again(_own_share_restored, y, v, share)


_SELF_COLUMNS = 8  # heads widened by 8 stay on the sizes that fused kernels like


def _again(function: Callable[..., Any], *inputs: Any) -> Any:
    """A call whose intermediate results are not kept for the gradient but computed again."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _with_self_key(
    q: Tensor, k: Tensor, v: Tensor, share: Tensor, rope: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The queries and N + 1 keys and values of :func:`soft_attention`, each wider by _SELF_COLUMNS."""
    q, k = rotate(q, rope), rotate(k, rope)
    wide = torch.promote_types(q.dtype, torch.float32)
    itself = (q.to(wide) * k.to(wide)).sum(-1, keepdim=True)
    rounded = itself.to(q.dtype)
    # In half precision the score of the extra key is the sum of two columns, because one rounds away a few percent.
    scores = (rounded,) if rounded.dtype == itself.dtype else (rounded, (itself - rounded).to(q.dtype))
    extra = _SELF_COLUMNS - len(scores)
    k = F.pad(k, (0, _SELF_COLUMNS, 0, 1))
    k[..., -1, -_SELF_COLUMNS:-extra] = 1
    values = F.pad(torch.cat((share * v, share.expand(-1, v.shape[1], -1, -1)), dim=-1), (0, _SELF_COLUMNS - 1, 0, 1))
    values[..., -1, -1] = 1
    return F.pad(torch.cat((q, *scores), dim=-1), (0, extra)), k, values


def _own_share_restored(y: Tensor, v: Tensor, share: Tensor) -> Tensor:
    """Numerator and denominator with the self term, divided. y: (B, heads, N, head_dim + _SELF_COLUMNS)."""
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    own = y[..., -1:] * (1 - share)
    dim = v.shape[-1]
    return ((y[..., :dim] + own * v) / (y[..., dim : dim + 1] + own + 1e-12)).to(v.dtype)


def masked_rows(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, weight: Tensor | None) -> Tensor:
    """Attention of a few queries, each of which sees only some of the keys; of the keys as :func:`soft_attention`.

    q: (B, heads, Q, head_dim). k, v: (B, heads, N, head_dim). visible: (B, Q, N) bool, of every query at least one
    token of full weight. weight: (B, N) float or bool, or None. Returns (B, heads, Q, head_dim).
    """
    score = ((q @ k.mT) * q.shape[-1] ** -0.5).float().masked_fill(~visible.unsqueeze(1), -torch.inf)
    value = (score - score.amax(-1, keepdim=True).detach()).exp()
    if weight is not None:
        value = value * weight[:, None, None, :]
    return (value / value.sum(-1, keepdim=True)).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention, always on the fused kernel."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, weight: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """Attend.

        x: (B, N, D). rope: (2, B, N, head_dim). weight: (B, N) float or bool, or None. visible: (B, Q, N) bool, what
        the first Q tokens may attend to, or None for all; the other rows are never masked. Returns (B, N, D).
        """
        batch, count, dim = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if weight is None or weight.dtype == torch.bool:
            q, k, rope = rotate(q, rope), rotate(k, rope), None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if weight is None else weight[:, None, None, :])
        else:
            y = soft_attention(q, k, v, weight, rope)
        if visible is not None:
            few = visible.shape[1]
            rows = masked_rows(rotate(q, rope)[:, :, :few], rotate(k, rope), v, visible, weight)
            y = torch.cat((rows, y[:, :, few:]), dim=2)
        return self.proj(y.transpose(1, 2).reshape(batch, count, dim))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with layer scale."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, qkv_bias: bool, layer_scale: float, norm_eps: float = 1e-5
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads, qkv_bias)
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(
        self, x: Tensor, rope: Tensor | None = None, weight: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); the other arguments are those of Attention."""
        x = x + self.gamma_1 * self.attn(self.norm1(x), rope, weight, visible)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W), sides divisible by the patch size. Returns (B, h*w, D), raster order."""
        return self.proj(image).flatten(2).transpose(1, 2)


class ConvolutionalEmbedding(nn.Module):
    """Tokens from convolutions that halve the side until a patch is one pixel (Xiao et al., NeurIPS 2021).

    width: channels behind the first one, doubled by each.
    """

    def __init__(self, patch: int, dim: int, width: int):
        super().__init__()
        self.patch = patch
        widths = [3, *(width * 2**i for i in range(patch.bit_length() - 1))]
        self.stem = nn.Sequential(*(convolution(a, b, stride=2) for a, b in pairwise(widths)))
        self.proj = nn.Conv2d(widths[-1], dim, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W), sides divisible by the patch size. Returns (B, h*w, D), raster order."""
        return self.proj(self.stem(image)).flatten(2).transpose(1, 2)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def grid_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Patch centres of a token grid: (1, h*w, 2) float, (row, column), raster order."""
    rows = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    columns = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(1, -1, 2)
