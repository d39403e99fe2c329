"""Reading finished runs from an MLflow store. What is read under which name stands in one table at the top."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..configuration import OF_PRUNING
from .store import MEMBER_OF, PARENT, ComparisonError, Store

NOT_RECORDED = "not recorded"

# --- what is read of a run --------------------------------------------------------------------------------------------

VARIANTS = ("pruned", "dense")  # the first one that a run has is the one that is compared
METRIC = "test/{variant}/{name}"  # metrics: accuracy over all pixels of the test set, and speed
THROUGHPUT, GFLOPS, SPEEDUP = "images_per_second", "gflops", "speedup"
SPEED = (THROUGHPUT, GFLOPS, SPEEDUP, "latency_ms", "peak_memory_mib")  # stand among them and are no accuracy
ALL_METRICS = "metrics.json"  # artifact: the metrics that are too many for MLflow, without the part in their names
ALSO = ("{variant}/{name}", "{variant}/per_image/{name}")  # in it; some metrics are means of images only
PER_IMAGE = "test/per_image.csv"  # artifact: columns image, subject, variant, and one for each metric
CURVES = "test/precision_recall.csv"  # artifact: columns variant, threshold, precision, recall
SEED, POLICY, KEEP_RATE, CHECKPOINT, REVISION = (
    "seed",
    "policy",
    "keep_rate",
    "checkpoint",
    "git_revision",
)  # parameters
MEMBER, BASELINE = "member", "baseline"  # tags that a sweep sets: of a child, of the parent
DIGEST = "settings_digest"  # tag: of all settings but the seed, because not every setting is a parameter
SWEEP_TABLE = "sweep.csv"  # artifact of the parent of a sweep: a column run_id
TAGS = {"hardware": "hardware", "precision": "dtype", "windows per batch": "batch_size"}  # conditions in tags
SIZES = {"diameter (px)": "diameter", "window (px)": "window_size"}  # conditions in parameters
IMAGE_MEANS = ("surface_dice", "hd95_px", "betti0_error", "betti1_error")  # metrics that cannot be pooled
TEST_SET = "test set"  # condition: the digest of the data-set entry with the context "test"


class LeftOut(NamedTuple):
    """A run that takes no part, and why."""

    name: str
    run_id: str
    reason: str


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run. per_image: image -> value of the chosen metric. groups: image -> subject.

    metrics: all of its evaluation, by the names in ALL_METRICS; None where undefined, empty where it has no such file.
    """

    run_id: str
    name: str
    start_time: int
    seed: str | None
    settings: Mapping[str, str]  # parameters that make the configuration
    conditions: Mapping[str, str]  # how it was measured: what must agree before runs are ranked
    value: float  # the chosen metric of the test set, of the pruned variant where the run has that
    unpruned: float = math.nan
    images_per_second: float = math.nan
    gflops: float = math.nan
    speedup: float = math.nan  # over the same network unpruned, image by image in one run
    member: str | None = None
    revision: str | None = None
    digest: str | None = None  # of all settings but the seed
    per_image: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    curve: tuple[np.ndarray, np.ndarray] | None = None  # recall, precision
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def configuration(self) -> Hashable:
        """What runs that differ in their seed only have in common."""
        return tuple(sorted(self.settings.items())), tuple(sorted(self.conditions.items())), self.digest


class Selection(NamedTuple):
    """What was read. parent: id of the run that all are children of, if so.

    baseline: the member that it names. lost: ids of runs that its table names and that were not found.
    """

    runs: list[Run]
    left_out: list[LeftOut]
    experiment: str
    parent: str | None
    baseline: str | None
    lost: list[str]


# --- runs -------------------------------------------------------------------------------------------------------------


