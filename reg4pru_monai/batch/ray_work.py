"""What runs on the workers of a Ray cluster: the steps of Work, between tables of bytes; no error of a file leaves it."""

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
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from .. import __version__
from ..runtime import select_device
from .failures import DeviceError, StageError, WriteError, is_out_of_memory
from .inputs import Item
from .journal import Record
from .work import Inferred, Prepared, Work

# Photographs differ in shape, so they travel as bytes. large: those of a file may be more than 2 GiB.
_SCHEMA = pa.schema([("index", pa.int64()), ("content", pa.large_binary())])


class Outcome(NamedTuple):
    """What became of a file. record: its line. again: memory ran out, which it may not if tried alone.

    fatal: no other file would fare better: an error to raise. network: seconds that the network took.
    """

    record: Record | None = None
    again: bool = False
    fatal: Exception | None = None
    network: float = 0.0


class Shared(NamedTuple):
    """What every worker needs. cpu_work: without the network. folder: of the inputs, or None.

    marker: a file that the driver has written into the output folder. version: of this package. stop: an actor of Stop.
    """

    cpu_work: Work
    folder: str | None
    marker: Path
    version: str
    stop: Any


class Stop:
    """An actor that knows whether nothing more shall be begun."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Begin nothing more."""
        self._asked = True

    def asked(self) -> bool:
        """Whether it was asked for."""
        return self._asked


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
                None,
                f"{path} is not the same folder on the Ray worker {socket.gethostname()}: the {what} must lie on a "
                "file system that all nodes share, under the same path",
            )
    return None


class Photographs(Datasource):
    """Ray Data's source: files of an agenda, read and prepared, each in a block of its own.

    path: JSON lines of name and path. parts: (first index, offset in bytes, lines) of what one task reads. shared:
    object reference of Shared.
    """

    def __init__(self, path: Path, parts: Sequence[tuple[int, int, int]], shared: Any) -> None:
        super().__init__()
        self.path, self.parts, self.shared = path, parts, shared

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known before they are read."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """A task for each part, however many are asked for."""
        return [
            ReadTask(partial(_read, self.path, part, self.shared), BlockMetadata(part[2], None, None, None))
            for part in self.parts
        ]


def _read(path: Path, part: tuple[int, int, int], reference: Any) -> Iterator[pa.Table]:
    first, offset, lines = part
    shared: Shared = ray.get(reference)
    unfit = problem(shared)
    if unfit is not None:
        yield _table(first, Outcome(fatal=unfit))
        return
    with open(path, "rb") as file:
        file.seek(offset)
        items = [Item(*json.loads(file.readline())) for _ in range(lines)]
    for index, item in enumerate(items, first):
        if _stopped(shared):
            return
        yield _table(index, _guarded(shared.cpu_work, item, partial(_prepare, shared.cpu_work, item)))


def _prepare(work: Work, item: Item) -> Prepared:
    file = work.prepare(item)
    for frame in file.frames:
        for value in frame.item.values():
            for operation in value.applied_operations:
                operation[TraceKeys.ID] = TraceKeys.NONE  # the address of the transform, which others do not share
    return file


class Network:
    """Ray Data's actor: holds the network and runs it over files."""

    def __init__(self, reference: Any, shared: Any, gpus: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work: Work = ray.get(reference)
        self.shared: Shared = ray.get(shared)
        pipeline = self.work.pipeline
        pipeline.device = select_device("cuda" if gpus else "cpu")
        pipeline.network.to(pipeline.device)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Files that were prepared -> with what the network says of them."""
        rows = list(_rows(table))
        stopped = _stopped(self.shared)
        for index, content in rows:
            if isinstance(content, Outcome):
                yield _table(index, content)
        files = [(index, content) for index, content in rows if isinstance(content, Prepared)]
        if files and not stopped:
            for (index, file), found in zip(files, self._infer([file for _, file in files]), strict=True):
                yield _table(index, found if isinstance(found, Outcome) else (file, found))
        yield _SCHEMA.empty_table()  # Ray Data wants at least one

    def _infer(self, files: list[Prepared]) -> list[Inferred | Outcome]:
        try:
            found = self.work.infer(files)
        except Exception as error:
            return [Outcome(fatal=_plain(error))] * len(files)
        return [
            _failed(self.work, file.item, each) if isinstance(each, StageError) else each
            for file, each in zip(files, found, strict=True)
        ]


def finish(table: pa.Table, reference: Any) -> Iterator[pa.Table]:
    """What the network said -> outcomes; results are written."""
    shared: Shared = ray.get(reference)
    unfit = problem(shared)
    for index, content in _rows(table):
        if not isinstance(content, Outcome):
            content = Outcome(fatal=unfit) if unfit else _finish(shared.cpu_work, *content)
        yield _table(index, content)
    yield _SCHEMA.empty_table()


def _finish(work: Work, file: Prepared, found: Inferred) -> Outcome:
    record = _guarded(work, file.item, partial(work.finish, file, found))
    return record if isinstance(record, Outcome) else Outcome(record, network=found.seconds)


def alone(work: Work, item: Item, gpus: float, threads: int) -> Outcome:
    """One file from beginning to end; what fails for want of memory has failed."""
    torch.set_num_threads(threads)
    work.pipeline.device = select_device("cuda" if gpus else "cpu")
    work.pipeline.network.to(work.pipeline.device)
    try:
        file = work.prepare(item)
        found = work.infer([file])[0]
        if isinstance(found, StageError):
            raise found
        return Outcome(work.finish(file, found), network=found.seconds)
    except StageError as error:
        return Outcome(work.failed(item, error))
    except Exception as error:
        return Outcome(fatal=_plain(error))


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


def _stopped(shared: Shared) -> bool:
    return bool(ray.get(shared.stop.asked.remote()))


def _table(index: int, content: Any) -> pa.Table:
    data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    return pa.table([[index], pa.array([data], pa.large_binary())], schema=_SCHEMA)


def _rows(table: pa.Table) -> Iterator[tuple[int, Any]]:
    for index, content in zip(table["index"], table["content"], strict=True):
        yield index.as_py(), pickle.loads(content.as_buffer())
