"""The command that measures a checkpoint and puts it into a bundle, and the model card that it writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from reg4pru_monai.cli import app
from reg4pru_monai.fundus import detect_fov
from reg4pru_monai.fundus.datasets import datalist
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.histograms import score_histogram
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.metrics import compute_confusion, compute_dice
from reg4pru_monai.release import degradations, measuring, run
from reg4pru_monai.release.bundle_files import CARD, FACTS, LICENCES, read_comments, read_facts, released_fields
from reg4pru_monai.release.card import model_card
from reg4pru_monai.release.card_tables import interval, number
from reg4pru_monai.release.data_sets import data_license, data_source
from reg4pru_monai.release.kept import Kept
from reg4pru_monai.release.photographs import quality_against_dice
from reg4pru_monai.release.pictures import FAILURE_BYTES, save_contact_sheet, save_failure, worst
from reg4pru_monai.release.run import ReleaseError, check_half_precision, rounded
from reg4pru_monai.release.sources import (
    inherited_threshold,
    locate,
    open_data_sets,
    select,
    training_facts,
    training_folders,
    training_seconds,
)
from reg4pru_monai.released import WEIGHTS, sha256
from reg4pru_monai.runtime import ConfigurationError
from reg4pru_monai.weights import blend_checkpoints, load_checkpoint
from runs import BUNDLE

SCHEMA = Path(__file__).parent / "data" / "meta_schema_20240725.json"


@pytest.fixture(scope="module")
def data(training: Path) -> Path:
    return training.parent / "phantoms-4-2-112-0"


@pytest.fixture(scope="module")
def released(training: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """(bundle, folder of kept steps, what was said) of a release of the tiny training."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(BUNDLE, folder / "bundle")
    said: list[str] = []
    run.release(training, [data], folder / "bundle", "cpu", folder / "work", say=said.append)
    return folder / "bundle", folder / "work", said


# --- what is committed


def test_the_model_card_is_what_the_facts_say() -> None:
    facts = read_facts(BUNDLE)
    assert (BUNDLE / CARD).read_text(encoding="utf-8") == model_card(facts, read_comments(BUNDLE))
    assert (BUNDLE / LICENCES).read_text(encoding="utf-8") == data_license(facts)


def test_the_metadata_agree_with_the_facts() -> None:
    metadata, facts = json.loads((BUNDLE / "configs" / "metadata.json").read_text()), read_facts(BUNDLE)
    fields = released_fields(facts)
    assert fields == {key: metadata[key] for key in fields}
    assert facts["weights"]["sha256"] == sha256(BUNDLE / WEIGHTS)
    configuration = load_checkpoint(BUNDLE / WEIGHTS)["configuration"]
    assert configuration["threshold"] == facts["threshold"]["value"]
    assert {key: configuration[key] for key in ("preset", "policy", "decoder", "diameter")} == {
        key: facts["model"][key] for key in ("preset", "policy", "decoder", "diameter")
    }


def test_pictures_of_the_card_are_small() -> None:
    facts = read_facts(BUNDLE)
    for failure in facts["failures"]:
        assert (BUNDLE / "docs" / failure["picture"]).stat().st_size <= FAILURE_BYTES
    assert (BUNDLE / "docs" / facts["contact_sheet"]).stat().st_size <= 1.5e6


def test_facts_name_no_machine() -> None:
    text = (BUNDLE / FACTS).read_text()
    for word in ('"/', "/home", "/tmp", "/root", "hostname"):
        assert word not in text


# --- a release


