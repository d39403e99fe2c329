"""The tables of a run: text that spreadsheets leave alone, typed columns, errors that name what cannot be written."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import segment, table, write_photographs
from conftest import ROOT
from reg4pru_monai import files
from reg4pru_monai.batch import failures
from reg4pru_monai.batch.columns import Column
from reg4pru_monai.batch.failures import WriteError
from reg4pru_monai.batch.journal import Record
from reg4pru_monai.batch.rows import COLUMNS
from reg4pru_monai.batch.tables import write_tables


def record(name: str, **values: Any) -> Record:
    return Record(name, "done", 1, 1, [{"path": name, "status": "done", **values}], None, {})


def failure(name: str, message: str) -> Record:
    error = {"path": name, "stage": "read", "type": "FundusReadError", "message": message, "remedy": "Copy it again."}
    return Record(name, "failed", 1, 1, [{"path": name, "status": "failed"}], error, {})


def write(output: Path, records: list[Record], parquet: bool = False) -> None:
    write_tables(output, lambda: records, lambda: [each for each in records if each.error], {}, parquet)


FORMULAS = ["=1+1.png", "+1.png", "-1.png", "@SUM(A1).png", "\t=1.png", "\r=1.png", "\n=1.png", "\uff1d1+1.png"]


def test_text_is_never_a_formula_and_numbers_stay(tmp_path: Path) -> None:
    records = [record(name, camera_maker=name, focus=-0.25, identifier="-17") for name in FORMULAS]
    write(tmp_path, [*records, failure("=x.png", "=cmd|' /C calc'!A0")])
    found = table(tmp_path)
    assert [row["path"] for row in found] == [f"'{name}" for name in [*FORMULAS, "=x.png"]]
    assert [row["camera_maker"] for row in found[:-1]] == [f"'{name}" for name in FORMULAS]
    assert {row["focus"] for row in found[:-1]} == {"-0.25"}
    assert {row["identifier"] for row in found[:-1]} == {"'-17"}
    (error,) = table(tmp_path, "errors.csv")
    assert (error["path"], error["message"]) == ("'=x.png", "'=cmd|' /C calc'!A0")
    assert (tmp_path / "results.csv").read_bytes().startswith(b"path,")  # no byte order mark


@given(st.lists(st.text(st.sampled_from("'=+-@a/.,;\"\t\r\n"), min_size=1, max_size=5), min_size=1, unique=True))
def test_a_program_gets_every_name_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    output = tmp_path_factory.mktemp("out")
    write(output, [record(name) for name in names])
    with open(output / "results.csv", newline="", encoding="utf-8") as file:
        cells = [row["path"] for row in csv.DictReader(file)]
    assert [cell.removeprefix("'") for cell in cells] == names
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\n"]


def test_parquet_keeps_whole_numbers_whole_where_some_are_missing(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="optional: pip install pyarrow")
    from pyarrow import parquet

    done = record("=a.png", frame=1, height_px=2336, focus=1, branch_count=180, tortuosity=1.25, identifier="")
    write(tmp_path, [done, failure("b\udcff.png", "x")], parquet=True)
    found = parquet.read_table(tmp_path / "results.parquet")
    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    assert [(field.name, field.type) for field in found.schema] == [(c.name, kinds[c.kind]) for c in COLUMNS]
    first, second = found.to_pylist()
    assert first["path"] == "=a.png"  # no spreadsheet runs it here
    assert (first["branch_count"], first["focus"], first["tortuosity"]) == (180, 1.0, 1.25)
    assert first["identifier"] is None
    assert second["path"] == r"b\udcff.png"
    assert [second[name] for name in ("frame", "height_px", "branch_count", "focus")] == [None] * 4


def test_pandas_reads_whole_numbers(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="optional: pip install pandas pyarrow")
    pytest.importorskip("pyarrow", reason="optional: pip install pyarrow")
    write(tmp_path, [record("a.png", branch_count=180), failure("b.png", "x")], parquet=True)
    found = pandas.read_parquet(tmp_path / "results.parquet")
    assert found["branch_count"].dtype == "Int64"
    assert found["branch_count"].tolist() == [180, pandas.NA]
    assert found["focus"].dtype == "float64"


@pytest.mark.parametrize(("heading", "columns"), [("results.csv", COLUMNS), ("errors.csv", failures.COLUMNS)])
def test_the_documentation_has_the_columns(heading: str, columns: Sequence[Column]) -> None:
    text = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8").split(f"## Columns of {heading}\n")[1]
    rows = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("| `")]
    assert rows == [f"| `{each.name}` | {each.unit} | {each.definition} |" for each in columns]


def test_columns_hold_what_they_say(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="optional: pip install pyarrow")
    from pyarrow import parquet

    segment(write_photographs(tmp_path / "in", 1), tmp_path / "out", {"millimetres_per_pixel": 0.01}, parquet=True)
    (text,) = table(tmp_path / "out")
    (typed,) = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    for column in COLUMNS:
        if text[column.name] == "":
            assert typed[column.name] is None, column.name
        elif column.kind is float:
            assert typed[column.name] == pytest.approx(float(text[column.name]), rel=1e-5), column.name
        else:
            assert typed[column.name] == column.kind(text[column.name]), column.name


@pytest.mark.parametrize("name", ["results.csv", "errors.csv", "results.parquet", "run.json", "report.html"])
def test_a_full_disk_names_the_table_it_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, output, replace = write_photographs(tmp_path / "in", 1), tmp_path / "out", os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")  # says no more, as a write does
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(WriteError, match=r"No space left on device; make room .* same command again") as raised:
        segment(folder, output, parquet=True)
    assert f"{output / name} cannot be written" in str(raised.value)
    monkeypatch.undo()
    assert segment(folder, output, parquet=True).before == 1
    assert (output / name).is_file()


def test_doubtful_fields_of_view_are_counted(tmp_path: Path) -> None:
    """Where no disc was found, or one of little confidence, in any frame of a photograph."""
    sure, unsure = ({"fov_full_frame": 0, "fov_confidence": value} for value in (0.98, 0.5))
    frames = Record("d.dcm", "done", 1, 1, [sure, unsure], None, {})
    records = [
        record("a.png", **sure),
        record("b.png", **unsure),
        record("c.png", fov_full_frame=1, fov_confidence=0.0),
        frames,
        failure("e.png", "it is truncated"),
    ]
    assert write_tables(tmp_path, lambda: records, lambda: [], {}) == 3
