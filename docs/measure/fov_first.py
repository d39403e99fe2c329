"""What it brings to leave out the tokens outside the field of view before the first block. Weights are random.

The same network and policy with and without the field of view given, at several sizes, on one photograph and on a
batch whose fields of view hold different numbers of tokens. Without a folder of photographs the field of view is a
disc inscribed in the square, and in the batch smaller ones.

python docs/measure/fov_first.py [--images ../shared/data/CHASE_DB1/images] [--size 512 768 1024] [--threads 2]
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reg4pru_monai.accounting import count_flops, seconds
from reg4pru_monai.fundus import IMAGE_SUFFIXES
from reg4pru_monai.policies import POLICIES
from reg4pru_monai.presets import PRESETS
from reg4pru_monai.segmenter import Segmenter, build_segmenter
from reg4pru_monai.transforms import preprocessing

Call = Callable[[], Any]
CPU = torch.device("cpu")
RADII = (1.0, 0.95, 0.9, 0.85)  # of half the side


def discs(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Noise with round fields of view, the first inscribed: (B, 3, size, size) and (B, 1, size, size) float."""
    place = torch.arange(size) + 0.5 - size / 2
    distance = (place.square()[:, None] + place.square()[None]).sqrt()
    fov = torch.stack([(distance <= RADII[n % len(RADII)] * size / 2).float() for n in range(count)])
    return torch.randn(count, 3, size, size), fov.unsqueeze(1)


def photographs(folder: Path, size: int, count: int) -> tuple[Tensor, Tensor]:
    """The first photographs of a folder as the network gets them, the disc ``size`` pixels wide, padded to one size."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES][:count]
    if len(paths) < count:
        raise ValueError(f"{folder} must hold at least {count} photographs, got {len(paths)}; lower --batch")
    prepare = preprocessing(size, with_label=False)
    items = [prepare({"image": path}) for path in paths]
    height, width = (max(item["image"].shape[axis] for item in items) for axis in (1, 2))

    def padded(key: str) -> Tensor:
        planes = [item[key].as_tensor() for item in items]
        return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in planes])

    return padded("image"), padded("fov")


def token_share(network: Segmenter, fov: Tensor) -> float:
    """Share of the patches that hold a pixel of the field of view."""
    patch, route = network.patch_embed.patch, network.inside(fov)
    patches = fov.shape[0] * math.ceil(fov.shape[2] / patch) * math.ceil(fov.shape[3] / patch)
    return (route.index.numel() if route.valid is None else int(route.valid.sum())) / patches


def interleaved(without: Call, given: Call, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both calls, in turns, every other one backwards; the first turn is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            elapsed = seconds((without, given)[which], CPU)[0]
            if turn:
                times[which].append(elapsed)
    return times


def row(network: Segmenter, image: Tensor, fov: Tensor, repeats: int) -> str:
    """One line of the table."""
    calls = partial(network, image), partial(network, image, fov)
    without, given = interleaved(*calls, repeats)
    ratios = [a / b for a, b in zip(without, given, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if repeats > 1 else ratios * 3
    possible = count_flops(calls[0]) / count_flops(calls[1])
    cells = [" x ".join(map(str, (len(image), *image.shape[2:]))), f"{token_share(network, fov):.3f}"]
    cells += [f"{median(without):.3f}", f"{median(given):.3f}", f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"]
    return "| " + " | ".join([*cells, f"{possible:.2f}"]) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="With and without the field of view.")
    parser.add_argument("--images", type=Path, help="folder of photographs; without one, generated discs")
    parser.add_argument("--size", type=int, nargs="+", default=[512, 768, 1024], help="diameter of the disc in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images of the batch, measured beside a single image")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--policy", choices=POLICIES, default="reg4pru")
    parser.add_argument("--decoder", choices=["eomt", "skip"], default="eomt")
    parser.add_argument("--keep-rate", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="turns, beside one to warm up")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    network = build_segmenter(given.preset, given.policy, given.decoder, keep_rate=given.keep_rate).eval()
    print(f"torch {torch.__version__}, {given.threads} threads, float32, median of {given.repeats} turns\n")
    print("| images | tokens inside | without, s | with, s | without / with (quartiles) | FLOP ratio |")
    print("|---" * 6 + "|")
    for size, count in product(given.size, sorted({1, given.batch})):
        image, fov = photographs(given.images, size, count) if given.images else discs(size, count)
        with torch.inference_mode():
            print(row(network, image, fov, given.repeats))


if __name__ == "__main__":
    main()
