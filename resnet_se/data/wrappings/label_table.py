"""Labels of pictures in a CSV file, as Kaggle's and fastai's sets have them."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from resnet_se.data.decode import suffixes
from resnet_se.data.reading import first_few, root_error, source_error

FILES = (
    "id",
    "file",
    "fname",
    "filename",
    "file_name",
    "image",
    "image_id",
    "name",
    "path",
)
LABELS = ("label", "labels", "class", "class_name", "classid", "breed", "target")


def read_labels(path: Path, argument: str = "labels") -> dict[str, str]:
    """Return {file: label} of a CSV with a header, in its order.

    The columns are found by their names (`FILES`, `LABELS`, in upper case or lower), or
    are the only two there are.

    Raises:
        UserError: on `data.source.<argument>`: it cannot be read, has other columns, a
            row without one of them, a file twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        got = f"{path} ({error})"
        raise source_error(argument, "a CSV that can be read", got) from None
    names = [name.strip().casefold() for name in header]
    file_at = next((names.index(n) for n in FILES if n in names), None)
    label_at = next((names.index(n) for n in LABELS if n in names), None)
    if len(names) == 2:
        file_at = 1 - label_at if file_at is None and label_at is not None else file_at
        label_at = 1 - file_at if label_at is None and file_at is not None else label_at
    if file_at is None or label_at is None:
        expected = f"columns of files and labels (id, label) in {path}"
        raise source_error(argument, expected, ", ".join(header) or "nothing")
    labels: dict[str, str] = {}
    twice: list[str] = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) <= max(file_at, label_at) or not row[file_at] or not row[label_at]:
            got = f"{row} in line {number}"
            raise source_error(
                argument, f"a file and a label in each row of {path}", got
            )
        name = row[file_at]
        if name in labels:
            twice.append(name)
        labels[name] = row[label_at]
    if twice:
        raise source_error(argument, f"each file once in {path}", first_few(twice))
    return labels


def labelled_files(root: Path, table: str) -> tuple[dict[str, Path], list[str]]:
    """Return {name: picture} of all that a CSV names, and their labels.

    A name is a path from the CSV's folder, from `root` or from `train` in it, with or
    without its suffix.

    Args:
        table: the CSV, by its path or its name in `root`.

    Raises:
        UserError: as `read_labels`; a file is not there or leaves `root`.
    """
    path = root / table if (root / table).is_file() else Path(table)
    labels = read_labels(path)
    places = {path.parent, root, root / "train"}
    files: dict[str, Path] = {}
    absent: list[str] = []
    top = os.path.realpath(root)
    for name in labels:
        endings = ("", *sorted(suffixes())) if not Path(name).suffix else ("",)
        tried = (place / f"{name}{end}" for end in endings for place in places)
        file = next((file for file in tried if file.is_file()), None)
        if file is None or not os.path.realpath(file).startswith(top + os.sep):
            absent.append(name)
        else:
            files[name] = file
    if absent:
        expected = f"the files that {path} names to be in {root}"
        raise root_error(expected, f"no {first_few(absent)}")
    return files, list(labels.values())
