"""Running the members of an experiment: one process each, under one parent run, skipping what has been done."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from .. import locks
from ..tracking import JOURNAL_ID, OFF, Tracker, environment_tags
from ..tracking_store import JOURNAL_NAME, calm, masked, read_journal, reason
from .experiments import Experiment
from .plan import Job, Plan, as_text
from .results import (
    GOOD,
    TRAINED,
    Result,
    as_csv,
    last_error,
    local_ap,
    local_result,
    merged_rows,
    stored_result,
    trained_minutes,
)

logger = logging.getLogger(__name__)

LOG_NAME = "training.log"
POLL_SECONDS = 0.2
END_SECONDS = 30.0  # for a training to end by itself where the sweep breaks off


@dataclass
class Running:
    """A training in progress. lock: the process holds it too, so it outlives a sweep that is killed. told: signals."""

    job: Job
    process: "subprocess.Popen[bytes]"
    lock: IO[bytes]
    told: int = 0


class Sweep:
    """Runs the jobs of a plan, ``parallel`` at once. say: called with every line for the user.

    tracking_uri: store that is asked what has been done; "none" for the journals of the output folders alone.
    """

    def __init__(
        self, experiment: Experiment, plan: Plan, tracking_uri: str, parallel: int, say: Callable[[str], None]
    ) -> None:
        self.experiment, self.plan, self.parallel, self.say = experiment, plan, parallel, say
        self.folder = plan.jobs[0].folder.parent
        # Of what the members share, as the parent run: calls with other seeds add to one table, other settings do not.
        self.table = self.folder / f"sweep-{plan.digest[:8]}" / "sweep.csv"
        self.earlier_rows = 0  # of that table, from other calls
        self.tracking_uri = tracking_uri
        self.threads = threads_each(parallel)
        self.signals: list[int] = []
        self._waiting = deque(plan.jobs)
        self._running: list[Running] = []
        self._results: dict[str, Result] = {}
        self._elsewhere: set[str] = set()
        self._warned = False
        self._unasked = False  # whether the store could once not be asked
        self.missing: list[Path] = []  # after `run`: folders with a journal that the store may not hold all of

    def run(self) -> list[Result]:
        """Run what is left to be done; return the results in the order of the plan. Never raises for a member."""
        with stopped_by_signals(self.signals.append), self._parent() as parent:
            known = not parent.run_id.startswith(JOURNAL_ID)  # MLflow is there
            tags = {"mlflow.parentRunId": parent.run_id} if known else {}
            while self._running or (self._waiting and not self.signals):
                self._collect()
                self._start(tags)
                self._pass_on()
                time.sleep(POLL_SECONDS)
            results = [self._results.get(job.name, Result(job, "not run")) for job in self.plan.jobs]
            self._tell(parent, results)
        if self.tracking_uri != OFF and (self._unasked or not parent.complete):
            folders = [] if parent.complete else [self.folder]
            folders += [each.job.folder for each in results if each.status in TRAINED and not each.run_id]
            self.missing = [folder for folder in folders if (folder / JOURNAL_NAME).is_file()]
        return results

    def preview(self) -> str:
        """What `run` would do, as text."""
        lines = []
        for job in self.plan.jobs:
            done = self.finished(job)
            state = done.status if done else "to be resumed" if job.checkpoint.exists() else "to be trained"
            lines += [f"{job.name}: {state}", *([] if done else [as_text(job.command({}), self.threads)])]
        return "\n".join(lines)

    # --- members

    def _start(self, tags: Mapping[str, Any]) -> None:
        """Start waiting jobs as long as there is room; those that another sweep runs wait until it is done."""
        for _ in range(len(self._waiting)):
            if len(self._running) >= self.parallel or self.signals:
                return
            job = self._waiting.popleft()
            lock: IO[bytes] | None = None
            try:
                lock = take_lock(self.folder.parent, job.digest)
                done = self.finished(job) if lock else None
                if lock and not done:
                    self._running.append(self._launch(job, lock, tags))
                    continue
            except OSError as error:  # no room, no permission, no process: the other members may have them
                done = Result(job, "failed", problem=reason(error))
            if lock:
                lock.close()
            if done:
                self._end(done)
            else:
                self._wait_for(job)

    def _wait_for(self, job: Job) -> None:
        """Put a job that another process trains at the end."""
        self._waiting.append(job)
        if job.name not in self._elsewhere:
            self._elsewhere.add(job.name)
            self.say(f"{job.name}: trained by another process; waiting for it")

    def _launch(self, job: Job, lock: IO[bytes], tags: Mapping[str, Any]) -> Running:
        command = job.command({**tags, "sweep": self.experiment.name, "member": job.member})
        self.say(f"{job.name}: {'resumed' if job.checkpoint.exists() else 'started'}\n{as_text(command, self.threads)}")
        job.folder.mkdir(parents=True, exist_ok=True)
        with open(job.folder / LOG_NAME, "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends each training once
                pass_fds=(lock.fileno(),) if locks.AVAILABLE else (),
            )
        return Running(job, process, lock)

    def _collect(self) -> None:
        """Take up the trainings that have ended."""
        for running in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(running)
            running.lock.close()
            try:
                result = self._result(running.job, running.process.returncode)
            except OSError as error:
                result = Result(running.job, "failed", problem=reason(error))
            self._end(result)

    def _result(self, job: Job, code: int) -> Result:
        """The result of a training that ended with an exit status, negative for a signal."""
        minutes = trained_minutes(job)
        if code == 0:
            run_id = found.run_id if (found := self.finished(job)) else ""
            return Result(job, "finished", local_ap(job), minutes, run_id)
        problem = f"killed by signal {-code}" if code < 0 else last_error(job.folder / LOG_NAME)
        return Result(job, "stopped" if self.signals else "failed", (None, None), minutes, "", problem)

    def _end(self, result: Result) -> None:
        self._results[result.job.name] = result
        log = result.job.folder / LOG_NAME
        see = f"; see {log}" if os.path.isfile(log) else ""
        why = f" ({result.problem}{see})" if result.status == "failed" else ""
        self.say(f"[{len(self._results)}/{len(self.plan.jobs)}] {result.job.name}: {result.status}{why}")

    def finished(self, job: Job) -> Result | None:
        """The result of a job that has been done: in the store, or where that cannot be asked in its own folder."""
        if self.tracking_uri != OFF:
            try:
                return stored_result(job, self.tracking_uri)
            except Exception as error:
                self._unasked = True
                self._warn(f"cannot be asked what is done ({reason(error)}); the output folders are asked instead")
        return local_result(job)

    # --- the parent run

    @contextmanager
    def _parent(self) -> Iterator[Tracker]:
        """The run above those of the members; the one of an earlier call is continued."""
        tracker = Tracker.start(
            self.folder,
            experiment=self.plan.mlflow_experiment,
            run_name=self.experiment.name,
            tracking_uri=self.tracking_uri,
            parameters={"members": len(self.experiment.members), "seeds": self.experiment.seeds},
            tags=environment_tags() | self._tags(),
            run_id=earlier_parent(self.folder, self.plan.digest),
        )
        try:
            yield tracker
        except BaseException:
            self._break_off()
            tracker.close("FAILED")
            raise
        good = [result for result in self._results.values() if result.status in GOOD]
        tracker.close("KILLED" if self.signals else "FINISHED" if len(good) == len(self.plan.jobs) else "FAILED")

    def _break_off(self) -> None:
        """End the trainings in progress: nothing would collect them."""
        for running in self._running:
            with suppress(OSError):
                running.process.terminate()
        for running in self._running:
            try:
                running.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()
            running.lock.close()

    def _tags(self) -> dict[str, str]:
        baseline = {"baseline": self.experiment.baseline} if self.experiment.baseline else {}
        note = {"mlflow.note.content": self.experiment.description} if self.experiment.description else {}
        return {"sweep": self.experiment.name, "sweep_digest": self.plan.digest, **baseline, **note}

    def _tell(self, parent: Tracker, results: list[Result]) -> None:
        """Keep the summary in the parent run, and mark in each member's run that it belongs there."""
        try:
            while (lock := take_lock(self.folder.parent, self.table.parent.name)) is None:
                time.sleep(POLL_SECONDS)  # another sweep adds its rows
            with lock:
                rows = merged_rows(self.table, results)
                self.earlier_rows = len(rows) - len(results)
                parent.log_text(as_csv(rows), str(self.table.relative_to(self.folder)))
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self.table, reason(error))
        if not parent.complete:
            return
        try:
            with calm():
                from mlflow.tracking import MlflowClient

                client = MlflowClient(tracking_uri=self.tracking_uri)
                for result in results:
                    if result.run_id:  # a run that was there before may have another parent, and only one
                        client.set_tag(result.run_id, f"member_of.{parent.run_id}", result.job.member)
        except Exception as error:
            self._warn(f"took no tags ({reason(error)})")

    def _warn(self, message: str) -> None:
        if not self._warned:
            logger.warning("MLflow at %s %s", masked(self.tracking_uri), message)
        self._warned = True

    def _pass_on(self) -> None:
        """The first signal ends the trainings as KILLED, so that they can be resumed; a second one at once."""
        for running in self._running:
            if running.told < len(self.signals) and running.process.poll() is None:
                if running.told == 0 and len(self.signals) == 1:
                    running.process.terminate()
                else:
                    os.killpg(running.process.pid, signal.SIGKILL)
                running.told = len(self.signals)


