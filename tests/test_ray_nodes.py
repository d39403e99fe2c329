"""A Ray cluster that loses a node: what is left goes on, though it has no place for all that was planned."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batches import comparable, computed, journal_lines, segment, write_photographs
from ray_clusters import OBJECT_STORE, ray_environment
from ray_faults import FaultyWork, plan_faults
from reg4pru_monai.batch import ray_engine
from reg4pru_monai.batch.ray_plan import RayOptions

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of its own inside
COUNT = 30


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with two CPUs each; this process is in it."""
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(ray_engine, "PATIENCE", 2.0)
    with ray_environment() as patch:
        patch.setenv("RAY_health_check_period_ms", "500")
        node = {"num_cpus": 2, "object_store_memory": OBJECT_STORE}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_a_node_that_dies_takes_nothing_along(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With 4 CPUs, three actors hold the network; on the 2 that are left they may leave none to read and write."""
    monkeypatch.setattr("reg4pru_monai.batch.segment.Work", FaultyWork)
    photographs, output = write_photographs(tmp_path / "in", COUNT), tmp_path / "out"
    plan_faults(output, **{"prepare~photograph_20.png": (1, "hold")})  # so that the run lasts until it is noticed

    def kill() -> None:
        while not output.exists() or len(computed(output)) < 5:
            time.sleep(0.05)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        deadline = time.monotonic() + 120
        while "has become smaller" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        output.with_name("faults").joinpath("prepare~photograph_20.png").unlink()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = segment(photographs, output, ray=RayOptions(ray.get_runtime_context().gcs_address))
    killer.join()
    assert ray.cluster_resources()["CPU"] == 2
    assert not any(line.get("alone") for line in journal_lines(output))  # one by one they would take for ever
    assert "has become smaller; goes on with Ray: 1 x 1 CPUs" in caplog.text
    assert (summary.done, summary.failed, summary.missing) == (COUNT, 0, 0)
    assert sorted(computed(output)) == sorted(path.name for path in photographs.iterdir())
    segment(photographs, tmp_path / "local")
    assert comparable(output) == comparable(tmp_path / "local")
