"""Networks small enough for tests, and round fields of view."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from reg4pru_monai.inference import ARCHITECTURE, UNTRAINED
from reg4pru_monai.presets import PRESETS, Preset
from reg4pru_monai.segmenter import Segmenter, build_segmenter
from reg4pru_monai.weights import save_checkpoint

SMALL = Preset(patch=4, dim=32, depth=8, heads=4, layer_scale=0.5, coordinate_scale=8.0, mask_stride=2, skip_width=4)


def small_network(policy: str = "reg4pru", decoder: str = "eomt", preset: Preset = SMALL, **options: Any) -> Segmenter:
    """Depth 8: stages at blocks 1, 3, 5; the query joins at block 6; reactivation at block 7. 5 prefix tokens."""
    torch.manual_seed(0)
    with patch.dict(PRESETS, small_test=preset):
        built = {name: options.pop(name) for name in ("keep_rate", "stages", "reactivate") if name in options}
        return build_segmenter("small_test", policy, decoder, **built, policy_options=options)


def write_checkpoint(path: Path, diameter: int, **changed: Any) -> Path:
    """An untrained network: its probabilities differ from pixel to pixel, which is all that most tests need."""
    settings = {**UNTRAINED, "diameter": diameter, **changed}
    torch.manual_seed(0)
    network = build_segmenter(**{key: settings[key] for key in ARCHITECTURE})
    save_checkpoint(path, {"network": network.state_dict(), "configuration": settings})
    return path


def disc(size: tuple[int, int], center: tuple[float, float], radius: float) -> Tensor:
    """(1, 1, H, W) bool."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (((rows - center[0]) ** 2 + (columns - center[1]) ** 2) < radius**2)[None, None]


class Recorder:
    """What goes into and comes out of every block, by forward hooks."""

    def __init__(self, network: Segmenter):
        self.inputs: list[Tensor] = []
        self.weights: list[Tensor | None] = []
        self.outputs: list[Tensor] = []
        for block in network.encoder.blocks:
            block.register_forward_hook(self._record)

    def _record(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        x, _, weight, _ = arguments
        self.inputs.append(x.detach())
        self.weights.append(weight)
        self.outputs.append(output.detach())
