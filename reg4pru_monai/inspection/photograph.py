"""What the network does on one photograph: removed tokens, scores, reactivation, and the prediction after each block.

The photograph is one image at canonical scale, not cut into windows, so that every map is whole.
"""

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..files import replacing
from ..fundus import CanonicalFrame, FieldOfView
from ..fundus.io import read_image
from ..inference import Pipeline
from ..networks import transformer
from ..policies import FINAL, StageTrace, Step, Window
from ..policies.reg4pru import first_stage
from ..segmenter import Segmenter

WINDOW_KEEP = 0.5  # share of the tokens that passes through the random window, as in training
SEED = 0  # of the random half


class StageMap(NamedTuple):
    """What one stage did, on the token grid (rows, columns).

    block: the stage acts before it. score: float32, the higher the rather kept; NaN where the stage had no token to
    score, outside the field of view or removed earlier. removed: bool.
    """

    block: int
    score: np.ndarray
    removed: np.ndarray


class Variant(NamedTuple):
    """Vessel probabilities, (H, W) float32 at canonical scale, 0 outside the field of view.

    after: read out after each block; the last is the network's prediction. routed: the prediction where a random half
    of the tokens skips the blocks of the window.
    """

    after: tuple[np.ndarray, ...]
    routed: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """The network's prediction."""
        return self.after[-1]


class Inspection(NamedTuple):
    """All that the figures show.

    photograph: (H, W, 3) float32 in [0, 1] at canonical scale. inside: (H, W) bool, its field of view. patch: pixels
    per side of a token. tokens: (rows, columns) bool, those in the field of view. stages: empty where nothing is
    pruned. reactivate: block before which removed tokens come back. window: the blocks that a random half skips.
    variants: "dense", and "pruned" where there are stages.
    """

    photograph: np.ndarray
    inside: np.ndarray
    patch: int
    tokens: np.ndarray
    stages: tuple[StageMap, ...]
    reactivate: int
    window: Window
    variants: dict[str, Variant]

    @property
    def removed(self) -> np.ndarray:
        """Tokens that any stage removed, all of which come back: (rows, columns) bool."""
        return np.any([stage.removed for stage in self.stages], axis=0) if self.stages else np.zeros_like(self.tokens)

    def pixels(self, grid: np.ndarray) -> np.ndarray:
        """A map over the token grid as one over the pixels, (H, W)."""
        height, width = self.inside.shape
        return grid.repeat(self.patch, 0).repeat(self.patch, 1)[:height, :width]


def inspect_photograph(
    pipeline: Pipeline,
    photograph: str | Path | np.ndarray,
    output: str | Path,
    name: str | None = None,
    angle: float | str | None = None,
) -> list[Path]:
    """Write the figures of one photograph as PNG files, and inspect.html with all of them; all or none.

    photograph: path of an image file, or (H, W, 3) RGB, uint8 or float in [0, 1]. output: folder, made where there is
    none. name: how the page calls the photograph; default: its file name. angle: of view, as Pipeline takes it.
    Returns the files.
    Raises FundusReadError and ValueError as Pipeline does, and OSError.
    """
    from .figures import draw, page

    if name is None:
        name = "photograph" if isinstance(photograph, np.ndarray) else Path(photograph).name
    found = inspect_network(pipeline, photograph, angle)
    figures = draw(found)
    contents = {"inspect.html": page(name, found, figures).encode()}
    contents |= {f"{figure.name}.png": figure.png for figure in figures}
    with ExitStack() as files:  # nothing is renamed before everything is written; the page, entered first, comes last
        for file, content in contents.items():
            files.enter_context(replacing(Path(output) / file)).write_bytes(content)
    return [Path(output) / file for file in contents]


