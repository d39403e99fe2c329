import io
import logging
import re
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

pydicom = pytest.importorskip("pydicom", reason="needs the extra [dicom]")

from pydicom import uid  # noqa: E402

from batches import segment, table  # noqa: E402
from dicoms import COLUMNS, GREY, GREY3, RGB, ROWS, SECRET, data_set, encapsulated, jpeg, native, save, ybr  # noqa: E402
from reg4pru_monai.batch.photograph import Source, read_photographs  # noqa: E402
from reg4pru_monai.fundus import FundusReadError, read_image  # noqa: E402

DEEP = (GREY.astype(np.uint16) << 4) + 5  # 12 bits
DEEP_RGB = (RGB.astype(np.uint16) << 8) + 77


def only(path: Path) -> np.ndarray:
    (photograph,) = read_photographs(path).photographs
    assert photograph.pixels.flags.c_contiguous
    assert photograph.pixels.shape == (ROWS, COLUMNS, 3)
    return photograph.pixels


def reason(path: Path, **options: Any) -> str:
    """Of the refusal to read a file, at once or when its photographs are taken."""
    with pytest.raises(FundusReadError) as refused:
        list(read_photographs(path, **options).photographs)
    assert refused.value.path == path
    return refused.value.reason


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("planar", [0, 1])
def test_rgb(tmp_path: Path, syntax: str, planar: int) -> None:
    values = (np.moveaxis(RGB, 2, 0) if planar else RGB).tobytes()
    pixels = only(native(tmp_path / "a", RGB, values, syntax, PlanarConfiguration=planar))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)


def test_ybr_full(tmp_path: Path) -> None:
    pixels = only(native(tmp_path / "a", ybr(RGB), PhotometricInterpretation="YBR_FULL"))
    assert np.abs(pixels.astype(int) - RGB).max() <= 2  # YCbCr in 8 bits has fewer colours


def test_ybr_full_422(tmp_path: Path) -> None:
    wide = np.repeat(RGB[:, ::2], 2, axis=1)  # pairs of equal colours lose nothing by sharing them
    y, b, r = np.moveaxis(ybr(wide), 2, 0)
    values = np.stack([y[:, ::2], y[:, 1::2], b[:, ::2], r[:, ::2]], axis=2).tobytes()
    pixels = only(native(tmp_path / "a", RGB, values, PhotometricInterpretation="YBR_FULL_422"))
    assert np.abs(pixels.astype(int) - wide).max() <= 2


def test_full_colours_called_422_are_refused(tmp_path: Path) -> None:
    said = reason(native(tmp_path / "a", ybr(RGB), PhotometricInterpretation="YBR_FULL_422"))
    assert "more PixelData (7FE0,0010) than its image elements" in said


