"""What kind of photographs a data set holds, and whether poor ones are segmented worse."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..batch.quality import quality_indicators
from ..fundus import detect_fov
from ..fundus.io import read_image

INDICATORS = ("focus", "contrast", "illumination_mean", "illumination_evenness")
QUARTER = 0.25


def describe(entries: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Sizes in pixels (width, height), diameters and known angles of the field of view, quality of each photograph."""
    sizes, diameters, quality = set(), [], {}
    for entry in entries:
        pixels = read_image(entry["image"])
        fov = detect_fov(pixels)
        sizes.add((pixels.shape[1], pixels.shape[0]))
        diameters.append(fov.diameter)
        indicators = quality_indicators(pixels, fov)
        quality[entry["name"]] = {name: indicators[name] for name in INDICATORS}
    return {
        "images": len(entries),
        "subjects": len({entry["subject"] for entry in entries}),
        "groups": {name: sum(e.get("group") == name for e in entries) for name in _groups(entries)},
        "pixels": sorted(sizes),
        "diameter_px": [min(diameters), max(diameters)],
        "angles_deg": sorted({float(entry["angle"]) for entry in entries if entry["angle"]}),
        "quality": quality,
    }


def _groups(entries: Sequence[Mapping[str, str]]) -> list[str]:
    return sorted({entry.get("group", "") for entry in entries} - {""})


def quality_against_dice(
    quality: Mapping[str, Mapping[str, float]], dice: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """For each indicator: mean Dice of the quarter of the photographs where it is lowest, and of the others.

    Within one data set, because cameras differ. Empty for fewer than four photographs.
    """
    names = [name for name in quality if name in dice]
    count = int(QUARTER * len(names))
    found = {}
    for indicator in INDICATORS if count else ():
        order = sorted(names, key=lambda name: quality[name][indicator])
        low, rest = order[:count], order[count:]
        means = [float(np.mean([dice[name] for name in part])) for part in (low, rest)]
        found[indicator] = {"lowest_quarter": means[0], "others": means[1], "images": count}
    return found
