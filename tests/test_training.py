import copy
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.data import CacheDataset, DataLoader
from torch import nn

from networks import small_network
from reg4pru_monai.augmentation import augmentation
from reg4pru_monai.bundle import readable_errors, run_datasets
from reg4pru_monai.fundus.datasets import datalist
from reg4pru_monai.losses import TrainingStep
from reg4pru_monai.runtime import root_cause, select_device
from reg4pru_monai.segmenter import Segmenter, build_segmenter
from reg4pru_monai.tracking import read_journal
from reg4pru_monai.tracking_store import calm, sqlite_uri
from reg4pru_monai.training import (
    VesselTrainer,
    build_average,
    build_optimizer,
    build_schedule,
    joined,
    optimizer_steps,
    reseed,
)
from reg4pru_monai.transforms import preprocessing
from reg4pru_monai.weights import load_checkpoint
from runs import command, failure, run, undisturbed, workflow


def batches(count: int = 4, label: float = 1.0, image: float = 1.0) -> list[dict[str, torch.Tensor]]:
    """Images with a bright square that is the vessel."""
    torch.manual_seed(1)
    items = []
    for _ in range(count):
        mask = torch.zeros(2, 1, 32, 32)
        mask[:, :, 8:20, 8:20] = label
        items.append({"image": torch.randn(2, 3, 32, 32) * 0.1 + image * mask, "label": mask})
        items[-1]["fov"] = torch.ones(2, 1, 32, 32)
    return items


def trainer(
    data: Any, max_epochs: int = 1, rate: float = 1e-2, network: Segmenter | None = None, **options: Any
) -> VesselTrainer:
    network = network or small_network()
    optimizer = build_optimizer(network, rate)
    return VesselTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=data,
        network=TrainingStep(network),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, optimizer_steps(max_epochs, len(data), options.get("accumulate", 1)), 1),
        average=build_average(network),
        **options,
    )


# --- parts


def test_the_schedule_rises_linearly_and_falls_as_a_power() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, total=10, warmup=4)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == pytest.approx([2 * (1 - i / 6) ** 0.9 for i in range(7)])


def test_only_matrices_are_decayed_and_lower_blocks_learn_slower() -> None:
    network = small_network()
    groups = build_optimizer(network, 1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = dict(network.named_parameters())
    assert len(found) == len(names)
    of = {name: found[id(parameter)] for name, parameter in names.items()}
    assert of["encoder.blocks.7.attn.qkv.weight"] == (1.0, 0.1)
    assert of["encoder.blocks.0.attn.qkv.weight"] == (0.5**7, 0.1)
    assert of["patch_embed.proj.weight"] == of["encoder.blocks.0.attn.qkv.weight"]
    assert of["cls_token"] == (0.5**7, 0.0)
    assert all(decay == 0 for name, (_, decay) in of.items() if names[name].ndim < 2 or name.endswith("query"))
    assert all(rate == 1 for name, (rate, _) in of.items() if name.startswith(("decoder.", "encoder.policy.")))


@pytest.mark.parametrize("rate", ["1e-3", 0, -1.0, float("nan")])
def test_a_learning_rate_is_a_positive_number(rate: Any) -> None:
    with pytest.raises(ValueError, match="learning_rate must be a positive number, got"):
        build_optimizer(small_network(), rate)


def test_the_average_follows_its_formula() -> None:
    network = nn.Linear(1, 1)
    average, expected = build_average(network, 0.5), None
    for n, value in enumerate([1.0, 3.0, -2.0, 4.0, 8.0, 1.0, 0.0, 5.0, 2.0, 9.0, 4.0]):
        nn.init.constant_(network.weight, value)
        average.update_parameters(network)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1.0"):
        build_average(network, 1.0)


def test_device_auto_is_there_and_others_are_checked() -> None:
    assert select_device("auto").type in ("cpu", "cuda")
    assert select_device("cpu") == torch.device("cpu")
    for name in ("cpuu", "cuda:99"):
        with pytest.raises(
            ValueError, match=f"device must be auto, cpu or an available GPU such as cuda:0, got '{name}"
        ):
            select_device(name)


# --- epochs


def test_two_epochs_with_the_same_seed_see_the_same_crops(phantom_set: Path) -> None:
    entries = [{"image": str(phantom_set / "images" / "phantom_000.png")}] * 2
    entries = [{**entry, "label": entry["image"].replace("images", "masks")} for entry in entries]
    chain = joined(preprocessing(96), augmentation(48))
    loader = DataLoader(CacheDataset(entries, chain, progress=False, hash_as_key=True), batch_size=2, shuffle=True)

    def epoch(number: int) -> torch.Tensor:
        engine: Any = SimpleNamespace(state=SimpleNamespace(epoch=number, dataloader=loader))
        reseed(7, engine)
        values = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002
        return torch.cat([values, *(batch["image"].as_tensor().flatten() for batch in loader)])

    with undisturbed():
        first, second, again = epoch(1), epoch(2), epoch(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


# --- the trainer


def test_training_lowers_the_loss_and_reports_its_terms() -> None:
    engine, losses = trainer(batches(8), max_epochs=4), []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(engine.state.output))
    with undisturbed():
        engine.run()
    assert len(losses) == 32
    assert losses[0]["loss"] == pytest.approx(sum(value for name, value in losses[0].items() if name != "loss"))
    assert "segmentation" in losses[0]
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]
    assert int(engine.average.n_averaged) == 32


