"""Where images come from: CIFAR-10, a folder or archive of image files, a procedure.

Each source is a small object whose constructor does no I/O and which has

- `key()`: what would be loaded, without decoding it.  Equal content gives equal keys,
  so it may go into the hash that names a run directory;
- `load()`: the one contract of this file, an `ImageSet` of uint8 images and labels.

Decoded images are kept in `cache_folder()` as `<key>.npz`, whose checksums show damage.

CIFAR-10: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import math
import os
import re
import sys
import tarfile
import tempfile
import threading
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from http.client import HTTPException
from io import BytesIO
from pathlib import Path, PurePosixPath
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torchvision.datasets import CIFAR10 as Official

from resnet_se.errors import UserError, nearest

log = logging.getLogger(__name__)

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
SPLITS = ("train", "test")
TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
NETWORK_SECONDS = 10.0  # to open a download, and between two pieces of it


class DataNotFound(UserError):
    """The data are neither on disk nor to be had from the network."""


# ------------------------------------------------------------------- the contract


@dataclass(frozen=True, eq=False)  # `==` of tensors has no single truth value
class ImageSet:
    """uint8 images (N, 3, H, W) and int64 labels (N,) of a training and a test set.

    `name` is the kind of source, `origin` one line on where the pixels came from.
    Raises UserError unless shapes, dtypes, labels and classes fit each other.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def __post_init__(self) -> None:
        k, size = len(self.classes), tuple(self.train_images.shape[2:])
        if k < 2 or len(set(self.classes)) < k:
            raise _wrong("classes", "2 or more different names", self.classes)
        for split in SPLITS:
            images = getattr(self, f"{split}_images")
            labels = getattr(self, f"{split}_labels")
            n, shape = len(images), tuple(images.shape)
            if (
                images.dtype != torch.uint8
                or shape != (n, 3, *size)
                or images.ndim != 4
            ):
                expected = f"uint8 (N, 3, H, W), H and W as in the other split, {size}"
                raise _wrong(f"{split}_images", expected, f"{images.dtype} {shape}")
            if labels.dtype != torch.int64 or tuple(labels.shape) != (n,):
                got = f"{labels.dtype} {tuple(labels.shape)}"
                raise _wrong(f"{split}_labels", f"int64 ({n},)", got)
            outside = labels[(labels < 0) | (labels >= k)].tolist()
            if outside:
                raise _wrong(f"{split}_labels", f"0 to {k - 1}", outside[0])
        absent = set(range(k)) - set(self.train_labels.tolist())
        if absent:
            got = f"none of {self.classes[min(absent)]!r}"
            raise _wrong("train_labels", "images of every class", got)

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:` and 16 hex digits, of classes, shapes, pixels and labels alone."""
        tensors = [getattr(self, name) for name in TENSORS]
        shapes = [list(tensor.shape) for tensor in tensors]
        digest = hashlib.sha256(json.dumps([list(self.classes), shapes]).encode())
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy())
        return f"sha256:{digest.hexdigest()[:16]}"


def _wrong(argument: str, expected: str, got: object, hint: str = "") -> UserError:
    return UserError(f"{argument}: expected {expected}, got {got}{hint and '; '}{hint}")


def _check_int(argument: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high:
        raise _wrong(argument, f"a whole number from {low} to {high}", repr(value))


# -------------------------------------------------------------------- the sources


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 from `root`, a folder or an archive; downloaded where it is not there.

    A folder is searched for, in this order: the official `cifar-10-batches-py` or
    `cifar-10-python.tar.gz`; an image tree, `train/<class>` and `test/<class>`, in it
    or in one sub-folder `cifar10*`; one archive `*cifar10*` of such a tree.  Nothing
    but the download is ever written there.
    """

    root: str
    download: bool = True

    def find(self) -> Path | None:
        """The folder or archive that would be read; None if it is not on disk.

        Raises UserError if two fit equally well.
        """
        root = Path(self.root).expanduser()
        if root.is_file() or (root.is_dir() and root.name == Official.base_folder):
            return root
        for name in (Official.base_folder, Official.filename):
            if (root / name).exists():
                return root / name
        if _is_tree(root):
            return root
        named = [
            path
            for path in (sorted(root.iterdir()) if root.is_dir() else [])
            if re.search(r"cifar-?10(?!\d)", path.name, re.IGNORECASE)  # no CIFAR-100
        ]
        trees = [path for path in named if _is_tree(path)]
        archives = [path for path in named if path.is_file() and _is_archive(path)]
        found = trees or archives
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            hint = "make one of them root, or RESNET_SE_DATA"
            raise _wrong("root", f"one copy of CIFAR-10 in {root}", names, hint)
        return found[0] if found else None

    def key(self) -> str:
        """As `ImageFolder.key`; a constant for the official data, on disk or not yet.

        Raises DataNotFound if they are not on disk and `download` is false.
        """
        path = self.find()
        if path is None and not self.download:
            raise self._not_found("download is false")
        if path is None or path.name in (Official.base_folder, Official.filename):
            return f"cifar10-{Official.tgz_md5[:16]}"
        return ImageFolder(str(path)).key()

    def load(self) -> ImageSet:
        """The 32×32 images; raises DataNotFound, else UserError as `ImageFolder`."""
        path = self.find() or self._download()
        if path.name == Official.base_folder:
            return _official_batches(path.parent)
        if path.name == Official.filename:
            return _cached(self.key(), lambda: _official_archive(path))
        images = ImageFolder(str(path)).load()
        size, hint = tuple(images.train_images.shape[2:]), "try data=image_folder"
        if images.classes != CIFAR10_CLASSES:
            expected = f"CIFAR-10's classes ({', '.join(CIFAR10_CLASSES)}) in {path}"
            raise _wrong("root", expected, ", ".join(images.classes), hint)
        if size != (32, 32):
            raise _wrong("root", f"images of (32, 32) in {path}", size, hint)
        return replace(images, name="cifar10")

    def _download(self) -> Path:
        root = Path(self.root).expanduser()
        if not self.download:
            raise self._not_found("download is false")
        if _is_archive(root):
            raise self._not_found("no such file")
        try:
            _download(Official.url, Official.tgz_md5, root / Official.filename)
        except (OSError, HTTPException) as error:  # URLError is an OSError
            raise self._not_found(f"the download failed: {error}") from error
        return root / Official.filename

    def _not_found(self, why: str) -> DataNotFound:
        return DataNotFound(
            f"root: expected CIFAR-10 in {self.root!r}, got none ({why}). Either put "
            f"{Official.filename} (from {Official.url}) or an archive *cifar10*.tar.xz "
            "of train/<class>/ and test/<class>/ images there, or set RESNET_SE_DATA "
            "to the folder or archive that holds it, or try data=synthetic"
        )


@dataclass(frozen=True)
class ImageFolder:
    """Images `train/<class>/*` and `test/<class>/*` in a folder, a tar or a zip.

    The two may lie under one common folder.  Labels follow the sorted class names;
    every format that PIL reads becomes RGB; hidden files are left out.  `size` resizes
    to size×size (bilinear, antialiased); without it all must be of one size.
    """

    root: str
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            _check_int("size", self.size, 1, 4096)

    def key(self) -> str:
        """A hash of the archive's bytes, or of the names and bytes in the folder.

        Bytes, not modification times: a copy of the folder has the same key, and an
        edit that keeps size and time has not.
        """
        root, digest = self._root(), hashlib.sha256()
        if root.is_file():
            with root.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        else:
            for name, path in sorted(_folder_files(root).items()):
                if path and name.startswith(SPLITS_PREFIX):
                    data = path.read_bytes()
                    digest.update(b"%s\0%d\0%s" % (os.fsencode(name), len(data), data))
        size = f"-{self.size}px" if self.size else ""
        return f"image_folder-{digest.hexdigest()[:16]}{size}"

    def load(self) -> ImageSet:
        """The images, sorted by class and name.

        Raises UserError, naming the file, for a missing or damaged archive, a tree that
        is not as described, an image that cannot be decoded or has another size.
        """
        root = self._root()
        images = _cached(self.key(), lambda: _decode_tree(root, self.size))
        return replace(images, origin=f"{root.resolve().name}: {images.origin}")

    def _root(self) -> Path:
        root = Path(self.root).expanduser()
        if root.is_dir() or (root.is_file() and _is_archive(root)):
            return root
        expected = f"a folder, or a file ending in {', '.join(ARCHIVES)}"
        raise _wrong(
            "root", expected, root, "" if root.exists() else "nothing is there"
        )


@dataclass(frozen=True)
class Synthetic:
    """Procedural images of ten kinds: shapes and gratings, the same for the same seed.

    Position, scale, angle, phase, both colours, light and noise are random, so that the
    class lies in the form alone: no pixel and no mean colour tells it.
    """

    num_train: int = 5000
    num_test: int = 1000
    size: int = 32
    num_classes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_int("num_classes", self.num_classes, 2, len(FORMS))
        _check_int("num_train", self.num_train, self.num_classes, 1_000_000)
        _check_int("num_test", self.num_test, self.num_classes, 1_000_000)
        _check_int("size", self.size, 8, 512)
        _check_int("seed", self.seed, 0, 2**31 - 1)

    def key(self) -> str:
        """The arguments and the version of the procedure."""
        numbers = (
            self.num_train,
            self.num_test,
            self.size,
            self.num_classes,
            self.seed,
        )
        return f"synthetic-v1-{'-'.join(map(str, numbers))}"

    def load(self) -> ImageSet:
        """Balanced classes in random order; the two splits are drawn independently."""
        # 2·seed and 2·seed + 1: no two splits of any two seeds share their numbers.
        train = _draw_split(self.num_train, self.size, self.num_classes, 2 * self.seed)
        test = _draw_split(
            self.num_test, self.size, self.num_classes, 2 * self.seed + 1
        )
        origin, classes = f"a procedure, seed {self.seed}", tuple(FORMS)
        return ImageSet("synthetic", origin, classes[: self.num_classes], *train, *test)


# --------------------------------------------------------------- official CIFAR-10


def _official_batches(root: Path) -> ImageSet:
    """The batches in `root`; torchvision checks their md5 before unpickling them."""
    tensors: list[torch.Tensor] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, on pickles written by Python 2
            for train in (True, False):
                data = Official(root, train=train)
                images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (N, 3, H, W)
                tensors += [images.contiguous(), torch.tensor(data.targets)]
    except RuntimeError as error:
        folder = root / Official.base_folder
        hint = "delete it and unpack or download it again"
        raise _wrong("root", f"whole batches in {folder}", error, hint) from error
    return ImageSet("cifar10", "official CIFAR-10", CIFAR10_CLASSES, *tensors)


def _official_archive(archive: Path) -> ImageSet:
    with tempfile.TemporaryDirectory(prefix="resnet-se-") as folder:
        naming = _damage_named(archive)
        with (
            naming,
            _progress(f"unpacking {archive.name}"),
            tarfile.open(archive) as tar,
        ):
            # "data": nothing outside the folder; Python 3.14's default.
            tar.extractall(folder, filter="data")
        return _official_batches(Path(folder))


def _download(url: str, md5: str, target: Path) -> None:
    """Put `url` at `target`, verified, or raise OSError and leave nothing.

    torchvision's own has no time limit and leaves what came so far as `target`.
    """
    opened: list = []

    def connect() -> None:
        try:
            opened.append(urllib.request.urlopen(url, timeout=NETWORK_SECONDS))
        except Exception as error:  # passed on to the thread that waits
            opened.append(error)

    # The timeout does not bound the look-up of the name: wait for a thread instead.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    response = opened[0] if opened else OSError(f"no answer in {NETWORK_SECONDS:g} s")
    if isinstance(response, Exception):
        raise response
    digest = hashlib.md5(usedforsecurity=False)
    length = int(response.headers.get("Content-Length", 0)) or None
    progress = _progress(f"downloading {url}", length)
    target.parent.mkdir(parents=True, exist_ok=True)
    with response, _atomic(target) as file, progress as advance:
        while piece := response.read(1 << 16):
            file.write(piece)
            digest.update(piece)
            advance(len(piece))
        if digest.hexdigest() != md5:
            raise OSError(f"md5 of {url} is {digest.hexdigest()}, expected {md5}")


# -------------------------------------------------------------------- image trees

SPLITS_PREFIX = tuple(f"{split}/" for split in SPLITS)


def _is_tree(folder: Path) -> bool:
    return all((folder / split).is_dir() for split in SPLITS)


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _top(folders: set[str]) -> str:
    """The one folder above train/ and test/; "" where there is none."""
    return "" if folders & set(SPLITS) or len(folders) != 1 else next(iter(folders))


def _folder_files(root: Path) -> dict[str, Path | None]:
    """{"train/cat": None for a folder, "train/cat/1.png": its path, …}."""
    folders = {p.name for p in root.iterdir() if p.is_dir() and not _hidden(p.name)}
    top = root / _top(folders)
    patterns = ("*", *(f"{split}/**/*" for split in SPLITS))  # glob skips hidden files
    names = [n for p in patterns for n in glob(p, root_dir=top, recursive=True)]
    return {n: None if (top / n).is_dir() else top / n for n in names}


