"""Fundus photographs and masks from and to files: what the content says, not what the suffix says."""

import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, PpmImagePlugin

from ..files import replacing
from . import jpeg, png, tiff
from .picture import DEFAULT_MAX_PIXELS, RAISE_LIMIT, Picture, Refused, check_size, literal, photograph
from .remote import REMEDY, RemoteError, UrlError, info, is_url, read, read_unsized

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

_ORIENTATION_TAG = 0x0112
_JPEG = b"\xff\xd8\xff"
# The plugin classes are opened directly: Image.open() has one pixel limit for the whole process.
_PILLOW_MAGIC: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (_JPEG, JpegImagePlugin.JpegImageFile),
    (png.MAGIC, PngImagePlugin.PngImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    *((b"P%d" % kind, PpmImagePlugin.PpmImageFile) for kind in range(1, 7)),
)
_PILLOW_STARTS = tuple(magic for magic, _ in _PILLOW_MAGIC)
# Tables may begin with "BMI" or "P1" too: BMP also needs the size of its second header, PPM what follows.
_NOT_TEXT = re.compile(rb"BM.{13}\0{3}|P.\s+[#\d]|[^BP]", re.DOTALL)
# The largest file that is read has the bytes of max_pixels with 4 channels of 16 bits. TIFF and DICOM may have 32 bits
# or several frames. Metadata and what cameras append, such as short films, come on top.
_HEAD = 132  # bytes that tell what a file is: DICOM has its mark at their end
_READ_AT_ONCE = 2**20  # of a URL: a request costs more than so many bytes
_BYTES_PER_PIXEL, _BYTES_PER_PIXEL_OF_MANY, _BYTES_BESIDE = 8, 16, 64 * 2**20
# What these say is of the decoder's inside, such as "unpack requires a buffer of 8 bytes".
_OBSCURE = (
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    UnicodeError,
    EOFError,
    AssertionError,
    struct.error,
)


class FundusReadError(ValueError):
    """A file that cannot be read as an image; `path` and `reason` say which and why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = os.fspath(path) if is_url(path) else Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["FundusReadError"], tuple[str | Path, str]]:
        return type(self), (self.path, self.reason)


def read_image(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Decode a photograph as sRGB, upright (EXIF orientation applied), transparency on black; of several, the first.

    max_pixels: refuse images with more pixels than this, before decoding them.
    Returns (H, W, 3) uint8, or float32 in [0, 1] where the file has more than 8 bits per channel.
    Raises FundusReadError, also for a photograph that is black everywhere and for damaged image data of JPEG (see
    decode_strictly) or PNG (checksums). Formats without redundancy, such as BMP, PPM and uncompressed TIFF, reveal
    missing data only; JPEG inside TIFF is not checked either.
    """
    return decode_image(read_bytes(path, max_pixels=max_pixels), path, max_pixels=max_pixels)


