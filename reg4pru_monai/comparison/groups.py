"""Comparing the runs of an MLflow store: seeds are grouped, configurations are ranked where they may be."""

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..configuration import OF_PRUNING
from ..mask_metrics import LOWER_IS_BETTER
from .runs import IMAGE_MEANS, KEEP_RATE, NOT_RECORDED, POLICY, SIZES, TEST_SET, LeftOut, Run, select_runs
from .statistics import Difference, ImageMean, image_mean, mean_and_sd, paired_difference, pareto_front
from .store import ComparisonError, Store


@dataclass(frozen=True, eq=False)
class Configuration:
    """Runs that differ in their seed only. name: unique within the comparison. series: the same without keep rate."""

    name: str
    series: str
    runs: Sequence[Run]

    @property
    def settings(self) -> Mapping[str, str]:
        """Parameters without the seed."""
        return self.runs[0].settings

    @property
    def conditions(self) -> Mapping[str, str]:
        """How it was measured."""
        return self.runs[0].conditions

    @property
    def seeds(self) -> list[str]:
        """The seeds, "-" where a run has none."""
        return [run.seed or "-" for run in self.runs]

    @property
    def policy(self) -> str:
        """The pruning policy."""
        return self.settings.get(POLICY, "unknown")

    @property
    def keep_rate(self) -> float | None:
        """Share kept at each stage; None where it differs between stages, and for dense."""
        return _single_number(self.settings.get(KEEP_RATE))

    @property
    def speed(self) -> tuple[float, float]:
        """Images per second: mean and standard deviation over seeds."""
        return mean_and_sd([run.images_per_second for run in self.runs])

    @property
    def speedup(self) -> tuple[float, float]:
        """Over the same network unpruned in the same run: mean and standard deviation over seeds."""
        return mean_and_sd([run.speedup for run in self.runs])

    @property
    def gflops(self) -> float:
        """GFLOPs per image, mean over seeds."""
        return mean_and_sd([run.gflops for run in self.runs])[0]

    @property
    def pooled(self) -> tuple[float, float]:
        """The metric of the test set, over all pixels where it can be: mean and standard deviation over seeds."""
        return mean_and_sd([run.value for run in self.runs])

    @cached_property
    def images(self) -> list[str]:
        """Images that every run has a value of, in the order of the first run."""
        return [name for name in self.runs[0].per_image if all(name in run.per_image for run in self.runs)]

    def values(self, images: Sequence[str]) -> np.ndarray:
        """Metric of each image, (seeds, images)."""
        return np.array([[run.per_image[name] for name in images] for run in self.runs])

    def groups(self, images: Sequence[str]) -> list[Hashable]:
        """Subject of each image."""
        return [self.runs[0].groups[name] for name in images]


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration in the result. rank: None where ranking is refused. dense: the same network unpruned.

    as_good_as_best: None where it is not ranked, is the first itself, or has no values per image to tell by.
    """

    configuration: Configuration
    rank: int | None
    on_front: bool
    dense: tuple[float, float]
    per_image: ImageMean
    difference: Difference | None
    as_good_as_best: bool | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found. obstacles: why there is no ranking, empty where there is one."""

    metric: str
    rows: list[Row]
    baseline: Configuration | None
    common: Mapping[str, str]  # settings that most configurations share and that names therefore leave out
    obstacles: list[str]
    left_out: list[LeftOut]
    notes: list[str]
    source: str
    parent: str | None

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is an error."""
        return self.metric in LOWER_IS_BETTER

    @property
    def pooled(self) -> bool:
        """Whether the metric is over all pixels of the test set, and not a mean of images."""
        return self.metric not in IMAGE_MEANS


def compare(
    uri: str,
    experiment: str | None,
    metric: str = "ap",
    parent: str | None = None,
    filter_string: str | None = None,
    baseline: str | None = None,
) -> tuple[Store, Comparison]:
    """Read runs and compare their configurations.

    baseline: name of one; by default the member that the sweep names, else the only dense one.

    Raises ComparisonError for a store, experiment, parent or baseline that is not there, and where nothing matches.
    """
    store, selection = select_runs(uri, experiment, parent, filter_string, metric)
    configurations, common = grouped(selection.runs)
    against = _baseline(configurations, baseline, selection.baseline)
    obstacles = obstacles_to_ranking(configurations)
    rows = _rows(configurations, metric, against, ranked=not obstacles)
    source = f"experiment {selection.experiment} in {store}"
    source += f", children of run {parent}" if parent else ""
    source += f", filter {filter_string!r}" if filter_string else ""
    notes = _notes(configurations, against, metric)
    if selection.lost:
        notes.append(f"runs that the sweep names and that were not found: {', '.join(selection.lost)}")
    if selection.baseline and baseline is None and _of_member(configurations, selection.baseline) is None:
        notes.append(f"{selection.baseline}, which the sweep names as its baseline, is not one of these configurations")
    return store, Comparison(
        metric, rows, against, common, obstacles, selection.left_out, notes, source, selection.parent
    )


# --- configurations ---------------------------------------------------------------------------------------------------


def grouped(runs: Sequence[Run]) -> tuple[list[Configuration], dict[str, str]]:
    """Runs by configuration, each under a name of its own, and the settings that the names leave out."""
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.configuration, []).append(run)
    members = [sorted(group, key=lambda run: (_seed_order(run.seed), run.start_time)) for group in groups.values()]
    told = [_told(group[0]) for group in members]
    keys = [key for key in dict.fromkeys(key for each in told for key in each) if key not in (POLICY, KEEP_RATE)]
    differing = [key for key in keys if len({each.get(key) for each in told if _has(each, key)}) > 1]
    common = {key: value for key in differing if (value := _majority([each.get(key) for each in told]))}
    names = _unique([_name(each, differing, common) for each in told], members)
    short = [{run.member for run in group} for group in members]
    if all(len(each) == 1 and None not in each for each in short) and len(set(map(frozenset, short))) == len(short):
        named = [str(each.pop()) for each in short]  # as the sweep calls them
        common = {}
    else:
        named = [" ".join(part for part in name if part) for name in names]
    found = [
        Configuration(name, f"{head.partition('@')[0]} {rest}".strip(), group)
        for name, (head, rest), group in zip(named, names, members, strict=True)
    ]
    return sorted(found, key=lambda c: (c.policy != "dense", c.series, c.keep_rate or 0, c.name)), common


def _told(run: Run) -> dict[str, str]:
    """What a name may tell: the settings, and the conditions that are no settings."""
    return {**run.settings, **{key: value for key, value in run.conditions.items() if key not in SIZES}}


def _has(settings: Mapping[str, str], key: str) -> bool:
    """Whether a setting means anything there: a dense network has none of pruning."""
    return key in settings or key not in OF_PRUNING or settings.get(POLICY) != "dense"


def _name(settings: Mapping[str, str], differing: Sequence[str], common: Mapping[str, str]) -> tuple[str, str]:
    """("reg4pru@0.7", "decoder=eomt"): what tells it from the others."""
    name, keep = settings.get(POLICY, "unknown"), settings.get(KEEP_RATE)
    if keep is not None:
        name += f"@{keep.strip('[]').replace(' ', '') if _single_number(keep) is None else f'{_single_number(keep):g}'}"
    shown = [key for key in differing if settings.get(key) != common.get(key)]
    return name, " ".join(f"{key}={settings.get(key, NOT_RECORDED)}" for key in shown)


def _unique(names: Sequence[tuple[str, str]], members: Sequence[Sequence[Run]]) -> list[tuple[str, str]]:
    """Names with the digest of all settings behind those that differ in nothing else."""
    count = Counter(names)
    digests = [f"settings={(group[0].digest or NOT_RECORDED)[:12]}" for group in members]
    return [
        (head, f"{rest} {digest}".strip()) if count[head, rest] > 1 else (head, rest)
        for (head, rest), digest in zip(names, digests, strict=True)
    ]


def _majority(values: Sequence[str | None]) -> str | None:
    """The value that more than half have."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def _single_number(text: str | None) -> float | None:
    """0.7 of "0.7" and of "[0.7, 0.7]"; None of anything else."""
    try:
        given = json.loads(text or "")
    except ValueError:
        return None
    found = set(given) if isinstance(given, list) else {given}
    value = found.pop() if len(found) == 1 else None
    return float(value) if isinstance(value, int | float) else None


