"""What ``reg4pru benchmark`` prints and writes."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import torch

from .benchmark import Plan, Row
from .benchmark_variants import DENSE, Skipped, condition
from .files import replacing
from .plots import Measured, save_ap_against_speed
from .runtime import device_name
from .tracking import environment_tags


class Published(NamedTuple):
    """A line of the authors' own table. here: the row of ours that it compares to."""

    arm: str
    here: str
    images_per_second: float
    gflops: float
    speedup: float
    flop_ratio: float
    efficiency: float


def _published(arm: str, here: str, images_per_second: float, gflops: float) -> Published:
    speedup, ratio = images_per_second / 324.2, 511.4 / gflops
    return Published(arm, here, images_per_second, gflops, speedup, ratio, speedup / ratio)


PUBLISHED_SETTING = (
    "arXiv 2602.02163, authors' results: ViT-S, eomt, 1024 x 1024, batch 8, bfloat16, compiled blocks, GPU not stated"
)
PUBLISHED = (
    _published("dense", "dense", 324.2, 511.4),
    _published("soft_mask(hard_eval)", "dynamicvit@0.7", 417.2, 316.4),
    _published("gumbel_penult", "gumbel@0.7", 398.2, 316.4),
    _published("random_route(Reg4Pru)", "reg4pru@0.7", 407.8, 316.4),
    _published("aux_route_penult(CROPR)", "cropr@0.7", 411.2, 313.1),
)


def read_ap(path: Path, plan: Plan) -> dict[str, float]:
    """Average precision by label from a JSON file, such as {"dense": 0.826, "reg4pru@0.7": 0.828}.

    The bare name of a policy stands for its row where the plan has one keep rate. Raises ValueError, OSError.
    """
    try:
        given = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error})") from None
    if not isinstance(given, dict):
        raise ValueError(f'{path} must hold an object such as {{"dense": 0.826}}, got {type(given).__name__}')
    labels = plan.labels()
    single = {name.split("@")[0]: name for name in labels} if len(set(plan.keep_rates)) == 1 else {}
    found = {}
    for key, value in given.items():
        name = single.get(key, _tidy(key))
        if name not in labels:
            raise ValueError(f"{path}: no row is called {key!r}; there are {', '.join(labels)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{path}: average precision of {key} must be a number in [0, 1], got {value!r}")
        found[name] = float(value)
    return found


def _tidy(key: str) -> str:
    """reg4pru@0.70 -> reg4pru@0.7."""
    name, at, keep = key.partition("@")
    try:
        return f"{name}@{float(keep):g}" if at else key
    except ValueError:
        return key


# --- the terminal ----------------------------------------------------------------------------------------------------

WIDTHS = (23, 9, 9, 9, 9, 9, 18, 7, 18, 8)
HEADER = (
    ("", "median", "p95", "images", "GFLOPs", "peak", "speed-up", "FLOP", "efficiency", "AP"),
    ("network@keep rate", "ms", "ms", "per s", "/image", "MiB", "[95 % interval]", "ratio", "[95 % interval]", ""),
)
NOTES = (
    "speed-up: over dense of the same repetition, median; other networks: over the first dense row of that condition",
    "FLOP ratio: dense / own. efficiency: speed-up / FLOP ratio. peak: memory beyond weights and input",
)


def table(rows: Sequence[Row], skipped: Sequence[Skipped], headline: str) -> str:
    """The result as text: our rows by setting, peers, what was skipped, and the published numbers."""
    with_ap = any(row.ap is not None for row in rows)
    lines = [headline]
    for title, members in _groups(rows).items():
        lines += ["", title, *(_line(cells, with_ap) for cells in (*HEADER, *_cells(members)))]
    lines += ["", *NOTES]
    sizes: dict[tuple[str, str], list[str]] = {}
    for name, size, reason in skipped:
        sizes.setdefault((name, reason), []).append(str(size))
    for (name, reason), at in sizes.items():
        lines += wrap(f"skipped: {name} at {', '.join(at)} px: {reason}", 118, subsequent_indent="  ")
    return "\n".join([*lines, "", *_published_lines()])


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_title(row), []).append(row)
    return groups


