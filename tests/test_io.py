import io
import os
import pickle
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from reg4pru_monai.fundus import FundusReadError, read_image, read_mask, write_mask
from reg4pru_monai.fundus.io import read_bytes

RAMP = (
    np.linspace(0, 255, 20 * 31).reshape(20, 31).astype(np.uint8)
)  # not square: a transposed result has another shape
RGB = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
GREY3 = np.repeat(RAMP[..., None], 3, axis=2)
DEEP = (RGB.astype(np.uint16) << 8) + 77
DEEP_UNIT = DEEP / np.float32(65535)


def save(path: Path, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(RGB).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm"])
def test_lossless_colour(tmp_path: Path, suffix: str) -> None:
    pixels = read_image(save(tmp_path / f"a.{suffix}"))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_modes(tmp_path: Path, mode: str) -> None:
    pixels = read_image(save(tmp_path / "a.jpg", mode, quality=100, subsampling=0))
    expected = np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB"))
    assert np.abs(pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif", "pgm"])
def test_grey(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), GREY3)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_palette(tmp_path: Path, suffix: str) -> None:
    paletted = Image.fromarray(RGB).quantize(16)
    paletted.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), np.asarray(paletted.convert("RGB")))


@pytest.mark.parametrize("transparency", [5, bytes(range(16))], ids=["index", "table"])
def test_palette_transparency_becomes_black(tmp_path: Path, transparency: int | bytes) -> None:
    paletted = Image.fromarray(RGB).quantize(16)
    paletted.save(tmp_path / "a.png", transparency=transparency)
    index = np.asarray(paletted)
    pixels = read_image(tmp_path / "a.png")
    assert (pixels[index == (5 if transparency == 5 else 0)] == 0).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_is_laid_on_black(tmp_path: Path, suffix: str) -> None:
    alpha = np.full(RAMP.shape, 255, np.uint8)
    alpha[:5] = 0
    alpha[5:9] = 51
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}")
    assert (pixels[:5] == 0).all()
    np.testing.assert_array_equal(pixels[5:9], np.rint(RGB[5:9] / 5))
    np.testing.assert_array_equal(pixels[9:], RGB[9:])


def test_grey_alpha_and_bilevel(tmp_path: Path) -> None:
    Image.fromarray(RAMP).convert("LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), GREY3)
    for name in ("b.png", "b.tif", "b.pbm"):
        Image.fromarray(RAMP > 99).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], (RAMP > 99) * 255)


def test_cmyk_tiff(tmp_path: Path) -> None:
    cmyk = Image.fromarray(RGB).convert("CMYK")
    cmyk.save(tmp_path / "a.tif")
    expected = np.asarray(cmyk.convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_tiff_compressions(tmp_path: Path, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_tiff_layouts(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "planes.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "planes.tif"), RGB)
    tifffile.imwrite(tmp_path / "white.tif", RAMP, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "white.tif"), 255 - GREY3)
    tifffile.imwrite(tmp_path / "big.tif", RGB, photometric="rgb", bigtiff=True)
    np.testing.assert_array_equal(read_image(tmp_path / "big.tif"), RGB)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([RGB, RGB[::-1]]), photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif"), RGB)


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_16_bit_colour_keeps_its_depth(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(imagecodecs.png_encode(DEEP))
    elif suffix == "tif":
        tifffile.imwrite(path, DEEP, photometric="rgb", compression="lzw")
    else:
        path.write_bytes(b"P6\n# a comment\n31 20\n65535\n" + DEEP.astype(">u2").tobytes())
    pixels = read_image(path)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, DEEP_UNIT, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(DEEP[..., 0]).save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}")
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, np.repeat(DEEP_UNIT[..., :1], 3, axis=2), atol=1e-6)


def test_16_bit_alpha_is_laid_on_black(tmp_path: Path) -> None:
    alpha = np.full((*RAMP.shape, 1), 65535, np.uint16)
    alpha[:5] = 0
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.concatenate([DEEP, alpha], axis=2)))
    pixels = read_image(tmp_path / "a.png")
    assert (pixels[:5] == 0).all()
    np.testing.assert_allclose(pixels[5:], DEEP_UNIT[5:], atol=1e-6)


