"""Image files: decoded in threads into one array, the broken ones named."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_se.data.decode import (
    SMALL,
    DecodedImage,
    DecodeError,
    TooManyPixels,
    decode,
    decoding_threads,
    looks_whole,
    pil_limit_lifted,
)
from resnet_se.data.reading import (
    Limits,
    all_named,
    first_few,
    progress,
    root_error,
    source_error,
)

CHUNK = 256  # images that a thread decodes at once


class DecodedFiles(NamedTuple):
    """Images of files, in their order."""

    images: np.ndarray  # uint8 (N, 3, H, W)
    formats: list[str]
    broken: dict[int, str]  # {place among the files: name and reason}, left out


def decode_files(
    names: list[str],
    paths: list[Path],
    root: Path,
    size: int | None,
    limits: Limits,
    skip_broken: bool = False,
) -> DecodedFiles:
    """Return the RGB images of files.

    Args:
        names: of the files in messages.
        root: folder or archive that they come from, for messages.
        size: resizes to size×size; None: all must be of one size.
        skip_broken: leave out files that cannot be decoded.

    Raises:
        UserError: naming the files that are broken, of another size, or too large; on
            stderr all of them, where they are many.
    """
    with pil_limit_lifted():
        first, original = _first_readable(names, paths, limits)
        shape = (3, size, size) if size else original
        size_hint = "data.source.size makes them smaller"
        described = f"{len(names):,} images of {shape} ({size_hint})"
        limits.check_bytes(described, len(names) * math.prod(shape))
        broken: dict[int, str] = {}
        odd: dict[int, str] = {}
        formats: set[str] = set()
        threads = decoding_threads(math.prod(original[1:]))

        def run(description: str, act: Callable[[int], str]) -> None:
            def several(begin: int) -> None:
                for i in range(begin, min(begin + CHUNK, len(names))):
                    if reason := act(i):
                        broken[i] = f"{names[i]} ({reason})"

            bar = progress(description, len(names))
            with ThreadPoolExecutor(threads) as pool, bar as advance:
                for _ in pool.map(several, range(0, len(names), CHUNK)):
                    advance(CHUNK)
            if broken and not (skip_broken and len(broken) < len(names)):
                expected = f"images that PIL reads as 8-bit RGB in {root}"
                got = all_named(broken[i] for i in sorted(broken))
                hint = "data.source.skip_broken=true leaves them out"
                raise root_error(expected, got, hint)

        def check(i: int) -> str:
            return "" if looks_whole(paths[i]) else reason_of(i)

        def reason_of(i: int) -> str:
            try:
                _decode(names[i], paths[i], size, limits)
            except DecodeError as error:
                return str(error)
            return ""

        if math.prod(original[1:]) > SMALL:  # decoding takes long: a look at each first
            run(f"checking {len(names):,} images", check)
        images = np.empty((len(names), *shape), np.uint8)  # (N, 3, H, W)

        def decode_one(i: int) -> str:
            try:
                image = _decode(names[i], paths[i], size, limits)
            except DecodeError as error:
                return str(error)
            if image.pixels.shape == shape:
                images[i] = image.pixels
                formats.add(image.format)
            else:
                odd[i] = f"{names[i]} with {image.pixels.shape}"
            return ""

        run(f"decoding {len(names):,} images", decode_one)
    if odd:
        expected = f"images of {shape} as {first} in {root}"
        got = first_few(odd[i] for i in sorted(odd))
        raise source_error("size", expected, got, "set it to resize them")
    if broken:
        images = np.delete(images, list(broken), axis=0)
    return DecodedFiles(images, sorted(formats), broken)


def _first_readable(
    names: list[str], paths: list[Path], limits: Limits
) -> tuple[str, tuple[int, ...]]:
    """Return name and shape (3, H, W) of the first image that can be read."""
    for name, path in zip(names, paths, strict=True):
        with suppress(DecodeError):
            return name, _decode(name, path, None, limits).pixels.shape
    return "", (3, 1, 1)  # all are broken, which `decode_files` reports


def _decode(name: str, path: Path, size: int | None, limits: Limits) -> DecodedImage:
    try:
        return decode(path, (size, size) if size else None, limits.megapixels)
    except TooManyPixels as error:
        limits.check_pixels(name, error.pixels)
        raise
