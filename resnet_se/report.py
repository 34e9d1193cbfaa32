"""Tables, tests, figures and one HTML page from the `result.json` files of many runs.

    python -m resnet_se.report RUNS... [--out DIR] [--name NAME]

RUNS are run directories, directories with `result.json` files at any depth, or such
files themselves.  Writes REPORT.md, report.html, table.csv, table.tex and figures/ into
DIR; every number comes from a `result.json`.  Exit status 1: a file could not be used;
2: none could.  Load → group → compare → a list of blocks → Markdown, HTML.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import re
import sys
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from resnet_se import plots
from resnet_se.config import NOT_HASHED
from resnet_se.errors import UserError
from resnet_se.results import SCHEMA, STATUSES, atomic_file, unpack_labels
from resnet_se.statistics import (
    contrast_test,
    holm,
    mcnemar_exact,
    mean_std,
    paired_bootstrap,
    pooled_variance,
)

ALPHA = 0.05
EXPERIMENTS = [f"e{i:02d}" for i in range(1, 23)]
COMPARISONS = (  # treatment, baseline, question; the family of Holm's correction
    ("e05", "e01", "SE alone, ResNet-20"),
    ("e06", "e02", "SE alone, ResNet-56"),
    ("e07", "e03", "SE alone, ResNet-80"),
    ("e08", "e04", "SE alone, the paper's layer table"),
    ("e09", "e07", "dropout 0.5"),
    ("e10", "e07", "weight decay 1e-4"),
    ("e11", "e07", "dropout and weight decay"),
    ("e12", "e11", "cosine instead of a fixed rate"),
    ("e13", "e11", "ReduceLROnPlateau instead of a fixed rate"),
    ("e14", "e13", "the final recipe, against the last step before it"),
    ("e15", "e14", "batch 64 instead of 128"),
    ("e16", "e14", "batch 256 instead of 128"),
    ("e17", "e14", "blocks dealt out 12-12-12 instead of 20-6-13"),
    ("e18", "e14", "blocks dealt out 4-18-11 instead of 20-6-13"),
    ("e19", "e14", "SE reduction 4 instead of 16"),
    ("e20", "e14", "SE reduction 8 instead of 16"),
    ("e14", "e21", "SE under the final recipe"),
    ("e22", "e14", "shallow and wide instead of deep, same size"),
)
IDENTITY = {
    "experiment": str,
    "seed": int,
    "config_hash": str,
    "overrides": list,
    "versions": dict,
}
NUMBERS = {  # what is read of a finished run; those of PRESENT may be null
    "data": "train val test split_seed",
    "model": "trainable total macs layers",
    "train": "epochs steps",
    "val": "acc",
    "test": "acc images",
}
PRESENT = {
    "data": "name origin fingerprint classes",
    "train": "seconds images_per_second peak_memory_mb",
    "hardware": "accelerator device cores precision",
    "test": "acc_tta labels predicted",
}


# --- runs --------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One readable `result.json`; `path` is as the user gave it."""

    path: str
    result: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.result[name]  # run.test is result["test"]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def title(self) -> str:
        return f"{self.experiment} seed {self.seed} ({self.config_hash})"

    @cached_property
    def labels(self) -> np.ndarray:
        return unpack_labels(self.test["labels"])

    @cached_property
    def predicted(self) -> np.ndarray:
        return unpack_labels(self.test["predicted"])

    @cached_property
    def predicted_tta(self) -> np.ndarray | None:
        packed = self.test.get("predicted_tta")
        return None if packed is None else unpack_labels(packed)

    @cached_property
    def right(self) -> np.ndarray:
        """1 where the test image was recognised, else 0: (N,)."""
        return (self.predicted == self.labels).astype(np.int64)

    @property
    def machine(self) -> str:
        h = self.hardware
        return "{accelerator}: {device}, {cores} cores, {precision}".format(**h)

    @property
    def software(self) -> str:
        return ", ".join(f"{k} {v}" for k, v in self.versions.items())

    @property
    def commit(self) -> str:
        git = self.result.get("git") or {}
        changed = " + changes" if git.get("dirty") else ""
        return (git.get("commit") or "no commit")[:7].strip() + changed


