"""The engine for one machine: reading, network and writing overlap, with bounded queues between them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from .failures import StageError
from .inputs import Item
from .journal import Journal, Record
from .work import Inferred, Prepared, Work


class Profile(NamedTuple):
    """Where the wall clock went, in seconds.

    network: the network computed. waiting: it had to wait for a photograph. blocked: it had to wait until a result
    was written. total: from the first photograph to the last.
    """

    network: float
    waiting: float
    blocked: float
    total: float


class LocalEngine:
    """Segments files with one network in this thread, and threads around it for files.

    workers: threads that read, and as many that measure and write. batch_size: photographs whose windows share the
    forwards. stop: when set, what the network has begun is finished and nothing else begun. Memory holds at most
    ``2 * workers + 2 * batch_size`` photographs.
    """

    def __init__(self, work: Work, journal: Journal, workers: int, batch_size: int, stop: threading.Event) -> None:
        self.work, self.journal = work, journal
        self.workers, self.batch_size, self.stop = workers, batch_size, stop
        self._places = threading.Semaphore(workers + batch_size)  # results that may be on their way to the disk
        self._fatal: BaseException | None = None

    def run(self, items: Sequence[Item], report: Callable[[Record], None]) -> Profile:
        """Segment all items in their order; ``report`` is called for every file from whatever thread ends it.

        Raises WriteError or OSError when the output folder cannot be written to; what was begun is finished first.
        """
        self._report = report
        network = waiting = blocked = 0.0
        started = time.perf_counter()
        with (
            ThreadPoolExecutor(self.workers, "read") as readers,
            ThreadPoolExecutor(self.workers, "write") as writers,
        ):
            for batch in self._batches(readers, items):
                begun = time.perf_counter()
                files = [file for file in map(self._read, batch) if file is not None]
                waiting += time.perf_counter() - begun
                if not files or self.stop.is_set():
                    continue
                begun = time.perf_counter()
                found = self.work.infer(files)
                network += time.perf_counter() - begun
                begun = time.perf_counter()
                for file, result in zip(files, found, strict=True):
                    self._places.acquire()
                    writers.submit(self._finish, file, result)
                blocked += time.perf_counter() - begun
        if self._fatal is not None:
            raise self._fatal
        return Profile(network, waiting, blocked, time.perf_counter() - started)

    def _batches(
        self, readers: ThreadPoolExecutor, items: Sequence[Item]
    ) -> Iterator[list[tuple[Item, "Future[Prepared]"]]]:
        """Files being read, in order, a batch at a time, with some more being read behind it."""
        source = iter(items)
        reading: deque[tuple[Item, Future[Prepared]]] = deque()
        while not self.stop.is_set():
            free = self.workers + self.batch_size - len(reading)
            reading.extend((item, readers.submit(self.work.prepare, item)) for item in islice(source, free))
            if not reading:
                return
            yield [reading.popleft() for _ in range(min(self.batch_size, len(reading)))]
        for _, future in reading:
            future.cancel()

    def _read(self, entry: tuple[Item, "Future[Prepared]"]) -> Prepared | None:
        item, future = entry
        try:
            return future.result()
        except StageError as error:
            self._record(self.work.failed(item, error))
            return None

    def _finish(self, file: Prepared, found: Inferred | StageError) -> None:
        try:
            if isinstance(found, StageError):
                record = self.work.failed(file.item, found)
            else:
                try:
                    record = self.work.finish(file, found)
                except StageError as error:
                    record = self.work.failed(file.item, error)
            self._record(record)
        except BaseException as error:  # a thread of its own: nobody else would hear of it
            self._fail(error)
        finally:
            self._places.release()

    def _record(self, record: Record) -> None:
        try:
            self.journal.add(record)
        except OSError as error:
            return self._fail(error)
        self._report(record)

    def _fail(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self.stop.set()
