"""Every configuration file is run; every mistake a user can make ends readably."""

import csv
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import monai.bundle
import numpy as np
import pytest
import torch
import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigWorkflow
from monai.bundle import scripts as monai_commands
from PIL import Image

import reg4pru_monai
from conftest import ROOT
from reg4pru_monai.bundle import _log_last_epoch, flag, probability
from reg4pru_monai.comparison.groups import compare
from reg4pru_monai.configuration import check_texts, command_line
from reg4pru_monai.evaluation import predict
from reg4pru_monai.fundus.datasets import datalist
from reg4pru_monai.fundus.io import read_image, read_mask, write_mask
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.inference import evaluated_options, load_pipeline, training_parameters, training_tags
from reg4pru_monai.plots import save_picture
from reg4pru_monai.runtime import ConfigurationError, root_cause
from reg4pru_monai.tracking import Tracker, read_journal
from reg4pru_monai.tracking_store import calm, sqlite_uri
from reg4pru_monai.weights import load_checkpoint, save_checkpoint
from runs import BUNDLE, TINY, arguments, command, config, failure, run, settings, undisturbed, workflow

METADATA = BUNDLE / "configs" / "metadata.json"
INSPECTION = ("inspect.html", "removed.png", "scores.png", "reactivated.png", "probabilities.png", "blocks.png")
SCHEMA = Path(__file__).parent / "data" / "meta_schema_20240725.json"


# --- the commands


def test_training_without_a_data_set_runs_on_phantoms(training: Path) -> None:
    written = {path.relative_to(training).as_posix() for path in training.rglob("*") if path.is_file()}
    assert written == {
        *("checkpoints/best.pt", "checkpoints/last.pt", "configuration.yaml", "environment.txt", "journal.jsonl"),
        *("metrics.json", "per_image.csv", "precision_recall.csv", "precision_recall.png", "reliability.png"),
        *("overlays/phantom_004.jpg", "overlays/phantom_005.jpg"),
        *(f"inspection/phantom_001/{name}" for name in INSPECTION),
    }
    assert {path.name for path in training.parent.iterdir()} >= {"training", "phantoms-4-2-112-0", "mlflow.db"}
    result = json.loads((training / "metrics.json").read_text())
    assert 0 < result["pruned/ap"] < 1
    assert result["pruned/gflops"] < result["dense/gflops"]
    assert result["pruned/peak_memory_mib"] > 0


