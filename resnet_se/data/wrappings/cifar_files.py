"""CIFAR-10 and -100 in the wrappings that they come in besides the Python batches.

*binary*: records of one label byte (CIFAR-100: a coarse and a fine one) and 3,072 of
pixels.  *Parquet*: the Hub's copy, a column of encoded images and one of labels.
*Kaggle*: `train/<number>.png` and `trainLabels.csv`; its 300,000 test images have no
labels.  Image trees are `image_tree`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from resnet_se.data.archives import archive_folders, is_archive, unpacked
from resnet_se.data.decode import DecodeError, decode
from resnet_se.data.image_set import ImageSet
from resnet_se.data.image_tree import find_layout, visible_folders
from resnet_se.data.reading import Limits, first_few, root_error
from resnet_se.data.splits import stratified_split
from resnet_se.data.wrappings.content import PIXELS, content_order
from resnet_se.data.wrappings.image_files import decode_files
from resnet_se.data.wrappings.label_table import read_labels
from resnet_se.utils.errors import UserError

Folders = Callable[[str], set[str]]  # of a folder in a tree, the names below it
ROWS = 1024  # of a Parquet file that are decoded at once
KAGGLE_LABELS = "trainLabels.csv"
TEST_FRACTION = 0.2  # of Kaggle's labelled images


class Names(NamedTuple):
    """The names of one data set's files, in every wrapping."""

    classes: tuple[str, ...]
    batches: str  # folder of the Python batches
    binary: str  # folder of the binary version
    binary_files: tuple[tuple[str, ...], tuple[str, ...]]  # to train and to test on
    label_bytes: int
    matlab: str
    label_column: str

    @property
    def keras_archives(self) -> tuple[str, str]:
        """The names under which Keras 2 and 3 keep the archive of the batches."""
        return f"{self.batches}.tar.gz", f"{self.batches}-target_archive"

    @property
    def archive(self) -> str:
        return f"cifar-{len(self.classes)}-python.tar.gz"

    @property
    def title(self) -> str:
        return f"CIFAR-{len(self.classes)}"


BINARY10 = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)


def names_of(classes: tuple[str, ...]) -> Names:
    """Return the names for CIFAR-10's classes, or for CIFAR-100's."""
    if len(classes) == 10:
        folders = "cifar-10-batches-py", "cifar-10-batches-bin"
        return Names(classes, *folders, BINARY10, 1, "cifar-10-matlab", "label")
    folders = "cifar-100-python", "cifar-100-binary"
    files = ("train.bin",), ("test.bin",)
    return Names(classes, *folders, files, 2, "cifar-100-matlab", "fine_label")


# --- finding -----------------------------------------------------


def kind_of(path: Path, names: Names, below: bool = True) -> str:
    """Return python, binary, parquet, kaggle, tree or "" of a folder or an archive.

    Args:
        below: an image tree may lie under common folders.

    Raises:
        UserError: an archive is damaged.
    """
    if path.is_file():
        if path.name in (names.archive, *names.keras_archives):
            return "python"
        if path.suffix == ".parquet":
            return "parquet"
        return _kind_of_archive(path, names) if is_archive(path) else ""
    if not path.is_dir():
        return ""
    if (path / names.batches).is_dir() or path.name == names.batches:
        return "python"
    if all((path / name).is_file() for part in names.binary_files for name in part):
        return "binary"
    if (path / KAGGLE_LABELS).is_file():
        return "kaggle"
    if parquet_files(path):
        return "parquet"
    layout = find_layout(lambda at: visible_folders(path / at))
    whole = all((path / layout.top / part).is_dir() for part in layout.splits)
    fits = whole and len(layout.splits) == 2 and (below or not layout.top)
    return "tree" if fits else ""


def _kind_of_archive(path: Path, names: Names) -> str:
    folders = archive_folders(path, Limits())
    near = folders("") | {n for at in folders("") for n in folders(f"{at}/")}
    if names.batches in near:
        return "python"
    if names.binary in near:
        return "binary"
    layout = find_layout(folders)
    at = layout.top + layout.splits[0]
    ours = folders(at) & set(names.classes) or has_superclasses(folders, at, names)
    return "tree" if layout.splits[1:] and ours else ""


