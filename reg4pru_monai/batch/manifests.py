"""Manifests: text files and tables that list photographs, as spreadsheets and editors save them."""

import codecs
import csv
import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, NamedTuple, TextIO

from ..files import SEPARATOR_LINE, table_reader
from ..fundus.angle import checked_angle
from ..fundus.remote import is_url, read, without_file_protocol
from .items import InputError

_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods")
MANIFEST_SUFFIXES = (".txt", ".csv", ".tsv", *_WORKBOOKS)
_HEAD = 4096
_MISSING = ("na", "n/a", "#n/a", "<na>", "nan", "null", "none")  # as R, Excel, pandas and databases write a gap


class Line(NamedTuple):
    """A line of a manifest. angle: of view of the photographs, in degrees, where it tells it."""

    path: str
    angle: float | None = None


def read_manifest(path: str) -> Iterator[Line]:
    """The lines of a manifest; relative paths start from its own folder.

    Text: one path per line, optionally in double quotes. Table: a column ``path`` and optionally a column ``angle``,
    separated by commas, semicolons or tabs. A .txt file whose first line names a column ``path`` is a table too.
    Encoding: UTF-8, or UTF-16 with a byte order mark. Raises InputError.
    """
    if path.lower().endswith(_WORKBOOKS):
        raise InputError(f"{path}: a manifest is a text file, not a workbook; save it as CSV UTF-8")
    folder = posixpath.dirname(path) if is_url(path) else os.path.dirname(os.path.abspath(path))
    try:
        with _opened(path) as file:
            for line in _rows(path, file) if _is_table(path, file) else map(Line, file):
                if line.path.strip():
                    yield line._replace(path=_joined(folder, line.path.rstrip("\r\n")))
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable manifest: {error}") from error


def _opened(path: str) -> TextIO:
    """Open the text; bytes that are not UTF-8 become surrogates, as in file names."""
    file: IO[bytes] = io.BytesIO(read(path)) if is_url(path) else open(path, "rb")  # noqa: SIM115  # closed with the text
    head = file.read(_HEAD)
    file.seek(0)
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and b"\0" in head:
        file.close()
        raise InputError(f"{path}: holds NUL bytes; save the manifest as UTF-8, not UTF-16")
    return io.TextIOWrapper(file, "utf-16" if wide else "utf-8-sig", "surrogateescape", newline="")


def _is_table(path: str, file: TextIO) -> bool:
    """Whether the file is a table; Excel saves tables as .txt too."""
    head = file.readline().lower()
    file.seek(0)
    cells = [cell.strip(' "\r\n') for cell in re.split("[\t;,]", head)]
    return not path.lower().endswith(".txt") or "path" in cells or SEPARATOR_LINE.match(head) is not None


def _rows(path: str, file: TextIO) -> Iterator[Line]:
    """The columns ``path`` and ``angle`` of a table, whatever separates them and however they are capitalised."""
    table = table_reader(file)
    names = {name.strip().lower(): name for name in table.fieldnames or () if name}
    if "path" not in names:
        raise InputError(f"{path}: a manifest needs a column named path, got {table.fieldnames}")
    for row in table:
        photograph = row[names["path"]] or ""
        if "".join(row.get(None, ())).strip():  # cells after the last column
            raise InputError(
                f"{path}: {photograph}: its row has more cells than the table has columns; quote names and numbers "
                "that contain a comma, or separate the cells with semicolons"
            )
        try:
            yield Line(photograph, checked_angle(_number(row[names["angle"]]) if "angle" in names else None))
        except ValueError as error:
            raise InputError(f"{path}: {photograph}: {error}") from error


def _number(cell: str | None) -> str:
    """A number with a decimal point, also where a program wrote a decimal comma; "" where it is missing."""
    text = (cell or "").strip()
    return "" if text.lower() in _MISSING else text.replace(",", ".")


def _joined(folder: str, line: str) -> str:
    """The path or URL that a line names.

    The first of these that exists: the line as it stands; without surrounding spaces and double quotes, and with
    slashes for backslashes; the same read as Windows-1252, if it is not UTF-8. If none exists, the second.
    """
    plain = line.strip()
    if len(plain) > 2 and plain[0] == plain[-1] == '"':  # file managers copy paths in quotes
        plain = plain[1:-1]
    plain = without_file_protocol(plain)
    if is_url(plain):
        return plain
    plain = plain.replace("\\", "/")
    if is_url(folder) and not os.path.isabs(plain):
        protocol, _, place = folder.partition("://")
        return f"{protocol}://{posixpath.normpath(posixpath.join(place, plain))}"
    forms = dict.fromkeys(os.path.join(folder, form) for form in (line, plain, _from_windows_1252(plain)))
    there = filter(os.path.lexists, forms if len(forms) > 1 else ())
    return next(there, os.path.join(folder, plain))


def _from_windows_1252(text: str) -> str:
    """Read text whose bytes are not UTF-8 as Windows-1252; return other text unchanged."""
    try:
        text.encode()
    except UnicodeEncodeError:
        with suppress(UnicodeError):  # Windows-1252 leaves some bytes undefined
            return text.encode("utf-8", "surrogateescape").decode("cp1252")
    return text
