"""Image trees: the layouts of their folders, the files allowed in them.

Three layouts are read, alone or under one or two common folders:

    train/<class>/* and test/<class>/*   val/<class>/* beside them is validated on, or,
                                         without test/, tested on
    train/<class>/*                      a test part is cut from it
    <class>/*                            the same

The classes of a part to test on may stand in a table instead (`flat_parts`).
The parts go by any of `PART_NAMES`, in upper case or lower.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from resnet_se.data.decode import HEIC, NO_HEIC, suffixes
from resnet_se.data.reading import Limits, first_few, root_error, source_error
from resnet_se.data.wrappings.flat_parts import (
    ANNOTATIONS,
    IMAGES,
    annotated,
    find_table,
    labelled,
    table_name,
)
from resnet_se.utils.errors import nearest

PART_NAMES = {
    "train": ("train", "training", "seg_train"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "seg_test"),
}
ROLES = {name: role for role, names in PART_NAMES.items() for name in names}


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


# --- layouts -----------------------------------------------------


class Layout(NamedTuple):
    """Folders that hold the class folders; each name ends in a slash or is empty."""

    top: str  # the common folders, "pets/"
    splits: tuple[str, ...]  # below it: train/ and test/; train/; or the top itself
    val: str = ""  # below it, where it is validated on

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of all parts: to train on, any to test on, any to validate on."""
        return (*self.splits, self.val) if self.val else self.splits


def find_layout(folders: Callable[[str], set[str]], val: str | None = None) -> Layout:
    """Return the layout of a tree.

    Args:
        folders: of `at`, the names of those below it.
        val: the name of the part to validate on; None: one of its usual names.

    Raises:
        UserError: two folders are the same part.
    """
    names, top = folders(""), ""
    for _ in range(2):
        if len(names) == 1 and not _roles(names, val):
            inner = f"{top}{next(iter(names))}/"
            if not (below := folders(inner)):
                break
            names, top = below, inner
    roles = _roles(names, val)
    if not any(folders(f"{top}{name}/") for name in roles.get("val", ())):
        roles.pop("val", None)  # /dev, a folder of scripts
    for role, (first, *others) in roles.items():
        if others:
            got = f"{first}/ and {', '.join(f'{name}/' for name in others)}"
            raise root_error(f"one part called {role}", got)
    # A part may lie in a folder of its own name: seg_train/seg_train/.
    at = {
        role: f"{name}/{name}/" if folders(f"{top}{name}/") == {name} else f"{name}/"
        for role, (name,) in roles.items()
    }
    # Tiny ImageNet's: images of all classes in one folder, those to test on unlabelled.
    if "val" in at and folders(top + at.get("test", "")) == {IMAGES}:
        del at["test"]
    test = at.pop("test", None) or (at.pop("val", None) if val is None else None)
    train = at.get("train", "train/" if test else "")
    return Layout(top, (train, test) if test else (train,), at.get("val", ""))


def reading_tag(layout: Layout, classes: set[str]) -> str:
    """Return a mark for keys of trees that earlier versions read in another way.

    They knew `train` and one of four names of a test part, validated on neither, and
    sorted classes by name: "" where that gives the same.
    """
    test = layout.splits[1:] or ("test/",)
    same = (
        layout.top.count("/") < 2
        and layout.splits[0] in ("", "train/")
        and test[0] in ("test/", "val/", "valid/", "validation/")
        and not layout.val
        and sorted_classes(classes) == sorted(classes)
    )
    read = "+".join(layout.parts).replace("/", "") or "numbers"
    return "" if same else f"-{ascii(read)[1:-1]}"


