"""The sentences of the report: decided answers, what is open, problems and notes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from resnet_se.analysis.report.compare import Comparison, Family
from resnet_se.analysis.report.groups import Section
from resnet_se.analysis.report.runs import Loaded
from resnet_se.analysis.report.significance import MOST_SEEDS
from resnet_se.analysis.report.text import Block, count, gain, points

OPEN = 20  # more are in the table alone
TOO_MANY = f"over {MOST_SEEDS:,} seeds of each would find"
AFTERWARDS = (
    "These comparisons were asked for after the runs, by `--factor` or `--against`; no "
    "experiment named them before: what they find is to be confirmed by new seeds."
)
IMAGES = "no number of seeds finds, without more test images,"

# --- answers -----------------------------------------------------


def answers(family: Family, equivalence: float, prefix: str = "") -> list[Block]:
    """Return the decided comparisons, a sentence each, and how far they can be trusted.

    Args:
        prefix: names the section, where there are several.
    """
    if not family.comparisons:
        return []
    decided = [c for c in family.decided if is_decided(c, equivalence)]
    decided.sort(key=lambda c: -abs(c.mean))
    text = f"{prefix}decided: {len(decided)} of {len(family.comparisons)} comparisons"
    blocks = [Block("h2", text[0].upper() + text[1:], ["Answers"], name="answers")]
    if decided:
        items = [sentence(c, equivalence) for c in decided]
        blocks.append(Block("ul", items=items, name="answers"))
    if family.asked:
        blocks.append(Block("p", AFTERWARDS))
    trust = reliability(family)
    return [*blocks, *([Block("p", trust)] if trust else [])]


def is_decided(c: Comparison, equivalence: float) -> bool:
    return c.in_family and not c.verdict(equivalence).startswith("not decided")


def sentence(c: Comparison, equivalence: float) -> str:
    """Return `better: Muon for Adam (x17 − e14), +11.8 points [10.3, 13.3], …`."""
    return f"{c.verdict(equivalence)}: {_answer(c)}"


def _answer(c: Comparison) -> str:
    value, _, interval = gain(c.mean, c.interval).partition(" ")
    return f"{c.question} ({c.label}), {value} points {interval}, {_seeds(c)}"


def _seeds(c: Comparison) -> str:
    if c.seeds == str(c.n):
        return count(c.n, "seed")
    return f"{c.seeds.replace(', ', ' and ')} seeds"


def reliability(family: Family) -> str:
    """Return how often a study of this shape would err, by a simulation of it."""
    rates = family.rates
    if rates is None:
        return ""
    deviations = sorted(r.study.variance**0.5 for r in family.study.values())
    low, high = points(deviations[0])[1:], points(deviations[-1])[1:]
    span = low if low == high else f"{low} to {high}"
    return (
        f"A study of this shape ({count(len(deviations), 'recipe')}, deviations of "
        f"{span} points from seed to seed) in which nothing differs shows any "
        f"false better or worse in {100 * rates.false:.1f} % of "
        f"{rates.studies:,} simulated cases; {100 * rates.coverage:.1f} % of its "
        f"single 95 % intervals hold."
    )


def still_open(
    family: Family, equivalence: float, prefix: str = "", suffix: str = ""
) -> list[Block]:
    """Return the comparisons that are not decided, and the seeds that would do it."""
    left = [c for c in family.comparisons if not is_decided(c, equivalence)]
    if not left:
        return []
    text = f"{prefix}open: {count(len(left), 'comparison')}"
    head = Block("h2", text[0].upper() + text[1:], ["Open"], name=f"open{suffix}")
    items = [f"{_answer(c)}; {_needed(c, family, equivalence)}" for c in left[:OPEN]]
    if len(left) > OPEN:
        items.append(f"{len(left) - OPEN} more in the tables below")
    return [head, Block("ul", items=items)]


def _needed(c: Comparison, family: Family, equivalence: float) -> str:
    bound = f"{100 * equivalence:g} points"
    if c.estimate is None:
        return "one seed decides nothing of a recipe: three of each can"
    size = max(len(family.decided), 1)
    seeds = c.estimate.seeds_needed(equivalence, c.n, size)
    if seeds is None:
        return f"{TOO_MANY if c.estimate.finds(equivalence, size) else IMAGES} {bound}"
    return f"about {seeds:,} seeds of each would find {bound}"


# --- problems and notes ------------------------------------------


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
        lines += reordered([section for section, _ in compared])
    for section, family in compared:
        lines += [
            f"far from the others of its recipe: {section.labels[id(group)]} seed "
            f"{seed}: {100 * group.seeds[seed].test['acc']:.2f} per cent, "
            f"{100 * distance:.1f} points from the median; it counts"
            for group, seed, distance in family.far
        ]
    for section, family in compared:
        prefix = f"{section.name}: " if len(compared) > 1 else ""
        reasons = dict.fromkeys(family.missing)
        lines += [f"{prefix}not compared: {reason}" for reason in reasons]
    return lines


def reordered(parts: list[Section]) -> list[str]:
    """Name sections of the same images, which two wrappings have in two orders."""
    alike: dict[str, list[str]] = defaultdict(list)
    for section in parts:
        images = section.data.get("set_fingerprint")
        if isinstance(images, str):
            order = section.data.get("order")
            alike[images].append(f"{section.name} (order: {order})")
    return [
        f"the same images in another order, so with another split: {'; '.join(names)}"
        for names in alike.values()
        if len(names) > 1
    ]


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
        lines += folds(section)
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


def folds(section: Section) -> list[str]:
    """Return what the row of a k-fold averages, and how little its ± can say."""
    lines = []
    for row in section.rows:
        if not row.is_k_fold:
            continue
        k = row.first.setting["data.folds"]
        lines.append(
            f"{section.labels[id(row)]}: mean over {len(row.folds)} of {k} folds "
            f"({count(len(row.runs), 'run')}); the folds share most of their training "
            "images and all test images, so ± from fold to fold is no interval: new "
            "data would spread more"
        )
    return lines


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
        "reading": lambda run: run.choices.get("reading", "pytorch"),
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
