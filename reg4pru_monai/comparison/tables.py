"""What ``reg4pru compare`` prints and writes: the table as text, Markdown and CSV, and the figures beside it."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from textwrap import wrap

from ..files import replacing, write_rows
from ..markdown import markdown_table
from .details import sections
from .figures import figures, label_of, published
from .groups import Comparison, Row

WIDTH = 118
FIGURES = ("throughput.png", "keep_rate.png", "precision_recall.png", "per_image.png")
HEADINGS = {
    "throughput.png": "Accuracy and throughput",
    "keep_rate.png": "Keep rate",
    "precision_recall.png": "Precision and recall",
    "per_image.png": "Image by image",
}


def table(comparison: Comparison) -> str:
    """The result as text for the terminal."""
    cells = _table(comparison)
    _, names, *rest = zip(*cells, strict=True)
    width = min(max(map(len, names)), 60)
    widths = [max(map(len, column)) for column in rest]
    lines = [f"{label_of(comparison.metric)}: {comparison.source}", ""]
    for number, name, *values in cells:
        first, *more = wrap(name, width)
        line = f"{number:<5}{first:<{width}}" + "".join(f"  {v:>{w}}" for v, w in zip(values, widths, strict=True))
        lines += [line.rstrip(), *(f"{'':<7}{part}" for part in more)]
    return "\n".join([*lines, "", *(part for text in remarks(comparison) for part in _wrapped(text))])


def _wrapped(text: str) -> list[str]:
    return [
        part for line in text.splitlines() for part in wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]


def _table(comparison: Comparison) -> list[list[str]]:
    """The titles of the columns, then a row for each configuration."""
    return [_header(comparison), *(_cells(number, row) for number, row in enumerate(comparison.rows, 1))]


def _header(comparison: Comparison) -> list[str]:
    name = label_of(comparison.metric)
    across = comparison.baseline.name if comparison.baseline else "baseline"
    against = f"minus {across if len(across) <= 24 else 'baseline'}"
    return [
        "no." if comparison.obstacles else "rank",
        *(
            "configuration",
            "seeds",
            f"{name} ± sd",
            "unpruned",
            "mean of images",
            against,
            "images/s",
            "speed-up",
            "GFLOPs",
        ),
    ]


def _cells(number: int, row: Row) -> list[str]:
    found, each = row.difference, row.configuration
    return [
        f"{number}{_level(row)}{'*' * row.on_front}",
        each.name,
        str(len(each.runs)),
        _spread(*each.pooled),
        _spread(*row.dense),
        _interval(*row.per_image),
        _interval(found.value, found.low, found.high, "+") if found else "-",
        _spread(*each.speed, digits=2),
        _spread(*each.speedup, digits=2),
        _number(each.gflops, 1),
    ]


def _level(row: Row) -> str:
    """What the images say of a configuration behind the first: as good, worse, or nothing."""
    if row.as_good_as_best is None:
        return "?" if row.rank and row.rank > 1 else ""
    return "=" if row.as_good_as_best else ""


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}" if math.isfinite(value) else "-"


def _spread(mean: float, sd: float, digits: int = 4) -> str:
    return _number(mean, digits) + (f" ± {sd:.{digits}f}" if math.isfinite(sd) else "")


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    ends = f" [{low:{sign}.4f}, {high:{sign}.4f}]" if math.isfinite(low) else ""
    return _number(value, 4, sign) + ends


def remarks(comparison: Comparison) -> list[str]:
    """What belongs under the table: why there is no ranking, what the columns are, what was left out."""
    lines = []
    if comparison.obstacles:
        lines.append("NOT RANKED, because these runs cannot be compared:")
        lines += [f"  {each}" for each in comparison.obstacles]
    else:
        lines.append(
            f"rank: by the {'pooled metric' if comparison.pooled else 'mean of images'}; =: not shown to be worse than "
            "the first (95 % interval of the paired difference, over images and where there are several over seeds); "
            "?: no values per image to tell by; *: on the Pareto front of accuracy and images/s"
        )
    if comparison.common:
        lines.append("unless named: " + ", ".join(f"{key}={value}" for key, value in comparison.common.items()))
    lines += [*comparison.notes, *_seed_intervals(comparison)]
    lines += [f"left out: {entry.name} ({entry.run_id}): {entry.reason}" for entry in comparison.left_out]
    return lines


def _seed_intervals(comparison: Comparison) -> list[str]:
    """The differences again, with intervals over images and seeds."""
    parts = [
        f"{number}: [{row.difference.seeds_low:+.4f}, {row.difference.seeds_high:+.4f}]"
        for number, row in enumerate(comparison.rows, 1)
        if row.difference and math.isfinite(row.difference.seeds_low)
    ]
    return [f"differences, 95 % interval over images and seeds: {', '.join(parts)}"] if parts else []


# --- files ------------------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison, drawn: Sequence[str], with_published: bool) -> str:
    """The result as a page beside the figures. drawn: names of the figures."""
    rows = _table(comparison)
    lines = [f"# Comparison by {label_of(comparison.metric)}", "", comparison.source, "", markdown_table(rows), ""]
    lines += [*(f"* {text.strip()}" for text in [*remarks(comparison), *column_notes(comparison)]), ""]
    lines += sections(comparison)
    for name in drawn:
        lines += [f"## {HEADINGS[name]}", "", f"![{HEADINGS[name]}]({name})", ""]
    if with_published:
        found = published()
        lines += ["Published numbers were not measured here and take no part in the ranking: "
                  f"{found['setting']}. {found['source']}.", ""]  # fmt: skip
    return "\n".join(lines)


def column_notes(comparison: Comparison) -> list[str]:
    """What each column is."""
    over = "over all pixels of the test set" if comparison.pooled else "the mean of images, as it cannot be pooled"
    return [
        f"± sd: over seeds, n - 1; the metric before it is {over}, mean over seeds",
        "unpruned: the same weights evaluated without pruning",
        "mean of images: mean over images of the mean over seeds, with the 95 % bootstrap interval over images",
        "speed-up: over the same weights unpruned, image by image in one run; images/s of runs at different times also "
        "differ by what else the machine did",
        "numbers in the figures: the order of this table",
        "minus: mean paired difference over images, with its 95 % bootstrap interval over images",
    ]


def csv_rows(comparison: Comparison) -> list[dict[str, object]]:
    """One row for each configuration, numbers as they are, nan as nothing."""
    rows = []
    for row in comparison.rows:
        each, found = row.configuration, row.difference
        values: dict[str, object] = {
            "configuration": each.name,
            "metric": comparison.metric,
            "rank": row.rank,
            "pareto_front": row.on_front if row.rank else None,
            "as_good_as_best": True if row.rank == 1 else row.as_good_as_best,
            "policy": each.policy,
            "keep_rate": each.keep_rate,
            "seeds": " ".join(each.seeds),
            "mean": each.pooled[0],
            "sd": each.pooled[1],
            "unpruned_mean": row.dense[0],
            "unpruned_sd": row.dense[1],
            "image_mean": row.per_image.value,
            "image_low": row.per_image.low,
            "image_high": row.per_image.high,
            "baseline": comparison.baseline.name if comparison.baseline else None,
            "difference": found and found.value,
            "difference_low": found and found.low,
            "difference_high": found and found.high,
            "difference_seeds_low": found and found.seeds_low,
            "difference_seeds_high": found and found.seeds_high,
            "images": found and found.images,
            "images_per_second": each.speed[0],
            "images_per_second_sd": each.speed[1],
            "speedup": each.speedup[0],
            "speedup_sd": each.speedup[1],
            "gflops": each.gflops,
            "runs": " ".join(run.run_id for run in each.runs),
        }
        rows.append({key: None if value != value else value for key, value in values.items()})
    return rows


def write(folder: Path, comparison: Comparison, with_published: bool = False) -> list[Path]:
    """Write comparison.md, comparison.csv and the figures: all or none. Raises OSError."""
    drawn = figures(comparison, with_published)
    with ExitStack() as stack:
        page = stack.enter_context(replacing(folder / "comparison.md"))
        page.write_text(markdown(comparison, list(drawn), with_published), encoding="utf-8")
        write_rows(stack.enter_context(replacing(folder / "comparison.csv")), csv_rows(comparison))
        for name, draw in drawn.items():
            draw(stack.enter_context(replacing(folder / name)))
    for name in FIGURES:  # of an earlier comparison: it would be taken for one of this
        if name not in drawn:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in ("comparison.md", "comparison.csv", *drawn)]
