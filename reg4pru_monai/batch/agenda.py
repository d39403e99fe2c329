"""What a run has to do: which photographs are done, which come first, and which are better tried alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..fundus.remote import is_url, read
from .failures import ProcessEndedError
from .index import Index
from .inputs import Item
from .journal import Record
from .settings import SettingsError
from .store import Store

ATTEMPTS = 3  # a file is given up when the process ended so often while it worked on nothing else


@dataclass(frozen=True)
class Agenda:
    """todo: in this order, those that never failed first. alone: then these, one at a time.

    given_up: the process ended too often while it worked on them.
    """

    todo: list[Item]
    alone: list[Item]
    given_up: list[Item]

    def __len__(self) -> int:
        return len(self.todo) + len(self.alone) + len(self.given_up)

    def limited(self, limit: int | None) -> "Agenda":
        """At most ``limit`` files that cost time."""
        if limit is None:
            return self
        return Agenda(self.todo[:limit], self.alone[: max(0, limit - len(self.todo))], self.given_up)


def make_agenda(index: Index, items: Sequence[Item], moved: bool) -> Agenda:
    """What is left of ``items``. moved: names start from another folder than they did.

    Raises SettingsError where a name belongs to the result of another photograph.
    """
    ended = index.cut_off
    if moved:
        _check_same(index, items)
    agenda = Agenda([], [], [])
    again: list[Item] = []
    for item in items:
        record = index.get(item.name)
        if is_done(index.store, item, record):
            continue
        if ended.get(item.name, 0) >= ATTEMPTS:
            agenda.given_up.append(item)
        elif item.name in ended or _ended_process(record):
            agenda.alone.append(item)
        else:
            (agenda.todo if record is None or record.status == "done" else again).append(item)
    agenda.todo.extend(again)  # so that a limit gets past those that always fail
    return agenda


def is_done(store: Store, item: Item, record: Record | None) -> bool:
    """Whether there is a result of this very file and angle. What changed, or has lost an output, is done again."""
    if record is None or record.status != "done" or record.angle != item.angle:
        return False
    try:
        if item.status() != (record.size, record.mtime_ns):
            return False
    except OSError:
        return False
    return store.holds(record.outputs)


def _ended_process(record: Record | None) -> bool:
    return record is not None and record.error is not None and record.error["type"] == ProcessEndedError.__name__


def _check_same(index: Index, items: Sequence[Item]) -> None:
    """From another root, a name may be that of another photograph, whose result must not be replaced unasked."""
    others = [item for item in items if (record := index.get(item.name)) is not None and _is_other(item, record)]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise SettingsError(
            f"{index.output} holds the result of another photograph called {others[0].name!r}{more}, from another root "
            "folder; give another --output, or --overwrite"
        )


def _is_other(item: Item, record: Record) -> bool:
    """Whether a file is not the one of a result; a copy is the same."""
    if record.status != "done":
        return False
    try:
        size, changed = item.status()
        if (size, changed) == (record.size, record.mtime_ns):
            return False
        if size != record.size:
            return True
        content = read(item.path) if is_url(item.path) else Path(item.path).read_bytes()
        return hashlib.sha256(content).hexdigest() != record.rows[0]["sha256"]
    except OSError:
        return False  # cannot be read: it will fail, and a failure replaces no result