def test_gradients_are_clipped() -> None:
    engine, norms = trainer(batches(2), clip_norm=0.01), []

    def measure() -> None:
        gradients = [p.grad for p in engine.network.parameters() if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item())

    engine.add_event_handler(Events.ITERATION_COMPLETED, measure)
    with undisturbed():
        engine.run()
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_training_and_says_what_to_do() -> None:
    data = batches(3)
    data[1]["image"] *= float("nan")
    with (
        undisturbed(),
        pytest.raises(FloatingPointError, match="loss became nan at iteration 2; lower --learning_rate"),
    ):
        trainer(data).run()


class Squares(TrainingStep):
    """A step whose loss is a mean over images and needs no chance: of squared logits."""

    def forward(self, image: torch.Tensor, *_: Any) -> dict[str, torch.Tensor]:
        return {"squares": self.network(image).square().mean()}


def recorded(data: Any, step: type[TrainingStep], accumulate: int, **options: Any) -> tuple[VesselTrainer, list[Any]]:
    """A finished training and the gradients (before clipping would change them) of its optimiser steps."""
    engine = trainer(data, clip_norm=1e9, accumulate=accumulate, **options)
    engine.network = step(engine.segmenter)
    found: list[Any] = []
    engine.optimizer.register_step_pre_hook(
        lambda optimizer, *_: found.append([p.grad.clone() for g in optimizer.param_groups for p in g["params"]])
    )
    with undisturbed():
        engine.run()
    return engine, found


def merged(data: list[dict[str, torch.Tensor]], size: int) -> list[dict[str, torch.Tensor]]:
    """Batches of ``size`` of the given ones."""
    parts = [data[first : first + size] for first in range(0, len(data), size)]
    return [{key: torch.cat([each[key] for each in part]) for key in part[0]} for part in parts]


def test_accumulated_batches_are_one_large_batch_where_the_loss_is_a_mean() -> None:
    data, network = batches(5), small_network("dense")
    whole, expected = recorded(merged(data, 2), Squares, 1, network=copy.deepcopy(network), max_epochs=2)
    ours, found = recorded(data, Squares, 2, network=copy.deepcopy(network), max_epochs=2)
    assert len(found) == len(expected) == 6  # two pairs and what is left over, twice
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours.average.module.state_dict(), whole.average.module.state_dict(), rtol=0, atol=1e-4)
    assert int(ours.average.n_averaged) == 6
    assert ours.schedule.last_epoch == whole.schedule.last_epoch == 6


def test_the_dice_term_of_accumulated_batches_is_their_mean() -> None:
    """So the gradient is near that of the large batch and not equal to it: a ratio of sums is no mean of ratios."""
    data, network = batches(2), small_network("dense")
    data[1]["label"] = data[1]["label"].roll(6, dims=-1) * (torch.rand(2, 1, 32, 32) < 0.6)
    (expected,) = recorded(merged(data, 2), TrainingStep, 1, network=copy.deepcopy(network))[1]
    (found,) = recorded(data, TrainingStep, 2, network=copy.deepcopy(network))[1]
    ours, theirs = (torch.cat([each.flatten() for each in gradient]) for gradient in (found, expected))
    difference = float((ours - theirs).norm() / theirs.norm())
    assert 1e-4 < difference < 0.1


@pytest.mark.parametrize(("batches_", "accumulate", "steps"), [(6, 1, 12), (6, 2, 6), (5, 2, 6), (3, 8, 2)])
def test_an_epoch_has_whole_optimiser_steps(batches_: int, accumulate: int, steps: int) -> None:
    assert optimizer_steps(2, batches_, accumulate) == steps


