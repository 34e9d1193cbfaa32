"""The comparisons of a study: those that its experiments name, and its factors.

A `Comparison` is a treatment less a baseline in test accuracy, with all seeds of both,
in one cell or averaged over several.  Two groups make a pair

- if one's experiment is `against` the other's and their command lines agree, or
- if they differ in exactly one setting, the factor.

The comparisons of a section that can be decided are one family, corrected together.
Which those are follows from the numbers of seeds alone, never from a result: each side
has two degrees of freedom of its own (three seeds, or two in each of several cells).
Those of fewer seeds are listed apart and cost the family nothing; but where there are
no others, those of two seeds are the family.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import product

import numpy as np

from resnet_se.analysis.report.groups import (
    FOLD,
    Group,
    Section,
    leaf_key,
    level_order,
    short_names,
)
from resnet_se.analysis.report.noise import Far, Rates, far_seeds, rates, recipes
from resnet_se.analysis.report.significance import (
    Estimate,
    Recipe,
    chance_of_winning,
    contrast,
    images_only,
)
from resnet_se.utils.errors import nearest

# --- one comparison ----------------------------------------------


Pair = tuple[Group, Group]  # treatment, baseline
Study = Mapping[int, Recipe]  # {id of a group: its recipe}, of two seeds or more


@dataclass
class Comparison:
    """Treatment less baseline in each of `pairs`, averaged; with all seeds of both."""

    question: str
    name: str
    pairs: list[Pair]
    study: Study
    where: str = ""
    family_size: int = 1  # comparisons that are corrected together with this one
    in_family: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}, {self.where}" if self.where else self.name

    @cached_property
    def n(self) -> int:
        """Seeds of the side that has fewest."""
        return min(len(group.runs) for pair in self.pairs for group in pair)

    @property
    def seeds(self) -> str:
        """Seeds of both sides: `5`, or `5, 3` where they differ; `2…5` over cells."""
        sides = [sorted({len(pair[i].runs) for pair in self.pairs}) for i in (0, 1)]
        texts = [f"{s[0]}…{s[-1]}" if len(s) > 1 else str(s[0]) for s in sides]
        return texts[0] if texts[0] == texts[1] else ", ".join(texts)

    @property
    def can_decide(self) -> bool:
        """Each side has two degrees of freedom of its own: by design, not by result."""
        freedoms = [sum(len(pair[i].runs) - 1 for pair in self.pairs) for i in (0, 1)]
        return self.n > 1 and min(freedoms) > 1

    @cached_property
    def estimate(self) -> Estimate | None:
        """The estimate; None of one seed, which says nothing of its recipe."""
        if self.n == 1:
            return None
        return contrast([(self.study[id(t)], self.study[id(b)]) for t, b in self.pairs])

    @cached_property
    def images_only(self) -> tuple[float, tuple[float, float]]:
        gains = [t.right - b.right for t, b in self.pairs]
        return images_only(np.mean(gains, axis=0))

    @cached_property
    def wins(self) -> tuple[float, tuple[float, float]] | None:
        """The chance that a run beats a baseline's; None of one seed, of averages."""
        if self.n == 1 or len(self.pairs) > 1:
            return None
        return chance_of_winning(*(group.accuracies for group in self.pairs[0]))

    @cached_property
    def mean(self) -> float:
        gains = [float(np.mean(t.right - b.right, dtype=float)) for t, b in self.pairs]
        return sum(gains) / len(gains)

    @cached_property
    def p(self) -> float:
        """The p of its test, corrected; of one seed for new images only."""
        if self.estimate is None:
            return self.images_only[0]
        return self.estimate.p(self.family_size)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The interval that holds with all of the family; of one seed, images only."""
        if self.estimate is None:
            return self.images_only[1]
        return self.estimate.interval(self.family_size)

    def verdict(self, equivalence: float) -> str:
        """Return the verdict, which follows from the interval shown."""
        low, high = self.interval
        zero = low <= 0 <= high
        if self.n == 1:
            return (
                "not decided (n = 1)"
                if zero
                else "networks differ; recipes not decided (n = 1)"
            )
        if not self.in_family:
            return f"not decided (n = {self.n})"
        small = -equivalence < low and high < equivalence
        bound = f"{100 * equivalence:g} points"
        if zero:
            return f"no difference of {bound} or more" if small else "not decided"
        return ("better" if low > 0 else "worse") + (f", by < {bound}" if small else "")


@dataclass
class Family:
    """The comparisons of a section, those of their cells, and those not possible."""

    comparisons: list[Comparison] = field(default_factory=list)
    cells: list[Comparison] = field(default_factory=list)  # of averages, uncorrected
    missing: list[str] = field(default_factory=list)
    study: Study = field(default_factory=dict)  # the recipes of two seeds or more
    asked: bool = False  # for factors on the command line, after the runs
    far: list[Far] = field(
        default_factory=list
    )  # seeds far from the others of their recipe

    @property
    def decided(self) -> list[Comparison]:
        """The family: what is corrected together, and counted."""
        return [c for c in self.comparisons if c.in_family]

    @property
    def apart(self) -> list[Comparison]:
        """Comparisons of too few seeds to be decided."""
        return [c for c in self.comparisons if not c.in_family]

    def correct(self) -> None:
        """Settle who is in the family, by the numbers of seeds alone."""
        several = [c for c in self.comparisons if c.n > 1]
        family = [c for c in several if c.can_decide] or several
        for c in family:
            c.in_family, c.family_size = True, len(family)

    @cached_property
    def rates(self) -> Rates | None:
        """The error rates of a study of this shape in which nothing differs."""
        if not self.decided:
            return None
        study = self.decided[0].study
        places = {key: i for i, key in enumerate(study)}
        return rates(
            np.array([recipe.study.variance**0.5 for recipe in study.values()]),
            np.array([recipe.seeds for recipe in study.values()]),
            [
                [(places[id(t)], places[id(b)]) for t, b in c.pairs]
                for c in self.decided
            ],
        )


# --- which pairs -------------------------------------------------


def compare(
    section: Section,
    factors: Iterable[str] = (),
    against: tuple[str, str] | None = None,
) -> Family:
    """Return the named comparisons, and the factors of experiments in none of them.

    Args:
        factors, against: only these factors, over all experiments; the level to compare
            with, as (factor, level).
    """
    study = recipes(section.groups)
    family = Family(study=study, far=far_seeds(section.groups))
    asked = dict.fromkeys([*factors, *(against[:1] if against else [])])
    if asked:
        family.asked = True
        pairs = single(section.groups)
        for factor in asked:
            base = against[1] if against and against[0] == factor else None
            _factor(section, study, pairs, factor, base, family)
    else:
        _named(section, study, family)
        named = {g.experiment for c in family.comparisons for g in c.pairs[0]}
        swept: dict[str, list[Group]] = defaultdict(list)
        for group in section.groups:
            if group.experiment not in named:
                swept[group.experiment].append(group)
        for experiment, groups in swept.items():
            pairs = single(groups)
            prefix = f"{experiment}: " if len(swept) > 1 else ""
            for key in (k for k in pairs if k != FOLD):  # a cell, no question
                _factor(section, study, pairs, key, None, family, prefix)
            family.missing += [prefix + cell for cell in _empty_cells(groups, pairs)]
    family.correct()
    return family


def _named(section: Section, study: Study, family: Family) -> None:
    """Add each experiment less those that its record says it is `against`.

    A pair of experiments that was run with several settings is one comparison.
    """
    names = {group.experiment for group in section.groups}
    brief = short_names(names)
    found: dict[tuple[str, str], list[tuple[Pair, str]]] = defaultdict(list)
    for group in section.groups:
        for entry in group.first.against:
            other, question = entry["experiment"], entry["question"]
            pair = f"{brief[group.experiment]} − {brief.get(other, other)}"
            where = section.setting(group)
            place = f"{pair}{f' with {where}' if where else ''}"
            if other == group.experiment:
                family.missing.append(f"{place}: against itself")
                continue
            if other not in names:
                hint = _hint(other, names - {group.experiment})
                family.missing.append(f"{place}: no run of {other}{hint}")
                continue
            alike = [g for g in section.groups if g.same_command(group)]
            baselines = [g for g in alike if g.experiment == other]
            if len(baselines) != 1:
                many = "several configurations" if baselines else "no run"
                family.missing.append(f"{place}: {many} of {other} that fit")
            else:
                found[question, pair].append(((group, baselines[0]), where))
    for (question, pair), cells in found.items():
        _average(question, pair, cells, study, family)


def _average(
    question: str,
    name: str,
    cells: list[tuple[Pair, str]],
    study: Study,
    family: Family,
) -> None:
    """Add the mean over cells, and the cells themselves if there are several.

    Cells in which a side has one seed are shown, but have no part in the mean.
    """
    several = [cell for cell in cells if min(len(g.runs) for g in cell[0]) > 1]
    used = several or cells
    many = f", mean of {len(used)} cells" if len(used) > 1 else ""
    where = "" if many else used[0][1]
    pairs = [pair for pair, _ in used]
    family.comparisons.append(
        Comparison(f"{question}{many}", name, pairs, study, where)
    )
    if len(cells) > 1:
        family.cells += [
            Comparison(question, name, [pair], study, place) for pair, place in cells
        ]


Pairs = dict[str, list[Pair]]  # {factor: its pairs}


def single(groups: list[Group]) -> Pairs:
    """Return all pairs of groups that differ in one setting, by that setting.

    A group's choice stands for its keys (`model` for `model.depths`); and within an
    experiment an override stands for all that follows from it.
    """
    known = {key for g in groups for key in g.values} - {"experiment"}
    levels = {key: [repr(g.values.get(key)) for g in groups] for key in known}
    keys = [key for key in known if len(set(levels[key])) > 1]
    codes = np.empty((len(groups), len(keys)), np.intp)
    for k, key in enumerate(keys):
        codes[:, k] = np.unique(levels[key], return_inverse=True)[1]
    kinds = [
        (g.experiment, frozenset(g.overridden), frozenset(g.first.choices))
        for g in groups
    ]
    factor = cache(partial(_only_factor, keys))  # pairs differ in few ways
    pairs: Pairs = defaultdict(list)
    for i, b in enumerate(groups):
        unlike = np.packbits(codes[:i] != codes[i], axis=1)  # (i, bytes)
        for a, kind, differ in zip(groups, kinds, map(bytes, unlike), strict=False):
            found = factor(differ, kind, kinds[i])
            if found is not None:
                pairs[found].append((a, b))
    return dict(sorted(pairs.items()))


Kind = tuple[str, frozenset[str], frozenset[str]]  # experiment, overrides, choices


def _only_factor(keys: list[str], unlike: bytes, a: Kind, b: Kind) -> str | None:
    """Return the one setting that two groups differ in, None where there are several.

    Args:
        unlike: a bit for each of `keys`.
    """
    bits = np.unpackbits(np.frombuffer(unlike, np.uint8), count=len(keys))
    differ = {key for key, bit in zip(keys, bits, strict=True) if bit}
    typed = differ & (a[1] | b[1])
    if not (typed and a[0] == b[0]):
        chosen = differ & (a[2] | b[2])
        own = {k for k in differ if k.partition(".")[0] not in chosen}
        typed = chosen | own
    return typed.pop() if len(typed) == 1 else None


def _factor(
    section: Section,
    study: Study,
    all_pairs: Pairs,
    factor: str,
    base: str | None,
    family: Family,
    prefix: str = "",
) -> None:
    """Add each level of a factor against one of them, over the cells of the others."""

    pairs = all_pairs.get(factor, [])
    peers = {id(g): g for pair in pairs for g in pair}
    level_of = {key: str(g.values.get(factor)) for key, g in peers.items()}
    levels = Counter(level_of.values())
    if not pairs:
        hint = _hint(factor, all_pairs)
        family.missing.append(f"{factor}: no two runs differ in it alone{hint}")
        return
    if base is not None and base not in levels:
        hint = _hint(base, levels)
        family.missing.append(f"{factor}={base}: no run to compare with{hint}")
        return
    base = base or min(levels, key=lambda v: (-levels[v], level_order(v)))
    beside: dict[str, list[Pair]] = defaultdict(list)  # by the level that is not base
    for a, b in pairs:
        for treatment, baseline in ((a, b), (b, a)):
            if level_of[id(baseline)] == base != level_of[id(treatment)]:
                beside[level_of[id(treatment)]].append((treatment, baseline))
    for level in sorted(levels.keys() - {base}, key=level_order):
        name = f"{leaf_key(factor)} {level} − {base}"
        cells = beside[level]
        if cells:
            placed = [(cell, _place(section, *cell, factor)) for cell in cells]
            _average(f"{prefix}{factor}", name, placed, study, family)


def _place(section: Section, treatment: Group, baseline: Group, factor: str) -> str:
    """Return a cell's other factors, with its experiment if there are several."""
    one = section.several and treatment.experiment == baseline.experiment
    name = treatment.experiment if one else ""
    return f"{name} {section.setting(treatment, factor)}".strip()


def _hint(name: str, choices: Iterable[str]) -> str:
    return f"; {nearest(name, choices)}" if choices else ""


def _empty_cells(groups: list[Group], pairs: Pairs) -> list[str]:
    """Name combinations of levels without a run, where most have one."""
    keys = list(pairs)
    runs = {tuple(str(g.values.get(k)) for k in keys) for g in groups}
    levels = [
        sorted({cell[i] for cell in runs}, key=level_order) for i in range(len(keys))
    ]
    if len(keys) < 2 or np.prod([len(of) for of in levels]) >= 2 * len(runs):
        return []
    return [
        "cell without runs: " + " ".join(map("{}={}".format, map(leaf_key, keys), cell))
        for cell in product(*levels)
        if cell not in runs
    ]
