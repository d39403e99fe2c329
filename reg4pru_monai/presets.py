"""Named sizes and stage plans: numbers only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .policies import Stage, plan


@dataclass(frozen=True)
class Preset:
    """The size of a network.

    patch: pixels per side of a patch. dim: channels. registers: register tokens beside the class token.
    position_grid: side of a learned table of absolute positions (DINOv2); None for rotary positions.
    norm_eps: of every LayerNorm of the backbone.
    coordinate_scale: see Encoder. mask_stride: pixels per logit of the eomt decoder. skip_width, skip_count: channels
    at full resolution of the skip decoder, and its convolutions there. stem_width: channels of the first convolution
    that makes tokens; 0: a linear map of each patch.
    """

    patch: int
    dim: int
    depth: int
    heads: int
    registers: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    layer_scale: float = 1e-5
    position_grid: int | None = None
    coordinate_scale: float | None = None
    mask_stride: int = 4
    skip_width: int = 16
    skip_count: int = 1
    stem_width: int = 0
    norm_eps: float = 1e-5


# From scratch on a CPU. Small layer scales are for fine-tuning a pretrained backbone; from scratch they stall.
_TINY = Preset(8, 128, 8, 4, layer_scale=0.3, coordinate_scale=16.0, mask_stride=2, skip_width=12)

PRESETS: dict[str, Preset] = {
    "tiny": _TINY,
    "tiny_4": replace(_TINY, depth=4),
    "tiny_12": replace(_TINY, depth=12),
    "tiny_stem": replace(_TINY, skip_count=2),  # docs/decisions/0016-skip-stem.md
    "tiny_early": replace(_TINY, skip_width=8, stem_width=16),  # tokens see more, the decoder less
    # timm vit_{small,base}_patch16_dinov3
    "small": Preset(16, 384, 12, 6),
    "base": Preset(16, 768, 12, 12),
    # timm vit_{small,base}_patch14_reg4_dinov2
    "small_dinov2": Preset(14, 384, 12, 6, qkv_bias=True, position_grid=37, norm_eps=1e-6),
    "base_dinov2": Preset(14, 768, 12, 12, qkv_bias=True, position_grid=37, norm_eps=1e-6),
    # timm vit_{small,base}_patch14_dinov2
    "small_dinov2_noreg": Preset(14, 384, 12, 6, 0, qkv_bias=True, position_grid=37, norm_eps=1e-6),
    "base_dinov2_noreg": Preset(14, 768, 12, 12, 0, qkv_bias=True, position_grid=37, norm_eps=1e-6),
}

KEEP_RATE = 0.7
SCHEDULES = ("jump1", "step3", "per_block")
REACTIVATIONS = ("q_start", "penultimate", "mask_pred")


def stage_plan(
    depth: int,
    keep_rate: float | Sequence[float] = KEEP_RATE,
    stages: str | int | Sequence[int] | None = None,
    reactivate: int | None = None,
) -> tuple[Stage, ...]:
    """Pruning stages: a name in SCHEDULES, given blocks, or None for step3.

    jump1: one stage, at 2/12 of the depth. step3: at 2/12, 5/12 and 8/12 (depth 12 gives blocks 2, 5, 8; depth 8 gives
    1, 3, 5). per_block: at every block but the first, up to ``reactivate``, each removing 1 - keep_rate of the grid.
    keep_rate: one number for every stage, or a list. Raises ValueError.
    """
    if stages is None or stages == "step3":
        return plan(sorted({max(1, depth * block // 12) for block in (2, 5, 8)}), keep_rate)
    if stages == "jump1":
        return plan([max(1, depth * 2 // 12)], keep_rate)
    if stages == "per_block":
        return plan(range(1, depth - 1 if reactivate is None else reactivate), keep_rate, constant=True)
    if isinstance(stages, str):
        raise ValueError(f"stages must be one of {', '.join(SCHEDULES)} or a list of blocks, got {stages!r}")
    return plan([stages] if isinstance(stages, int) else stages, keep_rate)


def reactivation(depth: int, reactivate: str | int | None = None) -> int:
    """The block before which removed tokens come back: a name in REACTIVATIONS, a block, or None for penultimate.

    q_start: where the query joins. penultimate: behind the last block but one. mask_pred: behind the last block, for
    the prediction only. Raises ValueError.
    """
    named = {"q_start": depth - query_blocks(depth), "penultimate": depth - 1, "mask_pred": depth}
    if isinstance(reactivate, str) and reactivate not in named:
        raise ValueError(f"reactivate must be one of {', '.join(REACTIVATIONS)} or a block, got {reactivate!r}")
    return named.get(reactivate or "penultimate", depth - 1) if not isinstance(reactivate, int) else reactivate


def query_blocks(depth: int) -> int:
    """Blocks that the query of the eomt decoder passes through: the last 3 of 12."""
    return max(1, depth // 4)