@pytest.mark.parametrize("accumulate", [0, 1.5])
def test_accumulate_is_a_whole_number(accumulate: Any) -> None:
    with pytest.raises(ValueError, match="accumulate must be a whole number of at least 1, got"):
        optimizer_steps(1, 4, accumulate)


@pytest.mark.parametrize("policy", ["dense", "cropr", "gumbel+reg4pru", "reg4pru"])
@pytest.mark.parametrize("amp", [False, True])
def test_checkpointed_blocks_have_the_same_gradients_and_keep_less(policy: str, amp: bool) -> None:
    network, (batch,) = small_network(policy), batches(1)

    def step(network: Segmenter) -> tuple[list[torch.Tensor], int]:
        kept: dict[int, int] = {}
        torch.manual_seed(0)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                terms = TrainingStep(network.train())(batch["image"], batch["label"], batch["fov"], 0.5)
                loss = torch.stack(list(terms.values())).sum()
            size = sum(kept.values())
        loss.backward()
        return [p.grad for p in network.parameters() if p.grad is not None], size

    with undisturbed():
        expected, all_kept = step(copy.deepcopy(network))
        found, less = step(copy.deepcopy(network).checkpoint_blocks())
    assert len(found) == len(expected) > 50
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert less < 0.8 * all_kept


# --- interrupted and resumed


def kill_at(engine: Engine, iteration: int, action: Callable[[], None]) -> None:
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), action)


