"""Pictures of the comparisons: of a whole family, and of one by length of training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import nan
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from resnet_se.analysis.canvas import BLUE, GREEN, GREY, RED, shown_of, subplots
from resnet_se.analysis.report.compare import Comparison, Family
from resnet_se.analysis.report.noise import Far
from resnet_se.analysis.report.text import gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {  # of a verdict's first words: mark, colour
    "better": ("^", BLUE),
    "worse": ("v", RED),
    "no difference": ("s", GREEN),
    "not decided": ("o", GREY),
    "networks differ": ("x", GREY),
}
NBSP = "\N{NO-BREAK SPACE}"
EFFECTS = 60
SERIES = 4  # more pairs at several lengths stand in the tables alone


def differences(
    family: Family, equivalence: float
) -> Iterator[tuple[str, str, Figure]]:
    """Yield (name, caption that describes the picture, figure)."""
    ordered = [*family.decided, *family.apart]
    if ordered:
        shown = ordered[:EFFECTS]
        caption = (
            f"Differences of test accuracy with their intervals, which hold all at "
            f"once; the band is ±{100 * equivalence:g} points{shown_of(shown, ordered)}"
        )
        if family.apart:
            caption += "; dashed: too few seeds to decide, and cut at the edge"
        yield "differences", caption, effects(shown, equivalence, family.far)
    whole = [c.pairs for c in family.comparisons]
    cells = [c for c in family.cells if c.pairs not in whole]
    every = by_length([*family.comparisons, *cells])
    drawn = every[:SERIES]
    for i, series in enumerate(drawn):
        x, unit = lengths(series)
        values = "; ".join(
            f"{at:,}: {gain(c.mean, c.interval)}, n = {c.seeds}"
            for at, c in zip(x, series, strict=True)
        )
        caption = f"{series[0].name} in points against {unit}, log axis. {values}"
        if any(c.n == 1 for c in series):
            caption += "; dashed: for new images only"
        caption += shown_of(drawn, every)
        yield f"length-{i + 1}", caption, length(series, equivalence)


def mark(c: Comparison, equivalence: float) -> tuple[str, str]:
    verdict = c.verdict(equivalence)
    return next(look for words, look in MARKS.items() if verdict.startswith(words))


def effects(
    comparisons: list[Comparison], equivalence: float, far: Sequence[Far] = ()
) -> Figure:
    """Draw differences with their intervals beside zero, each below its name.

    The axis ends where the intervals of the family do; longer ones are cut there.
    A seed far from the others of its recipe is marked by the difference it makes.
    """
    figure, axis = subplots(figsize=(6.4, 1.1 + 0.36 * len(comparisons)))
    alike: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for i, c in enumerate(comparisons):
        words = c.verdict(equivalence).partition(",")[0].partition(" (")[0]
        style = "-" if c.in_family else "--"
        alike[(*mark(c, equivalence), style, words)].append(i)
    labelled = set()
    for (sign, colour, style, words), rows in alike.items():
        ends = [100 * v for i in rows for v in (*comparisons[i].interval, nan)]
        axis.plot(ends, np.repeat(rows, 3), style, color=colour, lw=2)
        means = [100 * comparisons[i].mean for i in rows]
        label = None if words in labelled else words
        axis.plot(means, rows, sign, color=colour, ms=6, label=label)
        labelled.add(words)
    left, right = _ends(comparisons, equivalence)
    strays = [(x, i) for i, c in enumerate(comparisons) for x in _far_seeds(c, far)]
    if strays:
        x, at = zip(*strays, strict=True)
        look = {"color": RED, "mfc": "none", "clip_on": False}
        axis.plot(np.clip(x, left, right), at, "D", label="a far seed", **look)
    axis.axvline(0, color="black", lw=1)
    axis.axvspan(-100 * equivalence, 100 * equivalence, color=GREY, alpha=0.15, lw=0)
    # A typed `_target_` is longer than what it stands beside; `a − b` stays together.
    names = [
        fill(f"{c.question}   {c.name.replace(' ', NBSP)} {c.where}".strip(), 92)
        for c in comparisons
    ]
    places = [i - 0.12 for i in range(len(comparisons))]
    axis.set_yticks(places, names, parse_math=False)
    for text in axis.get_yticklabels():
        text.set(ha="left", va="bottom", fontsize=8)
    axis.tick_params(axis="y", length=0, pad=-4)
    axis.set_ylim(len(comparisons) - 0.4, -1)
    axis.set_xlim(left, right)
    axis.set_xlabel("difference of test accuracy, percentage points")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _far_seeds(c: Comparison, far: Sequence[Far]) -> Iterator[float]:
    """Yield the differences, in points, of each far seed from the other side."""
    for treatment, baseline in c.pairs:
        for group, seed, _ in far:
            accuracy = group.seeds[seed].test["acc"]
            if group is treatment:
                yield 100 * (accuracy - float(baseline.right.mean()))
            elif group is baseline:
                yield 100 * (float(treatment.right.mean()) - accuracy)


def _ends(comparisons: list[Comparison], equivalence: float) -> tuple[float, float]:
    """Return the ends of the axis: all means, and the intervals of the family."""
    family = [c for c in comparisons if c.in_family] or comparisons
    values = [v for c in family for v in c.interval] + [c.mean for c in comparisons]
    low, high = min(*values, -equivalence), max(*values, equivalence)
    room = 0.04 * (high - low)
    return 100 * (low - room), 100 * (high + room)


def by_length(comparisons: list[Comparison]) -> list[list[Comparison]]:
    """Return comparisons of a pair of recipes at several lengths, shortest first."""
    series: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons:
        if len(c.pairs) == 1:
            series.setdefault((c.question, c.name), []).append(c)
    ordered = [sorted(s, key=_images_seen) for s in series.values()]
    return [s for s in ordered if len(set(map(_images_seen, s))) == len(s) > 1]


def _images_seen(c: Comparison) -> int:
    return int(c.pairs[0][0].data["train"] * _epochs(c))


def _epochs(c: Comparison) -> int:
    return c.pairs[0][0].epochs


def lengths(series: list[Comparison]) -> tuple[list[int], str]:
    """Return the length of each training, in images or epochs, and its name."""
    if len(set(map(_epochs, series))) == 1:
        return [c.pairs[0][0].data["train"] for c in series], "training images"
    return [*map(_images_seen, series)], "images trained on (epochs × images)"


def length(series: list[Comparison], equivalence: float) -> Figure:
    """Draw a difference with its interval against the length of training."""
    from matplotlib.ticker import NullFormatter

    figure, axis = subplots(figsize=(7.6, 4.4))
    x, unit = lengths(series)
    y = [100 * c.mean for c in series]
    axis.plot(x, y, color=GREY, lw=1, zorder=1)
    for at, height, c in zip(x, y, series, strict=True):
        sign, colour = mark(c, equivalence)
        ends = [100 * v for v in c.interval]
        axis.plot([at, at], ends, "--" if c.n == 1 else "-", color=colour, lw=2)
        axis.plot(at, height, sign, color=colour, ms=8)
        words = f": {c.verdict(equivalence)}" if c.in_family else ""
        words = ": not decided" if c.n == 1 else words
        note = {"xytext": (0, 6), "textcoords": "offset points", "fontsize": 8}
        text = fill(f"n = {c.seeds}{words}", 30)
        axis.annotate(text, (at, ends[1]), **note, ha="center")
    axis.axhline(0, color="black", lw=1)
    axis.axhspan(-100 * equivalence, 100 * equivalence, color=GREY, alpha=0.15, lw=0)
    axis.set(xscale="log", xlabel=f"{unit}, log axis")
    axis.margins(x=0.2, y=0.12)
    if len(x) <= 8:
        axis.set_xticks(x, [f"{at:,}" for at in x])
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(f"{series[0].name}, percentage points")
    axis.grid(alpha=0.3)
    return figure
