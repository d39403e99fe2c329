"""`reg4pru sweep` with real trainings on phantoms, and a real SQLite store."""

import csv
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from reg4pru_monai.cli import app
from reg4pru_monai.sweeps import run as sweeping
from reg4pru_monai.sweeps.experiments import read_experiment
from reg4pru_monai.sweeps.plan import Job, plan
from reg4pru_monai.sweeps.results import (
    Result,
    as_csv,
    exit_status,
    last_error,
    local_result,
    merged_rows,
    stored_result,
    summary,
)
from reg4pru_monai.sweeps.run import Sweep, earlier_parent, take_lock, threads_each
from reg4pru_monai.tracking_store import RunStore, calm, read_journal, sqlite_uri
from runs import TINY, run

EPOCHS = 12
MEMBERS: dict[str, Any] = {
    "hand": {},
    "bad": {"set": {"learning_rate": 1.0e30, "warmup_steps": 0}},
    "long": {"set": {"policy": "dense", "max_epochs": EPOCHS, "val_interval": EPOCHS}},
}


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def write(folder: Path, members: dict[str, Any], **more: Any) -> Path:
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump({"set": TINY, "members": members, **more}, sort_keys=False))
    return path


def stored(uri: str) -> dict[str, Any]:
    """All runs of the store, by the start of their name."""
    with calm():
        return {run.info.run_name.rsplit("-", 3)[0]: run for run in RunStore(uri, "").search("")}


# --- a sweep that is stopped, and started again


@dataclass
class Swept:
    """What the two calls said and left behind."""

    output: Path
    jobs: dict[str, Job]
    first: Any
    between: dict[str, Any]
    second: Any
    after: dict[str, Any]
    command: list[str]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    """One member trained by hand; a first call that SIGTERM ends in the last member; a second call."""
    folder = tmp_path_factory.mktemp("sweep")
    path, output = write(folder, MEMBERS, baseline="hand", description="A *trial*."), folder / "runs"
    uri = sqlite_uri(output / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        jobs = {job.member: job for job in plan(read_experiment(path), output, tracking_uri=uri).jobs}
        run("train", **{**jobs["hand"].settings, "output_dir": str(output / "somewhere"), "run_name": "mine"})
        command = ["sweep", str(path), "--output-dir", str(output)]
        first = stopped_when(jobs["long"].checkpoint.exists, command)
        between = stored(uri)
        with pytest.MonkeyPatch.context() as cheap:
            train = Job.command
            failing = [sys.executable, "-c", "raise SystemExit('error: as before')"]  # seconds less than a training
            cheap.setattr(Job, "command", lambda job, tags: failing if job.member == "bad" else train(job, tags))
            second = CliRunner().invoke(app, [*command, "--jobs", "2"])
        yield Swept(output, jobs, first, between, second, stored(uri), command)


def stopped_when(condition: Callable[[], bool], command: list[str]) -> Any:
    """Run a command in this process, and send SIGTERM to it as soon as ``condition()`` holds."""
    ended = threading.Event()

    def stop() -> None:
        while not ended.is_set():
            if condition():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        return CliRunner().invoke(app, command)
    finally:
        ended.set()
        thread.join()


def test_the_first_call_goes_on_past_a_failure_and_stops_as_told(swept: Swept) -> None:
    said = swept.first.output
    assert swept.first.exit_code == 128 + signal.SIGTERM, said
    assert "[1/3] hand-seed42: finished before" in said
    assert "[2/3] bad-seed42: failed (probability holds" in said
    assert "[3/3] long-seed42: stopped" in said
    statuses = {name: run.info.status for name, run in swept.between.items()}
    ended = {"trial": "KILLED", "trial-bad-seed42": "FAILED", "trial-long-seed42": "KILLED", "mine": "FINISHED"}
    assert statuses == ended
    assert "thread" in swept.between["trial-long-seed42"].data.tags["hardware"]  # told before the evaluation


def test_members_are_children_of_one_run_and_carry_their_digest(swept: Swept) -> None:
    parent = swept.after["trial"]
    for name in ("bad", "long"):
        tags = swept.after[f"trial-{name}-seed42"].data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["sweep"], tags["member"]) == ("trial", name)
        assert tags["configuration_digest"] == swept.jobs[name].digest
    assert swept.after["mine"].data.tags["configuration_digest"] == swept.jobs["hand"].digest
    assert parent.data.tags["baseline"] == "hand"
    assert parent.data.tags["mlflow.note.content"] == "A *trial*."
    assert "configuration_digest" not in parent.data.tags


