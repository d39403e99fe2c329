"""What the Ray engine needs of a cluster and of Ray Data, some of it not public."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def streaming() -> Iterator[None]:
    """Every photograph a block of its own; a block that is lost does not end the stream; no bars, no chatter."""
    from ray.data import DataContext

    before = DataContext.get_current()
    context = before.copy()
    context.target_max_block_size = 1
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    DataContext._set_current(context)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # no other way yet to say retries
            yield
    finally:
        DataContext._set_current(before)


@contextmanager
def repeated(step: Callable[[], bool], seconds: float) -> Iterator[None]:
    """While the block runs, call ``step`` again and again in a thread of its own, until it returns True."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds) and not step():
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def executors(data: Any) -> list[Any]:
    """Will hold what executes a data set, as soon as there is one.

    No public way ends a stream from another thread, and its iterator tells of its executor with the first result only.
    """
    found: list[Any] = []
    create = getattr(data, "_create_executor", None)  # private: a version of Ray may have none, and wait instead
    if create is not None:

        def kept() -> Any:
            found.append(create())
            return found[-1]

        data._create_executor = kept
    return found


def resources() -> tuple[float, float]:
    """CPUs and GPUs of the cluster."""
    import ray

    found = ray.cluster_resources()
    return found.get("CPU", 0.0), found.get("GPU", 0.0)


def actor_of(name: str) -> type:
    """A class for Ray Data that becomes the one of this name in ray_work.

    It travels by value, so that the process of the actor imports this package here, and the quick way.
    """

    class Actor:
        def __init__(self, *arguments: Any) -> None:
            from importlib import import_module

            import_module("reg4pru_monai.startup").import_monai_alone()
            self._step = getattr(import_module("reg4pru_monai.batch.ray_work"), name)(*arguments)

        def __call__(self, table: Any) -> Any:
            return self._step(table)

    Actor.__name__ = name  # which Ray shows
    return Actor


def stop_actor() -> Any:
    """An actor beside the driver, so that no node takes it along, that remembers whether it was asked to stop."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Stop:  # here, so that its process need not import this package
        def __init__(self) -> None:
            self._asked = False

        def ask(self) -> None:
            self._asked = True

        def asked(self) -> bool:
            return self._asked

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Stop).options(num_cpus=0, scheduling_strategy=here).remote()