@dataclass
class Loaded:
    """What was found: `runs` count, the rest is named."""

    runs: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    duplicates: list[tuple[Run, Run, bool]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # files that could not be used


def find(arguments: Iterable[str]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Every record under the arguments, as (file, name to print), and what is none."""
    files: dict[Path, tuple[Path, str]] = {}
    problems = []
    for argument in arguments:
        given = Path(argument)
        found = [given]
        if given.is_dir():
            found = sorted(given.rglob("result.json")) or sorted(given.glob("*.json"))
        if not found or not given.exists():
            problems.append(f"{_relative(given, given)}: no result.json there")
            continue
        for path in found:
            files.setdefault(path.resolve(), (path, _relative(path, given)))
    return list(files.values()), problems


def _relative(path: Path, given: Path) -> str:
    """As given; of an absolute path what lies below here, or below its argument."""
    if not path.is_absolute():
        return path.as_posix()
    base = Path.cwd() if path.is_relative_to(Path.cwd()) else given.parent
    return path.relative_to(base).as_posix()


def read(path: Path) -> dict[str, Any]:
    """A record, checked for all that the report reads of it.

    Raises:
        UserError: unreadable, truncated, of another schema, or edited by hand.
    """
    try:
        result = json.loads(path.read_bytes())
        if result["schema"] != SCHEMA:
            raise UserError(f"schema {SCHEMA} expected, got {result['schema']!r}")
        if result["status"] not in STATUSES:
            raise UserError(f"status expected in {STATUSES}, got {result['status']!r}")
        for key, kind in IDENTITY.items():
            if not isinstance(result[key], kind):
                raise UserError(f"{key}: {kind.__name__} expected, got {result[key]!r}")
        if result["status"] == "finished":
            for part, keys in NUMBERS.items():
                for key in keys.split():
                    float(result[part][key])
            for part, keys in PRESENT.items():
                for key in keys.split():
                    result[part][key]
            for column in (result.get("history") or {}).values():
                len(column)
            _check_predictions(result["test"], len(result["data"]["classes"]))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"not readable ({error.strerror})") from None
    except KeyError as error:
        raise UserError(f"not a result: no field {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"not a result ({type(error).__name__}: {reason})") from None
    return result


def _check_predictions(test: dict[str, Any], num_classes: int) -> None:
    labels = unpack_labels(test["labels"])
    for part in ("", "_tta"):
        packed = test.get(f"predicted{part}")
        if part and packed is None:
            continue
        predicted = unpack_labels(packed)
        if not len(labels) == len(predicted) == test["images"]:
            raise UserError(f"test.predicted{part}: not of test.images images")
        if max(labels.max(), predicted.max()) >= num_classes:
            raise UserError(f"test.predicted{part}: more than {num_classes} classes")
        if abs((labels == predicted).mean() - test[f"acc{part}"]) > 1e-4:
            raise UserError(f"test.acc{part}: not what test.predicted{part} says")


def load(arguments: Iterable[str]) -> Loaded:
    """Reads all records; every one ends in exactly one of `Loaded`'s lists."""
    files, problems = find(arguments)
    loaded = Loaded(problems=problems)
    first: dict[tuple, Run] = {}
    labels: dict[tuple, Run] = {}
    for path, name in files:
        try:
            run = Run(name, read(path))
        except UserError as error:
            loaded.problems.append(f"{name}: {error}")
            continue
        if not run.finished:
            loaded.unfinished.append(run)
            continue
        other = labels.setdefault((run.data["fingerprint"], run.test["images"]), run)
        if run.test["labels"] != other.test["labels"] and (
            run.labels.tolist() != other.labels.tolist()
        ):
            loaded.problems.append(
                f"{name}: test.labels are not those of {other.path} on the same data"
            )
            continue
        identity = (
            run.experiment,
            run.config_hash,
            run.seed,
            run.data["fingerprint"],
            run.test["images"],
        )
        same = first.setdefault(identity, run)
        if same is run:
            loaded.runs.append(run)
        else:
            conflict = any(
                run.result.get(k) != same.result.get(k) for k in ("val", "test")
            )
            loaded.duplicates.append((run, same, conflict))
    return loaded


# --- groups ------------------------------------------------------


@dataclass
class Group:
    """The runs of one experiment and configuration on the same data, by seed."""

    runs: list[Run]

    @property
    def experiment(self) -> str:
        return self.runs[0].experiment

    @property
    def config_hash(self) -> str:
        return self.runs[0].config_hash

    @property
    def prefix(self) -> str | None:
        """`e05` of `e05_se_resnet20`, None of a name that is not numbered so."""
        found = re.match(r"e\d\d(?![^_])", self.experiment)
        return found and found[0]

    @property
    def setting(self) -> str:
        """The overrides, less what every run must vary or cannot matter."""
        return " ".join(
            o
            for o in sorted(self.runs[0].overrides)
            if not o.startswith("experiment=")
            and not any(re.match(rf"[+~]*{re.escape(k)}[.=@]", o) for k in NOT_HASHED)
        )

    @property
    def seeds(self) -> dict[int, Run]:
        return {run.seed: run for run in self.runs}

    def spread(self, part: str, key: str) -> tuple[float, float | None] | None:
        """Mean and deviation over seeds of result[part][key]; None if any lacks it."""
        values = [run.result[part].get(key) for run in self.runs]
        return None if None in values else mean_std(values)

    def span(self, key: str) -> str:
        """A count of `train`: one number, or from–to where seeds differ."""
        values = {run.train[key] for run in self.runs}
        return "–".join(f"{v:,}" for v in sorted({min(values), max(values)}))


@dataclass
class Section:
    """All groups on one data set, split and test set: what may be put in one column."""

    groups: list[Group]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def data(self) -> dict[str, Any]:
        return self.groups[0].runs[0].data

    @property
    def images(self) -> int:
        return self.groups[0].runs[0].test["images"]

    @property
    def name(self) -> str:
        d = self.data
        return f"{d['name']} {d['fingerprint'][:15]} ({d['train']:,} images)"

    def of(self, prefix: str) -> list[Group]:
        return [group for group in self.groups if group.prefix == prefix]

    @property
    def best(self) -> Group:
        return max(self.groups, key=lambda g: g.spread("test", "acc")[0])

    @property
    def worst(self) -> Group:
        return min(self.groups, key=lambda g: g.spread("test", "acc")[0])

    @property
    def numbered(self) -> bool:
        return any(group.prefix in EXPERIMENTS for group in self.groups)


def sections(runs: Iterable[Run]) -> list[Section]:
    """Runs kept apart by data; the section of most runs first."""
    found: dict[tuple, dict[tuple, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        keys = ("name", "fingerprint", "train", "val", "test", "split_seed")
        data = (*(str(run.data[k]) for k in keys), run.test["images"])
        found[data][run.experiment, run.config_hash].append(run)
    made = []
    for _, groups in sorted(found.items()):
        in_order = [sorted(g, key=lambda r: r.seed) for _, g in sorted(groups.items())]
        made.append(Section([Group(runs) for runs in in_order]))
    return sorted(made, key=lambda section: -len(section.runs))


# --- comparisons -------------------------------------------------


@dataclass
class Comparison:
    """Treatment less baseline in test accuracy, over their common seeds."""

    question: str
    treatment: Group
    baseline: Group
    differences: np.ndarray  # (S, N) in -1, 0, 1
    noise: tuple[float, int] = (0.0, 0)  # of `pooled_variance`
    p_holm: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.treatment.prefix} − {self.baseline.prefix}"

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return float(self.differences.mean())

    @cached_property
    def interval(self) -> tuple[float, float]:
        return paired_bootstrap(self.differences)

    @cached_property
    def mcnemar(self) -> list[float]:
        return [mcnemar_exact(row) for row in self.differences]

    @cached_property
    def p(self) -> float:
        """One seed: McNemar's; more: new seeds and new images."""
        if self.n == 1:
            return self.mcnemar[0]
        return contrast_test(self.differences, *self.noise)

    @property
    def verdict(self) -> str:
        if self.p_holm >= ALPHA:
            return "within noise"
        return "better" if self.mean > 0 else "worse"

    @property
    def said(self) -> str:
        return self.verdict + (" (one seed)" if self.n == 1 else "")

    @property
    def points(self) -> str:
        """`+0.31 [+0.10, +0.52]` percentage points."""
        low, high = self.interval
        return f"{_points(self.mean)} [{_points(low)}, {_points(high)}]"


def compare(section: Section) -> tuple[list[Comparison], list[str]]:
    """The planned comparisons of a section, corrected together; why others fail.

    Compared are the common seeds of two groups that differ in their experiment alone.
    """
    made, missing = [], []
    for above, below, question in COMPARISONS:
        pair = f"{above} − {below}"
        of = {
            prefix: {s: [g for g in groups if g.setting == s] for s in settings}
            for prefix in (above, below)
            for groups in [section.of(prefix)]
            for settings in [dict.fromkeys(g.setting for g in groups)]
        }
        for setting in sorted(of[above].keys() | of[below].keys()) or [""]:
            groups = {prefix: of[prefix].get(setting, []) for prefix in of}
            where = f" with {setting}" if setting else ""
            absent = [prefix for prefix in groups if not groups[prefix]]
            if absent:
                missing.append(f"{pair}: no run of {' or '.join(absent)}{where}")
                continue
            (t, *more), (b, *others) = groups.values()
            common = sorted(t.seeds.keys() & b.seeds.keys())
            if more or others:
                missing.append(
                    f"{pair}: several configurations{where}, not one of each"
                )
            elif not common:
                missing.append(f"{pair}: no seed in common{where}")
            else:
                rows = [t.seeds[s].right - b.seeds[s].right for s in common]
                alike = [g for g in section.groups if g.setting == setting]
                noise = pooled_variance([r.test["acc"] for r in g.runs] for g in alike)
                made.append(Comparison(question, t, b, np.stack(rows), noise))
    for comparison, p in zip(made, holm([c.p for c in made]), strict=True):
        comparison.p_holm = p
    return made, missing


# --- tables ------------------------------------------------------


@dataclass
class Table:
    """Cells as text; `left` columns are aligned left, the others right."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    left: Sequence[int] = (0,)


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _accuracy(spread: tuple[float, float | None] | None) -> str:
    """`94.10 ± 0.12`, in per cent; one seed has no deviation."""
    if spread is None:
        return "–"
    mean, std = spread
    return f"{100 * mean:.2f} ± {'–' if std is None else f'{100 * std:.2f}'}"


def _points(value: float) -> str:
    text = f"{100 * value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def records(section: Section) -> list[dict[str, Any]]:
    """The main table with full precision, one dict a group: what all formats show.

    Speed, time and memory are means over the seeds of one machine: {machine: mean}.
    """

    def by_machine(group: Group, key: str) -> dict[str, float]:
        found = defaultdict(list)
        for run in group.runs:
            if run.train[key] is not None:
                found[run.machine].append(run.train[key])
        return {machine: mean_std(v)[0] for machine, v in sorted(found.items())}

    rows = []
    for group in section.groups:
        model, accuracies = group.runs[0].model, {}
        for part, key in (("val", "acc"), ("test", "acc"), ("test", "acc_tta")):
            accuracies[f"{part}_{key}"] = group.spread(part, key)
        rows.append(
            {
                "experiment": group.experiment,
                "config_hash": group.config_hash,
                "setting": group.setting,
                "seeds": list(group.seeds),
                **accuracies,
                "parameters": model["total"],
                "trainable": model["trainable"],
                "macs": model["macs"],
                "layers": model["layers"],
                "epochs": group.span("epochs"),
                "steps": group.span("steps"),
                "images_per_second": by_machine(group, "images_per_second"),
                "seconds": by_machine(group, "seconds"),
                "peak_memory_mb": by_machine(group, "peak_memory_mb"),
            }
        )
    return rows


def main_table(section: Section, letters: dict[str, str]) -> Table:
    """Mean ± deviation over seeds; a column of its own for each machine's speed."""
    machines = sorted({run.machine for run in section.runs})
    head = ["experiment", "n", "val %", "test %", "test TTA %", "setting", "hash"]
    head += ["epochs", "steps", "parameters", "MMAC"]
    for machine in machines:
        letter = f" {letters[machine]}" if len(machines) > 1 else ""
        head += [f"{name}{letter}" for name in ("images/s", "minutes", "memory MB")]
    rows = []
    for r in records(section):
        row = [r["experiment"], str(len(r["seeds"]))]
        row += [_accuracy(r[k]) for k in ("val_acc", "test_acc", "test_acc_tta")]
        row += [r["setting"] or "–", r["config_hash"], r["epochs"], r["steps"]]
        row += [f"{r['parameters']:,}", f"{r['macs'] / 1e6:.1f}"]
        for machine in machines:
            seconds = r["seconds"].get(machine)
            row += [
                _number(r["images_per_second"].get(machine)),
                _number(None if seconds is None else seconds / 60, 1),
                _number(r["peak_memory_mb"].get(machine)),
            ]
        rows.append(row)
    caption = f"{section.name}: mean ± sample standard deviation over n seeds"
    return Table(caption, head, rows, left=(0, 5, 6))


def csv_text(section: Section) -> str:
    """The main table of one data set, machine-readable."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head, d = None, section.data
    for r in records(section):
        flat: dict[str, Any] = {
            "data": d["name"],
            "fingerprint": d["fingerprint"],
            **{f"{part}_images": d[part] for part in ("train", "val")},
            "test_images": section.images,
        }
        for key, value in r.items():
            if key.endswith(("acc", "acc_tta")):
                mean, std = value or (None, None)
                flat |= {f"{key}_mean": mean, f"{key}_std": std}
            elif key == "seeds":
                flat |= {"n": len(value), "seeds": " ".join(map(str, value))}
            elif isinstance(value, dict):
                flat[key] = " | ".join(f"{v:.6g}" for v in value.values())
            else:
                flat[key] = value
        flat["hardware"] = " | ".join(r["seconds"])
        if head is None:
            head = list(flat)
            writer.writerow(head)
        writer.writerow(
            f"{v:.6g}" if isinstance(v, float) else v for v in flat.values()
        )
    return out.getvalue()


def comparison_table(section: Section, made: list[Comparison]) -> Table:
    head = ["question", "pair", "seeds", "difference", "95 % interval"]
    head += ["McNemar p by seed", "p", "p (Holm)", "verdict"]
    rows = []
    for c in made:
        low, high = c.interval
        row = [c.question, c.name, str(c.n), _points(c.mean)]
        row += [f"[{_points(low)}, {_points(high)}]", " ".join(map(_p, c.mcnemar))]
        rows.append([*row, _p(c.p), _p(c.p_holm), c.said])
    caption = (
        f"{section.name}: differences of test accuracy in percentage points, "
        f"a family of {len(made)}"
    )
    return Table(caption, head, rows, left=(0, 1, 8))


def run_table(loaded: Loaded, letters: dict[str, str]) -> Table:
    """Every file that was read, and what became of it."""
    head = ["file", "status", "experiment", "seed", "hash", "data", "hardware"]
    head += ["epochs", "commit", "test %"]
    rows = []
    copies = {run.path: "duplicate" for run, _, _ in loaded.duplicates}
    for run in [*loaded.runs, *(r for r, _, _ in loaded.duplicates)]:
        row = [run.path, copies.get(run.path, run.status), run.experiment]
        row += [str(run.seed), run.config_hash, run.data["fingerprint"]]
        row += [letters[run.machine], f"{run.train['epochs']:,}", run.commit]
        rows.append([*row, f"{100 * run.test['acc']:.2f}"])
    for run in loaded.unfinished:
        row = [run.path, run.status, run.experiment, str(run.seed), run.config_hash]
        rows.append([*row, "–", "–", "–", run.commit, "–"])
    return Table("", head, rows, left=(0, 1, 2, 4, 5, 6, 8))


# --- claimed and measured ----------------------------------------

Measured = list[tuple[str, list[Group], int]]  # value, the groups it is of, n
NOT_MEASURED = "not measured"


def _accuracies(prefix: str, part: str, key: str) -> Callable[..., Measured]:
    def measure(section: Section, _: list[Comparison]) -> Measured:
        found = [(g.spread(part, key), g) for g in section.of(prefix)]
        return [(f"{_accuracy(s)} %", [g], len(g.runs)) for s, g in found if s]

    return measure


def _differences(above: str, below: str) -> Callable[..., Measured]:
    def measure(_: Section, made: list[Comparison]) -> Measured:
        return [
            (f"{c.name}: {c.points} points, {c.said}", [c.treatment, c.baseline], c.n)
            for c in made
            if (c.treatment.prefix, c.baseline.prefix) == (above, below)
        ]

    return measure


def _training_accuracy(section: Section, _: list[Comparison]) -> Measured:
    found = []
    for group in section.of("e14"):
        columns = [(r.result.get("history") or {}).get("train/acc") for r in group.runs]
        last = [column[-1] for column in columns if column and column[-1] is not None]
        if last:
            text = f"{_accuracy(mean_std(last))} % (last epoch, augmented images)"
            found.append((text, [group], len(last)))
    return found


def _tta(section: Section, _: list[Comparison]) -> Measured:
    found = []
    for group in section.of("e14"):
        if all(run.predicted_tta is not None for run in group.runs):
            rows = [(r.predicted_tta == r.labels) - r.right for r in group.runs]
            c = Comparison("", group, group, np.stack(rows))
            text = f"e14 with TTA − without: {c.points} points"
            found.append((text, [group], c.n))
    return found


CLAIMS: tuple[tuple[str, str, Callable[..., Measured]], ...] = (
    ("accuracy gained by SE", "about 10 %", _differences("e07", "e03")),
    ("accuracy gained by SE, final recipe", "about 10 %", _differences("e14", "e21")),
    ("test accuracy (abstract)", "94.10 %", _accuracies("e14", "test", "acc")),
    (
        "test accuracy (abstract), with TTA",
        "94.10 %",
        _accuracies("e14", "test", "acc_tta"),
    ),
    ("validation accuracy (results)", "94.10 %", _accuracies("e14", "val", "acc")),
    ("training accuracy", "99.99 %", _training_accuracy),
    ("batch 128 is optimal: 64", "not better", _differences("e15", "e14")),
    ("batch 128 is optimal: 256", "not better", _differences("e16", "e14")),
    ("cosine improves on a fixed rate", "significantly", _differences("e12", "e11")),
    ("plateau improves on a fixed rate", "significantly", _differences("e13", "e11")),
    ("TTA improves the accuracy", "yes", _tta),
)


def claim_table(found: list[tuple[Section, list[Comparison]]]) -> Table:
    """Every claim of the paper beside all that was measured of it."""
    rows = _counted([section for section, _ in found])
    for claim, claimed, measure in CLAIMS:
        measured = [
            [claim, claimed, value, str(n), _conditions(section, groups)]
            for section, made in found
            for value, groups, n in measure(section, made)
        ]
        rows += measured or [[claim, claimed, NOT_MEASURED, "–", "–"]]
    head = ["claim of the paper", "claimed", "measured", "n", "where"]
    return Table("", head, rows, left=(0, 1, 2, 4))


def _counted(found: list[Section]) -> list[list[str]]:
    """Sizes of networks: of the runs where there are some, else as `models` counts."""

    def model(prefix: str, trainable: int, total: int) -> tuple[int, int, int, str]:
        for section in found:
            for group in section.of(prefix):
                m = group.runs[0].model
                return m["trainable"], m["total"], m["layers"], group.experiment
        return trainable, total, 80, "`python -m resnet_se.models`"

    se, plain = model("e07", 4_617_010, 4_628_210), model("e03", 4_581_898, 4_593_098)
    final = model("e14", 4_617_010, 4_628_210)
    where = " and ".join(dict.fromkeys([se[3], plain[3]]))
    return [
        [
            "parameters added by SE",
            "about 10 %",
            f"{100 * (se[0] / plain[0] - 1):.2f} % ({se[0]:,} against {plain[0]:,})",
            "–",
            f"counted: {where}",
        ],
        [
            "parameters, layers of the final network",
            "4,628,210, 80",
            f"{final[1]:,}, {final[2]}",
            "–",
            f"counted: {final[3]}",
        ],
    ]


def _conditions(section: Section, groups: list[Group]) -> str:
    epochs = "/".join(dict.fromkeys(g.span("epochs") for g in groups))
    setting = groups[0].setting
    return f"{section.name}, {epochs} epochs{f', {setting}' if setting else ''}"


# --- what is missing or odd --------------------------------------


def global_notes(loaded: Loaded, found: list[Section]) -> list[str]:
    """Files not used, copies, and what differs between the runs."""
    notes = [f"not used: {problem}" for problem in loaded.problems]
    for run in loaded.unfinished:
        why = run.result.get("error")
        notes.append(
            f"{run.status}: {run.title}, {run.path}{f': {_scrub(why)}' if why else ''}"
        )
    for run, first, conflict in loaded.duplicates:
        notes.append(
            f"{'conflict: same run, other numbers' if conflict else 'duplicate'}: "
            f"{run.title}: {run.path} is not counted, {first.path} is"
        )
    if len(found) > 1:
        names = "; ".join(section.name for section in found)
        notes.append(
            f"{len(found)} different data sets or subsets, kept apart: {names}"
        )
    for what in ("commit", "software"):
        of = Counter(getattr(run, what) for run in loaded.runs)
        if len(of) > 1:
            kinds = "; ".join(f"{k} ({n} runs)" for k, n in sorted(of.items()))
            notes.append(f"runs of different {what}: {kinds}")
    dirty = sum(run.commit.endswith("changes") for run in loaded.runs)
    if dirty:
        notes.append(f"{dirty} runs of a working tree with uncommitted changes")
    return notes


def _scrub(text: str) -> str:
    """One line without the folders of somebody's machine."""
    line = " ".join(str(text).split())
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "…/", line)[:200]


def section_notes(section: Section, unfinished: list[Run]) -> list[str]:
    """Missing seeds and experiments, several configurations, mixed machines."""
    notes = []
    ended = {(run.experiment, run.seed): run.status for run in unfinished}
    seeds = sorted({run.seed for run in section.runs})
    for group in section.groups:
        for seed in seeds:
            if seed not in group.seeds:
                status = ended.get((group.experiment, seed))
                notes.append(
                    f"missing: {group.experiment} ({group.config_hash}) seed {seed}"
                    f"{f', {status}' if status else ''}"
                )
        machines = sorted({run.machine for run in group.runs})
        if len(machines) > 1:
            notes.append(
                f"{group.experiment} ({group.config_hash}) ran on several machines, "
                f"speeds are not averaged: {'; '.join(machines)}"
            )
    hashes = defaultdict(list)
    for group in section.groups:
        hashes[group.experiment].append(group.config_hash)
    for experiment, several in hashes.items():
        if len(several) > 1:
            notes.append(
                f"{experiment} has {len(several)} configurations, a row each: "
                f"{', '.join(several)}"
            )
    missing = [
        f"{e} ({', '.join(how)})" if how else e
        for e in EXPERIMENTS
        if not section.of(e)
        for how in [sorted({r.status for r in unfinished if r.experiment[:3] == e})]
    ]
    if section.numbered and missing:
        notes.append(f"missing experiments of e01–e22: {', '.join(missing)}")
    return notes


# --- figures -----------------------------------------------------

SHADES = {"better": "#1a7f37", "worse": "#c0392b", "within noise": "#6b7280"}


def factor_figure(made: list[Comparison], title: str) -> Figure:
    """Differences with their intervals, beside zero."""
    figure, axis = plt.subplots(
        figsize=(9, 1.3 + 0.34 * len(made)), layout="constrained"
    )
    for i, c in enumerate(made):
        low, high = (100 * v for v in c.interval)
        shade = SHADES[c.verdict]
        axis.plot([low, high], [i, i], color=shade, lw=2.2, solid_capstyle="butt")
        axis.plot(100 * c.mean, i, "o", color=shade, ms=6)
    axis.axvline(0, color="black", lw=1)
    axis.set_yticks(range(len(made)), [f"{c.question}   {c.name}" for c in made])
    axis.set_ylim(len(made) - 0.4, -0.6)
    axis.set(xlabel="difference of test accuracy, percentage points", title=title)
    axis.grid(axis="x", alpha=0.3)
    for verdict, shade in SHADES.items():
        axis.plot([], [], "o-", color=shade, label=verdict)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in cost (less) and accuracy (more)."""
    front, best = [], -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def spread_labels(heights: Sequence[float], gap: float) -> np.ndarray:
    """Heights at least `gap` apart in their order, as near to `heights` as can be."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = isotonic_regression(np.asarray(heights)[order] - steps).x + steps
    return moved


def cost_figure(section: Section, title: str) -> Figure:
    """Test accuracy against parameters and MMAC, and who is on the Pareto front."""
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 5.6), layout="constrained", sharey=True
    )
    figure.suptitle(title)
    labels = _short_names(section)
    accuracies = [100 * g.spread("test", "acc")[0] for g in section.groups]
    room = max(np.ptp(accuracies), 0.5)
    axes[0].set_ylim(min(accuracies) - 0.1 * room, max(accuracies) + 0.15 * room)
    for axis, key, name in zip(
        axes, ("total", "macs"), ("parameters, millions", "MMAC an image"), strict=True
    ):
        costs = [g.runs[0].model[key] / 1e6 for g in section.groups]
        points = list(zip(costs, accuracies, strict=True))
        front = pareto(points)
        axis.plot(
            *zip(*(points[i] for i in front), strict=True),
            color="#c98500",
            lw=1.5,
            drawstyle="steps-post",
            label="Pareto front",
        )
        axis.scatter(
            costs,
            accuracies,
            s=28,
            zorder=3,
            color=["#c98500" if i in front else "#2563eb" for i in range(len(points))],
        )
        axis.set_xscale("log")
        axis.set(xlabel=name)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        _label_points(axis, points, labels, gap=0.04 * room)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(loc="upper left", frameon=False)
    return figure


