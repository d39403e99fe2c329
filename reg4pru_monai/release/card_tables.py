"""Tables of the model card, from the facts of a release."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from ..markdown import markdown_table
from ..results import GROUPED, POOLED, SHARES, main_variant

Facts = Mapping[str, Any]
ACCURACY = {key: SHARES[key] for key in (*POOLED, "sensitivity", "specificity", "thin_vessel_recall")}
GROUPS = {key: SHARES[key] for key in GROUPED}
_INDICATORS = {
    "focus": "focus",
    "contrast": "contrast",
    "illumination_mean": "brightness",
    "illumination_evenness": "evenness of light",
}


def number(value: float | None, digits: int = 3) -> str:
    """Fixed point; a dash where there is none."""
    return "–" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def interval(metrics: Mapping[str, float | None], name: str) -> str:
    """0.812 [0.790, 0.834], without brackets where there is no interval."""
    low, high = (metrics.get(f"{name}{end}") for end in ("_low", "_high"))
    shown = number(metrics.get(name))
    return shown if low is None or high is None else f"{shown} [{number(low)}, {number(high)}]"


def main_interval(metrics: Mapping[str, float | None], key: str) -> str:
    """As :func:`interval`, for the network as it is meant to run."""
    return interval(metrics, f"{main_variant(metrics)}/{key}")


def accuracy(facts: Facts) -> str:
    """Of each data set, dense and pruned."""
    rows = [
        [f"{name}, {variant}", *(interval(own["metrics"], f"{variant}/{key}") for key in ACCURACY)]
        for name, own in facts["results"].items()
        for variant in ("pruned", "dense")
        if f"{variant}/ap" in own["metrics"]
    ]
    return markdown_table([["", *ACCURACY.values()], *rows])


def groups(facts: Facts) -> str:
    """Of each group of photographs, pruned; empty where no data set has groups."""
    rows = [
        [f"{name}, {group}", str(count), *(main_interval(own["metrics"], f"group/{group}/{key}") for key in GROUPS)]
        for name, own in facts["results"].items()
        for group, count in own["groups"].items()
    ]
    return markdown_table([["", "Photographs", *GROUPS.values()], *rows]) if rows else ""


def half_precision(facts: Facts) -> str:
    """AP and Dice as trained and as shipped."""
    rows = []
    for name, own in facts["results"].items():
        for variant, original in own["original"].items():
            scores = [(original[key], own["metrics"][f"{variant}/{key}"]) for key in ("ap", "dice")]
            rows.append([f"{name}, {variant}", *(number(score, 4) for pair in scores for score in pair)])
    return markdown_table([["", "AP as trained", "AP as shipped", "Dice as trained", "Dice as shipped"], *rows])


def robustness(facts: Facts) -> str:
    """AP and Dice of degraded photographs beside those of the clean ones."""
    rows = [
        [f"{name}, {row['title']}"]
        + [number(row[state][key]) for key in ("ap", "dice") for state in ("clean", "degraded")]
        + [f"{row['degraded']['ap'] - row['clean']['ap']:+.3f}"]
        for name, own in facts["robustness"].items()
        for row in own["rows"].values()
    ]
    return markdown_table([["", "AP clean", "AP", "Dice clean", "Dice", "AP changes by"], *rows])


def flips(facts: Facts) -> str:
    """What test-time flips bring and cost."""
    rows = [
        [name, str(own["images"])]
        + [number(own[how][key], 4) for key in ("ap", "dice") for how in ("plain", "flips")]
        + [f"{own['cost']:.1f} ×"]
        for name, own in facts["flips"].items()
    ]
    return markdown_table([["", "Photographs", "AP", "AP, flips", "Dice", "Dice, flips", "Time"], *rows])


def speed(facts: Facts) -> str:
    """Of each device and data set."""
    titles = [
        "",
        "Pixels",
        "Dense (s)",
        "Pruned (s)",
        "Speed-up",
        "Dense (MiB)",
        "Pruned (MiB)",
        "File to mask (s)",
    ]
    rows = []
    for row in facts["speed"]:
        pixels = f"{row['pixels'][1]} × {row['pixels'][0]}"
        times = [f"{row[name]['seconds']:.3g}" if name in row else "–" for name in ("dense", "pruned")]
        memory = [f"{row[name]['peak_memory_mib']:.0f}" if name in row else "–" for name in ("dense", "pruned")]
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["speedup"]) if "speedup" in row else "–"
        name = f"{row['hardware']}, {row['data_set']}"
        rows.append([name, pixels, *times, ratio, *memory, f"{row['file_to_mask_seconds']:.3g}"])
    return markdown_table([titles, *rows])


def quality(facts: Facts) -> str:
    """Dice of the poorest quarter of each data set, by each indicator; empty where there are too few photographs."""
    rows = [
        [f"{name}, lowest {_INDICATORS[key]}", str(row["images"]), number(row["lowest_quarter"]), number(row["others"])]
        for name, own in facts["results"].items()
        for key, row in own["quality"].items()
    ]
    return (
        markdown_table([["Quarter of the photographs", "Number", "Their Dice", "Dice of the others"], *rows])
        if rows
        else ""
    )


def data(facts: Facts) -> str:
    """Photographs of training, validation and test."""
    training = facts["training"]["parts"]
    sets = " + ".join(facts["training"]["data_sets"])
    rows = [[f"{part}, {sets}", str(own["images"]), str(own["subjects"])] for part, own in training.items()]
    rows += [[f"test, {name}", str(own["images"]), str(own["subjects"])] for name, own in facts["results"].items()]
    return markdown_table([["Part", "Photographs", "People"], *rows])


def versions(facts: Facts) -> str:
    """What the weights were trained and measured with."""
    made, now = facts["training"], facts["measured_with"]
    rows = [["code revision", _short(made["made_with"]), _short(now)]]
    rows += [["Python", made["made_with"].get("python", "–"), now["python"]]]
    rows += [[name, made["packages"].get(name, "–"), version] for name, version in now["packages"].items()]
    return markdown_table([["", "Training", "Measurement"], *rows])


def _short(tags: Facts) -> str:
    revision = tags.get("git.revision", "–")[:10]
    return revision + (" with changes" if tags.get("git.dirty") == "true" else "")