def _seed_order(seed: str | None) -> float:
    try:
        return float(seed or 0)
    except ValueError:
        return math.inf


def _baseline(configurations: Sequence[Configuration], name: str | None, suggested: str | None) -> Configuration | None:
    """The one called ``name``; without a name the member that the sweep suggests, else the only dense one."""
    named = {each.name: each for each in configurations}
    if name is None:
        dense = [each for each in configurations if each.policy == "dense"]
        return _of_member(configurations, suggested) or (dense[0] if len(dense) == 1 else None)
    if name not in named:
        there = "".join(f"\n  {each}" for each in named)
        raise ComparisonError(f"no configuration is called {name!r}; --baseline can be one of{there}")
    return named[name]


def _of_member(configurations: Sequence[Configuration], member: str | None) -> Configuration | None:
    """The one whose runs are that member of a sweep, whatever it is called here; None where it is not just one."""
    found = [each for each in configurations if member and all(run.member == member for run in each.runs)]
    return found[0] if len(found) == 1 else None


# --- what may be ranked -----------------------------------------------------------------------------------------------


def obstacles_to_ranking(configurations: Sequence[Configuration]) -> list[str]:
    """Each condition that differs or is not recorded, with its values and who has them; empty where all agree."""
    found = []
    for title in configurations[0].conditions:
        holders: dict[str, list[str]] = {}
        for each in configurations:
            holders.setdefault(each.conditions[title], []).append(each.name)
        if len(holders) > 1:
            parts = "; ".join(f"{value} ({', '.join(names)})" for value, names in holders.items())
            found.append(f"{title} differs: {parts}")
        elif NOT_RECORDED in holders and len(configurations) > 1:
            found.append(f"{title} is not recorded in any of the runs")
    return found


