"""The records of many runs: found, checked, grouped by data and experiment, compared.

A `Run` is one finished record, a `Group` the seeds of one configuration, a `Section`
all groups on the same data.  `compare` makes the planned comparisons of a section.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from resnet_se.config import NOT_HASHED
from resnet_se.errors import UserError
from resnet_se.results import read_record, unpack_labels
from resnet_se.statistics import (
    contrast_test,
    holm,
    mcnemar_exact,
    mean_std,
    paired_bootstrap,
    pooled_variance,
)

ALPHA = 0.05
VERDICTS = ("better", "worse", "within noise")
EXPERIMENTS = [f"e{i:02d}" for i in range(1, 23)]
FINAL = "e14"  # the whole recipe on the headline network
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
NUMBERS = (  # what else is read of a finished run
    "data.train data.val data.test data.split_seed model.trainable model.total "
    "model.macs model.layers train.epochs train.steps val.acc test.acc test.images"
)
PRESENT = (  # may be null
    "data.name data.origin data.fingerprint data.classes train.seconds "
    "train.images_per_second train.peak_memory_mb hardware.accelerator hardware.device "
    "hardware.cores hardware.precision test.acc_tta test.labels test.predicted"
)


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
    def title(self) -> str:
        return f"{self.experiment} seed {self.seed} ({self.config_hash})"

    @property
    def history(self) -> dict[str, list[float | None]]:
        return self.result.get("history") or {}

    @cached_property
    def labels(self) -> np.ndarray:
        return unpack_labels(self.test["labels"])

    @cached_property
    def predicted(self) -> np.ndarray:
        return unpack_labels(self.test["predicted"])

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
    result = read_record(path)
    try:
        for key, kind in IDENTITY.items():
            if not isinstance(result[key], kind):
                raise UserError(f"{key}: {kind.__name__} expected, got {result[key]!r}")
        if result["status"] == "finished":
            for part, key in (name.split(".") for name in NUMBERS.split()):
                float(result[part][key])
            for part, key in (name.split(".") for name in PRESENT.split()):
                result[part][key]
            for column in (result.get("history") or {}).values():
                len(column)
            _check_predictions(result["test"], len(result["data"]["classes"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except KeyError as error:
        raise UserError(f"{path}: not a result: no field {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{path}: not a result ({reason})") from None
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
    tested: dict[tuple, Run] = {}
    for path, name in files:
        try:
            run = Run(name, read(path))
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")  # `name` hides our folders
            loaded.problems.append(f"{name}: {reason}")
            continue
        if run.status != "finished":
            loaded.unfinished.append(run)
            continue
        data = (run.data["fingerprint"], run.test["images"])
        other = tested.setdefault(data, run)
        if not np.array_equal(run.labels, other.labels):
            loaded.problems.append(
                f"{name}: test.labels are not those of {other.path} on the same data"
            )
            continue
        identity = (run.experiment, run.config_hash, run.seed, *data)
        same = first.setdefault(identity, run)
        if same is run:
            loaded.runs.append(run)
        else:
            conflict = (run.val, run.test) != (same.val, same.test)
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
    def title(self) -> str:
        return f"{self.experiment} ({self.config_hash})"

    @property
    def prefix(self) -> str | None:
        """`e05` of `e05_se_resnet20`, None of a name that is not numbered so."""
        found = re.match(r"e\d\d(?![^_])", self.experiment)
        return found and found[0]

    @property
    def setting(self) -> str:
        """The overrides, less what every run must vary or cannot matter."""
        idle = "|".join(map(re.escape, ("experiment", *NOT_HASHED)))
        overrides = sorted(self.runs[0].overrides)
        return " ".join(o for o in overrides if not re.match(rf"[+~]*({idle})[.=@]", o))

    @property
    def seeds(self) -> dict[int, Run]:
        return {run.seed: run for run in self.runs}

    @property
    def accuracy(self) -> float:
        return self.spread("test", "acc")[0]

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
    def machines(self) -> list[str]:
        return sorted({run.machine for run in self.runs})

    @property
    def name(self) -> str:
        d = self.data
        return f"{d['name']} {d['fingerprint'][:15]} ({d['train']:,} images)"

    @property
    def best(self) -> Group:
        return max(self.groups, key=lambda group: group.accuracy)

    @property
    def numbered(self) -> bool:
        return any(group.prefix in EXPERIMENTS for group in self.groups)

    def of(self, prefix: str) -> list[Group]:
        return [group for group in self.groups if group.prefix == prefix]


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


def compare(section: Section) -> tuple[list[Comparison], list[str]]:
    """The planned comparisons of a section, corrected together; why others fail.

    Compared are the common seeds of two groups that differ in their experiment alone.
    """
    made, missing = [], []
    for above, below, question in COMPARISONS:
        pair, both = f"{above} − {below}", (above, below)
        settings = {group.setting for prefix in both for group in section.of(prefix)}
        for setting in sorted(settings) or [""]:
            alike = [group for group in section.groups if group.setting == setting]
            where = f" with {setting}" if setting else ""
            of = {prefix: [g for g in alike if g.prefix == prefix] for prefix in both}
            absent = [prefix for prefix in both if not of[prefix]]
            if absent:
                missing.append(f"{pair}: no run of {' or '.join(absent)}{where}")
                continue
            (t, *more), (b, *others) = of.values()
            common = sorted(t.seeds.keys() & b.seeds.keys())
            if more or others:
                missing.append(
                    f"{pair}: several configurations{where}, not one of each"
                )
            elif not common:
                missing.append(f"{pair}: no seed in common{where}")
            else:
                rows = [t.seeds[s].right - b.seeds[s].right for s in common]
                noise = pooled_variance([r.test["acc"] for r in g.runs] for g in alike)
                made.append(Comparison(question, t, b, np.stack(rows), noise))
    for comparison, p in zip(made, holm([c.p for c in made]), strict=True):
        comparison.p_holm = p
    return made, missing