def test_a_release_fills_the_bundle(released: tuple[Path, Path, list[str]], training: Path, data: Path) -> None:
    bundle, work, _ = released
    facts = read_facts(bundle)
    assert facts["weights"] == {
        "file": WEIGHTS,
        "bytes": (bundle / WEIGHTS).stat().st_size,
        "sha256": sha256(bundle / WEIGHTS),
    }
    half = load_checkpoint(bundle / WEIGHTS)
    assert {v.dtype for v in half["network"].values() if v.is_floating_point()} == {torch.float16}
    threshold = facts["threshold"]["value"]
    assert half["configuration"]["threshold"] == threshold == load_pipeline(bundle / WEIGHTS, "cpu").threshold
    assert facts["results"].keys() == {data.name}
    own = facts["results"][data.name]
    written = json.loads((work / data.name / "metrics.json").read_text())
    assert own["metrics"]["pruned/ap"] == pytest.approx(written["pruned/ap"], abs=1e-6)
    assert own["original"]["pruned"]["ap"] == pytest.approx(written["pruned/ap"], abs=1e-3)
    assert own["original"]["dense"]["ap"] == pytest.approx(written["dense/ap"], abs=1e-3)
    assert (own["images"], own["of_images"], own["subjects"]) == (2, 2, 2)
    assert facts["training"]["parts"] == {
        "train": {"images": 3, "subjects": 3},
        "validation": {"images": 1, "subjects": 1},
    }
    assert (facts["training"]["epochs"], facts["training"]["steps"]) == (2, 2)
    assert 0 < facts["training"]["seconds"] < 600
    assert facts["training"]["settings"]["crop_size"] == 48
    (robust,) = facts["robustness"].values()
    told = {each.name for each in degradations.DEGRADATIONS if each.tells_angle}  # phantoms have no angle to forget
    assert robust["rows"].keys() == told
    assert robust["rows"]["blur"]["clean"]["ap"] == pytest.approx(written["pruned/ap"], abs=1e-6)
    (flips,) = facts["flips"].values()
    assert flips["plain"]["ap"] == pytest.approx(written["pruned/ap"], abs=1e-6)
    assert flips["cost"] > 1.5
    (speed,) = facts["speed"]
    assert speed["data_set"] == data.name
    assert ("Not to be relied on" in model_card(facts, {})) == (speed["busy"] > speed["processors"])
    assert len(facts["failures"]) == 2
    for failure in facts["failures"]:
        assert read_image(bundle / "docs" / failure["picture"]).shape[1] == 1000
    assert read_image(bundle / "docs" / facts["contact_sheet"]).shape == (262 + 22, 900, 3)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    assert metadata["eval_metrics"][f"{data.name}_dice"] == pytest.approx(own["metrics"]["pruned/dice"], abs=1e-4)
    card = (bundle / CARD).read_text()
    assert card == model_card(facts, {})
    assert interval(own["metrics"], "pruned/ap") in card
    assert "| energy | not measured |" in card
    assert "| started from | scratch |" in card
    assert str(training) not in json.dumps(facts)


def test_the_card_tells_of_the_training_that_weights_were_started_from(
    released: tuple[Path, Path, list[str]], training: Path, data: Path, tmp_path: Path
) -> None:
    tuned = shutil.copytree(training, tmp_path / "tuned")
    path = tuned / "configuration.yaml"
    settings = {**yaml.safe_load(path.read_text()), "start_from": str(training / "checkpoints" / "best.pt")}
    path.write_text(yaml.safe_dump(settings))
    found = training_facts(locate(tuned), [data])
    own = ("epochs", "best_epoch", "validation_ap", "steps", "seconds", "blended")
    assert found["before"] == {"policy": "reg4pru", "before": None, **{key: found[key] for key in own}}
    assert "start_from" not in found["settings"]
    facts = {**read_facts(released[0]), "training": found}
    assert "| started from | weights trained with policy reg4pru; epochs: 2, " in model_card(facts, {})
    assert "optimiser steps: 2; time: " in model_card(facts, {})
    path.write_text(yaml.safe_dump({**settings, "start_from": str(released[0] / WEIGHTS)}))
    weights = training_facts(locate(tuned), [data])["before"]  # of a bundle, whose facts tell of its training
    assert weights == {**rounded(found["before"]), "before": read_facts(released[0])["training"]["before"]}
    chain = {**facts["training"], "before": {**weights, "before": {**weights, "policy": "dense"}}}
    assert "; these from weights trained with policy dense; " in model_card({**facts, "training": chain}, {})
    assert f"weights of epoch {found['best_epoch']} (best validation AP); validation AP " in model_card(facts, {})
    last = training_facts(locate(tuned / "checkpoints" / "last.pt"), [data])
    assert "| epochs | 2, weights of epoch 2 |" in model_card({**facts, "training": last}, {})
    mixed = tuned / "checkpoints" / "blended.pt"
    blend_checkpoints(tuned / "checkpoints" / "best.pt", tuned / "checkpoints" / "last.pt", mixed, 0.25)
    blended = training_facts(locate(mixed), [data])
    assert blended["blended"] == {"share": 0.25, "start_sha256": sha256(tuned / "checkpoints" / "last.pt")}
    row = f"| epochs | 2, weights of epoch {found['best_epoch']}, blended: 25% of the weights that it started from |"
    assert row in model_card({**facts, "training": blended}, {})