def test_float_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP_UNIT, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), DEEP_UNIT)
    tifffile.imwrite(tmp_path / "b.tif", DEEP_UNIT * 200, photometric="rgb")
    said = r"b\.tif: has floating-point values of 0\.234989 to 199\.457, which must be in \[0, 1\]; save it with 8"
    with pytest.raises(FundusReadError, match=said):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "deep.png", "a.tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, name: str) -> None:
    """A photograph stored turned comes back upright, whatever its format."""
    stored_by = {code: Image.Transpose(method) for code, method in {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.items()}
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :8] = 255  # a corner, so that each of the eight differs
    upright[:8, 24:] = 128
    method = stored_by.get(orientation)
    stored = Image.fromarray(upright) if method is None else Image.fromarray(upright).transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    if name == "deep.png":
        stored.save(path, exif=exif)
        chunk = _png_chunk(path.read_bytes(), b"eXIf")
        deep = imagecodecs.png_encode(np.asarray(stored).astype(np.uint16) * 257)
        path.write_bytes(deep[:33] + chunk + deep[33:])
    elif name == "a.tif":
        tifffile.imwrite(path, np.asarray(stored), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        stored.save(path, exif=exif, quality=100, subsampling=0)
    pixels = read_image(path)
    scale = 255 if pixels.dtype == np.float32 else 1
    assert pixels.shape == upright.shape
    assert np.abs(pixels * float(scale) - upright).max() <= 3


def _png_chunk(data: bytes, kind: bytes) -> bytes:
    start = data.index(kind) - 4
    return data[start : start + 12 + struct.unpack(">I", data[start : start + 4])[0]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_photograph(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert read_image(path).shape == RGB.shape


def _chunk(kind: bytes, content: bytes, checksum: int = 0) -> bytes:
    right = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", right ^ checksum)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif.tobytes()[6:]


HARMLESS = {
    "long text": _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 2**20))),
    "many texts": _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1))) * 70,
    "international text": _chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(3 * 2**20))),
    "long profile": _chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(3 * 2**19))),
    "no profile": _chunk(b"iCCP", b"name\0\0"),
    "wrong checksum": _chunk(b"tEXt", b"Comment\0hello", checksum=1),
    "wrong checksum of a profile": _chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(99)), checksum=1),
    "short gamma": _chunk(b"gAMA", b"\0"),
    "short resolution": _chunk(b"pHYs", b"\0"),
    "unknown": _chunk(b"abCD", bytes(9)),
}


@pytest.mark.parametrize("damage", HARMLESS)
def test_damaged_metadata_of_png_lose_neither_photograph_nor_orientation(tmp_path: Path, damage: str) -> None:
    whole = _encoded("PNG")
    expected = np.asarray(Image.open(io.BytesIO(whole)))
    (tmp_path / "a.png").write_bytes(whole[:33] + HARMLESS[damage] + whole[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    for exif in (whole[:33] + HARMLESS[damage] + _chunk(b"eXIf", _turned()) + whole[33:],
                 whole[:-12] + HARMLESS[damage] + _chunk(b"eXIf", _turned()) + whole[-12:]):  # fmt: skip
        (tmp_path / "a.png").write_bytes(exif)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected[::-1, ::-1])


def test_damaged_image_data_of_png_are_noticed(tmp_path: Path) -> None:
    """A wrong checksum of image data or a missing end, whatever else is wrong."""
    whole = _encoded("PNG")
    at = whole.index(b"IDAT")
    length = struct.unpack(">I", whole[at - 4 : at])[0]
    for bad in (
        whole[: at + 4 + length] + b"\0\0\0\0" + whole[at + 8 + length :],
        whole[:-12],
        whole[: at + 50] + bytes([whole[at + 50] ^ 1]) + whole[at + 51 :],
        whole[:16] + b"\0\0\0\x41" + whole[20:],
    ):
        (tmp_path / "a.png").write_bytes(bad)
        with pytest.raises(FundusReadError, match="cannot be decoded"):
            read_image(tmp_path / "a.png")


def test_a_large_profile_is_applied_and_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    whole = _encoded("PNG")
    profile = bytes(imagecodecs.cms_profile("adobergb"))
    padded = struct.pack(">I", 2**21) + profile[4:] + bytes(2**21 - len(profile))
    (tmp_path / "a.png").write_bytes(whole[:33] + _chunk(b"iCCP", b"a\0\0" + zlib.compress(padded)) + whole[33:])
    Image.open(io.BytesIO(whole)).save(tmp_path / "b.png", icc_profile=profile)
    large, small = read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png")
    np.testing.assert_array_equal(large, small)
    assert (large != np.asarray(Image.open(io.BytesIO(whole)))).any()
    bomb = zlib.compress(bytes(2**28))
    (tmp_path / "c.png").write_bytes(whole[:33] + _chunk(b"iCCP", b"a\0\0" + bomb) + whole[33:])
    tracemalloc.start()
    try:
        read_image(tmp_path / "c.png")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["badcrc.png", "bigtext.png", "icc_empty.jpg", "jfif_short.jpg"])