def _same_images(one: Configuration, other: Configuration) -> bool:
    """Whether both were measured on the same test set; hardware and resolution do not matter for a difference."""
    return one.conditions[TEST_SET] == other.conditions[TEST_SET] != NOT_RECORDED


# --- the result -------------------------------------------------------------------------------------------------------


def _rows(configurations: list[Configuration], metric: str, baseline: Configuration | None, ranked: bool) -> list[Row]:
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    order = sorted(configurations, key=lambda each: -sign * each.pooled[0]) if ranked else configurations
    front: list[int] = []
    if ranked:
        front = pareto_front([each.speed[0] for each in order], [sign * each.pooled[0] for each in order])
    rows = []
    for number, each in enumerate(order):
        to_best = difference(each, order[0]) if ranked and number else None
        rows.append(
            Row(
                configuration=each,
                rank=number + 1 if ranked else None,
                on_front=number in front,
                dense=mean_and_sd([run.unpruned for run in each.runs]),
                per_image=image_mean(each.values(each.images), each.groups(each.images)),
                difference=difference(each, baseline) if baseline and baseline is not each else None,
                as_good_as_best=_not_worse(to_best, sign) if to_best else None,
            )
        )
    return rows


def _not_worse(to_best: Difference, sign: float) -> bool:
    """Whether the interval of a difference does not lie wholly on the bad side of 0. sign: 1 where higher is better.

    The interval over images and seeds, where there are seeds, because the order may be another with others.
    """
    over_seeds = math.isfinite(to_best.seeds_low)
    low, high = (to_best.seeds_low, to_best.seeds_high) if over_seeds else (to_best.low, to_best.high)
    return high >= 0 if sign > 0 else low <= 0


def difference(ours: Configuration, theirs: Configuration) -> Difference | None:
    """Paired by image; None where the test sets differ or runs have no values per image."""
    images = [name for name in ours.images if name in set(theirs.images)]
    if not images or not _same_images(ours, theirs):
        return None
    same_seeds = None not in [run.seed for run in ours.runs] and ours.seeds == theirs.seeds
    return paired_difference(ours.values(images), theirs.values(images), ours.groups(images), same_seeds)


def _notes(configurations: Sequence[Configuration], baseline: Configuration | None, metric: str) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    if baseline is None and len(configurations) > 1:
        names = ", ".join(each.name for each in configurations)
        notes.append(f"no paired differences: name one of these with --baseline: {names}")
    if baseline and len(configurations) > 1:
        notes += _unpaired([each for each in configurations if each is not baseline], baseline)
    runs = [run for each in configurations for run in each.runs]
    if without := [run.name for run in runs if not run.per_image]:
        which = ", ".join(without) if len(without) < len(runs) else "all runs"
        notes.append(f"no {metric} per image, so no intervals: {which}")
    if len({len(each.runs) for each in configurations}) > 1:
        notes.append("configurations have different numbers of seeds")
    revisions = {run.revision for run in runs}
    if len(revisions) > 1:
        shown = ", ".join(sorted(str(revision)[:10] for revision in revisions))
        notes.append(f"runs were made by different revisions of the code: {shown}")
    return notes


def _unpaired(others: Sequence[Configuration], baseline: Configuration) -> list[str]:
    """Why there is no paired difference to the baseline, as far as the test sets are the cause."""
    if baseline.conditions[TEST_SET] == NOT_RECORDED:
        return [f"no paired differences: the test set of {baseline.name} is not recorded"]
    causes: dict[str, list[str]] = {}
    for each in others:
        if not _same_images(each, baseline):
            recorded = each.conditions[TEST_SET] != NOT_RECORDED
            why = "measured on another test set" if recorded else "as the test set is not recorded"
            causes.setdefault(why, []).append(each.name)
    return [f"no paired difference to {baseline.name}, {why}: {', '.join(of)}" for why, of in causes.items()]
