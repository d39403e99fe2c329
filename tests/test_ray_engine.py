"""On a Ray cluster: what comes out is what the local engine gives, whatever dies in between."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bad_files import write_bad_files
from batches import comparable, computed, journal_lines, seen, segment, small_pipeline, table, write_photographs
from ray_clusters import ray_cluster
from ray_faults import FaultyWork, plan_faults, segment_with_faults
from reg4pru_monai.batch import ray_engine
from reg4pru_monai.batch.failures import ClusterError, WriteError
from reg4pru_monai.batch.journal import Journal
from reg4pru_monai.batch.ray_plan import Plan, RayOptions, plan
from reg4pru_monai.batch.settings import SettingsError, settings_of
from reg4pru_monai.batch.work import Work
from reg4pru_monai.cli import app
from reg4pru_monai.files import is_leftover
from test_archives import archived, as_files

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of its own inside
COUNT = 12
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["batches"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayOptions]:
    with ray_cluster() as options:
        yield options


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "in", COUNT)


@pytest.fixture(scope="module")
def expected(cluster: RayOptions, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the local engine."""
    output = tmp_path_factory.mktemp("local")
    assert segment(photographs, output).exit_status == 0
    return output


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reg4pru_monai.batch.segment.Work", FaultyWork)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for record in records:
        for row in record["rows"]:
            row.pop("seconds", None)
    return sorted(records, key=lambda record: record["name"])


def recorded(output: Path) -> list[dict[str, Any]]:
    return without_times([line["record"] for line in journal_lines(output) if "record" in line])


def test_gives_what_the_local_engine_gives(cluster: RayOptions, photographs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photographs, tmp_path / "in")
    bad = write_bad_files(folder / "bad")
    (folder / "bad" / "too_long.jpg").unlink()  # takes seconds to read, and is no other case
    choices = {"outputs": ("mask", "probability", "overlay", "contour", "nifti")}
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,angle\nin,30\n")
    local = segment(manifest, tmp_path / "local", choices)
    there = segment(manifest, tmp_path / "ray", choices, ray=cluster)
    assert (there.done, there.failed, there.missing) == (local.done, local.failed, 0)
    assert local.failed >= len(bad) - 2
    assert there.exit_status == 3
    ours, theirs = tmp_path / "local", tmp_path / "ray"
    assert comparable(theirs) == comparable(ours)
    assert {row["angle_of_view_deg"] for row in table(theirs) if row["status"] == "done"} == {"30"}
    for kind in ("probabilities", "contours", "nifti"):
        files = sorted(path.relative_to(ours) for path in (ours / kind).rglob("*") if path.is_file())
        assert files
        assert [(theirs / path).read_bytes() for path in files] == [(ours / path).read_bytes() for path in files]
    assert (theirs / "errors.csv").read_bytes() == (ours / "errors.csv").read_bytes()
    assert recorded(theirs) == recorded(ours)
    assert (
        json.loads((theirs / "run.json").read_text())["counts"] == json.loads((ours / "run.json").read_text())["counts"]
    )
    assert seen(theirs).shards[0].state == "ended"
    assert {path.name for path in (theirs / ".reg4pru" / "thumbnails").iterdir()} == {
        path.name for path in (ours / ".reg4pru" / "thumbnails").iterdir()
    }
    assert not [path for path in theirs.rglob(".*") if is_leftover(path)]
    assert segment(manifest, theirs, choices).before == local.done  # the engines go on with each other's folders


def test_archives_hold_what_lies_in_files(
    cluster: RayOptions, photographs: Path, expected: Path, faulty: None, tmp_path: Path
) -> None:
    """What a writer takes along when it dies comes once, as only the driver writes archives."""
    plan_faults(tmp_path / "out", **{"finish~photograph_03.png": (1, "kill")})
    summary = segment(photographs, tmp_path / "out", {"archives": True}, ray=cluster)
    assert (summary.failed, summary.missing) == (0, 0)
    assert as_files(archived(tmp_path / "out")) == comparable(expected)[0]