def test_training_starts_from_the_weights_of_another(
    training: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a learning rate of nothing it ends with them; what differs from their training is said."""
    best = training / "checkpoints" / "best.pt"
    told = {"start_from": str(best), "diameter": 104, "rim": 0.0, "learning_rate": 1e-30, "max_epochs": 1}
    run("train", output_dir=str(tmp_path / "out"), weight_decay=0.0, **told)
    found = [load_checkpoint(folder / "checkpoints" / "best.pt")["network"] for folder in (training, tmp_path / "out")]
    started, ended = (
        {name: value for name, value in each.items() if not re.search("running_|num_batches", name)} for each in found
    )
    torch.testing.assert_close(ended, started, rtol=0, atol=1e-20)
    assert f"{best} was trained with diameter 96, this training has 104" in caplog.text
    assert f"{best} was trained with rim 0.005, this training has 0.0" in caplog.text
    assert "normalization" not in caplog.text


def test_a_training_goes_on_with_scores_of_its_own(training: Path, tmp_path: Path) -> None:
    """Weights that were trained dense have none."""
    dense = tmp_path / "dense"
    run("train", output_dir=str(dense), policy="dense", max_epochs=1)
    measured = json.loads((dense / "metrics.json").read_text())
    assert {name.split("/")[0] for name in measured} == {"dense", "parameters"}
    logged = {key for record in read_journal(dense) for key in record.get("parameters", {})}
    assert "policy" in logged
    assert not logged & {"keep_rate", "stages", "reactivate"}
    best = str(dense / "checkpoints" / "best.pt")
    run("train", output_dir=str(tmp_path / "out"), start_from=best, max_epochs=1)
    before, after = (load_checkpoint(Path(path)) for path in (best, tmp_path / "out" / "checkpoints" / "best.pt"))
    assert after["configuration"]["policy"] == "reg4pru"
    scores = {name for name in after["network"] if name.startswith("encoder.policy.")}
    assert scores == after["network"].keys() - before["network"].keys() != set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start_from": "none.pt"}, "none.pt: no such checkpoint"),
        ({"start_from": "BEST", "decoder": "eomt"}, "best.pt: checkpoint of another architecture: .*Use the preset"),
        ({"start_from": "BEST", "backbone": "dino.pth"}, "both say where weights come from; leave one out"),
    ],
)
def test_weights_that_cannot_be_started_from(
    training: Path, tmp_path: Path, given: dict[str, str], message: str
) -> None:
    given = {key: value.replace("BEST", str(training / "checkpoints" / "best.pt")) for key, value in given.items()}
    assert re.search(message, str(failure("train", output_dir=str(tmp_path / "out"), **given)))
    assert not (tmp_path / "out" / "checkpoints").exists()


def the_run(folder: Path) -> tuple[Any, Any]:
    """The only run in the store of a folder, and the client."""
    with calm():
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=sqlite_uri(folder / "mlflow.db"))
        (found,) = client.search_runs([client.get_experiment_by_name("fundus_vessels").experiment_id])
    return client, found


def artifacts_of(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    items = client.list_artifacts(run_id, folder)
    return {
        path for item in items for path in (artifacts_of(client, run_id, item.path) if item.is_dir else [item.path])
    }


def check_run(client: Any, found: Any, part: str) -> None:
    """What runs of a training and of an evaluation have in common."""
    assert found.info.status == "FINISHED"
    tags, metrics = found.data.tags, found.data.metrics
    assert tags["git.revision"]
    assert tags["git.dirty"] in ("true", "false", "unknown")
    assert tags["hardware"].endswith("thread" if torch.get_num_threads() == 1 else "threads")
    assert (tags["dtype"], tags["batch_size"]) == ("float32", "8")
    assert tags["mlflow.note.content"].startswith(f"**AP {metrics[f'{part}/pruned/ap']:.3f} [")
    assert len(found.data.params) < 25
    assert not [name for name in found.data.params if "." in name]
    speed = ("images_per_second", "latency_ms", "gflops", "peak_memory_mib")
    names = [f"{variant}/{name}" for variant in ("dense", "pruned") for name in ("ap", "ap_low", "ap_high", *speed)]
    assert {f"{part}/{name}" for name in (*names, "pruned/speedup", "efficiency")} <= metrics.keys()
    with calm():
        artifacts = artifacts_of(client, found.info.run_id)
    tables = {f"{part}/per_image.csv", f"{part}/precision_recall.csv", "metrics.json"}
    figures = {"precision_recall.png", "reliability.png", "overlays/phantom_004.jpg"}
    assert tables | figures | {"configuration.yaml", "environment.txt", "checkpoints/best.pt"} <= artifacts


def test_the_mlflow_run_of_a_training_is_complete(training: Path) -> None:
    client, found = the_run(training.parent)
    check_run(client, found, "test")
    with calm():
        artifacts = artifacts_of(client, found.info.run_id)
        curves = {
            name: [metric.step for metric in client.get_metric_history(found.info.run_id, name)]
            for name in ("train/loss", "validation/ap", "system/cpu_utilization_percentage")
        }
        (model,) = [client.get_logged_model(each.model_id) for each in found.outputs.model_outputs]
    assert found.info.run_name.startswith("reg4pru-skip-tiny-2")
    assert {"configuration_digest", "settings_digest"} <= found.data.tags.keys()
    given = {"policy": "reg4pru", "keep_rate": "0.7", "preset": "tiny", "decoder": "skip", "seed": "42"}
    assert given.items() <= found.data.params.items()
    assert len(found.data.params["dataset_digest"]) == 16
    assert all(steps == [1, 2] for steps in curves.values()), curves
    assert {"train/segmentation", "validation/ap", "validation/dice"} <= found.data.metrics.keys()
    assert len(found.data.metrics) < 40
    assert all(re.fullmatch(r"(train|validation|test|system)(/\w+)+", name) for name in found.data.metrics)
    assert {f"inspection/phantom_001/{name}" for name in INSPECTION} <= artifacts
    assert str(model.status) == "READY"
    inputs = {each.tags[0].value: each.dataset for each in found.inputs.dataset_inputs}
    assert inputs.keys() == {"train", "validation", "test"}
    assert {each.name for each in inputs.values()} == {"phantoms-4-2-112-0"}
    assert len({each.digest for each in inputs.values()}) == 3
    images = {part: json.loads(each.profile)["images"] for part, each in inputs.items()}
    assert images == {"train": 3, "validation": 1, "test": 2}


def test_the_mlflow_run_of_an_evaluation_is_complete(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data, best = training.parent / "phantoms-4-2-112-0", training / "checkpoints" / "best.pt"
    given = {"dataset_dir": str(data), "checkpoint": str(best), "output_dir": str(tmp_path / "out")}
    run("evaluate", **given, tracking_uri=sqlite_uri(tmp_path / "mlflow.db"), run_id="evaluating")
    client, found = the_run(tmp_path)
    check_run(client, found, "test")
    (test,) = found.inputs.dataset_inputs
    trained = {each.dataset.digest for each in the_run(training.parent)[1].inputs.dataset_inputs}
    assert (test.tags[0].value, test.dataset.name) == ("test", data.name)
    assert test.dataset.digest in trained


def test_evaluations_of_several_seeds_of_one_training_are_one_configuration(training: Path, tmp_path: Path) -> None:
    checkpoint, last = (load_checkpoint(training / "checkpoints" / f"{name}.pt") for name in ("best", "last"))
    assert checkpoint["configuration"]["settings_digest"] == the_run(training.parent)[1].data.tags["settings_digest"]
    assert last["configuration"] == checkpoint["configuration"] | {"epoch": 2}  # other weights of the same training
    uri = sqlite_uri(tmp_path / "mlflow.db")
    for name, changes in {"a": {}, "b": {"seed": 43}}.items():
        told = checkpoint["configuration"] | changes
        save_checkpoint(tmp_path / f"{name}.pt", checkpoint | {"configuration": told})
        given = {"dataset_dir": str(training.parent / "phantoms-4-2-112-0"), "output_dir": str(tmp_path / name)}
        run("evaluate", **given, checkpoint=str(tmp_path / f"{name}.pt"), tracking_uri=uri, run_id="evaluating")
    with calm():
        configurations = [row.configuration for row in compare(uri, "fundus_vessels")[1].rows]
    (seeds,) = configurations
    assert seeds.seeds == ["42", "43"]
    trained_with = the_run(training.parent)[1].data.params
    of_training = ("max_epochs", "learning_rate", "batch_size", "crop_size", "dataset_digest")
    assert {key: seeds.settings[key] for key in of_training} == {key: trained_with[key] for key in of_training}


def test_an_evaluation_with_another_policy_says_what_the_checkpoint_was_trained_with() -> None:
    trained = {"policy": "reg4pru", "keep_rate": 0.7, "seed": 3, "settings_digest": "0123", "policy_options": {"a": 1}}
    assert training_parameters(trained, "reg4pru", 0.7) == {"seed": 3}
    assert training_parameters(trained, "dense", 0.5) == {
        **{"seed": 3, "trained_policy": "reg4pru", "trained_keep_rate": 0.7},
    }
    assert training_parameters({**trained, "epoch": 8}, "reg4pru", 0.7) == {"seed": 3, "epoch": 8}
    assert training_tags(trained) == {"settings_digest": "0123"}
    assert evaluated_options(trained, "reg4pru", {"b": 2}) == {"a": 1, "b": 2}
    assert evaluated_options(trained, "random", {"b": 2}) == {"b": 2}


def test_a_checkpoint_without_the_digest_of_its_training_is_known_by_its_path_alone() -> None:
    assert training_parameters({"policy": "dense", "keep_rate": 0.7, "seed": 3}, "dense", 0.7) == {}
    assert training_tags({"seed": 3}) == {}


def test_evaluating_the_best_weights_repeats_the_result_of_the_training(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = training.parent / "phantoms-4-2-112-0"
    run("evaluate", dataset_dir=str(data), checkpoint=str(training / "checkpoints" / "best.pt"), run_id="evaluating")
    earlier = json.loads((training / "metrics.json").read_text())
    now = json.loads((tmp_path / "runs" / "evaluation" / "metrics.json").read_text())
    words = ("images_per_second", "latency", "speed", "efficiency", "memory")
    timed = {name for name in now if any(word in name for word in words)}
    assert now.keys() == earlier.keys()
    assert {n: now[n] for n in now.keys() - timed} == pytest.approx({n: earlier[n] for n in now.keys() - timed})


def test_inference_writes_what_the_network_predicts_at_the_size_of_each_photograph(
    training: Path, phantom_set: Path, tmp_path: Path
) -> None:
    folder, best = tmp_path / "photographs", str(training / "checkpoints" / "best.pt")
    shutil.copytree(phantom_set / "images", folder)
    save_picture(folder / "tall.jpg", make_phantom((140, 90), seed=3).image)
    run("inference", dataset_dir=str(folder), checkpoint=best, output_dir=str(tmp_path / "out"), threshold=0.1)
    segment = load_pipeline(best, window_size=TINY["window_size"])
    for path in folder.iterdir():
        mask = read_mask(tmp_path / "out" / "masks" / f"{path.name}.png")
        assert mask.shape == read_image(path).shape[:2]
        assert np.array_equal(mask, segment(path).probability >= 0.1)
        assert read_image(tmp_path / "out" / "overlays" / f"{path.name}.jpg").shape == read_image(path).shape


def test_two_processes_end_with_equal_weights_and_only_one_writes(tmp_path: Path) -> None:
    overlay = tmp_path / "rank.yaml"
    save = "$torch.save(@network.state_dict(), f'rank{torch.distributed.get_rank()}.pt')"
    overlay.write_text(yaml.safe_dump({"+training": [save]}))
    files = f"['{config('train')}','{config('multi_gpu_train')}','{overlay}']"
    values = settings("train", output_dir="runs/parallel", max_epochs=1)
    del values["device"]  # the overlay chooses it
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run")
    done = command(*launch, "training", "--config_file", files, *arguments(values), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    second = torch.load(tmp_path / "rank1.pt", weights_only=True)
    folder = tmp_path / "runs" / "parallel" / "checkpoints"
    first = load_checkpoint(folder / "last.pt")["network"]  # what rank 0 had after the last step
    assert first.keys() == second.keys()
    assert any("running_" in name for name in first)  # batch statistics are taken per process, and averaged
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    journal = read_journal(tmp_path / "runs" / "parallel")
    assert len({record["run"] for record in journal}) == 1
    assert journal[-1]["status"] == "FINISHED"


def test_run_is_an_alias_of_training() -> None:
    workflow_ = workflow("train", output_dir="unused")
    workflow_.parser.parse()
    assert workflow_.parser["run"] == workflow_.parser["training"]


# --- the bundle as MONAI sees it


@pytest.mark.parametrize("files", [["train"], ["inference"], ["evaluate"], ["train", "evaluate"]], ids="+".join)
def test_check_properties_finds_nothing_missing(files: list[str], phantom_set: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    kind = "train" if files == ["train"] else "eval"
    with undisturbed():
        found = ConfigWorkflow([config(name) for name in files], workflow_type=kind, logging_file=False, **given)
        found.initialize()
        assert found.check_properties() == []


def test_evaluation_as_an_overlay_of_the_training(training: Path, tmp_path: Path) -> None:
    """Alone it is the same: see the result of the training, above."""
    data, best = training.parent / "phantoms-4-2-112-0", training / "checkpoints" / "best.pt"
    given = {"dataset_dir": str(data), "checkpoint": str(best), "output_dir": str(tmp_path / "out")}
    given |= settings("evaluate", part="validation")
    files = [config("train"), config("evaluate")]
    with undisturbed():
        found = ConfigWorkflow(files, workflow_type="eval", logging_file=False, **given)
        found.initialize()
        found.evaluator.run()
        found.run()
        found.finalize()
        with pytest.raises(RuntimeError) as caught:
            ConfigWorkflow(files, workflow_type=None, logging_file=False, **given, max_epochs=3).initialize()
    assert "key 'max_epochs' has no effect" in str(root_cause(caught.value))
    metrics = [record["metrics"] for record in read_journal(training) if record["kind"] == "metrics"]
    validated = max(each["validation/ap"] for each in metrics if "validation/ap" in each)
    assert found.evaluator.state.metrics["ap"] == pytest.approx(validated, abs=1e-6)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["pruned/ap"] == pytest.approx(validated, abs=0.05)  # in the pixels of the photograph


def test_the_model_zoo_would_take_the_bundle() -> None:
    """What its checks look for besides metadata, properties and the shape of the output."""
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.yaml", "models/model.pt"):
        assert (BUNDLE / name).stat().st_size > 0
    card = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.search(
        r"TorchScript can trace the network but not script it.*exclude_verify_torchscript_list", card, re.DOTALL
    )
    targets = [each for each in re.findall(r"\]\(([^)\s]+)\)", card) if not each.startswith("https://")]
    assert targets
    for target in targets:
        assert (BUNDLE / "docs" / target).resolve().is_relative_to(BUNDLE)
    with pytest.warns(UserWarning, match="return state dict instead"):
        loaded: Any = monai.bundle.load(BUNDLE.name, bundle_dir=BUNDLE.parent, workflow_type="infer", device="cpu")
    assert loaded.keys() == {"network", "configuration"}  # as the card says: no network


def test_bundle_root_is_beside_the_configuration_wherever_the_command_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom_set: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = workflow("inference", dataset_dir=str(phantom_set))
    with undisturbed():
        found.initialize()
    assert found.parser.get_parsed_content("bundle_root") == str(BUNDLE)
    assert found.parser.get_parsed_content("checkpoint") == str(BUNDLE / "models" / "model.pt")


@pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")  # MONAI, of the local copy of the schema
def test_metadata_is_valid_and_true() -> None:
    metadata = json.loads(METADATA.read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    monai.bundle.verify_metadata(meta_file=str(METADATA), filepath=str(SCHEMA))
    assert metadata["version"] == reg4pru_monai.__version__
    assert metadata["version"] in metadata["changelog"]
    assert SCHEMA.name in metadata["schema"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    packages = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"]}
    packages |= {"numpy": metadata["numpy_version"]} | metadata["required_packages_version"]
    stated = {name: number for name, number in packages.items() if name in pinned}
    assert stated == {name: pinned[name].split("+")[0] for name in stated}
    assert version("monai").split("+")[0] == metadata["monai_version"]


def test_verify_net_in_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = {"net_id": "network_def", "meta_file": str(METADATA), "config_file": config("inference"), "device": "cpu"}
    with undisturbed():
        monai.bundle.verify_net_in_out(**known, bundle_root=str(BUNDLE))  # one pixel, as the model zoo does
        monai.bundle.verify_net_in_out(**known, any=45, bundle_root=str(BUNDLE))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RuntimeError) as caught:
            monai.bundle.verify_net_in_out(**known)
        assert "give --bundle_root FOLDER" in str(root_cause(caught.value))
        monkeypatch.chdir(BUNDLE)
        monai.bundle.verify_net_in_out(**known, any=64)


def test_preprocessing_is_the_same_everywhere(training: Path, phantom_set: Path, tmp_path: Path) -> None:
    best = str(training / "checkpoints" / "best.pt")
    image, label = (str(phantom_set / part / "phantom_001.png") for part in ("images", "masks"))
    chains = [load_pipeline(best).preprocessing]
    for name, ids in {
        "train": ("train::preprocessing", "validate::preprocessing", "preprocessing"),
        "evaluate": ("preprocessing",),
        "inference": ("preprocessing",),
    }.items():
        given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out")}
        found = workflow(name, **given, **({} if name == "train" else {"checkpoint": best}))
        with undisturbed():
            found.initialize()
            chains += [found.parser.get_parsed_content(each) for each in ids]
    items = [chain({"image": image, "label": label}) for chain in chains]
    assert len(items) == 6
    assert items[0]["image"].shape[1:] != (112, 128)
    for item in items[1:]:
        assert torch.equal(item["image"].as_tensor(), items[0]["image"].as_tensor())
        assert torch.equal(item["fov"].as_tensor(), items[0]["fov"].as_tensor())


# --- mistakes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_epoch": 3}, "unknown key 'max_epoch': did you mean 'max_epochs'?"),
        (
            {"train#trainer#clip_nrom": 1},
            "unknown key 'train::trainer::clip_nrom': did you mean 'train::trainer::clip_norm'?",
        ),
        ({"phantoms::trian": 3}, "did you mean 'phantoms::train'?"),
        ({"train#handlers#1#val_intervall": 3}, "did you mean 'train::handlers::1::val_interval'?"),
        (
            {
                "optimizer": "$torch.optim.SGD(@network.parameters(), 0.1)",
                "weight_decay": 0.1,
                "dataset_dir": "nowhere",
            },
            "key 'weight_decay' has no effect: nothing that runs reads it",
        ),
        ({"masked_attention": 0.5, "dataset_dir": "nowhere"}, "masked_attention belongs to the decoder eomt"),
        ({"tags": "mine"}, "tags must be a mapping such as {'mlflow.parentRunId': 'RUN'}, got 'mine'"),
        ({"policy": "dens"}, "policy must be one of dense"),
        ({"preset": "huge"}, "preset must be one of tiny"),
        ({"decoder": "unet"}, "decoder must be one of eomt, skip, got 'unet'"),
        ({"keep_rate": 0}, "keep_rate must be in (0, 1], got 0.0"),
        ({"keep_rate": 1.5}, "keep_rate must be in (0, 1], got 1.5"),
        ({"keep_rate": [0.5, 0.5]}, "keep_rate must be one number or one for each of 3 stages"),
        ({"stages": [3], "reactivate": 2}, "pruning stages must lie before the reactivation block"),
        ({"device": "cuda:99"}, "device must be auto, cpu or an available GPU"),
        ({"normalization": "none"}, "normalization must be one of local, global, imagenet"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
        ({"max_epochs": "many", "dataset_dir": "nowhere"}, "max_epochs must be a number such as 100, got 'many'"),
        (
            {"learning_rate": "@max_epoch", "dataset_dir": "nowhere"},
            "key 'learning_rate' refers to '@max_epoch', which does not exist; did you mean 'max_epochs'?",
        ),
        ({"batch_size": 0}, "batch_size"),
        ({"crop_size": 0}, "crop_size must be a positive number"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, got 0"),
        ({"checkpoint_blocks": "some"}, "checkpoint_blocks must be true or false, got 'some'"),
        (
            {"checkpoint_blocks": True, "preset": "BasicUNet", "policy": "dense", "decoder": "none"},
            "checkpoint_blocks belongs to transformers; take it out for BasicUNet",
        ),
        ({"crops_per_image": 0}, "crops_per_image must be a whole number of at least 1, got 0"),
        ({"val_interval": 0}, "val_interval must be at least 1, got 0"),
        ({"window_size": 0}, "window_size must be"),
        ({"window_overlap": 1.0}, "overlap must be in [0, 1), got 1.0"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number such as 0.002, got '1e-3' (in YAML"),
        ({"ema_decay": 1.5}, "ema_decay must be in [0, 1), got 1.5"),
        ({"resume": "yes"}, "resume must be true, false or auto, got 'yes'"),
        ({"log_model": "maybe"}, "log_model must be true or false, got 'maybe'"),
        ({"inspect_images": -1}, "inspect_images must be a whole number, 0 for none, got -1"),
        ({"resume": "true"}, "last.pt: no such checkpoint"),
        ({"dataset_dir": None, "phantoms": {"train": 4}}, "phantoms must have train, test, size and seed"),
        ({"dataset_dir": "nowhere"}, "dataset_dir nowhere does not exist"),
        ({"dataset_dir": 2024}, "dataset_dir 2024 does not exist"),
        ({"dataset_dir": "."}, "is an empty folder"),
        ({"dataset_dir": [2024, "."]}, "dataset_dir 2024 does not exist"),
        (
            {"dataset_dir": "data#1"},
            "dataset_dir 'data::1' cannot be used: MONAI's command line cuts a value off at '#'",
        ),
        ({"output_dir": "runs #2/a"}, "output_dir 'runs ::2/a' cannot be used"),
        ({"experiment": "fundus #2"}, "experiment 'fundus ::2' cannot be used"),
        ({"tracking": "mlflow"}, "leave out --tracking: this bundle tracks every run in MLflow by itself"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_a_wrong_setting_is_named(
    overrides: dict[str, Any], message: str, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = failure("train", **{"dataset_dir": str(phantom_set), "output_dir": "new/out", **overrides})
    assert message in str(error)
    assert not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("config*.json"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--dataset_dir", "data#1"], "dataset_dir 'data#1' cannot be used: MONAI's command line cuts"),
        (["--dataset_dir=/there/data#1"], "dataset_dir '/there/data#1' cannot be used"),
        (["--dataset_dir", "['a','b#1']"], "cannot be used"),
        (["--output-dir", "runs #2/a"], "output_dir 'runs #2/a' cannot be used"),
        (["--tracking_uri", "http://joe:S3C#RET@host"], "tracking_uri 'http://joe:***@host' cannot be used"),
        (
            ["--dataset_dir", "1e5"],
            "dataset_dir '1e5' was read as the number 100000.0: put two kinds of quotes around it",
        ),
        (["--output_dir", "2025_01"], "output_dir '2025_01' was read as the number 202501"),
        (["--experiment", "0x10"], "experiment '0x10' was read as the number 16: put"),
        (["--dataset_dir", "2024,1.50"], "dataset_dir '2024,1.50' was read as the number 1.5"),
        (["--output_dir", "2025", "--dataset_dir", "2024, 2025-01", "--experiment", "'1e5'"], ""),
        (["--run_name", "$'#'.join(@policy)", "--max_epochs", "1e1", "--train#trainer#seed", "3"], ""),
    ],
)
def test_a_name_that_the_command_line_changes_is_refused(typed: list[str], message: str) -> None:
    program = "/python/site-packages/monai/bundle/__main__.py"
    options = command_line([program, "run", "training", *typed])
    merged = {key: DefaultParseValue(text) for key, text in options.items()}
    if message:
        with pytest.raises(ConfigurationError) as caught:
            check_texts(merged, options)
        assert message in str(caught.value)
        assert "RET" not in str(caught.value)
    else:
        check_texts(merged, options)
    assert command_line(["pytest", *typed]) == {}


def test_folders_and_experiments_may_be_called_by_numbers(
    phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantom_set, tmp_path / "2024")
    run("train", dataset_dir=2024, output_dir=2025, experiment=2026, run_name=2027, max_epochs=1)
    start, *_ = read_journal(tmp_path / "2025")
    assert start["experiment"] == "2026"
    assert start["run"].startswith("2027-")
    best = str(tmp_path / "2025" / "checkpoints" / "best.pt")
    for name, folder in (("evaluate", 2028), ("inference", 2029)):
        run(name, dataset_dir=2024, output_dir=folder, checkpoint=best)
        assert any((tmp_path / str(folder)).iterdir())


CLAIM = """
import sys, time
from reg4pru_monai.output_folder import claim
claim(sys.argv[1])
print("claimed", flush=True)
time.sleep(60)
"""


def test_of_two_trainings_in_one_folder_the_second_is_refused_at_once(phantom_set: Path, tmp_path: Path) -> None:
    """The first one has written nothing yet; once it is killed the folder can be used."""
    out = tmp_path / "out"
    given = {"dataset_dir": str(phantom_set), "output_dir": str(out)}
    with subprocess.Popen([sys.executable, "-c", CLAIM, str(out)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "claimed\n"
        for name in ("train", "evaluate"):
            message = str(failure(name, **given))
            assert f"{out} is being written by another training or evaluation; wait for it, or choose" in message
        first.kill()
    run("train", **given, resume="auto", max_epochs=1)
    assert not (out / ".lock").exists()
    run("train", **given, resume="true", max_epochs=1)


def _without_mask(folder: Path) -> None:
    (folder / "masks" / "phantom_001.png").unlink()


def _black_mask(folder: Path) -> None:
    Image.new("L", (128, 112)).save(folder / "masks" / "phantom_002.png")


def _inverted_masks(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        write_mask(path, ~read_mask(path))


def _inverted_validation(folder: Path) -> None:
    (held_out,) = datalist(folder, "validation")
    write_mask(held_out["label"], ~read_mask(held_out["label"]))


def _label_map(folder: Path) -> None:
    path = folder / "masks" / "phantom_001.png"
    vessels = read_mask(path).astype(np.uint8)
    Image.fromarray(vessels + np.triu(vessels)).save(path)


def _corrupt_image(folder: Path) -> None:
    path = folder / "images" / "phantom_003.png"
    path.write_bytes(path.read_bytes()[:3000])


def _mask_of_another_size(folder: Path) -> None:
    Image.new("L", (50, 50), 255).save(folder / "masks" / "phantom_000.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_mask, "1 image(s) without a mask: "),
        (_black_mask, "phantom_002: the ground truth has no vessel pixel in the field of view"),
        (_inverted_masks, "% of the field of view is vessel in the ground truth; is it inverted?"),
        (_inverted_validation, "% of the field of view is vessel in the ground truth; is it inverted?"),
        (_label_map, "masks/phantom_001.png: is this a label map?"),
        (_corrupt_image, "images/phantom_003.png: cannot be decoded"),
        (_mask_of_another_size, "but its mask"),
    ],
)
def test_a_damaged_data_set_is_named(
    damage: Callable[[Path], None], message: str, phantom_set: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(phantom_set, tmp_path / "data"))
    (folder / "phantoms.json").unlink()
    damage(folder)
    error = failure("train", dataset_dir=str(folder), output_dir=str(tmp_path / "out"))
    assert message in str(error)
    assert "phantom_00" in str(error)


def test_a_checkpoint_that_does_not_fit_is_named(training: Path, phantom_set: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out")}
    best = str(training / "checkpoints" / "best.pt")
    other = failure("inference", **given, checkpoint=best, decoder="eomt")
    assert "best.pt: checkpoint of another architecture" in str(other)
    assert "nowhere.pt: no such checkpoint" in str(failure("inference", **given, checkpoint="nowhere.pt"))
    text = tmp_path / "text.pt"
    text.write_text("hello")
    assert "text.pt: not a" in str(failure("evaluate", **given, checkpoint=str(text)))
    torch.save({"network": {}}, tmp_path / "foreign.pt")
    error = failure("evaluate", **given, checkpoint=str(tmp_path / "foreign.pt"))
    assert "foreign.pt: says nothing of its configuration" in str(error)


def test_inference_takes_part_of_the_photographs(training: Path, phantom_set: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom_set / "images"), "checkpoint": str(training / "checkpoints" / "best.pt")}
    for number in (1, 2):
        own = {"root": str(phantom_set), "shard": f"{number}/2", "mm_per_pixel": 0.01}
        run("inference", **given, output_dir=str(tmp_path), **own)
    with open(tmp_path / "results.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = [path.relative_to(phantom_set).as_posix() for path in sorted((phantom_set / "images").iterdir())]
    assert [row["path"] for row in rows] == names
    lengths = [[float(row[f"skeleton_length_{unit}"]) for unit in ("mm", "px")] for row in rows]
    assert all(mm == pytest.approx(0.01 * px, rel=1e-4) for mm, px in lengths)
    assert any(mm > 0 for mm, _ in lengths)
    assert "shard must be I/N" in str(failure("inference", **given, output_dir=str(tmp_path), shard="one"))


def test_inference_without_photographs_says_what_to_give(training: Path, tmp_path: Path) -> None:
    error = failure("inference", checkpoint=str(training / "checkpoints" / "best.pt"), output_dir=str(tmp_path))
    assert str(error) == "inference needs photographs: give --dataset_dir FOLDER"


@pytest.mark.parametrize(
    "overrides", [{"train#dataloader#pin_memory": False}, {"train::trainer::non_blocking": True}, {"amp": "false"}]
)
def test_an_argument_of_a_component_can_be_given(overrides: dict[str, Any], phantom_set: Path, tmp_path: Path) -> None:
    found = workflow("train", dataset_dir=str(phantom_set), output_dir=str(tmp_path), **overrides)
    with undisturbed():
        found.initialize()
        assert not found.parser.get_parsed_content("train::trainer").amp


def test_true_and_false_arrive_as_text_from_a_command_line() -> None:
    assert [flag("resume", value) for value in (True, "true", "True", False, "false")] == [True] * 3 + [False] * 2
    with pytest.raises(ConfigurationError, match="resume must be true or false, got 1"):
        flag("resume", 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"max_epoch": 3}, "error: unknown key 'max_epoch'"), ({"dataset_dir": "nowhere"}, "error: dataset_dir nowhere")],
)
def test_a_mistake_ends_a_command_with_one_line_and_status_1(
    overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = arguments(settings("train", output_dir="out", **overrides))
    done = command("-m", "monai.bundle", "run", "training", "--config_file", config("train"), *values, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert "Setting logging properties" in done.stdout + done.stderr


def test_the_innermost_error_of_our_own_is_the_cause() -> None:
    disk, ours, wrapped = OSError("disk"), ConfigurationError("readable"), RuntimeError("Failed to evaluate")
    ours.__cause__, wrapped.__cause__ = disk, ours
    assert root_cause(wrapped) is ours
    assert root_cause(disk) is disk
    assert str(root_cause(ValueError("alone"))) == "alone"


def test_a_server_that_is_down_costs_no_training(
    phantom_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "S3CRETPW"
    uri = f"http://joe:{secret}@127.0.0.1:9"
    run("train", dataset_dir=str(phantom_set), output_dir=str(tmp_path / "out"), tracking_uri=uri)
    with caplog.at_level(logging.INFO):
        monai_commands._log_input_summary(tag="run", args={"tracking_uri": uri})
    assert "http://joe:***@127.0.0.1:9" in (tmp_path / "out" / "configuration.yaml").read_text()
    assert secret not in caplog.text
    assert "give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    journal = read_journal(tmp_path / "out")
    logged = [record for record in journal if record["kind"] == "metrics"]
    assert [record["step"] for record in logged] == [1, 2, 0]
    assert "test/pruned/ap" in logged[-1]["metrics"]
    assert journal[-1]["status"] == "FINISHED"
    warned = [record for record in caplog.records if "cannot be used" in record.getMessage()]
    assert len(warned) == 1


def test_predict_is_used_by_the_evaluation_and_the_pipeline_alike(training: Path, phantom_set: Path) -> None:
    segment = load_pipeline(training / "checkpoints" / "best.pt", device="cpu")
    path = phantom_set / "images" / "phantom_004.png"
    item = segment.prepare(path)
    found = predict(segment.network, item, segment.preprocessing, segment.inferer, segment.device)
    assert np.array_equal(found.probability[0].numpy(), segment(path).probability)


def test_one_photograph_is_segmented_as_a_folder_is(training: Path, phantom_set: Path, tmp_path: Path) -> None:
    photograph = sorted((phantom_set / "images").glob("*.png"))[0]
    best = str(training / "checkpoints" / "best.pt")
    run("inference", dataset_dir=str(photograph), checkpoint=best, output_dir=str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == [f"{photograph.name}.png"]


def test_an_unknown_policy_option_is_named(phantom_set: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out")}
    error = failure("train", **given, policy_options={"rampp": 0.3})
    assert "policy_options do not suit the policy reg4pru: " in str(error)
    assert "rampp" in str(error)
    assert isinstance(error, ValueError)


def test_the_configuration_in_the_run_is_resolved(training: Path) -> None:
    settings_ = yaml.safe_load((training / "configuration.yaml").read_text())
    assert settings_["amp"] is False
    assert settings_["run_name"] == "reg4pru-skip-tiny"
    assert settings_["num_workers"] == 0


def test_metrics_that_a_cut_off_training_left_in_its_checkpoint_are_logged_once(tmp_path: Path) -> None:
    state = SimpleNamespace(metrics={"train/loss": 2.5, "train/learning_rate": 0.1})
    with Tracker.start(tmp_path, run_name="resumed", tracking_uri="none") as tracker:
        tracker.log_metrics({"train/loss": 3.0, "train/learning_rate": 0.1}, 1)
        for _ in range(2):
            _log_last_epoch(tracker, state, 2)  # type: ignore[arg-type]
        _log_last_epoch(tracker, SimpleNamespace(metrics={}), 0)  # type: ignore[arg-type]
    logged = [(r["step"], r["metrics"]) for r in read_journal(tmp_path) if r["kind"] == "metrics"]
    assert logged == [(1, {"train/loss": 3.0, "train/learning_rate": 0.1}), (2, state.metrics)]


@pytest.mark.parametrize("value", [0, 1, True, "half", None])
def test_a_threshold_must_be_a_probability(value: Any) -> None:
    assert probability("threshold", 0.3) == 0.3
    with pytest.raises(ConfigurationError, match=r"threshold must be a number in \(0, 1\), got"):
        probability("threshold", value)
