"""How much of a vessel mask survives the canonical scale and back: the figures of decision 0001.

python docs/measure/canonical_diameter.py DATA   (DATA holds CHASE_DB1/ and HRF/, each with images/ and masks/)
"""

import sys
from pathlib import Path

import numpy as np

from reg4pru_monai.fundus import CanonicalFrame, canonical_frame, detect_fov, read_image, read_mask

DIAMETERS = (512, 640, 768, 896, 1024, 1152, 1280, 1536)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks (H, W) bool."""
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def round_trips(frame: CanonicalFrame, mask: np.ndarray) -> tuple[float, float]:
    """Dice of mask (H, W) bool with itself after the round trip: as coverage in [0, 1], and thresholded on the way."""
    soft = frame.inverse(frame.forward_coverage(mask)) >= 0.5
    hard = frame.inverse(frame.forward_mask(mask).astype(np.float32)) >= 0.5
    return dice(mask, soft), dice(mask, hard)


def measure(folder: Path) -> np.ndarray:
    """(images, diameters, 2) float: Dice, soft and hard, for every pair of a data set."""
    masks = {path.stem.removesuffix("_1stHO"): path for path in sorted((folder / "masks").iterdir())}
    rows = []
    for image in sorted((folder / "images").iterdir()):
        fov = detect_fov(read_image(image))
        mask = read_mask(masks[image.stem]) & fov.mask
        rows.append([round_trips(canonical_frame(fov, diameter), mask) for diameter in DIAMETERS])
    return np.array(rows)


def main(data: Path) -> None:
    """Print one Markdown table: mean and lowest Dice per image."""
    found = {name: measure(data / name) for name in ("HRF", "CHASE_DB1")}
    print("| diameter | " + " | ".join(f"{name} soft | {name} hard" for name in found) + " |")
    print("|---" * (1 + 2 * len(found)) + "|")
    for column, diameter in enumerate(DIAMETERS):
        cells = [
            f"{values[:, column, way].mean():.4f} ({values[:, column, way].min():.4f})"
            for values in found.values()
            for way in (0, 1)
        ]
        print(f"| {diameter} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
