"""Outputs in tar archives: what is in them is what lies in files else, once each, whatever ended a run."""

import json
import signal
import subprocess
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from batches import computed, seen, segment, table, write_photographs
from reg4pru_monai.batch import archives, locks
from reg4pru_monai.batch.archives import Archives, finish
from reg4pru_monai.batch.journal import Journal
from reg4pru_monai.batch.names import sample_name
from reg4pru_monai.batch.settings import SettingsError
from test_batch_killed import ended, search_path, start  # noqa: F401  # a fixture

KINDS = {"mask": ("masks", ".png"), "overlay": ("overlays", ".jpg"), "nifti": ("nifti", ".nii.gz")}
TAR = {"archives": True}


def archived(output: Path) -> dict[str, bytes]:
    """What all archives hold, by name. Every name must be there once, and every archive must end as one does."""
    found: dict[str, bytes] = {}
    for path in sorted((output / "archives").iterdir()):
        assert path.stat().st_size % tarfile.RECORDSIZE == 0
        with tarfile.open(path, errorlevel=2) as archive:
            for member in archive:
                assert member.name not in found
                stream = archive.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
        assert path.read_bytes().endswith(bytes(2 * tarfile.BLOCKSIZE))
    return found


def as_files(found: dict[str, bytes]) -> dict[str, bytes]:
    """Under the names of files, without the rows."""
    files = {}
    for name, data in found.items():
        sample, _, kind = name.partition(".")
        if kind != "json":
            folder, suffix = KINDS[kind.partition(".")[0]]
            files[f"{folder}/{unquote(sample)}{suffix}"] = data
    return files


def pictures(output: Path) -> dict[str, bytes]:
    folders = [output / folder for folder, _ in KINDS.values()]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_photographs(tmp_path_factory.mktemp("photographs"), 4)
    (folder / "photograph_03.png").rename(folder / "100%.ü photograph.png")
    return folder


def test_archives_hold_what_lies_in_files_else(photographs: Path, tmp_path: Path) -> None:
    outputs = {"outputs": tuple(KINDS)}
    segment(photographs, tmp_path / "files", outputs)
    summary = segment(photographs, tmp_path / "tar", outputs | TAR)
    assert summary.done == 4
    assert not pictures(tmp_path / "tar")
    found = archived(tmp_path / "tar")
    assert as_files(found) == pictures(tmp_path / "files")
    rows = [json.loads(data)[0] for name, data in found.items() if name.endswith(".json")]
    assert sorted(row["path"] for row in rows) == sorted(path.name for path in photographs.iterdir())
    assert [row["path"] for row in table(tmp_path / "tar")] == [row["path"] for row in table(tmp_path / "files")]


def test_the_files_of_a_photograph_follow_each_other_under_one_key(photographs: Path, tmp_path: Path) -> None:
    """As WebDataset groups them: by the path up to the first dot of the file's name."""
    segment(photographs, tmp_path, TAR)
    samples: list[str] = []
    for name in archived(tmp_path):
        key = name.partition(".")[0]
        if samples[-1:] != [key]:
            samples.append(key)
    assert len(samples) == len(set(samples)) == 4
    assert sample_name("x/a.dcm", 1) != sample_name("x/a.dcm~frames/1")
    assert sample_name("100%.ü photograph.png") == "100%25%2Eü photograph%2Epng"


def test_again_computes_nothing_and_what_an_archive_lost_is_done_again(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path, TAR)
    before = archived(tmp_path)
    assert segment(photographs, tmp_path, TAR).now == 0
    assert archived(tmp_path) == before
    (path,) = (tmp_path / "archives").iterdir()
    path.unlink()
    assert segment(photographs, tmp_path, TAR).done == 4
    assert as_files(archived(tmp_path)) == as_files(before)


def test_an_archive_that_is_full_is_followed_by_another(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "ARCHIVE_BYTES", 1)
    segment(photographs, tmp_path, TAR)
    assert [path.name[-9:] for path in sorted((tmp_path / "archives").iterdir())] == [
        f"{number:05}.tar" for number in range(4)
    ]
    assert len(archived(tmp_path)) == 4 * 3


def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "in", 12)
    segment(folder, tmp_path / "files")
    output = tmp_path / "out"
    for kill in range(5):
        process = start(folder, output, choices=TAR, workers=3)
        while process.is_alive() and len(computed(output)) < 2 * (kill + 1):
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < len(computed(output)) < 12
    ended(start(folder, output, choices=TAR), 0)
    assert len(computed(output)) == len(set(computed(output))) == 12
    assert as_files(archived(output)) == pictures(tmp_path / "files")


def test_what_stands_behind_the_last_line_is_cut_off(photographs: Path, tmp_path: Path) -> None:
    """As after a kill between an archive and the journal, at its beginning and later."""
    segment(photographs, tmp_path, TAR, limit=2)
    (journal,) = (tmp_path / ".reg4pru" / "journal").iterdir()
    (path,) = (tmp_path / "archives").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if line.startswith(b'{"record"'))
    journal.write_bytes(b"".join(lines[:last]) + lines[last][:50])  # the second photograph was not recorded
    path.write_bytes(path.read_bytes()[:-700])  # and half of a third one written
    begun = path.with_name(f"{journal.stem}-00001.tar")
    begun.write_bytes(b"half a header")
    segment(photographs, tmp_path, TAR)
    assert not begun.exists()
    assert len(archived(tmp_path)) == 4 * 3


