"""The engine for a Ray cluster: Ray Data reads, computes and writes on its workers; the driver keeps the journal."""

import copy
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from .. import __version__
from ..files import scratch
from .agenda import ATTEMPTS, Agenda
from .engine import Engine, Profile
from .failures import ClusterError
from .inputs import Item
from .journal import STATE, Journal, Record
from .ray_cluster import actor_of, executors, repeated, resources, stop_actor, streaming
from .ray_plan import Plan, RayOptions, plan
from .settings import SettingsError
from .work import Work

logger = logging.getLogger(__name__)

PARTS = 4096  # of an archive, which the driver lists: more take its memory
TOGETHER = 16  # files in a part of a smaller one; what a reader that dies takes along
PATIENCE = 30.0  # s, until work is divided anew among the nodes that are left
INSTALL = 'pip install "ray[data]>=2.50,<2.64"'


@contextmanager
def connected(options: RayOptions) -> Iterator[Plan]:
    """Enter the cluster, or start one on this machine that ends with the block.

    A process that is in one already stays there. Raises SettingsError, ClusterError.
    """
    if not find_spec("ray"):
        raise SettingsError(f"--engine ray needs Ray: {INSTALL}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    import ray

    entered = not ray.is_initialized()
    if entered:
        _enter(options.address or os.environ.get("RAY_ADDRESS"))
    try:
        yield plan(options, *resources())
    except ray.exceptions.RayTaskError as error:  # of no photograph: their errors stay on the workers
        raise ClusterError(
            f"a worker of the Ray cluster cannot run this package ({error.cause!r}); install the same version on all "
            f"nodes: {INSTALL}"
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the Ray cluster failed: {error}; results are kept: give the same command again") from error
    finally:
        if entered:
            ray.shutdown()


def _enter(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in (None, "local"):
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    assert address is not None
    advice = "start one with `ray start --head`, give its --ray-address as HOST:PORT, or leave it out"
    if address.startswith("ray://"):
        raise SettingsError(
            f"{address}: the engine runs as a driver in the cluster, not through Ray Client; give HOST:PORT, or submit "
            "the command as a Ray job with --ray-address auto"
        )
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if _wants_token(error):
            advice = "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds it"
        raise ClusterError(f"no Ray cluster answers at {address} ({error}); {advice}") from error


def _wants_token(error: BaseException | None) -> bool:
    """Whether a cluster refused its client, which Ray says in a cause of its error."""
    while error is not None and "InvalidAuthToken" not in str(error) and type(error).__name__ != "AuthenticationError":
        error = error.__cause__ or error.__context__
    return error is not None


class RayEngine(Engine):
    """Segments files on the workers of a cluster; see LocalEngine, whose place it takes.

    Only the driver, this process, writes the journal. Ray itself repeats nothing: what a worker, an actor or a node
    takes along when it dies has no record, is given out once more, and then tried alone, at most ATTEMPTS times.
    """

    def __init__(
        self,
        work: Work,
        journal: Journal,
        options: RayOptions,
        plan: Plan,
        batch_size: int,
        stop: threading.Event,
    ) -> None:
        super().__init__(copy.copy(work), journal, stop)
        self.work.output = work.output.absolute()  # workers are in folders of their own
        self.options, self.plan, self.batch_size = options, plan, batch_size
        self._shrunk = False  # whether the last stream ended because the cluster is too small for the plan
        self._network = 0.0

    def run(self, agenda: Agenda, report: Callable[[Record], None]) -> Profile:
        """Segment what is to be done, in about its order. Raises WriteError, DeviceError, ClusterError, OSError."""
        self._report = report
        for item in agenda.given_up:
            self._record(self.work.given_up(item))
        started = time.perf_counter()
        if agenda.todo or agenda.alone:
            with self._sharing(agenda):
                lost = self._streamed(agenda.todo, _part_size(len(agenda.todo), self.plan.tasks))
                lost = self._streamed(lost, 1)
                for item in [*lost, *self._again, *agenda.alone]:
                    if not self.stop.is_set():
                        self._alone(item)
        if self._fatal is not None:
            raise self._fatal
        total = time.perf_counter() - started
        network = self._network / self.plan.actors
        return Profile(network, max(total - network, 0.0), 0.0, total)

    @contextmanager
    def _sharing(self, agenda: Agenda) -> Iterator[None]:
        """Send the network to the cluster once, and tell the workers of a wish to stop."""
        import ray

        from .ray_work import Shared, without_network

        asked = stop_actor()
        self._sent = ray.put(self.work)
        shared = Shared(without_network(self.work), _folder(agenda), self.journal.path.absolute(), __version__, asked)
        self._shared = ray.put(shared)

        def tell() -> bool:
            if self.stop.is_set():
                asked.ask.remote()
            return self.stop.is_set()

        with repeated(tell, 0.1):
            yield

    def _streamed(self, items: Sequence[Item], size: int) -> list[Item]:
        """As _together, and again by a smaller plan whenever nodes are gone that the plan needs."""
        lost = self._together(items, size)
        while self._shrunk and lost and not self.stop.is_set():
            self._shrunk = False
            self.plan = self._smaller()
            logger.warning("the Ray cluster has become smaller; goes on with %s", self.plan)
            lost = self._together(lost, size)
        return lost

    def _smaller(self) -> Plan:
        """A plan for what is left of the cluster. Raises ClusterError where that is too little."""
        try:
            found = plan(self.options, *resources())
        except SettingsError as error:
            raise ClusterError(f"{error}: it has lost nodes; results are kept: give the same command again") from error
        if self.plan.gpus and not found.gpus:
            raise ClusterError("the Ray cluster has lost its GPUs; results are kept: give the same command again")
        return found

    def _together(self, items: Sequence[Item], size: int) -> list[Item]:
        """Read, compute and write as a stream; ``size`` files are given out together. Returns those that got lost."""
        from .ray_work import agenda_rows

        if not items or self.stop.is_set():
            return []
        heard = bytearray(len(items))
        with scratch(self.work.output / STATE / "agenda.jsonl") as path:
            for index, outcome in self._stream(agenda_rows(path, items, size)):
                if not heard[index]:  # nothing twice, whatever the cluster does
                    heard[index] = 1
                    self._take(items[index], outcome)
        lost = [item for item, known in zip(items, heard, strict=True) if not known]
        if lost and not self.stop.is_set():
            logger.warning("%d files went down with a worker or an actor and are tried again", len(lost))
        return lost

    def _stream(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, Any]]:
        import ray

        from .ray_work import outcomes

        # Ray Data restarts its actors. A call that went down with one is not repeated: it may be what killed it.
        plan, table = self.plan, dict[str, Any](batch_format="pyarrow", max_task_retries=0)
        pool = ray.data.ActorPoolStrategy
        with streaming():
            data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                actor_of("Reader"),
                fn_constructor_args=(self._shared,),
                compute=pool(size=plan.tasks, max_tasks_in_flight_per_actor=1),
                num_cpus=plan.task_cpus,
                **table,
            )
            data = data.map_batches(
                actor_of("Network"),
                fn_constructor_args=(self._shared, self._sent, plan.gpus, plan.threads),
                batch_size=self.batch_size,
                compute=pool(size=plan.actors, max_tasks_in_flight_per_actor=2),
                num_cpus=plan.cpus,
                num_gpus=plan.gpus or None,
                **table,
            )
            data = data.map_batches(
                actor_of("Writer"),
                fn_constructor_args=(self._shared,),
                compute=pool(size=plan.tasks, max_tasks_in_flight_per_actor=2),
                num_cpus=plan.task_cpus,
                **table,
            )
            with self._watching(data):
                for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    yield from outcomes(batch)

    @contextmanager
    def _watching(self, data: Any) -> Iterator[None]:
        """End the stream when the cluster stays too small for the plan: actors that found no place wait for ever."""
        running, fitted = executors(data), time.monotonic()

        def watch() -> bool:
            nonlocal fitted
            if self.plan.fits(*resources()):
                fitted = time.monotonic()
            elif time.monotonic() - fitted > PATIENCE:
                self._shrunk = True
                for executor in running:
                    executor.shutdown(force=True)
            return False  # and again, as an execution that has not begun cannot be ended

        with repeated(watch, 1.0):
            yield

    def _take(self, item: Item, outcome: Any) -> None:
        self._network += outcome.network
        if outcome.fatal is not None:
            self._fail(outcome.fatal)
        elif outcome.again:
            self._again.append(item)
        else:
            self._record(outcome.record, outcome.archived or {})

    def _alone(self, item: Item) -> None:
        """One file and nothing beside it. A file whose worker dies each time is given up."""
        import ray

        from .ray_work import alone

        call = ray.remote(alone).options(num_cpus=self.plan.cpus, num_gpus=self.plan.gpus or None, max_retries=0)
        for _ in range(ATTEMPTS):
            self.journal.begin(item.name, alone=True)
            try:
                outcome = self._waited(call.remote(self._sent, item, self.plan.gpus, self.plan.threads))
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                logger.warning("%r: the worker that had it alone died: %s", item.name, type(error).__name__)
                if self.stop.is_set():
                    return
            else:
                return self._take(item, outcome)
        self._record(self.work.given_up(item))

    def _waited(self, reference: Any) -> Any:
        """What a call returns. Raises ClusterError where no node has a place for it any more."""
        import ray

        while not ray.wait([reference], timeout=PATIENCE)[0]:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            if not any(each.get("CPU", 0) >= self.plan.cpus and each.get("GPU", 0) >= self.plan.gpus for each in nodes):
                raise ClusterError(
                    f"no node of the Ray cluster has {self.plan.cpus:g} CPUs and {self.plan.gpus:g} GPUs any more; "
                    "results are kept: give the same command again"
                )
        return ray.get(reference)


def _part_size(files: int, readers: int) -> int:
    """How many files are given out together: some, so that readers do not wait, in parts that the driver can list."""
    return max(-(-files // PARTS), min(TOGETHER, files // (4 * readers)), 1)


def _folder(agenda: Agenda) -> str | None:
    """A folder that workers must see; None where the first file is gone here, too."""
    folder = os.path.dirname([*agenda.todo[:1], *agenda.alone[:1]][0].path)
    return folder if os.path.isdir(folder) else None
