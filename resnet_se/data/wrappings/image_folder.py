"""Images in class folders: a folder, a tar or a zip of them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from resnet_se.data.archives import ARCHIVES, archive_folders, is_archive, opened
from resnet_se.data.image_set import DataNotFound, ImageSet, cached
from resnet_se.data.image_tree import (
    Layout,
    check_counts,
    class_files,
    find_layout,
    reading_tag,
    sorted_classes,
    tree_files,
)
from resnet_se.data.reading import Limits, root_error, source_error
from resnet_se.data.splits import stratified_split
from resnet_se.data.wrappings.flat_parts import ANNOTATIONS
from resnet_se.data.wrappings.image_files import DecodedFiles, decode_files
from resnet_se.data.wrappings.label_table import labelled_files
from resnet_se.data.wrappings.npz_file import read_npz
from resnet_se.utils.validation import Positive, Text, validated


@validated
@dataclass(frozen=True)
class ImageFolder:
    """Images in class folders, in a folder, a tar or a zip; layouts: `image_tree`.

    Or the arrays of an `.npz` file, as MedMNIST has them.

    Labels follow the class names, sorted, or the numbers that they are; hidden files,
    and files that are no pictures by their suffix, are left out.

    Args:
        root: the folder or archive.
        size: resizes to size×size (bilinear, antialiased); null: all are of one size.
        test_fraction: share of each class cut off as the test part, always the same
            images, where the layout has none; null: it must have one.
        val: name of the folder beside `train` to validate on; null: one called val,
            valid, validation, dev or eval, where there is a test part besides.
        labels: a CSV of files and labels, by its path or its name in the folder
            `root` (`label_table`); null: folders are classes.
        skip_broken: leave out pictures that cannot be decoded, instead of refusing all.
        superclasses: classes are the folders one deeper, `train/<superclass>/<class>/`.
        max_gb: most that an archive may unpack to, or files or decoded images hold.
        max_megapixels: most of one image.
    """

    root: Text
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    max_gb: Positive = Limits().gb
    max_megapixels: Positive = Limits().megapixels
    val: Text | None = None
    skip_broken: bool = False
    labels: Text | None = None
    superclasses: bool = False

    def key(self) -> str:
        """Return a hash of the archive's bytes, or of names and bytes in the folder.

        Bytes, not modification times: a copy of the folder has the same key, and an
        edit that keeps size and time has not.

        Raises:
            UserError: as `load`.
        """
        return self._identify()[0]

    def _identify(self) -> tuple[str, dict[str, int]]:
        """Return the key, and how many files of a folder are no pictures, by suffix."""
        root, digest = self._existing_root(), hashlib.sha256()
        left_out: dict[str, int] = {}  # an archive's are in what the cache has of it
        if root.suffix == ".npz":
            digest_file(digest, root)
            return f"image_folder-{digest.hexdigest()[:16]}-npz", left_out
        if self.labels is not None:
            pictures, labels = self._labelled(root)
            for name, label in zip(pictures, labels, strict=True):
                digest.update(os.fsencode(f"{name}\0{label}\0"))
                digest_file(digest, pictures[name])
            tag = "-labels"
        elif root.is_file():
            digest_file(digest, root)
            folders = archive_folders(root, self._limits)
            layout = find_layout(folders, self.val)
            tag = reading_tag(layout, folders(layout.top + layout.splits[0]))
        else:
            tree = tree_files(root, root, self._limits, self.val)
            layout, files, left_out, tables = tree
            for name, path in sorted(files.items()):
                if path:
                    digest.update(
                        b"%s\0%d\0" % (os.fsencode(name), path.stat().st_size)
                    )
                    digest_file(digest, path)
            annotations = [root / layout.top / p / ANNOTATIONS for p in layout.parts]
            for table in (*annotations, *tables.values()):
                if table.is_file():
                    digest_file(digest, table)
            begin = layout.splits[0]
            classes = [n[len(begin) :] for n in files if n.startswith(begin)]
            tag = reading_tag(layout, {name.partition("/")[0] for name in classes})
        tag += f"-{self.size}px" if self.size else ""
        tag += f"-test{self.test_fraction:g}" if self.test_fraction else ""
        tag += "-skip" if self.skip_broken else ""
        tag += "-below" if self.superclasses else ""
        return f"image_folder-{digest.hexdigest()[:16]}{tag}", left_out

    def load(self) -> ImageSet:
        """Return the images, sorted by class and name.

        Raises:
            UserError: naming the files of a damaged archive, an unknown layout, images
                that cannot be decoded, have another size, or are too large.
        """
        root = self._existing_root()
        key, left_out = self._identify()
        images = cached(key, lambda: self.decode(root))
        origin = f"{root.resolve().name}: {images.origin}{_no_pictures(left_out)}"
        return replace(images, origin=origin)

    @property
    def _limits(self) -> Limits:
        return Limits(self.max_gb, self.max_megapixels)

    def _existing_root(self) -> Path:
        root = expanded(self.root)
        known = is_archive(root) or root.suffix == ".npz"
        if os.path.isdir(root) or (os.path.isfile(root) and known):
            return root
        expected = f"a folder, or a file ending in {', '.join(ARCHIVES)} or .npz"
        if not os.path.lexists(root):
            raise DataNotFound(str(root_error(expected, root, "nothing is there")))
        raise root_error(expected, root)

    def decode(self, root: Path) -> ImageSet:
        """Return the images of a folder or an archive, without the cache."""
        if root.suffix == ".npz":
            if self.size is not None:
                raise source_error("size", "null for an .npz file", self.size)
            return read_npz(root, self._limits)
        if self.labels is not None:
            return self._decode_labelled(root)
        with opened(root, self._limits, self.val) as folder:
            tree = tree_files(folder, root, self._limits, self.val)
            parts = class_files(
                folder, root, tree, self.test_fraction, self.superclasses
            )
            names = [n for part in parts for group in part.values() for n in group]
            paths = [path for name in names if (path := tree.files[name])]
            decoded = decode_files(
                names, paths, root, self.size, self._limits, self.skip_broken
            )
        classes = list(parts[0])
        places = [
            (p, classes.index(name))
            for p, part in enumerate(parts)
            for name, files in part.items()
            for _ in files
        ]
        kept = [place for i, place in enumerate(places) if i not in decoded.broken]
        part, y = torch.tensor(kept).T.contiguous()  # (N,) each
        sizes = part.bincount(minlength=len(parts)).tolist()
        images = torch.from_numpy(decoded.images).split(sizes)  # (N, 3, H, W) each
        labels = y.split(sizes)
        tested = labels[1] if len(tree.layout.splits) > 1 else y
        absent = len(classes) - len(tested.unique())
        origin = _origin(tree.layout, decoded, absent)
        if root.is_file():
            origin += _no_pictures(tree.left_out)
        if len(tree.layout.splits) == 1:
            assert self.test_fraction is not None  # `class_files` checks
            train, test = stratified_split(labels[0], self.test_fraction, seed=0)
            origin += f", {self.test_fraction:.0%} cut off to test"
            x, y = images[0], labels[0]
            splits = x[train], y[train], x[test], y[test]
        else:
            splits = images[0], labels[0], images[1], labels[1]
        val = {"val_images": images[-1], "val_labels": labels[-1]}
        return ImageSet(
            *("image_folder", origin, tuple(classes), *splits),
            **(val if tree.layout.val else {}),
        )

    def _labelled(self, root: Path) -> tuple[dict[str, Path], list[str]]:
        assert self.labels is not None
        if root.is_file() or self.test_fraction is None:
            expected = "a folder as data.source.root and a data.source.test_fraction"
            raise source_error("labels", expected, f"{root}, {self.test_fraction}")
        return labelled_files(root, self.labels)

    def _decode_labelled(self, root: Path) -> ImageSet:
        files, labels = self._labelled(root)
        assert self.test_fraction is not None  # `_labelled` checks
        classes = sorted_classes(set(labels))
        check_counts("", Counter(labels), root, self.test_fraction)
        how = self.size, self._limits, self.skip_broken
        decoded = decode_files(list(files), list(files.values()), root, *how)
        kept = [label for i, label in enumerate(labels) if i not in decoded.broken]
        x = torch.from_numpy(decoded.images)
        y = torch.tensor([classes.index(label) for label in kept])
        train, test = stratified_split(y, self.test_fraction, seed=0)
        parts = x[train], y[train], x[test], y[test]
        origin = f"{_origin(Layout('', ('',)), decoded, 0)} labelled by {self.labels}"
        origin += f", {self.test_fraction:.0%} cut off to test"
        return ImageSet("image_folder", origin, tuple(classes), *parts)


def _no_pictures(left_out: dict[str, int]) -> str:
    if not left_out:
        return ""
    suffixes = ", ".join(sorted(left_out))
    return f", {sum(left_out.values())} that are no pictures left out ({suffixes})"


def _origin(layout: Layout, decoded: DecodedFiles, absent: int) -> str:
    """Return a line on the pictures and the parts."""
    words = [f"{'/'.join(decoded.formats)} files"]
    if decoded.broken:
        words.append(f"{len(decoded.broken)} broken ones left out")
    if layout.splits[0] not in ("", "train/"):
        words.append(f"trained on {layout.splits[0]}")
    if layout.splits[1:] not in ((), ("test/",)):
        words.append(f"tested on {layout.splits[1]}")
    if layout.val:
        words.append(f"validated on {layout.val}")
    if absent and layout.splits[1:]:
        words.append(f"{absent} classes without test images")
    return ", ".join(words)


def expanded(root: str) -> Path:
    return Path(os.path.expanduser(root))  # leaves ~nobody as it is


def digest_file(digest: Any, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise root_error("files that can be read", got) from error


def digest_of(paths: list[Path]) -> str:
    """Return 16 hex digits of the files' names and bytes.

    Raises:
        UserError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.name) + b"\0")
        digest_file(digest, path)
    return digest.hexdigest()[:16]