def _short_names(section: Section) -> list[str]:
    names = [g.prefix or g.experiment for g in section.groups]
    return [
        f"{name} {g.config_hash[:4]}" if names.count(name) > 1 else name
        for name, g in zip(names, section.groups, strict=True)
    ]


def _label_points(
    axis: plt.Axes, points: list[tuple[float, float]], labels: list[str], gap: float
) -> None:
    """Names beside points, in columns to the right of those that crowd together."""
    order = sorted(range(len(points)), key=lambda i: points[i][0])
    width = max(np.log(points[order[-1]][0] / points[order[0]][0]), 0.1)
    crowds = [[order[0]]]
    for i in order[1:]:
        near = np.log(points[i][0] / points[crowds[-1][-1]][0]) < 0.09 * width
        crowds[-1].append(i) if near else crowds.append([i])
    low, high = points[order[0]][0], points[order[-1]][0]
    axis.set_xlim(low * np.exp(-0.06 * width), high * np.exp(0.22 * width))
    for crowd in crowds:
        x = max(points[i][0] for i in crowd) * np.exp(0.06 * width)
        heights = spread_labels([points[i][1] for i in crowd], gap)
        for i, y in zip(crowd, heights, strict=True):
            axis.annotate(
                labels[i],
                points[i],
                (x, y),
                fontsize=8,
                va="center",
                bbox={"fc": "white", "ec": "none", "pad": 0.8},
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6"},
            )


