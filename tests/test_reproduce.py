"""``reg4pru reproduce``: the evaluations that separate the causes, on real networks; the tables, by hand."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from networks import small_network
from reg4pru_monai.cli import app
from reg4pru_monai.fundus.phantom import write_phantoms
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.reproduce.evaluate import evaluate_all, evaluate_run
from reg4pru_monai.reproduce.figures import draw_keep_rates
from reg4pru_monai.reproduce.report import (
    accuracy_table,
    course_table,
    other_table,
    selection_table,
    step_table,
    text,
    write,
)
from reg4pru_monai.reproduce.results import Results, estimate
from reg4pru_monai.reproduce.trainings import Run, check_comparable, find_runs
from reg4pru_monai.reproduce.variants import ASKED, VARIANTS, final_variants, keep_rate_variants, pruning
from reg4pru_monai.tracking_store import JOURNAL_NAME, append
from reg4pru_monai.weights import load_checkpoint
from runs import run

SETTINGS = {"keep_rate": 0.7, "stages": None, "seed": 42}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, phantom_set: Path) -> Path:
    """Two trainings, dense and dynamicvit as published, of two epochs each."""
    folder = tmp_path_factory.mktemp("reproduce")
    common = {"dataset_dir": str(phantom_set), "decoder": "eomt", "keep_epochs": [1, 2]}
    run("train", output_dir=str(folder / "dense"), policy="dense", **common)
    published = {"policy": "dynamicvit", "policy_options": {"keep_logit": 0.0}}
    run("train", output_dir=str(folder / "published"), **published, **common)
    return folder


# --- the trainings


def test_the_average_weights_of_chosen_epochs_are_kept(trained: Path) -> None:
    folder = trained / "published" / "checkpoints"
    first, last = (load_checkpoint(folder / f"epoch_000{epoch}.pt") for epoch in (1, 2))
    complete = load_checkpoint(folder / "last.pt")
    assert (first["epoch"], last["epoch"], last["configuration"]) == (1, 2, complete["configuration"])
    assert all(torch.equal(value, complete["ema"][name]) for name, value in last["network"].items())
    assert not all(torch.equal(value, first["network"][name]) for name, value in last["network"].items())


def test_trainings_are_found_and_named_by_what_they_are(trained: Path) -> None:
    found = find_runs(trained)
    assert [(one.decoder, one.arm, one.seed) for one in found] == [
        ("eomt", "dense", 42),
        ("eomt", "dynamicvit, published", 42),
    ]
    assert found[1].epochs == [1, 2]


def test_artifacts_and_trainings_under_way_are_no_finished_trainings(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "dense", tmp_path / "artifacts", ignore=shutil.ignore_patterns(JOURNAL_NAME))
    resumed = shutil.copytree(trained / "published", tmp_path / "published")
    shutil.copytree(trained / "dense", tmp_path / "dense")
    assert [one.folder.name for one in find_runs(tmp_path)] == ["dense", "published"]
    append(resumed / JOURNAL_NAME, {"run": "published", "time": 0, "kind": "start", "resumed": True})
    assert [one.folder.name for one in find_runs(tmp_path)] == ["dense"]
    append(resumed / JOURNAL_NAME, {"run": "published", "time": 0, "kind": "end", "status": "KILLED"})
    assert [one.folder.name for one in find_runs(tmp_path)] == ["dense"]


def test_arms_are_told_apart_by_all_options() -> None:
    def arm(**options: Any) -> str:
        return Run(Path(), {"policy": "reg4pru", "policy_options": options}).arm

    assert arm() == "reg4pru"
    assert arm(keep_logit=0) == arm(keep_logit=0.0) == "reg4pru, published"
    assert arm(route_keep=0.7, keep_logit=0.0) == "reg4pru, published, route_keep 0.7"


def test_a_folder_without_trainings(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["reproduce", str(tmp_path)])
    assert result.exit_code == 1
    assert "no finished training below it; run the sweep of the experiment first" in result.output


def test_a_training_whose_last_weights_were_not_kept(trained: Path) -> None:
    (one, *_) = find_runs(trained)
    with pytest.raises(ValueError, match=r"were not kept; train with --keep_epochs \[3\]"):
        _ = Run(one.folder, one.settings | {"max_epochs": 3}).epochs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "the same arm and"),
        ({"seed": 43, "crop_size": 64}, "with crop_size 64, .* with 48; only trainings that differ in"),
        *(({"seed": 43, key: 0}, f"with {key} 0, ") for key in ("learning_rate", "stages", "reactivate")),
        *(({"seed": 43, key: 0}, f"with {key} 0, ") for key in ("normalization", "window_size", "validation_fraction")),
        ({"seed": 43, "optimizer": "$other()"}, r"with optimizer \$other"),
    ],
)
def test_trainings_that_cannot_be_compared(trained: Path, change: dict[str, Any], message: str) -> None:
    (one, *_) = find_runs(trained)
    with pytest.raises(ValueError, match=message):
        check_comparable([one, Run(one.folder / "other", one.settings | change)])


def test_a_copy_of_the_data_set_is_the_same_data(trained: Path, phantom_set: Path, tmp_path: Path) -> None:
    (one, *_) = find_runs(trained)
    copy = str(shutil.copytree(phantom_set, tmp_path / "copy"))
    check_comparable([one, Run(tmp_path, one.settings | {"seed": 43, "dataset_dir": copy, "data": copy})])
    other = str(write_phantoms(tmp_path / "other", train=2, test=1, size=112, seed=1))
    with pytest.raises(ValueError, match=r"with dataset_dir .*other"):
        check_comparable([one, Run(tmp_path, one.settings | {"seed": 43, "dataset_dir": other, "data": other})])


# --- variants


@pytest.mark.parametrize("policy", ["dynamicvit", "reg4pru", "cropr"])
def test_variants_of_a_policy(policy: str) -> None:
    found = final_variants(small_network(policy).eval())
    assert list(found) == [name for name in VARIANTS if name not in ("noisy", "soft") or policy != "cropr"]
    assert not any(variant.training or variant.encoder.policy.training for variant in found.values())


def test_a_dense_network_is_pruned_by_selectors_that_were_never_trained() -> None:
    network = small_network("dense").eval()
    before = torch.get_rng_state()
    first, second = (pruning(network, SETTINGS).encoder.policy for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert [(stage.block, stage.keep) for stage in first.stages] == [(1, 0.7), (3, 0.7), (5, 0.7)]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    learned = small_network("dynamicvit")
    assert pruning(learned, SETTINGS) is learned


def test_keep_rates_and_single_stages() -> None:
    found = keep_rate_variants(small_network("reg4pru").eval())
    rates = {name: [stage.keep for stage in variant.encoder.policy.stages] for name, variant in found.items()}
    assert rates["pruned 0.3"] == [0.3, 0.3, 0.3]
    assert rates["pruned before block 3"] == [1.0, 0.5, 1.0]
    assert len(rates) == 6


# --- evaluation


def test_everything_from_two_trainings(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(trained, tmp_path / "runs")
    shutil.copytree(trained / "dense", folder / "artifacts", ignore=shutil.ignore_patterns(JOURNAL_NAME))  # MLflow's
    result = CliRunner().invoke(app, ["reproduce", str(folder)])
    assert result.exit_code == 0, result.output
    rows = evaluate_all(folder)
    names = {"dense": 5 + 1 + 6, "dynamicvit, published": 7 + 2 + 6}
    assert {arm: sum(row["arm"] == arm for row in rows) for arm in names} == names
    metrics = json.loads((folder / "published" / "metrics.json").read_text())
    final = {row["variant"]: row for row in rows if row["arm"] != "dense" and row["epoch"] == 2}
    for name in ("dense", "pruned"):  # as the training found them where the last weights are the best
        if load_checkpoint(folder / "published" / "checkpoints" / "best.pt")["epoch"] == 2:
            assert final[name]["ap"] == pytest.approx(metrics[f"{name}/ap"], abs=1e-6)
        assert final[name]["gflops"] == pytest.approx(metrics[f"{name}/gflops"])
    assert final["random"]["gflops"] < final["pruned"]["gflops"] < final["dense"]["gflops"] < final["soft"]["gflops"]
    assert final["pruned"]["kept"] == pytest.approx(0.343, abs=0.05)
    assert 0 <= final["pruned"]["vessels_kept"] <= 1
    report = folder / "report"
    assert {path.name for path in report.iterdir()} == {
        *("reproduce.md", "reproduce.csv", "variants.png", "keep_rates.png", "course.png")
    }
    with open(report / "reproduce.csv", encoding="utf-8") as file:
        assert [float(row["ap"]) for row in csv.DictReader(file)] == [row["ap"] for row in rows]

    assert sum(row["arm"] == "dense" for row in evaluate_all(folder, curves=False)) == 5

    # A second call reads what the first one found.
    monkeypatch.setattr("reg4pru_monai.reproduce.evaluate.load_pipeline", None)
    assert evaluate_all(folder) == rows


def test_kept_rows_are_made_again_where_they_are_of_something_else(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "published", tmp_path / "published")
    (one,) = find_runs(tmp_path)
    calls: list[int] = []

    def evaluated(*_: Any) -> list[dict[str, Any]]:
        calls.append(len(calls))
        return [{"ap": len(calls)}]

    monkeypatch.setattr("reg4pru_monai.reproduce.evaluate._evaluated", evaluated)
    kept = tmp_path / "published" / "variants" / "final_0002.json"
    assert evaluate_run(one, False) == evaluate_run(one, False) == [{"ap": 1}]
    kept.write_text(json.dumps([{"ap": 7}]))  # rows that say nothing of their origin
    assert evaluate_run(one, False) == evaluate_run(one, False) == [{"ap": 2}]
    weights = tmp_path / "published" / "checkpoints"
    shutil.copy(weights / "epoch_0001.pt", weights / "epoch_0002.pt")  # trained again
    assert evaluate_run(one, False) == evaluate_run(one, False) == [{"ap": 3}]
    other = Run(one.folder, one.settings | {"window_size": 48})
    assert evaluate_run(other, False) == [{"ap": 4}]
    monkeypatch.setattr("reg4pru_monai.reproduce.evaluate.__version__", "another")
    assert evaluate_run(other, False) == evaluate_run(other, False) == [{"ap": 5}]
    monkeypatch.setitem(ASKED, "final", ["dense"])
    assert evaluate_run(other, False) == evaluate_run(other, False) == [{"ap": 6}]


def test_keeping_all_softly_is_dense_through_the_whole_path(trained: Path) -> None:
    pipeline = load_pipeline(trained / "published" / "checkpoints" / "epoch_0002.pt", device="cpu", window_size=64)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = pipeline.network
    with torch.inference_mode():
        every = network.with_soft_pruning(above=-math.inf)(image)
        assert torch.allclose(every, network.dense()(image), atol=1e-4)


# --- tables, by hand


def row(arm: str, variant: str, seed: int, ap: float, epoch: int = 8) -> dict[str, Any]:
    known = {
        "decoder": "eomt",
        "arm": arm,
        "seed": seed,
        "epoch": epoch,
        "keep_rate": 0.7,
        "variant": variant,
        "ap": ap,
    }
    gflops = 60.0 if variant == "dense" else 40.0
    return known | {"speedup": 1.5, "kept": 0.34, "vessels_kept": 0.5, "gflops": gflops}


def rows_by_hand() -> list[dict[str, Any]]:
    found = []
    for seed in (42, 43, 44):
        shift = (seed - 43) / 100
        found += [row("dense", name, seed, ap) for name, ap in (("dense", 0.8), ("pruned", 0.6))]
        values = {
            "dense": 0.75,
            "noisy": 0.745,
            "soft": 0.74,
            "masked": 0.73,
            "returned": 0.7,
            "pruned": 0.65,
            "random": 0.5,
        }
        found += [row("dynamicvit", name, seed, ap + shift) for name, ap in values.items()]
    return [*found, row("dynamicvit", "pruned", 42, 0.55, epoch=4), row("dynamicvit", "pruned 0.3", 42, 0.4)]


def test_accuracy_by_hand() -> None:
    head, dense, pruned = accuracy_table(Results(rows_by_hand()))
    assert head == ["decoder", "arm", "seeds", *VARIANTS, "speed-up", "FLOP ratio"]
    assert dense[3:] == ["0.8000 ± 0.0000", "", "", "", "", "0.6000 ± 0.0000", "", "1.50×", "1.50×"]
    assert pruned[:4] == ["eomt", "dynamicvit", "3", "0.7500 ± 0.0100"]


def test_steps_by_hand_add_up() -> None:
    _, dense, pruned = step_table(Results(rows_by_hand()))
    # The mean is .65 - .80; sd .01 over three seeds, t(2, .975) = 4.303, half-width 4.303 * .01 / sqrt(3) = .0248.
    assert pruned[3] == "-0.0500 [-0.0748, -0.0252]"
    assert [cell.split()[0] for cell in pruned[3:]] == [
        "-0.0500",
        "-0.0200",
        "-0.0300",
        "-0.0500",
        "-0.1000",
        "-0.1500",
    ]
    assert dense[3:] == ["", "", "", "", *["-0.2000 [-0.2000, -0.2000]"] * 2]


def test_selection_by_hand() -> None:
    _, dense, pruned = selection_table(Results(rows_by_hand()))
    assert dense[2:] == ["34 %", "50 %", "", ""]
    assert pruned[2:] == ["34 %", "50 %", "34 %", "50 %"]


def test_course_and_other_by_hand() -> None:
    results = Results(rows_by_hand())
    assert course_table(results)[1] == ["eomt", "dynamicvit", "pruned", "0.5500", "0.6400"]
    assert other_table(results)[2] == ["eomt", "dynamicvit", "0.4000"]
    assert results.course("eomt", "dense", "soft") == {}


def test_no_interval_below_three_seeds() -> None:
    assert estimate([0.5]).mean == 0.5
    assert math.isnan(estimate([0.5, 0.6]).low)
    found = estimate([0.5, 0.6, 0.7])
    assert (found.low, found.high) == pytest.approx(
        (0.6 - 4.3027 * 0.1 / 3**0.5, 0.6 + 4.3027 * 0.1 / 3**0.5), abs=1e-4
    )


def test_one_evaluation_of_one_arm_is_written_without_curves(tmp_path: Path) -> None:
    written = write(tmp_path, [row("dynamicvit", name, 42, 0.5) for name in ("dense", "pruned")])
    assert {path.name for path in written} == {"reproduce.md", "reproduce.csv", "variants.png"}
    assert "0.5000" in (tmp_path / "reproduce.md").read_text()


def test_no_figure_of_an_earlier_call_stays(tmp_path: Path) -> None:
    rows = rows_by_hand()
    assert {path.name for path in write(tmp_path, rows)} >= {"course.png", "keep_rates.png"}
    write(tmp_path, [row for row in rows if row["epoch"] == 8 and row["variant"] != "pruned 0.3"])
    assert {path.name for path in tmp_path.iterdir()} == {"reproduce.md", "reproduce.csv", "variants.png"}


@pytest.mark.parametrize(("keep_rate", "places"), [(0.7, [0.3, 0.7, 1.0]), ([0.9, 0.7, 0.5], [0.3, 1.0])])
def test_places_of_keep_rates(keep_rate: float | list[float], places: list[float]) -> None:
    rows = [row("reg4pru", name, 42, 0.5) | {"keep_rate": keep_rate} for name in ("dense", "pruned", "pruned 0.3")]
    figure = draw_keep_rates(Results(rows))
    assert figure is not None
    assert list(figure.axes[0].lines[0].get_xdata()) == places


def test_a_decoder_without_a_dense_arm_is_named() -> None:
    rows = rows_by_hand()
    assert "No dense arm" not in text(Results(rows))
    skip = row("reg4pru", "dense", 42, 0.7) | {"decoder": "skip"}
    pruned = row("reg4pru", "pruned", 42, 0.6) | {"decoder": "skip"}
    assert "No dense arm was trained with the decoder skip: *learning* and *in all*" in text(
        Results([*rows, skip, pruned])
    )