def test_a_training_that_held_nothing_out_takes_the_threshold_of_the_weights_before(
    released: tuple[Path, Path, list[str]], training: Path, data: Path, tmp_path: Path
) -> None:
    """That nothing was held out is all in the configuration: checkpoint and journal are those of the fixture."""
    every = shutil.copytree(training, tmp_path / "all")
    path = every / "configuration.yaml"
    settings = {**yaml.safe_load(path.read_text()), "validation_fraction": 0}
    before, bundle = (shutil.copytree(released[0], tmp_path / name) for name in ("before", "bundle"))
    facts = read_facts(before)
    facts["threshold"]["value"] = 0.37  # another than this training would choose
    (before / FACTS).write_text(json.dumps(facts))
    for started in (None, str(training / "checkpoints" / "best.pt")):
        path.write_text(yaml.safe_dump({**settings, "start_from": started}))
        with pytest.raises(ConfigurationError, match=r"held nothing out .* did not start from released weights"):
            run.release(every, [data], bundle, "cpu", tmp_path / "refused", say=lambda _: None)
    path.write_text(yaml.safe_dump({**settings, "start_from": str(before / WEIGHTS)}))
    found = run.release(every, [data], bundle, "cpu", tmp_path / "work", limit=1, say=lambda _: None)
    assert found["threshold"] == {**facts["threshold"], "inherited": True}
    assert load_pipeline(bundle / WEIGHTS, "cpu").threshold == 0.37
    assert found["training"]["parts"] == {"train": {"images": 4, "subjects": 4}}
    card = " ".join((bundle / CARD).read_text().split())
    assert (
        "1 of the training photographs, of 1 people, were held out until recipe and threshold had been chosen" in card
    )
    assert "The threshold 0.37 is that of the weights before" in card
    (before / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes())  # now the facts are of others
    with pytest.raises(ConfigurationError, match="did not start from released weights"):
        inherited_threshold(every)
    again = run.release(every, [data], bundle, "cpu", tmp_path / "work", limit=1, say=lambda _: None)
    assert (again["threshold"], again["training"]) == (found["threshold"], found["training"])
    assert found["training"]["before"]["before"] == facts["training"]["before"]


