"""Tables and figures of ``reg4pru reproduce``, from the rows that ``evaluate_all`` returns."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from ..files import replacing, write_rows
from ..markdown import markdown_table
from .figures import draw_course, draw_keep_rates, draw_variants
from .results import Results, Row, estimate
from .variants import VARIANTS

# --- tables ----------------------------------------------------------------------------------------------------------


def steps_of(decoder: str, arm: str) -> dict[str, tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """The steps from the dense arm to a pruned network, and their sums: of the last three, and of all."""
    own = {name: (decoder, arm, name) for name in VARIANTS}
    reference = (decoder, "dense", "dense")
    return {
        "learning": (own["dense"], reference),
        "masking": (own["masked"], own["dense"]),
        "seen again": (own["returned"], own["masked"]),
        "stale": (own["pruned"], own["returned"]),
        "pruning": (own["pruned"], own["dense"]),
        "in all": (own["pruned"], reference),
    }


def accuracy_table(results: Results) -> list[list[str]]:
    """AP of every arm and variant after the last epoch, and the speed of the pruned network."""
    table = [["decoder", "arm", "seeds", *VARIANTS, "speed-up", "FLOP ratio"]]
    for decoder, arm in results.arms:
        cells = {name: list(results.values(decoder, arm, name).values()) for name in VARIANTS}
        speedup = list(results.values(decoder, arm, "pruned", "speedup").values())
        gflops = {name: results.values(decoder, arm, name, "gflops") for name in ("dense", "pruned")}
        ratios = [gflops["dense"][seed] / gflops["pruned"][seed] for seed in gflops["pruned"]]
        accuracy = [_value(found) for found in cells.values()]
        speed = [f"{mean(found):.2f}×" for found in (speedup, ratios)]
        table.append([decoder, arm, str(len(cells["dense"])), *accuracy, *speed])
    return table


def step_table(results: Results) -> list[list[str]]:
    """What each step costs: differences of AP, paired by seed. The dense arm loses by selectors never trained."""
    table = [["decoder", "arm", "seeds", *steps_of("", "")]]
    for decoder, arm in results.arms:
        found = {name: results.step(*pair) for name, pair in steps_of(decoder, arm).items()}
        if arm == "dense":
            found["learning"] = []  # of itself
        cells = [_difference(values) for values in found.values()]
        table.append([decoder, arm, str(len(found["masking"])), *cells])
    return table


def selection_table(results: Results) -> list[list[str]]:
    """What the selectors leave, by themselves and at the budget."""
    table = [["decoder", "arm", "left", "vessels left", "left by threshold", "vessels left by threshold"]]
    for decoder, arm in results.arms:
        keys = [(variant, key) for variant in ("pruned", "soft") for key in ("kept", "vessels_kept")]
        found = [list(results.values(decoder, arm, *key).values()) for key in keys]
        table.append([decoder, arm, *(f"{100 * mean(values):.0f} %" if values else "" for values in found)])
    return table


def other_table(results: Results) -> list[list[str]]:
    """AP of the other variants: keep rates, a stage alone."""
    names = list(dict.fromkeys(row["variant"] for row in results.rows if row["variant"] not in VARIANTS))
    table = [["decoder", "arm", *names]]
    for decoder, arm in results.arms:
        cells = [_value(list(results.values(decoder, arm, name).values())) for name in names]
        table.append([decoder, arm, *cells])
    return table if names else []


def course_table(results: Results) -> list[list[str]]:
    """AP after the epochs that were kept, of the lowest seed that has them all."""
    epochs = sorted({row["epoch"] for row in results.rows})
    table = [["decoder", "arm", "evaluated", *(f"epoch {epoch}" for epoch in epochs)]]
    for decoder, arm in results.arms:
        for variant in ("dense", "pruned"):
            found = results.course(decoder, arm, variant)
            if len(found) > 1:
                cells = [f"{found[epoch]:.4f}" if epoch in found else "" for epoch in epochs]
                table.append([decoder, arm, variant, *cells])
    return table if len(epochs) > 1 else []


def _value(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = estimate(values)
    return f"{found.mean:.4f}" + (f" ± {stdev(values):.4f}" if found.seeds > 1 else "")


def _difference(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = estimate(values)
    interval = "" if math.isnan(found.low) else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean:+.4f}{interval}"


# --- files -----------------------------------------------------------------------------------------------------------


def write(output: Path, rows: Sequence[Row]) -> list[Path]:
    """Write reproduce.md, reproduce.csv and the figures into a folder; returns their paths.

    A figure for which there are no rows is removed, so that none of an earlier call stays beside other tables.
    """
    results = Results(rows)
    written = [output / "reproduce.md", output / "reproduce.csv"]
    with replacing(written[0]) as beside:
        beside.write_text(text(results), encoding="utf-8")
    with replacing(written[1]) as beside:
        write_rows(beside, results.rows)
    figures = {"variants.png": draw_variants, "keep_rates.png": draw_keep_rates, "course.png": draw_course}
    for name, draw in figures.items():
        figure = draw(results)
        if figure is None:
            (output / name).unlink(missing_ok=True)
        else:
            written.append(output / name)
            with replacing(written[-1]) as beside:
                figure.savefig(beside, dpi=120)
    return written


def _without_dense(results: Results) -> str:
    lacking = sorted({decoder for decoder, _ in results.arms if (decoder, "dense") not in results.arms})
    if not lacking:
        return ""
    return f" No dense arm was trained with the decoder {' and '.join(lacking)}: *learning* and *in all* stay empty."


def text(results: Results) -> str:
    """All tables, with what they mean."""
    parts = [
        "AP after the last epoch, mean ± standard deviation over seeds.\n\n" + markdown_table(accuracy_table(results))
    ]
    parts.append("\n".join(f"* *{name}*: {meaning}" for name, meaning in VARIANTS.items()))
    parts.append(
        "What each step costs in AP, paired by seed; in brackets the 95 % interval over seeds (Student's t), from "
        "three seeds on. *learning*: the arm, evaluated dense, against the dense arm. *masking*: masked against dense. "
        "*seen again*: returned against masked. *stale*: pruned against returned. *pruning*: pruned against dense. "
        "*in all*: pruned against the dense arm."
        + _without_dense(results)
        + "\n\n"
        + markdown_table(step_table(results))
    )
    parts.append(
        "Share of the tokens that the last stage leaves, and of those that show a vessel: pruned, and by the threshold "
        "of training without its noise.\n\n" + markdown_table(selection_table(results))
    )
    if other := other_table(results):
        parts.append(
            "Pruned at other keep rates, and by a single stage that keeps half, AP of the lowest seed. A token removed "
            "before a late block is stale for fewer blocks.\n\n" + markdown_table(other)
        )
    if rows := course_table(results):
        parts.append("AP during the training, of the lowest seed.\n\n" + markdown_table(rows))
    return "\n\n".join(parts) + "\n"
