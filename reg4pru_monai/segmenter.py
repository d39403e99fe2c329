"""The network: ``forward(image)`` gives logits, ``forward_with_trace(image)`` gives logits and a trace."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import processes
from .blocks import Block, ConvolutionalEmbedding, PatchEmbedding, grid_positions
from .decoder import EomtDecoder, SkipDecoder
from .encoder import Encoded, Encoder
from .policies import Policy, Soft, Step, Trace, build_policy
from .presets import KEEP_RATE, PRESETS, Preset, query_blocks, reactivation, stage_plan
from .tokens import Route, Tokens, route_mask


class Segmenter(nn.Module):
    """Vessel logits for a fundus image, from a vision transformer that skips tokens.

    Made by :func:`build_segmenter`; parts come in built.
    """

    def __init__(
        self,
        patch_embed: PatchEmbedding | ConvolutionalEmbedding,
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

    def forward(self, image: Tensor, fov: Tensor | Route | None = None) -> Tensor:
        """image: (B, 3, H, W) float32, normalised. fov: (B, 1, H, W), non-zero inside the field of view, or None.

        Returns logits (B, 1, H, W) float. Any height and width; patches outside the field of view are not computed.
        Instead of the field of view, the route that :meth:`inside` made of it may be given: its size depends on the
        image, which a compiler of whole graphs cannot follow.
        """
        return self._run(image, fov, self.draw(), trace=False)[0]

    def forward_with_lengths(self, image: Tensor, fov: Tensor | Route | None = None) -> tuple[Tensor, tuple[int, ...]]:
        """As ``forward``, and the sequence length of each block."""
        logits, trace = self._run(image, fov, self.draw(), trace=False)
        return logits, trace.lengths

    def forward_with_trace(
        self, image: Tensor, fov: Tensor | Route | None = None, step: Step | None = None
    ) -> tuple[Tensor, Trace]:
        """As ``forward``, and what happened on the way, deep supervision included.

        step: what this training step draws by chance; None draws it here, which a compiler of whole graphs cannot.
        """
        return self._run(image, fov, self.draw() if step is None else step, trace=True)

    def draw(self, progress: float = 1.0) -> Step:
        """What a training step leaves to chance. progress: share of the training done."""
        return self.encoder.policy.draw(progress, len(self.encoder.blocks))

    def inside(self, fov: Tensor) -> Route:
        """The patches that hold at least one pixel of the field of view. fov: (B, 1, H, W).

        Where several processes train, all routes are as wide as the widest: none is waited for longer, and the same
        random numbers are drawn for the same tokens whatever images a process has.
        """
        mask = F.max_pool2d(self._pad(fov).float(), self.patch_embed.patch).flatten(1) > 0
        together = self.training and processes.count() > 1
        return route_mask(mask, max(1, processes.highest(mask.sum(1).max())) if together else 1)

    def compile_blocks(self) -> "Segmenter":
        """Compile every block in place, once for all numbers of tokens; returns the network.

        Routes, windows and the field of view stay outside, so that none of them makes the compiler start over.
        """
        for block in self.encoder.blocks:
            block.compile(fullgraph=True, dynamic=True)
        return self

    def checkpoint_blocks(self) -> "Segmenter":
        """Keep no inner results of blocks while training but compute them again for gradients; returns the network."""
        self.encoder.checkpointed = True
        return self

    def _run(self, image: Tensor, fov: Tensor | Route | None, step: Step, trace: bool) -> tuple[Tensor, Trace]:
        if torch.jit.is_tracing():
            image = _traced(image, fov)
        size = image.shape[-2:]
        inside = self.inside(fov) if isinstance(fov, Tensor) else fov
        image = self._pad(image)
        patch = self.patch_embed.patch
        grid = (image.shape[-2] // patch, image.shape[-1] // patch)
        tokens, prefix, query = self._embed(image, grid)
        decoder = self.decoder
        auxiliary: list[Tensor] = []

        def observe(state: Encoded) -> Tensor | None:
            assert isinstance(decoder, EomtDecoder)
            logits = self._decode(image, state, grid)
            auxiliary.append(logits[..., : size[0], : size[1]])
            return decoder.visible(logits, grid, len(auxiliary) - 1, step.progress)

        encoded, record = self.encoder(
            tokens,
            prefix,
            query,
            grid,
            inside=inside,
            step=step,
            query_blocks=decoder.query_blocks,
            observe=observe if trace and decoder.query_blocks else None,
        )
        logits = self._decode(image, encoded, grid)[..., : size[0], : size[1]]
        return logits, Trace(grid, patch, record.lengths, record.stages, tuple(auxiliary))

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
        x = self.norm(state.x).unflatten(1, grid).permute(0, 3, 1, 2)  # channels last: a view, and faster to convolve
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

    def with_soft_pruning(self, above: float | None = None, noise: bool = False, unmask: bool = False) -> "Segmenter":
        """A network that shares all weights with this one and masks what this one removes; see Soft for the arguments.

        Between its output and that of the pruned network lies what stale tokens do.
        """
        return self.with_policy(Soft(self.encoder.policy, above, noise, unmask).train(self.training))

    def dense(self) -> "Segmenter":
        """A network that shares all weights with this one and prunes nothing."""
        return self.with_policy(build_policy("dense", 0, ()).train(self.training))


def _traced(image: Tensor, fov: object) -> Tensor:
    """The image, in a trace that holds for its height and width alone and says so to any other."""
    if fov is not None:
        raise ValueError("a trace would keep the field of view of one image for all: trace with the image alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # that these become constants is the point
        height, width = (int(n) for n in image.shape[-2:])
    return _of_size(image, height, width)


@torch.jit.script_if_tracing
def _of_size(image: Tensor, height: int, width: int) -> Tensor:
    """Goes into the trace as it stands: numbers of tokens are constants there, and wrong for another size."""
    if image.shape[2] != height or image.shape[3] != width:
        raise ValueError(f"image must be {height} x {width} pixels, as it was traced, got {image.shape}; trace again")
    return image


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Absolute positions (1, n*n, D) at another grid (h, w): bicubic, as DINOv2 does. Returns (1, h*w, D)."""
    side = math.isqrt(table.shape[1])
    if grid == (side, side):
        return table
    square = table.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False).flatten(2).mT


