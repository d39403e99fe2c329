"""The network: ``forward(image)`` gives logits, ``forward_with_trace(image)`` gives logits and a trace."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Block, PatchEmbedding, grid_positions
from .decoder import EomtDecoder, SkipDecoder
from .encoder import Encoded, Encoder
from .policies import Policy, Trace, build_policy, plan
from .presets import KEEP_RATE, PRESETS, Preset, query_blocks, stage_plan
from .tokens import Route, Tokens, route_mask


class Segmenter(nn.Module):
    """Vessel logits for a fundus image, from a vision transformer that skips tokens.

    Made by :func:`build_segmenter`; parts come in built.
    """

    def __init__(
        self,
        patch_embed: PatchEmbedding,
        encoder: Encoder,
        decoder: EomtDecoder | SkipDecoder,
        dim: int,
        registers: int,
        position_grid: int | None = None,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.reg_token = nn.Parameter(torch.randn(1, registers, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, position_grid**2, dim) * 0.02) if position_grid else None
        self.encoder = encoder
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.decoder = decoder

    def forward(self, image: Tensor, fov: Tensor | None = None) -> Tensor:
        """image: (B, 3, H, W) float32, normalised. fov: (B, 1, H, W), non-zero inside the field of view, or None.

        Returns logits (B, 1, H, W) float. Any height and width; patches outside the field of view are not computed.
        """
        return self._run(image, fov, trace=False)[0]

    def forward_with_trace(
        self, image: Tensor, fov: Tensor | None = None, progress: float = 1.0
    ) -> tuple[Tensor, Trace]:
        """As ``forward``, and what happened on the way, deep supervision included.

        progress: share of the training done, for policies that remove fewer tokens at its start.
        """
        return self._run(image, fov, trace=True, progress=progress)

    def _run(self, image: Tensor, fov: Tensor | None, trace: bool, progress: float = 1.0) -> tuple[Tensor, Trace]:
        size = image.shape[-2:]
        image, fov = self._pad(image), None if fov is None else self._pad(fov)
        patch = self.patch_embed.patch
        grid = (image.shape[-2] // patch, image.shape[-1] // patch)
        tokens, prefix, query = self._embed(image, grid)
        window = self.encoder.policy.sample_window(len(self.encoder.blocks))
        encoded, record = self.encoder(
            tokens,
            prefix,
            query,
            grid,
            inside=None if fov is None else _inside(fov, patch),
            window=window,
            query_blocks=self.decoder.query_blocks,
            collect=trace and self.decoder.query_blocks > 0,
            progress=progress,
        )
        states = (*record.states, encoded) if trace else (encoded,)
        *auxiliary, logits = (self._decode(image, state, grid)[..., : size[0], : size[1]] for state in states)
        return logits, Trace(grid, record.lengths, record.stages, tuple(auxiliary))

    def _pad(self, image: Tensor) -> Tensor:
        """Zeros to the right and below, up to whole patches."""
        patch = self.patch_embed.patch
        return F.pad(image, (0, -image.shape[-1] % patch, 0, -image.shape[-2] % patch))

    def _embed(self, image: Tensor, grid: tuple[int, int]) -> tuple[Tokens, Tensor, Tensor]:
        batch = image.shape[0]
        x = self.patch_embed(image).to(
            self.cls_token.dtype
        )  # under autocast the residual stream stays in full precision
        if self.pos_embed is not None:
            x = x + resize_positions(self.pos_embed, grid)
        prefix = torch.cat((self.cls_token, self.reg_token), dim=1).expand(batch, -1, -1)
        query = self.decoder.query.repeat(batch, 1, 1)  # torch's FLOP counter fails on a view of a parameter
        return Tokens(x, grid_positions(*grid, image.device), None), prefix, query

    def _decode(self, image: Tensor, state: Encoded, grid: tuple[int, int]) -> Tensor:
        x = self.norm(state.x).transpose(1, 2).unflatten(2, grid)
        return self.decoder(image, self.norm(state.query), x)

    def with_policy(self, policy: Policy) -> "Segmenter":
        """A network that shares all weights with this one and prunes by another policy."""
        encoder = copy.copy(self.encoder)
        encoder._modules = {**self.encoder._modules, "policy": policy}
        twin = copy.copy(self)
        twin._modules = {**self._modules, "encoder": encoder}
        return twin

    def with_keep_rate(self, keep_rate: float | Sequence[float]) -> "Segmenter":
        """A network that shares all weights with this one and keeps another share of tokens at every stage."""
        return self.with_policy(self.encoder.policy.with_keep_rate(keep_rate))

    def dense(self) -> "Segmenter":
        """A network that shares all weights with this one and prunes nothing."""
        return self.with_policy(build_policy("dense", 0, ()).train(self.training))


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Absolute positions (1, n*n, D) at another grid (h, w): bicubic, as DINOv2 does. Returns (1, h*w, D)."""
    side = math.isqrt(table.shape[1])
    if grid == (side, side):
        return table
    square = table.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False).flatten(2).mT


def _inside(fov: Tensor, patch: int) -> Route:
    """The patches that hold at least one pixel of the field of view. fov: (B, 1, H, W)."""
    return route_mask(F.max_pool2d(fov.float(), patch).flatten(1) > 0)


def build_segmenter(
    preset: str = "tiny",
    policy: str = "reg4pru",
    decoder: str = "skip",
    keep_rate: float | list[float] = KEEP_RATE,
    stages: int | Sequence[int] | None = None,
    reactivate: int | None = None,
    policy_options: Mapping[str, float] | None = None,
) -> Segmenter:
    """Build a network.

    preset: a name in PRESETS. policy: a name in POLICIES. decoder: "eomt" or "skip". keep_rate: share of the tokens
    kept at each stage, one number or a list. stages: blocks of the pruning stages (default: scaled from 2, 5, 8 of 12).
    reactivate: block before which removed tokens come back (default: the last block). policy_options: arguments of the
    policy, such as route_keep. Raises ValueError for a name that does not exist or numbers that do not fit together.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    p = PRESETS[preset]
    if stages is None:
        chosen = stage_plan(p.depth, keep_rate)
    else:
        chosen = plan([stages] if isinstance(stages, int) else stages, keep_rate)
    blocks = [Block(p.dim, p.heads, p.mlp_ratio, p.qkv_bias, p.layer_scale, p.norm_eps) for _ in range(p.depth)]
    encoder = Encoder(
        blocks,
        build_policy(policy, p.dim, chosen, **(policy_options or {})),
        p.depth - 1 if reactivate is None else reactivate,
        rotary=p.position_grid is None,
        coordinate_scale=p.coordinate_scale,
    )
    return Segmenter(
        PatchEmbedding(p.patch, p.dim),
        encoder,
        _build_decoder(decoder, p),
        p.dim,
        p.registers,
        p.position_grid,
        p.norm_eps,
    )


def _build_decoder(name: str, p: Preset) -> EomtDecoder | SkipDecoder:
    if name == "eomt":
        return EomtDecoder(p.dim, p.patch, query_blocks(p.depth), p.mask_stride)
    if name == "skip":
        return SkipDecoder(p.dim, p.skip_width)
    raise ValueError(f"decoder must be one of eomt, skip, got {name!r}")
