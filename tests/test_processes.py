"""Training on several processes, by two real ones on the CPU; against one process where that must give the same."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from ignite.engine import Events
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoise

from networks import disc, small_network
from reg4pru_monai import processes
from reg4pru_monai.bundle import repeated, start_processes
from reg4pru_monai.fundus.phantom import write_phantoms
from reg4pru_monai.losses import TrainingStep
from reg4pru_monai.runtime import ConfigurationError
from reg4pru_monai.tracking_store import read_journal
from reg4pru_monai.training import DrawnByIndex, reseed
from reg4pru_monai.weights import load_checkpoint, save_checkpoint
from runs import arguments, command, config, failure, run, settings, undisturbed
from test_bundle import the_run
from test_training import assert_same

PLAN = {"decoder": "eomt", "crops_per_image": 3, "max_epochs": 3, "validation_fraction": 0.4, "warmup_steps": 2}
TOGETHER = ("-m", "torch.distributed.run", "--standalone")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five to train on, three to validate, two to test."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", train=8, test=2, size=112, seed=0)


def launch(folder: Path, data: Path, count: int, actions: list[str], restarts: int = 0, **overrides: Any) -> Any:
    """Train on several processes, with further actions in front of the training."""
    overlay = folder / "actions.yaml"
    names = ("signal", "torch", "test_processes")
    imports = [f"$import {name}" for name in names] + ["$from ignite.engine import Events"]
    paths = f"$__import__('sys').path.insert(0, {str(Path(__file__).parent)!r})"
    training = "$bundle.train(@train#trainer, @state, @evaluation, @tracking, @resume, @after)"
    overlay.write_text(yaml.safe_dump({"training": [paths, *imports, *actions, training]}))
    files = f"['{config('train')}','{config('multi_gpu_train')}','{overlay}']"
    values = settings("train", output_dir="runs/out", dataset_dir=str(data), **{**PLAN, **overrides})
    del values["device"]  # the overlay chooses it
    how = (*TOGETHER, f"--nproc_per_node={count}", f"--max-restarts={restarts}", "-m", "monai.bundle", "run")
    return command(*how, "training", "--config_file", files, *arguments(values), cwd=folder)


def watch(trainer: Any, validator: Any, average: Any) -> None:
    """Write down at the end of each epoch what this process saw and has: rank0.pt, rank1.pt."""
    seen: dict[str, list[Any]] = {name: [] for name in ("crops", "windows", "lengths", "validated")}
    policy = trainer.segmenter.encoder.policy
    draw, forward = policy.draw, trainer.segmenter.encoder.forward

    def drawn(*inputs: Any) -> Any:
        step = draw(*inputs)
        if policy.training:
            seen["windows"].append(tuple(step.window))
        return step

    def encoded(*inputs: Any, **options: Any) -> Any:
        result = forward(*inputs, **options)
        seen["lengths"].append(result[1].lengths)
        return result

    policy.draw, trainer.segmenter.encoder.forward = drawn, encoded
    fingerprints = lambda engine: [round(float(image.sum()), 3) for image in engine.state.batch["image"]]  # noqa: E731
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda engine: seen["crops"].append(fingerprints(engine)))
    validator.add_event_handler(
        Events.GET_BATCH_COMPLETED, lambda engine: seen["validated"].append(fingerprints(engine)[0])
    )

    def write() -> None:
        state = {"average": average.module.state_dict(), "network": trainer.segmenter.state_dict()}
        torch.save({**seen, **state}, f"rank{processes.rank()}.pt")

    trainer.add_event_handler(Events.COMPLETED, write)


WATCH = "$test_processes.watch(@train#trainer, @validate#evaluator, @average)"


def watched(folder: Path, photographs: Path, count: int, batch_size: int) -> Path:
    done = launch(folder, photographs, count, [WATCH], batch_size=batch_size)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def one(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by one process with batches of four."""
    return watched(tmp_path_factory.mktemp("one"), photographs, 1, batch_size=4)


