"""The README's figure: a photograph, the tokens that were kept, and the mask.

python docs/figures/make_first_figure.py Image_11L.jpg 30 best.pt docs/figures/first.jpg
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from reg4pru_monai.fundus import FieldOfView, canonical_frame
from reg4pru_monai.fundus.io import read_image
from reg4pru_monai.inference import Pipeline, load_pipeline
from reg4pru_monai.plots import token_map
from reg4pru_monai.windows import FundusWindowInferer

PIXELS = 500  # per side of a panel


def levels(pipeline: Pipeline, item: Mapping[str, MetaTensor]) -> np.ndarray:
    """Share of the stages that each patch passed: (h, w) in [0, 1]; in windows as large as those of the mask."""
    patch = pipeline.network.patch_embed.patch

    def stages_passed(image: Tensor, fov: Tensor) -> Tensor:
        _, trace = pipeline.network.forward_with_trace(image, fov)
        passed = torch.zeros(len(image), trace.grid[0] * trace.grid[1])
        for record in trace.stages:
            passed.scatter_add_(1, record.pool.index, record.keep.float())
        share = passed.view(-1, 1, *trace.grid) / max(1, len(trace.stages))
        return share.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., : image.shape[2], : image.shape[3]]

    windows = FundusWindowInferer(pipeline.inferer.window_size, overlap=0, blend="constant")
    image, fov = (item[key].as_tensor()[None] for key in ("image", "fov"))
    with torch.inference_mode():
        found = windows(image, stages_passed, fov=fov)[0, 0].clamp(min=0).numpy()
    return found[patch // 2 :: patch, patch // 2 :: patch]


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("angle", type=float, help="of view, degrees")
    for name in ("checkpoint", "output"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.checkpoint, device="cpu")
    image = read_image(arguments.photograph)
    item = pipeline.prepare(arguments.photograph, arguments.angle)
    fov = FieldOfView.from_dict(item["image"].meta["fov"])
    frame = canonical_frame(fov, PIXELS)
    picture = frame.forward_image(image.transpose(2, 0, 1) / np.float32(255)).transpose(1, 2, 0)
    picture = (picture.clip(0, 1) * 255).astype(np.uint8)
    mask = frame.forward_coverage(pipeline(arguments.photograph, arguments.angle).mask().astype(np.float32))
    panels = {
        "photograph": picture,
        "kept tokens: the darker, the earlier dropped": token_map(picture, levels(pipeline, item)),
        "vessel mask": (np.repeat(mask[..., None], 3, axis=2).clip(0, 1) * 255).astype(np.uint8),
    }
    figure = Figure(figsize=(3 * PIXELS / 100, PIXELS / 100 + 0.3), layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(panel, interpolation="none")
        axes.set_title(title, fontsize=12, pad=4)
        axes.set_axis_off()
    figure.savefig(arguments.output, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
