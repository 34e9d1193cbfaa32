"""Sources of images: CIFAR-10 and -100, a folder or archive of image files.

Each is a small object whose constructor does no I/O and which has

- `key()`: the identity of the data, downloaded if need be, never decoded.  Equal keys
  mean equal images, so it goes into the hash that names a run directory;
- `load()`: an `ImageSet` of uint8 images and labels.

Both raise DataNotFound where there are no data.

CIFAR-10 and -100: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from resnet_se.data.archives import ARCHIVES, is_archive, opened, unpacked
from resnet_se.data.download import download
from resnet_se.data.image_set import DataNotFound, ImageSet, cached
from resnet_se.data.image_tree import class_files, decode_files, tree_files
from resnet_se.data.loaders import stratified_split
from resnet_se.data.reading import Limits, first_few, root_error
from resnet_se.utils.validation import Positive, Text, validated

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(FINE_LABELS.split())


@validated
@dataclass(frozen=True)
class ImageFolder:
    """Images in class folders, in a folder, a tar or a zip; layouts: `image_tree`.

    Labels follow the sorted class names; hidden files are left out.

    Args:
        root: the folder or archive.
        size: resizes to size×size (bilinear, antialiased); null: all are of one size.
        test_fraction: share of each class cut off as the test part, always the same
            images, where the layout has none; null: it must have one.
        max_gb: most that an archive may unpack to, or files or decoded images hold.
        max_megapixels: most of one image.
    """

    root: Text
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    max_gb: Positive = Limits().gb
    max_megapixels: Positive = Limits().megapixels

    def key(self) -> str:
        """Return a hash of the archive's bytes, or of names and bytes in the folder.

        Bytes, not modification times: a copy of the folder has the same key, and an
        edit that keeps size and time has not.

        Raises:
            UserError: as `load`.
        """
        root, digest = self._existing_root(), hashlib.sha256()
        if root.is_file():
            _digest_file(digest, root)
        else:
            for name, path in sorted(tree_files(root, root, self._limits).items()):
                if path:
                    digest.update(
                        b"%s\0%d\0" % (os.fsencode(name), path.stat().st_size)
                    )
                    _digest_file(digest, path)
        size = f"-{self.size}px" if self.size else ""
        cut = f"-test{self.test_fraction:g}" if self.test_fraction else ""
        return f"image_folder-{digest.hexdigest()[:16]}{size}{cut}"

    def load(self) -> ImageSet:
        """Return the images, sorted by class and name.

        Raises:
            UserError: naming the files of a damaged archive, an unknown layout, images
                that cannot be decoded, have another size, or are too large.
        """
        root = self._existing_root()
        images = cached(self.key(), lambda: self._decode(root))
        return replace(images, origin=f"{root.resolve().name}: {images.origin}")

    @property
    def _limits(self) -> Limits:
        return Limits(self.max_gb, self.max_megapixels)

    def _existing_root(self) -> Path:
        root = _expanded(self.root)
        if os.path.isdir(root) or (os.path.isfile(root) and is_archive(root)):
            return root
        expected = f"a folder, or a file ending in {', '.join(ARCHIVES)}"
        if not os.path.lexists(root):
            raise DataNotFound(str(root_error(expected, root, "nothing is there")))
        raise root_error(expected, root)

    def _decode(self, root: Path) -> ImageSet:
        with opened(root, self._limits) as folder:
            files = tree_files(folder, root, self._limits)
            layout, parts = class_files(folder, root, files, self.test_fraction)
            names = [n for part in parts for group in part.values() for n in group]
            paths = [path for name in names if (path := files[name])]
            images, formats = decode_files(names, paths, root, self.size, self._limits)
        x = torch.from_numpy(images)  # (N, 3, H, W)
        groups = [(k, n) for part in parts for k, n in enumerate(part.values())]
        y = torch.tensor([k for k, names in groups for _ in names])  # (N,)
        origin = f"{'/'.join(formats)} files"
        if len(layout.splits) == 1:
            assert self.test_fraction is not None  # `class_files` checks
            train, test = stratified_split(y, self.test_fraction, seed=0)
            origin += f", {self.test_fraction:.0%} cut off to test"
        else:
            n = sum(map(len, parts[0].values()))
            train, test = torch.arange(len(y)).tensor_split([n])
            if layout.splits[1] != "test/":
                origin += f", tested on {layout.splits[1]}"
        splits = x[train], y[train], x[test], y[test]
        return ImageSet("image_folder", origin, tuple(parts[0]), *splits)


@validated
@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 from `root`, a folder or an archive; downloaded where it is not there.

    A folder is searched for, in this order: the official `cifar-10-batches-py` or
    `cifar-10-python.tar.gz`; an image tree, `train/<class>` and `test/<class>`, in it
    or in one sub-folder `cifar10*`; one archive `*cifar10*` of such a tree.  Nothing
    but the download is ever written there.
    """

    root: Text
    download: bool = True

    name: ClassVar[str] = "cifar10"
    classes: ClassVar[tuple[str, ...]] = CIFAR10_CLASSES

    def find(self) -> Path | None:
        """Return the folder or archive to read; None if it is not on disk.

        Raises:
            UserError: two fit equally well, or the folder cannot be read.
        """
        root, official = _expanded(self.root), self._official()
        if os.path.isfile(root):
            return root
        if not os.path.isdir(root) or root.name == official.base_folder:
            return root if os.path.isdir(root) else None
        if (root / official.base_folder).is_dir():
            return root / official.base_folder
        if (root / official.filename).is_file():
            return root / official.filename
        if _is_tree(root):
            return root
        pattern = rf"cifar-?{len(self.classes)}(?!\d)"  # not 100 for 10
        try:
            named = [
                path
                for path in sorted(root.iterdir())
                if re.search(pattern, path.name, re.IGNORECASE)
            ]
        except OSError as error:
            raise root_error("a folder that can be read", error) from error
        trees = [path for path in named if _is_tree(path)]
        archives = [path for path in named if path.is_file() and is_archive(path)]
        matches = trees or archives
        if len(matches) > 1:
            names = first_few(path.name for path in matches)
            hint = "make one of them data.source.root, or RESNET_SE_DATA"
            raise root_error(f"one copy of {self._title} in {root}", names, hint)
        return matches[0] if matches else None

    def key(self) -> str:
        """Return a constant for the official data, else `ImageFolder.key`.

        Raises:
            DataNotFound: they are neither on disk nor to be had by a download.
        """
        path, official = self.find() or self._download(), self._official()
        if path.name in (official.base_folder, official.filename):
            return f"{self.name}-{official.tgz_md5[:16]}"
        return ImageFolder(str(path), test_fraction=None).key()

    def load(self) -> ImageSet:
        """Return the 32×32 images.

        Raises:
            DataNotFound: as `key`.
            UserError: as `ImageFolder.load`; or other classes, or another size.
        """
        path, official = self.find() or self._download(), self._official()
        if path.name == official.base_folder:
            return self._batches(path.parent)
        if path.name == official.filename:
            return cached(self.key(), lambda: self._packed_batches(path))
        images = ImageFolder(str(path), test_fraction=None).load()
        size, hint = tuple(images.train_images.shape[2:]), "try data=image_folder"
        if images.classes != self.classes:
            expected = f"{self._title}'s classes ({', '.join(self.classes)}) in {path}"
            raise root_error(expected, ", ".join(images.classes), hint)
        if size != (32, 32):
            raise root_error(f"images of (32, 32) in {path}", size, hint)
        return replace(images, name=self.name)

    @property
    def _title(self) -> str:
        return f"CIFAR-{len(self.classes)}"

    def _official(self) -> Any:
        """torchvision's class, with names, address and checksums of the files."""
        from torchvision import datasets

        return getattr(datasets, self.name.upper())

    def _batches(self, root: Path) -> ImageSet:
        """Read the official batches; torchvision checks their md5 before unpickling."""
        official = self._official()
        tensors: list[torch.Tensor] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's, on pickles of Python 2
                for train in (True, False):
                    data = official(root, train=train)
                    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
                    tensors += [images.contiguous(), torch.tensor(data.targets)]
        except RuntimeError as error:
            folder = root / official.base_folder
            hint = "delete it and unpack or download it again"
            raise root_error(f"whole batches in {folder}", error, hint) from error
        return ImageSet(self.name, f"official {self._title}", self.classes, *tensors)

    def _packed_batches(self, archive: Path) -> ImageSet:
        base = f"{self._official().base_folder}/"
        with unpacked(
            archive, lambda _: lambda member: member.name.startswith(base), Limits()
        ) as folder:
            return self._batches(folder)

    def _download(self) -> Path:
        root, official = _expanded(self.root), self._official()
        if not self.download:
            raise self._not_found("data.source.download is false")
        if is_archive(root):
            raise self._not_found("no such file")
        try:
            download(official.url, official.tgz_md5, root / official.filename)
        except (OSError, HTTPException) as error:  # URLError is an OSError
            raise self._not_found(f"the download failed: {error}") from error
        return root / official.filename

    def _not_found(self, why: str) -> DataNotFound:
        official = self._official()
        return DataNotFound(
            f"data.source.root: expected {self._title} in {self.root!r}, got none "
            f"({why}). Either put {official.filename} (from {official.url}) or an "
            f"archive *{self.name}*.tar.xz of train/<class>/ and test/<class>/ images "
            "there, or set RESNET_SE_DATA to the folder or archive that holds it, or "
            "try data=synthetic"
        )


@validated
@dataclass(frozen=True)
class CIFAR100(CIFAR10):
    """CIFAR-100 with its fine labels; `root` is searched as by `CIFAR10`."""

    name: ClassVar[str] = "cifar100"
    classes: ClassVar[tuple[str, ...]] = CIFAR100_CLASSES


def _expanded(root: str) -> Path:
    return Path(os.path.expanduser(root))  # leaves ~nobody as it is


def _is_tree(folder: Path) -> bool:
    return all((folder / split).is_dir() for split in ("train", "test"))


def _digest_file(digest: Any, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise root_error("files that can be read", got) from error
