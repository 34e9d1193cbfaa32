"""Classifies pictures with a trained network: files, folders, globs, archives.

    resnet-se predict RUN photos/*.jpg -o labels.csv
    resnet-se predict run=DIR inputs=PATH [out=PATH.csv] [tta=true] [top=5]

A row a picture: path, class, probability, and so on for the `top` most probable
(`out=submission.csv`: `id,label`, Kaggle's form);
`tta=true` takes the mean over the run's own views, a name those of `conf/tta`.  What
cannot be read is named and left out, and makes the exit status 2.  Where a picture's
folder has the name of a class, that is taken for its label: accuracy and confusion.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from resnet_se.config.targets import build_target
from resnet_se.data.inference_inputs import Pictures, batches, find_pictures
from resnet_se.data.reading import first_few
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.models.tta import TTA
from resnet_se.utils.console import count_of, plain_table
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.files import atomic_file, check_file, csv_cell, writing
from resnet_se.utils.system import accelerator

FORMATS = (".csv", ".jsonl")
SUBMISSION = "submission.csv"  # this name has Kaggle's form

Write = Callable[[str, list[str], list[float]], None]


class Summary(NamedTuple):
    """The pictures classified; `confusion` (K, K) counts label × predicted."""

    pictures: int
    broken: list[str]
    passed_over: int
    confusion: Tensor
    seconds: float

    @property
    def labelled(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float | None:
        hits = int(self.confusion.diagonal().sum())
        return hits / self.labelled if self.labelled else None


def predict(cfg: DictConfig) -> Summary:
    """Write a row a picture.

    Raises:
        UserError: as `load` and `find_pictures`; and, once all the others are written,
            naming pictures that cannot be read.
    """
    inputs = cfg.inputs if isinstance(cfg.inputs, ListConfig) else [cfg.inputs]
    out = None if cfg.out is None else Path(cfg.out)
    if out is not None and out.suffix not in FORMATS:
        hint = nearest(out.suffix, FORMATS)
        raise UserError(f"out: expected a name in .csv or .jsonl, got {out}; {hint}")
    if out is not None:
        check_file(out)
    for key in ("batch_size", "top"):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            raise UserError(f"{key}: expected an integer >= 1, got {cfg[key]!r}")
    model = read(cfg.run, bool(cfg.trust))
    if model.note:
        print(f"note: {model.note}", file=sys.stderr)
    model.to(accelerator(cfg.accelerator))
    top = min(cfg.top, len(model.classes))
    named = build_target("tta", cfg.tta) if cfg.get("tta") else None
    views = model.views(True) if cfg.own_tta else named
    with find_pictures(map(str, inputs)) as pictures, _rows(out, top) as write:
        summary = _classify(model, pictures, views, cfg.batch_size, top, write)
    _print_summary(model, summary)
    if summary.broken:
        raise UserError(
            f"inputs: {len(summary.broken):,} of "
            f"{count_of(summary.pictures + len(summary.broken), 'picture')} could not "
            f"be read: "
            f"{first_few(summary.broken)}"
        )
    return summary


def _classify(
    model: Pretrained,
    pictures: Pictures,
    views: TTA | None,
    batch_size: int,
    top: int,
    write: Write,
) -> Summary:
    """Write the rows; those that cannot be read are named on stderr."""
    k = len(model.classes)
    number = {name: i for i, name in enumerate(model.classes)}
    confusion = torch.zeros(k * k, dtype=torch.int64)
    done = 0
    broken: list[str] = []
    started = time.perf_counter()
    with _bar(pictures) as advance:
        for batch in batches(pictures, model.size, batch_size):
            for name, why in batch.broken.items():
                print(f"skipped {name}: {why}", file=sys.stderr)
                broken.append(name)
            if batch.pictures:
                images = torch.from_numpy(batch.pixels)
                p = model.probabilities(images, views).cpu()
                values, order = p.sort(dim=1, descending=True, stable=True)  # (B, K)
                rows = zip(batch.pictures, order.tolist(), values.tolist(), strict=True)
                for picture, best, chances in rows:
                    names = [model.classes[i] for i in best[:top]]
                    write(printable(picture.name), names, chances[:top])
                    if picture.folder in number:
                        confusion[number[picture.folder] * k + best[0]] += 1
            done += len(batch.pictures)
            advance(len(batch.pictures) + len(batch.broken))
    seconds = time.perf_counter() - started
    passed_over = pictures.passed_over()
    return Summary(done, broken, passed_over, confusion.view(k, k), seconds)


# --- output ------------------------------------------------------


def printable(name: str) -> str:
    """Return a file's name as text; one that is not UTF-8 is escaped, one to one."""
    escaped = name.replace("\\", r"\\").encode("utf-8", "backslashreplace").decode()
    surrogates = any("\ud800" <= c <= "\udfff" for c in name)
    return escaped if surrogates or r"\ud" in name else name