def test_monochrome(tmp_path: Path) -> None:
    np.testing.assert_array_equal(only(native(tmp_path / "a", GREY)), GREY3)
    inverse = native(tmp_path / "b", 255 - GREY, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(only(inverse), GREY3)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_deep_grey_uses_the_stored_range(tmp_path: Path, bits: int, syntax: str) -> None:
    """A window, a rescaling and bits above the stored ones change nothing."""
    values = (GREY.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)
    overlay = values | (np.uint16(0) if bits == 16 else np.uint16(1 << 15))
    order = ">u2" if syntax == uid.ExplicitVRBigEndian else "<u2"
    window = {"WindowCenter": 3, "WindowWidth": 2, "RescaleSlope": 7, "RescaleIntercept": -9}
    path = native(tmp_path / "a", values, overlay.astype(order).tobytes(), syntax, BitsStored=bits, **window)
    pixels = only(path)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[..., 1], values / np.float32((1 << bits) - 1))
    inverse = native(tmp_path / "b", values, None, BitsStored=bits, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(only(inverse)[..., 1], 1 - pixels[..., 1])


def test_deep_colour(tmp_path: Path) -> None:
    storage = uid.OphthalmicPhotography16BitImageStorage
    np.testing.assert_array_equal(
        only(native(tmp_path / "a", DEEP_RGB, SOPClassUID=storage)), DEEP_RGB / np.float32(65535)
    )


def test_few_bits_fill_the_range(tmp_path: Path) -> None:
    six = GREY >> 2
    np.testing.assert_array_equal(only(native(tmp_path / "a", six, BitsStored=6))[..., 0], np.rint(six * (255 / 63)))


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(tmp_path: Path, bits: int) -> None:
    table = np.random.default_rng(0).integers(0, 1 << bits, (3, 256)).astype(f"<u{bits // 8}")
    palette = {}
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        palette[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    pixels = only(native(tmp_path / "a", GREY, PhotometricInterpretation="PALETTE COLOR", **palette))
    expected = table.T[GREY]
    np.testing.assert_array_equal(pixels, expected if bits == 8 else expected / np.float32(65535))


@pytest.mark.parametrize(
    ("stream", "photometric"),
    [
        (jpeg(RGB), "YBR_FULL_422"),  # JFIF
        (jpeg(RGB), "RGB"),  # as many cameras write: the stream knows better
        (jpeg(RGB, outcolorspace="RGB"), "RGB"),  # Adobe
        (jpeg(RGB, outcolorspace="RGB"), "YBR_FULL_422"),
    ],
)
def test_jpeg_colours(tmp_path: Path, stream: bytes, photometric: str) -> None:
    path = encapsulated(tmp_path / "a", [stream], RGB, uid.JPEGBaseline8Bit, PhotometricInterpretation=photometric)
    assert np.abs(only(path).astype(int) - RGB).max() <= 4


@pytest.mark.parametrize(("transform", "photometric"), [(0, "YBR_FULL"), (1, "RGB"), (None, "RGB"), (None, "YBR_FULL")])
def test_jpeg_markers_go_before_the_photometric_interpretation(
    tmp_path: Path, transform: int | None, photometric: str
) -> None:
    is_ycbcr = photometric != "RGB" if transform is None else bool(transform)
    stream = jpeg(RGB, **({} if is_ycbcr else {"colorspace": "YCBCR", "outcolorspace": "YCBCR"}))
    jfif = 4 + struct.unpack(">H", stream[4:6])[0]
    assert stream[6:10] == b"JFIF"
    adobe = b"" if transform is None else b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    bare = stream[:2] + adobe + stream[jfif:]
    path = encapsulated(tmp_path / "a", [bare], RGB, uid.JPEGBaseline8Bit, PhotometricInterpretation=photometric)
    assert np.abs(only(path).astype(int) - RGB).max() <= 4


def jpeg_2000(codec: str) -> Callable[..., Any]:
    options = {"level": 0, "reversible": True, "codecformat": codec}
    return lambda values, bits: imagecodecs.jpeg2k_encode(values, bitspersample=bits, **options)


LOSSLESS: dict[str, tuple[str, Callable[..., Any]]] = {
    "jpeg": (
        uid.JPEGLosslessSV1,
        lambda values, bits: imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits),
    ),
    "jpeg-ls": (uid.JPEGLSLossless, lambda values, bits: imagecodecs.jpegls_encode(values)),
    "jpeg-2000": (uid.JPEG2000Lossless, jpeg_2000("j2k")),
    "jp2": (uid.JPEG2000, jpeg_2000("jp2")),
    "htj2k": (uid.HTJ2KLossless, lambda values, bits: imagecodecs.htj2k_encode(values)),
}


@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_codecs(tmp_path: Path, codec: str) -> None:
    syntax, encode = LOSSLESS[codec]
    colour = {"PhotometricInterpretation": "YBR_RCT"} if syntax in uid.JPEG2000TransferSyntaxes else {}
    np.testing.assert_array_equal(only(encapsulated(tmp_path / "a", [encode(RGB, 8)], RGB, syntax, **colour)), RGB)
    np.testing.assert_array_equal(only(encapsulated(tmp_path / "b", [encode(GREY, 8)], GREY, syntax)), GREY3)
    if codec != "htj2k":  # whose encoder here writes 16 bits for 12
        deep = encapsulated(tmp_path / "c", [encode(DEEP, 12)], DEEP, syntax, BitsStored=12)
        np.testing.assert_array_equal(only(deep)[..., 0], DEEP / np.float32(4095))


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("codec", ["j2k", "jp2"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"])
def test_jpeg_2000_says_itself_whether_it_transformed_colours(
    tmp_path: Path, reversible: bool, codec: str, photometric: str
) -> None:
    """Where it did not, its label counts: YBR_FULL then describes the values."""
    label = {"PhotometricInterpretation": photometric}
    options = {"level": 0, "reversible": reversible, "codecformat": codec}
    stream = imagecodecs.jpeg2k_encode(RGB, mct=True, **options)
    path = encapsulated(tmp_path / "a", [stream], RGB, uid.JPEG2000, **label)
    assert np.abs(only(path).astype(int) - RGB).max() <= 3
    values = ybr(RGB) if photometric.startswith("YBR_FULL") else RGB
    plain = imagecodecs.jpeg2k_encode(values, mct=False, **options)
    path = encapsulated(tmp_path / "b", [plain], RGB, uid.JPEG2000, **label)
    assert np.abs(only(path).astype(int) - RGB).max() <= 4


def test_case_of_jpeg_2000(cases: Path) -> None:
    folder = cases / "dicom_j2k_mct_labelled_ybr"
    (photograph,) = read_photographs(folder / "d05c.dcm").photographs
    assert np.abs(photograph.pixels.astype(int) - read_image(folder / "plain.png")).mean() < 1


@pytest.mark.parametrize("compressed", [False, True])
def test_a_colour_profile_is_applied(tmp_path: Path, compressed: bool) -> None:
    icc = bytes(imagecodecs.cms_profile("adobergb"))
    there = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    srgb = np.full((ROWS, COLUMNS, 3), (180, 90, 60), np.uint8)
    stored = np.asarray(ImageCms.profileToProfile(Image.fromarray(srgb), ImageCms.createProfile("sRGB"), there))
    assert np.abs(stored.astype(int) - srgb).max() > 10
    for name, profile, expected in (("a", icc, srgb), ("b", b"broken", stored), ("c", b"", stored)):
        path = (
            encapsulated(tmp_path / name, [jpeg(stored)], stored, uid.JPEGBaseline8Bit, ICCProfile=profile)
            if compressed
            else native(tmp_path / name, stored, ICCProfile=profile)
        )
        assert np.abs(only(path).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("colours", [GREY, RGB], ids=["grey", "RGB"])
def test_values_of_fewer_bits_than_stored(tmp_path: Path, colours: np.ndarray) -> None:
    """Where BitsStored equals BitsAllocated; a smaller BitsStored is believed."""
    expected = GREY3 if colours is GREY else RGB
    np.testing.assert_array_equal(only(native(tmp_path / "a", colours.astype(np.uint16))), expected)
    inverse = {"PhotometricInterpretation": "MONOCHROME1"} if colours is GREY else {}
    if inverse:
        np.testing.assert_array_equal(only(native(tmp_path / "b", 255 - colours.astype(np.uint16), **inverse)), GREY3)
    believed = native(tmp_path / "c", colours.astype(np.uint16), BitsStored=12)
    np.testing.assert_allclose(only(believed), expected / np.float32(4095), atol=1e-6)


def test_nothing_but_black(tmp_path: Path) -> None:
    black = r"holds nothing but black, or is transparent everywhere"
    assert reason(native(tmp_path / "a", RGB * 0)).startswith(f"{black}; look at it in a viewer")
    frames = np.stack([RGB, RGB * 0])
    said = reason(native(tmp_path / "b", RGB, frames.tobytes(), frames=2))
    assert said.startswith(f"{black} (frame 2); look at it in a viewer")


def test_jpeg_of_12_bits(tmp_path: Path) -> None:
    stream = imagecodecs.jpeg8_encode(DEEP, level=100, bitspersample=12)
    path = encapsulated(tmp_path / "a", [stream], DEEP, uid.JPEGExtended12Bit, BitsStored=12)
    assert np.abs(only(path)[..., 0] - DEEP / np.float32(4095)).max() < 0.01


@pytest.mark.parametrize(("syntax", "planar"), [(uid.RLELossless, 0), (uid.JPEGLSLossless, 0), (uid.JPEGLSLossless, 1)])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_what_pydicom_compresses(tmp_path: Path, syntax: str, planar: int, photometric: str) -> None:
    """With planar configuration 1, JPEG-LS holds one colour after another."""
    if syntax == uid.JPEGLSLossless:
        pytest.importorskip("jpeg_ls", reason="needs pyjpegls, which highdicom brings")
    values = RGB if photometric == "RGB" else ybr(RGB)
    photograph = data_set(RGB, PhotometricInterpretation=photometric, PlanarConfiguration=planar)
    photograph.PixelData = (np.moveaxis(values, 2, 0) if planar else values).tobytes()
    save(tmp_path / "plain", photograph)
    photograph = pydicom.dcmread(tmp_path / "plain")
    photograph.compress(syntax, generate_instance_uid=False)
    photograph.save_as(tmp_path / "a")
    assert np.abs(only(tmp_path / "a").astype(int) - RGB).max() <= (0 if photometric == "RGB" else 2)


def test_deep_run_lengths(tmp_path: Path) -> None:
    native(tmp_path / "plain", DEEP_RGB)
    photograph = pydicom.dcmread(tmp_path / "plain")
    photograph.compress(uid.RLELossless, generate_instance_uid=False)
    photograph.save_as(tmp_path / "a")
    np.testing.assert_array_equal(only(tmp_path / "a"), DEEP_RGB / np.float32(65535))


FRAMES = np.stack([RGB, RGB[::-1], RGB[:, ::-1]])


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_come_one_at_a_time(tmp_path: Path, compressed: bool) -> None:
    if compressed:
        streams = [imagecodecs.jpegls_encode(np.ascontiguousarray(frame)) for frame in FRAMES]
        path = encapsulated(tmp_path / "a", streams, RGB, uid.JPEGLSLossless)
    else:
        path = native(tmp_path / "a", RGB, FRAMES.tobytes(), frames=3)
    photographs = read_photographs(path).photographs
    assert len(photographs) == 3
    for number, photograph in enumerate(photographs, start=1):
        assert (photograph.frame, photograph.frames, photograph.details["frames"]) == (number, 3, 3)
        np.testing.assert_array_equal(photograph.pixels, FRAMES[number - 1])
    np.testing.assert_array_equal(photographs[2].pixels, FRAMES[2])
    assert photographs[0].pixels is not photographs[0].pixels
    with pytest.raises(IndexError):
        photographs[3]


def test_fragments_without_an_offset_table(tmp_path: Path) -> None:
    stream = jpeg(RGB)
    photograph = data_set(RGB, PhotometricInterpretation="YBR_FULL_422")
    photograph.PixelData = pydicom.encaps.encapsulate([stream], fragments_per_frame=2, has_bot=False)
    photograph["PixelData"].VR = "OB"
    path = save(tmp_path / "a", photograph, uid.JPEGBaseline8Bit)
    assert np.abs(only(path).astype(int) - RGB).max() <= 4


def test_extended_offset_table(tmp_path: Path) -> None:
    streams = [bytes(imagecodecs.jpegls_encode(np.ascontiguousarray(frame))) for frame in FRAMES]
    data, offsets, lengths = pydicom.encaps.encapsulate_extended(streams)
    photograph = data_set(RGB, frames=3, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    photograph.PixelData = data
    photograph["PixelData"].VR = "OB"
    path = save(tmp_path / "a", photograph, uid.JPEGLSLossless)
    np.testing.assert_array_equal(read_photographs(path).photographs[1].pixels, FRAMES[1])


@pytest.mark.parametrize("implicit", [False, True])
def test_without_preamble_and_header(tmp_path: Path, implicit: bool) -> None:
    photograph = data_set(RGB)
    photograph.PixelData = RGB.tobytes()
    photograph["PixelData"].VR = "OB"
    photograph.save_as(tmp_path / "a.jpg", implicit_vr=implicit, little_endian=True)
    assert (tmp_path / "a.jpg").read_bytes()[128:132] != b"DICM"
    source = read_photographs(tmp_path / "a.jpg")
    assert source.photographs[0].details["format"] == "DICOM"
    np.testing.assert_array_equal(source.photographs[0].pixels, RGB)


def test_bytes_that_only_look_like_dicom(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x08\0\x05\0CS\x04\0abcd" + bytes(50))
    assert reason(tmp_path / "a") == "is not JPEG, PNG, TIFF, BMP, GIF, PPM or DICOM; convert it to one of these"


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"ImageLaterality": "R", "Laterality": "R"}, "R"),
        ({"ImageLaterality": "", "Laterality": "L"}, "L"),
        ({"ImageLaterality": "L", "Laterality": "R"}, None),
        ({"ImageLaterality": "B"}, None),
        ({"ImageLaterality": ""}, None),
    ],
)
def test_laterality(tmp_path: Path, elements: dict[str, str], expected: str | None) -> None:
    (photograph,) = read_photographs(native(tmp_path / "a", RGB, **elements)).photographs
    assert photograph.details["laterality"] == expected


def test_spacing(tmp_path: Path) -> None:
    def spacing(path: Path) -> tuple[Any, Any]:
        details = read_photographs(path).photographs[0].details
        return details["row_spacing_mm"], details["column_spacing_mm"]

    assert spacing(native(tmp_path / "a", RGB)) == (0.011, 0.012)
    for values in (None, [0.01], [0.0, 0.01], [-1, 1]):
        assert spacing(native(tmp_path / "b", RGB, PixelSpacing=values)) == (None, None)
    measures, shared = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [0.5, 0.25]
    shared.PixelMeasuresSequence = [measures]
    photograph = data_set(RGB, SharedFunctionalGroupsSequence=[shared])
    del photograph.PixelSpacing
    photograph.PixelData = RGB.tobytes()
    assert spacing(save(tmp_path / "c", photograph)) == (0.5, 0.25)


@pytest.mark.parametrize(("said", "angle"), [(None, None), (60.0, 60.0), (0.0, None), (200.0, None)])
def test_angle_of_view(tmp_path: Path, said: float | None, angle: float | None) -> None:
    """Zero is what devices write that do not know; 200 degrees are a projection that no diameter describes."""
    path = native(tmp_path / "a", RGB, HorizontalFieldOfView=said)
    assert read_photographs(path).photographs[0].details["angle_of_view_deg"] == angle


@pytest.mark.parametrize(
    ("spacing", "scale"),
    [([0.01, 0.01], 0.01), ([0.01, 0.01008], 0.01004), ([0.01, 0.0102], None), ([0.02, 0.01], None)],
)
def test_unequal_spacing_gives_no_millimetres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: list[float], scale: float | None
) -> None:
    """The length of a vessel would depend on its direction; both spacings stay in the table."""
    monkeypatch.setattr("reg4pru_monai.batch.work.measure_vessels", lambda mask, fov, scale: {"mean_width_mm": scale})
    (tmp_path / "in").mkdir()
    native(tmp_path / "in" / "a.dcm", RGB.repeat(3, axis=0).repeat(3, axis=1), PixelSpacing=spacing)
    segment(tmp_path / "in", tmp_path / "out")
    (row,) = table(tmp_path / "out")
    assert [float(row[f"{axis}_spacing_mm"]) for axis in ("row", "column")] == spacing
    assert row["mean_width_mm"] == ("" if scale is None else str(scale))


def test_details(tmp_path: Path) -> None:
    (photograph,) = read_photographs(native(tmp_path / "a", DEEP, BitsStored=12)).photographs
    assert photograph.details == {
        "identifier": None,
        "format": "DICOM",
        "camera_maker": "Maker",
        "camera_model": "Model 7",
        "laterality": "L",
        "row_spacing_mm": 0.011,
        "column_spacing_mm": 0.012,
        "angle_of_view_deg": None,
        "bits": 12,
        "frames": 1,
    }


def identifier(path: Path, *keywords: str) -> Any:
    return read_photographs(path, identifiers=keywords).photographs[0].details["identifier"]


def test_identifiers(tmp_path: Path) -> None:
    path = native(tmp_path / "a", RGB, SOPInstanceUID="1.2.3", InstanceNumber=4, ImageType=["ORIGINAL", "PRIMARY"])
    assert identifier(path, "PatientID", "SOPInstanceUID", "InstanceNumber") == "P-17|1.2.3|4"
    assert identifier(path, "ImageType") == "ORIGINAL\\PRIMARY"
    assert identifier(path, "PatientID", "StationName") == "P-17|"
    assert identifier(path, "StationName") is None


@pytest.mark.parametrize(
    ("keyword", "said"),
    [
        ("PatientName", "is personal and never enters results; use PatientID"),
        ("OperatorsName", "personal"),
        ("ReferringPhysicianName", "personal"),
        ("PatientBirthDate", "personal"),
        ("PatientBirthDateInAlternativeCalendar", "personal"),
        ("PatientAddress", "personal"),
        ("CountryOfResidence", "personal"),
        ("PatientTelephoneNumbers", "personal"),
        ("PatientTelecomInformation", "personal"),
        ("PatientComments", "(LT) does not hold one line"),
        ("OtherPatientIDsSequence", "(SQ) does not hold one line"),
        ("PixelData", "does not hold one line"),
        ("PatientId", "'PatientId' is not a DICOM keyword; did you mean 'PatientID'?"),
    ],
)
def test_personal_and_unknown_identifiers_are_refused(tmp_path: Path, keyword: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^identifiers: ") as refused:
        read_photographs(native(tmp_path / "a", RGB), identifiers=["PatientID", keyword])
    assert said in str(refused.value)
    assert not isinstance(refused.value, FundusReadError)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"Modality": "OPT"}, "not a photograph: Modality (0008,0060) is not OP, XC, SC or OT"),
        ({"Modality": SECRET}, "not a photograph: Modality"),
        ({"SOPClassUID": uid.OphthalmicTomographyImageStorage}, "(Ophthalmic Tomography Image Storage)"),
        ({"SOPClassUID": uid.CTImageStorage, "Modality": ""}, "(CT Image Storage)"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "BitsAllocated (0028,0100) that is not 8 or 16"),
        ({"PhotometricInterpretation": "HSV"}, "PhotometricInterpretation (0028,0004) that is not read"),
        ({"PhotometricInterpretation": None}, "PhotometricInterpretation"),
        ({"PhotometricInterpretation": "YBR_ICT"}, "only JPEG 2000 may have"),
        ({"PhotometricInterpretation": "MONOCHROME2"}, "SamplesPerPixel (0028,0002) that is not 1"),
        ({"SamplesPerPixel": 4}, "SamplesPerPixel (0028,0002) that is not 3"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "BitsAllocated (0028,0100) that is not 8 or 16"),
        ({"BitsStored": 9}, "BitsStored (0028,0101) that is not 1 to 8"),
        ({"HighBit": 15}, "HighBit (0028,0102) that is not 7"),
        ({"PixelRepresentation": 1}, "PixelRepresentation (0028,0103) that is not 0"),
        ({"PlanarConfiguration": 2}, "PlanarConfiguration (0028,0006) that is not 0 or 1"),
        ({"PlanarConfiguration": None}, "has no PlanarConfiguration (0028,0006)"),
        ({"Rows": 0}, "Rows (0028,0010) that is not 1 to 65535"),
        ({"Rows": None}, "has no Rows (0028,0010)"),
        ({"Columns": COLUMNS + 1}, "PixelData (7FE0,0010) that are cut off"),
        ({"Rows": ROWS // 2}, "more PixelData (7FE0,0010) than its image elements"),
        ({"NumberOfFrames": 2}, "cut off"),
        ({"NumberOfFrames": 0}, "NumberOfFrames (0028,0008) that is not 1 to"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels, more than max_pixels=150000000"),
        ({"NumberOfFrames": 2**31 - 1}, "2147483647 frames of 32 x 24 pixels, more than 4 times"),
    ],
)  # fmt: skip
def test_wrong_elements_are_refused(tmp_path: Path, elements: dict[str, Any], said: str) -> None:
    assert said in reason(native(tmp_path / "a", RGB, **elements))


@pytest.mark.parametrize("modality", ["OP", "XC", "SC", "OT", "", None])
@pytest.mark.parametrize("storage", [uid.SecondaryCaptureImageStorage, "1.2.3.4.5.6.7"])
def test_photographs_of_other_kinds(tmp_path: Path, modality: str | None, storage: str) -> None:
    np.testing.assert_array_equal(only(native(tmp_path / "a", RGB, Modality=modality, SOPClassUID=storage)), RGB)


def test_the_limit_of_pixels_is_the_caller_s(tmp_path: Path) -> None:
    path = native(tmp_path / "a", RGB)
    assert len(read_photographs(path, max_pixels=ROWS * COLUMNS).photographs) == 1
    assert f"{COLUMNS} x {ROWS} pixels, more than max_pixels=767" in reason(path, max_pixels=ROWS * COLUMNS - 1)


def test_ybr_of_16_bits_is_refused(tmp_path: Path) -> None:
    said = reason(native(tmp_path / "a", DEEP_RGB, PhotometricInterpretation="YBR_FULL"))
    assert "YBR colours (0028,0004) of more or fewer than 8 bits" in said


@pytest.mark.parametrize(
    ("storage", "name"),
    [
        (uid.BasicTextSRStorage, "(Basic Text SR Storage)"),
        (uid.GrayscaleSoftcopyPresentationStateStorage, "(Grayscale Softcopy Presentation State Storage)"),
        (uid.MediaStorageDirectoryStorage, "(Media Storage Directory Storage)"),
    ],
)
def test_objects_without_pixels(tmp_path: Path, storage: str, name: str) -> None:
    document = data_set(RGB, SOPClassUID=storage, Modality="SR")
    assert f"is DICOM but not a photograph {name}" in reason(save(tmp_path / "a", document))


def test_a_photograph_without_pixels(tmp_path: Path) -> None:
    assert "holds no PixelData (7FE0,0010)" in reason(save(tmp_path / "a", data_set(RGB)))
    floats = data_set(GREY, BitsAllocated=8)
    floats.FloatPixelData = GREY.astype(np.float32).tobytes()
    assert "holds no PixelData (7FE0,0010)" in reason(save(tmp_path / "b", floats))


@pytest.mark.parametrize(
    ("syntax", "said"),
    [
        (uid.MPEG4HP41, "(MPEG-4 AVC/H.264 High Profile / Level 4.1); convert it to Explicit VR Little Endian"),
        ("1.2.840.10008.1.2.4.92", "gdcmconv --raw (GDCM)"),
        (f"1.2.3.{17}", "cannot be decoded (unknown)"),
    ],
)
def test_unknown_transfer_syntaxes_name_themselves(tmp_path: Path, syntax: str, said: str) -> None:
    said_of = reason(encapsulated(tmp_path / "a", [b"1234"], RGB, syntax))
    assert "transfer syntax (0002,0010) that cannot be decoded" in said_of
    assert said in said_of


def test_deflated_data_sets_are_refused_before_inflating(tmp_path: Path) -> None:
    path = native(tmp_path / "a", RGB, None, uid.DeflatedExplicitVRLittleEndian)
    assert "deflated data set, which is not read; convert it to Explicit VR Little Endian" in reason(path)


def test_streams_that_contradict_their_elements(tmp_path: Path) -> None:
    """A stream of another size is not decoded at all: the header of the first promises 65000 x 65000 pixels."""
    stream = jpeg(RGB)
    at = stream.index(struct.pack(">HH", ROWS, COLUMNS))
    bomb = stream[:at] + struct.pack(">HH", 65000, 65000) + stream[at + 4 :]
    path = encapsulated(tmp_path / "a", [bomb], RGB, uid.JPEGBaseline8Bit)
    assert "image data of 65000 x 65000 pixels where Columns" in reason(path)
    path = encapsulated(tmp_path / "b", [stream], GREY, uid.JPEGBaseline8Bit)
    assert "another number of colours in its image data than SamplesPerPixel" in reason(path)
    path = encapsulated(tmp_path / "c", [jpeg(GREY)], GREY, uid.JPEGBaseline8Bit, BitsAllocated=16, BitsStored=12)
    assert "another number of bits in its image data than BitsStored" in reason(path)
    deep = imagecodecs.jpegls_encode(DEEP)
    path = encapsulated(tmp_path / "d", [deep], DEEP, uid.JPEGLSLossless, BitsStored=10)
    assert "another number of bits" in reason(path)
    path = encapsulated(tmp_path / "e", [stream], RGB, uid.JPEGBaseline8Bit, frames=10**5)
    assert "PixelData (7FE0,0010) that cannot hold its frames" in reason(path)


@pytest.mark.parametrize("codec", ["lossy", *LOSSLESS])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_streams_cut_off_inside_a_whole_file(tmp_path: Path, codec: str, share: float) -> None:
    syntax, encode = LOSSLESS.get(codec, (uid.JPEGBaseline8Bit, lambda values, bits: jpeg(values)))
    stream = bytes(encode(RGB, 8))
    path = encapsulated(tmp_path / "a", [stream[: int(len(stream) * share)]], RGB, syntax)
    assert "cut off" in reason(path) or "damaged" in reason(path)


LARGE = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("lossless", [False, True])
def test_jpeg_streams_with_a_hole(tmp_path: Path, photometric: str, colours: int, lossless: bool) -> None:
    pixels = LARGE if colours == 3 else np.ascontiguousarray(LARGE[..., 0])
    if lossless:
        stream, syntax = bytes(imagecodecs.jpeg8_encode(pixels, lossless=True)), uid.JPEGLosslessSV1
    else:
        stream, syntax = jpeg(pixels), uid.JPEGBaseline8Bit
    colour = {} if colours == 1 else {"PhotometricInterpretation": photometric}
    whole = encapsulated(tmp_path / "a", [stream], pixels, syntax, **colour)
    assert read_photographs(whole).photographs[0].pixels.shape == LARGE.shape
    middle = len(stream) // 2
    broken = stream[:middle] + bytes(4096) + stream[middle + 4096 :]
    said = reason(encapsulated(tmp_path / "b", [broken], pixels, syntax, **colour))
    assert re.search(r"^has image data that are truncated or damaged \(.+\); copy or export it again$", said)


# Every way to break a file, and what may never come out: texts of the data set, in a message, a warning, a log, the
# chained error or the details.


def outcome(path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    """Whether a file was read, and all that was said about it."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            source: Source = read_photographs(path, identifiers=["PatientID"])
            said += [str(photograph.details) for photograph in source.photographs]
            read = True
        except FundusReadError as error:
            said += [str(error), repr(error), *traceback.format_exception(error)]
            read = False
    said += [str(warning.message) for warning in caught] + [record.getMessage() for record in caplog.records]
    return read, "\n".join([*said, *capfd.readouterr()])


def whole_file(tmp_path: Path, kind: str) -> bytes:
    texts = {"StudyDescription": f"{SECRET} x", "PatientComments": f"{SECRET} x", "OperatorsName": f"{SECRET}^Op"}
    if kind == "native":
        return native(tmp_path / "whole", RGB, **texts).read_bytes()
    if kind == "implicit":
        return native(tmp_path / "whole", RGB, None, uid.ImplicitVRLittleEndian, **texts).read_bytes()
    stream = imagecodecs.jpegls_encode(RGB)
    return encapsulated(tmp_path / "whole", [stream, stream], RGB, uid.JPEGLSLossless, **texts).read_bytes()


@pytest.fixture
def loud(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


@pytest.mark.parametrize("kind", ["native", "implicit", "compressed"])
def test_truncated_files_say_nothing_of_the_patient(
    tmp_path: Path, loud: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    whole = whole_file(tmp_path, kind)
    path = tmp_path / "cut"
    path.write_bytes(whole)
    assert outcome(path, loud, capfd)[0]
    last = len(whole) - 16  # later, only the delimiter after the pixel data is missing
    for length in (*range(0, min(last, 1500), 13), *range(1500, last, 211)):
        path.write_bytes(whole[:length])
        read, said = outcome(path, loud, capfd)
        assert not read, length
        assert SECRET not in said, length


@pytest.mark.parametrize("kind", ["native", "implicit", "compressed"])
def test_damaged_files_say_nothing_of_the_patient(
    tmp_path: Path, loud: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    whole = whole_file(tmp_path, kind)
    header = whole.index(b"\xe0\x7f\x10\0") + 12
    chance = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(whole)
        for place in chance.integers(128, header, chance.integers(1, 6)):
            broken[place] = chance.choice([0, 1, 255, chance.integers(256)])
        (tmp_path / "broken").write_bytes(broken)
        read, said = outcome(tmp_path / "broken", loud, capfd)
        refused += not read
        assert SECRET not in said
    assert refused > 50


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_a_value_that_takes_in_its_neighbours_is_dropped(tmp_path: Path, syntax: str) -> None:
    """The length of Manufacturer grows over the whole element of a physician's name, and the file still reads well."""
    whole = bytearray(native(tmp_path / "a", RGB, None, syntax).read_bytes())
    at = whole.index(b"\x08\0\x70\0") + 4
    at += 2 if whole[at : at + 2] == b"LO" else 0
    value = at + (2 if syntax == uid.ExplicitVRLittleEndian else 4)
    end = whole.index(b"\x08\0\x90\x10")  # of ManufacturerModelName
    assert SECRET.encode() in whole[value:end]
    assert end - value < 64
    whole[at : at + 2] = struct.pack("<H", end - value)
    (tmp_path / "a").write_bytes(whole)
    (photograph,) = read_photographs(tmp_path / "a").photographs
    assert photograph.details["camera_maker"] is None
    assert photograph.details["camera_model"] == "Model 7"


def test_errors_of_pydicom_are_not_quoted(
    tmp_path: Path, loud: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """That a text is not a number is said with the text."""
    whole = native(tmp_path / "a", RGB, NumberOfFrames=100000).read_bytes()
    assert whole.count(b"100000") == 1
    (tmp_path / "a").write_bytes(whole.replace(b"100000", SECRET.encode()))
    read, said = outcome(tmp_path / "a", loud, capfd)
    assert not read
    assert "it is truncated or damaged, or of a kind that is not read (ValueError); copy or export it again" in said
    assert SECRET not in said


def test_warnings_of_pydicom_are_silenced(
    tmp_path: Path, loud: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Values that pydicom would quote in a warning and in its log."""
    photograph = data_set(RGB)
    photograph.PixelData = RGB.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photograph.add_new("PatientID", "LO", f"{SECRET}" * 20)
        photograph.add_new("SpecificCharacterSet", "CS", SECRET)
        save(tmp_path / "a", photograph)
    read, said = outcome(tmp_path / "a", loud, capfd)
    assert read
    assert SECRET not in said


def test_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = native(tmp_path / "a", RGB)
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert reason(path) == "is DICOM, which needs pydicom: pip install pydicom highdicom"
    with pytest.raises(ValueError, match="identifiers are DICOM keywords and need pydicom"):
        read_photographs(path, identifiers=["PatientID"])
