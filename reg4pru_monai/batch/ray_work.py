"""What runs on the workers of a Ray cluster: the steps of Work, between tables of bytes; no error of a file leaves."""

import copy
import json
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch
from monai.utils import TraceKeys

from .. import __version__
from ..runtime import select_device
from .failures import DeviceError, StageError, WriteError, is_out_of_memory
from .inputs import Item
from .journal import Record
from .work import Finished, Inferred, Prepared, Work

# Photographs differ in shape, so they travel as bytes. large: those of a file may be more than 2 GiB.
_SCHEMA = pa.schema([("index", pa.int64()), ("content", pa.large_binary())])


class Outcome(NamedTuple):
    """What became of a file. record: its line. archived: as in Finished.

    again: memory ran out, which it may not if tried alone. fatal: no other file would fare better: an error to raise.
    network: seconds that the network took.
    """

    record: Record | None = None
    archived: dict[str, bytes] | None = None
    again: bool = False
    fatal: Exception | None = None
    network: float = 0.0


class Shared(NamedTuple):
    """What every worker needs. cpu_work: without the network. folder: of the inputs, or None.

    marker: a file that the driver has written into the output folder. version: of this package. stop: an actor that is
    asked whether to begin nothing more.
    """

    cpu_work: Work
    folder: str | None
    marker: Path
    version: str
    stop: Any


def without_network(work: Work) -> Work:
    """For the steps that only need the rest of it."""
    light = copy.copy(work)
    light.pipeline = copy.copy(work.pipeline)
    light.pipeline.network = None  # type: ignore[assignment]
    return light


def problem(shared: Shared) -> Exception | None:
    """Why this worker cannot take part."""
    if shared.version != __version__:
        return DeviceError(
            f"Ray worker {socket.gethostname()} has reg4pru-monai {__version__}, this run {shared.version}; install "
            "the same version on all nodes"
        )
    for what, path, visible in (
        ("--output", shared.cpu_work.output, shared.marker.is_file()),
        ("folder of the inputs", shared.folder, shared.folder is None or os.path.isdir(shared.folder)),
    ):
        if not visible:
            return WriteError(
                f"{path} is not the same folder on the Ray worker {socket.gethostname()}: the {what} must lie on a "
                "file system that all nodes share, under the same path",
            )
    return None


class Part(NamedTuple):
    """Lines of a file of the agenda, from a place in bytes."""

    path: Path
    offset: int
    lines: int

    def items(self) -> list[Item]:
        """Read them."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return [Item(*json.loads(file.readline())) for _ in range(self.lines)]


class Worker:
    """An actor of Ray Data: a step from table to tables. shared: reference of Shared."""

    def __init__(self, shared: Any) -> None:
        self.shared: Shared = ray.get(shared)
        self.work = self.shared.cpu_work
        self._unfit = problem(self.shared)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """What comes of each row. Outcomes pass."""
        rows = list(_rows(table))
        yield from (_table(index, content) for index, content in rows if isinstance(content, Outcome))
        todo = [row for row in rows if not isinstance(row[1], Outcome)]
        if self._unfit is not None:
            yield from (_table(index, Outcome(fatal=self._unfit)) for index, _ in todo)
        elif todo:
            yield from (_table(index, content) for index, content in self.step(todo))
        yield _SCHEMA.empty_table()  # Ray Data wants at least one

    def step(self, rows: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """What comes of rows that are no outcomes yet."""
        raise NotImplementedError

    def stopped(self) -> bool:
        """Whether nothing more shall be begun."""
        return bool(ray.get(self.shared.stop.asked.remote()))


class Reader(Worker):
    """Reads and prepares files of the agenda, one after the other."""

    def step(self, rows: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Parts of the agenda -> files that are prepared."""
        for first, part in rows:
            for index, item in enumerate(part.items(), first):
                if self.stopped():
                    return
                yield index, _guarded(self.work, item, partial(_prepare, self.work, item))