def has_superclasses(folders: Folders, at: str, names: Names) -> bool:
    """Return True where class folders lie in folders of superclasses, as fastai's."""
    classes, above = set(names.classes), folders(at)
    return not above & classes and any(folders(f"{at}{n}/") & classes for n in above)


def find_superclasses(path: Path, names: Names) -> bool:
    """Return `has_superclasses` of a tree, a folder or an archive.

    Raises:
        UserError: the archive is damaged.
    """
    folders = lambda at: visible_folders(path / at)  # noqa: E731
    if path.is_file():
        folders = archive_folders(path, Limits())
    layout = find_layout(folders)
    return has_superclasses(folders, layout.top + layout.splits[0], names)


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of the training and the test part, in the Hub's layouts."""
    for below in (".", "plain_text", "cifar10", "cifar100", "data"):
        parts = {
            part: sorted((folder / below).glob(f"{part}-*.parquet"))
            for part in ("train", "test")
        }
        if parts["train"]:
            return parts
    return {}


def source_files(kind: str, path: Path, names: Names) -> list[Path]:
    """Return the files that a wrapping's images come from, in a fixed order."""
    if kind == "parquet" and path.is_file():
        path = path.parent
    if path.is_file():
        return [path]
    if kind == "binary":
        return [path / name for part in names.binary_files for name in part]
    if kind == "parquet":
        return [file for part in parquet_files(path).values() for file in part]
    return [path / KAGGLE_LABELS, *_kaggle_files(path).values()]


# --- reading -----------------------------------------------------


def read_binary(name: str, path: Path, names: Names) -> ImageSet:
    """Return the images of the binary version, a folder or its archive.

    Raises:
        UserError: a file is missing or not of whole records, a label out of range.
    """
    wanted = {name for part in names.binary_files for name in part}
    with _folder_of(path, wanted, names.binary) as folder:
        tensors: list[torch.Tensor] = []
        for part in names.binary_files:
            records = [_records(folder / name, names) for name in part]
            table = np.concatenate(records)
            labels = table[:, names.label_bytes - 1].astype(np.int64)
            pixels = table[:, names.label_bytes :].reshape(-1, 3, 32, 32)
            tensors += [torch.from_numpy(pixels.copy()), torch.from_numpy(labels)]
            del records, table, pixels
    origin = f"binary version of {names.title}"
    return ImageSet(name, origin, names.classes, *tensors)


@contextmanager
def _folder_of(path: Path, wanted: set[str], base: str) -> Iterator[Path]:
    if path.is_dir():
        yield path
        return
    select = lambda _: lambda member: Path(member.name).name in wanted  # noqa: E731
    with unpacked(path, select, Limits()) as folder:
        yield next((at for at in folder.rglob(base)), folder)


def _records(path: Path, names: Names) -> np.ndarray:
    size = names.label_bytes + PIXELS
    try:
        table = np.fromfile(path, np.uint8)
    except OSError as error:
        raise root_error(f"the file {path}", error.strerror or error) from None
    if not len(table) or len(table) % size:
        got = f"{len(table):,} bytes in {path}"
        raise root_error(f"whole records of {size:,} bytes", got)
    table = table.reshape(-1, size)
    _check_labels(table[:, names.label_bytes - 1], path, names)
    return table


def _check_labels(labels: np.ndarray, path: Path, names: Names) -> None:
    most = len(names.classes) - 1
    outside = labels[(labels < 0) | (labels > most)]
    if len(outside):
        raise root_error(f"labels 0 to {most} in {path}", int(outside[0]))


def read_parquet(name: str, path: Path, names: Names) -> ImageSet:
    """Return the images of the Hub's Parquet copy, its folder or its training file.

    Raises:
        UserError: pyarrow is not installed, a file is damaged, has other columns, or
            images of another size; a part is missing.
    """
    parts = parquet_files(path if path.is_dir() else path.parent)
    tensors: list[torch.Tensor] = []
    for part in ("train", "test"):
        if not parts.get(part):
            expected = f"{part}-….parquet beside the other part in {path}"
            raise root_error(expected, "no such file")
        rows = [_parquet_rows(file, names) for file in parts[part]]
        images, labels = zip(*rows, strict=True)
        tensors += [
            torch.from_numpy(images[0] if len(rows) == 1 else np.concatenate(images)),
            torch.from_numpy(np.concatenate(labels)),
        ]
    return ImageSet(name, f"Parquet copy of {names.title}", names.classes, *tensors)