def curve_figure(section: Section, metric: str, title: str) -> Figure:
    """Training and validation against the epoch, a panel a group, a line a seed."""
    groups = section.groups
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(3 * columns, 7.5), 2 * rows + 1),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    figure.suptitle(title)
    lines: dict[str, Any] = {}
    for axis, group, name in zip(
        axes.flat, groups, _short_names(section), strict=False
    ):
        for run in group.runs:
            history = run.result.get("history") or {}
            for part, shade in (("train", "#c98500"), ("val", "#2563eb")):
                pairs = [
                    (epoch + 1, value)
                    for epoch, value in zip(
                        history.get("epoch", []),
                        history.get(f"{part}/{metric}", []),
                        strict=False,
                    )
                    if value is not None
                ]
                if pairs:
                    marker = "o" if len(pairs) < 12 else ""
                    style = {"color": shade, "lw": 1.2, "marker": marker, "ms": 2.5}
                    (lines[part],) = axis.plot(*zip(*pairs, strict=True), **style)
        axis.set_title(
            group.experiment if len(name) < 5 else name, fontsize=8, loc="left"
        )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    tops = [v for line in figure.axes for one in line.lines for v in one.get_ydata()]
    if metric == "loss" and tops:  # one diverged epoch would flatten all the others
        axes.flat[0].set_ylim(0, 1.1 * float(np.quantile(tops, 0.98)) or 1)
    figure.supxlabel("epoch", fontsize=9)
    figure.legend(lines.values(), lines, loc="outside lower right", ncols=2)
    return figure


