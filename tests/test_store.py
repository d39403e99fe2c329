"""Outputs on object storage, tried with an S3 server on this machine."""

# ruff: noqa: F811

import shutil
from pathlib import Path
from typing import Any

import pytest

from batches import comparable, seen, segment, table, write_photographs
from object_storage import ObjectStorage, storage  # noqa: F401  # a fixture
from reg4pru_monai.batch.failures import WriteError
from reg4pru_monai.batch.folder import TABLES
from reg4pru_monai.batch.settings import SettingsError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), 4)


@pytest.fixture
def bucket(storage: ObjectStorage, request: pytest.FixtureRequest) -> str:
    """A new one."""
    name = request.node.name.replace("_", "-")[-60:].strip("-")
    storage.client.create_bucket(Bucket=name)
    return name


def on(bucket: str) -> dict[str, Any]:
    return {"store": f"s3://{bucket}/results"}


def pictures(storage: ObjectStorage, bucket: str) -> dict[str, bytes]:
    found = storage.objects(bucket)
    return {
        key.removeprefix("results/"): data for key, data in found.items() if key.split("/")[1] in ("masks", "overlays")
    }


def test_objects_are_the_files(storage: ObjectStorage, bucket: str, photographs: Path, tmp_path: Path) -> None:
    segment(photographs, tmp_path / "files")
    assert segment(photographs, tmp_path / "out", on(bucket)).done == 4
    assert pictures(storage, bucket) == comparable(tmp_path / "files")[0]
    assert comparable(tmp_path / "out") == ({}, comparable(tmp_path / "files")[1])
    for name in TABLES:
        if (tmp_path / "out" / name).is_file():
            assert storage.objects(bucket)[f"results/{name}"] == (tmp_path / "out" / name).read_bytes()
    assert "results/report.html" in storage.objects(bucket)


def test_again_asks_once_for_each_folder(
    storage: ObjectStorage, bucket: str, photographs: Path, tmp_path: Path
) -> None:
    segment(photographs, tmp_path, on(bucket))
    storage.requests.clear()
    assert segment(photographs, tmp_path, on(bucket)).now == 0
    asked = [each for each in storage.requests if "masks" in each or "overlays" in each]
    assert 0 < len(asked) <= 4  # not for every photograph


def test_an_object_that_is_lost_is_made_again(
    storage: ObjectStorage, bucket: str, photographs: Path, tmp_path: Path
) -> None:
    segment(photographs, tmp_path, on(bucket))
    before = pictures(storage, bucket)
    storage.client.delete_object(Bucket=bucket, Key="results/masks/photograph_01.png.png")
    storage.client.put_object(Bucket=bucket, Key="results/masks/photograph_02.png.png", Body=b"cut off")
    assert segment(photographs, tmp_path, on(bucket)).done == 2
    assert pictures(storage, bucket) == before


def test_storage_that_dies_ends_the_run_and_what_is_done_stays(
    storage: ObjectStorage, bucket: str, photographs: Path, tmp_path: Path
) -> None:
    def stop(record: Any) -> None:
        storage.stop()

    try:
        with pytest.raises(WriteError, match=rf"s3://{bucket}/results/.* cannot be written: .*command again"):
            segment(photographs, tmp_path, on(bucket), workers=1, progress=stop)
    finally:
        storage.start()
    status = seen(tmp_path)
    assert 0 < status.done < 4
    assert not status.failures
    summary = segment(photographs, tmp_path, on(bucket))
    assert (summary.before, summary.done) == (status.done, 4 - status.done)
    assert len(pictures(storage, bucket)) == 4 * 2


def test_shards_share_it(storage: ObjectStorage, bucket: str, photographs: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        segment(photographs, tmp_path, on(bucket), part=(number, 2))
    assert len(pictures(storage, bucket)) == 4 * 2
    published = storage.objects(bucket)["results/results.csv"]
    assert published == (tmp_path / "results.csv").read_bytes()
    assert len(table(tmp_path)) == 4


def test_results_of_other_settings_are_not_mixed(
    storage: ObjectStorage, bucket: str, photographs: Path, tmp_path: Path
) -> None:
    segment(photographs, tmp_path / "a", on(bucket), limit=1)
    with pytest.raises(SettingsError, match=r"results holds results of another --output, or of other settings.*give"):
        segment(photographs, tmp_path / "b", on(bucket) | {"threshold": 0.4})
    with pytest.raises(SettingsError, match="holds results of another --output"):
        segment(photographs, tmp_path / "c", on(bucket))
    assert segment(photographs, tmp_path / "b", {"store": f"s3://{bucket}/own"}).done == 4  # nothing stuck to it
    with pytest.raises(SettingsError, match="--overwrite cannot put aside what is on object storage"):
        segment(photographs, tmp_path / "a", on(bucket), overwrite=True)
    with pytest.raises(SettingsError, match="another --output"):
        segment(photographs, tmp_path / "a", {"store": f"s3://{bucket}/others"})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("results", r"--store must be the URL of object storage, such as s3://bucket/results, got results"),
        (
            "s3://no-such-bucket/results",
            "s3://no-such-bucket.* cannot be written: .*bucket does not exist; check the address",
        ),
        ("nowhere://bucket/results", "nowhere:// is no protocol that fsspec knows"),
        ("s3://key:secret@bucket/results", "give credentials in the environment"),
    ],
)
def test_what_cannot_be_written_to_is_said_before_the_first_photograph(
    storage: ObjectStorage,
    photographs: Path,
    tmp_path: Path,
    url: str,
    message: str,
) -> None:
    with pytest.raises((SettingsError, WriteError), match=message) as refused:
        segment(photographs, tmp_path / "out", {"store": url})
    assert "secret" not in str(refused.value)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_name_that_no_object_can_have_is_a_failure_of_its_own(
    storage: ObjectStorage, bucket: str, photographs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photographs, tmp_path / "in")
    (folder / "photograph_00.png").rename(folder / "m\udcfcller.png")
    summary = segment(folder, tmp_path / "out", on(bucket))
    assert (summary.done, summary.failed) == (3, 1)
    (row,) = table(tmp_path / "out", "errors.csv")
    assert (row["stage"], row["remedy"]) == ("write", "Rename the photograph, then run again.")


def test_an_output_that_is_a_url_is_refused(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="--output is a folder, for journal and tables: give s3://b/r as --store"):
        segment(photographs, "s3://b/r")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