@contextmanager
def _rows(out: Path | None, top: int) -> Iterator[Write]:
    """Yield `write(path, classes, probabilities)`; the file is whole or not there."""
    if out is None:
        yield _csv(sys.stdout, top)
        return
    with writing(out), atomic_file(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        if out.name == SUBMISSION:
            yield _submission(text)
        else:
            yield _csv(text, top) if out.suffix == ".csv" else _json_lines(text)
        text.flush()
        text.detach()


def _csv(file: TextIO, top: int) -> Write:
    table = csv.writer(file, lineterminator="\n")
    ranks = [""] + [f"_{i}" for i in range(2, top + 1)]
    columns = [f"{name}{rank}" for rank in ranks for name in ("class", "probability")]
    table.writerow(["path", *columns])

    def write(path: str, names: list[str], chances: list[float]) -> None:
        pairs = zip(names, chances, strict=True)
        # The same file by a name that is no formula.
        path = path if csv_cell(path) == path else f"./{path}"
        row = [v for n, p in pairs for v in (csv_cell(n), f"{p:.6f}")]
        table.writerow([path, *row])

    return write


def _submission(file: TextIO) -> Write:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["id", "label"])

    def write(path: str, names: list[str], chances: list[float]) -> None:
        table.writerow([Path(path).stem, names[0]])

    return write


def _json_lines(file: TextIO) -> Write:
    def write(path: str, names: list[str], chances: list[float]) -> None:
        pairs = zip(names, chances, strict=True)
        top = [{"class": n, "probability": round(p, 6)} for n, p in pairs]
        file.write(json.dumps({"path": path, "top": top}, ensure_ascii=False) + "\n")

    return write


@contextmanager
def _bar(pictures: Pictures) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, else nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda steps: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("classifying", total=sum(1 for _ in pictures))
        yield lambda steps: bar.advance(task, steps)


def _print_summary(model: Pretrained, summary: Summary) -> None:
    console = Console(stderr=True, highlight=False)
    rate = summary.pictures / max(summary.seconds, 1e-9)
    closing = f"{count_of(summary.pictures, 'picture')} in {summary.seconds:.1f} s"
    closing += f", {rate:,.0f} images/s"
    if summary.broken:
        closing += f"; {len(summary.broken):,} could not be read"
    if summary.passed_over:
        closing += f"; {count_of(summary.passed_over, 'file')} no pictures by suffix"
    console.print(closing, soft_wrap=True)
    if summary.accuracy is None:
        return
    known = "" if summary.labelled == summary.pictures else " whose folder is a class"
    console.print(
        f"accuracy {summary.accuracy:.2%} of "
        f"{count_of(summary.labelled, 'picture')}{known}",
        soft_wrap=True,
    )
    numbers = [str(i) for i in range(1, len(model.classes) + 1)]
    table = plain_table("label (rows) × predicted", "", *numbers)
    rows = zip(numbers, model.classes, summary.confusion.tolist(), strict=True)
    for number, name, counts in rows:
        cells = (str(n) if n else "·" for n in counts)
        table.add_row(f"{number:>{len(numbers[-1])}} {name}", *cells)
    if console.measure(table).maximum <= console.width:
        console.print(table)
