"""Parts whose pictures lie in one folder, with their labels in a table beside them.

* Tiny ImageNet's `val/images/` and `val/val_annotations.txt`
* `Test/` and `Test.csv`, as GTSRB has them on Kaggle (Stallkamp et al. 2012): any CSV
  of files and labels (`label_table`) that is called as the part, beside it or in it
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from resnet_se.data.reading import first_few, root_error
from resnet_se.data.wrappings.label_table import read_labels

IMAGES, ANNOTATIONS = "images", "val_annotations.txt"  # of Tiny ImageNet's val/


def annotated(names: list[str], annotations: Path, root: Path) -> dict[str, list[str]]:
    """Return {class: names} by a table of file, class and more, divided by tabs."""
    try:
        rows = [row.split("\t") for row in annotations.read_text().splitlines()]
    except (OSError, ValueError):
        expected = f"class folders, or {ANNOTATIONS} beside {IMAGES}/, in {root}"
        raise root_error(expected, f"none in {annotations.parent.name}/") from None
    labels = {row[0]: row[1] for row in rows if len(row) > 1}
    classes: dict[str, list[str]] = {}
    for name in names:
        file = name.rpartition("/")[2]
        if file not in labels:
            raise root_error(f"each file of {root} in {ANNOTATIONS}", f"no {file}")
        classes.setdefault(labels[file], []).append(name)
    return classes


def table_name(part: str) -> str:
    """Return the name of a part's table, `test.csv` of `Test/`, in lower case."""
    return f"{part.rstrip('/').rpartition('/')[2]}.csv".casefold()


def find_table(part: Path) -> Path | None:
    """Return the CSV of a part's labels, or None."""
    beside = sorted((*part.parent.glob("*.[cC][sS][vV]"), *part.glob("*.[cC][sS][vV]")))
    name = table_name(part.name)
    return next((path for path in beside if path.name.casefold() == name), None)


def labelled(
    names: Iterable[str], table: Path, classes: Iterable[str], root: Path
) -> dict[str, list[str]]:
    """Return {class: names} of a part's pictures, by its table.

    Args:
        names: of the pictures, `Test/00000.png`; the table has them with their folders
            or without, their labels as the class folders, or as the same numbers.
        classes: of the training part.

    Raises:
        UserError: as `read_labels`; the table names other files than there are.
    """
    rows = read_labels(table, "root")
    labels = {name.rpartition("/")[2]: label for name, label in rows.items()}
    if len(labels) < len(rows):
        raise root_error(f"each file once in {table}", "some in two folders")
    files = {name.rpartition("/")[2]: name for name in names}
    for one, other, expected in (
        (labels, files, f"the files that {table.name} names to be in {root}"),
        (files, labels, f"each picture of {root} that is beside no class in {table}"),
    ):
        absent = sorted(one.keys() - other.keys())
        if absent:
            raise root_error(expected, f"no {first_few(absent)}")
    numbers = {int(name): name for name in classes if name.isdecimal()}
    found: dict[str, list[str]] = {}
    for file, name in sorted(files.items()):
        label = labels[file]
        if label.isdecimal():
            label = numbers.get(int(label), label)
        found.setdefault(label, []).append(name)
    return found