def test_the_second_call_skips_resumes_and_tries_again_in_the_same_runs(swept: Swept) -> None:
    said = swept.second.output
    assert swept.second.exit_code == 1, said
    assert "hand-seed42: finished before" in said
    assert "bad-seed42: started" in said
    assert "long-seed42: resumed" in said
    assert "long-seed42: finished\n" in said
    before, after = swept.between, swept.after
    assert after["trial"].info.run_id == before["trial"].info.run_id
    assert after["trial"].info.status == "FAILED"
    assert after["mine"].info.end_time == before["mine"].info.end_time
    assert after["trial-long-seed42"].info.run_id == before["trial-long-seed42"].info.run_id
    assert after["trial-long-seed42"].info.status == "FINISHED"
    records = [r for r in read_journal(swept.jobs["long"].folder) if "train/loss" in r.get("metrics", {})]
    assert [record["step"] for record in records] == list(range(1, EPOCHS + 1))


def test_the_summary_has_every_member_and_its_numbers(swept: Swept) -> None:
    text, where = swept.second.output.split("\n\n")[-2:]
    table = text.splitlines()
    assert table[0].split("  ")[0] == "member"
    measured = json.loads((swept.jobs["long"].folder / "metrics.json").read_text())
    (row,) = [line.split() for line in table if line.startswith("long")]
    assert row[1:4] == ["42", "finished", f"{measured['dense/ap']:.4f}"]
    assert not [name for name in measured if name.startswith("pruned")]
    assert row[-1] == str(swept.jobs["long"].folder)
    (row,) = [line.split() for line in table if line.startswith("hand")]
    assert row[-2:] == ["run", swept.after["mine"].info.run_id]
    assert row[4] == f"{swept.after['mine'].data.metrics['test/dense/ap']:.4f}"
    (path,) = (swept.output / "trial").glob("sweep-*/sweep.csv")
    assert where.strip() == f"Table of all members: {path}"
    with open(path, newline="") as file:
        rows = {each["member"]: each for each in csv.DictReader(file)}
    assert [rows[name]["status"] for name in MEMBERS] == ["finished before", "failed", "finished"]
    assert rows["hand"]["run_id"] == swept.after["mine"].info.run_id
    parent = swept.after["trial"].info.run_id
    for name, run_name in (("hand", "mine"), ("long", "trial-long-seed42")):
        assert swept.after[run_name].data.tags[f"member_of.{parent}"] == name


def test_minutes_leave_out_the_time_between_two_processes(swept: Swept) -> None:
    uri = sqlite_uri(swept.output / "mlflow.db")
    long, hand = stored_result(swept.jobs["long"], uri), stored_result(swept.jobs["hand"], uri)
    assert long is not None and long.minutes is not None and hand is not None  # noqa: PT018
    info = swept.after["trial-long-seed42"].info
    assert 0 < long.minutes < (info.end_time - info.start_time) / 60_000
    assert hand.minutes is None  # its journal is elsewhere


def test_a_dry_run_says_what_is_left(swept: Swept) -> None:
    before = sorted(swept.output.rglob("*"))
    result = CliRunner().invoke(app, [*swept.command, "--dry-run"])
    assert result.exit_code == 0
    assert "long-seed42: finished before\n" in result.output
    lines = result.output.splitlines()
    printed = shlex.split(lines[lines.index("bad-seed42: to be trained") + 1])
    assert printed[0].startswith("OMP_NUM_THREADS=")
    assert printed[1:] == swept.jobs["bad"].command({})
    assert sorted(swept.output.rglob("*")) == before
    fresh = CliRunner().invoke(app, [*swept.command, "--dry-run", "--seeds", "7,8", "--", "--keep_rate", "0.5"])
    assert fresh.output.count(": to be trained") == 6
    assert fresh.output.count("--keep_rate 0.5") == fresh.output.count("OMP_NUM_THREADS=") == 6


# --- one process each, without training


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """An experiment of two members."""
    return write(tmp_path, {"a": {}, "b": {"set": {"policy": "dense"}}})


def pretend(monkeypatch: pytest.MonkeyPatch, trial: Path, code: str, uri: str = "none", jobs: int = 1) -> Sweep:
    """A sweep whose trainings are this Python code, with FOLDER their output folder."""
    monkeypatch.setattr(
        Job, "command", lambda job, tags: [sys.executable, "-c", f"FOLDER = {str(job.folder)!r}\n{code}"]
    )
    experiment = read_experiment(trial)
    return Sweep(experiment, plan(experiment, trial.parent / "runs"), uri, jobs, lambda line: None)


