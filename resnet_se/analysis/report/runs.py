"""The records of many runs: found, checked, read; and as one pandas table.

A `Run` is one readable record.  `load` reads whatever lies under some paths and names
what it cannot use; `load_runs` is the same as a DataFrame, for a notebook.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_se.config.schema import is_idle
from resnet_se.runs.evaluations import FIGURES, read_evaluations
from resnet_se.runs.record import (
    EVERY,
    FINISHED,
    NUMBER,
    RENAMED,
    check_fields,
    check_history,
    read_record,
    unpack_labels,
)
from resnet_se.utils.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

_IDENTITY = ("status", "experiment", "seed", "config_hash", "schema")
HEAD = (*_IDENTITY, "noise_family", "best_epoch")
PACKED = ("labels", "predicted", "predicted_tta")
PARTS = ("val", "test", "train", "model", "data", "hardware", "git")  # of a record


@dataclass(frozen=True)
class Run:
    """One readable record: its fields as `runs.record` has them, empty if absent.

    Args:
        path: as the user gave it.
        folder: of the file.
        evaluations: {name: its figures on that test set} (`runs.evaluations`).
    """

    path: str
    experiment: str
    seed: int
    config_hash: str
    schema: int
    status: str
    overrides: list[str]
    versions: dict[str, str]
    setting: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    against: list[dict[str, str]] = field(default_factory=list)
    noise_family: str | None = None
    error: str | None = None
    best_epoch: int | None = None
    git: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    val: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[float | None]] = field(default_factory=dict)
    folder: Path | None = None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: str,
        record: dict[str, Any],
        folder: Path | None = None,
        like: Run | None = None,
    ) -> Run:
        """Return the run of a checked record.

        Args:
            like: another run, whose equal parts are shared if it is of this hash.
        """
        known = {f.name for f in fields(cls)}
        own = {k: v for k, v in record.items() if k in known and v is not None}
        own.pop("evaluations", None)  # they lie beside it
        own["choices"] = {
            k: v for k, v in own.get("choices", {}).items() if k != "experiment"
        }
        if like is not None and like.config_hash == own["config_hash"]:
            alike = {k: getattr(like, k) for k in own}
            own |= {k: v for k, v in alike.items() if v == own[k]}
        return cls(**own | {"path": path, "folder": folder})

    @property
    def title(self) -> str:
        return f"{self.experiment} seed {self.seed} ({self.config_hash})"

    @property
    def at_home(self) -> bool:
        """It lies in the run directory that its seed and hash name."""
        home = f"seed{self.seed}-{self.config_hash}"
        return self.folder is not None and self.folder.name == home

    @property
    def labels(self) -> np.ndarray:
        return _labels(self.test["labels"])

    @property
    def predicted(self) -> np.ndarray:
        return unpack_labels(self.test["predicted"])

    def correct(self, *, tta: bool = False) -> np.ndarray:
        """Return 1 for each test image that was recognised, else 0: int8 (N,)."""
        predicted = unpack_labels(self.test["predicted_tta" if tta else "predicted"])
        return (predicted == self.labels).astype(np.int8)

    @property
    def machine(self) -> str:
        ranks = f", {self.world_size} ranks" if self.world_size > 1 else ""
        return "{accelerator}: {device}, {cores} cores".format(**self.hardware) + ranks

    @property
    def world_size(self) -> int:
        return self.hardware.get("world_size") or 1

    @property
    def software(self) -> str:
        return ", ".join(f"{k} {v}" for k, v in self.versions.items())

    @property
    def commit(self) -> str:
        changed = " + changes" if self.git.get("dirty") else ""
        return (self.git.get("commit") or "")[:7] + changed or "no commit"

    @cached_property
    def overridden(self) -> dict[str, str]:
        """Overrides of the command line but those that cannot matter: {key: text}."""
        pairs = (text.lstrip("+~").partition("=") for text in self.overrides)
        typed = {key.partition("@")[0]: value for key, _, value in pairs}
        typed.pop("experiment", None)
        return {key: value for key, value in typed.items() if not is_idle(key)}

    @cached_property
    def values(self) -> dict[str, Any]:
        """All that is known of the setting: {dotted key or group: plain value}."""
        data = {f"data.{k}": self.data[k] for k in ("train", "val", "split_seed")}
        choices = {k: v for k, v in self.choices.items() if not is_idle(k)}
        known = {**self.overridden, **data, **self.setting, **choices}
        # That in force; a preset's is reduced to fit a small set.
        batch_size = self.data.get("batch_size")
        if batch_size is not None:
            known["data.global_batch_size"] = batch_size * self.world_size
        return {**known, "experiment": self.experiment}

    @property
    def trial(self) -> bool:
        """Made only to try things out: `budget=smoke`, or a `debug`."""
        return self.choices.get("budget") == "smoke" or "debug" in self.choices

    @property
    def early(self) -> bool:
        """Ended by a callback, before its last epoch."""
        return self.train.get("stopped") not in (None, "max_epochs", "max_steps")


@lru_cache(maxsize=8)
def _labels(packed: str) -> np.ndarray:
    """Return the labels of a test set, which all its runs share."""
    return unpack_labels(packed)


@dataclass
class Loaded:
    """All records under the paths: `runs` count, the others are named."""

    runs: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    duplicates: list[tuple[Run, Run, bool]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # unused files, with the reason
    trials: list[Run] = field(default_factory=list)  # left out

    def leave_out_trials(self) -> None:
        self.trials = [run for run in self.runs if run.trial]
        self.runs = [run for run in self.runs if not run.trial]

    def where(self, conditions: Iterable[tuple[str, str]]) -> None:
        """Keep the runs with these values.

        Raises:
            UserError: no run has such a key, or such a value of it.
        """
        for key, value in conditions:
            keys = {k for run in self.runs for k in run.values}
            if key not in keys:
                raise UserError(f"--where {key}: no run has it; {nearest(key, keys)}")
            present = {str(run.values.get(key)) for run in self.runs}
            self.runs = [r for r in self.runs if str(r.values.get(key)) == value]
            if not self.runs:
                hint = nearest(value, present)
                raise UserError(f"--where {key}={value}: no run has that; {hint}")


def find(paths: Iterable[str]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return each record under the paths as (file, name to print), and the problems."""
    files: dict[Path, tuple[Path, str]] = {}
    problems = []
    for path in map(Path, paths):
        matches = [path]
        if path.is_dir():
            matches = sorted(path.rglob("result.json")) or sorted(path.glob("*.json"))
        if not matches or not path.exists():
            problems.append(f"{_relative(path, path)}: no result.json there")
            continue
        for file in matches:
            files.setdefault(file.resolve(), (file, _relative(file, path)))
    return list(files.values()), problems