def build_segmenter(
    preset: str = "tiny",
    policy: str = "reg4pru",
    decoder: str = "skip",
    keep_rate: float | list[float] = KEEP_RATE,
    stages: str | int | Sequence[int] | None = None,
    reactivate: str | int | None = None,
    policy_options: Mapping[str, Any] | None = None,
    masked_attention: float = 0.0,
) -> Segmenter:
    """Build a network.

    preset: a name in PRESETS. policy: a name in POLICIES. decoder: "eomt" or "skip". keep_rate: share of the tokens
    kept at each stage, one number or a list. stages: blocks of the pruning stages, or a name in SCHEDULES (default:
    step3). reactivate: block before which removed tokens come back, or a name in REACTIVATIONS (default: penultimate).
    policy_options: arguments of the policy, such as route_keep. masked_attention: share of the training during which
    the query of the eomt decoder is masked. Raises ValueError for a name that does not exist or numbers that do not fit
    together.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    p = PRESETS[preset]
    back = reactivation(p.depth, reactivate)
    chosen = stage_plan(p.depth, keep_rate, stages, back)
    blocks = [Block(p.dim, p.heads, p.mlp_ratio, p.qkv_bias, p.layer_scale, p.norm_eps) for _ in range(p.depth)]
    encoder = Encoder(
        blocks,
        build_policy(policy, p.dim, chosen, **(policy_options or {})),
        back,
        rotary=p.position_grid is None,
        coordinate_scale=p.coordinate_scale,
    )
    return Segmenter(
        ConvolutionalEmbedding(p.patch, p.dim, p.stem_width) if p.stem_width else PatchEmbedding(p.patch, p.dim),
        encoder,
        _build_decoder(decoder, p, masked_attention),
        p.dim,
        p.registers,
        p.position_grid,
        p.norm_eps,
    )


def _build_decoder(name: str, p: Preset, masked_attention: float) -> EomtDecoder | SkipDecoder:
    if name == "eomt":
        return EomtDecoder(p.dim, p.patch, query_blocks(p.depth), p.mask_stride, masked_attention)
    if masked_attention:
        raise ValueError(f"masked_attention belongs to the decoder eomt; the decoder {name} has no query")
    if name == "skip":
        return SkipDecoder(p.dim, p.skip_width, p.skip_count)
    raise ValueError(f"decoder must be one of eomt, skip, got {name!r}")