def select_runs(
    uri: str, experiment: str | None, parent: str | None, filter_string: str | None, metric: str
) -> tuple[Store, Selection]:
    """Read the runs that have ``metric``, with their values per image and curves. Raises ComparisonError."""
    if metric in SPEED:
        raise ComparisonError(
            f"--metric must be a metric of accuracy such as dice, got {metric!r}; speed is always shown"
        )
    store = Store(uri)
    name, found = store.search(experiment, parent, filter_string)
    parents = {run.data.tags.get(PARENT) for run in found}
    found = [run for run in found if run.info.run_id not in parents]  # a parent measures nothing itself
    if not found:
        wanted = [f"parent {parent}"] * bool(parent) + [f"filter {filter_string!r}"] * bool(filter_string)
        raise ComparisonError(f"no run matches: {', '.join([f'experiment {name!r}', *wanted])} in {store}")
    read = [_read(store, run, metric, parent) for run in found]
    runs, older = _newest([each for each in read if isinstance(each, Run)])
    left_out = [each for each in read if isinstance(each, LeftOut)]
    if not runs:
        raise ComparisonError(_nothing_left(store, found, left_out, metric))
    parents = {parent} if parent else {run.data.tags.get(PARENT) for run in found}
    common = parents.pop() if len(parents) == 1 else None
    baseline = store.tags(common).get(BASELINE) if common else None
    lost = _lost(store, parent, found) if parent and not filter_string else []
    return store, Selection(runs, left_out + older, name, common, baseline, lost)


def _lost(store: Store, parent: str, found: Sequence[Any]) -> list[str]:
    """Runs that the table of a sweep names, and that are not among those found."""
    there = {run.info.run_id for run in found}
    named = [row.get("run_id") for row in store.table(parent, SWEEP_TABLE)]
    return [run_id for run_id in dict.fromkeys(named) if run_id and run_id not in there]


def _read(store: Store, run: Any, metric: str, parent: str | None) -> Run | LeftOut:
    """A run with what is compared, or why it is left out."""
    identity, name = str(run.info.run_id), str(run.info.run_name)
    if why := _unfinished(run.info.status):
        return LeftOut(name, identity, why)
    known = store.values(identity, ALL_METRICS) if _tested(run) else {}
    values = _values(run, metric, known)
    if not values:
        return LeftOut(name, identity, _lacks(run, metric))
    variant = next(each for each in VARIANTS if each in values)
    parameters = dict(run.data.params)
    rows = [row for row in store.table(identity, PER_IMAGE) if row.get("variant") == variant]
    speeds = [
        run.data.metrics.get(METRIC.format(variant=variant, name=each), math.nan)
        for each in (THROUGHPUT, GFLOPS, SPEEDUP)
    ]
    return Run(
        run_id=identity,
        name=name,
        start_time=int(run.info.start_time),
        seed=parameters.get(SEED),
        settings=_settings(parameters),
        conditions=_conditions(run),
        value=values[variant],
        unpruned=values.get("dense", math.nan),
        images_per_second=speeds[0],
        gflops=speeds[1],
        speedup=speeds[2],
        member=run.data.tags.get(f"{MEMBER_OF}{parent}") or run.data.tags.get(MEMBER),
        revision=parameters.get(REVISION),
        digest=run.data.tags.get(DIGEST),
        per_image={row["image"]: _number(row[metric]) for row in rows if metric in row},
        groups={row["image"]: row.get("subject") or row["image"] for row in rows},
        metrics=known,
        curve=_curve([row for row in store.table(identity, CURVES) if row.get("variant") == variant]),
    )


def _unfinished(status: str) -> str:
    endings = {"FINISHED": "", "FAILED": "failed", "KILLED": "was stopped"}
    return endings.get(status, f"is not finished ({status})")


def _values(run: Any, metric: str, known: Mapping[str, Any]) -> dict[str, float]:
    """The metric of the test set by variant; from ``known``, all its metrics, where MLflow has it not."""
    names = {variant: METRIC.format(variant=variant, name=metric) for variant in VARIANTS}
    found = {variant: run.data.metrics[name] for variant, name in names.items() if name in run.data.metrics}
    for variant, also in product(VARIANTS, ALSO):
        value = known.get(also.format(variant=variant, name=metric))
        if isinstance(value, int | float):
            found.setdefault(variant, float(value))
    return found


