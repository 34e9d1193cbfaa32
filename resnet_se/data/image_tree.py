"""Image trees: the layouts of their folders, what may lie in them, decoding.

Understood are, alone or under one common folder,

    train/<class>/* and test/<class>/*   (or val, valid, validation for test)
    train/<class>/*                      a test part is cut from it
    <class>/*                            the same
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from resnet_se.data.decode import formats, to_pixels
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.system import usable_cores

TESTS = ("test", "val", "valid", "validation")


class Limits(NamedTuple):
    """What a folder, an archive or an image may not exceed."""

    gb: float = 8.0
    megapixels: float = 64.0

    def check_bytes(self, what: str, size: int) -> None:
        if size > self.gb * 1e9:
            got = f"{size / 1e9:,.1f} GB"
            raise _too_much("max_gb", f"{what} of at most {self.gb:g} GB", got)

    def check_pixels(self, name: str, pixels: int) -> None:
        if pixels > self.megapixels * 1e6:
            expected = f"images of at most {self.megapixels:g} megapixels"
            got = f"{name} with {pixels / 1e6:,.1f}"
            raise _too_much("max_megapixels", expected, got)


def _too_much(option: str, expected: str, got: str) -> UserError:
    hint = f"data=image_folder data.source.{option}=… allows more"
    return wrong(option, expected, got, hint)


def wrong(argument: str, expected: str, got: object, hint: str = "") -> UserError:
    """A UserError on `data.source.<argument>`."""
    end = f"; {hint}" if hint else ""
    return UserError(f"data.source.{argument}: expected {expected}, got {got}{end}")


def several(items: Iterable[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


# --- layouts -----------------------------------------------------


class Layout(NamedTuple):
    """Below which folders the classes lie; each name ends in a slash or is empty."""

    top: str  # the common folder, "pets/"
    splits: tuple[str, ...]  # below it: train/ and test/; train/; or the top itself


def find_layout(folders: Callable[[str], set[str]]) -> Layout:
    """The layout where `folders(at)` are the names of the folders below `at`."""
    names, top = folders(""), ""
    if len(names) == 1 and not names & {"train", *TESTS}:
        top = f"{names.pop()}/"
        names = folders(top)
    tests = [f"{name}/" for name in TESTS if name in names][:1]
    train = "train/" if tests or "train" in names else ""
    return Layout(top, (train, *tests))


def tree_files(folder: Path, root: Path, limits: Limits) -> dict[str, Path | None]:
    """{"train/cat/": None, "train/cat/1.png": its path, …} below the common folder.

    Args:
        folder: where the tree lies; links are followed.
        root: what messages call it.

    Raises:
        UserError: naming what is no regular file or empty, a circle of links, more
            bytes than allowed, a folder that cannot be read.
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
                is_folder = name.endswith("/")
                if not is_folder and "/" not in name[len(split) :]:
                    continue  # beside the classes
                files[name] = None if is_folder else path
                why = "" if is_folder else _unfit(status)
                if why:
                    unfit.append(f"{name} ({why})")
                elif status and not is_folder:
                    size += status.st_size
                    limits.check_bytes(f"files in {root}", size)
    except OSError as error:
        raise wrong("root", "a folder that can be read", f"{root} ({error})") from error
    if unfit:
        raise wrong("root", f"image files in {root}", several(sorted(unfit)))
    return files