def confusion_figure(group: Group, title: str) -> Figure:
    """The confusion matrix, mean over seeds."""
    labels, predicted = (
        torch.from_numpy(np.concatenate([getattr(run, name) for run in group.runs]))
        for name in ("labels", "predicted")
    )
    figure = plots.confusion(labels, predicted, group.runs[0].data["classes"])
    figure.axes[0].set_title(title, fontsize=10)
    return figure


def figures(section: Section, made: list[Comparison]) -> dict[str, tuple[str, Figure]]:
    """{name: (caption, figure)}."""
    found: dict[str, tuple[str, Figure]] = {}

    def add(name: str, caption: str, figure: Figure) -> None:
        found[name] = (caption, figure)

    on = section.name
    if made:
        caption = "What each factor changes, with 95 % intervals"
        add("factors", caption, factor_figure(made, f"{caption}\n{on}"))
    if len(section.groups) > 1:
        caption = "Test accuracy against size and cost"
        add("cost", caption, cost_figure(section, f"{caption}, {on}"))
    for metric, word in (("acc", "accuracy"), ("loss", "loss")):
        if any((r.result.get("history") or {}).get("epoch") for r in section.runs):
            caption = f"Training and validation {word}"
            figure = curve_figure(section, metric, f"{caption}, {on}")
            add(f"curves-{word}", caption, figure)
    chosen = [("final", "the final recipe", g) for g in section.of("e14")[:1]]
    chosen += [
        ("best", "the best", section.best),
        ("worst", "the worst", section.worst),
    ]
    shown: list[Group] = []
    for name, what, group in chosen:
        if all(group is not other for other in shown):
            shown.append(group)
            caption = f"Confusion of {group.experiment} ({group.config_hash}), {what}"
            title = f"{group.experiment}, {what}, n = {len(group.runs)}\n% of the class"
            add(f"confusion-{name}", caption, confusion_figure(group, title))
    return found


