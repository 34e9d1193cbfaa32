"""The report's pictures: differences, accuracy against cost, curves, confusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_se.analysis.canvas import (
    BLUE,
    COLOURS,
    ORANGE,
    confusion,
    shown_of,
    subplots,
)
from resnet_se.analysis.report.compare import Family
from resnet_se.analysis.report.differences import differences
from resnet_se.analysis.report.groups import Group, Section, short_names
from resnet_se.analysis.report.significance import mean_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 24  # more curves than this are not drawn
NAMED = 40  # points of the cost figure that bear their names
POINTS = 50  # of a curve: longer ones are thinned

Drawn = tuple[str, str, "Figure"]  # name, caption, figure


def figures(section: Section, family: Family, equivalence: float) -> Iterator[Drawn]:
    """Yield (name, caption that describes it, figure) of all that can be drawn."""
    yield from differences(family, equivalence)
    if (
        len({(g.first.model["total"], g.first.model["macs"]) for g in section.groups})
        > 1
    ):
        caption = "Test accuracy against parameters and operations, log axes; the line "
        caption += "joins the runs that no cheaper one beats"
        yield "cost", caption, cost(section)
    by_validation = sorted(
        (g for g in section.groups if g.first.history.get("epoch")),
        key=lambda g: -mean_std([r.val["acc"] for r in g.runs])[0],
    )
    drawn = {id(g) for g in by_validation[:PANELS]}
    shown = [g for g in section.groups if id(g) in drawn]
    if shown:
        for metric, word in (("acc", "accuracy"), ("loss", "loss")):
            figure, note = curves(section, shown, metric)
            caption = f"Training and validation {word} against the epoch{note}"
            yield f"curves-{word}", f"{caption}{shown_of(shown, by_validation)}", figure
    best = section.best
    label = section.labels[id(best)]
    caption = (
        f"Confusion of {label}, the best by validation, per cent of the true class"
    )
    labels = np.concatenate([run.labels for run in best.runs])
    predicted = np.concatenate([run.predicted for run in best.runs])
    yield "confusion", caption, confusion(labels, predicted, best.data["classes"])


# --- accuracy against cost ---------------------------------------


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return indices of the points that none beats in cost (less), accuracy (more)."""
    front, best = [], -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def spread_labels(heights: Sequence[float], gap: float) -> np.ndarray:
    """Return heights at least `gap` apart in their order, as near as can be."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = isotonic_regression(np.asarray(heights)[order] - steps).x + steps
    return moved


def cost(section: Section) -> Figure:
    """Draw test accuracy against parameters and MMAC, with the Pareto front."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = subplots(1, 2, figsize=(12, 5.6), sharey=True)
    accuracies = [100 * mean_std(g.accuracies)[0] for g in section.groups]
    room = max(np.ptp(accuracies), 0.5)
    axes[0].set_ylim(min(accuracies) - 0.1 * room, max(accuracies) + 0.15 * room)
    labels = brief_labels(section)
    for axis, key, name in zip(
        axes, ("total", "macs"), ("parameters, millions", "MMAC an image"), strict=True
    ):
        costs = [g.first.model[key] / 1e6 for g in section.groups]
        points = list(zip(costs, accuracies, strict=True))
        front = pareto(points)
        steps = zip(*(points[i] for i in front), strict=True)
        axis.plot(*steps, color=ORANGE, lw=1.5, drawstyle="steps-post")
        for i, (x, y) in enumerate(points):
            sign, colour = ("D", ORANGE) if i in front else ("o", BLUE)
            axis.plot(x, y, sign, color=colour, ms=5, zorder=3)
        axis.set(xscale="log", xlabel=f"{name}, log axis")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        named = range(len(points)) if len(points) <= NAMED else front[-NAMED:]
        _label_points(axis, points, labels, list(named), gap=0.04 * room)
    axes[0].set_ylabel("test accuracy, %")
    return figure


