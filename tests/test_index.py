"""What the journals of a folder say last of every photograph."""

from pathlib import Path

import pytest

from reg4pru_monai.batch import index
from reg4pru_monai.batch.index import Index
from reg4pru_monai.batch.journal import Journal, Record


def record(name: str, status: str = "done", size: int = 1, outputs: dict[str, int] | None = None) -> Record:
    return Record(name, status, size, 1, [{"path": name, "status": status}], None, outputs or {})


def write(output: Path, *records: Record, settings: str = "ours") -> None:
    """A journal of its own."""
    journal = Journal(output, {"settings": settings, "shard": "1/1"})
    for each in records:
        journal.add(each)
    journal.close(done=len(records))


def test_the_last_record_of_each_by_name_whatever_bytes_names_are_made_of(tmp_path: Path) -> None:
    names = ["z.png", "a.png", "\udcff.png", "ä.png", "a/b.png"]
    write(tmp_path, *map(record, names))
    write(tmp_path, record("a.png", size=7))
    write(tmp_path, record("other.png"), settings="theirs")
    with Index(tmp_path, "ours") as found:
        assert [each.name for each in found.records()] == sorted(names)
        assert found.get("a.png") == record("a.png", size=7)
        assert found.get("other.png") is None
        assert [run.done for run in found.runs] == [5, 1, 1]
        found.expect(["a.png", "new.png", "\udcfe.png"], str(tmp_path))
        assert list(found.missing()) == ["new.png", "\udcfe.png"]
        assert (found.count(True), found.count(False), found.count_missing()) == (5, 0, 2)


def test_a_failure_does_not_undo_what_is_still_there(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"1234")
    whole, gone = record("whole.png", outputs={"mask.png": 4}), record("gone.png", outputs={"lost.png": 4})
    write(tmp_path, whole, gone, record("changed.png"))
    write(tmp_path, *(record(name, "failed") for name in ("whole.png", "gone.png")), record("changed.png", "failed", 2))
    with Index(tmp_path, "ours") as found:
        assert found.get("whole.png") == whole
        assert [each.name for each in found.failures()] == ["changed.png", "gone.png"]


@pytest.mark.parametrize("changed", [-(10**27), -1, 0, 2**63, 15_032_385_535 * 10**9, 10**27])
def test_whatever_a_file_system_says_of_times_and_sizes(tmp_path: Path, changed: int) -> None:
    (tmp_path / "mask.png").write_bytes(b"1234")
    done = record("a.png", size=2**64, outputs={"mask.png": 4})._replace(mtime_ns=changed)
    failed = record("a.png", "failed", size=2**64)._replace(mtime_ns=changed)
    write(tmp_path, done, failed)
    with Index(tmp_path, "ours") as found:
        assert found.get("a.png") == done
    write(tmp_path, failed._replace(mtime_ns=changed + 1))
    with Index(tmp_path, "ours") as found:
        assert [each.mtime_ns for each in found.failures()] == [changed + 1]


def test_a_failure_of_a_file_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    write(tmp_path, *(record(name, "failed") for name in ("there.png", "listed.png", "gone.png")))
    with Index(tmp_path, "ours") as found:
        found.expect(["listed.png"], str(tmp_path))
        assert [each.name for each in found.records()] == ["listed.png", "there.png"]


def test_more_journals_than_files_are_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_FILES", 2)
    for number in range(5):
        write(tmp_path, record(f"{number}.png"), record(f"{9 - number}.png"))
    with Index(tmp_path, "ours") as found:
        assert [each.name for each in found.records()] == [f"{number}.png" for number in range(10)]
        assert [each.name for each in found.records()] == [f"{number}.png" for number in range(10)]


def test_a_record_of_no_known_status_is_as_good_as_cut_off(tmp_path: Path) -> None:
    write(tmp_path, record("a.png", "begun"), record("b.png"))
    with Index(tmp_path, "ours") as found:
        assert (found.runs[0].done, found.runs[0].failed) == (1, 0)
        assert [each.name for each in found.records()] == ["b.png"]
