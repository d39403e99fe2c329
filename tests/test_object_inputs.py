"""Photographs in object storage: the same results as of local ones, no request for what is done, failures apart."""

# ruff: noqa: F811  # the fixture storage is imported

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bad_files import encoded, write_bad_files
from batches import comparable, computed, seen, segment, table, write_photographs
from object_storage import ObjectStorage, forget_connections, storage  # noqa: F401  # a fixture
from ray_clusters import ray_cluster
from reg4pru_monai.batch.inputs import InputError, Item, Listing, list_inputs, shard
from reg4pru_monai.batch.ray_plan import RayOptions
from reg4pru_monai.batch.settings import SettingsError
from reg4pru_monai.fundus.io import FundusReadError, read_bytes, read_image
from reg4pru_monai.fundus.remote import _entry, checked, info, is_url


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "photos"
    write_photographs(folder, 4)
    write_photographs(folder / "left", 2, 80)
    return folder


@pytest.fixture(scope="module")
def expected(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the local photographs."""
    output = tmp_path_factory.mktemp("local")
    assert segment(photographs, output).exit_status == 0
    return output


@pytest.fixture
def url(storage: ObjectStorage, photographs: Path, request: pytest.FixtureRequest) -> str:
    """The photographs in a bucket of the test's own."""
    forget_connections()
    bucket = request.node.name.replace("_", "-").split("[")[0][:60].strip("-")
    return storage.fill(bucket, photographs, "archive/photos/")


def put(storage: ObjectStorage, url: str, name: str, content: bytes) -> None:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    storage.client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


def delete(storage: ObjectStorage, url: str, name: str) -> None:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    storage.client.delete_object(Bucket=bucket, Key=f"{prefix}/{name}")


def names(listing: Listing) -> list[str]:
    return [item.name for item in listing.items]


def test_results_are_those_of_local_photographs_and_nothing_is_done_twice(
    storage: ObjectStorage,
    url: str,
    photographs: Path,
    expected: Path,
    tmp_path: Path,
) -> None:
    summary = segment(url, tmp_path / "out")
    assert (summary.done, summary.failed, summary.exit_status) == (6, 0, 0)
    assert comparable(tmp_path / "out") == comparable(expected)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["root"] == url
    storage.requests.clear()
    again = segment(f"{url}/", tmp_path / "out")
    assert (again.before, again.done) == (6, 0)
    assert len(storage.requests) == 1, storage.requests  # the listing
    forget_connections()
    assert not fsspec.filesystem("s3").dircache


def test_the_command_takes_a_url(url: str, photographs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reg4pru_monai.cli", "segment", url, "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--limit", "1", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"done": 1' in done.stdout


def test_what_changed_is_done_again_and_what_is_gone_is_forgotten(
    storage: ObjectStorage,
    url: str,
    photographs: Path,
    tmp_path: Path,
) -> None:
    put(storage, url, "bad.png", b"")
    first = segment(url, tmp_path)
    assert (first.done, first.failed) == (6, 1)
    changed = (photographs / "photograph_01.png").read_bytes()
    put(storage, url, "photograph_00.png", changed + b" ")
    put(storage, url, "photograph_02.png", changed)  # within the same second, perhaps
    delete(storage, url, "photograph_03.png")
    delete(storage, url, "bad.png")
    again = segment(url, tmp_path)
    assert (again.listed, again.before, again.done, again.failed) == (5, 3, 2, 0)
    rows = {row["path"]: row for row in table(tmp_path)}
    assert rows["photograph_02.png"]["sha256"] == rows["photograph_01.png"]["sha256"]
    assert table(tmp_path, "errors.csv") == []
    assert "photograph_03.png" in rows  # its result is kept, as of a local file


def test_bad_objects_are_rows_like_bad_files(storage: ObjectStorage, tmp_path: Path) -> None:
    bad = write_bad_files(tmp_path / "in")
    for name in ("too_long.jpg", "dangling.png", "pipe.png"):
        (tmp_path / "in" / name).unlink(missing_ok=True)
    write_photographs(tmp_path / "in", 1)
    url = storage.fill("bad", tmp_path / "in", "p/")
    choices = {"max_pixels": 10**7}
    local = segment(tmp_path / "in", tmp_path / "local", choices)
    there = segment(url, tmp_path / "there", choices)
    assert (there.done, there.failed, there.exit_status) == (1, local.failed, 3)
    assert there.failed >= len(bad) - 3
    assert table(tmp_path / "there", "errors.csv") == table(tmp_path / "local", "errors.csv")


def test_a_huge_object_is_not_fetched(storage: ObjectStorage, tmp_path: Path) -> None:
    content = encoded("JPEG")
    (tmp_path / "a.jpg").write_bytes(content + bytes(2**26))
    (tmp_path / "b.jpg").write_bytes(b"no picture" + bytes(2**21))
    url = storage.fill("huge", tmp_path)
    storage.sent = 0
    with pytest.raises(FundusReadError, match=r"a\.jpg: has 64 MiB, more than the 64 MiB that are read with max_pix"):
        read_image(f"{url}/a.jpg", max_pixels=5)
    with pytest.raises(FundusReadError, match=r"b\.jpg: is not JPEG, PNG, TIFF, BMP, GIF or PPM"):
        read_image(f"{url}/b.jpg")
    assert storage.sent < 10_000
    (tmp_path / "c.jpg").write_bytes(content + bytes(2**21))
    storage.fill("huge", tmp_path)
    assert read_bytes(f"{url}/c.jpg") == (tmp_path / "c.jpg").read_bytes()


def test_shards_take_all_and_ask_for_no_object(storage: ObjectStorage, url: str) -> None:
    storage.requests.clear()
    items = list_inputs([url], "out").items
    shards = [shard(items, number, 3) for number in (1, 2, 3)]
    assert sorted(item for each in shards for item in each) == items
    assert all(shards)
    assert len(storage.requests) == 3  # what the address is (two), and the listing


def test_names_start_at_the_root_as_those_of_local_files(url: str, photographs: Path, tmp_path: Path) -> None:
    local = [str(photographs / "left"), str(photographs / "photograph_01.png")]
    there = [each.replace(str(photographs), url) for each in local]
    assert names(list_inputs(there, tmp_path)) == names(list_inputs(local, tmp_path))
    found = list_inputs([f"{url}/left/photograph_00.png"], tmp_path)
    assert (found.root, names(found)) == (f"{url}/left", ["photograph_00.png"])
    above = url.rpartition("/")[0]
    assert names(list_inputs([f"{url}/left"], tmp_path, above)) == [f"photos/left/photograph_0{n}.png" for n in (0, 1)]
    with pytest.raises(InputError, match=r"lies outside of s3://elsewhere, which the names in the output are relative"):
        list_inputs([url], tmp_path, "s3://elsewhere")
    with pytest.raises(InputError, match=r"lies outside of .*photos, which the names"):
        list_inputs([url], tmp_path, str(photographs))


def test_the_rules_of_folders_hold(storage: ObjectStorage, tmp_path: Path) -> None:
    inside = ("a.PNG", "d.dcm", "notes.txt", "e", ".hidden.jpg", ".h/f.png", "set/images/g.png", "set/masks/g.png")
    inside += (
        "out/.reg4pru/settings.json",
        "out/masks/h.png",
        "out/results.csv",
        "x-y/i.png",
        "x/j.png",
        "m/masks/k.gif",
    )
    for name in inside:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    url = storage.fill("rules", tmp_path / "in", "p/")
    local, there = list_inputs([tmp_path / "in"], "o"), list_inputs([url], "o")
    assert names(there) == names(local)
    assert [item.path for item in there.items] == [f"{url}/{item.name}" for item in local.items]
    assert there.ignored == local.ignored == {".txt": 1, "no suffix": 1}
    assert sorted(there.notices) == sorted(each.replace(str(tmp_path / "in"), url) for each in local.notices)
    put(storage, url, "folder/", b"")
    put(storage, url, "/k.png", b"x")
    again = list_inputs([url], "o")
    assert names(again) == names(local)
    assert f"{url} has 1 keys with an empty part (//), which were left out" in again.notices
    with pytest.raises(InputError, match=r"no photograph in .*p/out/masks holds results of this command"):
        list_inputs([f"{url}/out/masks"], "o")
    assert names(list_inputs([f"{url}/*/*.png"], "o")) == ["x-y/i.png", "x/j.png"]


def test_results_on_object_storage_are_left_out(url: str, photographs: Path, tmp_path: Path) -> None:
    bucket = url.rpartition("/")[0] if url.count("/") > 2 else url
    segment(photographs, tmp_path / "out", {"store": f"{bucket}/results"})
    assert not any("masks" in name for name in names(list_inputs([bucket], "out")))
    with pytest.raises(InputError, match="holds results of this command and was left out"):
        list_inputs([f"{bucket}/results/masks"], "out")


def test_globs(storage: ObjectStorage, url: str) -> None:
    put(storage, url, "left/a_0.txt", b"x")
    put(storage, url, ".h/b_00.png", b"x")
    put(storage, url, "[1].png", b"x")
    found = list_inputs([f"{url}/**/*_0[01].*"], "out")
    assert names(found) == [f"{part}photograph_0{n}.png" for part in ("left/", "") for n in (0, 1)]
    assert all(item.listed and item.listed[0] > 100 for item in found.items)
    assert names(list_inputs([f"{url}/le*"], "out")) == ["photograph_00.png", "photograph_01.png"]
    assert names(list_inputs([f"{url}/[1].png"], "out")) == ["[1].png"]
    with pytest.raises(InputError, match=r"none\*: no such file or folder, and no file matches it"):
        list_inputs([f"{url}/none*"], "out")


def test_manifests(storage: ObjectStorage, url: str, expected: Path, tmp_path: Path) -> None:
    lines = [*(f"{url}/photograph_0{n}.png" for n in range(4)), f"{url}/left/", f"{url}/gone.png", f"{url}/no*.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    summary = segment(tmp_path / "list.txt", tmp_path / "out")
    assert (summary.done, summary.failed) == (6, 2)
    assert comparable(tmp_path / "out")[0] == comparable(expected)[0]
    failed = table(tmp_path / "out", "errors.csv")
    assert {(row["path"], row["message"]) for row in failed} == {
        ("gone.png", "no such file"),
        ("no*.png", "no such file"),
    }
    assert segment(tmp_path / "list.txt", tmp_path / "out").before == 6
    assert segment(url, tmp_path / "out").before == 6  # a listing and a single answer tell the same
    put(storage, url, "list.csv", b"path\nphotograph_00.png\n../photos/left/photograph_00.png\nleft\n")
    found = list_inputs([f"{url}/list.csv"], "out")
    assert names(found) == ["left/photograph_00.png", "left/photograph_01.png", "photograph_00.png"]
    put(storage, url, "list.csv", b"path,angle\nphotograph_00.png,30\nleft/,50\nphotograph_0[12].png,60\n")
    assert {item.name: item.angle for item in list_inputs([f"{url}/list.csv"], "out").items} == {
        "photograph_00.png": 30,
        **dict.fromkeys(("left/photograph_00.png", "left/photograph_01.png"), 50),
        **dict.fromkeys(("photograph_01.png", "photograph_02.png"), 60),
    }


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["s3://nowhere-at-all/photos"], "s3://nowhere-at-all/photos: no such file or folder, and no file matches it"),
        (["s3://nowhere-at-all/photos/"], "s3://nowhere-at-all/photos: no such folder; check the address"),
        (["s3://nowhere-at-all"], "s3://nowhere-at-all: no such file or folder, and no file matches it"),
        (["URL", "LOCAL"], "no folder in common: .* and .*; segment them into two outputs"),
        (["URL", "memory://x/a.png"], "no folder in common: .* and .*; segment them into two outputs"),
        (["gs://bucket/photos"], "gs://bucket: needs a package that is not installed: Please install gcsfs"),
        (["abc://bucket/photos"], "abc://bucket: abc:// is no protocol that fsspec knows; check the address"),
        (["zip://a.jpg::s3://b/c.zip"], "chained URLs .* are not read; give that of the folder or file itself"),
        (["simplecache::s3://b/c"], "chained URLs .* are not read; give that of the folder or file itself"),
        (["s3://bucket/a//b.png"], "has an empty part .* in its path, after which no result could be named"),
        (["s3://bucket/../b.png"], "has an empty part .* in its path, after which no result could be named"),
    ],
)
def test_addresses_that_lead_nowhere(
    inputs: list[str],
    message: str,
    url: str,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsspec.filesystem("memory").pipe("/x/a.png", b"x")
    with pytest.raises(InputError, match=message):
        list_inputs([{"URL": url, "LOCAL": str(photographs)}.get(each, each) for each in inputs], "out")


@pytest.mark.parametrize(
    "secret",
    [
        "https://anna:geheim@host/a.jpg",
        "https://geheim@host/photos",
        "https://host/a.jpg?token=geheim",
        "https://host?geheim",
        "s3://key:geheim@bucket/photos",
        "ftp://anna:ge/geheim@host/a.jpg",
        "s3://bucket/a.jpg?X-Amz-Signature=geheim",
    ],
)
def test_secrets_are_never_shown(secret: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{secret}\n")
    for given, root in ((secret, None), (tmp_path / "list.txt", None), (write_photographs(tmp_path / "in", 1), secret)):
        with pytest.raises(InputError, match="give credentials in the environment, or in the config") as raised:
            segment(given, tmp_path / "out", root=root)
        assert "geheim" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_accounts_and_users_without_a_secret_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reg4pru_monai.fundus.remote._driver", lambda url: None)
    for url in ("abfs://photos@account.dfs.core.windows.net/a", "sftp://anna@host:22/a", "https://[::1]:80/a"):
        assert checked(f"{url}/") == url
    assert checked("S3://Bucket/A?.jpg") == "s3://Bucket/A?.jpg"
    assert not any(map(is_url, ("C://a.jpg", "a/b://c", "/s3://a", "s3:/a", "a.jpg")))


def test_a_driver_says_what_it_lacks(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    forget_connections()
    with pytest.raises(InputError, match=r"photos cannot be listed: Unable to locate credentials; check the address, "):
        segment(url, tmp_path / "out")
    with pytest.raises(FundusReadError, match=r"a\.png: cannot be opened: Unable to locate credentials; check the add"):
        read_image(f"{url}/a.png")
    with pytest.raises(
        FundusReadError, match=r"a\.png: cannot be opened: .* needs a package .* install gcsfs to access"
    ):
        read_image("gs://bucket/a.png")
    forget_connections()


def test_forbidden_objects_are_rows_of_their_own(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = fsspec.get_filesystem_class("s3")
    fetch = kind._cat_file

    async def forbidden(self: Any, path: str, **how: Any) -> bytes:
        if path.endswith("_02.png"):
            raise PermissionError("Access Denied")
        content: bytes = await fetch(self, path, **how)
        return content[:-1] if path.endswith("_03.png") else content

    monkeypatch.setattr(kind, "_cat_file", forbidden)
    forget_connections()
    summary = segment(url, tmp_path)
    assert (summary.done, summary.failed, summary.exit_status) == (4, 2, 3)
    denied, short = table(tmp_path, "errors.csv")
    assert denied["message"] == "cannot be opened: permission denied (Access Denied)"
    assert denied["remedy"] == "Check the address, your credentials and the network, then run again."
    assert short["message"].startswith("cannot be opened: only ")
    forget_connections()


def test_a_server_that_dies_and_comes_back(
    storage: ObjectStorage,
    url: str,
    expected: Path,
    tmp_path: Path,
) -> None:
    def stop(record: Any) -> None:
        storage.stop()

    try:
        broken = segment(url, tmp_path, workers=1, progress=stop)
        assert broken.done >= 1
        assert broken.failed >= 1
        assert (broken.done + broken.failed, broken.exit_status) == (6, 3)
        for row in table(tmp_path, "errors.csv"):
            assert row["message"].startswith("cannot be opened: Could not connect to the endpoint URL")
            assert row["remedy"] == "Check the address, your credentials and the network, then run again."
        with pytest.raises(InputError, match=r"photos cannot be listed: Could not connect to the endpoint URL"):
            segment(url, tmp_path)
    finally:
        storage.start()
    assert segment(url, tmp_path).done == broken.failed
    assert comparable(tmp_path) == comparable(expected)
    assert len(computed(tmp_path)) == 6


def test_a_failure_does_not_undo_a_result(
    storage: ObjectStorage,
    url: str,
    tmp_path: Path,
) -> None:
    segment(url, tmp_path / "out")
    (tmp_path / "list.txt").write_text("".join(f"{url}/photograph_0{n}.png\n" for n in range(4)))
    storage.stop()
    try:
        summary = segment(tmp_path / "list.txt", tmp_path / "out")
    finally:
        storage.start()
    assert (summary.done, summary.failed) == (0, 4)
    assert seen(tmp_path / "out").done == 6
    assert table(tmp_path / "out", "errors.csv") == []


def test_photographs_that_moved_keep_their_results(
    storage: ObjectStorage,
    url: str,
    photographs: Path,
    tmp_path: Path,
) -> None:
    segment(photographs, tmp_path / "out")
    with pytest.raises(InputError, match=r"lies outside of .*give another --output, or --root"):
        segment(url, tmp_path / "out")
    other = (photographs / "photograph_00.png").read_bytes()
    put(storage, url, "photograph_01.png", other)
    with pytest.raises(
        SettingsError, match=r"holds the result of another photograph called 'photograph_01\.png', from"
    ):
        segment(url, tmp_path / "out", root=url)
    put(storage, url, "photograph_01.png", (photographs / "photograph_01.png").read_bytes())
    assert segment(url, tmp_path / "out", root=url).exit_status == 0
    assert seen(tmp_path / "out").done == 6


@pytest.fixture
def cluster(storage: ObjectStorage) -> Iterator[RayOptions]:
    """A cluster of two CPUs, whose workers find the server in the environment."""
    with ray_cluster() as options:
        yield options


@pytest.mark.filterwarnings("default")  # Ray warns of its own inside
def test_on_a_ray_cluster(storage: ObjectStorage, url: str, cluster: RayOptions, tmp_path: Path) -> None:
    put(storage, url, "bad.png", b"no picture")
    local = segment(url, tmp_path / "local")
    there = segment(url, tmp_path / "ray", ray=cluster)
    assert (there.done, there.failed) == (local.done, local.failed) == (6, 1)
    assert comparable(tmp_path / "ray") == comparable(tmp_path / "local")
    assert table(tmp_path / "ray", "errors.csv") == table(tmp_path / "local", "errors.csv")
    storage.requests.clear()
    assert segment(url, tmp_path / "ray").before == 6
    assert not [each for each in storage.requests if "photograph_" in each.partition("?")[0]]
    bucket = url.split("/")[2]
    assert segment(url, tmp_path / "both", {"store": f"s3://{bucket}/of_ray"}, ray=cluster).done == 6
    found = {key.removeprefix("of_ray/"): data for key, data in storage.objects(bucket).items()}
    files = comparable(tmp_path / "local")[0]
    assert {name: found[name] for name in files} == files


# --- other protocols


@pytest.fixture
def website(photographs: Path) -> Iterator[str]:
    """The photographs, on a web server that knows no parts of files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(photographs)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_server(website: str, expected: Path, tmp_path: Path) -> None:
    summary = segment(f"{website}/", tmp_path / "out")
    assert (summary.done, summary.failed) == (6, 0)
    assert comparable(tmp_path / "out") == comparable(expected)
    assert segment(f"{website}/", tmp_path / "out").before == 6
    single = list_inputs([f"{website}/left/photograph_00.png"], "out")
    assert (single.root, names(single)) == (f"{website}/left", ["photograph_00.png"])
    with pytest.raises(FundusReadError, match=r"none\.png: no such file; check the path"):
        read_image(f"{website}/none.png")


def test_a_web_server_that_is_down_misses_no_file() -> None:
    with pytest.raises(FundusReadError, match=r"a\.png: cannot be opened: .*Cannot connect to host 127\.0\.0\.1"):
        read_image("http://127.0.0.1:9/a.png")


def test_memory(photographs: Path, expected: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for path in photographs.rglob("*.png"):
        files.pipe(f"/photos/{path.relative_to(photographs).as_posix()}", path.read_bytes())
    segment("memory:///photos", tmp_path)
    assert comparable(tmp_path) == comparable(expected)
    assert segment("memory://photos", tmp_path).before == 6
    files.pipe("/photos/photograph_00.png", files.cat("/photos/photograph_00.png"))
    assert segment("memory://photos", tmp_path).before == 5  # a time is all that memory has
    assert "photos/left/photograph_00.png" in names(list_inputs(["memory://"], tmp_path))
    assert info("memory://photos").folder


def test_of_urls_suffixes_decide_alone(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for name in ("x.jfif", "x.mpo", "x.ima", "nosuffix", "x.dat", "DICOMDIR", "manual_exposure/p.jpg", "images/p.jpg"):
        files.pipe(f"/kinds/{name}", encoded("JPEG"))
    found = list_inputs(["memory://kinds"], tmp_path)
    assert names(found) == ["images/p.jpg", "manual_exposure/p.jpg", "x.ima", "x.jfif", "x.mpo"]
    assert found.ignored == {"no suffix": 2, ".dat": 1}
    table = "sep=;\r\npath;angle\r\nimages\\p.jpg ;37,5\r\nnosuffix;NA\r\n"
    files.pipe("/kinds/list.csv", table.encode("utf-16"))
    listed = list_inputs(["memory://kinds/list.csv"], tmp_path).items
    assert [(item.path, item.angle) for item in listed] == [
        ("memory://kinds/images/p.jpg", 37.5),
        ("memory://kinds/nosuffix", None),
    ]


def test_whatever_a_driver_says_of_times_and_sizes() -> None:
    texts = [{"mtime": float("nan")}, {"mtime": float("inf")}, {"modified": datetime.max}, {"modified": datetime.min}]
    for found in (*texts, {"mtime": 10**40}, {"mtime": -1.5}):
        entry = _entry("memory://a.png", {"type": "file", "size": -1, **found})
        assert (entry.size, entry.status) == (None, (0, entry.version))
        assert entry.version == _entry("memory://a.png", found).version != 0
    assert _entry("memory://a.png", {"size": 2**70, "mtime": 1.5}).status == (2**70, 1_500_000_000)


def test_file_urls_are_paths(photographs: Path) -> None:
    found = list_inputs([f"file://{photographs}"], "out", f"file://{photographs.parent}")
    assert found == list_inputs([photographs], "out", str(photographs.parent))


def test_without_urls_no_driver_is_loaded(photographs: Path) -> None:
    code = f"""
import sys
from reg4pru_monai.startup import import_monai_alone
import_monai_alone()
from reg4pru_monai.batch.segment import list_inputs
list_inputs([{str(photographs)!r}], "out")
assert "fsspec" not in sys.modules
try:
    list_inputs(["memory://x/a.png"], "out")
except ValueError:
    assert "fsspec" in sys.modules and "s3fs" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_item_of_a_local_file_takes_no_more_memory() -> None:
    assert -(-sys.getsizeof(Item("a", "/a")) // 16) == -(-sys.getsizeof(("a", "/a")) // 16)
    assert Item(*json.loads(json.dumps(Item("a", "s3://b/a", (1, 2))))).status() == (1, 2)