def draw(figure: Figure) -> dict[str, bytes]:
    """{"png": …, "svg": …}, the same bytes each time."""
    drawn = {}
    with plt.rc_context({"svg.hashsalt": "resnet-se"}):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=110, metadata=metadata)
            drawn[kind] = out.getvalue()
    plt.close(figure)
    return drawn


# --- the document ------------------------------------------------


@dataclass
class Block:
    """A heading (h1–h3), paragraph (p), list (ul), table or figure.

    `items` are a list's, or the short form of a heading, or the name of a figure.
    """

    kind: str
    text: str = ""
    items: Sequence[str] = ()
    table: Table | None = None
    drawn: dict[str, bytes] | None = None


METHOD = (
    "Accuracies are per cent of the test images, of the checkpoint with the best "
    "validation loss. Comparisons are of plain predictions, without TTA, image by "
    "image over the seeds that both experiments have.",
    "Interval: 2,000 bootstrap resamples of seeds and images, each redrawn by itself "
    "(Owen 2007; Davison & Hinkley 1997). With two or three seeds that differ much it "
    "is too narrow (simulated: it covers 85 %); the verdict goes by p.",
    "p with one seed: McNemar's exact test (Dietterich 1998), which speaks of these "
    "two trained networks only. With more: a t test that covers new seeds and new "
    "images. The noise from seed to seed is taken as alike in all experiments of one "
    "setting and pooled over them, as in a one-way analysis of variance (Fisher 1925), "
    "but never below the pair's own; what the choice of images adds is estimated "
    "beside it (Dorfman, Berbaum & Metz 1992). McNemar's counts are not pooled over "
    "seeds: the same images would be taken for new ones.",
    "Verdict: better or worse where p, corrected by Holm (1979) for all comparisons "
    "on the same data, is below 0.05; else within noise, which does not mean equal.",
    "Setting: the run's overrides but for experiment, seed and what cannot change the "
    "result. Only runs of one setting are compared.",
)