def brief_labels(section: Section) -> list[str]:
    """Return the section's labels with the experiments' short names."""
    brief = short_names({g.experiment for g in section.groups})
    labels = [section.labels[id(g)] for g in section.groups]
    return [
        label.replace(g.experiment, brief[g.experiment], 1)
        for label, g in zip(labels, section.groups, strict=True)
    ]


def _label_points(
    axis: Axes,
    points: list[tuple[float, float]],
    labels: list[str],
    named: list[int],
    gap: float,
) -> None:
    """Name points in columns to the right of those that crowd together."""
    order = sorted(named, key=lambda i: points[i][0])
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    width = max(np.log(high / low), 0.1)
    crowds = [[order[0]]]
    for i in order[1:]:
        near = np.log(points[i][0] / points[crowds[-1][-1]][0]) < 0.09 * width
        crowds[-1].append(i) if near else crowds.append([i])
    axis.set_xlim(low * np.exp(-0.06 * width), high * np.exp(0.3 * width))
    for crowd in crowds:
        x = max(points[i][0] for i in crowd) * np.exp(0.06 * width)
        heights = spread_labels([points[i][1] for i in crowd], gap)
        for i, y in zip(crowd, heights, strict=True):
            axis.annotate(
                labels[i],
                points[i],
                (x, y),
                fontsize=8,
                va="center",
                parse_math=False,
                bbox={"fc": "white", "ec": "none", "pad": 0.8},
                zorder=2,  # hides no point
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6"},
            )


# --- curves ------------------------------------------------------


def curves(section: Section, groups: list[Group], metric: str) -> tuple[Figure, str]:
    """Draw training and validation, a panel a group; return what the axes leave out.

    Losses stand on a log axis that ends where one in fifty epochs is above it.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    size = (max(3 * columns, 7.5), 2 * rows + 1)
    options = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = subplots(rows, columns, figsize=size, **options)
    titles = dict(zip(map(id, section.groups), brief_labels(section), strict=True))
    lines: dict[str, Any] = {}
    heights: list[float] = []
    for axis, group in zip(axes.flat, groups, strict=False):
        for run in group.runs:
            for part, style in (("train", "--"), ("val", "-")):
                x, y = _curve(run.history, f"{part}/{metric}")
                if len(x):
                    marker = "." if len(x) < 4 else ""  # a mark takes 90 bytes
                    look = {
                        "color": COLOURS[part],
                        "ls": style,
                        "lw": 1.2,
                        "marker": marker,
                    }
                    (lines[part],) = axis.plot(x, y, **look)
                    heights += y
        title = titles[id(group)] if len(groups) > 1 else group.experiment
        axis.set_title(fill(title, 48), fontsize=8, loc="left", parse_math=False)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.grid(alpha=0.3)
    for i in range(len(groups), axes.size):
        axes.flat[i].set_visible(False)
        axes.flat[i - columns].tick_params(labelbottom=True)  # now the lowest
    note = ""
    positive = [h for h in heights if h > 0]
    if metric == "loss" and positive:
        top = 1.3 * float(np.quantile(positive, 0.98))
        first = axes.flat[0]
        first.set_yscale("log")
        first.set_ylim(0.8 * min(positive), top)
        first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        first.yaxis.set_major_formatter("{x:g}")
        first.yaxis.set_minor_locator(NullLocator())
        above = sum(h > top for h in heights)
        note = ", log axis" + (f" that ends below {above} values" if above else "")
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("loss, log axis" if metric == "loss" else "accuracy", fontsize=9)
    figure.legend(lines.values(), lines, loc="outside lower right", ncols=2)
    return figure, note


def _curve(history: dict[str, list[float | None]], name: str) -> tuple[list, list]:
    """Return epochs from 1 and values, thinned to at most `POINTS`."""
    pairs = zip(history.get("epoch", []), history.get(name, []), strict=False)
    kept = [(e + 1, v) for e, v in pairs if e is not None and v is not None]
    kept = kept[:: -(-len(kept) // POINTS) or 1]
    return [x for x, _ in kept], [y for _, y in kept]
