"""Runs by setting, and named by what varies.

A `Group` is the seeds of one setting, a `Section` all groups tested on the same images:
what may be put in one table.  There the folds of one k-fold are one row.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np

from resnet_se.analysis.report.runs import Run
from resnet_se.analysis.report.significance import independent_mistakes, mean_std

DATA = ("data.train", "data.val", "data.split_seed")
FOLD = "data.fold"


@dataclass
class Group:
    """The runs of one experiment and setting, by seed; of a `row`, by fold as well."""

    runs: list[Run]

    @property
    def first(self) -> Run:
        """The run that stands for all seeds in all that they share."""
        return self.runs[0]

    @property
    def experiment(self) -> str:
        return self.first.experiment

    @property
    def data(self) -> dict[str, Any]:
        return self.first.data

    @cached_property
    def overridden(self) -> dict[str, str]:
        return _shared([run.overridden for run in self.runs])

    @cached_property
    def values(self) -> dict[str, Any]:
        return _shared([run.values for run in self.runs])

    @cached_property
    def seeds(self) -> dict[int, Run]:
        return {run.seed: run for run in self.runs}

    @cached_property
    def folds(self) -> dict[int, list[Run]]:
        """The runs by the fold that they held out; one entry but in a k-fold's row."""
        found: dict[int, list[Run]] = defaultdict(list)
        for run in self.runs:
            fold = run.setting.get(FOLD)
            found[fold if isinstance(fold, int) else 0].append(run)
        return dict(sorted(found.items()))

    @property
    def is_k_fold(self) -> bool:
        return len(self.folds) > 1

    @cached_property
    def accuracies(self) -> list[float]:
        return self.measured("test.acc")

    @cached_property
    def _of_images(self) -> tuple[np.ndarray, float]:
        correct = np.stack([run.correct() for run in self.runs])  # (S, N)
        chance = independent_mistakes(correct) if len(correct) > 1 else 0.0
        return correct.mean(axis=0, dtype=np.float32), chance

    @property
    def right(self) -> np.ndarray:
        """The share of seeds that recognise each test image: float32 (N,)."""
        return self._of_images[0]

    @property
    def chance(self) -> float:
        """The variance of an accuracy by independent mistakes alone."""
        return self._of_images[1]

    @property
    def deviation(self) -> float | None:
        """Of the accuracy on all images of this kind, without the chance of these few.

        Jordan's unbiased estimate of the variance (arXiv 2304.01910); None of one seed,
        and of folds, which differ in their images as well.
        """
        if len(self.runs) == 1 or self.is_k_fold:
            return None
        return max(float(np.var(self.accuracies, ddof=1)) - self.chance, 0.0) ** 0.5

    @property
    def epochs(self) -> int:
        return max(run.train["epochs"] for run in self.runs)

    @property
    def length(self) -> tuple[int, int]:
        """Training images, and the epochs asked for: early stopping takes fewer."""
        return self.data["train"], self.values.get("trainer.max_epochs") or self.epochs

    def measured(self, key: str) -> list[float]:
        """Return `train.seconds`, say, of every seed; none where a run lacks it.

        Of several folds, of every fold: the mean of its seeds.
        """
        part, _, name = key.partition(".")
        return self._of_each(lambda run: getattr(run, part).get(name))

    def evaluated(self, name: str) -> list[float]:
        """Return the accuracies on another test set, likewise."""
        return self._of_each(lambda run: run.evaluations.get(name, {}).get("acc"))

    def _of_each(self, value: Callable[[Run], float | None]) -> list[float]:
        found = {id(run): value(run) for run in self.runs}
        values = [v for v in found.values() if v is not None]
        if len(values) < len(found):
            return []
        if not self.is_k_fold:
            return values
        folds = self.folds.values()
        return [mean_std([found[id(r)] or 0.0 for r in runs])[0] for runs in folds]

    @property
    def machines(self) -> list[str]:
        return sorted({run.machine for run in self.runs})

    def same_command(self, other: Group) -> bool:
        """Return True where no override and no split of the data differs."""
        keys = {*self.overridden, *other.overridden, *DATA}
        return all(self.values.get(k) == other.values.get(k) for k in keys)


