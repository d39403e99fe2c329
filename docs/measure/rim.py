"""AP near the edge of the field of view and over all of it: `python docs/measure/rim.py ../shared/data`.

With the shipped weights, on training photographs of CHASE_DB1 and HRF, and on AVRDB, which is not used for training.
"""

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from reg4pru_monai import load_pipeline
from reg4pru_monai.fundus.detection import read_fov
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.release.measuring import Score

PHOTOGRAPHS = {"CHASE_DB1": (slice(0, 20, 3), 30.0), "HRF": (slice(0, 15, 5), 60.0), "AVRDB": (slice(0, None, 7), None)}
EDGE = 0.02  # of the diameter


def main(folder: Path) -> None:
    """Print a line per data set."""
    pipeline = load_pipeline()
    for name, (which, angle) in PHOTOGRAPHS.items():
        whole, edge = Score(pipeline.threshold), Score(pipeline.threshold)
        for path in sorted((folder / name / "images").iterdir())[which]:
            mask = next(each for each in (folder / name / "masks").iterdir() if each.stem.split("_1st")[0] == path.stem)
            fov, truth = read_fov(path), read_mask(mask)
            probability = pipeline(read_image(path), angle).probability
            strip = fov.mask & (ndimage.distance_transform_edt(np.pad(fov.mask, 1))[1:-1, 1:-1] <= EDGE * fov.diameter)
            whole.add(probability, truth, fov.mask)
            edge.add(probability, truth, strip)
        print(
            f"{name}: AP {whole.result()['ap']:.3f}, within {EDGE:.0%} of the edge {edge.result()['ap']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
