"""Pixels mean what the file says: range, colour profile, transparency."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from reg4pru_monai.fundus import FundusReadError, read_image, read_mask
from reg4pru_monai.fundus.io import read_grey
from reg4pru_monai.fundus.picture import Picture, photograph
from reg4pru_monai.inference import _planes

_Y, _X = np.mgrid[:48, :64]
_DISC = np.hypot(_Y - 24, _X - 32) < 22
# Smooth, coloured, black around it.
RGB = (np.stack([170 + _X, 60 + _Y, 70 - _X // 2], axis=2) * _DISC[..., None]).astype(np.uint8)
BLACK = r"holds nothing but black, or is transparent everywhere; look at it in a viewer"
P3 = {"whitepoint": (0.3127, 0.329), "primaries": (0.68, 0.32, 0.265, 0.69, 0.15, 0.06), "gamma": 2.2}
SRGB = {"whitepoint": (0.3127, 0.329), "primaries": (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)}


def profile(**options: Any) -> bytes:
    return bytes(imagecodecs.cms_profile("rgb", **options))


LINEAR = profile(gamma=1.0, **SRGB)


def in_profile(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """The same colours, as a camera that works in this profile stores them; computed by another caller of LittleCMS."""
    there = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(pixels), ImageCms.createProfile("sRGB"), there))


def assert_near(pixels: np.ndarray, expected: np.ndarray = RGB, mean: float = 1.0) -> None:
    """expected: of 255."""
    found = pixels * 255 if pixels.dtype == np.float32 else pixels.astype(float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < mean


# --- colour profiles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("name", ["p3", "adobe", "linear"])
def test_colours_come_as_srgb(tmp_path: Path, suffix: str, name: str) -> None:
    icc = {"p3": profile(**P3), "adobe": bytes(imagecodecs.cms_profile("adobergb")), "linear": LINEAR}[name]
    stored = in_profile(RGB, icc)
    assert np.abs(stored.astype(float) - RGB).mean() > 3
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", icc_profile=icc, **options)
    assert_near(read_image(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("kind", ["icc.tif", "icc.png", "gamma.png"])
def test_deep_colours_come_as_srgb(tmp_path: Path, kind: str) -> None:
    unit = RGB / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    stored = np.rint(linear * 65535).astype(np.uint16)
    if kind == "icc.tif":
        tifffile.imwrite(tmp_path / kind, stored, photometric="rgb", iccprofile=LINEAR)
    else:
        compressed = b"name\0\0" + zlib.compress(LINEAR)
        chunk = (b"iCCP", compressed) if kind == "icc.png" else (b"gAMA", (100_000).to_bytes(4, "big"))
        (tmp_path / kind).write_bytes(with_chunks(imagecodecs.png_encode(stored), chunk))
    pixels = read_image(tmp_path / kind)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, unit, atol=0.002)


def test_gamma_of_png(tmp_path: Path) -> None:
    """Gamma and primaries without a profile; an sRGB chunk takes precedence, and 1 / 2.2 means sRGB."""
    plain = imagecodecs.png_encode(in_profile(RGB, LINEAR))
    gamma, p3 = (b"gAMA", struct.pack(">I", 100_000)), [0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06]
    (tmp_path / "a.png").write_bytes(with_chunks(plain, gamma))
    assert_near(read_image(tmp_path / "a.png"))
    chromaticities = (b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in p3)))
    wide = imagecodecs.png_encode(in_profile(RGB, profile(**P3)))
    (tmp_path / "b.png").write_bytes(with_chunks(wide, (b"gAMA", struct.pack(">I", 45_455)), chromaticities))
    assert_near(read_image(tmp_path / "b.png"))
    whole = imagecodecs.png_encode(RGB)
    for chunks in ([gamma, (b"sRGB", b"\0")], [(b"gAMA", struct.pack(">I", 45_455))], [(b"gAMA", bytes(4))]):
        (tmp_path / "c.png").write_bytes(with_chunks(whole, *chunks))
        np.testing.assert_array_equal(read_image(tmp_path / "c.png"), RGB)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize(
    "icc",
    [
        bytes(imagecodecs.cms_profile("srgb")),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"no profile at all",
        profile(**P3)[:300],
        bytes(200),
    ],
    ids=["sRGB", "sRGB of Pillow", "text", "cut off", "zeros"],
)
def test_srgb_and_broken_profiles_change_nothing(tmp_path: Path, suffix: str, icc: bytes) -> None:
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    for name, more in (("a", {"icc_profile": icc}), ("b", {})):
        Image.fromarray(RGB).save(tmp_path / f"{name}.{suffix}", **options, **more)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), read_image(tmp_path / f"b.{suffix}"))


def test_profiles_of_grey_and_on_grey(tmp_path: Path) -> None:
    """Profiles of grey and of RGB apply to grey; one of grey on RGB is a mistake."""
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    unit = grey / 255
    linear = np.rint(np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4) * 255).astype(np.uint8)
    of_grey = grey_profile()
    for icc in (LINEAR, of_grey):
        Image.fromarray(linear).save(tmp_path / "a.png", icc_profile=icc)
        assert_near(read_image(tmp_path / "a.png"), expected, mean=1.5)
    Image.fromarray(RGB).save(tmp_path / "b.png", icc_profile=of_grey)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), RGB)


def grey_profile() -> bytes:
    """Of linear grey, by ICC.1:2001: a header and three tags."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(78)
    name += bytes(-len(name) % 4)
    tags, offset, table = [(b"desc", name), (b"wtpt", white), (b"kTRC", curve)], 128 + 4 + 36, b""
    for key, content in tags:
        table += key + struct.pack(">II", offset, len(content))
        offset += len(content)
    head = struct.pack(">I4s4s4s4s4s", offset, bytes(4), b"\x02\x40\0\0", b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return head + struct.pack(">I", 3) + table + b"".join(content for _, content in tags)


def test_masks_and_probabilities_keep_their_values(tmp_path: Path) -> None:
    """A profile, few values, or nothing but black mean nothing in what is not a photograph."""
    values = np.full((20, 30), 40, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=LINEAR)
    np.testing.assert_allclose(read_grey(tmp_path / "a.png"), values / np.float32(65535))
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "b.png")
    assert not read_mask(tmp_path / "b.png").any()


