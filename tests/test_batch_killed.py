"""Killed at any moment, a run goes on with nothing lost, nothing half-written, and nothing computed twice."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from batches import comparable, segment, segment_in_process, write_photographs
from reg4pru_monai.batch.journal import read_journals
from reg4pru_monai.batch.segment import LEFTOVER
from reg4pru_monai.batch.status import read_status

COUNT, KILLS = 24, 20
# The server imports everything once; a process forked from it starts in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["batches"])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), COUNT)


@pytest.fixture(scope="module")
def uninterrupted(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The output of a run that nobody disturbed, and how long it took."""
    output = tmp_path_factory.mktemp("uninterrupted")
    ended(start(photographs, output / "warm-up"), 0)
    begun = time.monotonic()
    ended(start(photographs, output / "results"), 0)
    return output / "results", time.monotonic() - begun


def start(photographs: Path, output: Path, **how: Any) -> Any:
    process = PROCESSES.Process(target=segment_in_process, args=(str(photographs), str(output), how))
    process.start()
    return process


def ended(process: Any, status: int) -> None:
    process.join(120)
    assert process.exitcode == status


def computed(output: Path) -> list[str]:
    """The name of every result that was ever computed, as often as it was."""
    return [record.name for _, records in read_journals(output) for record in records if record.status == "done"]


def leftovers(output: Path) -> list[Path]:
    return [path for path in output.rglob(".*") if LEFTOVER.fullmatch(path.name)]


def test_killed_at_random_moments(photographs: Path, uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    expected, duration = uninterrupted
    moments = random.Random(0)
    before: list[str] = []
    for number in range(KILLS):
        process = start(photographs, tmp_path, workers=1 + number % 3)
        time.sleep(moments.uniform(0, duration / 4))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        done = computed(tmp_path)
        assert done[: len(before)] == before  # the journal only grows
        before = done
    ended(start(photographs, tmp_path), 0)
    names = computed(tmp_path)
    assert sorted(names) == sorted({path.name for path in photographs.iterdir()})
    assert comparable(tmp_path) == comparable(expected)
    assert not leftovers(tmp_path)
    assert {each.state for each in read_status(tmp_path).shards} == {"ended"}


def test_a_killed_run_is_seen_as_such_and_leaves_no_lock(photographs: Path, tmp_path: Path) -> None:
    process = start(photographs, tmp_path)
    while not computed(tmp_path):
        time.sleep(0.01)
    (shard,) = read_status(tmp_path).shards
    assert shard.state in ("running", "ended")
    process.kill()
    process.join()
    status = read_status(tmp_path)
    assert 0 < status.done <= COUNT
    if status.missing:
        assert status.shards[0].state == "killed"
    assert segment(photographs, tmp_path).missing == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_what_is_in_flight(photographs: Path, tmp_path: Path, number: int, code: int) -> None:
    process = start(photographs, tmp_path)
    while not computed(tmp_path):
        time.sleep(0.01)
    os.kill(process.pid, number)
    ended(process, code)
    status = read_status(tmp_path)
    assert 0 < status.done < COUNT
    assert not status.failures
    assert status.shards[0].state == "stopped"
    assert not leftovers(tmp_path)
    for name in ("results.csv", "errors.csv", "run.json", "report.html"):
        assert (tmp_path / name).is_file()
    again = segment(photographs, tmp_path)
    assert (again.before, again.done) == (status.done, COUNT - status.done)
