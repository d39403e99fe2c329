"""Which photographs are found, under which names, and where their results lie."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reg4pru_monai.batch.inputs import InputError, Item, list_inputs, shard
from reg4pru_monai.batch.names import OutputError, output_name, path_within
from reg4pru_monai.files import _BESIDE


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(inputs: list[str], output: Path, root: str | None = None) -> list[str]:
    return [item.name for item in list_inputs(inputs, output, root).items]


def test_a_folder_is_searched_by_suffix_and_sorted(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "in", "b.JPG", "a.png", "sub/deep/c.tiff", "d.dcm", "notes.txt", "e", ".hidden.jpg", ".h/f.png"
    )
    found = list_inputs([str(folder)], tmp_path / "out")
    assert [item.name for item in found.items] == ["a.png", "b.JPG", "d.dcm", "sub/deep/c.tiff"]
    assert found.root == str(folder)
    assert found.ignored == {".txt": 1, "no suffix": 1}
    assert all(Path(item.path).is_file() for item in found.items)


def test_dicom_is_found_without_a_suffix(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "README", "notes.1")
    for name in ("IM0001", "1.2.840.10008.5", "image.dat"):
        (folder / name).write_bytes(bytes(128) + b"DICM")
    found = list_inputs([str(folder)], tmp_path / "out")
    assert [item.name for item in found.items] == ["1.2.840.10008.5", "IM0001"]
    assert found.ignored == {".1": 1, ".dat": 1, "no suffix": 1}


def test_the_output_inside_the_input_is_not_searched(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.png", "out/masks/a.png.png")
    assert names([str(folder)], tmp_path / "out") == ["a.png"]


def test_several_inputs_get_names_below_what_they_share(tmp_path: Path) -> None:
    touch(tmp_path, "2020/left/a.png", "2021/left/a.png", "single.bmp")
    inputs = [str(tmp_path / part) for part in ("2021", "2020", "single.bmp", "2020/left/a.png")]
    assert names(inputs, tmp_path / "out") == ["2020/left/a.png", "2021/left/a.png", "single.bmp"]


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan", "b.xyz")
    assert names([str(tmp_path / "scan"), str(tmp_path / "b.xyz")], tmp_path / "out") == ["b.xyz", "scan"]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "x/b_L.png", "c_L.txt")
    found = list_inputs([str(tmp_path / "**" / "*_L.*")], tmp_path / "out")
    assert [item.name for item in found.items] == ["a_L.png", "x/b_L.png"]
    assert found.ignored == {".txt": 1}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "a.png\n\nsub/b.png\r\n"),
        (".csv", 'id,path\n1,a.png\n2,"sub/b.png"\n'),
        (".tsv", "path\tid\na.png\t1\nsub/b.png\t2\n"),
        (".txt", '"a.png"\nsub\n'),
        (".txt", "[ab].png\nsub/*\n"),
        (".csv", "id;Path \n1;a.png\n2;sub/b.png\n"),
    ],
)
def test_manifests(tmp_path: Path, suffix: str, text: str) -> None:
    touch(tmp_path, "a.png", "sub/b.png", "c.png")
    manifest = tmp_path / f"list{suffix}"
    manifest.write_text(text)
    assert names([str(manifest)], tmp_path / "out") == ["a.png", "sub/b.png"]


@pytest.mark.parametrize(
    "text",
    [
        "path,angle\na.png,30\nsub,50.0\nc.png,\n",
        "Angle ;path\n30;[a].png\n50;sub/*\n;c.png\n",
        "path\tangle\nc.png\na.png\t 30 \nsub/b.png\t50\na.png\t\n",  # a short row, and one photograph twice
    ],
)
def test_a_manifest_tells_angles_of_view(tmp_path: Path, text: str) -> None:
    folder = touch(tmp_path, "a.png", "sub/b.png", "c.png")
    (tmp_path / "list.csv").write_text(text)
    found = list_inputs([str(tmp_path / "list.csv"), str(folder)], tmp_path / "out").items
    assert [(item.name, item.angle) for item in found] == [("a.png", 30), ("c.png", None), ("sub/b.png", 50)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,angle\na.png,wide\n",
            r"list\.csv: .*a\.png: the angle of view must be in degrees, 10 to 90, got 'wide'",
        ),
        ('path,angle\na.png,"37,5"\n', "got '37,5'"),
        (
            "path,angle\na.png,30\n*.png,45\n",
            r"a\.png: its angle of view is 30 degrees on one line .* and 45 on another",
        ),
    ],
)
def test_angles_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        list_inputs([str(tmp_path / "list.csv")], tmp_path / "out")


def test_a_folder_of_sweeps_holds_photographs_and_no_results(tmp_path: Path) -> None:
    folder = touch(tmp_path / "runs", ".reg4pru/sweep-1.lock", "photographs/a.png")
    assert names([str(folder / "photographs")], folder / "segmented") == ["a.png"]
    touch(folder, "old/.reg4pru/settings.json", "old/overlays/a.jpg")
    assert names([str(folder)], folder / "segmented") == ["photographs/a.png"]


def test_a_line_that_leads_nowhere_is_a_photograph_that_fails(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text("a.png\ngone.png\nnone*.png\n")
    assert names([str(tmp_path / "list.txt")], tmp_path / "out") == ["a.png", "gone.png", "none*.png"]


def test_a_manifest_without_paths_says_so(tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("file\na.png\n")
    with pytest.raises(InputError, match=r"list\.csv: a manifest needs a column named path, got \['file'\]"):
        list_inputs([str(manifest)], tmp_path / "out")


def test_the_masks_of_a_data_set_are_no_photographs(tmp_path: Path) -> None:
    folder = touch(tmp_path / "set", "images/a.png", "masks/a.png", "masks_2nd_observer/a.png", "extra/b.png")
    found = list_inputs([str(folder)], tmp_path / "out")
    assert [item.name for item in found.items] == ["extra/b.png", "images/a.png"]
    assert sorted(notice.split("/")[-1] for notice in found.notices) == [
        "masks lies beside a folder called images and was left out",
        "masks_2nd_observer lies beside a folder called images and was left out",
    ]
    chase = touch(tmp_path / "chase", *(f"Image_01{eye}{end}" for eye in "LR" for end in (".jpg", "_1stHO.png")))
    found = list_inputs([str(chase)], tmp_path / "out")
    assert [item.name for item in found.items] == ["Image_01L.jpg", "Image_01R.jpg"]
    assert found.notices[0].endswith("is a data set: its 2 masks are not segmented")


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a.png", "sub/b.png")
    (folder / "sub" / "loop").symlink_to(folder)
    touch(tmp_path / "elsewhere", "c.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    found = list_inputs([str(folder)], tmp_path / "out")
    assert [item.name for item in found.items] == ["a.png", "linked/c.png", "sub/b.png"]
    assert len(found.notices) == 1
    assert "sub/loop leads to a folder that is searched already" in found.notices[0]


def test_a_broken_link_is_listed_and_fails_later(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert names([str(tmp_path)], tmp_path / "out") == ["gone.png"]


def test_nothing_found_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(InputError, match=r"no photograph in .* \(only 2 x \.txt\)"):
        list_inputs([str(tmp_path)], tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere: no such file or folder, and no file matches it"):
        list_inputs([str(tmp_path / "nowhere")], tmp_path / "out")


def test_names_start_at_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "in/sub/a.png")
    assert names([str(tmp_path / "in" / "sub")], tmp_path / "out", str(tmp_path)) == ["in/sub/a.png"]
    with pytest.raises(InputError, match=r"a\.png lies outside of .*other.*give another --output, or --root"):
        names([str(tmp_path / "in")], tmp_path / "out", str(tmp_path / "other"))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 7))
def test_shards_are_a_partition_balanced_by_bytes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], count: int
) -> None:
    folder = tmp_path_factory.mktemp("in")
    for number, size in enumerate(sizes):
        (folder / f"{number}.png").write_bytes(bytes(size))
    items = list_inputs([folder], folder / "out").items
    shards = [shard(items, number, count) for number in range(1, count + 1)]
    assert sorted(item for each in shards for item in each) == items
    assert all(each == sorted(each) for each in shards)
    totals = [sum(os.path.getsize(item.path) for item in each) for each in shards]
    assert max(totals) - min(totals) <= max(sizes)


@given(st.sets(st.text(min_size=1, max_size=20), min_size=1, max_size=40), st.integers(1, 7))
def test_files_that_cannot_be_reached_are_dealt_out_by_number(found: set[str], count: int) -> None:
    items = [Item(name, f"/nowhere/{name}") for name in sorted(found)]
    shards = [shard(items, number, count) for number in range(1, count + 1)]
    assert sorted(item for each in shards for item in each) == items
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 0)])
def test_a_shard_that_does_not_exist(part: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"shard must be I/N with 1 <= I <= N, got"):
        shard([], *part)


# --- names of results


def output_path(output: Path, name: str, frame: int | None = None) -> Path:
    """Of a mask."""
    return path_within(output, output_name("masks", name, ".png", frame))


def test_results_of_different_files_never_share_a_name(tmp_path: Path) -> None:
    found = [
        "a.jpg",
        "a.png",
        "a.b.png",
        "x/a.jpg",
        "y/a.jpg",
        "é.png",
        "e\u0301.png",
        "line\nbreak.png",
        "Ω/目.png",
        "\udcff.png",
    ]
    found += ["n" * 250 + ".png", "n" * 250 + ".jpg", "m" * 250 + "/a.jpg", "目" * 83 + ".png"]
    paths = [output_path(tmp_path, name) for name in found]
    assert len(set(paths)) == len(found)
    for path in paths:
        assert path.is_relative_to(tmp_path / "masks")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")  # the file system takes it
    assert output_path(tmp_path, "x/a.jpg") == tmp_path / "masks" / "x" / "a.jpg.png"
    assert os.fsencode(paths[-1].name).decode("utf-8")  # not cut within a character


# Parts of names that come near what names.py gives out, or what a file system takes amiss.
AWKWARD = (
    *("a", "A", "a.png", "a.png.png", "A.PNG", "a.PNG.png", "1", "1.png", "2", "IM", "IM.png", "IM~frames", "a~frames"),
    *("IM~frames~frames", "é.png", "e\u0301.png", "目.PNG", "\udcff.png", ".a", "..a", "a.", ".png", "~frames", "~"),
    *("x~0123456789abcdef", "x~0123456789ABCDEF", "n" * 200, "n" * 201, "n" * 250 + ".png", "目" * 83, "目" * 66),
    *(".01234567-1-01234567.png", ".01234567-1-01234567", "line\nbreak.png", "x~0123456789abcdef\n", "a b", "="),
    "n" * 183 + "~" + hashlib.sha256(b"n" * 201).hexdigest()[:16],
    "a.png~" + hashlib.sha256(b"a.png").hexdigest()[:16],
)
ENDINGS = ("", ".png", "~frames", "~0123456789abcdef")
PART = st.builds(str.__add__, st.sampled_from(AWKWARD), st.sampled_from(ENDINGS)).filter(
    lambda part: len(os.fsencode(part)) <= 255
)
FOUND = st.tuples(st.lists(PART, min_size=1, max_size=3).map("/".join), st.none() | st.integers(1, 3))


@settings(max_examples=400)
@given(st.sets(FOUND, min_size=2, max_size=30))
def test_no_result_lies_where_another_one_or_its_folder_does(found: set[tuple[str, int | None]]) -> None:
    output = Path("output")
    paths = [output_path(output, name, frame) for name, frame in found]
    assert len(set(paths)) == len(found)
    folders = {folder for path in paths for folder in path.parents}
    # Where case does not count, results and folders still do not meet, whatever becomes of two results.
    assert not {str(path).lower() for path in paths} & {str(folder).lower() for folder in folders}
    for path in paths:
        assert path.is_relative_to(output / "masks")
        assert path.suffix == ".png"
        assert all(len(os.fsencode(part)) <= 255 - len(".nii.gz") for part in path.parts)
        assert not any(_BESIDE.fullmatch(part) for part in path.parts)  # a later run would remove it


@pytest.mark.parametrize("name", ["a.jpg", "x.y/a.b.png", "IM/1", "1.2.840.10008.5", "~a/é.png", "study.dcm/eye~1.dcm"])
def test_ordinary_photographs_keep_their_names(name: str) -> None:
    assert output_path(Path("out"), name) == Path(f"out/masks/{name}.png")


def test_names_that_met_before() -> None:
    def mask(name: str, frame: int | None = None) -> str:
        return output_path(Path("out"), name, frame).relative_to("out/masks").as_posix()

    assert mask("a.png") == "a.png.png"
    assert mask("a.png.png/b.jpg") == "a.png.png~b172d6bfede57b0b/b.jpg.png"
    assert (mask("IM/1"), mask("IM", 1)) == ("IM/1.png", "IM~frames/1.png")
    assert (mask("IM"), mask("IM.png", 2)) == ("IM.png", "IM.png~frames/2.png")
    assert mask("IM~frames/1").startswith("IM~frames~")


def test_results_never_leave_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "masks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"would lie outside of the output folder: a link leads to .*elsewhere"):
        output_path(tmp_path / "out", "a.jpg")
