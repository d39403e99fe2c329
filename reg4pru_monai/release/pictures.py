"""Pictures of a release: the photographs that were segmented worst, and a contact sheet of all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import replacing
from ..plots import FALSE, FOUND, MISSED, overlay

FAILURE_BYTES, SHEET_BYTES = 300_000, 1_500_000
_FAILURE_WIDTHS = (1000, 900, 800, 700, 600, 500)
_SHEET_QUALITIES = (85, 75, 65, 50)
_THUMBNAIL = (300, 240)  # width, height
_LINE = 22  # px
LEGEND = ((FOUND, "found"), (MISSED, "missed (false negative)"), (FALSE, "false (false positive)"))


def save_failure(path: Path, image: np.ndarray, mask: np.ndarray, truth: np.ndarray, title: str) -> None:
    """Overlay on the photograph in grey, so that three colours show, as PNG of at most FAILURE_BYTES where it can be.

    image: (H, W, 3) uint8 or float in [0, 1]. mask, truth: (H, W) bool.
    """
    grey = (0.55 * overlay(image, np.zeros_like(mask))[..., 1:2]).astype(np.uint8).repeat(3, 2)
    drawn = Image.fromarray(overlay(grey, mask, truth))
    for width in _FAILURE_WIDTHS:
        small = drawn.resize((width, round(drawn.height * width / drawn.width)), Image.Resampling.LANCZOS)
        page = Image.new("RGB", (width, small.height + 2 * _LINE), "black")
        page.paste(small, (0, 2 * _LINE))
        _text(page, (4, 2), title)
        _legend(page, (4, _LINE))
        with replacing(path) as beside:
            page.quantize(palette=_palette(), dither=Image.Dither.NONE).save(beside, "PNG", optimize=True)
        if path.stat().st_size <= FAILURE_BYTES:
            return


def _palette() -> Image.Image:
    """Greys, and the three colours mixed with them: one made from the picture would lose the rarest of the three."""
    greys = [(grey,) * 3 for grey in range(0, 256, 4)]
    mixed = [
        tuple(round(share * part + (1 - share) * grey) for part in colour)
        for colour, _ in LEGEND
        for share in (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
        for grey in (0, 30, 60, 90, 120)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in (*greys, *mixed) for part in colour])
    return palette


def save_contact_sheet(path: Path, pictures: Sequence[tuple[Path, str]]) -> None:
    """All pictures small on one page, a JPEG of at most SHEET_BYTES where it can be. pictures: file and caption."""
    columns = max(1, round(len(pictures) ** 0.5 * 1.2))
    width, height = _THUMBNAIL
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (max(columns * width, 3 * width), rows * (height + _LINE) + _LINE), "black")
    _legend(page, (4, 2))
    for number, (file, caption) in enumerate(pictures):
        left, top = number % columns * width, number // columns * (height + _LINE) + _LINE
        with Image.open(file) as picture:
            picture.draft("RGB", (2 * width, 2 * height))
            small = picture.convert("RGB")
        small.thumbnail((width - 4, height), Image.Resampling.LANCZOS)
        page.paste(small, (left, top + _LINE))
        _text(page, (left + 4, top + 2), caption)
    for quality in _SHEET_QUALITIES:
        with replacing(path) as beside:
            page.save(beside, "JPEG", quality=quality, optimize=True)
        if path.stat().st_size <= SHEET_BYTES:
            return


def worst(dice: Mapping[tuple[str, str], float], count: int = 3) -> list[tuple[str, str]]:
    """The photographs with the lowest Dice, the lowest first. dice: by (data set, photograph)."""
    return sorted(dice, key=lambda key: (dice[key], key))[:count]


def _legend(page: Image.Image, place: tuple[int, int]) -> None:
    left, top = place
    for colour, meaning in LEGEND:
        ImageDraw.Draw(page).rectangle((left, top + 3, left + 12, top + 15), fill=colour)
        _text(page, (left + 17, top), meaning)
        left += 17 + 9 * len(meaning)


def _text(page: Image.Image, place: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(page).text(place, text, fill="white", font=ImageFont.load_default(14))
