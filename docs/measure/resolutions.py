"""AP and Dice of photographs with fewer pixels, beside the same pixels of what was found in the whole photographs.

python docs/measure/resolutions.py CHECKPOINT DATA [DATA ...] [--pixels-per-degree 18 12 8 6] [--part test] [--limit 9]
    [--noise 0 2 4 6] [--angle DEGREES]

A photograph and its ground truth are reduced by averaging until a degree of the field of view has so many pixels: 22.8
are what the network sees, a photograph of 565 pixels with 45 degrees has 12. Noise of so many of 255 levels is added to
the reduced pixels. *Whole*: the photograph is segmented as it is and the probability reduced.
"""

import argparse

import numpy as np
from PIL import Image

from reg4pru_monai.bundle import entries
from reg4pru_monai.fundus import detect_fov
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.inference import Pipeline, load_pipeline
from reg4pru_monai.release.degradations import levels, scaled, scaled_mask
from reg4pru_monai.release.measuring import Entries, Score
from reg4pru_monai.release.sources import select


class Reduced:
    """Scores at one number of pixels to a degree: of the whole photographs, and of the reduced ones by their noise."""

    def __init__(self, threshold: float, noises: list[float]) -> None:
        self.whole = Score(threshold)
        self.by_noise = {noise: Score(threshold) for noise in noises}


def reduced_scores(
    pipeline: Pipeline, photographs: Entries, densities: list[float], noises: list[float]
) -> dict[float, Reduced]:
    """Scores to each number of pixels to a degree."""
    scores = {density: Reduced(pipeline.threshold, noises) for density in densities}
    for entry in photographs:
        if not entry["angle"]:
            raise SystemExit(f"{entry['name']}: its angle of view is not known; tell it with --angle")
        pixels, truth = read_image(entry["image"]), read_mask(entry["label"])
        fov = detect_fov(pixels)
        whole = Image.fromarray(pipeline(pixels, entry["angle"]).probability)
        for density, reduced in scores.items():
            factor = density * float(entry["angle"]) / fov.diameter
            if factor >= 1:
                raise SystemExit(f"{entry['name']} has less than {density:g} pixels to a degree; ask for fewer")
            small = scaled(factor)(pixels, fov.diameter)
            masks = [scaled_mask(factor)(mask) for mask in (truth, fov.mask)]
            found = whole.resize(small.shape[1::-1], Image.Resampling.BOX)
            reduced.whole.add(np.asarray(found).clip(0, 1), *masks)
            for noise, score in reduced.by_noise.items():
                noisy = levels(small + np.random.default_rng(0).normal(0, noise, small.shape))
                score.add(pipeline(noisy, entry["angle"]).probability, *masks)
    return scores


def main(arguments: list[str] | None = None) -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--pixels-per-degree", type=float, nargs="+", default=[18.0, 12.0, 8.0, 6.0])
    parser.add_argument("--part", default="test", choices=["train", "validation", "test", "all"])
    parser.add_argument("--limit", type=int, default=9, help="photographs of each data set")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0], help="deviation, in levels of 255")
    parser.add_argument("--angle", type=float, help="degrees of view of photographs whose data set does not tell")
    chosen = parser.parse_args(arguments)
    pipeline = load_pipeline(chosen.checkpoint, device="cpu")
    columns = ("photographs", "pixels to a degree", "noise", "AP", "AP, whole", "Dice", "Dice, whole")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    every = entries(chosen.data, chosen.part, angle=chosen.angle)  # together: the part of one alone is another
    for data in dict.fromkeys(entry["dataset"] for entry in every):
        photographs = select([entry for entry in every if entry["dataset"] == data], chosen.limit)
        scores = reduced_scores(pipeline, photographs, chosen.pixels_per_degree, chosen.noise)
        for density, reduced in scores.items():
            whole = reduced.whole.result()
            for noise, score in reduced.by_noise.items():
                found = score.result()
                cells = [f"{each[name]:.4f}" for name in ("ap", "dice") for each in (found, whole)]
                row = [f"{data} ({len(photographs)})", f"{density:g}", f"{noise:g}", *cells]
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