def test_what_an_archive_lost_is_not_made_up_for_with_zeros(photographs: Path, tmp_path: Path) -> None:
    """An unfinished run, whose archive came back from a copy that was cut off."""
    segment(photographs, tmp_path, TAR, workers=1)
    (journal,) = (tmp_path / ".reg4pru" / "journal").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if not line.startswith(b'{"end"')))
    (path,) = (tmp_path / "archives").iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert segment(photographs, tmp_path, TAR, limit=1).before < 3
    assert segment(photographs, tmp_path, TAR).missing == 0
    readable = set()
    for each in (tmp_path / "archives").iterdir():
        with tarfile.open(each) as archive, suppress(tarfile.ReadError):
            for member in archive:
                readable.add(member.name)
    assert sum(name.endswith(".mask.png") for name in readable) == 4


def test_a_journal_that_cannot_be_written_leaves_nothing_in_the_archive(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Journal._write

    def full(self: Journal, line: dict[str, Any], sync: bool = True) -> None:
        if "record" in line and computed(tmp_path):
            raise OSError(28, "No space left on device")
        write(self, line, sync)

    monkeypatch.setattr(Journal, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        segment(photographs, tmp_path, TAR, workers=1)
    monkeypatch.undo()
    assert len(archived(tmp_path)) == 3
    assert segment(photographs, tmp_path, TAR).done == 3
    assert len(archived(tmp_path)) == 4 * 3


def test_without_locks_no_archive_is_touched(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that of a run that is at work."""
    segment(photographs, tmp_path, TAR, limit=2)
    (journal,) = (tmp_path / ".reg4pru" / "journal").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if not line.startswith(b'{"end"')))
    (path,) = (tmp_path / "archives").iterdir()
    with path.open("ab") as file:
        file.write(b"more")
    before = path.read_bytes()
    monkeypatch.setattr(locks, "lock", lambda *given, **how: None)
    segment(photographs, tmp_path, TAR)
    assert path.read_bytes() == before
    monkeypatch.undo()
    segment(photographs, tmp_path, TAR)
    assert len(archived(tmp_path)) == 4 * 3


def test_a_full_disk_ends_the_run_and_leaves_whole_archives(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, count = archives._member, 0

    def full(name: str, data: bytes) -> bytes:
        nonlocal count
        count += 1
        if count > 4:
            raise OSError(28, "No space left on device")
        return member(name, data)

    monkeypatch.setattr(archives, "_member", full)
    with pytest.raises(OSError, match="No space left"):
        segment(photographs, tmp_path, TAR, workers=1)
    monkeypatch.undo()
    assert len(archived(tmp_path)) == 3
    assert (seen(tmp_path).done, seen(tmp_path).failures) == (1, [])
    assert segment(photographs, tmp_path, TAR).done == 3
    assert len(archived(tmp_path)) == 4 * 3


def test_shards_write_archives_of_their_own(photographs: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        segment(photographs, tmp_path, TAR, part=(number, 2))
    assert len(list((tmp_path / "archives").iterdir())) == 2
    assert len(archived(tmp_path)) == 4 * 3


def test_files_and_archives_are_not_mixed(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path, limit=1)
    with pytest.raises(SettingsError, match=r"archives was null, is true.*another --output"):
        segment(photographs, tmp_path, TAR)
    with pytest.raises(SettingsError, match="give them without --store"):
        segment(photographs, tmp_path / "new", TAR | {"store": "s3://bucket/results"})


def test_overwriting_puts_archives_aside(photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path, TAR, limit=1)
    segment(photographs, tmp_path, TAR, overwrite=True)
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert len(archived(earlier)) == 3
    assert len(archived(tmp_path)) == 4 * 3


def test_other_programs_read_them(tmp_path: Path) -> None:
    held = Archives(tmp_path, "run")
    held.add({"a/b%2Epng.mask.png": b"1" * 600, "a/b%2Epng.json": b"[]"})
    end = held.add({"n" * 300 + ".mask.png": b"2"})
    held.close()
    (name,) = end
    listed = subprocess.run(["tar", "-tf", tmp_path / name], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["a/b%2Epng.mask.png", "a/b%2Epng.json", "n" * 300 + ".mask.png"]
    assert not listed.stderr
    whole = (tmp_path / name).read_bytes()
    finish(tmp_path / name, end[name])  # whole already
    assert (tmp_path / name).read_bytes() == whole
    (tmp_path / name).write_bytes(whole[: end[name]] + b"half a photograph".ljust(len(whole) - end[name]))
    finish(tmp_path / name, end[name])  # though it has the length of a whole one
    assert (tmp_path / name).read_bytes() == whole