@contextmanager
def stopped_by_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call ``handle`` with the number of every SIGINT, SIGTERM and SIGHUP; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        handle(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def threads_each(parallel: int) -> int:
    """Threads for each of ``parallel`` trainings: a share of $OMP_NUM_THREADS, or of the processors, at least one."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (int(given) if given.isdigit() else there) // parallel)


def take_lock(folder: Path, digest: str) -> IO[bytes] | None:
    """An open file that locks a configuration in an output folder; None where another process holds it.

    Where the file system knows no locks there are none.
    """
    path = folder / ".reg4pru" / f"{digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab")  # noqa: SIM115  # kept open as long as the training runs
    taken = locks.lock(file)
    if taken is False:
        file.close()
        return None
    if taken is None and locks.AVAILABLE:
        logger.warning("%s: the file system knows no locks; do not start two sweeps on it at once", folder)
    return file


def earlier_parent(folder: Path, digest: str) -> str | None:
    """Id of the last parent run in this folder whose members shared the same settings, or None."""
    path = folder / JOURNAL_NAME
    records = read_journal(path) if path.is_file() else []
    same = {r["run"] for r in records if r["kind"] == "tags" and r["tags"].get("sweep_digest") == digest}
    ids = [str(r["run_id"]) for r in records if r["kind"] == "run_id" and r["run"] in same]
    return ids[-1] if ids else None