@pytest.fixture(scope="module")
def two(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two processes with batches of two each."""
    return watched(tmp_path_factory.mktemp("two"), photographs, 2, batch_size=2)


def seen_by(folder: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


def curves(folder: Path) -> dict[int, dict[str, float]]:
    records = [record for record in read_journal(folder / "runs" / "out") if record["kind"] == "metrics"]
    return {record["step"]: record["metrics"] for record in records}


def last(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "runs" / "out" / "checkpoints" / "last.pt")


def test_two_processes_have_the_loss_curve_and_metrics_of_one(one: Path, two: Path) -> None:
    ours, theirs = curves(two), curves(one)
    assert ours.keys() == theirs.keys() == {0, 1, 2, 3}  # 0: the test
    for epoch in (1, 2, 3):
        assert ours[epoch] == pytest.approx(theirs[epoch], rel=1e-4)
    timed = ("images_per_second", "latency", "speed", "efficiency", "memory")
    names = [name for name in theirs[0] if not any(word in name for word in timed)]
    assert [ours[0][name] for name in names] == pytest.approx([theirs[0][name] for name in names], abs=1e-3)
    assert ours[3]["train/loss"] < ours[1]["train/loss"]


def test_batches_are_those_of_one_process_and_new_in_every_epoch(one: Path, two: Path) -> None:
    dealt = [seen_by(two, rank)["crops"] for rank in (0, 1)]
    together = [sorted(first + second) for first, second in zip(*dealt, strict=True)]
    whole = seen_by(one)["crops"]
    assert together == [sorted(batch) for batch in whole]
    assert len(whole) == 9  # three of four crops in each of three epochs; three crops are left over in each
    assert len({crop for batch in whole for crop in batch}) == 36


def test_the_window_and_the_numbers_of_tokens_are_equal_in_every_step(one: Path, two: Path) -> None:
    first, second, alone = seen_by(two), seen_by(two, 1), seen_by(one)
    assert first["windows"] == second["windows"] == alone["windows"]
    assert len(set(first["windows"])) > 3
    assert first["lengths"][: len(first["windows"])] == second["lengths"][: len(first["windows"])]


def test_every_photograph_is_validated_once(one: Path, two: Path) -> None:
    shares = [seen_by(two, rank)["validated"] for rank in (0, 1)]
    assert [len(share) for share in shares] == [2 * 3, 1 * 3]  # of three photographs, in three epochs
    assert sorted(shares[0] + shares[1]) == sorted(seen_by(one)["validated"])


def test_weights_and_their_average_are_equal_on_all_processes_and_one_writes(two: Path) -> None:
    first, second = seen_by(two), seen_by(two, 1)
    assert_same(first["average"], second["average"])
    assert_same(first["network"], second["network"])
    assert_same(last(two)["ema"], first["average"])
    journal = read_journal(two / "runs" / "out")
    assert len({record["run"] for record in journal}) == 1
    assert [record["kind"] for record in journal].count("start") == 1
    assert journal[-1]["status"] == "FINISHED"
    assert last(two)["processes"] == 2


# --- a process that dies

KILL = (
    "$@train#trainer.add_event_handler(Events.ITERATION_COMPLETED(once={at}), "
    "lambda: os.kill(os.getpid(), signal.SIGKILL)) if dist.get_rank() == {rank} "
    "and os.environ['TORCHELASTIC_RESTART_COUNT'] == '{attempt}' else None"
)


def test_killed_processes_start_again_and_end_with_the_weights_of_an_undisturbed_training(
    two: Path, photographs: Path, tmp_path: Path
) -> None:
    """One dies before the first checkpoint, the other behind the first epoch."""
    kills = [KILL.format(at=2, rank=1, attempt=0), KILL.format(at=5, rank=0, attempt=1)]
    done = launch(tmp_path, photographs, 2, [WATCH, *kills], restarts=2, batch_size=2, tracking_uri=None)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = last(tmp_path), last(two)
    for state in (ours, theirs):  # the configuration has another digest: it holds what kills
        del state["run_id"], state["configuration"]
    assert_same(ours, theirs)
    journal = read_journal(tmp_path / "runs" / "out")
    starts = [record["resumed"] for record in journal if record["kind"] == "start"]
    assert starts == [False, True, True]
    assert len({record["run"] for record in journal}) == 1
    assert journal[-1]["status"] == "FINISHED"
    client, found = the_run(tmp_path / "runs")  # there is one
    assert found.info.status == "FINISHED"
    assert found.data.tags["processes"] == "2"
    assert {metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")} == {1, 2, 3}


def fail_at_fifth(trainer: Any) -> None:
    """Raise an error on rank 1, and write down when."""

    def fail() -> None:
        Path("failed").write_text(str(time.time()))
        raise OSError("the network drive has gone")

    if processes.rank() == 1:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), fail)


def test_an_error_in_one_process_ends_the_others_soon_and_closes_the_run(photographs: Path, tmp_path: Path) -> None:
    failing = "$test_processes.fail_at_fifth(@train#trainer)"
    done = launch(tmp_path, photographs, 2, [failing], batch_size=2)
    assert done.returncode == 1
    assert time.time() - float((tmp_path / "failed").read_text()) < 60
    assert "the network drive has gone" in done.stderr
    assert read_journal(tmp_path / "runs" / "out")[-1]["status"] in ("FAILED", "KILLED")
    assert last(tmp_path)["epoch"] == 1


# --- the laws below, without a training

GRADIENTS = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from test_processes import CASES, gradients, rim_batch
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
found = {policy: gradients(policy, rim_batch(rank, 2), DistributedDataParallel) for policy in CASES}
torch.save(found, f"rank{rank}.pt")
torch.distributed.destroy_process_group()
"""
CASES = ("dense", "masked", "dynamicvit", "gumbel+reg4pru", "cropr", "random", "reg4pru")


def rim_batch(first: int, step: int) -> list[torch.Tensor]:
    """Every step-th of four images, labels and fields of view; each sees the rim elsewhere, so that tokens differ."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(4, 3, 32, 32, generator=generator)
    label = (torch.rand(4, 1, 32, 32, generator=generator) < 0.2).float()
    fov = torch.cat([disc((32, 32), (4.0 * number, 8.0), 12 + 5 * number) for number in range(4)]).float()
    return [each[first::step] for each in (image, label, fov)]


def gradients(policy: str, batch: list[torch.Tensor], wrap: Any = lambda step: step) -> dict[str, Any]:
    """Loss terms and gradients of a small network in the middle of its training."""
    options = {} if policy in ("dense", "masked") else {"keep_range": [0.4, 0.8]}
    network = small_network(policy.replace("masked", "dense"), "eomt", **options)
    network.decoder.masked = float(policy == "masked")  # type: ignore[union-attr]
    step = wrap(TrainingStep(network.train()))
    torch.manual_seed(5)
    terms = step(*batch, 0.4)
    torch.stack(list(terms.values())).sum().backward()
    found = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    return {"terms": processes.means(torch.stack(list(terms.values()))), **found}


def test_loss_and_gradients_of_every_policy_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    done = command(*TOGETHER, "--nproc_per_node=2", "gradients.py", str(Path(__file__).parent), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    halves = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for policy in CASES:
        with undisturbed():
            whole = gradients(policy, rim_batch(0, 1))
        assert len(whole) > 50
        for half in halves:
            for name, value in whole.items():
                assert torch.allclose(half[policy][name], value, rtol=1e-3, atol=2e-5), (policy, name)


def test_one_process_is_left_as_it_is() -> None:
    value = torch.tensor(3.0, requires_grad=True)
    assert processes.sums(value, value)[0] is value
    assert (processes.count(), processes.rank(), processes.is_main_process()) == (1, 0, True)
    assert processes.highest(torch.tensor(7)) == 7
    with undisturbed():
        torch.manual_seed(0)
        expected = torch.rand(2, 3)
        torch.manual_seed(0)
        assert torch.equal(processes.uniform(2, 3, device=torch.device("cpu")), expected)


@pytest.mark.parametrize(("total", "count"), [(0, 1), (1, 2), (5, 2), (6, 3), (2, 3), (7, 4)])
def test_shares_are_complete_and_none_is_empty(total: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(count):
        monkeypatch.setattr(processes, "count", lambda: count)
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(list(processes.share(total)))
    times = 1 if total >= count else count  # all of them do all
    assert sorted(item for share in shares for item in share) == sorted(times * list(range(total)))
    assert total == 0 or all(shares)


def test_crops_are_a_function_of_seed_epoch_and_index() -> None:
    def drawn(seed: int, epoch: int, order: list[int]) -> dict[int, float]:
        chain = Compose([RandGaussianNoise(prob=1.0)])
        dataset = DrawnByIndex([torch.zeros(1, 2, 2)] * 4, chain, seed=seed, progress=False)
        loader = DataLoader(dataset, batch_size=1)
        reseed(seed, SimpleNamespace(state=SimpleNamespace(epoch=epoch, dataloader=loader)))  # type: ignore[arg-type]
        return {index: float(dataset[index].sum()) for index in order}

    with undisturbed():
        first = drawn(1, 1, [0, 1, 2, 3])
        assert drawn(1, 1, [3, 1]) == {index: first[index] for index in (3, 1)}
        others = [*first.values(), *drawn(1, 2, [0, 1]).values(), *drawn(2, 1, [0, 1]).values()]
    assert len(set(others)) == 8


def test_what_a_start_with_several_processes_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with undisturbed(), pytest.raises(ConfigurationError, match="start it with torchrun"):
        start_processes()
    monkeypatch.setattr(processes, "count", lambda: 4)
    with pytest.raises(ConfigurationError, match="3 crops in an epoch do not suffice for 4 processes: raise crops_per"):
        repeated([{}] * 3, 1)


# --- going on by itself


def test_resume_auto_goes_on_with_the_same_training_only(phantom_set: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom_set), "output_dir": str(tmp_path / "out"), "resume": "auto", "max_epochs": 1}
    path = tmp_path / "out" / "checkpoints" / "last.pt"
    run("train", **given)
    assert load_checkpoint(path)["epoch"] == 1
    run("train", **given)
    (name,) = {record["run"] for record in read_journal(tmp_path / "out")}
    error = failure("train", **given, learning_rate=1.0e-3)
    assert "last.pt holds a training with other settings or data: choose another --output_dir, or" in str(error)
    save_checkpoint(path, {**load_checkpoint(path), "processes": 2})
    assert "cannot resume, it was trained by 2 process(es) and now by 1" in str(failure("train", **given))
    path.unlink()
    run("train", **given)  # as after a death in the first epoch
    assert {record["run"] for record in read_journal(tmp_path / "out")} == {name}
