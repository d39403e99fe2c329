"""Killed at any moment, a run goes on with nothing lost, nothing half-written, and nothing computed twice."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batches import comparable, computed, seen, segment, segment_in_process, table, write_photographs
from reg4pru_monai.files import is_leftover

COUNT, KILLS = 24, 20
# The server imports everything once; a process forked from it starts in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["batches"])


@pytest.fixture(scope="module", autouse=True)
def search_path() -> Iterator[None]:
    """The server looks for modules where the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), COUNT)


@pytest.fixture(scope="module")
def uninterrupted(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("uninterrupted")
    ended(start(photographs, output), 0)
    return output


def start(photographs: Path, output: Path, **how: Any) -> Any:
    process = PROCESSES.Process(target=segment_in_process, args=(str(photographs), str(output), how))
    process.start()
    return process


def ended(process: Any, status: int) -> None:
    process.join(120)
    assert process.exitcode == status


def leftovers(output: Path) -> list[Path]:
    return [path for path in output.rglob(".*") if is_leftover(path)]


def test_killed_at_random_moments(photographs: Path, uninterrupted: Path, tmp_path: Path) -> None:
    moments, begun = random.Random(0), 0
    before: list[str] = []
    for number in range(KILLS):
        output = tmp_path / str(number // 5)  # so that kills fall on early, middle and late photographs
        before = [] if number % 5 == 0 else before
        target = min(len(before) + moments.randrange(6), COUNT - 1)
        process = start(photographs, output, workers=1 + number % 3)
        while process.is_alive() and len(computed(output)) < target:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        done = computed(output)
        assert done[: len(before)] == before  # the journal only grows
        begun += 0 < len(done) < COUNT
        before = done
    assert begun >= KILLS // 2
    for output in tmp_path.iterdir():
        ended(start(photographs, output), 0)
        names = computed(output)
        assert sorted(names) == sorted({path.name for path in photographs.iterdir()})  # nothing twice
        assert comparable(output) == comparable(uninterrupted)
        assert not leftovers(output)
        assert {each.state for each in seen(output).shards} == {"ended"}


def test_a_killed_run_is_seen_as_such_and_leaves_no_lock(photographs: Path, tmp_path: Path) -> None:
    process = start(photographs, tmp_path)
    while not computed(tmp_path):
        time.sleep(0.01)
    (shard,) = seen(tmp_path).shards
    assert shard.state in ("running", "ended")
    process.kill()
    process.join()
    status = seen(tmp_path)
    assert 0 < status.done < COUNT
    assert status.shards[0].state == "killed"
    assert segment(photographs, tmp_path).missing == 0


def test_a_file_that_kills_the_process_is_tried_alone_and_then_given_up(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 6)
    deadly = folder / "photograph_02.png"
    for expected in (None, 5, 5, 5):  # what was beside it is done by then
        process = start(folder, tmp_path / "out", deadly=str(deadly))
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert expected is None or seen(tmp_path / "out").done == expected
    ended(start(folder, tmp_path / "out", deadly=str(deadly)), 3)
    (row,) = table(tmp_path / "out", "errors.csv")
    assert (row["path"], row["stage"], row["type"]) == (deadly.name, "process", "ProcessEndedError")
    assert "machine with more memory" in row["remedy"]
    assert segment(folder, tmp_path / "out").exit_status == 0  # such as on that machine
    assert table(tmp_path / "out", "errors.csv") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight(photographs: Path, tmp_path: Path, number: int) -> None:
    process = start(photographs, tmp_path)
    while not computed(tmp_path):
        time.sleep(0.01)
    os.kill(process.pid, number)
    ended(process, 130)
    status = seen(tmp_path)
    assert 0 < status.done < COUNT
    assert not status.failures
    assert status.shards[0].state == "stopped"
    assert not leftovers(tmp_path)
    for name in ("results.csv", "errors.csv", "run.json", "report.html"):
        assert (tmp_path / name).is_file()
    again = segment(photographs, tmp_path)
    assert (again.before, again.done) == (status.done, COUNT - status.done)
