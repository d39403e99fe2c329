"""Pages of TIFF: which are photographs, which are copies, and which are channels of one."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from batches import segment, table
from reg4pru_monai.batch.photograph import read_photographs
from reg4pru_monai.fundus import FundusReadError, read_image

_Y, _X = np.mgrid[:40, :60]
RGB = np.stack([4 * _X, 200 - 3 * _Y, 90 + _X - _Y], axis=2).astype(np.uint8)
OTHER = RGB[:, ::-1].copy()
PLANES = np.moveaxis(RGB, 2, 0)


def photographs(path: Path) -> list[np.ndarray]:
    found = list(read_photographs(path).photographs)
    assert [each.frame for each in found] == list(range(1, len(found) + 1))
    assert {each.frames for each in found} == {each.details["frames"] for each in found} == {len(found)}
    return [each.pixels for each in found]


def written(path: Path, *pages: tuple[np.ndarray, dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as file:
        for pixels, options in pages:
            file.write(pixels, **{"photometric": "rgb" if pixels.shape[-1] == 3 else "minisblack", **options})
    return path


SMALL, PLAIN = {"subfiletype": 1}, {"metadata": None}


@pytest.mark.parametrize(
    "pages",
    [
        [(RGB[::4, ::4], SMALL), (RGB, {})],
        [(RGB, {}), (RGB[::4, ::4], SMALL)],
        [(RGB[::4, ::4], SMALL | PLAIN), (RGB, PLAIN), (RGB[::8, ::8], SMALL | PLAIN)],
        [(RGB, {"subifds": 2}), (RGB[::2, ::2], SMALL), (RGB[::4, ::4], SMALL)],
        [(RGB[::4, ::4], SMALL | PLAIN | {"subifds": 1}), (RGB, PLAIN)],
        [(RGB, {"tile": (16, 16)} | PLAIN), (RGB[::2, ::2], {"tile": (16, 16)} | PLAIN)],
        [(RGB, PLAIN), (RGB[..., 0] > 50, PLAIN | {"subfiletype": 4, "photometric": "mask"})],
        [(RGB, PLAIN | {"extratags": [(255, "H", 1, 1, True)]}),
         (RGB[::4, ::4], PLAIN | {"extratags": [(255, "H", 1, 2, True)]})],
    ],
    ids=["first", "last", "several", "pyramid below", "full below reduced", "unmarked pyramid", "mask", "old tag"],
)  # fmt: skip
def test_reduced_pages_are_no_photographs(tmp_path: Path, pages: list[tuple[np.ndarray, dict[str, Any]]]) -> None:
    path = written(tmp_path / "a.tif", *pages)
    (only,) = photographs(path)
    np.testing.assert_array_equal(only, RGB)
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize(
    "options",
    [
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}, "bigtiff": True, "tile": (16, 16)},
        {"imagej": True, "metadata": {"axes": "CYX", "mode": "composite"}},
        {"imagej": True, "metadata": {"axes": "CYX"}, "byteorder": ">"},
        {"metadata": {"axes": "CYX"}},
        {"metadata": None, "planarconfig": "separate", "photometric": "rgb"},
    ],
    ids=["OME", "tiled OME", "ImageJ composite", "ImageJ", "tifffile", "planes"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_in_pages_are_joined(tmp_path: Path, options: dict[str, Any], dtype: type) -> None:
    factor = 257 if dtype is np.uint16 else 1
    tifffile.imwrite(tmp_path / "a.tif", PLANES.astype(dtype) * factor, **{"photometric": "minisblack", **options})
    (only,) = photographs(tmp_path / "a.tif")
    np.testing.assert_allclose(only * (255 if dtype is np.uint16 else 1.0), RGB, atol=1e-4)


def test_several_photographs_of_joined_channels(tmp_path: Path) -> None:
    both = np.stack([PLANES, np.moveaxis(OTHER, 2, 0)])
    tifffile.imwrite(tmp_path / "a.tif", both, photometric="minisblack", ome=True, metadata={"axes": "TCYX"})
    first, second = photographs(tmp_path / "a.tif")
    np.testing.assert_array_equal(first, RGB)
    np.testing.assert_array_equal(second, OTHER)


def test_other_channels_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PLANES[:2], imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(FundusReadError, match="has 2 channels that are not red, green and blue; save it as RGB"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("named", [False, True])
def test_channels_in_other_files_are_refused(tmp_path: Path, named: bool) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, PLANES, photometric="minisblack", ome=True, metadata={"axes": "CYX"})
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as whole:
        description = whole.pages.first.description
    data = re.search("<TiffData[^>]*/>", description)
    first = re.search('UUID="([^"]+)"', description)
    assert data is not None
    assert first is not None
    parts = [
        f'<TiffData FirstC="{at}" IFD="0" PlaneCount="1"><UUID FileName="{at}.tif">{name}</UUID></TiffData>'
        for at, name in enumerate((first[1], "urn:uuid:1", "urn:uuid:2"))
    ]
    if named:
        description = description.replace(data[0], "".join(parts))
    for at, plane in enumerate(PLANES):
        tifffile.imwrite(tmp_path / f"{at}.tif", plane, description=description.encode(), metadata=None)
    with pytest.raises(FundusReadError, match=r"channels or frames in other files"):
        read_image(tmp_path / "0.tif")


def test_colour_map_of_one_bit(tmp_path: Path) -> None:
    picture = Image.fromarray((RGB[..., 0] > 99).astype(np.uint8), "P")
    picture.putpalette([200, 100, 50, 10, 20, 30])
    picture.save(tmp_path / "a.tif")
    expected = np.where(RGB[..., :1] > 99, (10, 20, 30), (200, 100, 50))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("metadata", [{}, PLAIN])
def test_each_page_of_full_size_is_a_photograph(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = written(tmp_path / "a.tif", (RGB, metadata), (RGB[::4, ::4], SMALL | metadata), (OTHER, metadata))
    first, second = photographs(path)
    np.testing.assert_array_equal(first, RGB)
    np.testing.assert_array_equal(second, OTHER)
    np.testing.assert_array_equal(read_image(path), RGB)


def test_each_photograph_has_a_row(tmp_path: Path) -> None:
    written(tmp_path / "a.tif", *[(np.tile(each, (2, 2, 1)), PLAIN) for each in (RGB, OTHER)])
    segment([str(tmp_path / "a.tif")], tmp_path / "out", {"outputs": ("mask",)})
    rows = table(tmp_path / "out")
    assert [(row["path"], row["status"], row["frame"], row["frames"]) for row in rows] == [
        ("a.tif", "done", "1", "2"),
        ("a.tif", "done", "2", "2"),
    ]
    assert sorted(path.name for path in (tmp_path / "out/masks/a.tif~frames").iterdir()) == ["1.png", "2.png"]


def test_pages_have_tags_of_their_own(tmp_path: Path) -> None:
    """Colour maps and orientations, also where pages are otherwise alike."""
    maps = [np.stack([np.arange(256) * factor] * 3).astype(np.uint16) for factor in (257, 100)]
    index = RGB[..., 0]
    turned = {"extratags": [(274, "H", 1, 3, True)]}
    path = written(
        tmp_path / "a.tif",
        (index, {"photometric": "palette", "colormap": maps[0]} | PLAIN),
        (index, {"photometric": "palette", "colormap": maps[1]} | PLAIN | turned),
    )
    first, second = photographs(path)
    np.testing.assert_array_equal(first[..., 0], index)
    np.testing.assert_array_equal(second[..., 0], (maps[1] >> 8).astype(np.uint8)[0][index][::-1, ::-1])


def test_a_black_page_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", (RGB, PLAIN), (RGB * 0, PLAIN))
    with pytest.raises(FundusReadError, match=r"nothing but black, or is transparent everywhere \(page 2\); look"):
        read_photographs(path)
    np.testing.assert_array_equal(read_image(path), RGB)


def test_limit_of_all_pages(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", *[(RGB, PLAIN)] * 5)
    said = r"has 5 frames of 60 x 40 pixels, more than 4 times max_pixels=2400; if you trust the file, raise max_pixels"
    with pytest.raises(FundusReadError, match=said):
        read_photographs(path, max_pixels=2400)
    assert len(photographs(written(tmp_path / "b.tif", *[(RGB, PLAIN)] * 4))) == 4


@pytest.mark.parametrize("description", ["<OME><broken", "ImageJ=1.53t\nimages=9\nchannels=3\n", '{"shape": [9, 9]}'])
def test_a_damaged_description_loses_nothing(tmp_path: Path, description: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", description=description, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_cases_of_pages(cases: Path) -> None:
    plain = read_image(cases / "tiff_thumbnail_first/plain.png")
    (only,) = photographs(cases / "tiff_thumbnail_first/thumb_first.tif")
    np.testing.assert_array_equal(only, plain)
    right, left = photographs(cases / "tiff_thumbnail_first/two_eyes.tif")
    np.testing.assert_array_equal(right, plain)
    assert left.shape == plain.shape
    assert (left != right).any()
    (joined,) = photographs(cases / "tiff_channels_as_pages/ome.ome.tif")
    np.testing.assert_array_equal(joined, plain)
