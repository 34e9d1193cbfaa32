"""Decoding: the one place where an image file becomes uint8 pixels.

For training, `predict` and archives alike: the first frame, upright, on white where it
is transparent, 8-bit RGB; an image with too many pixels is refused by its header.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from resnet_se.utils.system import usable_cores

# Those that PIL decodes by itself: it hands EPS to a program, for one.
FORMATS = (
    *("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"),
    "HEIF",  # with the extra `heif`
)
HEIC = (".heic", ".heif", ".hif")
NO_HEIC = "HEIC, which needs pillow-heif: uv sync --extra heif, or convert it to JPEG"
# In the last bytes of a file that is whole; others may be so, and are decoded to see.
ENDS, TAIL = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}, 4096
ORIENTATION = 0x0112  # in a photograph's EXIF; 1 is upright
MEGAPIXELS = 64.0  # an image that claims more is taken for a decompression bomb
# Pixels; below it threads only queue for Python's lock (measured: half the speed at
# 32×32 on 4 cores), above it PIL decodes outside of the lock.
SMALL = 128 * 128

Size = tuple[int, int]  # height, width


class DecodedImage(NamedTuple):
    """An image's pixels, and the format of its file."""

    pixels: np.ndarray  # uint8 (3, H, W)
    format: str


class DecodeError(ValueError):
    """An image that cannot be read, in one line that says why."""


class TooManyPixels(DecodeError):
    """An image that is larger than allowed; `pixels` is inf where PIL refused it."""

    def __init__(self, megapixels: float, pixels: float):
        super().__init__(f"more than {megapixels:g} megapixels")
        self.pixels = pixels


@cache
def formats() -> list[str]:
    """Return those of `FORMATS` that this PIL was built with."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def suffixes() -> frozenset[str]:
    """Return the endings of files in one of `formats`: `.jpg`, `.png`, …"""
    known = formats()  # which registers them
    registered = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in registered if name in known)


@cache
def decoder() -> str:
    """Return the names and versions of what makes pixels of a JPEG here."""
    turbo = features.check_feature("libjpeg_turbo")
    version = features.version("libjpeg_turbo") if turbo else features.version("jpg")
    return f"Pillow {PIL.__version__}, libjpeg{'-turbo' * bool(turbo)} {version}"


def decoders_differ(then: str | None) -> str:
    """Return the end of a sentence on other pixels: the decoder then, and now."""
    if then == decoder():
        return ""
    return f"; decoded then by {then or 'a decoder not recorded'}, now by {decoder()}"


def decode(
    path: Path | bytes, size: Size | None = None, megapixels: float = MEGAPIXELS
) -> DecodedImage:
    """Return the image of a file, or of its bytes.

    Args:
        size: resizes to this height and width (bilinear, with antialiasing).
        megapixels: most that it may have.

    Raises:
        DecodeError: it cannot be read; TooManyPixels: it has more than that.
    """
    try:
        file = io.BytesIO(path) if isinstance(path, bytes) else path
        with Image.open(file, formats=formats()) as image:
            pixels = float(image.width * image.height)
            if pixels <= megapixels * 1e6:
                return DecodedImage(to_pixels(image, size), str(image.format))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = math.inf
    except Exception as error:  # PIL raises many kinds for damaged files
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(path, Path):
            reason = reason.replace(f" {str(path)!r}", "")
            if path.suffix.lower() in HEIC and "HEIF" not in formats():
                reason = NO_HEIC
        elif isinstance(error, UnidentifiedImageError):
            reason = "cannot identify image file"
        reason = reason or type(error).__name__
        raise DecodeError(reason.splitlines()[0]) from None
    raise TooManyPixels(megapixels, pixels)


def to_pixels(image: Image.Image, size: Size | None = None) -> np.ndarray:
    """Return uint8 (3, H, W) of an image of any mode, resized as by `decode`.

    Raises:
        ValueError: as `to_rgb`.
    """
    image = to_rgb(image)
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)  # (3, H, W)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image upright, on white where it is transparent, in 8-bit RGB.

    Raises:
        ValueError: pixels whose range is not known (floats).
    """
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey of 16 bits; of 32, PIL keeps 16 in them
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def decoding_threads(pixels: int) -> int:
    """Return the number of threads that pay for images of this many pixels."""
    return min(8, usable_cores()) if pixels > SMALL else 1


def looks_whole(path: Path) -> bool:
    """Return True where an image file has its header and its end; decodes nothing."""
    try:
        with Image.open(path, formats=formats()) as image:
            end = ENDS.get(str(image.format), b"")
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return end in file.read()
    except Exception:  # `decode` says why
        return False


def pixels_of(path: Path) -> int:
    """Return the number of an image's pixels, by its header; 0 if it is broken."""
    try:
        with Image.open(path, formats=formats()) as image:
            return image.width * image.height
    except Exception:  # `decode` says why
        return 0


@contextmanager
def pil_limit_lifted() -> Iterator[None]:
    """Switch off PIL's own limit of pixels meanwhile, so that ours decides."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
