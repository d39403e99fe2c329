"""A Ray cluster on this machine, for tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from reg4pru_monai.batch.ray_plan import RayOptions

OBJECT_STORE = 200 * 2**20  # bytes


@contextmanager
def ray_environment() -> Iterator[pytest.MonkeyPatch]:
    """Workers find these tests and the package, Ray reports to nobody, and one thread computes, as in the actors.

    No cluster asks for a token: processes that started before it, such as a fork server, would not know.
    """
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        torch.set_num_threads(1)  # sums in another order differ in their last bits
        yield patch
        torch.set_num_threads(threads)


@contextmanager
def ray_cluster() -> Iterator[RayOptions]:
    """A cluster of two CPUs; this process is in it."""
    ray = pytest.importorskip("ray")
    with ray_environment():
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=OBJECT_STORE, log_to_driver=False
        )
        yield RayOptions(ray.get_runtime_context().gcs_address)
        ray.shutdown()