# --- range --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int32])
def test_integers_wider_than_their_values(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB.astype(dtype), photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)
    twelve = RGB.astype(dtype) * 16
    tifffile.imwrite(tmp_path / "b.tif", twelve, photometric="rgb")
    np.testing.assert_allclose(read_image(tmp_path / "b.tif"), twelve / np.float32(4095), atol=1e-6)


@pytest.mark.parametrize(
    ("highest", "stated", "divisor"),
    [
        (1000, 1023, 1023),
        (1000, 1000, 1023),  # some programs write the brightest pixel's value
        (4000, 4095, 4095),
        (16000, 16383, 16383),
        (60000, 4095, 65535),  # not true: the values themselves are larger
        (60000, None, 65535),
        (200, 4095, 4095),  # dark, as it says
    ],
)
def test_the_highest_value_that_a_file_states(tmp_path: Path, highest: int, stated: int | None, divisor: int) -> None:
    values = np.rint(RGB / 255 * highest / RGB.max() * 255).astype(np.uint16)
    bits = None if stated is None else bytes([stated.bit_length()] * 3)
    tags = [] if stated is None else [(281, "H", 3, (stated,) * 3, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=tags)
    chunks = [] if bits is None else [(b"sBIT", bits)]
    (tmp_path / "a.png").write_bytes(with_chunks(imagecodecs.png_encode(values), *chunks))
    for suffix in ("tif", "png"):
        np.testing.assert_allclose(read_image(tmp_path / f"a.{suffix}"), values / np.float32(divisor), atol=1e-6)


def test_shifted_values_of_png_fill_the_range(tmp_path: Path) -> None:
    """As the standard has it: the significant bits are the upper ones."""
    shifted = RGB.astype(np.uint16) << 8
    (tmp_path / "a.png").write_bytes(with_chunks(imagecodecs.png_encode(shifted), (b"sBIT", b"\x0c\x0c\x0c")))
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), shifted / np.float32(65535), atol=1e-6)