def _tested(run: Any) -> bool:
    """Whether the run was evaluated on a test set, and not on another part of the data."""
    start = METRIC.split("{")[0]
    return any(name.startswith(start) for name in run.data.metrics)


def _lacks(run: Any, metric: str) -> str:
    name = METRIC.format(variant=VARIANTS[0], name=metric)
    value = run.data.tags.get(f"nonfinite.{name}")
    return f"{name} is {value}" if value else f"has no metric {name}"


def _nothing_left(store: Store, found: Sequence[Any], left_out: Sequence[LeftOut], metric: str) -> str:
    """The message where no run has the metric: what there is instead, and why each run was left out."""
    there: set[str] = set()
    for run in found:
        if _tested(run) and not there:
            names = {METRIC.format(variant=VARIANTS[0], name=""): run.data.metrics}
            names |= {
                each.format(variant=VARIANTS[0], name=""): store.values(run.info.run_id, ALL_METRICS) for each in ALSO
            }
            there = {
                name.removeprefix(start) for start, known in names.items() for name in known if name.startswith(start)
            }
    plain = sorted(
        name for name in there if "/" not in name and name not in SPEED and not name.endswith(("_low", "_high"))
    )
    hint = f"; --metric can be {', '.join(plain)}" if plain else ""
    reasons = "".join(f"\n  {entry.name}: {entry.reason}" for entry in left_out)
    return f"none of the {len(found)} runs that match has {metric!r} of a test set{hint}{reasons}"


def _settings(parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameters that make a configuration."""
    ignored = {SEED, REVISION, MEMBER}
    if SEED in parameters:  # else the checkpoint is what tells the trainings apart
        ignored.add(CHECKPOINT)
    if parameters.get(POLICY) == "dense":
        ignored.update(OF_PRUNING)
    return {key: value for key, value in parameters.items() if key not in ignored}


def _conditions(run: Any) -> dict[str, str]:
    """How a run was measured; what it does not say is "not recorded"."""
    tests = [
        each.dataset
        for each in (run.inputs.dataset_inputs if run.inputs else ())
        if any(tag.key == "mlflow.data.context" and tag.value == "test" for tag in each.tags)
    ]
    digest = "+".join(sorted(f"{dataset.name} {dataset.digest}" for dataset in tests))
    return {
        **{title: run.data.tags.get(key, NOT_RECORDED) for title, key in TAGS.items()},
        TEST_SET: digest or NOT_RECORDED,
        **{title: _size(run.data.params, key) for title, key in SIZES.items()},
    }


def _size(parameters: Mapping[str, str], key: str) -> str:
    """A condition of SIZES; where the diameter goes by the angle of view, other photographs have others."""
    found = parameters.get(key, NOT_RECORDED)
    if key != "diameter" or parameters.get("by_angle") != "True":
        return found
    angle = parameters.get("angle", "None")
    return f"{found} by angle" if angle == "None" else f"{found} by an angle of {angle}"


def _curve(rows: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray] | None:
    points = np.array([(_number(row["recall"]), _number(row["precision"])) for row in rows])
    points = points[np.isfinite(points).all(1)] if len(points) else points
    return (points[:, 0], points[:, 1]) if len(points) else None


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _newest(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """Of runs with the same configuration and seed the newest; a repeated seed would look like a second one."""
    last = {(run.configuration, run.seed): run for run in sorted(runs, key=lambda run: run.start_time)}
    kept, older = [], []
    for run in runs:
        newest = last[run.configuration, run.seed]
        if newest is run:
            kept.append(run)
        else:
            older.append(LeftOut(run.name, run.run_id, f"{newest.name} is newer, of the same configuration and seed"))
    return kept, older