def test_an_interrupted_release_goes_on(
    released: tuple[Path, Path, list[str]], training: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, work, said = released
    steps = {line.split(":")[0] for line in said if ":" in line}
    assert {"threshold", f"accuracy-{data.name}", f"robustness-{data.name}", f"speed-cpu-{data.name}"} <= steps
    shutil.copytree(work, tmp_path / "work")
    (tmp_path / "work" / f"flips-{data.name}.json").write_text("{")
    again: list[str] = []
    monkeypatch.setattr(run, "measure_speed", pytest.fail)  # nothing else is to be measured again
    facts = run.release(training, [data], bundle, "cpu", tmp_path / "work", say=again.append)
    made = {line.split(" …")[0] for line in again if line.endswith("…")}
    assert made == {f"flips-{data.name}"}
    assert facts == read_facts(bundle)


def test_pictures_that_cannot_be_drawn_leave_the_earlier_ones(
    released: tuple[Path, Path, list[str]], training: Path, data: Path, tmp_path: Path
) -> None:
    bundle, work, _ = (shutil.copytree(each, tmp_path / each.name) for each in (*released[:2], data))
    before = {each.name: each.read_bytes() for each in (bundle / "docs").iterdir() if each.is_file()}
    next((work / data.name / "overlays").iterdir()).unlink()
    with pytest.raises(FileNotFoundError):
        run.release(training, [data], bundle, "cpu", work, say=lambda _: None)
    assert {each.name: each.read_bytes() for each in (bundle / "docs").iterdir() if each.is_file()} == before


def test_nothing_is_released_where_half_precision_changes_the_result(
    released: tuple[Path, Path, list[str]], training: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, work, _ = released
    shutil.copytree(work, tmp_path / "work")
    path = tmp_path / "work" / f"original-{data.name}.json"
    known = json.loads(path.read_text())
    known["result"]["dense"]["ap"] += 0.002
    path.write_text(json.dumps(known))
    before = {each: each.read_bytes() for each in bundle.rglob("*") if each.is_file()}
    arguments = ["release", str(training), "--data", str(data), "--bundle", str(bundle), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--work", str(tmp_path / "work")])
    assert result.exit_code == 1
    assert "in half precision" in result.output
    assert {each: each.read_bytes() for each in bundle.rglob("*") if each.is_file()} == before


def test_the_largest_difference_of_half_precision() -> None:
    original = {"pruned": {"ap": 0.8}}
    check_half_precision("HRF", {"pruned/ap": 0.8009}, original)
    with pytest.raises(ReleaseError, match=r"HRF: AP of the pruned network is 0\.7985 .* and 0\.8000 as trained, more"):
        check_half_precision("HRF", {"pruned/ap": 0.7985}, original)


def test_the_card_is_made_anew_with_comments(released: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(released[0], tmp_path / "bundle")
    failure = read_facts(tmp_path / "bundle")["failures"][0]
    name = f"{failure['data_set']} {failure['photograph']}"
    (tmp_path / "bundle" / "docs" / "comments.json").write_text(json.dumps({name: "A reflex."}))
    result = CliRunner().invoke(app, ["card", "--bundle", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    assert f"**{name}**, Dice {failure['dice']:.3f}. A reflex." in (tmp_path / "bundle" / CARD).read_text()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("facts.json", None, r"facts\.json does not exist; reg4pru release writes it"),
        ("facts.json", "{", r"facts\.json: not readable .*; reg4pru release writes it anew"),
        ("comments.json", "[]", r'comments\.json: must be JSON such as \{"HRF 07_dr": "\.\.\."\}'),
    ],
)
def test_a_card_without_its_sources_says_what_is_wrong(
    file: str, text: str | None, message: str, tmp_path: Path
) -> None:
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    path = tmp_path / "bundle" / "docs" / file
    path.write_text(text) if text else path.unlink(missing_ok=True)
    result = CliRunner().invoke(app, ["card", "--bundle", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    read = read_facts if file == "facts.json" else read_comments
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path / "bundle")


# --- sources


def test_a_checkpoint_alone_is_not_released(tmp_path: Path, training: Path, data: Path) -> None:
    shutil.copy(training / "checkpoints" / "best.pt", tmp_path / "best.pt")
    with pytest.raises(ConfigurationError, match=r"configuration\.yaml does not exist; give the --output_dir"):
        locate(tmp_path / "best.pt")
    with pytest.raises(ConfigurationError, match=r"best\.pt does not exist"):
        locate(tmp_path)
    assert locate(training / "checkpoints" / "last.pt").run == training
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        run.release(training, [data], tmp_path, work=tmp_path / "work")


def test_the_data_of_the_training_are_found_where_they_are_now(tmp_path: Path) -> None:
    run_folder, here = tmp_path / "run", tmp_path / "here" / "HRF"
    run_folder.mkdir()
    here.mkdir(parents=True)
    (run_folder / "configuration.yaml").write_text("dataset_dir: [gone/HRF]\n")
    assert training_folders(run_folder, [here]) == [here]
    with pytest.raises(
        ConfigurationError, match=r"the training used gone/HRF, which is not there; give it with --data"
    ):
        training_folders(run_folder, [tmp_path])
    other = tmp_path / "other" / "CHASE_DB1"
    other.mkdir(parents=True)
    for recorded in (f"{other},gone/HRF", f"[{other}, gone/HRF]"):
        (run_folder / "configuration.yaml").write_text(f"dataset_dir: {recorded}\n")
        assert training_folders(run_folder, [here]) == [other, here]
    same = tmp_path / "same" / "CHASE_DB1"  # another folder of the name of one that is still there
    same.mkdir(parents=True)
    assert training_folders(run_folder, [here, same]) == [other, here]
    (run_folder / "configuration.yaml").write_text("dataset_dir: gone/CHASE_DB1\n")
    with pytest.raises(ConfigurationError, match="gone/CHASE_DB1, which is not there, and 2 --data have its name"):
        training_folders(run_folder, [other, same])
    (run_folder / "configuration.yaml").write_text("dataset_dir: null\n")
    assert training_folders(run_folder, [here]) == [here]
    (run_folder / "configuration.yaml").write_text("a: [")
    with pytest.raises(ConfigurationError, match="not readable"):
        training_folders(run_folder, [here])


def test_a_test_photograph_without_vessels_is_named_before_anything_is_measured(data: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(data, tmp_path / "data")
    (entry, *_) = datalist(copied, "test")
    Image.new("L", (112, 112)).save(entry["label"])
    with pytest.raises(ValueError, match="the ground truth has no vessel pixel"):
        open_data_sets([copied], None)


def test_photographs_are_taken_from_all_groups() -> None:
    entries = [{"name": f"{n:02}_{g}", "group": g} for g in ("a", "b", "c") for n in (3, 1, 2)]
    assert [e["name"] for e in select(entries, 4)] == ["01_a", "02_a", "01_b", "01_c"]
    assert select(entries, 99) == entries


def test_robustness_is_measured_on_three_photographs_of_each_group_of_hrf(real_data: Path) -> None:
    chosen = [entry["name"] for entry in select(datalist(real_data / "HRF", "test"), run.ROBUSTNESS_PHOTOGRAPHS)]
    assert chosen == [f"{number}_{group}" for number in ("06", "07", "08") for group in ("dr", "g", "h")]


def test_the_time_of_a_training_leaves_pauses_out() -> None:
    def epoch(time: int) -> dict[str, Any]:
        return {"kind": "metrics", "time": time, "metrics": {"train/loss": 1.0}}

    start, end = {"kind": "start", "time": 1000}, {"kind": "metrics", "time": 99000, "metrics": {"test/ap": 1.0}}
    assert training_seconds([start, epoch(3000), epoch(5000), end]) == 4.0
    assert training_seconds([start, epoch(3000), {**start, "time": 50000}, epoch(51000)]) == 3.0
    assert training_seconds([start]) is None


def test_a_step_is_made_again_when_what_it_depends_on_changes(tmp_path: Path) -> None:
    said: list[str] = []
    values = iter([0.5, float("nan"), 2.0])
    found = [
        Kept(tmp_path, {"checkpoint": checkpoint}, said.append).step("one", lambda: next(values), n=n)
        for checkpoint, n in (("a", 1), ("a", 1), ("a", 2), ("b", 2))
    ]
    assert found == [0.5, 0.5, None, 2.0]
    assert said.count("one: kept from an earlier call") == 1


# --- measuring


def test_dice_over_thresholds_is_that_of_the_masks() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((1, 40, 50)) < 0.2
    scores = np.clip(generator.normal(0.4 + 0.3 * truth, 0.2), 0, 1).astype(np.float32)
    counts = [each.numpy() for each in score_histogram(scores, truth)]
    expected = [compute_dice(compute_confusion(scores >= np.float32(each), truth)) for each in measuring.GRID]
    np.testing.assert_allclose(measuring.dice_over(measuring.GRID, *counts), expected, atol=2e-3)


def test_the_threshold_is_the_best_of_the_grid(released: tuple[Path, Path, list[str]], data: Path) -> None:
    pipeline, entries = load_pipeline(released[0] / WEIGHTS, "cpu"), datalist(data, "validation")
    found = measuring.choose_threshold(pipeline, entries)
    assert found["value"] in measuring.GRID
    assert found["dice"] >= found["dice_at_half"]
    assert found["images"] == 1


def test_photographs_of_many_and_of_few_pixels_choose_the_threshold_alike(
    released: tuple[Path, Path, list[str]], data: Path, tmp_path: Path
) -> None:
    pipeline, entries = load_pipeline(released[0] / WEIGHTS, "cpu"), datalist(data, "all")[:2]
    for key in ("image", "label"):
        with Image.open(entries[1][key]) as picture:
            entries[1][key] = str(tmp_path / f"{key}.png")
            large = picture.resize((5 * picture.width, 5 * picture.height), Image.Resampling.NEAREST)
            if key == "label":  # half of the vessels not drawn: a Dice unlike the other's, whatever the network
                large.paste(0, (0, 0, large.width, large.height // 2))
            large.save(entries[1][key])
    found = measuring.choose_threshold(pipeline, entries)
    dice, counts = [], []
    for entry in entries:
        mask = pipeline(entry["image"]).mask(found["value"])
        counts.append(compute_confusion(mask, read_mask(entry["label"]), detect_fov(read_image(entry["image"])).mask))
        dice.append(compute_dice(counts[-1]))
    assert found["dice"] == pytest.approx(np.mean(dice), abs=2e-3)
    assert abs(compute_dice(np.sum(counts, axis=0)) - np.mean(dice)) > 5e-3, "pooled pixels would tell the same"


@pytest.mark.parametrize("each", degradations.DEGRADATIONS, ids=lambda each: each.name)
def test_a_degradation_moves_photograph_and_truth_alike(each: degradations.Degradation) -> None:
    """Vessels are darker than their surroundings in green: they stay so under the moved mask."""
    phantom = make_phantom((200, 240), seed=2)
    image, mask, fov = each.image(phantom.image, 190.0), each.mask(phantom.mask), each.mask(phantom.fov)
    assert image.dtype == np.uint8
    assert image.shape[:2] == mask.shape == fov.shape
    assert mask.dtype == bool
    assert mask.size <= phantom.mask.size * each.growth * 1.05
    assert mask.mean() / fov.mean() == pytest.approx(phantom.mask.mean() / phantom.fov.mean(), rel=0.4)
    assert np.median(image[mask][:, 1]) < 0.95 * np.median(image[fov & ~mask][:, 1])
    same = each.image(phantom.image, 190.0).shape == phantom.image.shape and bool((image == phantom.image).all())
    assert same != each.tells_angle


def test_degradations_do_what_they_say() -> None:
    grey = np.full((50, 60, 3), 200, np.uint8)
    assert (degradations.darkened(grey, 1.0) == 70).all()
    assert degradations.tinted(grey, 1.0)[0, 0].tolist() == [230, 170, 120]
    assert degradations.cropped(grey).shape == (30, 36, 3)
    assert degradations.scaled(0.5)(grey, 1.0).shape == (25, 30, 3)
    assert degradations.scaled(2.0)(grey, 1.0).shape == (100, 120, 3)
    for diameter, grain in ((540.0, 1), (1620.0, 3)):
        noise = degradations.noisy(np.full((300, 300, 3), 200, np.uint8), diameter).astype(float) - 200
        assert noise.mean() == pytest.approx(0, abs=0.1)
        assert noise[::grain, ::grain].std() == pytest.approx(4 if grain == 1 else 3, abs=0.8)  # enlarged: less
        neighbours = (noise[:, 1:] * noise[:, :-1]).mean() / noise.var()
        assert abs(neighbours) < 0.02 if grain == 1 else neighbours > 0.7
    line = np.zeros((101, 101, 3), np.uint8)
    line[:, 50] = 255
    spread = degradations.blurred(line, 800.0)[50, :, 0].astype(float)  # a Gaussian of 2 px falls to 0.61 at 2 px
    assert spread[52] / spread[50] == pytest.approx(np.exp(-0.5), abs=0.05)


def test_large_photographs_are_left_out(
    released: tuple[Path, Path, list[str]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "MAX_PIXELS", 112 * 112 * 2)
    found = measuring.robustness(load_pipeline(released[0] / WEIGHTS, "cpu"), datalist(data, "test")[:1])
    assert found["left_out"] == ["resolution × 2"]


def test_quality_of_the_poorest_quarter() -> None:
    quality = {
        str(n): dict.fromkeys(("focus", "contrast", "illumination_mean", "illumination_evenness"), n / 10)
        for n in range(8)
    }
    found = quality_against_dice(quality, {str(n): float(n) for n in range(8)})
    assert found["focus"] == {"lowest_quarter": 0.5, "others": 4.5, "images": 2}
    assert quality_against_dice({"0": quality["0"]}, {"0": 1.0}) == {}


# --- words and pictures


def test_a_busy_machine_is_said_to_be_one() -> None:
    facts = read_facts(BUNDLE)
    speed = [{**facts["speed"][0], "busy": load, "processors": 4} for load in (0.5, 9.5, 3.0)]
    assert "Not to be relied on" in model_card({**facts, "speed": speed}, {}).replace("\n", " ")
    assert "Not to be relied on" not in model_card({**facts, "speed": speed[::2]}, {})


def test_numbers_of_the_card() -> None:
    assert (number(None), number(float("nan")), number(0.12345), number(0.12345, 4)) == ("–", "–", "0.123", "0.1235")
    metrics = {"ap": 0.8, "ap_low": 0.7, "ap_high": 0.9, "ece": 0.02, "ece_low": None, "ece_high": None}
    assert interval(metrics, "ap") == "0.800 [0.700, 0.900]"
    assert interval(metrics, "ece") == "0.020"


def test_licences_say_what_the_weights_have_of_each_data_set() -> None:
    facts = {"training": {"data_sets": ["CHASE_DB1"]}, "results": {"CHASE_DB1": {}, "HRF": {}}}
    text = data_license(facts)
    assert "CHASE_DB1 - the weights in models/model.pt were trained on its training part; its test part" in text
    assert "HRF - its test part was used for the model card" in text
    assert "DRIVE - not used for the weights" in text
    assert text.count("https://creativecommons.org/licenses/by/4.0/") == 3
    assert data_source(["CHASE_DB1", "mine"]).startswith("CHASE_DB1 (CC BY 4.0, Fraz et al. 2012) and mine; other")


def test_failures_are_drawn_in_three_colours(tmp_path: Path) -> None:
    image = np.full((300, 400, 3), 120, np.uint8)
    mask, truth = np.zeros((300, 400), bool), np.zeros((300, 400), bool)
    mask[:100], truth[50:150] = True, True
    save_failure(tmp_path / "failure.png", image, mask, truth, "HRF 07_dr: Dice 0.5")
    drawn = np.asarray(Image.open(tmp_path / "failure.png").convert("RGB")).astype(int)
    assert drawn.shape == (44 + 750, 1000, 3)
    false, found, missed, nothing = (drawn[44 + row, 500] for row in (60, 190, 310, 600))
    assert false.argmax() == 2
    assert found.argmax() == 1
    assert missed.argmax() == 0
    assert np.ptp(nothing) < 10
    assert (tmp_path / "failure.png").stat().st_size <= FAILURE_BYTES


def test_failures_of_16_bit_photographs_are_drawn_as_bright(tmp_path: Path) -> None:
    empty, drawn = np.zeros((60, 80), bool), []
    for name, image in (("8", np.full((60, 80, 3), 120, np.uint8)), ("16", np.full((60, 80, 3), 120 / 255, "f4"))):
        save_failure(tmp_path / f"{name}.png", image, empty, empty, "x")
        drawn.append(np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), int)[100:])
    assert drawn[0].mean() > 50
    assert np.array_equal(*drawn)


def test_noisy_failures_become_smaller(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (700, 1000, 3), dtype=np.uint8)
    empty = np.zeros((700, 1000), bool)
    save_failure(tmp_path / "failure.png", image, empty, empty, "noise")
    assert (tmp_path / "failure.png").stat().st_size <= FAILURE_BYTES


def test_the_contact_sheet_holds_all(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    for number_, colour in enumerate(colours):
        Image.new("RGB", (640, 480), colour).save(tmp_path / f"{number_}.jpg")
    save_contact_sheet(tmp_path / "sheet.jpg", [(tmp_path / f"{n}.jpg", f"photo {n}") for n in range(5)])
    sheet = Image.open(tmp_path / "sheet.jpg")
    assert sheet.size == (900, 2 * 262 + 22)
    places = [(150 + 300 * (n % 3), 44 + 100 + 262 * (n // 3)) for n in range(5)]
    for place, colour in zip(places, colours, strict=True):
        assert np.abs(np.subtract(sheet.getpixel(place), colour)).max() < 12
    assert np.max(sheet.getpixel((750, 450))) < 12


def test_the_worst_are_the_lowest() -> None:
    assert worst({("A", "1"): 0.9, ("A", "2"): 0.2, ("B", "1"): 0.5}, 2) == [("A", "2"), ("B", "1")]