def test_a_relative_output_is_that_of_the_driver(
    cluster: RayOptions, photographs: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert segment(photographs, Path("out"), ray=cluster).done == COUNT
    assert comparable(tmp_path / "out") == comparable(expected)


def test_a_cluster_that_lost_what_was_asked_for_says_so(
    cluster: RayOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(small_pipeline(), settings_of(small_pipeline()), tmp_path)
    journal = Journal(tmp_path, {})
    engine = ray_engine.RayEngine(
        work, journal, RayOptions(actors=9, cpus=1), Plan(9, 1.0, 0.0, 1, 0.5), 1, threading.Event()
    )
    with pytest.raises(ClusterError, match=r"leave none of the cluster's 2 CPUs.* it has lost nodes; results are kept"):
        engine._smaller()
    engine = ray_engine.RayEngine(work, journal, RayOptions(), Plan(1, 1.0, 1.0, 1, 0.5), 1, threading.Event())
    with pytest.raises(ClusterError, match="has lost its GPUs; results are kept"):
        engine._smaller()
    monkeypatch.setattr(ray_engine, "PATIENCE", 0.5)
    engine.plan = Plan(1, 64.0, 0.0, 1, 0.5)
    with pytest.raises(ClusterError, match="no node of the Ray cluster has 64 CPUs and 0 GPUs any more"):
        engine._waited(ray.remote(lambda: None).options(num_cpus=64).remote())
    journal.close()


def test_what_dies_is_done_again_and_what_always_dies_is_given_up(
    cluster: RayOptions, photographs: Path, expected: Path, faulty: None, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    faults = {
        "prepare~photograph_02.png": (1, "kill"),
        "infer~photograph_05.png": (1, "kill"),
        "finish~photograph_07.png": (1, "kill"),
        "prepare~photograph_09.png": (99, "kill"),
        "prepare~photograph_10.png": (1, "memory"),
    }
    plan_faults(output, **faults)
    summary = segment(photographs, output, ray=cluster)
    assert (summary.done, summary.failed, summary.missing, summary.exit_status) == (COUNT - 1, 1, 0, 3)
    assert len(computed(output)) == len(set(computed(output)))
    (row,) = table(output, "errors.csv")
    assert (row["path"], row["stage"], row["type"]) == ("photograph_09.png", "process", "ProcessEndedError")
    alone = [line["begun"] for line in journal_lines(output) if line.get("alone")]
    assert alone.count("photograph_09.png") == 3
    assert "photograph_10.png" in alone
    (tmp_path / "faults" / "prepare~photograph_09.png").unlink()
    assert segment(photographs, output, ray=cluster).exit_status == 0
    assert comparable(output) == comparable(expected)
    assert sorted(computed(output)) == sorted(path.name for path in photographs.iterdir())


def test_a_full_disk_on_a_worker_ends_the_run(
    cluster: RayOptions, photographs: Path, faulty: None, tmp_path: Path
) -> None:
    plan_faults(tmp_path / "out", **{"finish~photograph_03.png": (1, "full")})
    with pytest.raises(WriteError, match="No space left"):
        segment(photographs, tmp_path / "out", ray=cluster)
    done = computed(tmp_path / "out")
    assert "photograph_03.png" not in done
    assert seen(tmp_path / "out").shards[0].state == "broken"


def test_a_killed_or_stopped_driver_goes_on(
    cluster: RayOptions, photographs: Path, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    held = output.with_name("faults") / "prepare~photograph_08.png"
    plan_faults(output, **{held.name: (1, "hold")})  # so that there is something left to interrupt

    def interrupted(number: int) -> int:
        before = len(computed(output)) if output.exists() else 0
        process = PROCESSES.Process(target=segment_with_faults, args=(str(photographs), str(output), {"ray": cluster}))
        process.start()
        while process.is_alive() and (not output.exists() or len(computed(output)) < before + 2):
            time.sleep(0.05)
        os.kill(process.pid, number)
        time.sleep(3)  # until the wish to stop has gone round
        if number == signal.SIGTERM:
            held.unlink()
        process.join(300)
        assert before < len(computed(output)) < COUNT
        return process.exitcode or 0

    assert interrupted(signal.SIGKILL) == -signal.SIGKILL
    assert seen(output).shards[0].state == "killed"
    assert interrupted(signal.SIGTERM) == 130
    assert seen(output).shards[0].state == "stopped"
    assert len(table(output)) == len(computed(output))  # tables are written
    assert segment(photographs, output, ray=cluster).exit_status == 0
    assert comparable(output) == comparable(expected)
    assert sorted(computed(output)) == sorted(path.name for path in photographs.iterdir())
    assert not [path for path in output.rglob(".*") if is_leftover(path)]


def test_a_worker_that_cannot_take_part_says_why(cluster: RayOptions, photographs: Path, tmp_path: Path) -> None:
    from reg4pru_monai.batch.ray_work import Shared, problem

    class Output:
        output = tmp_path

    def said(**changes: Any) -> str:
        marker = tmp_path / "marker"
        marker.touch()
        shared = Shared(Output(), str(tmp_path), marker, ray_engine.__version__, None)  # type: ignore[arg-type]
        return str(problem(shared._replace(**changes)))

    assert said() == "None"
    assert "--output must lie on a file system that all nodes share" in said(marker=tmp_path / "absent")
    assert "folder of the inputs must lie on a file system" in said(folder=str(tmp_path / "absent"))
    assert "install the same version on all nodes" in said(version="0")


@pytest.mark.parametrize(
    ("options", "cpus", "gpus", "found"),
    [
        (RayOptions(), 1, 0, Plan(1, 0.5, 0.0, 1, 0.25)),
        (RayOptions(), 2, 0, Plan(1, 1.0, 0.0, 1, 0.5)),
        (RayOptions(), 4, 0, Plan(3, 1.0, 0.0, 1, 0.5)),
        (RayOptions(), 64, 0, Plan(56, 1.0, 0.0, 4, 1.0)),
        (RayOptions(cpus=4), 16, 0, Plan(3, 4, 0.0, 2, 1.0)),
        (RayOptions(), 16, 2, Plan(2, 1.0, 1.0, 7, 1.0)),
        (RayOptions(gpus=0.5), 16, 2, Plan(4, 1.0, 0.5, 6, 1.0)),
        (RayOptions(gpus=0), 16, 2, Plan(14, 1.0, 0, 1, 1.0)),
        (RayOptions(), 2, 8, Plan(8, 0.125, 1.0, 1, 0.5)),
    ],
)
def test_stages_never_wait_for_a_processor_of_another(options: RayOptions, cpus: int, gpus: int, found: Plan) -> None:
    divided = plan(options, cpus, gpus)
    assert divided == found
    assert divided.fits(cpus, gpus)
    assert not divided.fits(cpus * 0.8, gpus)
    assert gpus == 0 or not divided.gpus or not divided.fits(cpus, gpus * 0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RayOptions(actors=2, cpus=1), "leave none of the cluster's 2 CPUs to read and write photographs; give fewer"),
        (RayOptions(gpus=1), "the Ray cluster has 0 GPUs, too few for 1 actors with 1 each"),
        (RayOptions(gpus=1.5), "--ray-gpus must be a fraction of a GPU or a whole number, got 1.5"),
        (RayOptions(actors=0), "--ray-actors must be more than 0"),
        (RayOptions(cpus=-1), "--ray-cpus must be more than 0"),
    ],
)
def test_a_cluster_too_small_is_refused(options: RayOptions, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(options, 2, 0)


def test_a_cluster_without_processors_is_refused() -> None:
    with pytest.raises(SettingsError, match="the Ray cluster has no CPUs"):
        plan(RayOptions(), 0, 1)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda _: None)
    with (
        pytest.raises(SettingsError, match=r'pip install "ray\[data\]>=2.50,<2.64"'),
        ray_engine.connected(RayOptions()),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("127.0.0.1:1", ClusterError, "no Ray cluster answers at 127.0.0.1:1"),
        ("nonsense", ClusterError, "give its --ray-address as HOST:PORT"),
        ("ray://head:10001", SettingsError, "not through Ray Client"),
    ],
)
def test_no_cluster_there(address: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(error, match=message), ray_engine.connected(RayOptions(address)):
        pass


ENTERED = """
import sys
from reg4pru_monai.batch.failures import ClusterError
from reg4pru_monai.batch.ray_engine import connected
from reg4pru_monai.batch.ray_plan import RayOptions
try:
    with connected(RayOptions(sys.argv[1])) as plan:
        print(plan.actors, "actors")
except ClusterError as error:
    print(error)
"""
TOKEN_CLUSTER = """
import sys
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_a_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    """It is entered with the token; without, the command says how to give it."""
    home = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", TOKEN_CLUSTER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=home | {"RAY_AUTH_MODE": "token"}, **pipes) as head:
        assert head.stdin
        assert head.stdout
        address = head.stdout.readline().strip()
        enter = [sys.executable, "-c", ENTERED, address]
        refused = subprocess.run(enter, env=home, capture_output=True, text=True)
        entered = subprocess.run(enter, env=home | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True)
        head.stdin.close()
    assert refused.stdout.endswith("RAY_AUTH_TOKEN_PATH to the file that holds it\n"), refused.stderr
    assert "it asks for a token: set RAY_AUTH_MODE=token" in refused.stdout
    assert entered.stdout == "1 actors\n", entered.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "--engine must be local or ray, got 'spark'"),
        (["--ray-actors", "2"], "need --engine ray"),
        (["--engine", "ray", "--workers", "2"], "--workers is of the local engine"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str, photographs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["segment", str(photographs), "--output", str(tmp_path / "out"), *options])
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out").exists()
