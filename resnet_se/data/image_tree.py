"""Image trees: the layouts of their folders, the files allowed in them, decoding.

Three layouts are read, alone or under one common folder:

    train/<class>/* and test/<class>/*   (or val, valid, validation for test)
    train/<class>/*                      a test part is cut from it
    <class>/*                            the same
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_se.data.decode import (
    DecodedImage,
    DecodeError,
    TooManyPixels,
    decode,
    decoding_threads,
    pil_limit_lifted,
)
from resnet_se.data.reading import Limits, first_few, progress, root_error, source_error
from resnet_se.utils.errors import nearest

TESTS = ("test", "val", "valid", "validation")
CHUNK = 256  # images that a thread decodes at once


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


# --- layouts -----------------------------------------------------


class Layout(NamedTuple):
    """Folders that hold the class folders; each name ends in a slash or is empty."""

    top: str  # the common folder, "pets/"
    splits: tuple[str, ...]  # below it: train/ and test/; train/; or the top itself


def find_layout(folders: Callable[[str], set[str]]) -> Layout:
    """Return the layout of a tree; `folders(at)` are the names of those below `at`."""
    names, top = folders(""), ""
    if len(names) == 1 and not names & {"train", *TESTS}:
        top = f"{names.pop()}/"
        names = folders(top)
    tests = [f"{name}/" for name in TESTS if name in names][:1]
    train = "train/" if tests or "train" in names else ""
    return Layout(top, (train, *tests))


def tree_files(folder: Path, root: Path, limits: Limits) -> dict[str, Path | None]:
    """Return {"train/cat/": None, "train/cat/1.png": its path, …}.

    Args:
        folder: of the tree, with the common folder; links are followed.
        root: its name in messages.

    Raises:
        UserError: naming a file that is empty or not a regular one, a circle of links,
            more bytes than allowed, a folder that cannot be read.
    """
    files: dict[str, Path | None] = {}
    unfit: list[str] = []
    size = 0
    try:
        layout = _layout_of(folder)
        for split in layout.splits:
            below = folder / layout.top / split
            if not below.is_dir():
                continue  # `class_files` misses it
            for name, path, status in _walk(below, split):
                if name.endswith("/"):
                    files[name] = None
                elif "/" in name[len(split) :]:  # not beside the classes
                    files[name] = path
                    if reason := _unfit(status):
                        unfit.append(f"{name} ({reason})")
                    size += status.st_size if status else 0
                    limits.check_bytes(f"files in {root}", size)
    except OSError as error:
        raise root_error("a folder that can be read", f"{root} ({error})") from error
    if unfit:
        raise root_error(f"image files in {root}", first_few(sorted(unfit)))
    return files


def class_files(
    folder: Path, root: Path, files: dict[str, Path | None], test_fraction: float | None
) -> tuple[Layout, list[dict[str, list[str]]]]:
    """Return the layout and {class: names} of the training and any test part.

    Args:
        folder, root, files: of `tree_files`.
        test_fraction: of each class, to be cut off where there is no test part; None:
            there must be one.

    Raises:
        UserError: the parts do not have the same 2 or more classes, or one is empty.
    """
    layout = _layout_of(folder)
    parts: list[dict[str, list[str]]] = []
    for split in layout.splits:
        classes: dict[str, list[str]] = {}
        for name in sorted(files):
            if name.startswith(split):
                group = classes.setdefault(name[len(split) :].split("/")[0], [])
                group += [name] * (not name.endswith("/"))
        parts.append(dict(sorted(classes.items())))
    beside = first_few(sorted(e.name for e in _visible(folder / layout.top)), 10)
    for split, classes in zip(layout.splits, parts, strict=True):
        if not classes:
            expected = f"{split or 'train/'}<class>/ folders in {root}"
            raise root_error(expected, f"only {beside or 'nothing'}")
        for name, images in classes.items():
            if not name.isprintable():
                raise root_error("class folders of printable names", ascii(name))
            if not images:
                raise root_error(f"images in {root}", f"{split}{name} empty")
    if len(layout.splits) == 1 and test_fraction is None:
        raise root_error(f"test/<class>/ folders in {root}", f"only {beside}")
    _check_classes(layout, parts, root)
    cut = test_fraction if test_fraction and len(layout.splits) == 1 else 0.0
    _check_counts(layout.splits[0], parts[0], root, cut)
    return layout, parts


def _layout_of(folder: Path) -> Layout:
    return find_layout(lambda at: {e.name for e in _visible(folder / at) if e.is_dir()})


def _check_classes(
    layout: Layout, parts: list[dict[str, list[str]]], root: Path
) -> None:
    folders = list(zip(layout.splits, parts, strict=True))
    for (split, classes), (other, names) in zip(folders, folders[::-1], strict=True):
        for name in classes:
            if name not in names:
                expected = f"{split}{name}/ to be in {other} as well in {root}"
                hint = nearest(name, names)
                raise root_error(expected, f"no {other}{name}", hint)
    if len(parts[0]) < 2:
        raise root_error(f"2 or more classes in {root}", first_few(parts[0]))


def _check_counts(
    split: str, classes: dict[str, list[str]], root: Path, cut: float
) -> None:
    for name, images in classes.items():
        n = len(images)
        if n - (max(1, round(n * cut)) if cut else 0) < 2:
            expected = "2 or more images of each class to train and validate on"
            if cut:
                expected += f", once {cut:g} are cut off (data.source.test_fraction),"
            raise root_error(f"{expected} in {root}", f"{n} in {split}{name}")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not is_hidden(entry.name)]


def _walk(
    folder: Path, prefix: str
) -> Iterator[tuple[str, Path, os.stat_result | None]]:
    """Yield name, path and status of all below; a folder's name ends in a slash."""
    waiting: list[tuple[str, Path, tuple[str, ...]]] = [(prefix, folder, ())]
    while waiting:
        prefix, folder, above = waiting.pop()
        real = os.path.realpath(folder)
        if real in above:
            raise root_error("links without a circle", f"{folder}, a link to {real}")
        for entry in _visible(folder):
            path = folder / entry.name
            try:
                status = entry.stat()
            except OSError:  # dangling, or a link to itself
                status = None
            name = f"{prefix}{entry.name}"
            if status and stat.S_ISDIR(status.st_mode):
                name += "/"
                waiting.append((name, path, (*above, real)))
            yield name, path, status