def _title(row: Row) -> str:
    name = "other networks" if row.preset is None else f"{row.preset}, {row.decoder}"
    return f"{name}, {condition(*row.condition)}"


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as text, a tuple for each."""
    columns = [
        [row.label for row in rows],
        _numbers([row.latency_ms for row in rows]),
        _numbers([row.latency_p95_ms for row in rows]),
        _numbers([row.images_per_second for row in rows]),
        _numbers([row.gflops_counted if row.gflops is None else row.gflops for row in rows]),
        _numbers([row.peak_memory_mib for row in rows]),
        [_interval(row.speedup, row.speedup_low, row.speedup_high) for row in rows],
        ["-" if row.flop_ratio is None else f"{row.flop_ratio:.2f}" for row in rows],
        [_interval(row.efficiency, row.efficiency_low, row.efficiency_high) for row in rows],
        ["-" if row.ap is None else f"{row.ap:.4f}" for row in rows],
    ]
    return list(zip(*columns, strict=True))


def _line(cells: Sequence[str], with_ap: bool) -> str:
    first, *others = zip(cells, WIDTHS, strict=True)
    shown = others if with_ap else others[:-1]
    return (first[0].ljust(first[1]) + "".join(cell.rjust(width) for cell, width in shown)).rstrip()


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.2f} [{low:.2f} {high:.2f}]"


def _numbers(values: Sequence[float]) -> list[str]:
    """A column with the decimals that give its smallest value four digits, at most three."""
    smallest = min((value for value in values if value > 0), default=1.0)
    digits = min(max(3 - math.floor(math.log10(smallest)), 0), 3)
    return [f"{value:.{digits}f}" for value in values]


def _published_lines() -> list[str]:
    lines = ["published, not measured here", f"  {PUBLISHED_SETTING}"]
    form = "{:<25}{:<16}{:>9}{:>9}{:>10}{:>8}{:>12}"
    lines.append("  " + form.format("arm", "row here", "images/s", "G/image", "speed-up", "ratio", "efficiency"))
    for p in PUBLISHED:
        values = [f"{p.images_per_second:.1f}", f"{p.gflops:.1f}", f"{p.speedup:.2f}", f"{p.flop_ratio:.2f}"]
        lines.append("  " + form.format(p.arm, p.here, *values, f"{p.efficiency:.2f}"))
    return lines


# --- files -----------------------------------------------------------------------------------------------------------


def environment(plan: Plan, command: str) -> dict[str, Any]:
    """With what a result was made; no name of a machine."""
    left_out = ("host", "mlflow.source.git.commit", "device", "device.type")
    devices = dict.fromkeys(setting.device for setting in plan.settings())
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "devices": {name: device_name(torch.device(name)) for name in devices},
        "threads": plan.threads or torch.get_num_threads(),
        "weights": str(plan.checkpoint or "random"),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.version.cuda,
        **{name: value for name, value in environment_tags().items() if name not in left_out},
    }


def headline(plan: Plan, made_with: Mapping[str, Any]) -> str:
    """Two lines over the table: what and how, and with what."""
    view = "round field of view (other networks: whole frame)" if plan.fov else "whole frame"
    weights = "random weights" if plan.checkpoint is None else f"weights of {plan.checkpoint}"
    repeats = f"{plan.repeats} interleaved repetitions, {plan.warmup} warm-ups"
    devices = ", ".join(made_with["devices"].values())
    software = f"torch {made_with['package.torch']}, CPU threads: {made_with['threads']}"
    return f"{weights}, {view}, {repeats}\n{devices}, {software}, {made_with['date']}"


def write(
    folder: Path, plan: Plan, rows: Sequence[Row], skipped: Sequence[Skipped], made_with: Mapping[str, Any]
) -> list[Path]:
    """Write benchmark.json, benchmark.csv and, with AP values, benchmark.png: all or none. Returns their paths."""
    result = {
        "environment": dict(made_with),
        "plan": asdict(plan),
        "rows": [asdict(row) for row in rows],
        "skipped": [entry._asdict() for entry in skipped],
        "published": {"measured_here": False, "setting": PUBLISHED_SETTING, "rows": [p._asdict() for p in PUBLISHED]},
    }
    names = ["benchmark.json", "benchmark.csv"]
    names += ["benchmark.png"] if any(row.ap is not None for row in rows) else []
    paths = [folder / name for name in names]
    with ExitStack() as stack:
        beside = [stack.enter_context(replacing(path)) for path in paths]
        beside[0].write_text(json.dumps(result, indent=2, allow_nan=False, default=str) + "\n")
        _write_csv(beside[1], rows)
        for path in beside[2:]:
            save_ap_against_speed(path, _panels(rows))
    return paths


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    lines = [{name: value for name, value in asdict(row).items() if name != "latencies_ms"} for row in rows]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _panels(rows: Sequence[Row]) -> dict[str, list[Measured]]:
    """The rows with an AP value by setting; peers go to the first setting of their condition."""
    titles: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row.network == DENSE:
            title = f"{_title(row)}\ndense: {row.images_per_second:.3g} images/s"
            titles[(row.preset, row.decoder, *row.condition)] = title
            titles.setdefault((None, None, *row.condition), title)
    panels: dict[str, list[Measured]] = {}
    for row in rows:
        if row.ap is not None:
            point = Measured(row.network, row.keep_rate, row.speedup, row.speedup_low, row.speedup_high, row.ap)
            panels.setdefault(titles[(row.preset, row.decoder, *row.condition)], []).append(point)
    return panels
