"""Time to accuracy: seconds and PFLOP until runs first had a validation accuracy.

Coleman et al. 2019, arXiv 1806.01427 (DAWNBench).  Between the ends of two epochs by
interpolation.  A run that never had it is censored: it would have taken longer than it
did, which a mean without it would hide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from resnet_se.analysis.canvas import draw, subplots
from resnet_se.analysis.report.compare import Comparison, Family
from resnet_se.analysis.report.groups import Group, Section
from resnet_se.analysis.report.runs import Run
from resnet_se.analysis.report.text import NONE, Block, Table, p_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Cost(NamedTuple):
    """Seconds and PFLOP of a run until it had the accuracy, or of all of it."""

    seconds: float
    pflop: float | None
    reached: bool


def cost_until(run: Run, target: float) -> Cost | None:
    """Return the cost until a run's validation accuracy first was `target` or more.

    None for a run without a history of epochs.
    """
    rows = _curve(run)
    if not rows:
        return None
    before = rows[0]
    for row in rows:
        if row[0] >= target:
            rise = row[0] - before[0]
            share = (target - before[0]) / rise if rise > 0 else 1.0
            cost = (
                None if a is None or b is None else a + share * (b - a)
                for a, b in zip(before[1:], row[1:], strict=True)
            )
            seconds, pflop = cost
            assert seconds is not None
            return Cost(seconds, pflop, True)
        before = row
    seconds, pflop = rows[-1][1:]
    assert seconds is not None
    return Cost(seconds, pflop, False)


def _curve(run: Run) -> list[tuple[float, float, float | None]]:
    """Return accuracy, seconds and PFLOP at the end of each validated epoch."""
    history = run.history
    accuracies, seconds = history.get("val/acc", []), history.get("seconds", [])
    batch = run.data.get("batch_size")
    each = 6e-15 * run.model["macs"] * batch if batch else None  # of a step
    each = None if each is None else each * (run.hardware.get("world_size") or 1)
    counted = history.get("pflop") or [
        None if each is None or step is None else each * step
        for step in history.get("step", [None] * len(seconds))
    ]
    rows = zip(accuracies, seconds, counted, strict=False)
    return [(acc, s, p) for acc, s, p in rows if acc is not None and s is not None]


def costs(group: Group, target: float) -> list[Cost]:
    """Return the cost of every seed that has a history."""
    found = (cost_until(run, target) for run in group.runs)
    return [cost for cost in found if cost is not None]


# --- comparison --------------------------------------------------


def ratio(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], level: float
) -> tuple[float, tuple[float, float], float]:
    """Return the ratio of times, treatment to baseline, its interval and p.

    Of geometric means, averaged over the pairs; Welch's t on the logarithms.

    Args:
        pairs: seconds of the seeds of treatment and baseline, two or more each.
        level: of the interval, 0.95 for one alone.
    """
    from scipy import stats

    logs = [[np.log(side) for side in pair] for pair in pairs]
    difference = float(np.mean([t.mean() - b.mean() for t, b in logs]))
    parts = [
        (side.var(ddof=1) / len(side) / len(pairs) ** 2, len(side) - 1)
        for pair in logs
        for side in pair
    ]
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return math.exp(difference), (math.exp(difference),) * 2, float(not difference)
    freedom = variance**2 / sum(v**2 / n for v, n in parts)
    error = math.sqrt(variance)
    half = stats.t.ppf((1 + level) / 2, freedom) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    low, high = math.exp(difference - half), math.exp(difference + half)
    return math.exp(difference), (low, high), p


def compared(comparison: Comparison, target: float, family: int) -> tuple[str, str]:
    """Return a comparison's ratio of times with interval and corrected p, as text.

    Where a run is censored there is no ratio: of one pair, the p of the log-rank test
    (Mantel 1966), which counts such runs.
    """
    from scipy import stats

    sides = [[costs(group, target) for group in pair] for pair in comparison.pairs]
    if any(len(side) < 2 for pair in sides for side in pair):
        return NONE, "not decided (n = 1)"
    if all(cost.reached for pair in sides for side in pair for cost in side):
        times = [([c.seconds for c in t], [c.seconds for c in b]) for t, b in sides]
        mean, (low, high), p = ratio(times, 1 - 0.05 / family)
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]", p_value(min(1.0, p * family))
    if len(sides) > 1:
        return NONE, "not decided (runs that never had it)"
    data = [
        stats.CensoredData(
            uncensored=[c.seconds for c in side if c.reached],
            right=[c.seconds for c in side if not c.reached],
        )
        for side in sides[0]
    ]
    if not any(cost.reached for side in sides[0] for cost in side):
        return NONE, "neither had it"
    p = min(1.0, float(stats.logrank(*data).pvalue) * family)
    return NONE, f"{p_value(p)} (log-rank)"


# --- the report's part -------------------------------------------


def blocks(
    section: Section, family: Family, target: float, suffix: str = ""
) -> Iterator[Block]:
    """Yield table, comparisons and figure of a section, whose files end in `suffix`."""
    machines = {run.machine for run in section.runs}
    mixed = "; of several machines, whose seconds do not compare"
    yield Block(
        "p",
        f"Until {target:.1%} of the validation images, between two epochs by "
        "interpolation: geometric mean over seeds with its 95 % interval. A run that "
        "never had it took longer than all of it (>), and the median stands there"
        + (mixed if len(machines) > 1 else "."),
    )
    rows = []
    for group in section.groups:
        found = costs(group, target)
        reached = sum(cost.reached for cost in found)
        rows.append(
            {
                "run": section.labels[id(group)],
                "had it": f"{reached} of {len(found)}",
                "seconds": _interval([(c.seconds, c.reached) for c in found]),
                "PFLOP": _interval(
                    [(c.pflop, c.reached) for c in found if c.pflop is not None]
                ),
            }
        )
    yield Block("table", table=Table("Time to accuracy", pd.DataFrame(rows)))
    decided = [c for c in family.decided if c.n > 1]
    if decided:
        cells = [
            {"comparison": c.label, "seconds, ratio": times, "p": p}
            for c in decided
            for times, p in [compared(c, target, len(decided))]
        ]
        yield Block("table", table=Table("Times compared", pd.DataFrame(cells), {"p"}))
    caption = f"Validation accuracy against seconds; the line is {target:.1%}, a band "
    caption += "the seeds' range, a line their median"
    yield Block(
        "figure", caption, name=f"time-to{suffix}", svg=draw(curves(section, target))
    )


def _interval(values: list[tuple[float, bool]]) -> str:
    """Return the geometric mean and its 95 % interval for new seeds.

    With a censored run the median and the range, each with > where it may be more.
    """
    from scipy import stats

    if not values:
        return NONE
    ordered = sorted(values)
    if len(ordered) > 1 and all(reached for _, reached in ordered):
        logs = np.log([value for value, _ in ordered])
        half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
        mean, low, high = np.exp(logs.mean() + np.array([0, -half, half]))
        return f"{mean:,.3g} [{low:,.3g}, {high:,.3g}]"
    middle = median(value for value, _ in ordered)
    early = any(not reached and value <= middle for value, reached in ordered)
    ends = [f"{'' if reached else '>'}{value:,.3g}" for value, reached in ordered]
    text = f"{'>' if early else ''}{middle:,.3g}"
    return text if len(ends) == 1 else f"{text} ({ends[0]}–{ends[-1]})"


def curves(section: Section, target: float) -> Figure:
    """Draw validation accuracy against seconds: median and range over the seeds."""
    figure, axis = subplots(figsize=(7.6, 4.8))
    for group in section.groups[:8]:
        found = [rows for run in group.runs if (rows := _curve(run))]
        if not found:
            continue
        length = min(map(len, found))
        accuracy, seconds = (
            np.array([[row[i] for row in rows[:length]] for rows in found], float)
            for i in (0, 1)
        )
        x, label = np.median(seconds, axis=0), section.labels[id(group)]
        label += f" (n = {len(found)})"
        (line,) = axis.plot(x, 100 * np.median(accuracy, axis=0), label=label)
        low, high = 100 * accuracy.min(axis=0), 100 * accuracy.max(axis=0)
        axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)
    axis.axhline(100 * target, color="black", lw=1, ls=":")
    axis.set(xlabel="seconds", ylabel="validation accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