def test_cases_of_damaged_metadata(cases: Path, name: str) -> None:
    folder = cases / "harmless_metadata_loses_photograph"
    difference = np.abs(read_image(folder / name).astype(int) - read_image(folder / "plain.png"))
    assert difference.mean() < (2 if name.endswith("jpg") else 0.001)


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="PNG")
    Image.fromarray(RGB).save(tmp_path / "noname", format="BMP")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), RGB)
    np.testing.assert_array_equal(read_image(str(tmp_path / "noname")), RGB)


def test_animated_gif_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), GREY3)


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


BAD = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"this is not a photograph\n", "is not JPEG"),
    "html.png": (b"<html>404</html>", "is not JPEG"),
    "webp.jpg": (b"RIFF\x10\0\0\0WEBPVP8 ", "is not JPEG"),
    "magic.jpg": (b"\xff\xd8\xff", "cannot be decoded"),
    "magic.png": (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    "magic.gif": (b"GIF89a", "cannot be decoded"),
    "magic.tif": (b"II*\0", "cannot be decoded"),
    "header.ppm": (b"P6\n10 x\n255\n", "cannot be decoded"),
    **{
        f"half.{kind}": (_encoded(kind)[: len(_encoded(kind)) // 2], "cannot be decoded")
        for kind in ("jpeg", "png", "gif", "bmp", "tiff", "ppm")
    },
    "half16.png": (imagecodecs.png_encode(DEEP)[:-60], "cannot be decoded"),
    "half16.ppm": (b"P6\n31 20\n65535\n" + DEEP.tobytes()[:500], "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_unreadable_files_say_which_and_why(tmp_path: Path, name: str, read: Callable[..., np.ndarray]) -> None:
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FundusReadError, match=reason) as caught:
        read(tmp_path / name)
    assert caught.value.path == tmp_path / name
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"


def test_words_of_decoders_where_they_help(tmp_path: Path) -> None:
    """No names of Python's errors, and nothing of their inside."""
    again = "; copy or export it again"
    kind = "cannot be decoded: it is truncated or damaged, or of a kind that is not read"
    for name, content, reason in (
        ("a.png", _encoded("PNG")[:100], rf"^{kind} \(.*[Tt]runcated.*\){again}$"),
        ("a.bmp", _encoded("BMP")[:100], rf"^{kind} \(image file is truncated .*\){again}$"),
        ("a.tif", b"II*\0\0", rf"^{kind}{again}$"),
        (
            "a.jpg",
            _encoded("JPEG")[:-200],
            r"^cannot be decoded: it is truncated or damaged \(Premature end of JPEG file",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FundusReadError) as caught:
            read_image(tmp_path / name)
        assert re.search(reason, caught.value.reason), caught.value.reason
        assert "Error(" not in caught.value.reason


def test_a_colour_space_that_is_not_read_is_no_damage(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="cielab")
    with pytest.raises(FundusReadError, match=r"a\.tif: has a TIFF colour space that is not read .*; save it as RGB$"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("start", "each"), [(b"\xff\xd8\xff", 8), (b"II*\0", 16)])
def test_limit_of_bytes_follows_from_the_limit_of_pixels(tmp_path: Path, start: bytes, each: int) -> None:
    limit = each * 10 + 64 * 2**20
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(limit + 1)
    said = r"has 64 MiB, more than the 64 MiB that are read with max_pixels=10; .*raise max_pixels \(--max-pixels"
    with pytest.raises(FundusReadError, match=said):
        read_image(path, max_pixels=10)
    os.truncate(path, limit)
    with pytest.raises(FundusReadError, match="cannot be decoded"):
        read_image(path, max_pixels=10)


def test_a_file_is_in_memory_once(tmp_path: Path) -> None:
    content = b"\xff\xd8\xff" + bytes(2**24)
    (tmp_path / "a").write_bytes(content)
    tracemalloc.start()
    try:
        data = read_bytes(tmp_path / "a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data == content
    assert peak < 1.1 * len(content)


def test_missing_folder_and_special_file(tmp_path: Path) -> None:
    with pytest.raises(FundusReadError, match="no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(FundusReadError, match="is a folder"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(FundusReadError, match="special file"):
        read_image(tmp_path / "pipe.jpg")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FundusReadError, match="Permission denied; check its permissions"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "jpg", "bmp", "ppm"])
def test_pixel_limit(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}")
    said = r"31 x 20 pixels, more than max_pixels=619; if you trust the file, raise max_pixels \(--max-pixels on the"
    with pytest.raises(FundusReadError, match=said):
        read_image(path, max_pixels=619)
    assert read_image(path, max_pixels=620).shape == RGB.shape


def test_limit_can_be_raised_beyond_pillows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    data = bytearray(_encoded("PNG"))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(FundusReadError, match="60000 x 60000"):
        read_image(tmp_path / "bomb.png")


def test_error_survives_a_process_pool() -> None:
    error = pickle.loads(pickle.dumps(FundusReadError("a.png", "is empty")))
    assert (str(error), error.path, error.reason) == ("a.png: is empty", Path("a.png"), "is empty")


@pytest.mark.parametrize("high", [1, 128, 255])
def test_mask_of_two_values(tmp_path: Path, high: int) -> None:
    Image.fromarray(((RAMP > 99) * high).astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), RAMP > 99)


@pytest.mark.parametrize("suffix", ["gif", "tif", "bmp", "png"])
def test_mask_formats(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(((RAMP > 99) * 255).astype(np.uint8)).save(tmp_path / f"a.{suffix}")
    mask = read_mask(tmp_path / f"a.{suffix}")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, RAMP > 99)


def test_mask_of_many_values_and_of_one(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), RAMP >= 128)
    square = np.zeros((64, 64), np.uint8)
    square[16:48, 16:32] = 255
    Image.fromarray(square).save(tmp_path / "a.jpg", quality=70)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.jpg"), square > 0)
    for value in (0, 255):
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(tmp_path / "one.png")
        assert (read_mask(tmp_path / "one.png") == bool(value)).all()


def test_write_mask_round_trip(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", RAMP > 99)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), RAMP > 99)
    assert set(np.unique(read_image(tmp_path / "a.png"))) == {0, 255}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_write_mask_never_leaves_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: bytes) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    write_mask(tmp_path / "a.png", RAMP > 99)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_mask(tmp_path / "a.png", RAMP > 10)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), RAMP > 99)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mask", [RAMP, np.zeros((1, 4, 4), bool)])
def test_write_mask_wants_a_mask(tmp_path: Path, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W\) bool, got"):
        write_mask(tmp_path / "a.png", mask)


def test_real_photographs_and_masks(real_data: Path) -> None:
    assert read_image(real_data / "CHASE_DB1/images/Image_01L.jpg").shape == (960, 999, 3)
    assert read_image(real_data / "HRF/images/01_dr.JPG").shape == (2336, 3504, 3)
    mask = read_mask(real_data / "HRF/masks/01_dr.tif")
    assert mask.shape == (2336, 3504)
    assert 0.03 < mask.mean() < 0.2


def test_memory_that_runs_out_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise MemoryError

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("reg4pru_monai.fundus.picture._upright", decode)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png")
