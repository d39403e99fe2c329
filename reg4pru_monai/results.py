"""What is said of an evaluation: metrics for MLflow, the table for the terminal, the description of a run."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from .markdown import markdown_table

SPEED = ("images_per_second", "latency_ms", "gflops", "peak_memory_mib")
# Few: a training adds ten more, and MLflow's tables and charts want fewer than 40; that is all the room there is.
# metrics.json has every metric and interval.
HEADLINE = {  # a network that is only dense has the first ones as dense
    "pruned": (
        *("ap", "ap_low", "ap_high", "dice", "dice_low", "dice_high", "auc", "auc_low", "auc_high", "cldice"),
        *("sensitivity", "specificity", "thin_vessel_recall", "surface_dice", "ece"),
        *SPEED,
        "speedup",
    ),
    "dense": ("ap", "ap_low", "ap_high", "dice", *SPEED),
}
SHARES = {  # pooled over pixels but the last
    **{"ap": "AP", "dice": "Dice", "auc": "AUC", "cldice": "clDice", "sensitivity": "Sensitivity"},
    **{"specificity": "Specificity", "thin_vessel_recall": "Thin-vessel recall", "ece": "ECE"},
    "per_image/surface_dice": "Surface Dice",
}
AUC_INTERVAL = ("auc_low", "auc_high")
POOLED = ("ap", "dice", "auc", "cldice")
GROUPED = ("ap", "dice", "cldice", "thin_vessel_recall")


def headline(result: Mapping[str, float]) -> dict[str, float]:
    """The few metrics that go to MLflow, by the names they have there behind the name of the part.

    Of several data sets, AP on each as the network is meant to run, in place of the interval of AUC: there is room for
    two (see HEADLINE).
    What is undefined, as thin-vessel recall where no vessel is thin, is left out; but not AP and Dice: the tracker
    notes with a tag that they are, and `reg4pru compare` says so.
    """
    main = main_variant(result)
    left_out = {*(AUC_INTERVAL if datasets(result) else ()), *(() if main == "pruned" else ("speedup",))}
    names = [f"{main}/{key}" for key in HEADLINE["pruned"] if key not in left_out]
    names += [f"dense/{key}" for key in HEADLINE["dense"]] + ["efficiency"]
    sources = {name: name.replace("surface_dice", "per_image/surface_dice") for name in names}
    kept = {f"{variant}/{key}" for variant in _variants(result) for key in ("ap", "dice")}
    found = {name: result[source] for name, source in sources.items() if source in result}
    for dataset in datasets(result):
        found[f"{main}/dataset/{_plain(dataset)}/ap"] = result[_of(dataset, result, "ap")]
    return {name: value for name, value in found.items() if name in kept or isfinite(value)}


def main_variant(result: Mapping[str, Any]) -> str:
    """How a network is meant to run: pruned, or dense where it removes no tokens."""
    return "pruned" if "pruned/ap" in result else "dense"


def datasets(result: Mapping[str, Any]) -> list[str]:
    """The names of the data sets that a result tells apart; none where there is one."""
    return [name.split("/")[1] for name in result if name.startswith("dataset/")]


def _of(dataset: str, result: Mapping[str, float], key: str) -> str:
    return f"{main_variant(result)}/dataset/{dataset}/{key}"


def _plain(name: str) -> str:
    """The name of a folder as MLflow takes it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def table(result: Mapping[str, float]) -> str:
    """The result as a short table for the terminal."""
    columns = ("ap", "dice", "auc", "cldice", "images_per_second", "gflops")
    titles = ("AP", "Dice", "AUC", "clDice", "images/s", "GFLOPs")
    lines = ["".join([f"{'':<8}", *(f"{title:>10}" for title in titles)])]
    for variant in _variants(result):
        values = (f"{result[f'{variant}/{c}']:>10.{1 if c == 'gflops' else 2 if '_' in c else 4}f}" for c in columns)
        lines.append(f"{variant:<8}" + "".join(values))
    return "\n".join(lines)


# --- the description ------------------------------------------------------------------------------------------------


