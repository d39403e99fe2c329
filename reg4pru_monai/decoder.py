"""Token grid -> logits at pixel resolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import processes
from .blocks import convolution


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Upscale(nn.Sequential):
    """Twice the resolution: transposed 2x2 convolution, GELU, depthwise 3x3, channel LayerNorm (EoMT)."""

    def __init__(self, dim: int):
        super().__init__(
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
            nn.GELU(),
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False),
            ChannelNorm(dim),
        )


class EomtDecoder(nn.Module):
    """EoMT (Kerssies et al., CVPR 2025) with one query: the tokens carry the whole prediction.

    The query joins the sequence before the last ``query_blocks`` blocks; the mask is the dot product of its embedding
    with the upscaled tokens. At inference the query attends everywhere, as EoMT's does after its masks are annealed.
    stride: pixels per logit before the final bilinear step (EoMT: 4).
    masked: share of the training during which the query's attention is masked by its own prediction; 0 never masks.
    """

    def __init__(self, dim: int, patch: int, query_blocks: int, stride: int = 4, masked: float = 0.0):
        super().__init__()
        if not 0.0 <= masked <= 1.0:
            raise ValueError(f"masked_attention must be a share of the training in [0, 1], got {masked}")
        steps = round(math.log2(patch / stride))
        if steps < 1:
            raise ValueError(f"decoder stride must be at most half the patch size {patch}, got {stride}")
        self.query_blocks = query_blocks
        self.masked = masked
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.mask_mlp = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.upscale = nn.Sequential(*(Upscale(dim) for _ in range(steps)))

    def forward(self, image: Tensor, query: Tensor, grid: Tensor) -> Tensor:
        """image: (B, 3, H, W), for its size only. query: (B, 1, D). grid: (B, D, h, w). Returns logits (B, 1, H, W)."""
        mask = torch.einsum("bqd,bdhw->bqhw", self.mask_mlp(query), self.upscale(grid))
        return F.interpolate(mask, size=image.shape[-2:], mode="bilinear", align_corners=False)

    def visible(self, logits: Tensor, grid: tuple[int, int], number: int, progress: float) -> Tensor | None:
        """Which tokens the query may attend to in query block ``number``: (B, 1, N) bool, or None for all.

        logits: (B, 1, H, W), the prediction from the input of that block. Masked with probability (1 - t)^0.9 where t
        runs from 0 to 1 over the block's own part of the masked share of the training, first block first (EoMT, 3.3).
        """
        if not self.training or self.masked == 0.0:
            return None
        part = self.masked / self.query_blocks
        done = min(max((progress - number * part) / part, 0.0), 1.0)
        found = F.interpolate(logits.detach(), size=grid, mode="bilinear", align_corners=False).flatten(2) > 0
        return found | (processes.uniform(logits.shape[0], 1, 1, device=logits.device) >= (1.0 - done) ** 0.9)


def convolutions(inputs: int, outputs: int, count: int, stride: int = 1) -> nn.Sequential:
    """``count`` of them; the first one strides."""
    first = convolution(inputs, outputs, stride)
    return first if count == 1 else nn.Sequential(first, *(convolution(outputs, outputs) for _ in range(count - 1)))


class SkipDecoder(nn.Module):
    """A light convolutional stem on the image, joined with the tokens at 1/4, 1/2 and full resolution.

    Keeps one-pixel vessels that a patch embedding without pretraining loses. No query, no deep supervision.
    width: channels at full resolution; twice and four times as many at 1/2 and 1/4. count: convolutions at full
    resolution and where two resolutions join; the stem has two at 1/2 and one more than ``count`` at 1/4.
    """

    query_blocks = 0
    query: Tensor

    def __init__(self, dim: int, width: int = 12, count: int = 1):
        super().__init__()
        self.register_buffer("query", torch.zeros(1, 0, dim), persistent=False)
        self.stem_1 = convolutions(3, width, count)
        self.stem_2 = convolutions(width, 2 * width, 2, stride=2)
        self.stem_4 = convolutions(2 * width, 4 * width, count + 1, stride=2)
        self.tokens = nn.Conv2d(dim, 4 * width, kernel_size=1)
        self.join_quarter = convolutions(8 * width, 4 * width, count)
        self.to_half = nn.Conv2d(4 * width, 2 * width, kernel_size=1)
        self.join_half = convolutions(4 * width, 2 * width, count)
        self.to_full = nn.Conv2d(2 * width, width, kernel_size=1)
        self.join_full = convolutions(2 * width, width, count)
        self.logit = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, image: Tensor, query: Tensor, grid: Tensor) -> Tensor:
        """image: (B, 3, H, W). query: unused. grid: (B, D, h, w). Returns logits (B, 1, H, W)."""
        full = self.stem_1(image)
        half = self.stem_2(full)
        quarter = self.stem_4(half)
        x = self.join_quarter(torch.cat((quarter, _resize(self.tokens(grid), quarter)), dim=1))
        x = self.join_half(torch.cat((half, _resize(self.to_half(x), half)), dim=1))
        x = self.join_full(torch.cat((full, _resize(self.to_full(x), full)), dim=1))
        return self.logit(x)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