def decode_image(data: bytes, path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """:func:`read_image` of what :func:`read_bytes` returned; ``path`` is for the error messages."""
    with _explained(path):
        return photograph(next(_pictures(data, max_pixels)))


def decode_images(
    data: bytes, path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[np.ndarray]:
    """:func:`decode_image` of each photograph in a file: one or more in TIFF, the first in anything else."""
    found: list[np.ndarray] = []
    with _explained(path):
        try:
            for picture in _pictures(data, max_pixels):
                found.append(photograph(picture))
        except Refused as refused:
            raise (refused.within(f"page {len(found) + 1}") if found else refused) from None
    return found


def read_grey(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Decode a mask or probabilities: (H, W) uint8, or float32 in [0, 1] above 8 bits; the brightest channel.

    Values are scaled by the range that the file states; its colour profile is ignored. Raises FundusReadError.
    """
    return decode_grey(read_bytes(path, max_pixels=max_pixels), path, max_pixels=max_pixels)


def decode_grey(data: bytes, path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """:func:`read_grey` of what :func:`read_bytes` returned; ``path`` is for the error messages."""
    with _explained(path):
        return np.asarray(literal(next(_pictures(data, max_pixels))).max(axis=2))


@contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever decoders raise into FundusReadError."""
    try:
        yield
    except MemoryError:  # there may be enough another time
        raise
    except Refused as refused:
        raise FundusReadError(path, str(refused)) from None
    except jpeg.DamagedJpeg as error:
        raise FundusReadError(
            path, f"cannot be decoded: it is truncated or damaged ({error}); copy or export it again"
        ) from None  # users should read this one
    except Exception as error:  # decoders of damaged files raise anything: struct, zlib, index, syntax errors …
        raise FundusReadError(
            path,
            f"cannot be decoded: it is truncated or damaged, or of a kind that is not read{_words(error)}; "
            "copy or export it again",
        ) from error


def _words(error: Exception) -> str:
    """What a decoder says, in parentheses, where it is of use."""
    words = "" if isinstance(error, _OBSCURE) else str(error).strip()
    return f" ({words.splitlines()[0][:200]})" if words else ""


def read_mask(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Decode a mask: the brighter of two values, or at least half the range where there are more (JPEG).

    Returns (H, W) bool. Raises FundusReadError.
    """
    return mask_of(read_grey(path, max_pixels=max_pixels))


def mask_of(grey: np.ndarray) -> np.ndarray:
    """A mask as :func:`read_mask` says. grey: (H, W) uint8, or float in [0, 1]. Returns (H, W) bool."""
    lowest, highest = grey.min(), grey.max()
    if lowest == highest:
        return grey > 0
    if has_two_values(grey):
        return grey == highest
    return grey >= (128 if grey.dtype == np.uint8 else 0.5)


def has_two_values(grey: np.ndarray) -> bool:
    """Whether an array holds no more than two values, as masks do that are no JPEG."""
    return bool(((grey == grey.min()) | (grey == grey.max())).all())


def encode_mask(mask: np.ndarray) -> bytes:
    """Mask (H, W) bool as an 8-bit PNG of 0 and 255. Raises ValueError."""
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask must be (H, W) bool, got {mask.shape} {mask.dtype}; threshold or squeeze it first")
    # A mask is long runs of two values: several times as fast as Pillow's defaults, and smaller.
    coding = {"strategy": imagecodecs.PNG.STRATEGY.RLE, "filter": imagecodecs.PNG.FILTER.NONE}
    return bytes(imagecodecs.png_encode(mask.astype(np.uint8) * 255, **coding))


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write a mask as encode_mask gives it, complete or not at all. Raises ValueError, OSError."""
    data = encode_mask(mask)
    with replacing(path) as beside:
        beside.write_bytes(data)


def is_image(head: bytes) -> bool:
    """Whether a file that starts with these bytes (18 or more) is JPEG, PNG, TIFF, BMP, GIF or PPM."""
    return head[:4] in tiff.MAGIC or (head.startswith(_PILLOW_STARTS) and _NOT_TEXT.match(head) is not None)


def read_bytes(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    accepts: Callable[[bytes], bool] = is_image,
) -> bytes:
    """The bytes of a file or a URL, once its first ones are known to be those of an image. Raises FundusReadError.

    max_pixels: refuse files larger than images of so many pixels are. accepts: whether to read on, from 132 bytes.
    """
    if is_url(path):
        return _read_url(os.fspath(path), max_pixels, accepts)
    path = Path(path)
    if not path.exists():
        raise FundusReadError(path, "no such file; check the path")
    if not path.is_file():
        raise FundusReadError(path, "is a folder or a special file, not an image; give the path of one image file")
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(_HEAD)
            _check_head(path, head, accepts)
            _check_length(path, head, os.fstat(file.fileno()).st_size, max_pixels)
            file.seek(0)  # read again, not joined: that would be a copy of the whole file
            return file.readall()
    except OSError as error:
        raise FundusReadError(path, f"cannot be opened: {error.strerror}; check its permissions") from error


def _read_url(url: str, max_pixels: int, accepts: Callable[[bytes], bool]) -> bytes:
    try:
        found = info(url)
        if found.folder:
            raise FundusReadError(url, "is a folder or a special file, not an image; give the path of one image file")
        if found.size is None:
            limit = _BYTES_PER_PIXEL_OF_MANY * max_pixels + _BYTES_BESIDE
            data = read_unsized(url, limit + 1)
        else:
            first = found.size if found.size <= _READ_AT_ONCE else _HEAD
            data = read(url, first) if first else b""
        _check_head(url, data[:_HEAD], accepts)
        _check_length(url, data[:_HEAD], len(data) if found.size is None else found.size, max_pixels)
        if found.size is not None and len(data) < found.size:
            data = read(url, found.size)
            if len(data) < found.size:
                raise RemoteError(f"only {len(data)} of its {found.size} bytes arrived")
        return data
    except FileNotFoundError:
        raise FundusReadError(url, "no such file; check the path") from None
    except (RemoteError, UrlError) as error:
        raise FundusReadError(url, f"cannot be opened: {error}; {REMEDY}") from None  # drivers only say what this says


def _check_head(path: Path | str, head: bytes, accepts: Callable[[bytes], bool]) -> None:
    if not head:
        raise FundusReadError(path, "is empty (0 bytes); copy or download it again")
    if not accepts(head):
        raise FundusReadError(
            path, f"is not JPEG, PNG, TIFF, BMP, GIF or PPM (starts with {head[:8]!r}); convert it to one of these"
        )


def _check_length(path: Path | str, head: bytes, length: int, max_pixels: int) -> None:
    each = _BYTES_PER_PIXEL if head.startswith(_PILLOW_STARTS) else _BYTES_PER_PIXEL_OF_MANY
    limit = each * max_pixels + _BYTES_BESIDE
    if length > limit:
        raise FundusReadError(
            path,
            f"has {length / 2**20:.0f} MiB, more than the {limit / 2**20:.0f} MiB that are read with "
            f"max_pixels={max_pixels}; {RAISE_LIMIT}",
        )


def _pictures(data: bytes, max_pixels: int) -> Iterator[Picture]:
    """Choose the decoder by the first bytes."""
    if data[:4] in tiff.MAGIC:
        yield from tiff.decode(data, max_pixels)
    elif data.startswith(png.MAGIC):
        yield png.decode(data, max_pixels, _orientation(data))
    else:
        yield _by_pillow(data, max_pixels)


def opened(data: bytes) -> ImageFile.ImageFile:
    """Open anything but TIFF with Pillow, without damaged metadata; a PNG comes without its pixels."""
    plugin = next(plugin for magic, plugin in _PILLOW_MAGIC if data.startswith(magic))
    is_png, is_jpeg = data.startswith(png.MAGIC), data.startswith(_JPEG)
    try:
        return plugin(io.BytesIO(png.header(data) if is_png else data))
    except Exception:  # a photograph with damaged metadata is still a photograph
        if not (is_png or is_jpeg):
            raise
        return plugin(io.BytesIO(png.header(data, whole=False) if is_png else jpeg.without_metadata(data)))


def _orientation(data: bytes) -> int:
    """EXIF orientation 1 … 8; 1 where it is absent or unreadable."""
    try:
        with opened(data) as image:
            return int(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))  # PNG's own getexif would decode the pixels
    except Exception:  # a photograph with damaged EXIF is still a photograph
        return 1


def _by_pillow(data: bytes, max_pixels: int) -> Picture:
    """JPEG, GIF, BMP and PPM."""
    if data.startswith(_JPEG) and jpeg.START_OF_SCAN not in data:
        raise jpeg.DamagedJpeg("no image data")  # Pillow would look for them byte by byte, minutes in a large file
    with opened(data) as image:
        check_size(*image.size, max_pixels)
        values, alpha = _values(data, image)
        return Picture(values, None, alpha, image.info.get("icc_profile"), _orientation(data))


def _values(data: bytes, image: ImageFile.ImageFile) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, C) integers, and the alpha where it hides something."""
    if image.format == "PPM" and image.mode == "RGB" and (deep := _deep_ppm(data, image)) is not None:
        return deep, None
    if image.mode.startswith(("I", "F")):
        return np.asarray(image).astype(np.uint16)[..., None], None
    if image.format == "JPEG" and (pixels := jpeg.decode_strictly(data)) is not None and image.mode in ("L", "RGB"):
        return pixels[..., : len(image.mode)], None
    if image.mode in ("L", "RGB", "CMYK") and "transparency" not in image.info:
        values = np.asarray(image)
        return values.reshape(*values.shape[:2], -1), None
    pixels = np.asarray(image.convert("RGBA"))
    # 32-bit BMP often has an alpha that nobody filled in.
    return pixels[..., :3], None if image.format == "BMP" and not pixels[..., 3].any() else pixels[..., 3:]


def _deep_ppm(data: bytes, image: ImageFile.ImageFile) -> np.ndarray | None:
    """Binary 16-bit colour (H, W, 3) uint16, which Pillow would cut to 8 bits; None for any other PPM."""
    codec, _, offset, args = image.tile[0]
    if codec != "ppm" or not isinstance(args, tuple) or args[1] <= 255:
        return None
    width, height = image.size
    values = np.frombuffer(data, ">u2", width * height * 3, offset).reshape(height, width, 3)
    return np.rint(values * (65535 / args[1])).clip(0, 65535).astype(np.uint16)
