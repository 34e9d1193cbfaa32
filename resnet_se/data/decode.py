"""What PIL reads becomes what a network sees, in training and in `predict` alike.

The first frame, upright, on white where it is transparent, 8-bit RGB.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageOps

# Those that PIL decodes by itself: it hands EPS to a program, for one.
FORMATS = (
    *("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"),
)
ORIENTATION = 0x0112  # in a photograph's EXIF; 1 is upright

Size = tuple[int, int]  # height, width


@cache
def formats() -> list[str]:
    """Those of `FORMATS` that this PIL was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, on white where it is transparent, 8-bit RGB.

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


def to_pixels(image: Image.Image, size: Size | None = None) -> np.ndarray:
    """uint8 (3, H, W) of an image of any mode, resized (with antialiasing) if told."""
    image = to_rgb(image)
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)  # (3, H, W)
