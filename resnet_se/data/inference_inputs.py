"""Pictures for a trained network: files, folders, globs and archives → batches."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_se.data.archives import is_archive, unpacked
from resnet_se.data.decode import (
    HEIC,
    DecodeError,
    Size,
    decode,
    decoding_threads,
    formats,
    pixels_of,
    suffixes,
)
from resnet_se.data.image_tree import is_hidden
from resnet_se.data.reading import Limits
from resnet_se.utils.errors import UserError


class Picture(NamedTuple):
    """A file, and its name in messages and tables."""

    name: str
    path: Path

    @property
    def folder(self) -> str:
        """Name of the folder it lies in: its class, where folders are classes."""
        return os.path.basename(os.path.dirname(self.name))


class PictureBatch(NamedTuple):
    """Pictures that could be read, and those that could not."""

    pictures: list[Picture]  # B of them
    pixels: np.ndarray  # uint8 (B, 3, H, W)
    broken: dict[str, str]  # {name: reason}


# --- files -------------------------------------------------------


class Pictures:
    """Picture files of some paths; an iteration lists them anew and stores none."""

    def __init__(self, roots: Sequence[Picture]):
        self.roots = roots

    def __iter__(self) -> Iterator[Picture]:
        for root in self.roots:
            yield from _below(root) if root.path.is_dir() else [root]

    def passed_over(self) -> int:
        """Return the number of files in the folders that are no pictures by suffix."""
        folders = [root for root in self.roots if root.path.is_dir()]
        files = sum(1 for root in folders for _ in _files_below(root))
        return files - sum(1 for root in folders for _ in _below(root))


@contextmanager
def find_pictures(inputs: Iterable[str | Path]) -> Iterator[Pictures]:
    """Yield the pictures of files, folders, globs and archives (unpacked meanwhile).

    In a folder, files with a picture's suffix count; a file that is named itself counts
    whatever its suffix.

    Raises:
        UserError: nothing is there, no picture is in a folder or an archive, an archive
            is damaged or too large.
    """
    with ExitStack() as stack:
        roots: list[Picture] = []
        for path in [path for name in inputs for path in _matches(str(name))]:
            root = Picture(str(path), path)
            if is_archive(path) and path.is_file():
                everything = unpacked(path, lambda _: lambda _: True, Limits())
                try:
                    root = Picture(str(path), stack.enter_context(everything))
                except UserError as error:
                    reason = str(error).removeprefix("data.source.root: ")
                    raise UserError(f"inputs: {path}: {reason}") from error
            if root.path.is_dir() and next(_below(root), None) is None:
                kinds = ", ".join(name.lower() for name in formats())
                raise UserError(f"inputs: no picture in {path} (known are {kinds})")
            roots.append(root)
        yield Pictures(roots)


def _matches(name: str) -> list[Path]:
    """Return the path of that name, else those that match it as a glob."""
    name = os.path.expanduser(name)
    if os.path.exists(name):
        return [Path(name)]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        verb = "matches" if glob.has_magic(name) else "is a file or folder called"
        raise UserError(f"inputs: nothing {verb} {name!r}")
    return [Path(match) for match in matches]


def _below(root: Picture) -> Iterator[Picture]:
    """Yield the pictures in a folder and in those inside it, HEIC among them."""
    known = (*suffixes(), *HEIC)
    return (file for file in _files_below(root) if file.path.suffix.lower() in known)


def _files_below(root: Picture) -> Iterator[Picture]:
    """Yield the files in a folder and in those inside it, sorted within each."""
    for folder, inner, names in os.walk(root.path):
        inner[:] = sorted(name for name in inner if not is_hidden(name))
        at = os.path.relpath(folder, root.path)
        prefix = root.name if at == "." else os.path.join(root.name, at)
        for name in sorted(names):
            if not is_hidden(name):
                yield Picture(os.path.join(prefix, name), Path(folder, name))


# --- batches -----------------------------------------------------


def batches(
    pictures: Iterable[Picture], size: Size, batch_size: int
) -> Iterator[PictureBatch]:
    """Yield decoded batches in order, read ahead in threads while the last are used."""
    rest = iter(pictures)
    chunk = list(islice(rest, batch_size))
    if not chunk:
        return
    threads = decoding_threads(pixels_of(chunk[0].path))
    waiting: deque[Future[PictureBatch]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while chunk or waiting:
            if chunk:
                waiting.append(pool.submit(_decode_all, chunk, size))
            if len(waiting) > threads or not chunk:
                yield waiting.popleft().result()
            chunk = list(islice(rest, batch_size))


def _decode_all(pictures: list[Picture], size: Size) -> PictureBatch:
    pixels = np.empty((len(pictures), 3, *size), np.uint8)  # (B, 3, H, W)
    readable: list[Picture] = []
    broken: dict[str, str] = {}
    for picture in pictures:
        try:
            pixels[len(readable)] = decode(picture.path, size).pixels
        except DecodeError as error:
            broken[picture.name] = str(error)
            continue
        readable.append(picture)
    return PictureBatch(readable, pixels[: len(readable)], broken)
