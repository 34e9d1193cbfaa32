"""Sources of images: CIFAR-10 and -100, a folder or archive of image files.

Each is a small object whose constructor does no I/O and which has

- `key()`: the identity of the data, downloaded if need be, never decoded.  Equal keys
  mean equal images, so it goes into the hash that names a run directory;
- `load()`: an `ImageSet` of uint8 images and labels.

Both raise DataNotFound where there are no data.

CIFAR-10 and -100: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import torch

from resnet_se.data.archives import ARCHIVES, is_archive, unpacked
from resnet_se.data.download import download
from resnet_se.data.image_set import DataNotFound, ImageSet, cached
from resnet_se.data.reading import Limits, first_few, root_error
from resnet_se.data.wrappings.cifar_files import (
    READERS,
    Names,
    find_superclasses,
    kind_of,
    names_of,
    source_files,
)
from resnet_se.data.wrappings.content import RECORDED, canonical, content_key
from resnet_se.data.wrappings.image_folder import ImageFolder, digest_of, expanded
from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import Text, validated

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
class CIFAR10:
    """CIFAR-10 from `root`, a folder or a file; downloaded where it is not there.

    A folder is searched for, in this order: the Python batches or their archive, under
    the official names or Keras's; an image tree, `train/<class>` and `test/<class>`;
    the binary version, the Parquet copy, Kaggle's (`cifar_files`); one sub-folder or
    archive `*cifar10*` of these.  Nothing but the download is ever written there.

    The Python batches keep their order, the others have the one of their content.
    """

    root: Text
    download: bool = True

    name: ClassVar[str] = "cifar10"
    classes: ClassVar[tuple[str, ...]] = CIFAR10_CLASSES

    def find(self) -> Path | None:
        """Return the folder or file to read; None if it is not on disk.

        Raises:
            UserError: two fit equally well, it is the MATLAB version, or the folder
                cannot be read.
        """
        root, names, official = expanded(self.root), self._names, self._official()
        if names.matlab in root.name and root.exists():
            hint = f"take {official.filename} or the binary version"
            raise root_error(
                f"{self._title} in another form", f"MATLAB's, {root}", hint
            )
        if os.path.isfile(root):
            return root
        if not os.path.isdir(root) or root.name == official.base_folder:
            return root if os.path.isdir(root) else None
        try:
            return self._find_in(root)
        except OSError as error:
            raise root_error("a folder that can be read", error) from error

    def _find_in(self, root: Path) -> Path | None:
        names, official = self._names, self._official()
        base, keras = official.base_folder, names.keras_archives
        for name in (base, official.filename, f"{base}-target/{base}", *keras):
            if (root / name).exists():
                return root / name
        if kind_of(root, names, below=False):
            return root
        inside = sorted(root.iterdir())
        pattern = rf"cifar-?{len(self.classes)}(?!\d)"  # not 100 for 10
        named = [p for p in inside if re.search(pattern, p.name, re.IGNORECASE)]
        matlab = [path for path in named if names.matlab in path.name]
        if matlab:
            print(f"{matlab[0]}: MATLAB's version, not read", file=sys.stderr)
        named = [path for path in named if path not in matlab]
        folders = [p for p in named if p.is_dir() and kind_of(p, names)]
        files = [p for p in named if p.is_file() and self._may_be_ours(p)]
        matches = folders or files
        if len(matches) > 1:
            listed = first_few(path.name for path in matches)
            hint = "make one of them data.source.root, or RESNET_SE_DATA"
            raise root_error(f"one copy of {self._title} in {root}", listed, hint)
        return matches[0] if matches else None

    def key(self) -> str:
        """Return a constant for the Python batches, else the identity of the content.

        Raises:
            DataNotFound: they are neither on disk nor to be had by a download.
            UserError: as `load`, for all but the Python batches.
        """
        path = self.find() or self._download()
        kind = self._kind(path)
        if kind == "python":
            return self._constant
        if kind == "tree" and (files := self._tree(path).key()) in RECORDED.values():
            return files
        return content_key(self.load(), self._constant)

    def load(self) -> ImageSet:
        """Return the 32×32 images.

        Raises:
            DataNotFound: as `key`.
            UserError: as `ImageFolder.load` and the readers of `cifar_files`; or other
                classes, or another size.
        """
        path = self.find() or self._download()
        kind = self._kind(path)
        if kind == "python":
            if path.is_file():
                return cached(self._constant, lambda: self._packed_batches(path))
            inside = path.name == self._names.batches
            return self._batches(path.parent if inside else path)
        if kind != "tree":
            files = digest_of(source_files(kind, path, self._names))
            reader = READERS[kind]
            return cached(
                f"{self.name}-{kind}-{files}",
                lambda: canonical(reader(self.name, path, self._names)),
            )
        tree = self._tree(path)
        if (files := tree.key()) in RECORDED.values():
            return self._checked(tree.load(), path)
        images = cached(
            f"{self.name}-{files}",
            lambda: canonical(self._checked(tree.decode(path), path)),
        )
        return replace(images, origin=f"{path.resolve().name}: {images.origin}")

    def as_files(self) -> tuple[str, Callable[[], ImageSet]]:
        """Return key and `load` of the images in their files' order; raises as these.

        For what else is in that order: labels without the images.
        """
        path = self.find() or self._download()
        if self._kind(path) != "tree":
            return self.key(), self.load
        tree = self._tree(path)
        return tree.key(), lambda: self._checked(tree.load(), path)

    @property
    def _constant(self) -> str:
        return f"{self.name}-{self._official().tgz_md5[:16]}"

    def _kind(self, path: Path) -> str:
        kind = kind_of(path, self._names)
        if not kind and path.is_file() and not is_archive(path):
            ends = ", ".join((*ARCHIVES, ".parquet"))
            raise root_error(f"a folder, or a file ending in {ends}", path)
        return kind or "tree"  # which says what it misses

    def _may_be_ours(self, path: Path) -> bool:
        try:
            return bool(kind_of(path, self._names))
        except UserError:  # damaged: reading it says more
            return True

    def _tree(self, path: Path) -> ImageFolder:
        above = find_superclasses(path, self._names)
        return ImageFolder(str(path), test_fraction=None, superclasses=above)

    def _checked(self, images: ImageSet, path: Path) -> ImageSet:
        size, hint = tuple(images.train_images.shape[2:]), "try data=image_folder"
        if images.classes != self.classes:
            expected = f"{self._title}'s classes ({', '.join(self.classes)}) in {path}"
            raise root_error(expected, ", ".join(images.classes), hint)
        if size != (32, 32):
            raise root_error(f"images of (32, 32) in {path}", size, hint)
        return replace(images, name=self.name)

    @property
    def _names(self) -> Names:
        return names_of(self.classes)

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
        origin = f"official {self._title}"
        return ImageSet(self.name, origin, self.classes, *tensors, order="official")

    def _packed_batches(self, archive: Path) -> ImageSet:
        base = f"{self._official().base_folder}/"
        with unpacked(
            archive, lambda _: lambda member: member.name.startswith(base), Limits()
        ) as folder:
            return self._batches(folder)

    def _download(self) -> Path:
        root, official = expanded(self.root), self._official()
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