@pytest.mark.parametrize("name", ["12.tif", "gray4.tif", "msv.tif", "sbit.png"])
def test_cases_of_few_bits(cases: Path, name: str) -> None:
    plain = Image.open(cases / "twelve_bits_read_as_sixteen/plain.png")
    pixels = read_image(cases / "twelve_bits_read_as_sixteen" / name)
    rows, columns = pixels.shape[:2]
    expected = np.asarray(plain.resize((columns, rows)))
    if name == "gray4.tif":  # the green channel, in steps of 17
        expected = np.repeat(np.asarray(plain)[..., 1:2], 3, axis=2)
    assert_near(pixels, expected, mean=9 if name == "gray4.tif" else 3)


# --- transparency and black ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "hides"), [("unspecified", False), ("assocalpha", False), ("unassalpha", True)])
def test_further_samples_of_tiff(tmp_path: Path, extra: str, hides: bool) -> None:
    """Only an alpha that is not yet in the colours hides something; infrared or unknown samples do not."""
    fourth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 1))
    options = {"photometric": "rgb", "extrasamples": [extra]}
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate([RGB, fourth], axis=2), **options)
    assert_near(read_image(tmp_path / "a.tif"), np.rint(RGB * (fourth / 255)) if hides else RGB, mean=0.01)
    tifffile.imwrite(tmp_path / "b.tif", np.dstack([RGB, 0 * fourth]), **options)
    if hides:
        with pytest.raises(FundusReadError, match=BLACK):
            read_image(tmp_path / "b.tif")
    else:
        np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), RGB)


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_maps_of_8_bits(tmp_path: Path, bits: int) -> None:
    indices = np.asarray(Image.fromarray(RGB).quantize(64))
    entries = np.asarray(Image.fromarray(RGB).quantize(64).getpalette(), np.uint16).reshape(-1, 3)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, : len(entries)] = entries.T * (257 if bits == 16 else 1)
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), entries.astype(np.uint8)[indices])


def test_empty_alpha_of_bmp(tmp_path: Path) -> None:
    for alpha in (0, 255):
        picture = Image.fromarray(np.dstack([RGB, np.full(RGB.shape[:2], alpha, np.uint8)]))
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = struct.pack("<IiiHHIIiiII", 124, 64, -48, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(68)
        pixels = np.asarray(picture)[..., [2, 1, 0, 3]].tobytes()
        (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 138 + len(pixels), 0, 0, 138) + head + pixels)
        np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), RGB)


@pytest.mark.parametrize("name", ["ext0.tif", "pal8.tif", "u16.tif", "v5.bmp"])
def test_cases_that_were_read_as_black(cases: Path, name: str) -> None:
    plain = Image.open(cases / "read_as_black_and_done/plain.png")
    pixels = read_image(cases / "read_as_black_and_done" / name)
    assert_near(pixels, np.asarray(plain.resize(pixels.shape[1::-1])), mean=3)


@pytest.mark.parametrize("name", ["alpha0.png", "black.png"])
def test_cases_of_nothing_but_black(cases: Path, name: str) -> None:
    with pytest.raises(FundusReadError, match=BLACK):
        read_image(cases / "read_as_black_and_done" / name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_nothing_but_black(tmp_path: Path, dtype: type) -> None:
    """Also with the noise that JPEG or a covered lens leaves; in files and in arrays."""
    dark = np.random.default_rng(0).integers(0, 4, RGB.shape).astype(dtype) / (255 if dtype is np.float32 else 1)
    tifffile.imwrite(tmp_path / "a.tif", dark.astype(dtype), photometric="rgb")
    with pytest.raises(FundusReadError, match=BLACK):
        read_image(tmp_path / "a.tif")
    if dtype is not np.uint16:
        with pytest.raises(ValueError, match=f"photograph {BLACK}"):
            _planes(dark.astype(dtype))


def test_pixels_can_be_written_to() -> None:
    """PyTorch warns about arrays that cannot."""
    for channels in (1, 3):
        assert photograph(Picture(RGB[..., :channels].copy())).flags.writeable


@pytest.mark.parametrize("name", ["adobe.png", "linear.png"])
def test_cases_with_profiles(cases: Path, name: str) -> None:
    srgb = np.asarray(Image.open(cases / "icc_profile_ignored/srgb.png"))
    assert_near(read_image(cases / "icc_profile_ignored" / name), srgb)


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks behind its header."""
    added = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:33] + added + data[33:]
