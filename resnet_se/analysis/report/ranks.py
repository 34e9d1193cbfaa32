"""The rank of a recipe among all of its section, as far as its seeds tell it.

A recipe's rank lies between 1 + the number of recipes decidedly better and k less the
number decidedly worse (Mogstad, Romano, Shaikh & Wilhelm, Review of Economic Studies 91
(2024) 476).  Decided is what the intervals of all k (k - 1) / 2 differences say, which
are those of any comparison of the report and hold at once: so then do all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resnet_se.analysis.canvas import BLUE, GREY, shown_of, subplots
from resnet_se.analysis.report.compare import Study
from resnet_se.analysis.report.groups import Group, Section, brief_labels
from resnet_se.analysis.report.significance import contrast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST, MOST = 6, 100  # recipes: of fewer the comparisons are read at a glance
SHOWN = 60


@dataclass(frozen=True)
class Rank:
    """A recipe with its place by the mean, and the ranks from `low` to `high`."""

    group: Group
    accuracy: float
    place: int
    low: int
    high: int


def ranks(section: Section, study: Study) -> list[Rank]:
    """Return the ranks of all recipes of two seeds or more, the best mean first.

    A fold of a k-fold is no recipe.  Of too few recipes, or too many, none is ranked.
    """
    groups = [
        group
        for group in section.groups
        if id(group) in study and not group.first.setting.get("data.folds")
    ]
    if not LEAST <= len(groups) <= MOST:
        return []
    means = [float(np.mean(group.accuracies)) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: -means[i])
    groups = [groups[i] for i in order]
    low, high = bounds(intervals(groups, study))
    return [
        Rank(group, means[i], 1 + sum(m > means[i] for m in means), *of)
        for group, i, *of in zip(groups, order, low, high, strict=True)
    ]


def intervals(groups: list[Group], study: Study) -> np.ndarray:
    """Return the interval of each recipe less each other: (k, k, 2), all at once."""
    k = len(groups)
    found = np.zeros((k, k, 2))
    for i, j in combinations(range(k), 2):
        estimate = contrast([(study[id(groups[i])], study[id(groups[j])])])
        low, high = estimate.interval(k * (k - 1) // 2)
        found[i, j], found[j, i] = (low, high), (-high, -low)
    return found


def bounds(differences: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the lowest and highest rank of each.

    Args:
        differences: intervals of the row's recipe less the column's (k, k, 2).
    """
    better = (differences[..., 1] < 0).sum(axis=1)  # than the row's
    worse = (differences[..., 0] > 0).sum(axis=1)
    return (1 + better).tolist(), (len(differences) - worse).tolist()


def rank_records(section: Section, found: list[Rank]) -> pd.DataFrame:
    """Return a row a recipe, best first."""
    return pd.DataFrame(
        {
            "run": section.labels[id(rank.group)],
            "n": len(rank.group.runs),
            "test.acc_mean": rank.accuracy,
            "place": rank.place,
            "rank_low": rank.low,
            "rank_high": rank.high,
        }
        for rank in found
    )


# --- the picture -------------------------------------------------


def picture(section: Section, found: list[Rank]) -> Iterator[tuple[str, str, Figure]]:
    """Yield (name, caption that says how to read it, figure), if any is ranked."""
    if not found:
        return
    k, shown = len(found), found[:SHOWN]
    first = sum(rank.low == 1 for rank in found)
    caption = (
        f"Mean test accuracy of {k} recipes, best first, and the ranks that each may "
        f"have: the bar leaves out as many places as recipes are decidedly better "
        f"(left) and worse (right), by the intervals of all {k * (k - 1) // 2} pairs, "
        f"which hold at once in 95 % of studies. Any of the {first} whose bar begins "
        f"at 1 may be the best; a bar over all places says that nothing is known. The "
        f"first mean is the highest of {k}, so likely too high"
    )
    if k < len(section.groups):
        caption += "; recipes of one seed and folds have no rank"
    yield "ranks", caption + shown_of(shown, found), draw_ranks(section, shown, k)


def draw_ranks(section: Section, shown: list[Rank], k: int) -> Figure:
    """Draw the mean accuracies and, beside them, the ranks of k as bars."""
    labels = dict(zip(map(id, section.groups), brief_labels(section), strict=True))
    names = [fill(labels[id(rank.group)], 60) for rank in shown]
    lines = max(1 + name.count("\n") for name in names)
    size = (9.6, 1.0 + 0.2 * lines * len(shown))
    figure, axes = subplots(1, 2, figsize=size, sharey=True, width_ratios=(2, 3))
    rows = range(len(shown))
    axes[0].plot([100 * rank.accuracy for rank in shown], rows, "o", color=BLUE, ms=4)
    for row, rank in zip(rows, shown, strict=True):
        # a sole rank is a bar too: each place is as wide as 1
        wide = rank.high - rank.low + 1
        axes[1].barh(row, wide, 0.6, rank.low - 0.5, color=GREY, alpha=0.45)
    axes[1].plot([rank.place for rank in shown], rows, "o", color=BLUE, ms=4)
    axes[0].set_yticks(rows, names, fontsize=8, parse_math=False)
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    axes[0].set_xlabel("mean test accuracy, %")
    axes[1].set_xlim(0.4, k + 0.6)
    axes[1].set_xticks(np.unique(np.linspace(1, k, min(k, 8)).round()).astype(int))
    axes[1].set_xlabel(f"rank of {k}: by the mean (point), possible (bar)")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure
