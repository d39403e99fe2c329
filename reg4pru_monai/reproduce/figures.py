"""Figures of ``reg4pru reproduce``."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .results import Results, estimate
from .variants import VARIANTS


def _panels(results: Results, columns: int = 1, height: float = 3.6) -> tuple[Any, dict[str, Any]]:
    """A figure with a row of panels for each decoder."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    decoders = list(dict.fromkeys(decoder for decoder, _ in results.arms))
    width = 1.5 + (7.0 if columns == 1 else 3.8 * columns)
    figure = Figure(figsize=(width, 0.4 + height * len(decoders)), layout="constrained")
    grid = figure.subplots(len(decoders), columns, squeeze=False, sharey="row")
    return figure, dict(zip(decoders, grid, strict=True))


def draw_variants(results: Results) -> Any:
    """AP of each arm in each variant: a dot for each seed, a bar for the mean, its interval from three seeds on."""
    figure, panels = _panels(results)
    for decoder, (axes,) in panels.items():
        arms = [arm for other, arm in results.arms if other == decoder]
        for number, variant in enumerate(VARIANTS):
            shift = (number - (len(VARIANTS) - 1) / 2) * 0.13
            for place, arm in enumerate(arms):
                _draw_values(axes, place + shift, list(results.values(decoder, arm, variant).values()), f"C{number}")
            axes.plot([], [], marker="o", linestyle="", color=f"C{number}", label=variant)
        axes.set_xticks(range(len(arms)), [re.sub(r", (?!\d)", "\n", arm) for arm in arms])
        axes.set(ylabel="Average precision", title=f"decoder {decoder}", xlim=(-0.5, len(arms) - 0.5))
        axes.grid(axis="y", alpha=0.3)
    _legend(figure, "evaluated")
    return figure


def _draw_values(axes: Any, place: float, values: Sequence[float], colour: str) -> None:
    if not values:
        return
    found = estimate(values)
    axes.plot([place] * len(values), values, marker="o", markersize=3.5, linestyle="", color=colour)
    axes.plot([place - 0.05, place + 0.05], [found.mean] * 2, color=colour, linewidth=2)
    if not math.isnan(found.low):
        axes.plot([place] * 2, [found.low, found.high], color=colour, linewidth=1)


def draw_keep_rates(results: Results) -> Any | None:
    """AP against the keep rate, and against the block before which a single stage keeps half; a line for each arm."""
    rates = {name: float(name.split()[1]) for name in _named(results, "pruned 0")}
    blocks = {name: int(name.split()[-1]) for name in _named(results, "pruned before")}
    if not rates:
        return None
    figure, panels = _panels(results, columns=2)
    for decoder, (left, right) in panels.items():
        for number, arm in enumerate(dict.fromkeys(arm for _, arm in results.arms)):
            points = {**rates, "dense": 1.0, **_keep_rate(results)}
            _draw_line(left, {x: results.values(decoder, arm, name) for name, x in points.items()}, number, arm)
            _draw_line(right, {x: results.values(decoder, arm, name) for name, x in blocks.items()}, number, arm)
        left.set(xlabel="Keep rate of each stage", ylabel="Average precision", title=f"decoder {decoder}")
        right.set(xlabel="Block of a single stage that keeps half", title=f"decoder {decoder}")
        right.set_xticks(sorted(blocks.values()))
        for axes in (left, right):
            axes.grid(alpha=0.3)
    _legend(figure, "lowest seed")
    return figure


def draw_course(results: Results) -> Any | None:
    """AP against epochs, a panel for dense and one for pruned, a line for each arm."""
    if all(row["epoch"] == results.last for row in results.rows):
        return None
    variants = ("dense", "pruned")
    figure, panels = _panels(results, columns=len(variants))
    for decoder, row in panels.items():
        for axes, variant in zip(row, variants, strict=True):
            for number, arm in enumerate(dict.fromkeys(arm for _, arm in results.arms)):
                found = results.course(decoder, arm, variant)
                if len(found) > 1:
                    axes.plot(list(found), list(found.values()), marker="o", color=f"C{number}", label=arm)
            axes.set(xlabel="Epochs", title=f"{decoder}, evaluated {variant}")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("Average precision")
    _legend(figure, "lowest seed")
    return figure


def _named(results: Results, start: str) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in results.rows if row["variant"].startswith(start)))


def _keep_rate(results: Results) -> dict[str, float]:
    """The place of the pruned network; none where its stages keep different shares."""
    rate = results.rows[0]["keep_rate"]
    return {"pruned": float(rate)} if isinstance(rate, int | float) else {}


def _draw_line(axes: Any, points: Mapping[float, Mapping[int, float]], number: int, arm: str) -> None:
    """Values by place and seed: those of the lowest seed that has them all."""
    seeds = set.intersection(*(set(found) for found in points.values())) if points else set()
    if not seeds:
        return
    places = sorted(points)
    axes.plot(places, [points[x][min(seeds)] for x in places], marker="o", color=f"C{number}", label=arm)


def _legend(figure: Any, title: str) -> None:
    named: dict[str, Any] = {}
    for axes in figure.axes:
        named |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, title=title, loc="outside right center")
