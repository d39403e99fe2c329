"""Load and check checkpoints; foreign backbones (timm names) -> ours."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, written, or does not fit the network."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write beside, then rename: an earlier checkpoint stays whole whatever happens.

    Raises CheckpointError that names the file, for example when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise CheckpointError(
            f"{path}: checkpoint not written ({error}); an earlier one is unharmed. Free some disk space and resume."
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint written by :func:`save_checkpoint`, tensors and plain values only."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train first, or give the path of one")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    return state


def load_network(network: nn.Module, path: str | Path) -> nn.Module:
    """Load trained weights into a network of the same architecture, in place; returns it.

    The exponential moving average is taken where there is one. Policy parameters that the network has no use for are
    dropped, so that a checkpoint can be evaluated dense or under a policy without parameters; missing ones are an error.
    Raises CheckpointError that names the first parameters that do not fit.
    """
    state = load_checkpoint(path)
    weights = state.get("ema") or state.get("network") or state
    own = network.state_dict()
    unused = [name for name in weights if name not in own and name.startswith("encoder.policy.")]
    weights = {name: value for name, value in weights.items() if name not in unused}
    problems = mismatches(own, weights)
    if problems:
        raise CheckpointError(
            f"{path}: checkpoint of another architecture: {'; '.join(problems[:3])}"
            f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. "
            "Use the preset, decoder, policy and stages it was trained with."
        )
    network.load_state_dict(weights)
    return network


def mismatches(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    """What keeps a state dict from fitting, a sentence each."""
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not in this network" for name in given if name not in own]
    for name in own.keys() & given.keys():
        value = given[name]
        if not isinstance(value, Tensor):
            problems.append(f"{name} is not a tensor")
        elif value.shape != own[name].shape:
            problems.append(f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}")
    return problems