def document(loaded: Loaded, name: str) -> tuple[list[Block], list[Section]]:
    """The whole report as blocks, before any format."""
    found = sections(loaded.runs)
    compared = [(section, *compare(section)) for section in found]
    finished = [*loaded.runs, *(run for run, _, _ in loaded.duplicates)]
    machines = sorted({run.machine for run in finished})
    letters = {machine: chr(ord("A") + i) for i, machine in enumerate(machines)}

    blocks = [
        Block("h1", name),
        Block(
            "p",
            f"{_count(len(loaded.runs), 'finished run')} of "
            f"{_count(len({r.experiment for r in loaded.runs}), 'experiment')}, "
            "made by `python -m resnet_se.report` from the `result.json` files alone.",
        ),
    ]
    for section, made, _ in compared:
        blocks.append(Block("ul", items=_in_short(section, made)))
    notes = global_notes(loaded, found)
    for section in found:
        prefix = f"{section.name}: " if len(found) > 1 else ""
        notes += [prefix + n for n in section_notes(section, loaded.unfinished)]
    blocks.append(Block("h2", "Missing, failed, mixed"))
    blocks.append(Block("ul", items=notes) if notes else Block("p", "Nothing."))
    for i, (section, made, missing) in enumerate(compared):
        blocks += _section_blocks(section, made, missing, letters, _suffix(i))
    blocks += [
        Block("h2", "Claimed and measured"),
        Block(
            "p",
            "The paper trained on CIFAR-10 as it is distributed, 45,000 images, with a "
            "schedule that reaches beyond epoch 250. Figures measured on another copy "
            "of the data, or with fewer epochs or images, are not comparable to the "
            "paper's; differences between them are only among themselves.",
        ),
        Block("table", table=claim_table([(s, m) for s, m, _ in compared])),
        Block("h2", "How the numbers are made"),
        Block("ul", items=METHOD),
        Block("h2", "Every run"),
        Block("table", table=run_table(loaded, letters)),
        Block("ul", items=[f"hardware {v}: {k}" for k, v in letters.items()]),
    ]
    return blocks, found


def _section_blocks(
    section: Section,
    made: list[Comparison],
    missing: list[str],
    letters: dict[str, str],
    suffix: str,
) -> list[Block]:
    d, images = section.data, section.images
    tested = "" if images == d["test"] else f", the first {images:,} of them tested"
    facts = [
        f"origin: {d['origin']}; split seed {d['split_seed']}",
        *(
            f"hardware {letters[machine]}: {machine}"
            for machine in sorted({run.machine for run in section.runs})
        ),
        *(
            f"versions: {software}"
            for software in sorted({run.software for run in section.runs})
        ),
    ]
    if d.get("fallback"):
        facts.insert(0, "synthetic images in place of CIFAR-10, which was not found")
    blocks = [
        Block(
            "h2",
            f"{d['name']}: {d['train']:,} to train on, {d['val']:,} to validate, "
            f"{d['test']:,} to test{tested} ({d['fingerprint']})",
            items=[section.name],
        ),
        Block("ul", items=facts),
        Block("table", table=main_table(section, letters)),
        Block("p", f"In full precision: `table{suffix}.csv`; for LaTeX: `table.tex`."),
    ]
    if section.numbered:
        blocks.append(Block("h3", "Comparisons"))
        if any(c.n == 1 for c in made):
            blocks.append(
                Block(
                    "p",
                    "One seed: the noise from seed to seed is not measured, so these "
                    "verdicts are of single trained networks, not of the recipes.",
                )
            )
        if made:
            blocks.append(Block("table", table=comparison_table(section, made)))
        if missing:
            blocks.append(Block("p", "Not compared:"))
            blocks.append(Block("ul", items=missing))
    drawn = figures(section, made)
    if drawn:
        blocks.append(Block("h3", "Figures"))
    for name, (caption, figure) in drawn.items():
        items = [f"{name}{suffix}"]
        blocks.append(Block("figure", caption, items, drawn=draw(figure)))
    return blocks


def _in_short(section: Section, made: list[Comparison]) -> list[str]:
    best = section.best
    lines = [
        f"{section.name}: best test accuracy {_accuracy(best.spread('test', 'acc'))} % "
        f"({best.experiment}, n = {len(best.runs)}, {best.span('epochs')} epochs)"
    ]
    for group in section.of("e14"):
        accuracies = [
            _accuracy(group.spread(part, key))
            for part, key in (("test", "acc"), ("test", "acc_tta"), ("val", "acc"))
        ]
        lines.append(
            "{}: test {} %, with TTA {} %, validation {} %; the paper says 94.10 %; "
            "n = {}{}".format(
                group.experiment,
                *accuracies,
                len(group.runs),
                f", {group.setting}" if group.setting else "",
            )
        )
    if made:
        counts = Counter(c.verdict for c in made)
        words = ", ".join(f"{counts[v]} {v}" for v in SHADES)
        words += " (one seed)" if all(c.n == 1 for c in made) else ""
        lines.append(f"of {_count(len(made), 'paired comparison')}: {words}")
    return lines


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _suffix(i: int) -> str:
    """Of the i-th section's files: none of the first."""
    return "" if i == 0 else f"-{i + 1}"


# --- formats -----------------------------------------------------


def markdown(blocks: list[Block]) -> str:
    parts = []
    for block in blocks:
        if block.kind[0] == "h":
            parts.append(f"{'#' * int(block.kind[1])} {_md(block.text)}")
        elif block.kind == "p":
            parts.append(_md(block.text))
        elif block.kind == "ul":
            parts.append("\n".join(f"- {_md(item)}" for item in block.items))
        elif block.kind == "table":
            parts.append(_md_table(block.table))
        else:
            parts.append(f"![{_md(block.text)}](figures/{block.items[0]}.png)")
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([|*]|<(?=[a-zA-Z/!?]))", r"\\\1", text).replace("\n", " ")


def _md_table(table: Table) -> str:
    rule = [":--" if i in table.left else "--:" for i in range(len(table.head))]
    lines = [[_md(cell) for cell in row] for row in (table.head, *table.rows)]
    lines.insert(1, rule)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_md(table.caption)}:\n\n{text}" if table.caption else text


LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
}


def latex(tables: Iterable[Table]) -> str:
    r"""Floats that need `\usepackage{graphicx}` only."""

    def escape(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)

    parts = [r"% \usepackage{graphicx}, UTF-8"]
    for table in tables:
        align = "".join("l" if i in table.left else "r" for i in range(len(table.head)))
        lines = [" & ".join(map(escape, row)) + r" \\" for row in table.rows]
        head = " & ".join(map(escape, table.head)) + r" \\ \hline"
        parts += [
            r"\begin{table}",
            rf"\caption{{{escape(table.caption)}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{align}}}",
            head,
            *lines,
            r"\end{tabular}}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --paper: #fff; --soft: #f4f6f9;
  --line: #d9dee6; --dim: #5b6576; --link: #1d4ed8;
  --better: #1a7f37; --worse: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --paper: #14181f;
  --soft: #1d232d; --line: #343c49; --dim: #9aa5b5; --link: #8ab4ff;
  --better: #4cc46f; --worse: #ff8577; }
  figure img { filter: invert(0.92) hue-rotate(180deg); } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 84rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 1rem 0 0.5rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 0.6rem;
  padding-top: 0.8rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.4rem; }
p, ul { max-width: 56rem; } ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
li { margin: 0.15rem 0; } a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 1rem 0; }
code { background: var(--soft); padding: 0.1em 0.3em; border-radius: 3px; }
.wide { overflow-x: auto; margin: 0.8rem 0; border: 1px solid var(--line);
  border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.8rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.5rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line); }
th { background: var(--soft); color: var(--dim); font-weight: 600; }
.l { text-align: left; } .free { white-space: normal; min-width: 14rem; }
td:first-child { position: sticky; left: 0; background: var(--paper); }
@media (max-width: 40rem) { td:first-child { max-width: 9rem; min-width: 0;
  white-space: normal; overflow-wrap: anywhere; } }
tbody tr:hover td { background: var(--soft); }
.better { color: var(--better); font-weight: 600; }
.worse { color: var(--worse); font-weight: 600; } .dim { color: var(--dim); }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure img { max-width: 100%; min-width: 34rem; border-radius: 6px; }
.pair { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.pair img { width: 100%; min-width: 0; }
figcaption, .note { color: var(--dim); font-size: 0.9rem; }
"""


def html_page(blocks: list[Block]) -> str:
    """One file that loads nothing: the style and the pictures stand in it."""
    title = next(b.text for b in blocks if b.kind == "h1")
    parts, nav = [], []
    small = False  # confusion matrices stand side by side
    for block in blocks:
        matrix = block.kind == "figure" and block.items[0].startswith("confusion")
        if matrix != small:
            parts.append('<div class="pair">' if matrix else "</div>")
            small = matrix
        if block.kind == "h2":
            anchor = f"s{len(nav)}"
            short = block.items[0] if block.items else block.text
            nav.append(f'<a href="#{anchor}">{_inline(short)}</a>')
            parts.append(f'<h2 id="{anchor}">{_inline(block.text)}</h2>')
        elif block.kind == "ul":
            items = "\n".join(f"<li>{_inline(item)}</li>" for item in block.items)
            parts.append(f"<ul>\n{items}\n</ul>")
        elif block.kind == "table":
            parts.append(_html_table(block.table))
        elif block.kind == "figure":
            data = b64encode(block.drawn["svg"]).decode()
            text = _inline(block.text)
            parts.append(
                f'<figure><img alt="{html.escape(block.text)}" '
                f'src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
        else:
            parts.append(f"<{block.kind}>{_inline(block.text)}</{block.kind}>")
    if small:
        parts.append("</div>")
    after_title = 1 + next(i for i, p in enumerate(parts) if p.startswith("<h1"))
    parts.insert(after_title, f"<nav>{' '.join(nav)}</nav>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _inline(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _html_table(table: Table) -> str:
    def row(tag: str, cells: list[str]) -> str:
        made = []
        for i, cell in enumerate(cells):
            names = ["l"] if i in table.left else []
            if tag == "td" and i in table.left and len(cell) > 42:
                names.append("free")
            verdict = cell.removesuffix(" (one seed)")
            if verdict in SHADES or cell in ("–", NOT_MEASURED):
                names.append(verdict if verdict in ("better", "worse") else "dim")
            kind = f' class="{" ".join(names)}"' if names else ""
            made.append(f"<{tag}{kind}>{_inline(cell)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    caption = f'<p class="note">{_inline(table.caption)}</p>' if table.caption else ""
    body = "\n".join(row("td", cells) for cells in table.rows)
    return (
        f'{caption}<div class="wide"><table><thead>{row("th", table.head)}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


# --- command line ------------------------------------------------


def write(out: Path, blocks: list[Block], found: list[Section]) -> list[Path]:
    """All files of the report; returns those that a person opens."""
    captioned = [b.table for b in blocks if b.table and b.table.caption]
    texts = {
        "REPORT.md": markdown(blocks),
        "report.html": html_page(blocks),
        "table.tex": latex(captioned),
        **{f"table{_suffix(i)}.csv": csv_text(s) for i, s in enumerate(found)},
    }
    files = {name: text.encode() for name, text in texts.items()}
    for block in blocks:
        if block.drawn:
            files[f"figures/{block.items[0]}.png"] = block.drawn["png"]
    for name, content in files.items():
        with atomic_file(out / name) as file:
            file.write(content)
    return [out / name for name in texts]


def report(arguments: Sequence[str], out: Path, name: str) -> int:
    """Writes the report; the exit status."""
    loaded = load(arguments)
    for problem in loaded.problems:
        print(f"not used: {problem}", file=sys.stderr)
    if not loaded.runs:
        print("error: RUNS: no finished run among them", file=sys.stderr)
        return 2
    for path in write(out, *document(loaded, name)):
        print(path)
    return 1 if loaded.problems else 0


def main() -> None:
    """Console entry: `resnet-se report …`."""
    parser = argparse.ArgumentParser(
        prog="resnet-se report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR")
    parser.add_argument("--name", default="resnet-se: what was measured")
    asked = parser.parse_args()
    sys.exit(report(asked.runs, asked.out, asked.name))


if __name__ == "__main__":
    main()
