import csv
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reg4pru_monai.benchmark_report import PUBLISHED
from reg4pru_monai.cli import app
from reg4pru_monai.comparison.figures import _write_numbers, figures, published, series_of
from reg4pru_monai.comparison.groups import Comparison, _not_worse, compare
from reg4pru_monai.comparison.statistics import (
    Difference,
    image_mean,
    mean_and_sd,
    mean_curve,
    paired_difference,
    pareto_front,
)
from reg4pru_monai.comparison.store import ComparisonError, Store
from reg4pru_monai.comparison.tables import markdown, table
from reg4pru_monai.configuration import merged_configuration, training_digests
from reg4pru_monai.sweeps.plan import TRAIN
from reg4pru_monai.tracking import Tracker
from reg4pru_monai.tracking_store import calm, sqlite_uri

TAGS = {"hardware": "CPU A, 1 thread", "dtype": "float32", "batch_size": "8"}
IMAGES = {"a": 0.5, "b": 0.9, "c": 0.6, "d": 0.8}  # AP of each image of a run; a and b are of one subject, c and d
SUBJECTS = {"a": "s1", "b": "s1", "c": "s2", "d": "s2"}


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


class Runs:
    """A real SQLite store, filled with runs whose statistics are known."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, sqlite_uri(folder / "mlflow.db")
        self._count = itertools.count()

    def add(
        self,
        experiment: str,
        policy: str = "dense",
        seed: int | None = 1,
        ap: float | None = 0.8,
        speed: float = 1.0,
        shift: float = 0.0,
        status: str = "FINISHED",
        test_set: str = "0123",
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        files: bool = True,
    ) -> str:
        """One run. ap: pooled. shift: added to the AP of each image. Returns its id."""
        output = self.folder / f"run{next(self._count)}"
        tracker = Tracker.start(
            output,
            experiment=experiment,
            run_name=f"{policy}-{seed}",
            store_dir=self.folder,
            parameters={"policy": policy, "keep_rate": 0.7, "decoder": "skip", "diameter": 1024, "window_size": 256}
            | ({} if seed is None else {"seed": seed})
            | dict(parameters or {}),
            tags={**TAGS, **(tags or {})},
        )
        self._log_test_set(tracker.run_id, test_set)
        if ap is not None:
            values = {"test/pruned/ap": ap, "test/dense/ap": ap + 0.01, "test/pruned/images_per_second": speed}
            tracker.log_metrics(
                {**values, "test/pruned/gflops": 10 / speed, "test/pruned/speedup": 3 * speed, **(metrics or {})},
                step=0,
            )
        if files:
            self._log_files(tracker, shift)
        if status != "RUNNING":
            tracker.close(status)
        return tracker.run_id

    def _log_test_set(self, run_id: str, digest: str) -> None:
        with calm():
            from mlflow.entities import Dataset, DatasetInput, InputTag
            from mlflow.tracking import MlflowClient

            entries = [
                DatasetInput(
                    Dataset("phantoms", f"{part}-{digest}", "local", "{}"), [InputTag("mlflow.data.context", part)]
                )
                for part in ("train", "test")
            ]
            MlflowClient(self.uri).log_inputs(run_id, datasets=entries)

    def _log_files(self, tracker: Tracker, shift: float) -> None:
        rows = [
            [name, "", variant, SUBJECTS[name], value + shift + (variant == "dense")]
            for variant in ("pruned", "dense")
            for name, value in IMAGES.items()
        ]
        self._log_csv(tracker, "per_image", [["image", "group", "variant", "subject", "ap"], *rows])
        curve = [["pruned", 0.9, 0.9, 0.2], ["pruned", 0.1, 0.3, 1.0], ["dense", 0.5, 0.0, 0.0]]
        self._log_csv(tracker, "precision_recall", [["variant", "threshold", "precision", "recall"], *curve])
        everything = {"pruned/ap": 9.0, "pruned/per_image/hd95_px": 20 + 100 * shift, "dense/per_image/hd95_px": 5.0}
        tracker.log_text(json.dumps(everything | {"pruned/ece": None}), "metrics.json")

    def _log_csv(self, tracker: Tracker, name: str, rows: Sequence[Sequence[Any]]) -> None:
        path = tracker.output_dir / f"{name}.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
        tracker.log_artifact(path, "test")

    def compare(self, experiment: str, **options: Any) -> Comparison:
        return compare(self.uri, experiment, **options)[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        found = Runs(tmp_path_factory.mktemp("store"))
        # Two seeds each. Image by image reg4pru is 0.1 below dense with seed 1 and 0.3 below with seed 2.
        found.add("golden", "dense", 1, 0.80, 1.0)
        found.add("golden", "dense", 2, 0.82, 1.2, shift=0.02)
        found.add("golden", "reg4pru", 1, 0.78, 2.0, shift=-0.1)
        found.add("golden", "reg4pru", 2, 0.80, 2.2, shift=-0.28)
        found.add("golden", "dynamicvit", 1, 0.70, 1.5, shift=-0.2, files=False)
    return found


@pytest.fixture(scope="module")
def golden(runs: Runs) -> Comparison:
    return runs.compare("golden")


def names(found: Comparison) -> list[str]:
    return [row.configuration.name for row in found.rows]


def invoke(runs: Runs, output: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["compare", "--tracking-uri", runs.uri, "--output", str(output), *words])


# --- statistics -------------------------------------------------------------------------------------------------------


def test_the_deviation_over_seeds_is_the_sample_deviation() -> None:
    assert mean_and_sd([0.80, 0.82]) == pytest.approx((0.81, 0.02 / math.sqrt(2)))
    mean, sd = mean_and_sd([0.8])
    assert (mean, math.isnan(sd)) == (0.8, True)
    assert all(map(math.isnan, mean_and_sd([])))


def test_images_of_a_subject_are_drawn_together() -> None:
    ours, theirs = np.array([[1.0, -1.0, 1.0, -1.0]]), np.zeros((1, 4))
    together = paired_difference(ours, theirs, ["s", "s", "t", "t"], True)
    assert together is not None
    assert (together.value, together.low, together.high, together.higher, together.images) == (0, 0, 0, 2, 4)
    alone = paired_difference(ours, theirs, ["s", "t", "u", "v"], True)
    assert alone is not None
    assert alone.low < -0.4 < 0.4 < alone.high


def test_an_interval_over_seeds_draws_seeds_too() -> None:
    images = np.array([0.5, 0.6, 0.7])
    theirs = np.stack([images, images + 0.2])
    ours = theirs + np.array([[0.1], [0.3]])
    found = paired_difference(ours, theirs, "xyz", same_seeds=True)
    assert found is not None
    assert found[:3] == pytest.approx((0.2, 0.2, 0.2))
    assert found[3:5] == pytest.approx((0.1, 0.3))  # both draws of the second seed or of the first: 1 in 4 each
    other = paired_difference(ours, theirs, "xyz", same_seeds=False)
    assert other is not None
    assert other[3:5] == pytest.approx((-0.1, 0.5))  # the seed of ours says nothing of theirs: 1 in 16 each
    single = paired_difference(ours[:1], theirs[:1], "xyz", same_seeds=True)
    assert single is not None
    assert all(map(math.isnan, single[3:5]))


def test_an_image_without_a_value_counts_for_nobody() -> None:
    ours, theirs = np.array([[1.0, math.nan, 3.0]]), np.array([[0.0, 0.0, math.nan]])
    found = paired_difference(ours, theirs, "xyz", True)
    assert found is not None
    assert (found.value, found.images) == (1.0, 1)
    assert math.isnan(found.low)
    assert paired_difference(ours, np.full((1, 3), math.nan), "xyz", True) is None
    assert image_mean(np.array([[1.0, math.nan, 3.0], [3.0, 1.0, 5.0]]), "xyz").value == 3.0  # of the first and last
    assert math.isnan(image_mean(np.empty((2, 0)), []).value)


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto_front([1, 2, 3, 2], [0.9, 0.8, 0.5, 0.7]) == [0, 1, 2]
    assert pareto_front([1, 2], [0.8, 0.8]) == [1]
    assert pareto_front([1, 1], [0.8, 0.8]) == [0, 1]
    assert pareto_front([1, math.nan], [0.8, 0.9]) == [0]


def test_curves_are_averaged_at_equal_recall() -> None:
    low, high = np.array([1.0, 0.5]), np.array([0.0, 0.4])
    recall, precision = mean_curve([(np.array([1.0, 0.5]), high[::-1].copy()), (np.array([0.5, 1.0]), low)])
    assert precision[recall == 1.0] == pytest.approx([(0.4 + 0.5) / 2])
    assert precision[recall == 0.75] == pytest.approx([(0.2 + 0.75) / 2])
    assert np.isnan(precision[recall < 0.5]).all()


# --- what is found in a store -----------------------------------------------------------------------------------------


def test_known_runs_give_known_numbers(golden: Comparison) -> None:
    assert names(golden) == ["dense", "reg4pru@0.7", "dynamicvit@0.7"]
    dense, routed, soft = golden.rows
    assert dense.configuration.pooled == pytest.approx((0.81, 0.02 / math.sqrt(2)))
    assert dense.dense[0] == pytest.approx(0.82)
    assert dense.configuration.speed == pytest.approx((1.1, 0.2 / math.sqrt(2)))
    assert dense.configuration.speedup == pytest.approx((3.3, 0.6 / math.sqrt(2)))
    assert dense.configuration.gflops == pytest.approx((10 + 10 / 1.2) / 2)
    assert dense.per_image.value == pytest.approx(0.71)
    assert (dense.per_image.low, dense.per_image.high) == pytest.approx((0.71, 0.71))  # of either subject
    assert routed.configuration.seeds == ["1", "2"]
    assert routed.difference is not None
    assert routed.difference[:5] == pytest.approx((-0.2, -0.2, -0.2, -0.3, -0.1))
    assert (routed.difference.higher, routed.difference.images) == (0, 4)
    assert [(row.rank, row.on_front) for row in golden.rows] == [(1, True), (2, True), (3, False)]
    assert soft.difference is None
    assert math.isnan(soft.per_image.value)
    assert golden.obstacles == []
    assert golden.baseline is dense.configuration
    assert [note for note in golden.notes if note.startswith("no ap per image, so no intervals: dynamicvit-1-")]
    assert "configurations have different numbers of seeds" in golden.notes


def test_metrics_that_are_too_many_for_mlflow_are_found_and_low_errors_rank_first(runs: Runs) -> None:
    found = runs.compare("golden", metric="hd95_px")  # of metrics.json
    assert names(found) == ["reg4pru@0.7", "dense"]
    assert [row.configuration.pooled[0] for row in found.rows] == pytest.approx([20 - 19, 20 + 1])
    assert [row.on_front for row in found.rows] == [True, False]
    assert [entry.reason for entry in found.left_out] == ["has no metric test/pruned/hd95_px"]


def test_a_baseline_is_chosen_by_name(runs: Runs) -> None:
    found = runs.compare("golden", baseline="reg4pru@0.7")
    dense = found.rows[0].difference
    assert dense is not None
    assert dense.value == pytest.approx(0.2)
    assert "minus reg4pru@0.7" in table(found)


def test_what_is_level_with_the_best_is_marked(runs: Runs) -> None:
    runs.add("level", "dense", ap=0.80)
    runs.add("level", "cropr", ap=0.79)  # every image the same as of dense
    runs.add("level", "random", ap=0.78, shift=-0.1)
    found = runs.compare("level")
    assert [row.as_good_as_best for row in found.rows] == [None, True, False]
    assert [line.split()[0] for line in table(found).splitlines()[3:6]] == ["1*", "2=", "3"]


def test_what_is_better_on_every_image_is_not_called_worse(runs: Runs) -> None:
    runs.add("better", "dense", ap=0.80)
    runs.add("better", "cropr", ap=0.79, shift=0.1)  # pooled behind dense, image by image before it
    assert [row.as_good_as_best for row in runs.compare("better").rows] == [None, True]


def test_which_side_is_worse_depends_on_the_metric() -> None:
    below = Difference(-0.2, -0.3, -0.1, math.nan, math.nan, images=4, higher=0)
    above = Difference(0.2, 0.1, 0.3, math.nan, math.nan, images=4, higher=4)
    assert [_not_worse(each, sign) for each in (below, above) for sign in (1.0, -1.0)] == [False, True, True, False]


def test_level_is_judged_over_seeds_where_there_are_several(runs: Runs) -> None:
    for seed, shift in ((1, -0.3), (2, 0.1)):  # on each image 0.1 below dense, but not with the second seed
        runs.add("over seeds", "dense", seed, ap=0.80)
        runs.add("over seeds", "cropr", seed, ap=0.79, shift=shift)
    dense, cropr = runs.compare("over seeds").rows
    assert dense.configuration.policy == "dense"
    assert cropr.difference is not None
    assert cropr.difference.high < 0 < cropr.difference.seeds_high
    assert cropr.as_good_as_best is True


def test_without_values_per_image_nothing_is_said_of_level(runs: Runs, golden: Comparison) -> None:
    assert golden.rows[2].per_image.value != golden.rows[2].per_image.value
    assert golden.rows[2].as_good_as_best is None
    assert "\n3?   dynamicvit@0.7" in table(golden)
    assert "?: no values per image" in table(golden)


def test_the_page_says_what_the_metric_is_over(runs: Runs, golden: Comparison) -> None:
    assert "the metric before it is over all pixels of the test set" in markdown(golden, [], False)
    page = markdown(runs.compare("golden", metric="hd95_px"), [], False)
    assert "the metric before it is the mean of images" in page
    assert "rank: by the mean of images" in page
    assert "all pixels" not in page


def test_names_say_what_differs_and_leave_out_what_most_share(runs: Runs) -> None:
    for seed, decoder in ((1, "skip"), (2, "skip"), (1, "eomt")):
        runs.add("names", "reg4pru", seed, parameters={"decoder": decoder}, files=False)
    runs.add("names", "reg4pru", 1, parameters={"keep_rate": "[0.5, 0.7]"}, files=False)
    runs.add("names", "dense", 1, parameters={"keep_rate": 0.5}, files=False)
    runs.add("names", "dense", 2, parameters={"keep_rate": 0.7}, files=False)  # of no meaning for dense
    found = runs.compare("names")
    assert sorted(names(found)) == ["dense", "reg4pru@0.5,0.7", "reg4pru@0.7", "reg4pru@0.7 decoder=eomt"]
    assert {
        len(row.configuration.runs) for row in found.rows if row.configuration.name in ("dense", "reg4pru@0.7")
    } == {2}
    assert found.common == {"decoder": "skip"}
    assert "unless named: decoder=skip" in table(found)
    lines = {
        each.name: [point[0] for point in each.points] for each in series_of([r.configuration for r in found.rows])
    }
    assert lines == {"dense": [None], "reg4pru": [0.7], "reg4pru decoder=eomt": [0.7]}


def digests(**settings: Any) -> dict[str, str]:
    """Tags that a training with these settings has."""
    return training_digests(merged_configuration([TRAIN], settings).get())


def test_settings_that_are_no_parameters_separate_configurations(runs: Runs) -> None:
    for seed, decay in ((1, 0.7), (2, 0.7), (1, 0.8)):
        tags = digests(policy="reg4pru", layer_decay=decay, seed=seed)
        runs.add("hidden", "reg4pru", seed, tags=tags, files=False)
    found = runs.compare("hidden")
    assert found.left_out == []
    ends = {decay: digests(policy="reg4pru", layer_decay=decay)["settings_digest"][:12] for decay in (0.7, 0.8)}
    assert {row.configuration.name: row.configuration.seeds for row in found.rows} == {
        f"reg4pru@0.7 settings={ends[0.7]}": ["1", "2"],
        f"reg4pru@0.7 settings={ends[0.8]}": ["1"],
    }


def test_the_settings_digest_leaves_out_the_seed_and_what_dense_ignores() -> None:
    first = digests(policy="reg4pru", seed=1)
    second = digests(policy="reg4pru", seed=2)
    assert first["configuration_digest"] != second["configuration_digest"]
    assert first["settings_digest"] == second["settings_digest"]
    assert first["settings_digest"] != digests(policy="reg4pru", keep_rate=0.5)["settings_digest"]
    dense = digests(policy="dense")
    assert dense["settings_digest"] == digests(policy="dense", keep_rate=0.5, stages=[2])["settings_digest"]
    assert dense["settings_digest"] != digests(policy="dense", weight_decay=0.5)["settings_digest"]


def test_a_filter_selects(runs: Runs) -> None:
    assert names(runs.compare("golden", filter_string="params.policy = 'reg4pru'")) == ["reg4pru@0.7"]


def test_a_test_set_that_is_not_recorded_is_not_called_another_one(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_log_test_set", lambda *given: None)
    for policy in ("dense", "cropr"):
        runs.add("unknown sets", policy)
    found = runs.compare("unknown sets")
    assert found.notes == ["no paired differences: the test set of dense is not recorded"]
    assert "keep_rate.png" not in figures(found, False)  # one keep rate alone is no axis
    assert "keep_rate.png" in figures(found, True)


def test_what_takes_no_part_is_listed_with_the_reason(runs: Runs) -> None:
    for status in ("FAILED", "KILLED", "RUNNING"):
        runs.add("left out", "random", status=status, files=False)
    runs.add("left out", "cropr", ap=None, files=False)
    runs.add("left out", "gumbel", ap=math.nan, files=False, metrics={"test/dense/ap": math.nan})
    runs.add("left out", "dense", 1, 0.5)
    runs.add("left out", "dense", 1, 0.8)
    found = runs.compare("left out")
    assert [row.configuration.pooled[0] for row in found.rows] == [0.8]
    reasons = [entry.reason for entry in found.left_out]
    assert reasons[:4] == ["failed", "was stopped", "is not finished (RUNNING)", "has no metric test/pruned/ap"]
    assert reasons[4] == "test/pruned/ap is nan at step 0"
    assert re.fullmatch(r"dense-1-.* is newer, of the same configuration and seed", reasons[5])
    assert "left out: random-1-" in table(found)


def test_runs_without_a_seed_are_told_apart_by_their_checkpoint(runs: Runs) -> None:
    for name in ("a.pt", "b.pt"):
        runs.add("evaluations", "cropr", None, parameters={"checkpoint": name}, files=False)
    assert names(runs.compare("evaluations")) == ["cropr@0.7 checkpoint=a.pt", "cropr@0.7 checkpoint=b.pt"]


# --- what is not ranked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "change", "values", "paired"),
    [
        ("hardware", {"tags": {"hardware": "GPU B"}}, ("CPU A, 1 thread", "GPU B"), True),
        ("precision", {"tags": {"dtype": "bfloat16"}}, ("float32", "bfloat16"), True),
        ("windows per batch", {"tags": {"batch_size": "1"}}, ("8", "1"), True),
        ("test set", {"test_set": "4567"}, ("phantoms test-0123", "phantoms test-4567"), False),
        ("diameter (px)", {"parameters": {"diameter": 512}}, ("1024", "512"), True),
        ("window (px)", {"parameters": {"window_size": 512}}, ("256", "512"), True),
    ],
)
def test_runs_that_were_measured_otherwise_are_shown_and_not_ranked(
    runs: Runs, title: str, change: dict[str, Any], values: tuple[str, str], paired: bool
) -> None:
    experiment = f"differs in {title}"
    runs.add(experiment, "dense", ap=0.8)
    runs.add(experiment, "reg4pru", ap=0.9, shift=0.1, **change)
    found = runs.compare(experiment)
    (obstacle,) = found.obstacles
    first, second = names(found)
    assert (first.split(" ")[0], second.split(" ")[0]) == ("dense", "reg4pru@0.7")  # not by AP
    assert obstacle == f"{title} differs: {values[0]} ({first}); {values[1]} ({second})"
    assert {(row.rank, row.on_front, row.as_good_as_best) for row in found.rows} == {(None, False, None)}
    text = table(found)
    assert "NOT RANKED" in text
    assert obstacle in " ".join(text.split())
    assert "rank" not in text.splitlines()[2]
    assert (found.rows[1].difference is not None) == paired
    assert any("measured on another test set" in note for note in found.notes) != paired


def test_what_is_not_recorded_is_not_taken_for_equal(runs: Runs) -> None:
    for policy in ("dense", "cropr"):
        runs.add("unknown", policy, tags={"hardware": "not recorded"}, files=False)
    assert runs.compare("unknown").obstacles == ["hardware is not recorded in any of the runs"]


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_members_of_a_sweep_keep_their_names_and_the_sweep_gets_the_result(runs: Runs, tmp_path: Path) -> None:
    parent = runs.add("sweep", "dense", ap=None, files=False, tags={"baseline": "late"})
    for seed in (1, 2):
        runs.add("sweep", "dense", seed, tags={"mlflow.parentRunId": parent, "member": "early"})
    runs.add("sweep", "reg4pru", 1, tags={"mlflow.parentRunId": parent, "member": "late"})
    earlier = {"mlflow.parentRunId": "another", "member": "other", f"member_of.{parent}": "late"}
    runs.add("of another experiment", "reg4pru", 2, tags=earlier)  # found already done
    runs.add("sweep", "cropr")  # of no sweep
    result = invoke(runs, tmp_path, "--parent", parent)
    assert result.exit_code == 0, result.output
    found = runs.compare("", parent=parent)
    assert {row.configuration.name: row.configuration.seeds for row in found.rows} == {
        "early": ["1", "2"],
        "late": ["1", "2"],
    }
    assert found.baseline is not None
    assert found.baseline.name == "late"
    assert found.left_out == []
    assert f"kept in run {parent}, artifacts comparison/" in result.output
    store = Store(runs.uri)
    rows = store.table(parent, "comparison/comparison.csv")
    assert sorted(row["configuration"] for row in rows) == ["early", "late"]
    assert runs.compare("sweep").parent is None
    assert any(name.startswith("cropr") for name in names(runs.compare("sweep")))


def test_runs_of_a_sweep_that_are_not_found_are_named(runs: Runs) -> None:
    parent = runs.add("lost", "dense", ap=None, files=False)
    child = runs.add("lost", "dense", files=False, tags={"mlflow.parentRunId": parent, "member": "a"})
    with calm():
        from mlflow.tracking import MlflowClient

        MlflowClient(runs.uri).log_text(parent, f"member,run_id\na,{child}\nb,{'7' * 32}\nc,\n", "sweep.csv")
    lost = f"runs that the sweep names and that were not found: {'7' * 32}"
    assert lost in runs.compare("", parent=parent).notes
    narrowed = runs.compare("", parent=parent, filter_string="params.policy = 'dense'")
    assert not [note for note in narrowed.notes if "not found" in note]  # left out on purpose


@pytest.mark.parametrize("named", ["late", "gone"])
def test_the_baseline_of_a_sweep_is_a_member_whatever_it_is_called(runs: Runs, named: str) -> None:
    experiment = f"baseline {named}"
    parent = runs.add(experiment, "dense", ap=None, files=False, tags={"baseline": named})
    of_sweep = {"mlflow.parentRunId": parent}
    for decoder in ("skip", "eomt"):  # the member was changed between two calls, so members are no names
        tags = {**of_sweep, "member": "early"}
        runs.add(experiment, "cropr", parameters={"decoder": decoder}, tags=tags, files=False)
    runs.add(experiment, "reg4pru", tags={**of_sweep, "member": "late"}, files=False)
    found = runs.compare("", parent=parent)
    assert "late" not in names(found)
    note = "gone, which the sweep names as its baseline, is not one of these configurations"
    assert (found.baseline and found.baseline.policy, note in found.notes) == (
        ("reg4pru", False) if named == "late" else (None, True)
    )


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_tables_and_figures(runs: Runs, golden: Comparison, tmp_path: Path) -> None:
    result = invoke(runs, tmp_path, "--experiment", "golden", "--published")
    assert result.exit_code == 0, result.output
    assert table(golden) in result.output
    figures = ["throughput.png", "keep_rate.png", "precision_recall.png", "per_image.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["comparison.csv", "comparison.md", *figures])
    for name in figures:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10  # something is drawn
    with open(tmp_path / "comparison.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["configuration"] for row in rows] == names(golden)  # published rows are not among them
    assert float(rows[1]["difference_seeds_low"]) == pytest.approx(-0.3)
    assert (rows[0]["difference"], rows[2]["image_low"], rows[0]["rank"]) == ("", "", "1")
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| 2* | reg4pru@0.7 | 2 | 0.7900 ± 0.0141 |" in page
    assert "| -0.2000 [-0.2000, -0.2000] |" in page
    assert all(f"]({name})" in page for name in figures)
    assert "not measured here" in page
    assert "arXiv 2602.02163" in page


def all_metrics(**more: float | None) -> dict[str, float | None]:
    """metrics.json of a run on two data sets, in which every value tells where it stands."""
    found: dict[str, float | None] = {"parameters": 1775435.0, "efficiency": 0.9, "pruned/speedup": 1.5}
    for variant, value in (("dense", 0.5), ("pruned", 0.25)):
        found |= {f"{variant}/gflops": 100 * value, f"{variant}/images_per_second": 2 / value}
        found |= {f"{variant}/peak_memory_mib": 200.0}
        for middle, shift in (("", 0.0), ("dataset/CHASE_DB1/", 0.125), ("dataset/HRF/", 0.0625)):
            for end, more_or_less in (("", 0.0), ("_low", -0.125), ("_high", 0.125)):
                found |= {f"{variant}/{middle}{key}{end}": value + shift + more_or_less for key in ("ap", "dice")}
    return found | {"dataset/CHASE_DB1/images": 8.0, "dataset/HRF/images": 27.0, "pruned/auc": None} | more


def detailed(runs: Runs, policy: str, seed: int, values: Mapping[str, float | None], **options: Any) -> None:
    """A run in the experiment "detailed" with its metrics.json."""
    (runs.folder / "detailed").mkdir(exist_ok=True)
    identity = runs.add("detailed", policy, seed, files=False, **options)
    path = runs.folder / "detailed" / "metrics.json"
    path.write_text(json.dumps(values))
    with calm():
        from mlflow.tracking import MlflowClient

        MlflowClient(runs.uri).log_artifact(identity, str(path))


def test_every_test_set_has_its_table_and_speed_one_of_its_own(runs: Runs) -> None:
    detailed(runs, "reg4pru", 1, all_metrics(), ap=0.7)
    detailed(runs, "reg4pru", 2, all_metrics(**{"pruned/dataset/HRF/ap": 0.4375}), ap=0.7)
    detailed(runs, "dense", 1, all_metrics(), ap=0.6)
    u_net = {name: value for name, value in all_metrics().items() if not name.startswith(("pruned", "effic"))}
    more = {"parameters": {"preset": "BasicUNet"}, "metrics": {"test/dense/images_per_second": 1.0}}
    detailed(runs, "dense", 1, u_net | {"parameters": 1979009.0}, ap=0.5, **more)
    page = markdown(runs.compare("detailed"), [], False)
    tables = {part.split("\n")[0]: part for part in page.split("## ")[1:]}
    sets = ("CHASE_DB1 (8 images)", "HRF (27 images)", "phantoms")
    assert list(tables) == ["Speed and size", *(f"Accuracy on {name}" for name in sets)]
    speed = tables["Speed and size"]
    assert "| 1 | reg4pru@0.7 | 1,775,435 | 4.00 | 8.00 | 1.50 | 2.00 | 0.90 | 50.0 / 25.0 | 200 / 200 |" in speed
    assert "| 1,979,009 | 4.00 | – | – | – | – | 50.0 | 200 |" in speed
    hrf = tables["Accuracy on HRF (27 images)"]
    # two seeds: 0.3125 and 0.4375
    assert (
        "| 1 | reg4pru@0.7 | pruned | 0.3750 ± 0.0884 [0.188, 0.438] | 0.3125 ± 0.0000 [0.188, 0.438] | – | – |" in hrf
    )
    assert "| 1 | reg4pru@0.7 | dense | 0.5625 ± 0.0000 [0.438, 0.688] |" in hrf
    assert hrf.count("| dense |") == 3
    assert hrf.count("| pruned |") == 1  # what was trained dense and what has no tokens stand there once
    assert "| 0.2500 ± 0.0000 [0.125, 0.375] |" in tables["Accuracy on phantoms"]
    assert "± sd over seeds" in page.split("## ")[-1]


def test_a_figure_of_an_earlier_comparison_does_not_stay(runs: Runs, tmp_path: Path) -> None:
    for name in ("per_image.png", "precision_recall.png", "mine.png"):
        (tmp_path / name).touch()
    runs.add("without_files", "reg4pru", 1, files=False)
    runs.add("without_files", "dense", 1, files=False)
    assert invoke(runs, tmp_path, "--experiment", "without_files").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["mine.png", "throughput.png"]


def test_numbers_beside_points_cover_nothing() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    points = [(1 + 0.001 * number, 0.8) for number in range(12)] + [(1.5, 0.9)]
    axes.scatter(*zip(*points, strict=True))
    figure.draw_without_rendering()
    _write_numbers(axes, points, range(1, 14))
    places = [axes.transData.transform(p) * 72 / figure.dpi for p in points]
    written = [np.array(place) + text.xyann for place, text in zip(places, axes.texts, strict=True)]
    assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 14)]
    gaps = [np.hypot(*(a - b)) for a, b in itertools.combinations(written, 2)]
    gaps += [np.hypot(*(a - b)) for a in written for b in places]
    assert min(gaps) > 10


def test_published_rows_are_those_of_the_benchmark() -> None:
    rows = {row["arm"]: row for row in published()["rows"]}
    assert len(rows) == len(published()["rows"])
    for ours, theirs in {
        "dense": "dense",
        "soft_mask": "soft_mask(hard_eval)",
        "gumbel_penult": "gumbel_penult",
        "random_route": "random_route(Reg4Pru)",
        "aux_route_penult": "aux_route_penult(CROPR)",
    }.items():
        (line,) = [each for each in PUBLISHED if each.arm == theirs]
        assert (rows[ours]["images_per_second"], rows[ours]["gflops"]) == (line.images_per_second, line.gflops)
    assert all(0 < row[name] < 1 for row in rows.values() for name in ("dice", "precision", "sensitivity"))


def test_a_real_training_is_read(training: Path, tmp_path: Path) -> None:
    store = sqlite_uri(training.parent / "mlflow.db")
    result = CliRunner().invoke(app, ["compare", "--tracking-uri", store, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    expected = json.loads((training / "metrics.json").read_text())
    with open(tmp_path / "out" / "comparison.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["configuration"] == "reg4pru@0.7"
    assert float(row["mean"]) == pytest.approx(expected["pruned/ap"])
    assert float(row["unpruned_mean"]) == pytest.approx(expected["dense/ap"])
    assert float(row["images_per_second"]) == pytest.approx(expected["pruned/images_per_second"])


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", "--output", "out"])
    assert result.exit_code == 1
    path = tmp_path / "runs" / "mlflow.db"
    assert result.output == f"error: no MLflow store: {path} does not exist; give --tracking-uri URI of the store\n"
    assert not path.exists()


def test_a_file_is_no_store_and_a_metric_has_a_plain_name(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    for given, message in (
        (["--tracking-uri", str(tmp_path / "mlflow.db")], "give --tracking-uri sqlite:///"),
        (["--metric", "per_image/hd95_px"], "give the name alone"),
        (["--metric", "ap_low"], "give the name alone"),
    ):
        result = CliRunner().invoke(app, ["compare", "--output", str(tmp_path / "out"), *given])
        assert result.exit_code == 1
        assert message in result.output


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("none", 'the tracking URI is "none"; give --tracking-uri URI of a server or store'),
        ("http://me:secret@127.0.0.1:9", "MLflow at http://me:***@127.0.0.1:9 cannot be used (ConnectionError"),
    ],
)
def test_a_store_that_cannot_be_read_is_named(uri: str, message: str) -> None:
    with pytest.raises(ComparisonError, match=re.escape(message)):
        Store(uri)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiment": "gold"}, r"has no experiment 'gold'; there are: .*golden"),
        ({"filter_string": "params.policy = 'x'"}, r"no run matches: experiment 'golden', filter .*policy = 'x'"),
        ({"filter_string": "decoder is eomt"}, r"does not understand --filter 'decoder is eomt'"),
        ({"parent": "0" * 32}, r"has no run '0{32}' for --parent .*run id that reg4pru sweep printed"),
        ({"metric": "gflops"}, r"--metric must be a metric of accuracy such as dice, got 'gflops'"),
        (
            {"baseline": "dens"},
            r"no configuration is called 'dens'; --baseline can be one of\n  dense\n  dynamicvit@0.7",
        ),
        (
            {"metric": "dize"},
            r"none of the 5 runs that match has 'dize' of a test set; --metric can be .*ap.*\n  dense-1-",
        ),
    ],
)
def test_what_is_not_there_is_said_with_what_there_is(runs: Runs, options: dict[str, str], message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        runs.compare(**{"experiment": "golden", **options})


def test_errors_reach_the_command_line(runs: Runs, tmp_path: Path) -> None:
    result = invoke(runs, tmp_path, "--experiment", "golden", "--baseline", "none")
    assert result.exit_code == 1
    assert result.output.startswith("error: no configuration is called 'none'")
