"""Figures of a comparison. Shape and line style tell apart what colour does, so that they can be read without it."""

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from textwrap import fill, wrap
from typing import Any, NamedTuple

import numpy as np
import yaml

from .groups import Comparison, Configuration, Row
from .statistics import mean_curve

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
MARKERS = ("D", "o", "s", "^", "v", "P", "X", "<", ">", "h", "*")
LINES = ("-", "--", "-.", ":", (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
LABELS = {"ap": "AP", "auc": "AUC", "dice": "Dice", "cldice": "clDice", "hd95_px": "HD95 (px)", "ece": "ECE"}
OTHERS = "#b8b8b8"
DPI = 150
COLUMNS = 4  # of panels
PUBLISHED_INSTEAD = "dice"  # where a metric was not published


class Series(NamedTuple):
    """One line over the keep rate: its points (keep rate, mean, sd), or one value without a keep rate."""

    name: str
    points: list[tuple[float | None, float, float]]


def label_of(metric: str) -> str:
    """The name of a metric as it is written in text."""
    return LABELS.get(metric, metric.replace("_", " "))


def published() -> dict[str, Any]:
    """The published results: setting, source, and rows."""
    text = resources.files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def figures(comparison: Comparison, with_published: bool) -> dict[str, Callable[[Path], None]]:
    """Those that there are values for: file name -> function that draws it into a path."""
    found: dict[str, Callable[[Path], None]] = {}
    configurations = [row.configuration for row in comparison.rows]
    if any(np.isfinite(each.speed[0]) for each in configurations):
        found["throughput.png"] = lambda path: save_throughput(path, comparison, with_published)
    rates = {each.keep_rate for each in configurations} - {None}
    if len(rates) > 1 or (rates and with_published):  # one alone is no axis
        found["keep_rate.png"] = lambda path: save_keep_rate(path, comparison, with_published)
    if any(run.curve for each in configurations for run in each.runs):
        found["precision_recall.png"] = lambda path: save_precision_recall(path, comparison)
    if any(row.difference for row in comparison.rows):
        found["per_image.png"] = lambda path: save_per_image(path, comparison)
    return found


# --- accuracy against throughput --------------------------------------------------------------------------------------


def save_throughput(path: Path, comparison: Comparison, with_published: bool = False) -> None:
    """Plot the metric against images per second, a number beside each point, with the Pareto front."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    rows = [row for row in comparison.rows if np.isfinite(row.configuration.speed[0])]
    numbers = [comparison.rows.index(row) + 1 for row in rows]
    name = label_of(comparison.metric)
    entries = [f"{number}  {_value(row.configuration, name)}" for number, row in zip(numbers, rows, strict=True)]
    figure = Figure(figsize=(11 if with_published else 6.5, 4.8 + _legend_height(entries)), layout="constrained")
    panels = figure.subplots(1, 2 if with_published else 1, squeeze=False)[0]
    handles = _draw_throughput(panels[0], comparison, rows)
    if with_published:
        _draw_published_speed(panels[1], comparison.metric)
    _legend(figure, handles, entries)
    figure.draw_without_rendering()  # the places of numbers depend on the final scale
    _write_numbers(panels[0], [_point(row) for row in rows], numbers)
    figure.savefig(path, dpi=DPI)


def _point(row: Row) -> tuple[float, float]:
    """Images per second and the metric, means over seeds."""
    return row.configuration.speed[0], row.configuration.pooled[0]


def _draw_throughput(axes: Any, comparison: Comparison, rows: Sequence[Row]) -> list[Any]:
    """A point with error bars for each row, and the Pareto front; returns the markers."""
    policies = _dense_first(dict.fromkeys(row.configuration.policy for row in rows))
    handles = []
    for row in rows:
        number = policies.index(row.configuration.policy)
        bars = axes.errorbar(
            *_point(row), xerr=_bar(row.configuration.speed[1]), yerr=_bar(row.configuration.pooled[1]),
            color=_of(COLOURS, number), marker=_of(MARKERS, number), markersize=7, elinewidth=1, capsize=3,
            linestyle="none",
        )  # fmt: skip
        handles.append(bars[0])
    front = sorted(_point(row) for row in rows if row.on_front)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color="grey", linestyle="--", linewidth=1, zorder=0)
    axes.margins(0.15)
    axes.set(xlabel="Images per second", ylabel=_axis(comparison))
    front_line = "dashed: Pareto front (nothing is both faster and better)"
    refused = "not comparable, so no Pareto front (see the table)" if comparison.obstacles else front_line
    axes.set_title(f"shape and colour: policy; {refused}\n{_seeds(rows)}", fontsize=9)
    axes.grid(alpha=0.3)
    return handles


def _dense_first(policies: Iterable[str]) -> list[str]:
    """Dense is black wherever it ranks, as in the published figures."""
    return sorted(policies, key=lambda policy: policy != "dense")


def _seeds(rows: Sequence[Row]) -> str:
    """What the bars are, where there are any."""
    several = any(len(row.configuration.runs) > 1 for row in rows)
    return "bars: ± sd over seeds" if several else "one seed each, so no spread is known"


def _value(configuration: Configuration, metric: str) -> str:
    """dense   AP 0.8123 ± 0.0012."""
    mean, sd = configuration.pooled
    return f"{configuration.name}   {metric} {mean:.4f}" + (f" ± {sd:.4f}" if np.isfinite(sd) else "")


def _bar(deviation: float) -> float | None:
    return deviation if np.isfinite(deviation) else None


def _of(styles: Sequence[Any], number: int) -> Any:
    return styles[number % len(styles)]


def _axis(comparison: Comparison) -> str:
    return f"{label_of(comparison.metric)}{' (lower is better)' if comparison.lower_is_better else ''}"


def _write_numbers(axes: Any, points: Sequence[tuple[float, float]], numbers: Sequence[int]) -> None:
    """Write numbers beside points, each where it covers no point and no other number."""
    scale = axes.figure.dpi / 72
    taken = [axes.transData.transform(point) / scale for point in points]
    directions = [(np.cos(angle), np.sin(angle)) for angle in np.pi / 4 * np.array((1, 3, 7, 5, 0, 2, 4, 6))]
    places = [np.array(d) * radius for radius, d in product((11, 18, 26, 36, 48), directions)]
    for number, point, centre in zip(numbers, points, list(taken), strict=True):
        clear = (p for p in places if min(np.hypot(*(centre + p - each)) for each in taken) > 10.5)
        place = next(clear, places[0])
        taken.append(centre + place)
        far = np.hypot(*place) > 12
        axes.annotate(
            str(number), point, place, textcoords="offset points", fontsize=8, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "grey", "shrinkB": 3} if far else None,
        )  # fmt: skip


def _legend(figure: Any, handles: Sequence[Any], entries: Sequence[str]) -> None:
    """Below the panels, one entry a line or two."""
    columns = _legend_columns(figure.get_figwidth(), entries)
    wrapped = [fill(entry, int(12 * figure.get_figwidth()), subsequent_indent="    ") for entry in entries]
    figure.legend(handles, wrapped, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)


def _legend_columns(width: float, entries: Sequence[str]) -> int:
    return max(1, min(3, int(12 * width / (max(map(len, entries), default=1) + 8))))


def _legend_height(entries: Sequence[str]) -> float:
    """Inches of one column."""
    return 0.19 * len(entries)


# --- the published results --------------------------------------------------------------------------------------------


def _published_metric(metric: str) -> str:
    return metric if any(metric in row for row in published()["rows"]) else PUBLISHED_INSTEAD


def _draw_published_speed(axes: Any, metric: str) -> None:
    """The published results in a panel of their own: other data and hardware share no axis with ours."""
    shown = _published_metric(metric)
    rows = published()["rows"]
    for number, name in enumerate(dict.fromkeys(row["series"] for row in rows)):
        own = [row for row in rows if row["series"] == name]
        x, y = [row["images_per_second"] for row in own], [row[shown] for row in own]
        _draw_published(axes, number, name, x, y)
        if least := own[0]["keep_rate"]:
            axes.annotate(f"{least:g}", (x[0], y[0]), (4, -10), textcoords="offset points", fontsize=7)
    axes.margins(0.08)
    axes.set(xlabel="Images per second (numbers: lowest keep rate of a line)")
    _finish_published(axes, shown)


def _draw_published(axes: Any, number: int, name: str, x: Sequence[float], y: Sequence[float]) -> None:
    axes.plot(
        x, y, color=_of(COLOURS, number), linestyle=":", linewidth=1, marker=_of(MARKERS, number),
        markerfacecolor="white", markersize=5, label=name,
    )  # fmt: skip


def _finish_published(axes: Any, shown: str) -> None:
    axes.set(ylabel=f"{label_of(shown)}, published")
    axes.set_title(fill(f"PUBLISHED, not measured here: {published()['setting']}", 62), fontsize=9)
    axes.legend(fontsize=7, loc="lower left")
    axes.grid(alpha=0.3)
    axes.set_facecolor("#f3f3f3")


# --- the metric against the keep rate ---------------------------------------------------------------------------------


def series_of(configurations: Sequence[Configuration]) -> list[Series]:
    """Configurations that differ in their keep rate only, in one series each."""
    found: dict[str, Series] = {}
    for each in configurations:
        name = each.series
        if each.keep_rate is not None or each.policy == "dense":
            found.setdefault(name, Series(name, [])).points.append((each.keep_rate, *each.pooled))
    return [found[name] for name in _dense_first(found)]


def save_keep_rate(path: Path, comparison: Comparison, with_published: bool = False) -> None:
    """Plot the metric against the keep rate of a stage, one line for each policy and setting; dense as a level."""
    from matplotlib.figure import Figure

    series = series_of([row.configuration for row in comparison.rows])
    size = (11 if with_published else 6.5, 4.8 + _legend_height([each.name for each in series]))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, 2 if with_published else 1, squeeze=False)[0]
    handles = [_draw_series(panels[0], number, each) for number, each in enumerate(series)]
    refused = "runs are not comparable (see the table); " if comparison.obstacles else ""
    panels[0].set_title(f"{refused}{_seeds(comparison.rows)}", fontsize=9)
    panels[0].set(xlabel="Keep rate of each stage", ylabel=_axis(comparison))
    panels[0].set_xticks(sorted({point[0] for each in series for point in each.points if point[0] is not None}))
    panels[0].grid(alpha=0.3)
    if with_published:
        shown = _published_metric(comparison.metric)
        rows = published()["rows"]
        for number, name in enumerate(dict.fromkeys(row["series"] for row in rows)):
            own = [(row["keep_rate"], row[shown]) for row in rows if row["series"] == name]
            if own[0][0] is None:
                panels[1].axhline(own[0][1], color="black", linewidth=1, linestyle=":", label=name)
            else:
                _draw_published(panels[1], number, name, *zip(*own, strict=True))
        panels[1].set(xlabel="Keep rate of each stage")
        _finish_published(panels[1], shown)
        panels[1].legend(fontsize=7, loc="lower right")
    _legend(figure, handles, [each.name for each in series])
    figure.savefig(path, dpi=DPI)


def _draw_series(axes: Any, number: int, series: Series) -> Any:
    colour, line = _of(COLOURS, number), _of(LINES, number)
    if series.points[0][0] is None:
        return axes.axhline(series.points[0][1], color=colour, linestyle=line, linewidth=1)
    points = sorted(series.points, key=lambda point: point[0] or 0)
    x, y, sd = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    bars = axes.errorbar(
        x, y, yerr=np.nan_to_num(sd) if np.isfinite(sd).any() else None, color=colour, linestyle=line,
        marker=_of(MARKERS, number), capsize=3,
    )  # fmt: skip
    return bars[0]


# --- panels for each configuration ------------------------------------------------------------------------------------


def save_precision_recall(path: Path, comparison: Comparison) -> None:
    """Plot precision-recall curves, a panel for each configuration with the others in grey behind."""
    rows = [row for row in comparison.rows if any(run.curve for run in row.configuration.runs)]
    curves = [mean_curve([run.curve for run in row.configuration.runs if run.curve]) for row in rows]
    low = min(float(np.nanmin(precision[recall <= 0.9], initial=1)) for recall, precision in curves)
    figure, panels = _grid(len(rows))
    for number, (axes, row) in enumerate(zip(panels, rows, strict=True)):
        for other, (recall, precision) in enumerate(curves):
            if other != number:
                axes.plot(recall, precision, color=OTHERS, linewidth=0.8)
        if comparison.baseline in (against := [each.configuration for each in rows]) and comparison.baseline:
            index = against.index(comparison.baseline)
            axes.plot(*curves[index], color="black", linestyle="--", linewidth=1)
        axes.plot(*curves[number], color=COLOURS[1], linewidth=1.8)
        axes.set(xlim=(0, 1), ylim=(max(0.0, np.floor(10 * low - 1) / 10), 1.01))
        value = _value(row.configuration, label_of(comparison.metric)).removeprefix(row.configuration.name).strip()
        _title(axes, comparison.rows.index(row) + 1, row, value)
    others = "; grey: the other configurations" if len(rows) > 1 else ""
    dashed = f"; dashed: {comparison.baseline.name}" if comparison.baseline and len(rows) > 1 else ""
    _finish(figure, "Recall", "Precision", f"Mean over seeds{others}{dashed}")
    figure.savefig(path, dpi=DPI)


def save_per_image(path: Path, comparison: Comparison) -> None:
    """Plot the metric of each image against that of the baseline, mean over seeds, a panel for each configuration."""
    assert comparison.baseline is not None
    rows = [row for row in comparison.rows if row.difference]
    pairs = []
    for row in rows:
        images = [name for name in row.configuration.images if name in set(comparison.baseline.images)]
        pairs.append([each.values(images).mean(0) for each in (comparison.baseline, row.configuration)])
    ends = [f(np.concatenate([np.ravel(pair) for pair in pairs])) for f in (np.nanmin, np.nanmax)]
    margin = 0.05 * (ends[1] - ends[0]) or 0.01
    limits = (ends[0] - margin, ends[1] + margin)
    figure, panels = _grid(len(rows))
    for axes, row, (theirs, ours) in zip(panels, rows, pairs, strict=True):
        axes.plot(limits, limits, color="grey", linewidth=1, zorder=0)
        axes.plot(theirs, ours, color=COLOURS[1], marker="o", markersize=4, alpha=0.7, linestyle="none")
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        found = row.difference
        assert found is not None
        _title(axes, comparison.rows.index(row) + 1, row, f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]")
        axes.annotate(f"higher in {found.higher} of {found.images}", (0.04, 0.93), xycoords="axes fraction", fontsize=7)
    name = label_of(comparison.metric)
    across = f"{name} of an image, {comparison.baseline.name}"
    title = "One point for each image, mean over seeds; on the line both are equal, above it the one named is higher. "
    title += f"Numbers: mean difference to {comparison.baseline.name} [95 % interval over images]"
    _finish(figure, across, f"{name} of the same image, the configuration named above", title)
    figure.savefig(path, dpi=DPI)


def _grid(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(4.5, 2.7 * columns), 0.8 + 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _title(axes: Any, number: int, row: Row, below: str) -> None:
    """The name, cut where it is long: it stands whole under the same number in the table and below other figures."""
    name = f"{number}  {row.configuration.name}"
    lines = wrap(name, 36, max_lines=3, placeholder=" …")
    axes.set_title("\n".join([*lines, below]), fontsize=8)
    axes.tick_params(labelsize=8, labelbottom=True)
    axes.grid(alpha=0.3)


def _finish(figure: Any, across: str, up: str, title: str) -> None:
    figure.supxlabel(fill(across, 100), fontsize=9)
    figure.supylabel(up, fontsize=9)
    figure.suptitle(fill(title, int(13 * figure.get_figwidth())), fontsize=9)
