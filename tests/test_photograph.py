import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reg4pru_monai.batch.photograph import COLUMNS, Photograph, read_photographs
from reg4pru_monai.fundus import FundusReadError, read_image

RGB = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
MAKE, MODEL, ORIENTATION = 0x010F, 0x0110, 0x0112


def write(path: Path, make: str | None = None, model: str | None = None, **options: Any) -> Path:
    exif = Image.Exif()
    if make is not None:
        exif[MAKE] = make
    if model is not None:
        exif[MODEL] = model
    Image.fromarray(RGB).save(path, exif=exif, **options)
    return path


def only(path: Path) -> Photograph:
    (photograph,) = read_photographs(path).photographs
    return photograph


@pytest.mark.parametrize(
    ("suffix", "name"),
    [("jpg", "JPEG"), ("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP"), ("gif", "GIF"), ("ppm", "PPM")],
)
def test_the_content_says_what_a_file_is(tmp_path: Path, suffix: str, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.dcm")
    photograph = only(tmp_path / "a.dcm")
    assert photograph.details["format"] == name
    assert (photograph.frame, photograph.frames) == (1, 1)
    np.testing.assert_array_equal(photograph.pixels, read_image(tmp_path / "a.dcm"))


def test_digest_and_bytes_are_of_the_file(tmp_path: Path) -> None:
    source = read_photographs(write(tmp_path / "a.png"))
    assert source.data == (tmp_path / "a.png").read_bytes()
    assert source.sha256 == hashlib.sha256(source.data).hexdigest()


def test_every_row_has_every_column(tmp_path: Path) -> None:
    details = only(write(tmp_path / "a.png")).details
    assert list(details) == [column.name for column in COLUMNS]
    assert details == {
        "identifier": None,
        "format": "PNG",
        "camera_maker": None,
        "camera_model": None,
        "laterality": None,
        "row_spacing_mm": None,
        "column_spacing_mm": None,
        "angle_of_view_deg": None,
        "bits": 8,
        "frames": 1,
    }


def test_deeper_than_8_bits(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save(tmp_path / "a.png")
    photograph = only(tmp_path / "a.png")
    assert photograph.pixels.dtype == np.float32
    assert photograph.details["bits"] == 16


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize(
    ("make", "model", "expected"),
    [
        ("TOPCON", "TRC-NW6S", ("TOPCON", "TRC-NW6S")),
        ("Canon\0\0\0", " CR-2 ", ("Canon", "CR-2")),
        ("m" * 500, None, ("m" * 64, None)),
        ("a\nb", "\x07", (None, None)),
        ("", None, (None, None)),
    ],
)
def test_camera(tmp_path: Path, suffix: str, make: str, model: str | None, expected: tuple[Any, Any]) -> None:
    details = only(write(tmp_path / f"a.{suffix}", make, model)).details
    assert (details["camera_maker"], details["camera_model"]) == expected


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of Pillow, about the damage
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_exif_never_fails_a_photograph(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[MAKE], exif[MODEL] = "Maker", "Model"
    whole = exif.tobytes()
    chance = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(whole[: chance.integers(6, len(whole))])
        for place in chance.integers(0, len(broken), 3):
            broken[place] = chance.integers(256)
        Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=bytes(broken))
        assert only(tmp_path / f"a.{suffix}").pixels.size == RGB.size


def test_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "Maker"
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    photograph = only(tmp_path / "a.png")
    assert photograph.details["camera_maker"] == "Maker"
    np.testing.assert_array_equal(photograph.pixels, np.rot90(RGB, -1))


def test_identifiers_need_no_dicom_file(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra [dicom]")
    (photograph,) = read_photographs(write(tmp_path / "a.png"), identifiers=["PatientID"]).photographs
    assert photograph.details["identifier"] is None
    with pytest.raises(ValueError, match="PatientName is personal"):
        read_photographs(tmp_path / "a.png", identifiers=["PatientName"])


def test_bad_files_are_refused_as_by_read_image(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no photograph")
    (tmp_path / "zeros").write_bytes(bytes(500))
    whole = write(tmp_path / "a.png").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    reasons = {"empty": "empty", "text": "is not JPEG", "zeros": "is not JPEG", "cut": "truncated or damaged"}
    reasons |= {"folder": "a folder or a special file", "pipe": "a folder or a special file", "absent": "no such file"}
    for name, said in reasons.items():
        with pytest.raises(FundusReadError, match=said):
            read_photographs(tmp_path / name)
    with pytest.raises(
        FundusReadError, match=r"30 x 20 pixels, more than max_pixels=599; .*--max-pixels on the command"
    ):
        read_photographs(tmp_path / "a.png", max_pixels=599)


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", bytes(128) + b"DICM"])
def test_large_files_are_refused_before_they_are_read(tmp_path: Path, start: bytes) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(start)
        file.truncate(2**34)  # of which the disk holds the first bytes only
    with pytest.raises(FundusReadError, match=r"has 16384 MiB, more than the \d+ MiB that are read with max_pixels=15"):
        read_photographs(tmp_path / "a")


def test_dicom_without_pydicom_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a").write_bytes(bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(FundusReadError, match=r"is DICOM, which needs pydicom: pip install pydicom highdicom"):
        read_photographs(tmp_path / "a")
