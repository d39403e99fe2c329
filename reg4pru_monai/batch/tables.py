"""The journal as tables: results.csv, errors.csv, run.json, and results.parquet on request."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from .columns import Column
from .failures import COLUMNS as ERROR_COLUMNS
from .journal import Record
from .rows import COLUMNS


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


def write_tables(output: Path, records: Sequence[Record], run: Mapping[str, Any], parquet: bool = False) -> None:
    """Write the tables of all records, each complete or not at all. Raises OSError."""
    _write_csv(output / "results.csv", COLUMNS, rows(records))
    _write_csv(output / "errors.csv", ERROR_COLUMNS, errors(records))
    if parquet:
        _write_parquet(output / "results.parquet", rows(records))
    with replacing(output / "run.json") as beside:
        beside.write_text(json.dumps(run, indent=2, default=str) + "\n", encoding="utf-8")


def _write_csv(path: Path, columns: Sequence[Column], content: Iterable[Mapping[str, Any]]) -> None:
    """UTF-8; bytes of a file name that are none appear as backslash escapes."""
    with (
        replacing(path) as beside,
        open(beside, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, [column.name for column in columns])
        writer.writeheader()
        for row in content:
            writer.writerow({key: _text(value) for key, value in row.items()})


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _write_parquet(path: Path, content: Iterable[Mapping[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{key: _parquet(value) for key, value in row.items()} for row in content])
    with replacing(path) as beside:
        parquet.write_table(table, beside, compression="zstd")


def _parquet(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return float(value) if isinstance(value, int | float) else value