def description(
    result: Mapping[str, float], parameters: Mapping[str, Any], measured_with: Mapping[str, str], images: int, part: str
) -> str:
    """A run in Markdown, the result first. parameters: of the run. measured_with: of ``Evaluation.measured_with``."""
    known = [key for key in ("preset", "decoder", "policy", "keep_rate") if key in parameters]
    network = ", ".join(f"{key} {parameters[key]}" for key in known)
    across = f"{parameters['diameter']} px across{' 45 degrees' if parameters.get('by_angle') else ''}"
    setting = f"{network}, {across}; {images} {part} images of {parameters['dataset']}"
    parts = [
        f"**{_summary(result, parameters)}** {setting}.",
        markdown_table(_accuracy(result, images)),
        markdown_table(_speed(result)),
    ]
    if found := _datasets(result):
        parts += [f"Each data set, {main_variant(result)}:", markdown_table(found)]
    if groups := _groups(result):
        parts += [f"Means over the images of each group, {main_variant(result)}:", markdown_table(groups)]
    parts += [
        "Brackets: 95 % interval over subjects. Pooled over the pixels in the field of view; surface Dice is the mean "
        f"of images. Measured on {measured_with['hardware']}, {measured_with['dtype']}, "
        f"{measured_with['batch_size']} windows at a time.",
        f"All metrics: `metrics.json`; each image: `{part}/per_image.csv`; all settings: `configuration.yaml`; "
        "packages: `environment.txt`.",
    ]
    return "\n\n".join(parts) + "\n"


UNFINISHED = "**No result**: this run is under way, or was cut off before its evaluation.\n"


def _summary(result: Mapping[str, float], parameters: Mapping[str, Any]) -> str:
    dense = f"AP {_interval(result, 'dense/ap')} dense"
    if "dense" in (parameters["policy"], main_variant(result)):
        return f"{dense}, {result['dense/images_per_second']:.3g} images/s."
    return f"AP {_interval(result, 'pruned/ap')} pruned, {dense}; pruned is {result['pruned/speedup']:.2f}× as fast."


def _accuracy(result: Mapping[str, float], images: int) -> list[Sequence[str]]:
    """images: behind the variants; a second observer may have drawn fewer, and is then not to be compared with them."""
    drawn = result.get("second_observer/images", images)
    observer = "second observer" + (f" ({drawn:.0f} of {images} images)" if drawn < images else "")
    rows = {"dense": "dense", "pruned": "pruned", "second_observer": observer}
    shown = [(title, name) for name, title in rows.items() if f"{name}/dice" in result]
    cells = [[title, *(_interval(result, f"{name}/{key}") for key in SHARES)] for title, name in shown]
    return [["", *SHARES.values()], *cells]


def _speed(result: Mapping[str, float]) -> list[Sequence[str]]:
    cells = [[name, *(_number(result[f"{name}/{key}"]) for key in SPEED)] for name in _variants(result)]
    cells[0] += ["1", ""]
    for row in cells[1:]:
        row += [f"{result['pruned/speedup']:.2f}", f"{result['efficiency']:.2f}"]
    return [["", "Images/s", "Latency (ms)", "GFLOPs", "Peak memory (MiB)", "Speed-up", "Efficiency"], *cells]


def _number(value: float) -> str:
    """Four digits, and all that stand before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _variants(result: Mapping[str, float]) -> list[str]:
    """Those that were evaluated: dense always is."""
    return ["dense", "pruned"] if "pruned/ap" in result else ["dense"]


def _datasets(result: Mapping[str, float]) -> list[Sequence[str]]:
    titles = ["Data set", "Images", *(SHARES[key] for key in POOLED)]
    rows = [
        [name, f"{result[f'dataset/{name}/images']:.0f}"]
        + [_interval(result, _of(name, result, key)) for key in POOLED]
        for name in datasets(result)
    ]
    return [titles, *rows] if rows else []


def _groups(result: Mapping[str, float]) -> list[Sequence[str]]:
    names = [name.split("/")[1] for name in result if name.startswith("group/")]
    titles = ["Group", "Images", *(SHARES[key] for key in GROUPED)]
    rows = [
        [name, f"{result[f'group/{name}/images']:.0f}"]
        + [_interval(result, f"{main_variant(result)}/group/{name}/{key}") for key in GROUPED]
        for name in names
    ]
    return [titles, *rows] if rows else []


def _interval(result: Mapping[str, float], name: str) -> str:
    """0.812 [0.790, 0.834]; a dash where there is no value, and no brackets where there is no interval."""
    value, low, high = (result.get(f"{name}{end}", float("nan")) for end in ("", "_low", "_high"))
    if not isfinite(value):
        return "–"
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if isfinite(low) and isfinite(high) else "")
