from pathlib import Path

import pytest

from reg4pru_monai.files import replacing


def test_an_earlier_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "a.txt"
    with replacing(target) as beside:
        beside.write_text("one")
    with replacing(target) as beside:
        beside.write_text("two")
        assert target.read_text() == "one"
        assert beside.suffix == ".txt"
        assert beside.name.startswith(".")
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("one")

    def fail() -> None:
        with replacing(target) as beside:
            beside.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert target.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 251 + ".txt")
    with replacing(target) as beside:
        beside.write_text("one")
    assert target.read_text() == "one"
