"""What was not used or not compared, and what a reader should know of the rest."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from resnet_se.analysis.report.compare import Comparison, Family
from resnet_se.analysis.report.groups import Section
from resnet_se.analysis.report.runs import Loaded
from resnet_se.analysis.report.text import count


def problems(loaded: Loaded, compared: list[tuple[Section, Family]]) -> list[str]:
    """What was not used, not compared or kept apart: the exit status is 1."""
    lines = [f"not used: {problem}" for problem in loaded.problems]
    lines += [
        f"conflict, same run but other numbers: {run.title}: {run.path} is not "
        f"counted, {first.path} is"
        for run, first, conflict in loaded.duplicates
        if conflict
    ]
    schemas = Counter(run.schema for run in loaded.runs)
    if len(schemas) > 1:
        kinds = ", ".join(f"{n} of schema {k}" for k, n in sorted(schemas.items()))
        lines.append(
            f"mixed schemas: {kinds}; the older ones name no setting and no comparison"
        )
    if len(compared) > 1:
        names = "; ".join(f"{s.name} ({s.images:,} images)" for s, _ in compared)
        lines.append(f"mixed test sets, kept apart: {names}")
    for section, family in compared:
        prefix = f"{section.name}: " if len(compared) > 1 else ""
        reasons = dict.fromkeys(family.missing)
        lines += [f"{prefix}not compared: {reason}" for reason in reasons]
    return lines


def notes(loaded: Loaded, compared: list[tuple[Section, Family]]) -> list[str]:
    """What a reader should know of the runs that were used."""
    lines = [f"left out: {left_out(loaded)}"] if loaded.trials else []
    for run in loaded.unfinished:
        why = run.record.get("error")
        reason = f": {_scrub(why)}" if why else ""
        lines.append(f"{run.status}: {run.title}, {run.path}{reason}")
    for run, first, conflict in loaded.duplicates:
        if not conflict:
            lines.append(f"duplicate: {run.path} is not counted, {first.path} is")
    for section, family in compared:
        lines += _early(section) + identical(section) + _few_seeds(section)
        lines += _unlike(family.comparisons)
    for what in ("commit", "software"):
        of = Counter(getattr(run, what) for run in loaded.runs)
        if len(of) > 1:
            kinds = "; ".join(f"{k} ({count(n, 'run')})" for k, n in sorted(of.items()))
            lines.append(f"runs of different {what}: {kinds}")
    dirty = sum(run.commit.endswith("changes") for run in loaded.runs)
    if dirty:
        runs = count(dirty, "run")
        lines.append(f"{runs} of a working tree with uncommitted changes")
    return lines


def left_out(loaded: Loaded) -> str:
    runs = count(len(loaded.trials), "run")
    return f"{runs} of budget=smoke or debug=…, which --trials takes in"


def _scrub(text: str) -> str:
    """One line without the folders of somebody's machine."""
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
    """Settings whose runs were the same to the last digit: what differs did nothing."""
    alike: dict[tuple, list[str]] = defaultdict(list)
    for group in section.groups:
        for run in group.runs:
            kept = [
                (name, tuple(column))
                for name, column in sorted(run.history.items())
                if name.endswith(("/loss", "/acc"))
            ]
            if kept:
                name = f"{section.labels[id(group)]} seed {run.seed}"
                alike[tuple(kept)].append(name)
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
    """Pairs that differ in more than what is compared."""
    kinds = {
        "precision": lambda run: run.hardware["precision"],
        "hardware": lambda run: run.machine,
        "commit": lambda run: run.commit,
    }
    lines = []
    for what, of in kinds.items():
        unlike = [
            f"{c.name}{f', {c.where}' if c.where else ''}"
            for c in comparisons
            if any(set(map(of, t.runs)) != set(map(of, b.runs)) for t, b in c.pairs)
        ]
        if unlike:
            lines.append(f"{what} differs within the pair: {_list(unlike)}")
    return lines
