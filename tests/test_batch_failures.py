"""What errors.csv says of each kind of failure, and what it advises."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from bad_files import tiff, write_bad_files
from reg4pru_monai.batch.failures import NetworkError, ProcessEndedError, error_row
from reg4pru_monai.batch.inputs import Item
from reg4pru_monai.batch.names import OutputError
from reg4pru_monai.batch.photograph import read_photographs
from reg4pru_monai.fundus.io import FundusReadError

CONVERT, COPY = "save it as PNG or TIFF; if it is no photograph, leave it out.", "Copy or export it again"
REMEDIES = {
    "too_long.jpg": "give a larger --max-pixels",
    "bomb.png": "give --max-pixels 400000000",
    "dangling.png": "if it is a link, whether it leads anywhere",
    "empty.jpg": "Copy or download it again",
    "forbidden.png": "chmod",
    "lab_colour.tif": "Save it as RGB",
    "not_a_number.tif": "values from 0 to 1, none of them missing",
    "out_of_range.tif": "values from 0 to 1",
    "pipe.png": "Leave it out of the inputs",
    **dict.fromkeys(
        ["text.jpg", "page.png", "json.tif", "zip.png", "webp.jpg", "jpeg2000.jpg", "one_byte.png"], CONVERT
    ),
    **dict.fromkeys(
        ["only_magic.png", "only_magic.jpg", "only_magic.tif", "wild_offset.tif", "no_pixels.png", "no_size.ppm"], COPY
    ),
    **dict.fromkeys([f"truncated.{kind}" for kind in ("jpg", "png", "gif", "bmp", "ppm", "tif")], COPY),
    **dict.fromkeys(
        ["header_only.jpg", "flipped_bits.png", "huge.tif", "damaged.dcm", "hole.jpg", "zeros.jpg", "no_end.jpg"], COPY
    ),
}


def row(stage: str, error: BaseException) -> dict[str, str]:
    return error_row(Item("eye.jpg", "/photographs/eye.jpg"), stage, error)


def reading(path: Path) -> dict[str, str]:
    """The row of a file that cannot be read."""
    with pytest.raises(FundusReadError) as raised:
        list(read_photographs(path, max_pixels=10**7).photographs)
    return row("read", raised.value)


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_bad_file_has_a_remedy_that_fits(tmp_path: Path) -> None:
    for name in write_bad_files(tmp_path / "bad"):
        found = reading(tmp_path / "bad" / name)
        assert REMEDIES[name] in found["remedy"], name
        assert found["remedy"][0].isupper(), name
        assert found["remedy"].endswith("."), name
        # What to do is said once, apart from decoders that are quoted.
        assert "; " not in found["message"] or "decoded" in found["message"], name


def test_compressions_that_are_not_known(tmp_path: Path) -> None:
    data = tiff(np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    tag = b"\x03\x01\x03\x00\x01\x00\x00\x00"  # 259, one SHORT
    assert tag + b"\x01\x00" in data
    (tmp_path / "a.tif").write_bytes(data.replace(tag + b"\x01\x00", tag + (34712 + 1).to_bytes(2, "little")))
    assert "without compression" in reading(tmp_path / "a.tif")["remedy"]


def test_a_decoder_that_is_quoted_gives_no_advice() -> None:
    error = FundusReadError("x", "cannot be decoded: it is truncated or damaged (a; reformat C:); copy it again")
    assert row("read", error)["message"] == error.reason.removesuffix("; copy it again")
    assert "C:" not in row("read", error)["remedy"]


def test_dicom(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="optional: pip install pydicom")
    from dicoms import RGB, native

    def remedy(**elements: object) -> str:
        return reading(native(tmp_path / "a.dcm", RGB, **elements))["remedy"]

    again = "Export it again from the camera or the archive"
    assert remedy(PhotometricInterpretation="HSV") == "Export it again as RGB or MONOCHROME2."
    assert remedy(PhotometricInterpretation="YBR_ICT") == f"{again}."
    assert remedy(Modality="OPT").startswith("Leave it out of the inputs")
    assert remedy(Rows=0) == f"{again}."
    assert "--max-pixels 3600000000;" in remedy(Rows=60000, Columns=60000) + ";"
    # 24 x 32 pixels, of which four times max_pixels may be in one file.
    assert f"--max-pixels {-(-(2**31 - 1) * 24 * 32 // 4)}" in remedy(NumberOfFrames=2**31 - 1)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (
            "has a transfer syntax that cannot be decoded (MPEG2); convert it, for example with gdcmconv --raw (GDCM)",
            "Convert it, for example with gdcmconv --raw (GDCM).",
        ),
        (
            "is DICOM, which needs pydicom: pip install pydicom highdicom",
            "Install pydicom: pip install pydicom highdicom",
        ),
        (
            "has another number of bits in its image data than BitsStored (0028,0101) says",
            "Export it again, uncompressed.",
        ),
        ("cannot be opened: Input/output error; check its permissions", "Check the disk or the network share"),
        ("cannot be opened: Permission denied; check its permissions", "Let yourself read it"),
        ("is nobody has foreseen", COPY),
    ],
)
def test_what_else_reading_meets(reason: str, remedy: str) -> None:
    assert remedy in row("read", FundusReadError("x", reason))["remedy"]


@pytest.mark.parametrize(
    ("stage", "error", "remedy"),
    [
        ("read", FileNotFoundError(errno.ENOENT, "No such file"), "Look whether it was moved"),
        ("read", PermissionError(errno.EACCES, "Permission denied"), "Let yourself read it"),
        ("read", OSError(errno.EIO, "Input/output error"), "Check the disk or the network share"),
        ("read", MemoryError(), "use a machine with more memory"),
        ("network", torch.OutOfMemoryError("CUDA out of memory"), "Give --batch-size 1"),
        ("process", ProcessEndedError("ended"), "on a machine with more memory"),
        ("network", NetworkError("not numbers"), "the weights may be damaged"),
        ("write", OSError(errno.ENAMETOOLONG, "File name too long"), "Give an --output with a shorter path"),
        ("write", NotADirectoryError(errno.ENOTDIR, "Not a directory"), "move it away"),
        ("write", OutputError("out/masks would lie outside; remove the link"), "Remove the link."),
        ("measure", ZeroDivisionError("division by zero"), "report it with this line and run.json"),
    ],
)
def test_what_other_stages_meet(stage: str, error: BaseException, remedy: str) -> None:
    assert remedy in row(stage, error)["remedy"]
