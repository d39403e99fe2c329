"""The journal as tables: results.csv, errors.csv, run.json, and results.parquet on request."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ..files import replacing
from .columns import Column
from .failures import COLUMNS as ERROR_COLUMNS
from .failures import naming
from .journal import Record
from .rows import COLUMNS, has_doubtful_field


def rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The rows of results.csv, in the order of the records; every column is there, None where there is no value."""
    for record in records:
        for row in record.rows:
            yield {column.name: row.get(column.name) for column in COLUMNS}


def errors(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The rows of errors.csv."""
    for record in records:
        if record.error is not None:
            yield record.error


def write_tables(
    output: Path,
    records: Callable[[], Iterable[Record]],
    failures: Callable[[], Iterable[Record]],
    run: Mapping[str, Any],
    parquet: bool = False,
) -> int:
    """Write the tables, each complete or not at all; return how many photographs have a doubtful field of view.

    Raises WriteError.

    records, failures: a fresh iterator over all records, and over those that failed.
    """
    doubtful = 0

    def seen() -> Iterator[Record]:
        nonlocal doubtful
        for record in records():
            doubtful += has_doubtful_field(record)
            yield record

    _write_csv(output / "results.csv", COLUMNS, rows(seen()))
    _write_csv(output / "errors.csv", ERROR_COLUMNS, errors(failures()))
    if parquet:
        _write_parquet(output / "results.parquet", rows(records()))
    with _beside(output / "run.json") as beside:
        beside.write_text(json.dumps(run, indent=2, default=str) + "\n", encoding="utf-8")
    return doubtful


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    with naming(path), replacing(path) as beside:
        yield beside


def _write_csv(path: Path, columns: Sequence[Column], content: Iterable[Mapping[str, Any]]) -> None:
    """UTF-8; bytes of a file name that are none appear as backslash escapes."""
    with (
        _beside(path) as beside,
        open(beside, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, [column.name for column in columns])
        writer.writeheader()
        for row in content:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: Any) -> Any:
    """A number in six digits; text with an apostrophe in front where a spreadsheet would run it as a formula.

    Text that begins with an apostrophe gets one too, so that taking one away always gives the text.
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


# OWASP, "CSV Injection"; the last four are the wide forms of the first, which some spreadsheets take as well.
_FORMULA = tuple("=+-@\t\r\n'\uff1d\uff0b\uff0d\uff20")


def _write_parquet(path: Path, content: Iterator[dict[str, Any]]) -> None:
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    schema = _schema()
    with _beside(path) as beside, ParquetWriter(beside, schema, compression="zstd") as writer:
        while chunk := list(islice(content, _ROWS)):
            values = [{column.name: _typed(row[column.name], column.kind) for column in COLUMNS} for row in chunk]
            writer.write_table(Table.from_pylist(values, schema))


_ROWS = 65_536  # rows of a Parquet file that are held at a time


def _schema() -> Any:
    """The same whatever a table holds, so that tables of several runs can be joined."""
    import pyarrow

    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    # Without this note pandas makes floats of whole numbers where one is missing.
    whole = [
        {"name": c.name, "field_name": c.name, "pandas_type": "int64", "numpy_type": "Int64", "metadata": None}
        for c in COLUMNS
        if c.kind is int
    ]
    note = {"index_columns": [], "column_indexes": [], "columns": whole, "pandas_version": "2.0.0"}
    fields = [pyarrow.field(column.name, kinds[column.kind]) for column in COLUMNS]
    return pyarrow.schema(fields, metadata={"pandas": json.dumps(note)})


def _typed(value: Any, kind: type[str | int | float]) -> Any:
    if value is None or value == "":
        return None
    return str(value).encode("utf-8", "backslashreplace").decode() if kind is str else kind(value)