def _roles(names: set[str], val: str | None) -> dict[str, list[str]]:
    """Return {train, val, test: the folders of that part}."""
    roles: dict[str, list[str]] = {}
    for name in sorted(names):
        role = ROLES.get(name.casefold())
        if val is not None:
            role = "val" if name == val else role if role != "val" else None
        if role:
            roles.setdefault(role, []).append(name)
    return roles


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Return classes by name, or by number where all are numbers."""
    names = sorted(names)
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else names


class TreeFiles(NamedTuple):
    """Files of a tree: {"train/cat/": None, "train/cat/1.png": its path, …}."""

    layout: Layout
    files: dict[str, Path | None]
    left_out: dict[str, int]  # {suffix: files that are no pictures by it}
    tables: dict[str, Path]  # {part without class folders: its labels}


def tree_files(
    folder: Path, root: Path, limits: Limits, val: str | None = None
) -> TreeFiles:
    """Return the files that may be pictures.

    Args:
        folder: of the tree, with the common folder; links are followed.
        root: its name in messages.
        val: as for `find_layout`.

    Raises:
        UserError: naming a file that is empty or not a regular one, a circle of links,
            more bytes than allowed, a folder that cannot be read, HEIC files.
    """
    files: dict[str, Path | None] = {}
    left_out: dict[str, int] = {}
    tables: dict[str, Path] = {}
    unfit: list[str] = []
    size = 0
    try:
        layout = _layout_of(folder, val)
        for split in layout.parts:
            below = folder / layout.top / split
            if not below.is_dir():
                continue  # `class_files` misses it
            flat = split != layout.splits[0] and not visible_folders(below)
            if flat and (table := find_table(below)):
                tables[split] = table
            for name, path, status in _walk(below, split):
                if name.endswith("/"):
                    files[name] = None
                elif "/" in name[len(split) :] or split in tables:
                    # Not beside classes.
                    suffix = path.suffix.lower()
                    if suffix and suffix not in (*suffixes(), *HEIC):
                        left_out[suffix] = left_out.get(suffix, 0) + 1
                        continue
                    files[name] = path
                    if reason := _unfit(status):
                        unfit.append(f"{name} ({reason})")
                    size += status.st_size if status else 0
                    limits.check_bytes(f"files in {root}", size)
    except OSError as error:
        raise root_error("a folder that can be read", f"{root} ({error})") from error
    if unfit:
        raise root_error(f"image files in {root}", first_few(sorted(unfit)))
    heic = [n for n in sorted(files) if Path(n).suffix.lower() in {*HEIC} - suffixes()]
    if heic:
        got = f"{first_few(heic)} ({NO_HEIC})"
        raise root_error(f"pictures that Pillow decodes in {root}", got)
    return TreeFiles(layout, files, left_out, tables)


def class_files(
    folder: Path,
    root: Path,
    tree: TreeFiles,
    test_fraction: float | None,
    superclasses: bool = False,
) -> list[dict[str, list[str]]]:
    """Return {class: names} of each part of the layout, as in `Layout.parts`.

    Args:
        folder, root, tree: of `tree_files`.
        test_fraction: of each class, to be cut off where there is no test part; None:
            there must be one.
        superclasses: class folders lie in folders of superclasses.

    Raises:
        UserError: the parts do not have the same 2 or more classes, or one is empty.
    """
    layout, files, _, tables = tree
    parts: list[dict[str, list[str]]] = []
    for split in layout.parts:
        inside = [name for name in sorted(files) if name.startswith(split)]
        classes: dict[str, list[str]] = {}
        if split in tables:
            classes = labelled(inside, tables[split], parts[0], root)
            inside = []
        for name in inside:
            folders = name[len(split) :].split("/")[:-1]
            if len(folders) > superclasses:
                group = classes.setdefault(folders[superclasses], [])
                group += [name] * (not name.endswith("/"))
        if classes.keys() == {IMAGES} and parts and IMAGES not in parts[0]:
            annotations = folder / layout.top / split / ANNOTATIONS
            classes = annotated(classes[IMAGES], annotations, root)
        parts.append({name: classes[name] for name in sorted_classes(classes)})
    beside = first_few(sorted(e.name for e in _visible(folder / layout.top)), 10)
    for split, classes in zip(layout.parts, parts, strict=True):
        if not classes:
            expected = f"{split or 'train/'}<class>/ folders in {root}"
            expected += f", or {table_name(split)}" * bool(parts[0])
            raise root_error(expected, f"only {beside or 'nothing'}")
        for name, images in classes.items():
            if not name.isprintable():
                raise root_error("class folders of printable names", ascii(name))
            if not images and split in layout.splits:
                raise root_error(f"images in {root}", f"{split}{name} empty")
    if len(layout.splits) == 1 and test_fraction is None:
        raise root_error(f"test/<class>/ folders in {root}", f"only {beside}")
    _check_classes(layout, parts, root)
    cut = test_fraction if test_fraction and len(layout.splits) == 1 else 0.0
    counts = {name: len(images) for name, images in parts[0].items()}
    check_counts(layout.splits[0], counts, root, cut)
    return parts


def _layout_of(folder: Path, val: str | None) -> Layout:
    def folders(at: str) -> set[str]:
        return visible_folders(folder / at)

    layout = find_layout(folders, val)
    if val is not None and layout.val.rstrip("/").rpartition("/")[2] != val:
        names = folders(layout.top)
        got = f"no such folder beside {', '.join(sorted(names))}"
        raise source_error("val", "the name of a part", f"{val!r}, {got}")
    if layout.splits == ("",):
        _check_alike({name: folders(layout.top + name) for name in folders(layout.top)})
    return layout


def _check_alike(folders: dict[str, set[str]]) -> None:
    """Refuse "classes" whose folders hold the same folders: they are parts."""
    first = next(iter(folders.values()), set())
    if (
        len(folders) > 1
        and len(first) > 1
        and all(f == first for f in folders.values())
    ):
        parts = first_few(f"{name}/" for name in sorted(folders))
        got = f"{parts} with the same folders in each ({first_few(sorted(first))})"
        hint = "name parts train/ and test/, or name one of them with data.source.val"
        raise root_error("class folders", got, hint)


def _check_classes(
    layout: Layout, parts: list[dict[str, list[str]]], root: Path
) -> None:
    train, classes = layout.splits[0], parts[0]
    for other, names in zip(layout.parts[1:], parts[1:], strict=True):
        for name in names:
            if name not in classes:
                expected = f"{other}{name}/ to be in {train} as well in {root}"
                hint = nearest(name, classes)
                raise root_error(expected, f"no {train}{name}", hint)


def check_counts(split: str, counts: Mapping[str, int], root: Path, cut: float) -> None:
    """Refuse a class too small to train, validate and, after the cut, test on."""
    if len(counts) < 2:
        raise root_error(f"2 or more classes in {root}", first_few(counts) or "none")
    for name, n in counts.items():
        if n - (max(1, round(n * cut)) if cut else 0) < 2:
            expected = "2 or more images of each class to train and validate on"
            if cut:
                expected += f", once {cut:g} are cut off (data.source.test_fraction),"
            raise root_error(f"{expected} in {root}", f"{n} in {split}{name}")


def visible_folders(folder: Path) -> set[str]:
    """Return the names of the folders in a folder; none where there is no such."""
    if not folder.is_dir():
        return set()
    return {entry.name for entry in _visible(folder) if entry.is_dir()}


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