def _relative(path: Path, given: Path) -> str:
    """Return the path as given; an absolute one relative to here or its argument."""
    if not path.is_absolute():
        return path.as_posix()
    base = Path.cwd() if path.is_relative_to(Path.cwd()) else given.parent
    return path.relative_to(base).as_posix()


def read(path: Path) -> dict[str, Any]:
    """Return a record, checked for all that the report reads of it.

    Raises:
        UserError: unreadable, truncated, of another schema, or edited by hand.
    """
    record = read_record(path)
    try:
        check_fields(record, EVERY)
        for entry in record.get("against") or []:
            if not {str} == {type(entry[k]) for k in ("experiment", "question")}:
                raise UserError(f"against: names expected, got {entry!r}")
        for named in (record, *(record.get("against") or [])):
            named["experiment"] = RENAMED.get(named["experiment"], named["experiment"])
        if not all(isinstance(override, str) for override in record["overrides"]):
            raise UserError(f"overrides: texts expected, got {record['overrides']!r}")
        check_history(record.get("history") or {})
        if record["status"] == "finished":
            check_fields(record, FINISHED)
            _check_numbers(record)
            _check_predictions(record["test"], len(record["data"]["classes"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{path}: not a result ({reason})") from None
    return record


def _check_numbers(record: dict[str, Any]) -> None:
    """Raise UserError unless numbers are finite and >= 0, accuracies in 0..1."""
    for part in ("val", "test", "train", "model"):
        for key, value in record[part].items():
            if isinstance(value, float) and not isfinite(value):
                raise UserError(f"{part}.{key}: a finite number expected, got {value}")
            if isinstance(value, NUMBER) and value < 0:
                raise UserError(f"{part}.{key}: a number >= 0 expected, got {value}")
            if key in ("acc", "acc_tta") and value is not None and not 0 <= value <= 1:
                raise UserError(f"{part}.{key}: 0 to 1 expected, got {value}")


def _check_predictions(test: dict[str, Any], num_classes: int) -> None:
    labels = _labels(test["labels"])
    for part in ("", "_tta"):
        packed = test.get(f"predicted{part}")
        if packed is None:  # of TTA alone; the plain ones are required
            continue
        predicted = unpack_labels(packed)
        if not len(labels) == len(predicted) == test["images"]:
            raise UserError(f"test.predicted{part}: not of test.images images")
        if max(labels.max(), predicted.max()) >= num_classes:
            raise UserError(f"test.predicted{part}: more than {num_classes} classes")
        if abs((labels == predicted).mean() - test[f"acc{part}"]) > 1e-4:
            raise UserError(f"test.acc{part}: not what test.predicted{part} says")


def load(paths: Iterable[str]) -> Loaded:
    """Read all records; each ends in exactly one of `Loaded`'s lists."""
    files, problems = find(paths)
    loaded = Loaded(problems=problems)
    first: dict[tuple, Run] = {}
    tested: dict[tuple, Run] = {}
    run: Run | None = None
    for path, name in files:
        try:
            run = Run.of(name, read(path), path.parent, run)
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")  # `name` hides our folders
            reason = reason.removesuffix("; delete it to go on")  # advice for training
            loaded.problems.append(f"{name}: {reason}")
            continue
        if run.status != "finished":
            loaded.unfinished.append(run)
            continue
        # A trial's test set may be the same images in another order.
        data = (run.data["fingerprint"], run.test["images"], run.trial)
        other = tested.setdefault(data, run)
        if run.test["labels"] == other.test["labels"]:
            run.test["labels"] = other.test["labels"]  # one text for all
        elif not np.array_equal(run.labels, other.labels):
            reason = f"test.labels are not those of {other.path} on the same data"
            loaded.problems.append(f"{name}: {reason}")
            continue
        identity = (run.experiment, run.config_hash, run.seed, *data)
        same = first.setdefault(identity, run)
        if same is run:
            loaded.runs.append(run)
            evaluations, unusable = read_evaluations(path.parent)
            run.evaluations.update(evaluations)
            home = name.removesuffix(path.name)
            loaded.problems += [f"{home}{problem}" for problem in unusable]
        else:
            if run.at_home and not same.at_home:  # the run's own folder, not a copy
                place = next(i for i, r in enumerate(loaded.runs) if r is same)
                loaded.runs[place] = first[identity] = run
                run, same = same, run
            conflict = (run.val, run.test) != (same.val, same.test)
            loaded.duplicates.append((run, same, conflict))
    return loaded


def load_runs(
    paths: str | Path | Sequence[str | Path] = "runs",
    *,
    history: bool = False,
    predictions: bool = False,
) -> pd.DataFrame:
    """Return a table of all records under `paths`, finished or not: a row a run.

    Columns have the record's own names: `path`, `status`, `experiment`, `seed`, then
    `test.acc` (0..1), `train.seconds`, `model.total`, …; `cifar10_1.acc`, … of every
    evaluation; every setting under its key (`model.reduction`) and every group under
    its name (`model`).  `train.acc` is that of the last epoch.  Files that cannot be
    read are warned of.

    Args:
        history: a column `history`: {name: one value an epoch}.
        predictions: columns `labels` and `predicted`: class indices int64 (N,).
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    loaded = load(map(str, given))
    for problem in loaded.problems:
        warnings.warn(f"not used: {problem}", stacklevel=2)
    runs = [*loaded.runs, *loaded.unfinished]
    table = frame(runs)
    if history:
        table["history"] = [run.history for run in runs]
    for column in ("labels", "predicted") if predictions else ():
        table[column] = [
            getattr(run, column) if run.status == "finished" else None for run in runs
        ]
    return table


def frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Return the table of `load_runs` for runs that have been read."""
    import pandas as pd

    rows = []
    for run in runs:
        row = {"path": run.path, **{key: getattr(run, key) for key in HEAD}}
        for part in PARTS:
            for key, value in getattr(run, part).items():
                if not (isinstance(value, list | dict) or key in PACKED):
                    row[f"{part}.{key}"] = value
        for name, evaluation in run.evaluations.items():
            row |= {f"{name}.{key}": evaluation.get(key) for key in FIGURES}
        column = run.history.get("train/acc")
        row["train.acc"] = column[-1] if column else None
        values = run.values if run.status == "finished" else run.overridden
        rows.append(row | {k: v for k, v in values.items() if k not in row})
    table = pd.DataFrame(rows, columns=None if rows else ["path", *HEAD], dtype=object)
    return table.astype({column: _dtype(table[column]) for column in table})


def _dtype(column: pd.Series) -> str:
    """Return the narrowest of pandas' nullable types that holds every value."""
    values = [value for value in column if value is not None and value == value]
    kinds = {type(value) for value in values}
    if int in kinds and any(abs(v) >= 1 << 63 for v in values if type(v) is int):
        return "object"  # an untrusted record may hold any number
    narrow: dict[str, set[type]]
    narrow = {"boolean": {bool}, "Int64": {int}, "Float64": {int, float}}
    narrow["string"] = {str}
    return next((d for d, k in narrow.items() if kinds and kinds <= k), "object")
