"""Manifests: text files and tables that list photographs."""

import csv
import io
import os
import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

from ..files import table_reader
from ..fundus.angle import checked_angle
from ..fundus.remote import is_url, read, without_file_protocol
from .items import InputError

MANIFEST_SUFFIXES = (".txt", ".csv", ".tsv")


class Line(NamedTuple):
    """A line of a manifest. angle: of view of the photographs, in degrees, where it tells it."""

    path: str
    angle: float | None = None


def read_manifest(path: str) -> Iterator[Line]:
    """The lines of a manifest; relative paths start from its own folder.

    Text: one path per line, with or without double quotes around it. CSV: a column ``path`` and, where it is known, a
    column ``angle``; commas, semicolons or tabs between. Raises InputError.
    """
    folder = posixpath.dirname(path) if is_url(path) else os.path.dirname(os.path.abspath(path))
    try:
        with _opened(path) as file:
            text = path.lower().endswith(".txt")
            for line in (Line(_unquoted(line.rstrip("\r\n"))) for line in file) if text else _rows(path, file):
                if "\0" in line.path:
                    raise InputError(f"{path}: holds NUL bytes; save the manifest as UTF-8, not UTF-16")
                if line.path.strip():
                    yield line._replace(path=_joined(folder, line.path))
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: not a readable manifest: {error}") from error


def _opened(path: str) -> TextIO:
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    return io.TextIOWrapper(io.BytesIO(read(path)), **how) if is_url(path) else open(path, **how)


def _joined(folder: str, line: str) -> str:
    line = without_file_protocol(line)
    if is_url(line):
        return line
    if not is_url(folder) or os.path.isabs(line):
        return os.path.join(folder, line)
    protocol, _, place = folder.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(place, line))}"


def _unquoted(line: str) -> str:
    """As file managers copy paths: in quotes."""
    inner = line.strip()
    return inner[1:-1] if len(inner) > 2 and inner[0] == inner[-1] == '"' else line


def _rows(path: str, file: TextIO) -> Iterator[Line]:
    """The columns ``path`` and ``angle`` of a table, whatever separates them and however they are capitalised."""
    table = table_reader(file)
    names = {name.strip().lower(): name for name in table.fieldnames or () if name}
    if "path" not in names:
        raise InputError(f"{path}: a manifest needs a column named path, got {table.fieldnames}")
    for row in table:
        photograph = row[names["path"]] or ""
        try:
            yield Line(photograph, checked_angle((row[names["angle"]] or "").strip() if "angle" in names else None))
        except ValueError as error:
            raise InputError(f"{path}: {photograph}: {error}") from error
