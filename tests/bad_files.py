"""More than twenty kinds of files that are no photographs, by the names they are given."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def encoded(kind: str, pixels: np.ndarray | None = None) -> bytes:
    """A good file in memory."""
    file = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8) if pixels is None else pixels
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    """A TIFF in memory."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)  # type: ignore[arg-type]
    return file.getvalue()


def archive() -> bytes:
    """A ZIP."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("a.png", "x")
    return file.getvalue()


def write_bad_files(folder: Path) -> list[str]:
    """Write one of each kind; returns their names. Those that a system cannot make are left out."""
    jpeg, png, gif, bmp = (encoded(kind) for kind in ("JPEG", "PNG", "GIF", "BMP"))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    photograph = encoded("JPEG", np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    half = len(photograph) // 2
    floats = np.full((30, 30, 3), 0.5, np.float32)
    contents = {
        "empty.jpg": b"",
        "text.jpg": "Kein Bild, nur Text: äöü".encode(),
        "page.png": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "json.tif": b'{"error": "access denied"}',
        "zip.png": archive(),
        "webp.jpg": encoded("WEBP"),
        "jpeg2000.jpg": encoded("JPEG2000"),
        "one_byte.png": b"\x89",
        "only_magic.png": b"\x89PNG\r\n\x1a\n",
        "only_magic.jpg": b"\xff\xd8\xff",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header_only.jpg": jpeg[:300],
        "hole.jpg": photograph[:half] + bytes(4096) + photograph[half + 4096 :],
        "zeros.jpg": photograph[:half] + bytes(2 * half),
        "no_end.jpg": photograph[:-2] + bytes(100),
        "truncated.png": png[: len(png) // 2],
        "flipped_bits.png": bytes(flipped),
        "truncated.gif": gif[:60],
        "truncated.bmp": bmp[:100],
        "truncated.ppm": b"P6 200 200 255\n" + bytes(100),
        "no_size.ppm": b"P6 0 0 255\n",
        "truncated.tif": tiff(np.zeros((60, 60, 3), np.uint8))[:5000],
        "only_magic.tif": b"II*\0",
        "wild_offset.tif": b"II*\0" + struct.pack("<I", 2**31),
        "not_a_number.tif": tiff(np.where(np.arange(30)[:, None, None] == 3, np.nan, floats), photometric="rgb"),
        "out_of_range.tif": tiff(floats * 300, photometric="rgb"),
        "lab_colour.tif": tiff(np.zeros((30, 30, 3), np.uint8), photometric="cielab"),
        "bomb.png": png_of_size(20_000, 20_000),
        "huge.tif": tiff(np.zeros((16, 16, 3), np.uint8), photometric="rgb").replace(
            struct.pack("<HHI", 256, 4, 1) + struct.pack("<I", 16),
            struct.pack("<HHI", 256, 4, 1) + struct.pack("<I", 99_999),
        ),
        "no_pixels.png": png_of_size(0, 0),
        "damaged.dcm": bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + bytes(3),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with (folder / "too_long.jpg").open("wb") as file:
        file.write(jpeg)
        file.truncate(2**30)  # of which the disk holds the first bytes only
    names = [*contents, "dangling.png", "too_long.jpg"]
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        names.append("pipe.png")
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # the administrator may read anything
        (folder / "forbidden.png").write_bytes(png)
        (folder / "forbidden.png").chmod(0)
        names.append("forbidden.png")
    return sorted(names)
