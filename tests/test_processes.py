"""Training on several processes, by two real ones on the CPU; against one process where that must give the same."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_training import assert_same

from reg4pru_monai import processes
from reg4pru_monai.fundus.phantom import write_phantoms
from reg4pru_monai.tracking_store import read_journal
from reg4pru_monai.weights import load_checkpoint
from runs import arguments, command, config, settings

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
    from ignite.engine import Events

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


@pytest.fixture(scope="module")
def one(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by one process with batches of four."""
    folder = tmp_path_factory.mktemp("one")
    done = launch(folder, photographs, 1, [WATCH], batch_size=4)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two processes with batches of two each."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(folder, photographs, 2, [WATCH], batch_size=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


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
    assert_same({**ours, "run_id": None}, {**theirs, "run_id": None})
    journal = read_journal(tmp_path / "runs" / "out")
    starts = [record["resumed"] for record in journal if record["kind"] == "start"]
    assert starts == [False, True, True]
    assert len({record["run"] for record in journal}) == 1
    assert journal[-1]["status"] == "FINISHED"
    from test_bundle import the_run

    client, found = the_run(tmp_path / "runs")  # there is one
    assert found.info.status == "FINISHED"
    assert found.data.tags["processes"] == "2"
    assert {metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")} == {1, 2, 3}


def fail_at_fifth(trainer: Any) -> None:
    """Raise an error on rank 1, and write down when."""
    from ignite.engine import Events

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