def _shared(mappings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first but for keys that others lack: of one hash, they did nothing."""
    first, *others = mappings
    return {k: v for k, v in first.items() if all(k in other for other in others)}


@dataclass
class Section:
    """All groups tested on the same images."""

    groups: list[Group]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def data(self) -> dict[str, Any]:
        return self.groups[0].data

    @property
    def images(self) -> int:
        return self.groups[0].first.test["images"]

    @property
    def name(self) -> str:
        return f"{self.data['name']} {self.data['fingerprint'][:15]}"

    @cached_property
    def evaluations(self) -> list[str]:
        """The other test sets that a run was tested on."""
        return sorted({name for run in self.runs for name in run.evaluations})

    @property
    def best(self) -> Group:
        """By validation: the choice that the test images have no part in."""
        return max(self.rows, key=lambda g: mean_std(g.measured("val.acc"))[0])

    @cached_property
    def rows(self) -> list[Group]:
        """The groups as a table has them: the folds of one k-fold are one."""
        alike: dict[str, list[Run]] = defaultdict(list)
        for group in self.groups:
            setting = group.first.setting
            name = group.first.config_hash
            if setting.get("data.folds"):
                others = {k: v for k, v in setting.items() if k != FOLD}
                name = json.dumps(others, sort_keys=True)
            alike[f"{group.experiment} {name}"] += group.runs
        merged = map(Group, alike.values())
        own = {id(g.first): g for g in self.groups}
        return [row if row.is_k_fold else own[id(row.first)] for row in merged]

    @cached_property
    def varying(self) -> list[str]:
        """The overrides that tell the groups apart, and all else that does beside them.

        Within one experiment that may be a group's choice; always the size of the data.
        """

        def distinct(keys: Iterable[str]) -> int:
            values = (tuple(str(g.values.get(k)) for k in keys) for g in self.groups)
            return len(set(values))

        def told_by(key: str) -> str:
            """Return the size that tells the same, where some groups lack the key."""
            known = all(g.values.get(key) is not None for g in self.groups)
            sizes = () if known else DATA
            n = distinct([key])
            alike = (s for s in sizes if distinct([s]) == distinct([s, key]) == n)
            return next(alike, key)

        typed = dict.fromkeys(k for g in self.groups for k in g.overridden)
        keys = [key for key in typed if distinct([key]) > 1]
        keys = [*dict.fromkeys(map(told_by, keys))]
        several = distinct(["experiment"]) > 1
        chosen = dict.fromkeys(k for g in self.groups for k in g.first.choices)
        for key in (*DATA, *(() if several else sorted(chosen))):
            if distinct([*keys, key]) > distinct(keys):
                keys.append(key)
        return keys

    @cached_property
    def common(self) -> dict[str, Any]:
        """The overrides and choices that every group shares."""
        first = self.groups[0]
        keys = dict.fromkeys((*first.overridden, *sorted(first.first.choices)))
        return {
            k: first.values.get(k)
            for k in keys
            if len({str(g.values.get(k)) for g in self.groups}) == 1
        }

    def setting(self, group: Group, *without: str) -> str:
        """Return the settings that tell a group apart in its experiment: `lr=0.1`."""
        return " ".join(
            f"{leaf_key(key)}={group.values[key]}"
            for key in self.varying
            if key not in without and group.values.get(key) is not None
        )

    @cached_property
    def several(self) -> bool:
        """It has more experiments than one."""
        return len({group.experiment for group in self.groups}) > 1

    @cached_property
    def labels(self) -> dict[int, str]:
        """{id of a group or a row: its name by what varies}, each once."""
        return self._named(self.groups) | self._named(self.rows)

    def _named(self, groups: list[Group]) -> dict[int, str]:
        several = len({g.experiment for g in groups}) > 1
        names = [
            " ".join(filter(None, (g.experiment if several else "", self.told(g))))
            or g.experiment
            for g in groups
        ]
        found = Counter(names)
        return {
            id(g): label if found[label] == 1 else f"{label} {g.first.config_hash}"
            for g, label in zip(groups, names, strict=True)
        }

    def told(self, group: Group) -> str:
        """Return `setting`, of a k-fold's row without the fold and what it changes."""
        if not group.is_k_fold:
            return self.setting(group)
        sizes = [k for k in DATA if len({str(r.values.get(k)) for r in group.runs}) > 1]
        return self.setting(group, FOLD, *sizes)


def level_order(value: str) -> tuple[float, str]:
    """Return the key that sorts `none` first, then numbers by size, then words."""
    if value.lower() in ("none", "null", "false", "off"):
        return -inf, ""
    try:
        return float(value), ""
    except ValueError:
        return inf, value


def leaf_key(key: str) -> str:
    """Return `lr` for `optimizer.lr`; `train` alone would be no name for the data."""
    return key if key in DATA else key.rpartition(".")[2]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return {`e05_se_resnet20`: `e05`, …} where that alone tells all apart."""
    names = sorted(names)
    heads = [name.partition("_")[0] for name in names]
    unique = len(set(heads)) == len(heads) > 1
    return dict(zip(names, heads if unique else names, strict=True))


def brief_labels(section: Section) -> list[str]:
    """Return the section's labels with the experiments' short names."""
    brief = short_names({g.experiment for g in section.groups})
    labels = [section.labels[id(g)] for g in section.groups]
    return [
        label.replace(g.experiment, brief[g.experiment], 1)
        for label, g in zip(labels, section.groups, strict=True)
    ]


def sections(runs: Iterable[Run]) -> list[Section]:
    """Return the runs by the images they were tested on; the largest section first."""
    alike: dict[tuple, dict[tuple, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        data = tuple(str(run.data[k]) for k in ("name", "fingerprint", "test"))
        groups = alike[(*data, run.test["images"])]
        groups[run.experiment, run.config_hash].append(run)
    ordered = []
    for _, groups in sorted(alike.items()):
        in_order = [sorted(g, key=lambda r: r.seed) for _, g in sorted(groups.items())]
        section = Section([Group(runs) for runs in in_order])
        keys = section.varying
        section.groups.sort(
            key=lambda g: (
                g.experiment,
                *(level_order(str(g.values.get(k))) for k in keys),
            )
        )
        ordered.append(section)
    return sorted(ordered, key=lambda section: -len(section.runs))