def _archive_files(archive: Path) -> dict[str, bytes | None]:
    """As `_folder_files`, with the bytes of each file; nothing is written to disk."""
    files: dict[PurePosixPath, bytes | None] = {}
    with _damage_named(archive), _progress(f"reading {archive.name}"):
        for name, data in _archive_members(archive):
            path = PurePosixPath(name.lstrip("/"))
            if not any(map(_hidden, path.parts)):
                files[path] = data
    # A file in no folder, as a README, does not count.
    folders = {
        p.parts[0] for p, data in files.items() if len(p.parts) > (data is not None)
    }
    top = PurePosixPath(_top(folders))
    return {
        path.relative_to(top).as_posix(): data
        for path, data in files.items()
        if path.is_relative_to(top) and path != top
    }


def _archive_members(archive: Path) -> Iterator[tuple[str, bytes | None]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                yield info.filename, None if info.is_dir() else file.read(info)
        return
    with tarfile.open(archive) as file:
        for member in file:
            if member.isreg() or member.isdir():
                data = file.extractfile(member)  # None for a folder
                yield member.name, data and data.read()
        # tarfile takes a cut between two members for the end, which is 512 zero bytes;
        # reading all that is left also verifies the checksum of gzip and xz.
        file.fileobj.seek(file.offset)
        if file.fileobj.read()[:512] != bytes(512):
            raise tarfile.ReadError("unexpected end of data")


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    damage = (
        *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
        *(EOFError, OSError),
        RuntimeError,  # of zipfile, for a password or an unknown compression
    )
    try:
        yield
    except damage as error:
        got = f"{archive}, which is truncated, damaged or unreadable ({error})"
        raise _wrong("root", "a whole archive", got) from error


def _classes_of(files: dict, root: Path) -> dict[str, dict[str, list[str]]]:
    """{split: {class: sorted names}}; raises UserError unless the splits agree."""
    tree: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name in sorted(files):
        split, *rest = name.split("/")
        is_file = files[name] is not None
        if split in SPLITS and len(rest) > is_file:  # not a file beside the classes
            tree[split].setdefault(rest[0], []).extend([name] * is_file)
    for split in SPLITS:
        if not tree[split]:
            expected = f"{split}/<class>/ folders in {root}"
            found = sorted({name.split("/")[0] for name in files})
            got = f"only {', '.join(found[:10]) or 'nothing'}"
            raise _wrong("root", expected, got + ", …" * (len(found) > 10))
    for split, other in (SPLITS, SPLITS[::-1]):
        for name in sorted(tree[split]):
            if name not in tree[other]:
                expected = f"{split}/{name} to be in {other}/ as well in {root}"
                hint = nearest(name, tree[other])
                raise _wrong("root", expected, f"no {other}/{name}", hint)
            if not tree[split][name]:
                raise _wrong("root", f"images in {root}", f"{split}/{name} empty")
    if len(tree["train"]) < 2:
        raise _wrong("root", f"2 or more classes in {root}", ", ".join(tree["train"]))
    return {split: dict(sorted(tree[split].items())) for split in SPLITS}


def _decode_tree(root: Path, size: int | None) -> ImageSet:
    files = _folder_files(root) if root.is_dir() else _archive_files(root)
    tree = _classes_of(files, root)
    groups = [group for split in SPLITS for group in tree[split].values()]
    names = [name for group in groups for name in group]
    original = _decode(files[names[0]], f"{root}: {names[0]}", None)[0].shape
    shape = (3, size, size) if size else original
    images = np.empty((len(names), *shape), np.uint8)  # (N, 3, H, W)

    def decode_from(start: int) -> set[str]:
        formats = set()
        for i, name in enumerate(names[start : start + 256], start):
            image, kind = _decode(files[name], f"{root}: {name}", size)
            if image.shape != shape:
                got = f"{name} with {image.shape}"
                expected = f"images of {shape} as {names[0]} in {root}"
                raise _wrong("size", expected, got, "set size to resize them")
            images[i] = image
            formats.add(kind)
        return formats

    # Below about 128×128 threads would only queue for Python's lock (measured: half
    # the speed at 32×32 on 4 cores); above it PIL decodes outside of the lock.
    threads = min(8, os.cpu_count() or 1) if np.prod(original) > 3 * 128**2 else 1
    progress = _progress(f"decoding {len(names):,} images", len(names))
    formats: set[str] = set()
    with ThreadPoolExecutor(threads) as pool, progress as advance:
        for some in pool.map(decode_from, range(0, len(names), 256)):
            formats |= some
            advance(256)
    labels = [
        torch.tensor([k for k, group in enumerate(tree[s].values()) for _ in group])
        for s in SPLITS
    ]
    train, test = torch.from_numpy(images).split([len(of) for of in labels])
    origin, classes = f"{'/'.join(sorted(formats))} files", tuple(tree["train"])
    return ImageSet("image_folder", origin, classes, train, labels[0], test, labels[1])


def _decode(
    source: bytes | Path, name: str, size: int | None
) -> tuple[np.ndarray, str | None]:
    """A uint8 RGB image (3, H, W), and the format it was kept in."""
    try:
        with Image.open(
            BytesIO(source) if isinstance(source, bytes) else source
        ) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"more than 8 bits a pixel, mode {file.mode}")
            image = file.convert("RGB")
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image).transpose(2, 0, 1), file.format  # (3, H, W)
    except Exception as error:  # PIL raises many kinds for damaged files
        expected = "images that PIL reads as 8-bit RGB"
        raise _wrong("root", expected, f"{name} ({error})") from error