def test_members_run_at_once_with_their_share_of_threads(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    meet = (
        "import os, pathlib, time\n"
        "pathlib.Path(FOLDER, 'here').write_text(os.environ['OMP_NUM_THREADS'])\n"
        "while len(list(pathlib.Path(FOLDER).parent.glob('*/here'))) < 2: time.sleep(0.01)"
    )
    sweep = pretend(monkeypatch, trial, meet, jobs=2)
    assert [result.status for result in sweep.run()] == ["finished", "finished"]
    assert [path.read_text() for path in sweep.folder.glob("*/here")] == ["3", "3"]
    assert [threads_each(n) for n in (1, 4, 8)] == [6, 1, 1]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_each(1) == len(os.sched_getaffinity(0))


def test_two_signals_end_trainings_that_do_not_listen(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    deaf = (
        "import signal, time, pathlib\nsignal.signal(signal.SIGTERM, lambda *_: pathlib.Path(FOLDER, 'told').touch())\n"
    )
    deaf += "pathlib.Path(FOLDER, 'here').touch()\nwhile True: time.sleep(0.01)"
    sweep = pretend(monkeypatch, trial, deaf)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupt() -> None:
        for name in ("here", "told"):
            while not list(sweep.folder.glob(f"*/{name}")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    results = sweep.run()
    thread.join()
    assert [result.status for result in results] == ["stopped", "not run"]
    assert results[0].problem == "killed by signal 9"
    assert exit_status(results, sweep.signals) == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert read_journal(sweep.folder)[-1]["status"] == "KILLED"


def test_a_member_that_another_process_trains_is_waited_for(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    sweep = pretend(monkeypatch, trial, "open(FOLDER + '/here', 'x')")
    first = sweep.plan.jobs[0]
    lock = take_lock(trial.parent / "runs", first.digest)
    assert lock is not None
    assert take_lock(trial.parent / "runs", first.digest) is None
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line == "[1/2] b-seed42: finished":  # the other process has done its work
            first.folder.mkdir()
            records = [{"run": "r", "time": 0, "kind": "end", "status": "FINISHED"}]
            (first.folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            (first.folder / "metrics.json").write_text('{"dense/ap": 0.5, "pruned/ap": 0.25}')
            lock.close()

    sweep.say = say
    results = sweep.run()
    assert lines.count("a-seed42: trained by another process; waiting for it") == 1
    assert [(result.status, result.ap) for result in results] == [
        ("finished before", (0.5, 0.25)),
        ("finished", (None, None)),
    ]
    assert not (first.folder / "here").exists()


def test_a_training_keeps_its_lock_when_its_sweep_is_killed(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    sweep = pretend(monkeypatch, trial, "import time; time.sleep(60)")
    job = sweep.plan.jobs[0]
    lock = take_lock(trial.parent / "runs", job.digest)
    assert lock is not None
    running = sweep._launch(job, lock, {})
    lock.close()  # as the system does with a process that is killed
    assert take_lock(trial.parent / "runs", job.digest) is None
    running.process.kill()
    running.process.wait()
    again = take_lock(trial.parent / "runs", job.digest)
    assert again is not None
    again.close()


def test_a_server_that_is_down_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, trial: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweeping, "POLL_SECONDS", 0.01)
    sweep = pretend(monkeypatch, trial, "pass", uri="http://127.0.0.1:9", jobs=2)
    assert [result.status for result in sweep.run()] == ["finished", "finished"]
    said = [r.getMessage() for r in caplog.records if "cannot be asked what is done" in r.getMessage()]
    assert len(said) == 1
    assert sweep.missing == [sweep.folder]  # these trainings keep no journal
    assert earlier_parent(sweep.folder, sweep.plan.digest) is None


def test_a_store_that_cannot_be_used_is_named_with_the_cause_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, trial: Path
) -> None:
    uri, folder = "http://127.0.0.1:9", trial.parent / "runs" / "trial"
    writes = "from pathlib import Path\nPath(FOLDER, 'journal.jsonl').touch()"
    jobs = pretend(monkeypatch, trial, writes).plan.jobs
    given = ["sweep", str(trial), "--output-dir", str(trial.parent / "runs"), "--tracking-uri", uri]
    said = CliRunner().invoke(app, given)
    assert said.exit_code == 0, said.output
    command = shlex.join(
        ["reg4pru", "tracking", "sync", *map(str, [folder, *(job.folder for job in jobs)]), "--tracking-uri", uri]
    )
    assert f"MLflow at {uri} has not taken everything" in said.stderr
    assert said.stderr.splitlines()[-2] == command
    assert [line.split()[2] for line in said.stdout.splitlines() if line.startswith(("a ", "b "))] == ["finished"] * 2


def test_what_a_store_holds_needs_no_remedy(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    sweep = pretend(monkeypatch, trial, "raise SystemExit(1)", uri=sqlite_uri(trial.parent / "mlflow.db"))
    assert [result.status for result in sweep.run()] == ["failed", "failed"]
    assert sweep.missing == []


def test_a_parent_run_is_continued_by_the_same_settings_alone(tmp_path: Path) -> None:
    records = [
        {"run": "x-1", "time": 0, "kind": "tags", "tags": {"sweep_digest": "aa"}},
        {"run": "x-1", "time": 0, "kind": "run_id", "run_id": "first"},
        {"run": "x-2", "time": 0, "kind": "tags", "tags": {"sweep_digest": "bb"}},
        {"run": "x-2", "time": 0, "kind": "run_id", "run_id": "second"},
    ]
    assert earlier_parent(tmp_path, "aa") is None
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [earlier_parent(tmp_path, digest) for digest in ("aa", "bb", "cc")] == ["first", "second", None]


# --- what goes wrong in the sweep itself


def test_a_member_that_cannot_be_started_fails_alone(
    monkeypatch: pytest.MonkeyPatch, trial: Path, tmp_path: Path
) -> None:
    sweep = pretend(monkeypatch, trial, "pass")
    first = sweep.plan.jobs[0]
    sweep.folder.mkdir(parents=True)
    first.folder.touch()  # a file where the folder should be
    lines: list[str] = []
    sweep.say = lines.append
    results = sweep.run()
    assert [result.status for result in results] == ["failed", "finished"]
    assert results[0].problem.startswith("FileExistsError")
    assert f"[1/2] a-seed42: failed ({results[0].problem})" in lines
    assert read_journal(sweep.folder)[-1]["status"] == "FAILED"
    lock = take_lock(tmp_path / "runs", first.digest)
    assert lock is not None
    lock.close()


def test_a_sweep_that_breaks_off_ends_its_trainings(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    sweep = pretend(monkeypatch, trial, "import time; time.sleep(60)", jobs=2)

    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(sweep, "_pass_on", broken)
    with pytest.raises(RuntimeError, match="broken"):
        sweep.run()
    assert [running.process.returncode for running in sweep._running] == [-signal.SIGTERM] * 2
    assert all(running.lock.closed for running in sweep._running)
    assert read_journal(sweep.folder)[-1]["status"] == "FAILED"


def test_a_sweep_that_breaks_off_kills_what_does_not_listen(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    deaf = "import signal, time, pathlib\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    sweep = pretend(monkeypatch, trial, f"{deaf}pathlib.Path(FOLDER, 'here').touch()\ntime.sleep(60)")
    monkeypatch.setattr(sweeping, "END_SECONDS", 0.1)

    def broken() -> None:
        while not list(sweep.folder.glob("*/here")):
            time.sleep(0.01)
        raise RuntimeError("broken")

    monkeypatch.setattr(sweep, "_pass_on", broken)
    with pytest.raises(RuntimeError, match="broken"):
        sweep.run()
    assert [running.process.returncode for running in sweep._running] == [-signal.SIGKILL]


def test_a_table_that_cannot_be_written_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, trial: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = pretend(monkeypatch, trial, "pass")
    sweep.folder.mkdir(parents=True)
    sweep.table.parent.touch()
    assert [result.status for result in sweep.run()] == ["finished", "finished"]
    assert f"{sweep.table}: cannot be written" in caplog.text


# --- what is said


def test_calls_with_other_seeds_add_to_one_table(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    monkeypatch.setattr(Job, "command", lambda job, tags: [sys.executable, "-c", "pass"])
    output = trial.parent / "runs"

    def called(*words: str) -> str:
        command = ["sweep", str(trial), "--output-dir", str(output), "--tracking-uri", "none", *words]
        return CliRunner().invoke(app, command).output.splitlines()[-1]

    def table(path: str) -> list[tuple[str, str]]:
        with open(path, newline="") as file:
            return [(row["member"], row["seed"]) for row in csv.DictReader(file)]

    path = called("--seeds", "1,2").removeprefix("Table of all members: ")
    assert table(path) == [("a", "1"), ("b", "1"), ("a", "2"), ("b", "2")]
    assert called("--seeds", "2,3") == f"Table of all members (2 more of earlier calls): {path}"
    assert table(path) == [("a", "1"), ("b", "1"), ("a", "2"), ("b", "2"), ("a", "3"), ("b", "3")]
    other = called("--seeds", "1", "--", "--keep_rate", "0.5").removeprefix("Table of all members: ")
    assert len(table(other)) == 2
    assert len(table(path)) == 6


def test_a_member_that_was_not_run_keeps_its_row(trial: Path, tmp_path: Path) -> None:
    jobs = plan(read_experiment(trial), tmp_path / "runs").jobs
    path = tmp_path / "sweep.csv"
    path.write_text(as_csv(merged_rows(path, [Result(job, "finished", run_id="1") for job in jobs])))
    rows = merged_rows(path, [Result(jobs[0], "not run"), Result(jobs[1], "failed")])
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert [row["status"] for row in merged_rows(tmp_path / "none", [Result(jobs[0], "not run")])] == ["not run"]


def test_the_journal_says_whether_and_how_long_a_training_ran(trial: Path, tmp_path: Path) -> None:
    job = plan(read_experiment(trial), tmp_path / "runs").jobs[0]
    job.folder.mkdir(parents=True)
    minute = 60_000
    steps: list[dict[str, Any]] = [
        {"run": "earlier", "time": 0, "kind": "start"},
        {"run": "earlier", "time": 5 * minute, "kind": "end", "status": "FAILED"},
        {"run": "r", "time": 10 * minute, "kind": "start"},
        {"run": "r", "time": 12 * minute, "kind": "end", "status": "KILLED"},
        {"run": "r", "time": 100 * minute, "kind": "start"},
        {"run": "r", "time": 103 * minute, "kind": "end", "status": "FINISHED"},
        {"run": "r", "time": 103 * minute, "kind": "run_id", "run_id": "1"},
    ]

    def result(count: int) -> Result | None:
        (job.folder / "journal.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps[:count]))
        return local_result(job)

    found = result(7)
    assert found is not None
    assert (found.status, found.minutes) == ("finished before", 5.0)
    assert [result(count) for count in range(6)] == [None] * 6


def test_the_end_of_a_log_says_why(tmp_path: Path) -> None:
    log = tmp_path / "training.log"
    assert last_error(log) == "it said nothing"
    log.write_text("error: old\nstep\nerror: the loss became nan\nlater\n")
    assert last_error(log) == "the loss became nan"
    log.write_text("Killed\n")
    assert last_error(log) == "Killed"


def test_the_exit_status_is_of_the_worst(trial: Path) -> None:
    job, other = plan(read_experiment(trial), trial.parent / "runs").jobs
    good, before, failed = Result(job, "finished"), Result(other, "finished before"), Result(other, "failed")
    assert exit_status([good, before], []) == 0
    assert exit_status([good, failed], []) == 1
    assert exit_status([good, failed], [signal.SIGTERM]) == 143
    assert summary([good, failed]).splitlines()[2].split() == ["b", "42", "failed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1,x"], "--seeds must be different whole numbers such as [42, 43], got [1, 'x']"),
        (["--dataset-dir", "nowhere"], "nowhere does not exist"),
        (["--", "--max_epoch", "3"], "member a: unknown key 'max_epoch': did you mean 'max_epochs'?"),
        (["--", "--seed", "3"], "'seed' cannot be set here; give seeds in the experiment, or --seeds"),
        (["--", "--policy", "dense", "--tracking::run_name", "x"], "'tracking' no longer reads '@run_name'"),
    ],
)
def test_a_mistake_ends_the_command_before_anything_is_written(
    options: list[str], message: str, trial: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    result = CliRunner().invoke(app, ["sweep", str(trial), "--output-dir", str(output), *options])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert message in result.output
    assert not output.exists()


def test_an_output_folder_that_cannot_be_made_ends_the_command(trial: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = ["sweep", str(trial), "--output-dir", str(tmp_path / "file"), "--tracking-uri", "none"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert str(tmp_path / "file") in result.output


def test_secrets_of_the_environment_stay_out_of_the_commands(monkeypatch: pytest.MonkeyPatch, trial: Path) -> None:
    command = ["sweep", str(trial), "--dry-run", "--output-dir", str(trial.parent / "runs")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/hush.db")
    assert "hush" not in CliRunner().invoke(app, command).output
    assert CliRunner().invoke(app, [*command, "--tracking-uri", "none"]).output.count("--tracking_uri none") == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert CliRunner().invoke(app, command).output.count("--tracking_uri sqlite:///") == 2