def inspect_network(
    pipeline: Pipeline, photograph: str | Path | np.ndarray, angle: float | str | None = None
) -> Inspection:
    """Run the network of a pipeline on one photograph, dense and pruned, and keep what happened."""
    pixels = photograph if isinstance(photograph, np.ndarray) else read_image(photograph)
    item = pipeline.prepare(pixels, angle)
    image, fov = (item[key].as_tensor()[None].to(pipeline.device) for key in ("image", "fov"))
    inside = item["fov"].as_tensor()[0].numpy() > 0
    network = transformer(pipeline.network, "inspect")
    depth = len(network.encoder.blocks)
    # The longest that training draws by default.
    window = Window(first_stage(network.encoder.policy.stages), depth - 1, WINDOW_KEEP)
    with torch.inference_mode():
        _, trace = network.forward_with_trace(image, fov, FINAL)
        shown = {"dense": network.dense()} | ({"pruned": network} if trace.stages else {})
        variants = {name: _variant(each, image, fov, window) for name, each in shown.items()}
        tokens = np.zeros(trace.grid, bool)
        tokens.flat[network.inside(fov).index[0].cpu().numpy()] = True
    return Inspection(
        canonical_photograph(pixels, item["image"].meta["fov"], inside),
        inside,
        trace.patch,
        tokens,
        tuple(stage_map(record, trace.grid) for record in trace.stages),
        network.encoder.reactivate,
        window,
        variants,
    )


def canonical_photograph(pixels: np.ndarray, fov: dict[str, object], inside: np.ndarray) -> np.ndarray:
    """The photograph (H, W, 3) as the network is shown it, but in its own colours: (h, w, 3) float32 in [0, 1].

    fov: of FieldOfView.to_dict. inside: (h, w) bool, the field of view at canonical scale; black outside.
    """
    scaled = pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    view = FieldOfView.from_dict(fov)
    frame = CanonicalFrame(view.shape, view.surroundings, (inside.shape[0], inside.shape[1]))
    return np.clip(frame.forward_image(scaled.transpose(2, 0, 1)) * inside, 0, 1).transpose(1, 2, 0)


def stage_map(record: StageTrace, grid: tuple[int, int]) -> StageMap:
    """A stage of the trace of one image, on the token grid."""
    index, score, keep = record.pool.index[0], record.score[0].float(), record.keep[0]
    if record.pool.valid is not None:
        index, score, keep = (each[record.pool.valid[0]] for each in (index, score, keep))
    places = index.cpu().numpy()
    score_map, removed = np.full(grid, np.nan, np.float32), np.zeros(grid, bool)
    score_map.flat[places] = score.cpu().numpy()
    removed.flat[places] = keep.cpu().numpy() < 0.5
    return StageMap(record.stage.block, score_map, removed)


class _Idle(nn.Module):
    """Takes the place of a block and changes nothing."""

    def forward(self, x: Tensor, *others: object) -> Tensor:
        """The tokens as they came."""
        return x


def stopped_after(network: Segmenter, blocks: int) -> Segmenter:
    """A network that shares all weights with this one, whose decoder reads the tokens after the first blocks.

    Tokens removed so far come back as they left. The query of the decoder eomt has passed through the query blocks
    among those; before the first it is the learned one, which training reads out there too. blocks: how many do
    anything, 1 to the depth.
    """
    own = list(network.encoder.blocks)
    if not 1 <= blocks <= len(own):
        raise ValueError(f"blocks must be in 1..{len(own)}, got {blocks}")
    encoder = copy.copy(network.encoder)
    # Not cut off but idle: where stages, query and reactivation are stays the same for the blocks before.
    idle = nn.ModuleList(own[:blocks] + [_Idle() for _ in own[blocks:]])
    encoder._modules = {**network.encoder._modules, "blocks": idle}
    twin = copy.copy(network)
    twin._modules = {**network._modules, "encoder": encoder}
    return twin


def _variant(network: Segmenter, image: Tensor, fov: Tensor, window: Window) -> Variant:
    depth = len(network.encoder.blocks)
    after = [_probability(stopped_after(network, n)(image, fov), fov) for n in range(1, depth + 1)]
    with torch.random.fork_rng([image.device] if image.is_cuda else []):
        torch.manual_seed(SEED)
        routed, _ = network.forward_with_trace(image, fov, Step(window=window))
    return Variant(tuple(after), _probability(routed, fov))


def _probability(logits: Tensor, fov: Tensor) -> np.ndarray:
    return (logits.float().sigmoid() * (fov > 0))[0, 0].cpu().numpy()
