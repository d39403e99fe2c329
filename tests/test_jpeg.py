"""What damage of JPEG files is noticed, and that no intact file is taken for damaged."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from reg4pru_monai.fundus import FundusReadError, read_image
from reg4pru_monai.fundus.jpeg import DamagedJpeg, decode_strictly

HOLE = 4096
END = b"\xff\xd9"
_Y, _X = np.mgrid[:384, :512]
# Smooth, with noise, and black around it as in a photograph of the fundus.
_INSIDE = np.hypot(_Y - 192, _X - 256) < 180
_NOISE = np.random.default_rng(0).normal(0, 6, (384, 512, 3))
PHOTOGRAPH = ((np.stack([_X / 3 + 60, _Y / 4 + 40, 90 - _X / 9], 2) + _NOISE) * _INSIDE[..., None]).clip(0, 255)
PHOTOGRAPH = PHOTOGRAPH.astype(np.uint8)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "many restarts": {"restart_marker_blocks": 7, "subsampling": 0},
    "progressive restarts": {"progressive": True, "restart_marker_rows": 2},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "RGB": {"keep_rgb": True},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def encoded(kind: str = "plain", pixels: np.ndarray = PHOTOGRAPH, **options: Any) -> bytes:
    options = {"quality": 95, **KINDS[kind], **options}
    file = io.BytesIO()
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data)).convert("RGB"))


def assert_intact(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), by_pillow(data))


def assert_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(FundusReadError, match=r"it is truncated or damaged.* \(.+\); copy or export it again$"):
        read_image(tmp_path / "a.jpg")


def scan(data: bytes) -> int:
    """Where the first image data begin."""
    at = data.index(b"\xff\xda") + 2
    return at + int.from_bytes(data[at : at + 2], "big")


@EVERY_KIND
@pytest.mark.parametrize("filling", ["zeros", "ones", "noise"])
def test_a_hole_is_noticed_wherever_it_is(tmp_path: Path, kind: str, filling: str) -> None:
    whole, chance = encoded(kind), np.random.default_rng(1)
    for at in np.linspace(scan(whole), len(whole) - HOLE - 2, 12).astype(int):
        hole = {"zeros": bytes(HOLE), "ones": b"\xff" * HOLE, "noise": chance.bytes(HOLE)}[filling]
        assert_damaged(tmp_path, whole[:at] + hole + whole[at + HOLE :])


@EVERY_KIND
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("end", [b"", END])
def test_zeros_after_a_good_beginning_are_noticed(tmp_path: Path, kind: str, share: float, end: bytes) -> None:
    whole = encoded(kind)
    at = int(len(whole) * share)
    assert_damaged(tmp_path, whole[:at] + bytes(len(whole) - at - len(end)) + end)
    assert_damaged(tmp_path, whole[:at] + bytes(10 * len(whole)) + end)


@EVERY_KIND
@pytest.mark.parametrize("missing", [1, 2, 3, 100, 5000])
@pytest.mark.parametrize("behind", [b"", bytes(1000)])
def test_a_missing_end_is_noticed(tmp_path: Path, kind: str, missing: int, behind: bytes) -> None:
    assert_damaged(tmp_path, encoded(kind)[:-missing] + behind)


@EVERY_KIND
def test_intact_files_and_what_may_follow_them(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    for behind in (b"", bytes(1), bytes(5000), b"SEFH" + bytes(range(256)) * 20, whole, END, b"\xff\xd8\xff"):
        assert_intact(tmp_path, whole + behind)


@EVERY_KIND
def test_what_encoders_leave_before_the_end(tmp_path: Path, kind: str) -> None:
    """Zeros up to the next full block, a few bytes of any kind, filling bytes (ISO/IEC 10918-1 B.1.1.2)."""
    whole = encoded(kind)
    for left in (bytes(3), bytes(500), b"\xff" * 700, b"abc", b"\x12" * 14):
        assert_intact(tmp_path, whole[:-2] + left + END)


@pytest.mark.parametrize("value", [8, 128, 255])
@EVERY_KIND
def test_flat_images_are_long_runs_of_one_code(tmp_path: Path, kind: str, value: int) -> None:
    """Zeros alone say nothing: with a table of its own, an even area may be coded as zeros."""
    flat = encoded(kind, np.full((800, 800, 3), value, np.uint8))
    if kind == "optimized":
        assert bytes(200) in flat
    assert_intact(tmp_path, flat)


@EVERY_KIND
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33)])
def test_small_images(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    assert_intact(tmp_path, encoded(kind, PHOTOGRAPH[190 : 190 + size[0], 250 : 250 + size[1]]))


def test_a_preview_in_the_metadata_is_not_the_image(tmp_path: Path) -> None:
    """Whole or damaged: its end is not the end of the photograph."""
    for preview in (encoded(pixels=PHOTOGRAPH[::8, ::8]), encoded(pixels=PHOTOGRAPH[::8, ::8])[:900]):
        whole = encoded(exif=b"Exif\0\0" + preview)
        assert_intact(tmp_path, whole)
        middle = (scan(whole[len(preview) + 50 :]) + len(whole)) // 2
        assert_damaged(tmp_path, whole[:middle] + bytes(HOLE) + whole[middle + HOLE :])


def test_padding_of_a_preview_is_not_that_of_the_image(tmp_path: Path) -> None:
    preview = encoded(pixels=PHOTOGRAPH[::8, ::8])[:-2] + bytes(500) + END
    whole = encoded(exif=b"Exif\0\0" + preview)
    assert_intact(tmp_path, whole[:-2] + bytes(500) + END + whole)


def test_faults_of_headers_that_do_no_harm(tmp_path: Path) -> None:
    whole = encoded()
    first = 4 + int.from_bytes(whole[4:6], "big")
    assert_intact(tmp_path, whole[:first] + b"\xff\xfe\0\x04hi" + b"junk" * 3 + whole[first:])
    assert_intact(tmp_path, whole[:first] + b"junk" * 30 + b"\xff\xfe\0\x04hi" + whole[first:])
    assert_intact(tmp_path, whole.replace(b"JFIF\0\x01", b"JFIF\0\x09"))
    assert_intact(tmp_path, encoded(icc_profile=b"no profile"))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


SHORT = {
    "JFIF": segment(0xE0, b"JFIF\0"),
    "EXIF": segment(0xE1, b"Exif\0\0"),
    "empty EXIF": segment(0xE1, b""),
    "profile": segment(0xE2, b"ICC_PROFILE\0"),
    "profile without content": segment(0xE2, b"ICC_PROFILE\0\1\1"),
    "profile of two parts": segment(0xE2, b"ICC_PROFILE\0\1\2abc"),
    "many pictures": segment(0xE2, b"MPF\0"),
    "Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "Adobe": segment(0xEE, b"Adobe"),
    "Adobe without transformation": segment(0xEE, b"Adobe\0\x64\0\0\0\0"),
    "comment": segment(0xFE, b""),
}


@pytest.mark.parametrize("kind", ["plain", "progressive", "grey"])
@pytest.mark.parametrize("name", SHORT)
def test_segments_shorter_than_their_standard_lose_nothing(tmp_path: Path, kind: str, name: str) -> None:
    """Neither the photograph nor the intact EXIF and profile next to them."""
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = encoded(kind)
    first = 4 + int.from_bytes(whole[4:6], "big")
    for good in (whole, whole[:2] + whole[first:]):  # with and without a JFIF segment
        (tmp_path / "a.jpg").write_bytes(good[:2] + SHORT[name] + good[2:])
        np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), by_pillow(whole))
    turned = encoded(kind, exif=exif)
    (tmp_path / "a.jpg").write_bytes(turned[:2] + SHORT[name] + turned[2:])
    if "EXIF" not in name:
        np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), by_pillow(whole)[::-1, ::-1])
    assert_damaged(tmp_path, turned[:2] + SHORT[name] + turned[2:-5000])


def test_the_strict_decoder_leaves_other_kinds_to_others() -> None:
    assert decode_strictly(b"\xff\xd8\xffno JPEG") is None
    np.testing.assert_array_equal(decode_strictly(encoded("grey"), "GRAY"), by_pillow(encoded("grey"))[..., :1])
    with pytest.raises(DamagedJpeg, match=r"^premature end of data segment$"):
        decode_strictly(encoded()[:5000] + END)


def test_real_photographs_are_intact(real_data: Path, tmp_path: Path) -> None:
    for path in sorted(real_data.glob("*/images/*"))[::7]:
        assert_intact(tmp_path, path.read_bytes())
