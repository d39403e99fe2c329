"""Which photographs are found, under which names, and where their results lie."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_files import encoded
from reg4pru_monai.batch import inputs
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
    without_preamble = {
        "implicit": b"\x08\0\x16\0\x1a\0\0\0",
        "explicit": b"\x08\0\x05\0CS\x0a\0",
        "meta": b"\2\0\0\0UL",
    }
    for name, head in without_preamble.items():
        (folder / name).write_bytes(head)
    (folder / "counts").write_bytes(b"\2\0\0\0\4\0\0\0")  # numbers of 32 bits
    found = list_inputs([str(folder)], tmp_path / "out")
    assert [item.name for item in found.items] == [
        "1.2.840.10008.5",
        "IM0001",
        "explicit",
        "image.dat",
        "implicit",
        "meta",
    ]
    assert found.ignored == {".1": 1, "no suffix": 2}


def test_where_a_suffix_tells_no_kind_content_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"x.jfif": "JPEG", "x.jpe": "JPEG", "x.mpo": "MPO", "x.ima": "JPEG", "nosuffix": "JPEG", "x.BAK": "PNG"}
    kinds |= {"tiff": "TIFF", "gif": "GIF", "bitmap": "BMP", "x.img": "PPM"}
    folder = touch(tmp_path / "in", "x.jpg")
    for name, kind in kinds.items():
        (folder / name).write_bytes(encoded(kind))
    other = {
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "BMI": b"BMI,age,eye\n27.1,60,OD\n",
        "P1": b"P1 is the first patient",
        "P2.dat": b"P2\tOD\n",
        "notes.txt": encoded("JPEG"),
        "raw.NEF": encoded("TIFF"),
        "x.webp": encoded("WEBP"),
        "x.json": b"{}",
        "x.xml": b"<a/>",
        ".DS_Store": b"\0\0\0\1Bud1",
        "empty": b"",
    }
    for name, content in other.items():
        (folder / name).write_bytes(content)
    opened, look = [], inputs._holds_photograph
    monkeypatch.setattr(inputs, "_holds_photograph", lambda path: opened.append(Path(path).name) or look(path))
    found = list_inputs([str(folder)], tmp_path / "out")
    assert [item.name for item in found.items] == sorted([*kinds, "x.jpg"])
    ignored = {".dat": 1, ".json": 1, ".nef": 1, ".db": 1, ".txt": 1, ".webp": 1, ".xml": 1, "no suffix": 3}
    assert found.ignored == ignored
    unknown = {"nosuffix", "x.BAK", "tiff", "gif", "bitmap", "x.img", "Thumbs.db", "BMI", "P1", "P2.dat", "empty"}
    assert set(opened) - {"x.webp"} == unknown
    assert names([str(folder / "*")], tmp_path / "out") == sorted([*kinds, "x.jpg"])


def test_what_cannot_be_opened_is_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = touch(tmp_path / "in", "a.png", "b")

    def forbidden(path: str) -> bool:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(inputs, "_holds_photograph", forbidden)
    monkeypatch.setattr(inputs, "find_samples", forbidden)  # the folder of a data set's images
    found = list_inputs([str(folder)], tmp_path / "out")
    assert [item.name for item in found.items] == ["a.png"]
    assert found.ignored == {"no suffix (Permission denied)": 1}


def test_all_of_the_folders_and_suffixes_that_were_left_out(cases: Path, tmp_path: Path) -> None:
    folder = cases / "folders_and_suffixes_left_out"
    assert names([str(folder / "tree")], tmp_path) == ["images/p.jpg", "manual_exposure/p.jpg", "unlabelled/p.jpg"]
    assert names([str(folder / "suffixes")], tmp_path) == ["nosuffix", "x.jfif", "x.jpe", "x.mpo"]


def test_the_directory_of_a_dicom_medium_is_no_photograph(cases: Path, tmp_path: Path) -> None:
    medium = cases / "dicom_media_folder"
    assert names([str(medium)], tmp_path) == ["PT0/IM000000", "PT0/x.ima"]
    for name in ("dicomdir", "DICOMDIR.dcm", "index"):
        (tmp_path / name).write_bytes((medium / "DICOMDIR").read_bytes())
    (tmp_path / "dicomdir_scan.dcm").write_bytes((medium / "PT0" / "x.ima").read_bytes())
    assert names([str(tmp_path)], tmp_path / "out") == ["dicomdir_scan.dcm"]
    assert names([str(tmp_path / "index")], tmp_path / "out") == ["index"]  # named, so it fails by itself


@pytest.mark.parametrize(
    ("name", "masks"),
    [
        *((name, True) for name in ("mask", "Masks", "labels", "manual1", "1st_manual", "2nd_manual", "labels-ah")),
        *(
            (name, True)
            for name in ("Ground truth", "GroundTruth", "ground-truth", "masks_2nd_observer", "vesselMasks")
        ),
        *((name, True) for name in ("manual segmentation", "observer2", "optic_disc_masks", "masks_OD", "label_2")),
        *((name, False) for name in ("unlabelled", "manual_exposure", "masked", "unmasked", "manually", "label_noise")),
        *((name, False) for name in ("observer_study", "segmentation_failed", "no_masks", "2nd", "images2", "")),
    ],
)
def test_whole_words_tell_folders_of_masks(name: str, masks: bool) -> None:
    assert inputs.holds_masks(name) == masks


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
        ('path,angle\na.png,"3,75"\n', "got '3.75'"),
        (
            "path,angle\na.png,37,5\n",
            r"list\.csv: a\.png: its row has more cells .* separate the cells with semicolons",
        ),
        ("path,angle\na,b.png,37\n", r"list\.csv: a: its row has more cells than the table has columns"),
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


@pytest.mark.parametrize(
    ("name", "content", "angles"),
    [
        ("l.csv", b"sep=;\r\npath;angle\r\na.png;30\r\nsub/b.png;\r\n", (30, None)),
        ("l.csv", b'"sep=\t"\npath\tangle\na.png\t30\nsub/b.png\t45\n', (30, 45)),
        ("l.csv", b"path;angle;;\na.png;37,5;;\nsub/b.png;45,0;;\n", (37.5, 45)),
        ("l.csv", b'path,angle\na.png,"37,5"\nsub/b.png,45.0\n', (37.5, 45)),
        ("l.csv", b"path,angle\na.png,NA\nsub/b.png,nan\n", (None, None)),
        ("l.csv", b"path,angle\na.png,#N/A\nsub/b.png,NULL\n", (None, None)),
        ("l.csv", b'path, angle\n "a.png" , 30\n sub\\b.png,45 \n', (30, 45)),
        ("l.txt", b' "a.png" \r\nsub\\b.png \r\n', (None, None)),
        ("l.txt", b"a.png\nsub\\[b].png\n", (None, None)),
        ("l.txt", "path\tangle\r\na.png\t37,5\r\nsub\\b.png\t\r\n".encode("utf-16"), (37.5, None)),
        ("l.csv", b"\xfe\xff" + "path;angle\na.png;30\nsub/b.png;NA".encode("utf-16-be"), (30, None)),
        ("l.txt", b"\xef\xbb\xbfsep=,\npath,angle\na.png,30\nsub/b.png,\n", (30, None)),
        ("l.txt", "a.png\nsub/b.png\n".encode("utf-16-le").join((b"\xff\xfe", b"")), (None, None)),
    ],
)
def test_manifests_as_spreadsheets_and_windows_write_them(
    tmp_path: Path, name: str, content: bytes, angles: tuple[float | None, float | None]
) -> None:
    touch(tmp_path, "a.png", "sub/b.png")
    (tmp_path / name).write_bytes(content)
    found = list_inputs([str(tmp_path / name)], tmp_path / "out").items
    assert [(item.name, item.angle) for item in found] == [("a.png", angles[0]), ("sub/b.png", angles[1])]


def test_a_line_means_what_is_there_as_it_stands(tmp_path: Path) -> None:
    stored = ["ä.png", " a.png", "a.png", "a.png ", "b\\c.png", "b/c.png", "\udce4.png", '"d".png']
    touch(tmp_path, *stored)
    lines = "\n".join([" a.png", "a.png", "a.png ", "b\\c.png", "\udce4.png", '"d".png'])
    (tmp_path / "l.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")
    assert names([str(tmp_path / "l.txt")], tmp_path / "out") == sorted(set(stored) - {"ä.png", "b/c.png"})
    (tmp_path / "\udce4.png").unlink()  # then the line can only be Windows-1252
    assert names([str(tmp_path / "l.txt")], tmp_path / "out") == sorted(set(stored) - {"\udce4.png", "b/c.png"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "path,angle\na.png,30\n".encode("utf-16-le"), "NUL bytes; save the manifest as UTF-8, not UTF-16"),
        ("l.csv", "path\na.png\n".encode("utf-16")[:-1], r"l\.csv: not a readable manifest: .*truncated data"),
        ("l.xlsx", b"PK\3\4", r"l\.xlsx: a manifest is a text file, not a workbook; save it as CSV UTF-8"),
        ("l.csv", b"", r"l\.csv: a manifest needs a column named path, got None"),
    ],
)
def test_manifests_that_cannot_be_read_say_how_to_save_them(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list_inputs([str(tmp_path / name)], tmp_path / "out")


def test_all_manifests_of_excel_and_windows(cases: Path, tmp_path: Path) -> None:
    folder = cases / "manifests_from_excel_and_windows"
    found = {
        path.name: {item.name.rpartition("/")[2]: item.angle for item in list_inputs([path], tmp_path).items}
        for path in sorted(folder.iterdir())
        if path.suffix in (".csv", ".txt") and path.name != "EXPECTED.txt"
    }
    assert found == {
        "backslash.csv": {"a.jpg": 45},
        "comma.csv": {"a.jpg": 45.5, "b.jpg": 30},
        "cp1252.csv": {"Süden_OD.jpg": 30, "a.jpg": 45},
        "cp1252.txt": {"Süden_OD.jpg": None, "a.jpg": None},
        "na.csv": {"a.jpg": None, "b.jpg": None},
        "sep.csv": {"a.jpg": 45, "b.jpg": 30},
        "trailing.txt": {"a.jpg": None, "b.jpg": None},
        "utf16.csv": {"a.jpg": 45},
    }


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
        f"masks {inputs.BESIDE_IMAGES}",
        f"masks_2nd_observer {inputs.BESIDE_IMAGES}",
    ]
    assert names([str(folder), str(folder / "masks")], tmp_path / "out") == [
        "extra/b.png",
        "images/a.png",
        "masks/a.png",
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


def test_folders_are_told_apart_where_a_file_system_numbers_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stat = touch(tmp_path / "in", "a.png", "b/c.png", "d/e.png"), os.stat
    (folder / "b" / "loop").symlink_to(folder)

    def unnumbered(path: str, **how: Any) -> os.stat_result:
        values = list(stat(path, **how))
        return os.stat_result([values[0], 0, 0, *values[3:]])

    monkeypatch.setattr(os, "stat", unnumbered)
    assert names([str(folder)], tmp_path / "out") == ["a.png", "b/c.png", "d/e.png"]


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