def class_files(
    folder: Path, root: Path, files: dict[str, Path | None], test_fraction: float | None
) -> tuple[Layout, list[dict[str, list[str]]]]:
    """Of the training part, and of the test part where there is one, {class: names}.

    Args:
        folder, root, files: as of `tree_files`.
        test_fraction: of a class that will be cut where there is no test part; None: it
            must be there.

    Raises:
        UserError: unless the splits have the same 2 or more classes, none empty.
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
    beside = several(sorted(e.name for e in _visible(folder / layout.top)), 10)
    for split, classes in zip(layout.splits, parts, strict=True):
        if not classes:
            expected = f"{split or 'train/'}<class>/ folders in {root}"
            raise wrong("root", expected, f"only {beside or 'nothing'}")
        for name, images in classes.items():
            if not name.isprintable():
                raise wrong("root", "class folders of printable names", ascii(name))
            if not images:
                raise wrong("root", f"images in {root}", f"{split}{name} empty")
    if len(layout.splits) == 1 and test_fraction is None:
        raise wrong("root", f"test/<class>/ folders in {root}", f"only {beside}")
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
    for (one, classes), (other, theirs) in zip(folders, folders[::-1], strict=True):
        for name in classes:
            if name not in theirs:
                expected = f"{one}{name}/ to be in {other} as well in {root}"
                hint = nearest(name, theirs)
                raise wrong("root", expected, f"no {other}{name}", hint)
    if len(parts[0]) < 2:
        raise wrong("root", f"2 or more classes in {root}", several(parts[0]))


def _check_counts(
    split: str, classes: dict[str, list[str]], root: Path, cut: float
) -> None:
    for name, images in classes.items():
        n = len(images)
        if n - (max(1, round(n * cut)) if cut else 0) < 2:
            expected = "2 or more images of each class to train and validate on"
            if cut:
                expected += f", once {cut:g} are cut off (data.source.test_fraction),"
            raise wrong("root", f"{expected} in {root}", f"{n} in {split}{name}")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not hidden(entry.name)]


def _walk(
    folder: Path, prefix: str
) -> Iterator[tuple[str, Path, os.stat_result | None]]:
    """Name, path and status of all below; a folder's name ends in a slash."""
    waiting: list[tuple[str, Path, tuple[str, ...]]] = [(prefix, folder, ())]
    while waiting:
        prefix, folder, above = waiting.pop()
        real = os.path.realpath(folder)
        if real in above:
            raise wrong("root", "links without a circle", f"{folder}, a link to {real}")
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
    """Why this can be no image; "" if it can."""
    if status is None:
        return "a link to nothing"
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        return "" if status.st_size else "empty"
    return {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}.get(kind, "a device")


# --- decoding ----------------------------------------------------


def decode(
    names: list[str], files: list[Path], root: Path, size: int | None, limits: Limits
) -> tuple[np.ndarray, list[str]]:
    """uint8 RGB images (N, 3, H, W), resized to size×size if given; their formats.

    Raises:
        UserError: naming the files which are broken, of another size, or too large.
    """
    with _own_limit():
        # The first that can be read says the size; if none can, the loop below says so.
        first, original = "", (3, 1, 1)
        for first, file in zip(names, files, strict=True):
            decoded = _decode(first, file, None, limits)
            if not isinstance(decoded, str):
                original = decoded[0].shape
                break
        shape = (3, size, size) if size else original
        what = f"{len(names):,} images of {shape} (data.source.size makes them smaller)"
        limits.check_bytes(what, len(names) * int(np.prod(shape)))
        images = np.empty((len(names), *shape), np.uint8)  # (N, 3, H, W)

        def decode_from(begin: int) -> tuple[set[str], list[str], list[str]]:
            kinds, broken, odd = set(), [], []
            for i in range(begin, min(begin + 256, len(names))):
                decoded = _decode(names[i], files[i], size, limits)
                if isinstance(decoded, str):
                    broken.append(f"{names[i]} ({decoded})")
                elif decoded[0].shape != shape:
                    odd.append(f"{names[i]} with {decoded[0].shape}")
                else:
                    images[i], kind = decoded
                    kinds.add(kind)
            return kinds, broken, odd

        # Below about 128×128 threads would only queue for Python's lock (measured: half
        # the speed at 32×32 on 4 cores); above it PIL decodes outside of the lock.
        threads = min(8, usable_cores()) if np.prod(original) > 3 * 128**2 else 1
        bar = progress(f"decoding {len(names):,} images", len(names))
        formats, broken, odd = set(), [], []
        with ThreadPoolExecutor(threads) as pool, bar as advance:
            for of_some in pool.map(decode_from, range(0, len(names), 256)):
                formats |= of_some[0]
                broken += of_some[1]
                odd += of_some[2]
                advance(256)
    if broken:
        expected = f"images that PIL reads as 8-bit RGB in {root}"
        raise wrong("root", expected, several(broken))
    if odd:
        expected = f"images of {shape} as {first} in {root}"
        raise wrong("size", expected, several(odd), "set it to resize them")
    return images, sorted(formats)


def _decode(
    name: str, path: Path, size: int | None, limits: Limits
) -> tuple[np.ndarray, str] | str:
    """A uint8 RGB image (3, H, W) and the format it was kept in, or why it is none."""
    try:
        with Image.open(path, formats=formats()) as file:
            limits.check_pixels(name, file.width * file.height)
            # (3, H, W)
            return to_pixels(file, size and (size, size)), str(file.format)
    except UserError:
        raise
    except Exception as error:  # PIL raises many kinds for damaged files
        return str(error).replace(str(path), path.name) or type(error).__name__


@contextmanager
def _own_limit() -> Iterator[None]:
    """PIL's own limit of pixels, for the process, does not come before ours."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else one line, on stderr; yields `advance(steps)`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{what} …", file=sys.stderr, flush=True)
        yield lambda steps: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)