def _parquet_rows(path: Path, names: Names) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 3, 32, 32) and labels (N,) of one file."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"data.source.root: {path.name} needs pyarrow, which is not installed; "
            "uv sync --extra parquet"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            image = next((c for c in ("img", "image") if c in columns), None)
            if image is None or names.label_column not in columns:
                expected = f"columns img and {names.label_column} in {path}"
                raise root_error(expected, ", ".join(columns))
            kind = file.schema_arrow.field(names.label_column).type
            if not pa.types.is_integer(kind):
                raise root_error(
                    f"whole numbers as {names.label_column} in {path}", kind
                )
            count = file.metadata.num_rows
            images = np.empty((count, 3, 32, 32), np.uint8)
            labels = np.empty(count, np.int64)
            done = 0
            for rows in file.iter_batches(ROWS, columns=[image, names.label_column]):
                if rows.column(1).null_count:
                    raise root_error(f"a label in each row of {path}", "none in some")
                found = rows.column(1).to_numpy(zero_copy_only=False)
                labels[done : done + len(found)] = found
                for i, row in enumerate(rows.column(0), done):
                    images[i] = _encoded(row.as_py(), i, path)
                done += len(found)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        got = f"{path} ({str(error).splitlines()[0]})"
        raise root_error("a whole Parquet file", got) from None
    _check_labels(labels, path, names)
    return images, labels


def _encoded(value: Any, row: int, path: Path) -> np.ndarray:
    """Return uint8 (3, 32, 32) of one encoded image: bytes, or a struct with them."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        got = f"{type(value).__name__} in row {row} of {path}"
        raise root_error("encoded images (bytes)", got)
    try:
        pixels = decode(data).pixels
    except DecodeError as error:
        raise root_error(f"images in {path}", f"row {row} ({error})") from None
    if pixels.shape != (3, 32, 32):
        got = f"{pixels.shape[1:]} in row {row}"
        raise root_error(f"images of (32, 32) in {path}", got)
    return pixels


def _kaggle_files(folder: Path) -> dict[str, Path]:
    """Return {id: picture} of all that `trainLabels.csv` names, in its order."""
    labels = read_labels(folder / KAGGLE_LABELS, "root")
    files = {name: folder / "train" / f"{name}.png" for name in labels}
    absent = [f"train/{path.name}" for path in files.values() if not path.is_file()]
    if absent:
        expected = f"the files that {KAGGLE_LABELS} names in {folder}"
        raise root_error(expected, f"no {first_few(absent)}", "unpack train.7z there")
    return files


def read_kaggle(name: str, path: Path, names: Names) -> ImageSet:
    """Return Kaggle's labelled images; the test part is cut by `canonical`'s caller.

    Raises:
        UserError: files that are named and not there, unknown classes, broken images.
    """
    labels = read_labels(path / KAGGLE_LABELS, "root")
    unknown = sorted(set(labels.values()) - set(names.classes))
    if unknown:
        expected = f"classes of {names.title} in {path / KAGGLE_LABELS}"
        raise root_error(expected, first_few(unknown))
    files = _kaggle_files(path)
    shown = [f"train/{file.name}" for file in files.values()]
    images = decode_files(shown, list(files.values()), path, None, Limits()).images
    if images.shape[1:] != (3, 32, 32):
        raise root_error(f"images of (32, 32) in {path}", images.shape[2:])
    x = torch.from_numpy(images)
    y = torch.tensor([names.classes.index(label) for label in labels.values()])
    order = content_order(x, y)  # the cut must not follow from the file's names
    x, y = x[order], y[order]
    train, test = stratified_split(y, TEST_FRACTION, seed=0)
    origin = (
        f"Kaggle's copy of {names.title}, whose test images have no labels: "
        f"{TEST_FRACTION:.0%} of the labelled ones cut off to test"
    )
    parts = x[train], y[train], x[test], y[test]
    return ImageSet(name, origin, names.classes, *parts)


READERS: dict[str, Callable[[str, Path, Names], ImageSet]] = {
    "binary": read_binary,
    "parquet": read_parquet,
    "kaggle": read_kaggle,
}
