"""Fundus photographs and masks from and to files: what the content says, not what the suffix says."""

import io
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, PpmImagePlugin

from ..files import replacing
from .jpeg import START_OF_SCAN, DamagedJpeg, decode_strictly
from .remote import REMEDY, RemoteError, UrlError, info, is_url, read, read_unsized

DEFAULT_MAX_PIXELS = 150_000_000
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
RAISE_LIMIT = "if you trust the file, raise max_pixels (--max-pixels on the command line)"

_ORIENTATION_TAG = 0x0112
_TIFF_COLOURS = tuple(
    tifffile.PHOTOMETRIC[name] for name in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "MASK", "SEPARATED")
)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# The plugin classes are opened directly: Image.open() has one pixel limit for the whole process.
_PILLOW_MAGIC: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    *((b"P%d" % kind, PpmImagePlugin.PpmImageFile) for kind in range(1, 7)),
)
_PILLOW_STARTS = tuple(magic for magic, _ in _PILLOW_MAGIC)
# Tables begin with "BMI" and "P1" as well: of BMP the size of the second header counts too, of PPM what follows.
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


class _Refused(Exception):
    """Why a file that is whole is not read."""


def read_image(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Decode a photograph, upright (EXIF orientation applied), transparency on black, the first of several frames.

    max_pixels: refuse images with more pixels than this, before decoding them.
    Returns (H, W, 3) uint8, or float32 in [0, 1] where the file has more than 8 bits per channel.
    Raises FundusReadError, also where image data of JPEG (see decode_strictly) or PNG (checksums) are damaged. Formats
    without redundancy, such as BMP, PPM and uncompressed TIFF, give away no more than that something is missing; JPEG
    inside TIFF is not checked either.
    """
    return decode_image(read_bytes(path, max_pixels=max_pixels), path, max_pixels=max_pixels)


def decode_image(data: bytes, path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """:func:`read_image` of what :func:`read_bytes` returned; ``path`` is for the error messages."""
    try:
        pixels = _decode_tiff(data, path, max_pixels) if data[:4] in _TIFF_MAGIC else _decode(data, path, max_pixels)
    except (FundusReadError, MemoryError):  # memory may suffice another time
        raise
    except _Refused as refused:
        raise FundusReadError(path, str(refused)) from None
    except DamagedJpeg as error:
        raise FundusReadError(
            path, f"cannot be decoded: it is truncated or damaged ({error}); copy or export it again"
        ) from None  # users should read this one
    except Exception as error:  # decoders of damaged files raise anything: struct, zlib, index, syntax errors …
        raise FundusReadError(
            path,
            f"cannot be decoded: it is truncated or damaged, or of a kind that is not read{_words(error)}; "
            "copy or export it again",
        ) from error
    return np.ascontiguousarray(pixels)


def _words(error: Exception) -> str:
    """What a decoder says, in parentheses, where it is of use."""
    words = "" if isinstance(error, _OBSCURE) else str(error).strip()
    return f" ({words.splitlines()[0][:200]})" if words else ""


def read_mask(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Decode a mask: the brighter of two values, or at least half the range where there are more (JPEG).

    Returns (H, W) bool. Raises FundusReadError.
    """
    return mask_of(read_image(path, max_pixels=max_pixels).max(axis=2))


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
    return head[:4] in _TIFF_MAGIC or (head.startswith(_PILLOW_STARTS) and _NOT_TEXT.match(head) is not None)


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


def _check_size(path: str | os.PathLike[str], width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise FundusReadError(path, f"has {width} x {height} pixels, more than max_pixels={max_pixels}; {RAISE_LIMIT}")


def _decode(data: bytes, path: str | os.PathLike[str], max_pixels: int) -> np.ndarray:
    """Anything but TIFF: (H, W, 3) uint8 or float32."""
    plugin = next(plugin for magic, plugin in _PILLOW_MAGIC if data.startswith(magic))
    if plugin is JpegImagePlugin.JpegImageFile and START_OF_SCAN not in data:
        raise DamagedJpeg("no image data")  # Pillow would look for them byte by byte, minutes in a large file
    if plugin is PngImagePlugin.PngImageFile:
        with plugin(io.BytesIO(data), str(path)) as image:
            _check_size(path, *image.size, max_pixels)
            image.verify()  # the checksums, which decoding ignores: flipped bits would become pixels
    with plugin(io.BytesIO(data), str(path)) as image:
        _check_size(path, *image.size, max_pixels)
        orientation = _orientation(image)
        if image.format == "PNG" and data[24] == 16:  # Pillow would drop the lower 8 bits of colour
            pixels = _to_rgb(_unit(imagecodecs.png_decode(data)))
        elif image.format == "PPM" and image.mode == "RGB" and (deep := _deep_ppm(data, image)) is not None:
            pixels = deep
        elif image.mode.startswith(("I", "F")):
            pixels = _to_rgb(_unit(np.asarray(image).astype(np.uint16)))
        elif image.format == "JPEG" and (strict := _strict_jpeg(data, image)) is not None:
            pixels = strict
        else:
            pixels = _pillow_rgb(image)
    return _upright(pixels, orientation)


def _deep_ppm(data: bytes, image: ImageFile.ImageFile) -> np.ndarray | None:
    """Binary 16-bit colour (H, W, 3) float32, which Pillow would cut to 8 bits; None for any other PPM."""
    codec, _, offset, args = image.tile[0]
    if codec != "ppm" or not isinstance(args, tuple) or args[1] <= 255:
        return None
    width, height = image.size
    values = np.frombuffer(data, ">u2", width * height * 3, offset).reshape(height, width, 3)
    return (values / np.float32(args[1])).clip(0, 1).astype(np.float32)


def _strict_jpeg(data: bytes, image: ImageFile.ImageFile) -> np.ndarray | None:
    """(H, W, 3) uint8; None where Pillow has to decode. Raises DamagedJpeg."""
    pixels = decode_strictly(data)
    return pixels if image.mode in ("L", "RGB") else None  # of CMYK, Pillow's colours


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8; 1 where it is absent or unreadable."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a photograph with damaged EXIF is still a photograph
        return 1


def _pillow_rgb(image: Image.Image) -> np.ndarray:
    """Any 8-bit Pillow mode as (H, W, 3) uint8, transparent parts black."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _to_rgb(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (EXIF 2.3, tag 0x0112) on (H, W, 3)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _unit(pixels: np.ndarray) -> np.ndarray:
    """Integers of any width or floats -> float32 in [0, 1]. Raises _Refused for floats outside [0, 1]."""
    if pixels.dtype.kind in "iu":
        return (pixels.clip(0) / np.float32(np.iinfo(pixels.dtype).max)).astype(np.float32)
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # also false for NaN
        raise _Refused(
            f"has floating-point values of {pixels.min():g} to {pixels.max():g}, which must be in [0, 1]; "
            "save it with 8 or 16 bits"
        )
    return pixels.astype(np.float32)


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W), or (H, W, 1 … 4) grey, grey + alpha, RGB, RGB + alpha -> (H, W, 3), transparent parts black."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    colour = pixels[..., : 3 if channels >= 3 else 1]
    if channels in (2, 4) and not (pixels[..., -1:] == _top(pixels)).all():
        blend = colour.astype(np.float32) * (pixels[..., -1:] / np.float32(_top(pixels)))
        colour = (np.rint(blend) if pixels.dtype == np.uint8 else blend).astype(pixels.dtype)
    return np.broadcast_to(colour, (*pixels.shape[:2], 3))


def _top(pixels: np.ndarray) -> int:
    return 255 if pixels.dtype == np.uint8 else 1


def _decode_tiff(data: bytes, path: str | os.PathLike[str], max_pixels: int) -> np.ndarray:
    """The first page of a TIFF: (H, W, 3) uint8 or float32."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        _check_size(path, page.imagewidth, page.imagelength, max_pixels)
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = _tiff_colour(pixels, page)
        orientation = page.tags.get("Orientation")
    return _upright(pixels, int(orientation.value) if orientation else 1)


def _tiff_colour(pixels: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """Apply a TIFF's palette, ink or inversion: (H, W, 3) uint8 or float32."""
    coded = page.compression in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)  # comes back as RGB
    if page.photometric not in _TIFF_COLOURS and not (coded and page.photometric == tifffile.PHOTOMETRIC.YCBCR):
        raise _Refused(f"has a TIFF colour space that is not read ({page.photometric!s}); save it as RGB")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        return (np.asarray(page.colormap) >> 8).astype(np.uint8).T[pixels]
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype != np.uint8:
        pixels = _unit(pixels)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = _top(pixels) - pixels
    if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        ink = 1 - pixels[..., :4] / np.float32(_top(pixels))
        light = ink[..., :3] * ink[..., 3:]
        return np.rint(light * 255).astype(np.uint8) if pixels.dtype == np.uint8 else light
    return _to_rgb(pixels)