def _unfit(status: os.stat_result | None) -> str:
    """Return the reason that this can be no image; "" if it can."""
    if status is None:
        return "a link to nothing"
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        return "" if status.st_size else "empty"
    return {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}.get(kind, "a device")


# --- decoding ----------------------------------------------------


def decode_files(
    names: list[str], paths: list[Path], root: Path, size: int | None, limits: Limits
) -> tuple[np.ndarray, list[str]]:
    """Return RGB images, uint8 (N, 3, H, W), and the formats of their files.

    Args:
        names: of the files in messages.
        root: folder or archive that they come from, for messages.
        size: resizes to size×size; None: all must be of one size.

    Raises:
        UserError: naming the files that are broken, of another size, or too large.
    """
    with pil_limit_lifted():
        first, original = _first_readable(names, paths, limits)
        shape = (3, size, size) if size else original
        size_hint = "data.source.size makes them smaller"
        described = f"{len(names):,} images of {shape} ({size_hint})"
        limits.check_bytes(described, len(names) * math.prod(shape))
        images = np.empty((len(names), *shape), np.uint8)  # (N, 3, H, W)
        formats: set[str] = set()
        broken: dict[int, str] = {}
        odd: dict[int, str] = {}

        def decode_from(begin: int) -> None:
            for i in range(begin, min(begin + CHUNK, len(names))):
                try:
                    image = _decode(names[i], paths[i], size, limits)
                except DecodeError as error:
                    broken[i] = f"{names[i]} ({error})"
                    continue
                if image.pixels.shape == shape:
                    images[i] = image.pixels
                    formats.add(image.format)
                else:
                    odd[i] = f"{names[i]} with {image.pixels.shape}"

        bar = progress(f"decoding {len(names):,} images", len(names))
        threads = decoding_threads(math.prod(original[1:]))
        with ThreadPoolExecutor(threads) as pool, bar as advance:
            for _ in pool.map(decode_from, range(0, len(names), CHUNK)):
                advance(CHUNK)
    if broken:
        expected = f"images that PIL reads as 8-bit RGB in {root}"
        raise root_error(expected, first_few(broken[i] for i in sorted(broken)))
    if odd:
        expected = f"images of {shape} as {first} in {root}"
        got = first_few(odd[i] for i in sorted(odd))
        raise source_error("size", expected, got, "set it to resize them")
    return images, sorted(formats)


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
