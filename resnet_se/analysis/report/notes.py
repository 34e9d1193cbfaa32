"""The runs that were not used or not compared, and notes on those that were."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from resnet_se.analysis.report.compare import Comparison, Family
from resnet_se.analysis.report.groups import Section
from resnet_se.analysis.report.runs import Loaded
from resnet_se.analysis.report.text import count


def problems(loaded: Loaded, compared: list[tuple[Section, Family]]) -> list[str]:
    """Return all that was not used, not compared or kept apart: exit status 1."""
    lines = [f"not used: {problem}" for problem in loaded.problems]
    lines += [
        f"conflict, same run but other numbers: {run.title}: {run.path} is not "
        f"counted, {first.path} is"
        for run, first, conflict in loaded.duplicates
        if conflict
    ]
    if len(compared) > 1:
        names = "; ".join(f"{s.name} ({s.images:,} images)" for s, _ in compared)
        lines.append(f"mixed test sets, kept apart: {names}")
    for section, family in compared:
        prefix = f"{section.name}: " if len(compared) > 1 else ""
        reasons = dict.fromkeys(family.missing)
        lines += [f"{prefix}not compared: {reason}" for reason in reasons]
    return lines


def notes(loaded: Loaded, compared: list[tuple[Section, Family]]) -> list[str]:
    """Return the notes on the runs that were used."""
    lines = [f"left out: {left_out(loaded)}"] if loaded.trials else []
    for run in loaded.unfinished:
        reason = f": {_scrub(run.error)}" if run.error else ""
        lines.append(f"{run.status}: {run.title}, {run.path}{reason}")
    for run, first, conflict in loaded.duplicates:
        if not conflict:
            lines.append(f"duplicate: {run.path} is not counted, {first.path} is")
    for section, family in compared:
        lines += _early(section) + identical(section) + _few_seeds(section)
        lines += _unlike(family.comparisons)
    for name in ("commit", "software"):
        tally = sorted(Counter(getattr(run, name) for run in loaded.runs).items())
        if len(tally) > 1:
            kinds = "; ".join(f"{kind} ({count(n, 'run')})" for kind, n in tally)
            lines.append(f"runs of different {name}: {kinds}")
    dirty = sum(run.commit.endswith("changes") for run in loaded.runs)
    if dirty:
        runs = count(dirty, "run")
        lines.append(f"{runs} of a working tree with uncommitted changes")
    return lines


def left_out(loaded: Loaded) -> str:
    runs = count(len(loaded.trials), "run")
    return f"{runs} of budget=smoke or debug=…, which --trials takes in"


def _scrub(text: str) -> str:
    """Return one line without the folders of the machine."""
    line = " ".join(str(text).split())
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "…/", line)[:200]


def _early(section: Section) -> list[str]:
    lines = []
    for group in section.groups:
        ends = {r.seed: r.train["epochs"] for r in group.runs if r.early}
        if ends:
            when = ", ".join(f"seed {s} after {e} epochs" for s, e in ends.items())
            lines.append(f"stopped early: {section.labels[id(group)]}: {when}")
    return lines


def identical(section: Section) -> list[str]:
    """Name settings whose runs are equal to the last digit."""
    alike: dict[tuple, list[str]] = defaultdict(list)
    for group in section.groups:
        for run in group.runs:
            columns = [
                (name, tuple(column))
                for name, column in sorted(run.history.items())
                if name.endswith(("/loss", "/acc"))
            ]
            if columns:
                name = f"{section.labels[id(group)]} seed {run.seed}"
                alike[tuple(columns)].append(name)
    return [
        f"identical histories: {' and '.join(names)}"
        for names in alike.values()
        if len(names) > 1
    ]


def _few_seeds(section: Section) -> list[str]:
    seeds = {run.seed for run in section.runs}
    lacking: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for group in section.groups:
        missing = tuple(sorted(seeds - group.seeds.keys()))
        if missing:
            lacking[missing].append(section.labels[id(group)])
    return [
        f"no run of seed {', '.join(map(str, missing))}: {_list(labels)}"
        for missing, labels in lacking.items()
    ]


def _list(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _unlike(comparisons: list[Comparison]) -> list[str]:
    """Name pairs that differ in more than the setting compared."""
    kinds = {
        "precision": lambda run: run.hardware["precision"],
        "hardware": lambda run: run.machine,
        "commit": lambda run: run.commit,
    }
    lines = []
    for name, of in kinds.items():
        unlike = [
            c.label
            for c in comparisons
            if any(set(map(of, t.runs)) != set(map(of, b.runs)) for t, b in c.pairs)
        ]
        if unlike:
            lines.append(f"{name} differs within the pair: {_list(unlike)}")
    return lines