# --------------------------------------------------------- cache, files, progress


def cache_folder() -> Path:
    """$RESNET_SE_CACHE, else resnet-se in the user's cache folder; may be missing."""
    own = os.environ.get("RESNET_SE_CACHE")
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(general, "resnet-se")).expanduser()


def _cached(key: str, build: Callable[[], ImageSet]) -> ImageSet:
    """What `build` returns, from the cache where it is there and whole."""
    path = cache_folder() / f"{key}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            tensors = [torch.from_numpy(arrays[name]) for name in TENSORS]
            name, origin, *classes = arrays["text"].tolist()
        return ImageSet(name, origin, tuple(classes), *tensors)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # zipfile, zlib, NumPy, ImageSet: each has its own kind
        log.warning("Cache file %s is damaged (%s): building it again", path, error)
    images = build()
    arrays = {name: getattr(images, name).numpy() for name in TENSORS}
    text = np.array([images.name, images.origin, *images.classes])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _atomic(path) as file:
            np.savez(file, text=text, **arrays)
    except OSError as error:
        log.warning("Images are not cached, the next run decodes again: %s", error)
    return images


@contextmanager
def _atomic(path: Path) -> Iterator:
    """A binary file that appears at `path` when it is complete, or never."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it is gone when all went well
            temporary.unlink()


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else one line, on stderr; yields `advance(steps)`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{what} …", file=sys.stderr, flush=True)
        yield lambda steps: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


# --------------------------------------------------------------- synthetic images

# Forms on coordinates u, v from about -2 to 2 with a phase p: negative inside.
FORMS: dict[str, Callable[..., torch.Tensor]] = {
    "disc": lambda u, v, p: u.hypot(v) - 0.8,
    "ring": lambda u, v, p: (u.hypot(v) - 0.75).abs() - 0.22,
    "square": lambda u, v, p: u.abs().maximum(v.abs()) - 0.75,
    "frame": lambda u, v, p: (u.abs().maximum(v.abs()) - 0.7).abs() - 0.2,
    "triangle": lambda u, v, p: (0.87 * u.abs() - 0.5 * v).maximum(v) - 0.5,
    "cross": lambda u, v, p: (
        u.abs().maximum(v.abs() - 0.7).minimum(v.abs().maximum(u.abs() - 0.7)) - 0.25
    ),
    "rows": lambda u, v, p: (5 * v + p).sin(),
    "columns": lambda u, v, p: (5 * u + p).sin(),
    "diagonals": lambda u, v, p: (3.5 * (u + v) + p).sin(),
    "checks": lambda u, v, p: (4 * u + p).sin() * (4 * v + p).sin(),
}


def _draw_split(
    n: int, size: int, num_classes: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (N, 3, S, S) and labels (N,), each class ⌊N/K⌋ or ⌈N/K⌉ times."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    labels = torch.randperm(n, generator=generator) % num_classes
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1  # centres of pixels in (-1, 1)
    radius = uniform(0.5, 0.8, 1, 1)
    x = (axis - uniform(-0.3, 0.3, 1, 1)) / radius  # (N, 1, S)
    y = (axis[:, None] - uniform(-0.3, 0.3, 1, 1)) / radius  # (N, S, 1)
    angle = uniform(-0.12, 0.12, 1, 1)  # ±7°: ±15° of augmentation leaves it < 45°/2
    u = angle.cos() * x - angle.sin() * y  # (N, S, S)
    v = angle.sin() * x + angle.cos() * y  # (N, S, S)
    phase = uniform(0, 2 * math.pi, 1, 1)
    inside = torch.empty(n, 1, size, size)
    for label, form in enumerate(list(FORMS.values())[:num_classes]):
        of = labels == label
        inside[of, 0] = (-8 * form(u[of], v[of], phase[of])).sigmoid()
    ground = uniform(0, 1, 3, 1, 1)
    # 0.3 to 0.7 around the circle of each channel: the two colours always differ.
    figure = (ground + uniform(0.3, 0.7, 3, 1, 1)) % 1
    light = uniform(-0.15, 0.15, 1, 1, 1) * axis  # (N, 1, 1, S)
    images = ground + (figure - ground) * inside + light  # (N, 3, S, S)
    images += 0.06 * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels
