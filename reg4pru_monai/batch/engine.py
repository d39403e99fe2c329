"""The engine for one machine: reading, network and writing overlap, with bounded queues between them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from .agenda import Agenda
from .failures import StageError, is_out_of_memory
from .inputs import Item
from .journal import Journal, Record
from .work import Inferred, Prepared, Work

PIXELS_HELD = 300_000_000  # at some 15 bytes each, while a photograph is measured and written


class Profile(NamedTuple):
    """Where the wall clock went, in seconds.

    network: the network computed. waiting: it had to wait for a photograph. blocked: it had to wait until a result
    was written. total: from the first photograph to the last.
    """

    network: float
    waiting: float
    blocked: float
    total: float


class Engine:
    """What engines share: every record goes into the journal, then to ``report``; a journal that fails ends the run."""

    def __init__(self, work: Work, journal: Journal, stop: threading.Event) -> None:
        self.work, self.journal, self.stop = work, journal, stop
        self._again: list[Item] = []  # what memory did not suffice for
        self._fatal: BaseException | None = None
        self._report: Callable[[Record], None] = lambda _: None

    def _record(self, record: Record, archived: Mapping[str, bytes] = MappingProxyType({})) -> None:
        try:
            self.journal.add(record, archived)
        except OSError as error:
            return self._fail(error)
        self._report(record)

    def _fail(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self.stop.set()


class LocalEngine(Engine):
    """Segments files with one network in this thread, and threads around it for files.

    workers: threads that read, and as many that measure and write. batch_size: photographs whose windows share the
    forwards. stop: when set, what the network has begun is finished and nothing else begun. Memory holds at most
    ``2 * workers + 2 * batch_size`` photographs, and no more are read while those it holds have PIXELS_HELD pixels.
    """

    def __init__(self, work: Work, journal: Journal, workers: int, batch_size: int, stop: threading.Event) -> None:
        super().__init__(work, journal, stop)
        self.workers, self.batch_size = workers, batch_size
        self._places = threading.Semaphore(workers + batch_size)  # results that may be on their way to the disk
        self._lock = threading.Condition()  # told when photographs are let go
        self._held = 0  # pixels
        self._largest: int | None = None  # pixels of the largest file so far, which stands for those being read

    def run(self, agenda: Agenda, report: Callable[[Record], None]) -> Profile:
        """Segment what is to be done, in its order; ``report`` is called for every file from whatever thread ends it.

        What memory did not suffice for is tried once more by itself at the end. Raises WriteError or OSError when the
        output folder cannot be written to; what was begun is finished first.
        """
        self._report = report
        for item in agenda.given_up:
            self._record(self.work.given_up(item))
        started = time.perf_counter()
        network, waiting, blocked = self._together(agenda.todo)
        for item in [*self._again, *agenda.alone]:
            if not self.stop.is_set():
                self._alone(item)
        if self._fatal is not None:
            raise self._fatal
        return Profile(network, waiting, blocked, time.perf_counter() - started)

    def _together(self, items: Sequence[Item]) -> tuple[float, float, float]:
        """Files are read, computed and written at the same time. Returns the seconds as in Profile."""
        network = waiting = blocked = 0.0
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
        return network, waiting, blocked

    def _alone(self, item: Item) -> None:
        """One file and nothing beside it. Raises WriteError, OSError."""
        try:
            self.journal.begin(item.name, alone=True)
            file = self.work.prepare(item)
            found = self.work.infer([file])[0]
            if isinstance(found, StageError):
                raise found
            finished = self.work.finish(file, found)
        except StageError as error:
            return self._record(self.work.failed(item, error))
        self._record(*finished)

    def _batches(
        self, readers: ThreadPoolExecutor, items: Sequence[Item]
    ) -> Iterator[list[tuple[Item, "Future[Prepared]"]]]:
        """Files being read, in order, a batch at a time, with some more being read behind it."""
        source = iter(items)
        reading: deque[tuple[Item, Future[Prepared]]] = deque()
        while not self.stop.is_set():
            free = self._room([future for _, future in reading])
            reading.extend((item, readers.submit(self._prepare, item)) for item in islice(source, free))
            if not reading:
                return
            yield [reading.popleft() for _ in range(min(self.batch_size, len(reading)))]
        for _, future in reading:
            future.cancel()

    def _room(self, reading: "Sequence[Future[Prepared]]") -> int:
        """How many more files may be read now; where none is, one as soon as there is room, or nothing is held."""
        with self._lock:
            if not reading:  # what is held is on its way to the disk
                self._lock.wait_for(lambda: not self._held or self._held + (self._largest or 0) <= PIXELS_HELD)
            each = self._largest or PIXELS_HELD // 4
            expected = self._held + each * sum(not future.done() for future in reading)
        room = min((PIXELS_HELD - expected) // each, self.workers + self.batch_size - len(reading))
        return max(room, 0 if reading else 1)

    def _prepare(self, item: Item) -> Prepared:
        try:
            self.journal.begin(item.name, alone=False)
        except OSError as error:
            self._fail(error)
        file = self.work.prepare(item)
        with self._lock:
            self._held += file.pixels
            self._largest = max(file.pixels, self._largest or 1)
        return file

    def _read(self, entry: tuple[Item, "Future[Prepared]"]) -> Prepared | None:
        item, future = entry
        try:
            return future.result()
        except StageError as error:
            self._failed(item, error)
            return None

    def _failed(self, item: Item, error: StageError) -> None:
        """Where memory ran out, others may have held it."""
        if is_out_of_memory(error.cause):
            self._again.append(item)
        else:
            self._record(self.work.failed(item, error))

    def _finish(self, file: Prepared, found: Inferred | StageError) -> None:
        try:
            if isinstance(found, StageError):
                raise found
            self._record(*self.work.finish(file, found))
        except StageError as error:
            self._failed(file.item, error)
        except BaseException as error:  # a thread of its own: nobody else would hear of it
            self._fail(error)
        finally:
            with self._lock:
                self._held -= file.pixels
                self._lock.notify_all()
            self._places.release()
