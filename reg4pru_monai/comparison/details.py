"""What ``reg4pru compare`` says of each test set and of speed: every configuration, dense and pruned, in Markdown."""

from collections.abc import Sequence
from math import isfinite

from ..markdown import markdown_table
from ..results import POOLED, SHARES, datasets
from .groups import Comparison, Configuration
from .runs import TEST_SET
from .statistics import mean_and_sd

NOTHING = "–"


def sections(comparison: Comparison) -> list[str]:
    """The lines of the page: a table for speed, one for each test set. Empty where no run has its metrics.json."""
    known = [
        (str(number), row.configuration)
        for number, row in enumerate(comparison.rows, 1)
        if all(run.metrics for run in row.configuration.runs)
    ]
    if not known:
        return []
    lines = ["## Speed and size", "", markdown_table(_speed(known)), ""]
    for title, rows in _accuracy(known).items():
        lines += [
            f"## Accuracy on {title}",
            "",
            markdown_table([["no.", "configuration", "evaluated", *_titles()], *rows]),
            "",
        ]
    seeds = any(len(configuration.runs) > 1 for _, configuration in known)
    over = " ± sd over seeds; values and bounds are means over them." if seeds else ""
    return [
        *lines,
        f"Pooled over the pixels in the fields of view; in brackets the 95 % bootstrap interval over subjects.{over}",
        "",
    ]


def _titles() -> list[str]:
    return [SHARES[key] for key in POOLED]


def _accuracy(known: Sequence[tuple[str, Configuration]]) -> dict[str, list[list[str]]]:
    """Test set -> a row for each configuration that was tested on it and each variant."""
    found: dict[str, list[list[str]]] = {}
    for number, configuration in known:
        for title, middle in _test_sets(configuration).items():
            for variant in _variants(configuration):
                cells = [_share(configuration, f"{variant}/{middle}{key}") for key in POOLED]
                found.setdefault(title, []).append([number, configuration.name, variant, *cells])
    return found


def _test_sets(configuration: Configuration) -> dict[str, str]:
    """Title -> what stands between variant and metric: each data set of several, then all of them together."""
    metrics = configuration.runs[0].metrics
    parts = configuration.conditions[TEST_SET].split("+")
    whole = " and ".join(part.rpartition(" ")[0] or part for part in parts)
    return {
        f"{name} ({metrics[f'dataset/{name}/images']:.0f} images)": f"dataset/{name}/" for name in datasets(metrics)
    } | {whole: ""}


def _variants(configuration: Configuration) -> list[str]:
    """What differs: a network that was trained dense is the same pruned."""
    pruned = configuration.policy != "dense" and "pruned/ap" in configuration.runs[0].metrics
    return ["dense", "pruned"] if pruned else ["dense"]


def _speed(known: Sequence[tuple[str, Configuration]]) -> list[list[str]]:
    titles = [
        "images/s dense",
        "images/s pruned",
        "speed-up",
        "FLOP ratio",
        "efficiency",
        "GFLOPs",
        "peak memory (MiB)",
    ]
    rows = [["no.", "configuration", "parameters", *titles]]
    for number, each in known:
        pruned = "pruned" in _variants(each)
        speeds = [_number(each, f"{variant}/images_per_second") for variant in ("dense", "pruned")[: 1 + pruned]]
        ratios = [_number(each, "pruned/speedup"), _ratio(each), _number(each, "efficiency")]
        costs = [
            " / ".join(_number(each, f"{variant}/{key}", digits) for variant in _variants(each))
            for key, digits in (("gflops", 1), ("peak_memory_mib", 0))
        ]
        size = _number(each, "parameters", 0)
        own = [*speeds, *ratios] if pruned else [*speeds, *[NOTHING] * 4]
        rows.append([number, each.name, f"{int(size):,}" if size != NOTHING else size, *own, *costs])
    return rows


def _values(configuration: Configuration, name: str) -> list[float]:
    """One value for each seed; none where a run lacks it."""
    found = [run.metrics.get(name) for run in configuration.runs]
    return [float(value) for value in found if value is not None] if None not in found else []


def _share(configuration: Configuration, name: str) -> str:
    """0.8123 ± 0.0021 [0.790, 0.834]."""
    if not (values := _values(configuration, name)):
        return NOTHING
    mean, sd = mean_and_sd(values)
    text = f"{mean:.4f}" + (f" ± {sd:.4f}" if isfinite(sd) else "")
    ends = [_values(configuration, f"{name}_{end}") for end in ("low", "high")]
    return text + (" [{:.3f}, {:.3f}]".format(*(mean_and_sd(end)[0] for end in ends)) if all(ends) else "")


def _number(configuration: Configuration, name: str, digits: int = 2) -> str:
    values = _values(configuration, name)
    return f"{mean_and_sd(values)[0]:.{digits}f}" if values else NOTHING


def _ratio(configuration: Configuration) -> str:
    dense, pruned = (_values(configuration, f"{variant}/gflops") for variant in ("dense", "pruned"))
    ratios = [one / other for one, other in zip(dense, pruned, strict=True)] if dense and pruned else []
    return f"{mean_and_sd(ratios)[0]:.2f}" if ratios else NOTHING
