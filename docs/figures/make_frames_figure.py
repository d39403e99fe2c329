"""The frames of the phantoms with the field of view that is found (green) and the mask (white): frames.jpg.

`python docs/figures/make_frames_figure.py` from the root of the checkout; with the shipped weights, three minutes.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from reg4pru_monai import load_pipeline
from reg4pru_monai.fundus import detect_fov
from reg4pru_monai.fundus.io import FundusReadError
from reg4pru_monai.fundus.phantom import make_eye
from reg4pru_monai.fundus.phantom_frames import FRAMES, frame_eye

SIZE, TILE, COLUMNS = 600, 280, 7


def tile(kind: str, picture: np.ndarray, mask: np.ndarray | None) -> Image.Image:
    """(TILE, TILE) with the kind of frame written below."""
    shown = picture.copy()
    if mask is not None:
        shown[mask] = 255
        fov = detect_fov(picture).mask
        shown[ndimage.binary_dilation(fov ^ ndimage.binary_erosion(fov, border_value=1), iterations=2)] = (0, 255, 0)
    small = Image.fromarray(shown)
    small.thumbnail((TILE, TILE - 16))
    out = Image.new("RGB", (TILE, TILE), (40, 40, 40))
    out.paste(small, ((TILE - small.width) // 2, (TILE - 16 - small.height) // 2))
    ImageDraw.Draw(out).text((4, TILE - 14), kind if mask is not None else f"{kind}: refused", fill=(255, 255, 255))
    return out


def main() -> None:
    """Write the figure beside this file."""
    pipeline, eye = load_pipeline(), make_eye(SIZE / 2, seed=1)
    tiles = []
    for kind in FRAMES:
        picture = frame_eye(eye, kind, SIZE, seed=1).image
        try:
            mask = pipeline(picture).mask()
        except FundusReadError:
            mask = None
        tiles.append(tile(kind, picture, mask))
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(tiles) // COLUMNS) * TILE))
    for index, each in enumerate(tiles):
        sheet.paste(each, (index % COLUMNS * TILE, index // COLUMNS * TILE))
    sheet.save(Path(__file__).with_name("frames.jpg"), quality=85)


if __name__ == "__main__":
    main()
