"""Load and check checkpoints; foreign backbones (timm names) -> ours."""

import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import replacing
from .released import CheckpointError, check_shipped, missing_weights, sha256
from .segmenter import Segmenter, resize_positions

# preset: timm model
BACKBONES = {
    "small": "vit_small_patch16_dinov3",
    "base": "vit_base_patch16_dinov3",
    "small_dinov2": "vit_small_patch14_reg4_dinov2",
    "base_dinov2": "vit_base_patch14_reg4_dinov2",
    "small_dinov2_noreg": "vit_small_patch14_dinov2",
    "base_dinov2_noreg": "vit_base_patch14_dinov2",
}


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write beside, then rename: an earlier checkpoint stays whole whatever happens.

    Raises CheckpointError that names the file, for example when the disk is full.
    """
    try:
        with replacing(path) as beside, open(beside, "wb") as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        if isinstance(error.__context__, KeyboardInterrupt):  # in the middle of a write: the writer ends in an error
            raise error.__context__ from None
        kept = "; an earlier one is unharmed. Resume from it when" if Path(path).exists() else ". Start again when"
        raise CheckpointError(f"{path}: checkpoint not written ({error}){kept} the disk has space.") from error


# What checkpoints of before an entry of their configuration existed were trained with.
EARLIER: dict[str, Any] = {"rim": 0.0, "by_angle": False}


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint written by :func:`save_checkpoint`, tensors and plain values only."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(missing_weights(path) or f"{path}: no such checkpoint; train first, or give one's path")
    check_shipped(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to switch the protection off
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values; others are refused: reading them can run code"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint, or damaged ({type(error).__name__}: {error}); make or copy it again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    return state


def load_network(network: nn.Module, path: str | Path, new_policy: bool = False) -> nn.Module:
    """Load trained weights into a network of the same architecture, in place; returns it.

    The exponential moving average is taken where there is one. Policy parameters that the network has no use for are
    dropped, so that a checkpoint can be evaluated dense or under a policy without parameters; missing ones are an
    error, or with ``new_policy`` keep their values, for a training that goes on with another policy.
    Raises CheckpointError that names the first parameters that do not fit.
    """
    state = load_checkpoint(path)
    own = network.state_dict()
    weights = _policy_names(state.get("ema") or state.get("network") or state, own)
    unused = [name for name in weights if name not in own and str(name).startswith("encoder.policy.")]
    weights = {name: value for name, value in weights.items() if name not in unused}
    if new_policy:
        weights = {name: value for name, value in own.items() if name.startswith("encoder.policy.")} | weights
    problems = mismatches(own, weights)
    if problems:
        raise CheckpointError(
            f"{path}: checkpoint of another architecture: {_first(problems)}. "
            "Use the preset, decoder, policy and stages it was trained with."
        )
    network.load_state_dict(weights)
    return network


def _policy_names(weights: Mapping[str, Any], own: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """The weights under the names of the network's policy: random routing keeps the policy below it as ``base``.

    At inference both are the same, so that the weights of one can be evaluated as the other.
    """
    policy, routed = "encoder.policy.", "encoder.policy.base."
    here, there = ((routed, policy), (policy, routed))[any(name.startswith(routed) for name in own)]
    if any(str(name).startswith(routed) for name in weights) == (there == routed):
        return weights
    return {str(name).replace(here, there, 1): value for name, value in weights.items()}


def write_release(checkpoint: str | Path, target: str | Path, threshold: float | None = None) -> None:
    """Write the averaged weights of a checkpoint in half precision, with the configuration they need.

    threshold: the probability from which on a pixel is vessel, where another than the checkpoint's is to be kept with
    them. Loads like any checkpoint. Raises CheckpointError.
    """
    weights, state = averaged_weights(checkpoint)
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    chosen = {} if threshold is None else {"threshold": threshold}
    save_checkpoint(target, {"network": half, "configuration": {**state["configuration"], **chosen}})


def blend_checkpoints(checkpoint: str | Path, start: str | Path, target: str | Path, share: float = 0.5) -> None:
    """Write share * start + (1 - share) * checkpoint, weight by weight, in float32.

    Between a network and the one that its training started from lie networks that have much of what the training
    brought and have lost less of what was there before (Wortsman et al., "Robust fine-tuning of zero-shot models",
    CVPR 2022). Averaged weights are taken where there are any; the configuration is that of ``checkpoint``, also where
    both saw photographs at different scales, of which the training has warned.
    Raises ValueError for a share outside (0, 1), CheckpointError.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share:g}")
    weights, state = averaged_weights(checkpoint)
    before = _policy_names(averaged_weights(start)[0], weights)
    problems = mismatches(weights, before)
    if problems:
        raise CheckpointError(
            f"{checkpoint} and {start} cannot be blended: {_first(problems)}. "
            "Give a checkpoint of a training and the weights that it started from."
        )
    mixed = {
        name: torch.lerp(value.float(), before[name].float(), share) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    blended = {"share": share, "start_sha256": sha256(Path(start))}
    told = {"epoch": state.get("epoch"), "configuration": state["configuration"]}
    save_checkpoint(target, {"network": mixed, **told, "blended": blended})


def averaged_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a checkpoint, averaged where there are such, and all of it. Raises CheckpointError."""
    state = load_checkpoint(path)
    weights = state.get("ema") or state.get("network")
    if weights is None or "configuration" not in state:
        raise CheckpointError(f"{path}: holds no weights with a configuration; give best.pt or last.pt")
    return weights, state


def _first(problems: Sequence[str]) -> str:
    """The first three of them, and how many more there are."""
    return "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")


def mismatches(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    """What keeps a state dict from fitting, a sentence each."""
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not in this network" for name in given if name not in own]
    for name, expected in own.items():
        value = given.get(name, expected)
        if not isinstance(value, Tensor):
            problems.append(f"{name} is not a tensor")
        elif value.shape != expected.shape:
            problems.append(f"{name} is {tuple(value.shape)}, expected {tuple(expected.shape)}")
    return problems


def load_backbone(network: Segmenter, source: str | Path | Mapping[str, Tensor]) -> list[str]:
    """Load a pretrained backbone with timm's parameter names, in place.

    source: a .pt, .pth or .safetensors file, or a state dict, of vit_{small,base}_patch16_dinov3 (class Eva) or
        vit_{small,base}_patch14_{dinov2,reg4_dinov2} (class VisionTransformer). ``docs/backbones.md`` has the table.
    Returns the parameters and buffers that the backbone does not have and that keep their values: decoder and policy.
    Raises CheckpointError that names the first parameters that do not fit; the network is unchanged then.
    """
    given = _from_timm(source if isinstance(source, Mapping) else _read_backbone(Path(source)))
    every = network.state_dict()
    own = {name: value for name, value in every.items() if not name.startswith(("decoder.", "encoder.policy."))}
    if not network.reg_token.numel():
        given.setdefault("reg_token", own["reg_token"])
    if "pos_embed" in own and all(isinstance(given.get(name), Tensor) for name in ("pos_embed", "cls_token")):
        given |= _fit_positions(given, math.isqrt(own["pos_embed"].shape[1]))
    problems = mismatches(own, given)
    if problems:
        where = "the given state dict" if isinstance(source, Mapping) else str(source)
        raise CheckpointError(
            f"{where}: backbone of another architecture: {_first(problems)}. "
            f"Presets and their timm models: {', '.join(f'{p} {t}' for p, t in BACKBONES.items())}."
        )
    network.load_state_dict(given, strict=False)
    return [name for name in every if name not in given]


def _read_backbone(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a downloaded backbone")
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(f"{path}: reading .safetensors needs a package: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error})") from error


def _from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for timm's. A classifier head and the mask token of the pretraining have no use here."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^blocks\.(\d+)\.ls([12])\.gamma$", r"blocks.\1.gamma_\2", str(name))
        if not name.startswith(("head.", "mask_token")):
            renamed[f"encoder.{name}" if name.startswith("blocks.") else name] = value
    return renamed


def _fit_positions(given: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """Absolute positions (1, n*n, D), or one more for the class token, at a grid of ``side``.

    Ours has none for the class token: it is a constant that belongs to the token itself.
    """
    table, fitted = given["pos_embed"], {}
    if table.ndim == 3 and _is_square(table.shape[1] - 1):
        fitted["cls_token"] = given["cls_token"] + table[:, :1]
        table = table[:, 1:]
    if table.ndim == 3 and _is_square(table.shape[1]):
        fitted["pos_embed"] = resize_positions(table.float(), (side, side))
    return fitted


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