class Network(Worker):
    """Holds the network and runs it over files. work: reference of a whole Work."""

    def __init__(self, shared: Any, work: Any, gpus: float, threads: int) -> None:
        super().__init__(shared)
        self.work = _placed(ray.get(work), gpus, threads)

    def step(self, rows: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Files that are prepared -> with what the network says of them."""
        if self.stopped():
            return
        files = [file for _, file in rows]
        for (index, file), found in zip(rows, self._infer(files), strict=True):
            yield index, found if isinstance(found, Outcome) else (file, found)

    def _infer(self, files: list[Prepared]) -> list[Inferred | Outcome]:
        try:
            found = self.work.infer(files)
        except Exception as error:
            return [Outcome(fatal=_plain(error))] * len(files)
        return [
            _failed(self.work, file.item, each) if isinstance(each, StageError) else each
            for file, each in zip(files, found, strict=True)
        ]


class Writer(Worker):
    """Measures and writes."""

    def step(self, rows: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """What the network says -> outcomes."""
        for index, (file, found) in rows:
            done = _guarded(self.work, file.item, partial(self.work.finish, file, found))
            yield index, done if isinstance(done, Outcome) else _outcome(done, found)


def _prepare(work: Work, item: Item) -> Prepared:
    file = work.prepare(item)
    for frame in file.frames:
        for value in frame.item.values():
            for operation in value.applied_operations:
                operation[TraceKeys.ID] = TraceKeys.NONE  # the address of the transform, which others do not share
    return file


def _placed(work: Work, gpus: float, threads: int) -> Work:
    """The work, its network on the device of this actor."""
    torch.set_num_threads(threads)
    work.pipeline.device = select_device("cuda" if gpus else "cpu")
    work.pipeline.network.to(work.pipeline.device)
    return work


def alone(work: Work, item: Item, gpus: float, threads: int) -> Outcome:
    """One file from beginning to end; what fails for want of memory has failed."""
    work = _placed(work, gpus, threads)
    try:
        file = work.prepare(item)
        found = work.infer([file])[0]
        if isinstance(found, StageError):
            raise found
        return _outcome(work.finish(file, found), found)
    except StageError as error:
        return Outcome(work.failed(item, error))
    except Exception as error:
        return Outcome(fatal=_plain(error))


def _outcome(finished: Finished, found: Inferred) -> Outcome:
    return Outcome(finished.record, finished.archived, network=found.seconds)


def agenda_rows(path: Path, items: Sequence[Item], size: int) -> list[dict[str, Any]]:
    """Write names and paths into a file, a JSON line each. Returns a row for a Reader for every ``size`` of them."""
    rows = []
    with open(path, "wb") as file:
        for first in range(0, len(items), size):
            part = Part(path, file.tell(), min(size, len(items) - first))
            rows.append({"index": first, "content": pickle.dumps(part)})
            file.writelines(json.dumps(item).encode() + b"\n" for item in items[first : first + size])
    return rows


def outcomes(table: pa.Table) -> Iterator[tuple[int, Outcome]]:
    """The outcomes in a table, with the index of their file."""
    return _rows(table)


def _guarded(work: Work, item: Item, step: Callable[[], Any]) -> Any:
    """What a step returns, or the Outcome that its error means."""
    try:
        return step()
    except StageError as error:
        return _failed(work, item, error)
    except Exception as error:
        return Outcome(fatal=_plain(error))


def _failed(work: Work, item: Item, error: StageError) -> Outcome:
    if is_out_of_memory(error.cause):
        return Outcome(again=True)
    return Outcome(work.failed(item, error))


def _plain(error: Exception) -> Exception:
    """An error that can travel."""
    if isinstance(error, WriteError):
        return WriteError(*error.args)
    return DeviceError(str(error)) if isinstance(error, DeviceError) else RuntimeError(repr(error))


def _table(index: int, content: Any) -> pa.Table:
    data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    return pa.table([[index], pa.array([data], pa.large_binary())], schema=_SCHEMA)


def _rows(table: pa.Table) -> Iterator[tuple[int, Any]]:
    for index, content in zip(table["index"], table["content"], strict=True):
        yield index.as_py(), pickle.loads(content.as_buffer())
