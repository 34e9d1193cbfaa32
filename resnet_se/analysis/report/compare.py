"""The comparisons of a study: those that its experiments name, and its factors.

A `Comparison` is a treatment less a baseline in test accuracy, over the seeds that both
have, in one cell or averaged over several.  Two groups make a pair

- if one's experiment is `against` the other's and their command lines agree, or
- if they differ in exactly one setting, the factor.

All comparisons of a section that have two seeds or more are one family, corrected
together; those of one seed are shown, and never decided.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from resnet_se.analysis.report.groups import (
    Group,
    Section,
    leaf_key,
    level_order,
    short_names,
)
from resnet_se.analysis.report.significance import (
    ALPHA,
    Estimate,
    contrast,
    holm,
    images_only,
    pooled,
)
from resnet_se.utils.errors import nearest

# --- one comparison ----------------------------------------------


@dataclass
class Comparison:
    """Treatment less baseline in each of `pairs`, averaged; over their common seeds."""

    question: str
    name: str
    pairs: list[tuple[Group, Group]]
    peers: list[Group]  # whose noise may be pooled with the pairs' own, by family
    where: str = ""
    level: float = ALPHA  # of its test and interval, once corrected (`holm`)
    p_holm: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.name}, {self.where}" if self.where else self.name

    @cached_property
    def differences(self) -> list[np.ndarray]:
        """A table (S, N) a pair."""
        return [
            np.stack(
                [t.seeds[s].correct() - b.seeds[s].correct() for s in common(t, b)]
            )
            for t, b in self.pairs
        ]

    @cached_property
    def n(self) -> int:
        return min(len(common(t, b)) for t, b in self.pairs)

    @property
    def mean(self) -> float:
        return float(np.mean([d.mean() for d in self.differences]))

    @cached_property
    def estimate(self) -> Estimate | None:
        """The estimate with pooled noise; None of one seed: it decides nothing."""
        if self.n == 1:
            return None
        pools = {
            family: pooled(g.accuracies for g in self.peers if g.family == family)
            for family in {group.family for pair in self.pairs for group in pair}
        }
        noises = [(pools[t.family], pools[b.family]) for t, b in self.pairs]
        return contrast(self.differences, noises)

    @cached_property
    def welch(self) -> Estimate | None:
        """The estimate with the noise of the compared groups alone."""
        if self.n == 1:
            return None
        noises = [
            (pooled([t.accuracies]), pooled([b.accuracies])) for t, b in self.pairs
        ]
        return contrast(self.differences, noises)

    @cached_property
    def images_only(self) -> tuple[float, tuple[float, float]]:
        return images_only(np.mean([d.mean(axis=0) for d in self.differences], axis=0))

    @property
    def p(self) -> float:
        """The p of its test; of one seed for new images only."""
        return self.estimate.p if self.estimate else self.images_only[0]

    @property
    def interval(self) -> tuple[float, float]:
        """The interval at its level in the family; of one seed for new images only."""
        if self.estimate is None:
            return self.images_only[1]
        return self.estimate.interval(self.level)

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
        small = -equivalence < low and high < equivalence
        bound = f"{100 * equivalence:g} points"
        if zero:
            return f"no difference of {bound} or more" if small else "not decided"
        return ("better" if low > 0 else "worse") + (f", by < {bound}" if small else "")

    @property
    def disputed(self) -> bool:
        """The noise of the pair alone would decide otherwise."""
        if self.estimate is None or self.welch is None:
            return False
        decided = self.estimate.p < self.level
        return (self.welch.p < (ALPHA if decided else self.level)) != decided


def common(treatment: Group, baseline: Group) -> list[int]:
    return sorted(treatment.seeds.keys() & baseline.seeds.keys())


@dataclass
class Family:
    """The comparisons of a section, those of their cells, and those not possible."""

    comparisons: list[Comparison] = field(default_factory=list)
    cells: list[Comparison] = field(default_factory=list)  # of the factors, uncorrected
    missing: list[str] = field(default_factory=list)

    @property
    def decided(self) -> list[Comparison]:
        """The family: what is corrected together, and counted."""
        return [c for c in self.comparisons if c.n > 1]

    def correct(self) -> None:
        family = self.decided
        for c, (p, level) in zip(family, holm([c.p for c in family]), strict=True):
            c.p_holm, c.level = p, level


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
    family = Family()
    asked = dict.fromkeys([*factors, *(against[:1] if against else [])])
    if asked:
        pairs = single(section.groups)
        for factor in asked:
            base = against[1] if against and against[0] == factor else None
            _factor(section, pairs, factor, base, family)
    else:
        _named(section, family)
        named = {g.experiment for c in family.comparisons for g in c.pairs[0]}
        swept: dict[str, list[Group]] = defaultdict(list)
        for group in section.groups:
            if group.experiment not in named:
                swept[group.experiment].append(group)
        for experiment, groups in swept.items():
            pairs = single(groups)
            prefix = f"{experiment}: " if len(swept) > 1 else ""
            for key in pairs:
                _factor(section, pairs, key, None, family, prefix)
            family.missing += [prefix + cell for cell in _empty_cells(groups, pairs)]
    family.correct()
    return family


def _named(section: Section, family: Family) -> None:
    """Add each experiment less those that its record says it is `against`."""
    names = {group.experiment for group in section.groups}
    brief = short_names(names)
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
            elif not common(group, baselines[0]):
                family.missing.append(f"{place}: no seed in common")
            else:
                pairs = [(group, baselines[0])]
                c = Comparison(question, pair, pairs, alike, where)
                family.comparisons.append(c)


Pairs = dict[str, list[tuple[Group, Group]]]  # {factor: its pairs}


def single(groups: list[Group]) -> Pairs:
    """Return all pairs of groups that differ in one setting, by that setting.

    A group's choice stands for its keys (`model` for `model.depths`); and within an
    experiment an override stands for all that follows from it.
    """
    known = {key for g in groups for key in g.values} - {"experiment"}
    keys = [k for k in known if len({repr(g.values.get(k)) for g in groups}) > 1]
    values = [{k: repr(g.values.get(k)) for k in keys} for g in groups]
    pairs: Pairs = defaultdict(list)
    for i, b in enumerate(groups):
        for j, a in enumerate(groups[:i]):
            differ = {k for k in keys if values[i][k] != values[j][k]}
            typed = differ & (a.overridden.keys() | b.overridden.keys())
            if not (typed and a.experiment == b.experiment):
                chosen = differ & (a.first.choices.keys() | b.first.choices.keys())
                own = {k for k in differ if k.partition(".")[0] not in chosen}
                typed = chosen | own
            if len(typed) == 1:
                pairs[typed.pop()].append((a, b))
    return dict(sorted(pairs.items()))


def _factor(
    section: Section,
    all_pairs: Pairs,
    factor: str,
    base: str | None,
    family: Family,
    prefix: str = "",
) -> None:
    """Add each level of a factor against one of them, over the cells of the others."""

    def level_of(group: Group) -> str:
        return str(group.values.get(factor))

    pairs = all_pairs.get(factor, [])
    peers = list({id(g): g for pair in pairs for g in pair}.values())
    levels = Counter(map(level_of, peers))
    if not pairs:
        hint = _hint(factor, all_pairs)
        family.missing.append(f"{factor}: no two runs differ in it alone{hint}")
        return
    if base is not None and base not in levels:
        hint = _hint(base, levels)
        family.missing.append(f"{factor}={base}: no run to compare with{hint}")
        return
    base = base or min(levels, key=lambda v: (-levels[v], level_order(v)))
    for level in sorted(levels.keys() - {base}, key=level_order):
        name = f"{leaf_key(factor)} {level} − {base}"
        cells = []
        for pair in pairs:
            of = {level_of(g): g for g in pair}
            if of.keys() != {level, base}:
                continue
            if common(of[level], of[base]):
                cells.append((of[level], of[base]))
            else:
                place = section.labels[id(of[level])]
                family.missing.append(f"{prefix}{name}: no seed in common, {place}")
        if not cells:
            continue
        many = f", mean of {len(cells)} cells" if len(cells) > 1 else ""
        places = [_place(section, *cell, factor) for cell in cells]
        question, where = f"{prefix}{factor}", "" if many else places[0]
        whole = Comparison(f"{question}{many}", name, cells, peers, where)
        family.comparisons.append(whole)
        for cell, place in zip(cells, places, strict=True) if many else ():
            family.cells.append(Comparison(question, name, [cell], peers, place))


def _place(section: Section, treatment: Group, baseline: Group, factor: str) -> str:
    """Return a cell's other factors, with its experiment if there are several."""
    several = len({group.experiment for group in section.groups}) > 1
    one = several and treatment.experiment == baseline.experiment
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