def begun(**overrides: Any) -> ConfigWorkflow:
    found = workflow("train", **overrides)
    with undisturbed():
        found.initialize()
    return found


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from runs import workflow
from test_training import kill_at
plan = dict(max_epochs=4, val_interval=2, crops_per_image=2, accumulate=2)  # three batches in an epoch
found = workflow("train", output_dir="runs/out", dataset_dir=sys.argv[2], tracking_uri=None, **plan)
found.initialize()
kill_at(found.parser.get_parsed_content("train#trainer"), 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
found.run()
"""


def test_a_killed_training_resumes_to_the_weights_of_an_uninterrupted_one(
    phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plan = {"dataset_dir": str(phantom_set), "max_epochs": 4, "val_interval": 2, "crops_per_image": 2}
    plan |= {"accumulate": 2}  # the last optimiser step of an epoch takes one batch
    run("train", output_dir=str(tmp_path / "whole"), **plan)
    done = command("-c", KILLED, str(Path(__file__).parent), str(phantom_set), cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    out = tmp_path / "runs" / "out"
    assert load_checkpoint(out / "checkpoints" / "last.pt")["epoch"] == 2
    run("train", output_dir="runs/out", resume="true", tracking_uri=None, **plan)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(folder / "checkpoints" / name) for folder in (out, tmp_path / "whole"))
        assert_same({**ours, "run_id": None}, {**theirs, "run_id": None})
    with calm():
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=sqlite_uri(tmp_path / "runs" / "mlflow.db"))
        (found,) = client.search_runs([client.get_experiment_by_name("fundus_vessels").experiment_id])
        steps = {metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    assert found.info.status == "FINISHED"
    assert steps == {1, 2, 3, 4}


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}/{number}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def test_sigterm_and_errors_close_the_run_and_the_training_goes_on_from_there(
    phantom_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out"), "max_epochs": 3}
    given |= {"crops_per_image": 2}  # three steps in an epoch
    terminated = begun(**given)
    engine = terminated.parser.get_parsed_content("train#trainer")
    kill_at(engine, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with undisturbed(), pytest.raises(KeyboardInterrupt, match="SIGTERM") as caught:
        terminated.run()
    assert read_journal(tmp_path / "out")[-1]["status"] == "KILLED"
    with undisturbed():
        readable_errors()
        capsys.readouterr()
        sys.excepthook(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().err == "error: interrupted by SIGTERM\n"

    failing = begun(**given, resume=True)
    engine = failing.parser.get_parsed_content("train#trainer")

    def fail() -> None:
        raise OSError("the network drive has gone")

    engine.add_event_handler(Events.EPOCH_STARTED, fail)
    with undisturbed(), pytest.raises(RuntimeError):
        failing.run()
    assert read_journal(tmp_path / "out")[-1]["status"] == "FAILED"

    run("train", **given, resume=True)
    journal = read_journal(tmp_path / "out")
    assert journal[-1]["status"] == "FINISHED"
    assert len({record["run"] for record in journal}) == 1
    last = load_checkpoint(tmp_path / "out" / "checkpoints" / "last.pt")
    assert last["epoch"] == 3

    refused = {"policy": "dynamicvit", "seed": 1, "keep_rate": 0.5, "max_epochs": 5}
    for key, value in refused.items():
        error = failure("train", **{**given, key: value}, resume=True)
        assert "last.pt: cannot resume, " in str(error)
        assert f"and is now {value!r}. Resume with the same configuration." in str(error)
    assert "last.pt holds an earlier training: continue it with --resume true" in str(failure("train", **given))
    assert_same(load_checkpoint(tmp_path / "out" / "checkpoints" / "last.pt"), last)


def test_a_resumed_training_takes_the_learning_rate_given_now(phantom_set: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out"), "warmup_steps": 0}
    first = begun(**given, learning_rate=1.0e-3)
    engine = first.parser.get_parsed_content("train#trainer")
    engine.add_event_handler(Events.EPOCH_STARTED(once=2), engine.terminate)
    state = first.parser.get_parsed_content("state")
    with undisturbed():
        engine.run()
    assert load_checkpoint(state.last)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-3 * 0.5**0.9)
    second = begun(**given, learning_rate=4.0e-4, weight_decay=0.01)
    state = second.parser.get_parsed_content("state")
    engine = second.parser.get_parsed_content("train#trainer")
    state.resume()
    assert [group["lr"] for group in engine.optimizer.param_groups] == pytest.approx([4e-4 * 0.5**0.9] * 2)
    assert sorted(group["weight_decay"] for group in engine.optimizer.param_groups) == [0.0, 0.01]
    assert (engine.state.epoch, engine.state.iteration) == (1, 1)


def test_where_nothing_is_held_out_the_last_average_is_kept(phantom_set: Path, tmp_path: Path) -> None:
    """Cut off after an epoch and gone on with, as a long training is."""
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out"), "max_epochs": 3, "val_interval": 1}
    given |= {"validation_fraction": 0, "inspect_images": 1}
    first = begun(**given)
    engine = first.parser.get_parsed_content("train#trainer")
    engine.add_event_handler(Events.EPOCH_STARTED(once=2), engine.terminate)
    state = first.parser.get_parsed_content("state")
    subjects = {entry["subject"] for part in ("train", "validation") for entry in datalist(phantom_set, part)}
    assert {entry["subject"] for entry in first.parser.get_parsed_content("train_entries")} == subjects
    with undisturbed():
        engine.run()
    assert state.last.is_file()
    assert not state.best.exists()
    run("train", **given, resume=True)
    best, last = load_checkpoint(state.best), load_checkpoint(state.last)
    assert_same(best["network"], last["ema"])
    assert best["epoch"] == 3
    assert "validation_ap" not in best
    records = read_journal(tmp_path / "out")
    assert any("test/pruned/ap" in record["metrics"] for record in records if record["kind"] == "metrics")
    assert "validation/" not in (tmp_path / "out" / "journal.jsonl").read_text()
    assert {each["context"] for each in run_datasets(str(phantom_set), 0)} == {"train", "test"}


def test_a_full_disk_leaves_the_earlier_checkpoint_to_resume_from(phantom_set: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out")}
    found = begun(**given)
    engine = found.parser.get_parsed_content("train#trainer")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    engine.add_event_handler(Events.EPOCH_STARTED(once=2), fill)
    try:
        with undisturbed(), pytest.raises(RuntimeError) as caught:
            found.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "pt: checkpoint not written (" in str(root_cause(caught.value))
    assert "an earlier one is unharmed" in str(root_cause(caught.value))
    folder = tmp_path / "out" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "last.pt"]
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1
    run("train", **given, resume=True)
    assert load_checkpoint(folder / "last.pt")["epoch"] == 2


def test_a_few_steps_on_two_real_photographs(real_data: Path) -> None:
    entries = datalist(real_data / "CHASE_DB1", "train")[:2]
    chain = joined(preprocessing(256), augmentation(64))
    with undisturbed():
        torch.manual_seed(0)
        dataset = CacheDataset(entries * 4, chain, progress=False, hash_as_key=True)
        engine, losses = trainer(DataLoader(dataset, batch_size=8), 12, 3e-3, network=build_segmenter("tiny")), []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(engine.state.output["loss"]))
        engine.run()
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
