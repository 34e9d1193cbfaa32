"""The report's pictures: differences, accuracy against cost, curves, confusion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_se.analysis.canvas import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    RED,
    confusion,
    shown_of,
    subplots,
)
from resnet_se.analysis.report.compare import Family
from resnet_se.analysis.report.differences import differences
from resnet_se.analysis.report.groups import DATA, Group, Section, brief_labels
from resnet_se.analysis.report.ranks import picture, ranks
from resnet_se.analysis.report.significance import mean_std
from resnet_se.analysis.report.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 12  # more curves than this are not drawn
NAMED = 24  # points of the cost figure that bear their names
LOOKS = (("o", BLUE), ("D", ORANGE), ("s", GREEN), ("v", RED), ("^", "black"))
POINTS = 50  # of a curve: longer ones are thinned
SEEDS = 5  # of more, their median and range are drawn

Curve = tuple[list[float], list[float]]  # epochs from 1, values
Drawn = tuple[str, str, "Figure"]  # name, caption, figure


def figures(section: Section, family: Family, equivalence: float) -> Iterator[Drawn]:
    """Yield (name, caption that describes it, figure) of all that can be drawn."""
    yield from differences(family, equivalence)
    yield from picture(section, ranks(section, family.study))
    costs = {(g.first.model["total"], g.first.model["macs"]) for g in section.groups}
    if len(costs) > 1:
        caption = "Test accuracy against parameters and operations, log axes; a line a "
        caption += "length of training joins the runs that no cheaper one of it beats"
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
            if any(len(group.runs) > SEEDS for group in shown):
                caption += f"; of over {SEEDS} seeds, median, lowest and highest"
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
    """Draw test accuracy against parameters and MMAC; a Pareto front a length."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = subplots(1, 2, figsize=(11, 5.6), sharey=True)
    accuracies = [100 * mean_std(g.accuracies)[0] for g in section.groups]
    lengths: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, group in enumerate(section.groups):
        lengths[group.length].append(i)
    most = sorted(lengths, key=lambda of: -len(lengths[of]))[: len(LOOKS)]
    for axis, key, unit in zip(
        axes, ("total", "macs"), ("parameters, millions", "MMAC an image"), strict=True
    ):
        costs = [g.first.model[key] / 1e6 for g in section.groups]
        points = list(zip(costs, accuracies, strict=True))
        axis.plot(costs, accuracies, ".", color=GREY, ms=4)  # of other lengths
        named: dict[int, str] = {}
        for (images, epochs), (sign, colour) in zip(sorted(most), LOOKS, strict=False):
            of = lengths[images, epochs]
            front = [of[j] for j in pareto([points[i] for i in of])]
            axis.plot(
                *zip(*map(points.__getitem__, of), strict=True), ".", color=colour
            )
            look = {"color": colour, "marker": sign, "ms": 5, "lw": 1.5}
            label = f"{images:,} images, {count(epochs, 'epoch')}"
            line = zip(*(points[i] for i in front), strict=True)
            axis.plot(*line, **look, drawstyle="steps-post", label=label)
            named |= dict.fromkeys(front[-(NAMED // len(most)) :], colour)
        axis.set(xscale="log", xlabel=f"{unit}, log axis")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        _label_points(axis, points, section, named)
    axes[0].set_ylabel("test accuracy, %")
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _label_points(
    axis: Axes,
    points: list[tuple[float, float]],
    section: Section,
    named: dict[int, str],
) -> None:
    """Name points, in their colours, in columns to the right of where they crowd.

    The axis ends below the lowest name, so that none lies on the ticks.
    """
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    width = max(np.log(high / low), 0.1)
    axis.set_xlim(low * np.exp(-0.06 * width), high * np.exp(0.3 * width))
    gap = 0.042 * max(np.ptp([y for _, y in points]), 0.5)
    order = sorted(named, key=lambda i: points[i][0])
    crowds = [[order[0]]]
    for i in order[1:]:
        near = np.log(points[i][0] / points[crowds[-1][-1]][0]) < 0.09 * width
        crowds[-1].append(i) if near else crowds.append([i])
    ends = [y for _, y in points]
    for crowd in crowds:
        x = max(points[i][0] for i in crowd) * np.exp(0.06 * width)
        heights = spread_labels([points[i][1] for i in crowd], gap)
        ends += list(heights)
        for i, y in zip(crowd, heights, strict=True):
            group = section.groups[i]
            setting = section.setting(group, *DATA)
            axis.annotate(
                " ".join(filter(None, (group.experiment.partition("_")[0], setting))),
                points[i],
                (x, y),
                fontsize=8,
                color=named[i],
                va="center",
                parse_math=False,
                bbox={"fc": "white", "ec": "none", "pad": 0.8},
                zorder=2,  # hides no point
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6"},
            )
    axis.set_ylim(min(min(ends) - gap, axis.get_ylim()[0]), max(ends) + 1.5 * gap)


# --- curves ------------------------------------------------------


def curves(section: Section, groups: list[Group], metric: str) -> tuple[Figure, str]:
    """Draw training and validation, a panel a group; return what the axes leave out.

    Losses stand on a log axis that ends where one in fifty epochs is above it.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    width, height = max(3 * columns, 7.5), 2 * rows + 1
    room = {"left": 0.7 / width, "right": 1 - 0.1 / width, "wspace": 0.08}
    room |= {"bottom": 0.75 / height, "top": 1 - 0.4 / height, "hspace": 0.3}
    options: dict[str, Any] = {
        "sharex": True,
        "sharey": True,
        "squeeze": False,
        "layout": None,
    }
    options |= {"figsize": (width, height), "gridspec_kw": room}
    figure, axes = subplots(rows, columns, **options)
    titles = dict(zip(map(id, section.groups), brief_labels(section), strict=True))
    lines: dict[str, Any] = {}
    heights: list[float] = []
    for axis, group in zip(axes.flat, groups, strict=False):
        for part, style in (("train", "--"), ("val", "-")):
            curves = [_curve(run.history, f"{part}/{metric}") for run in group.runs]
            if len(curves) > SEEDS:
                curves = _median_and_range(curves)
            x, y = ([v for c in curves for v in (*c[i], np.nan)] for i in (0, 1))
            if len(x) > len(curves):
                marker = "." if max(len(c[0]) for c in curves) < 4 else ""
                look = {"color": COLOURS[part], "ls": style, "marker": marker}
                (lines[part],) = axis.plot(x, y, lw=1.2, **look)  # one for all seeds
                heights += [v for c in curves for v in c[1]]
        title = titles[id(group)] if len(groups) > 1 else group.experiment
        words: dict[str, Any] = {
            "fontsize": 8,
            "loc": "left",
            "parse_math": False,
            "y": 1.0,
        }
        axis.set_title(fill(title, 48), **words)
        axis.xaxis.set_label_coords(0.5, -0.2)  # else each is looked for
        axis.yaxis.set_label_coords(-0.2, 0.5)
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
    name = "loss, log axis" if metric == "loss" else "accuracy"
    figure.supxlabel("epoch", fontsize=9, y=0.1 / height, va="bottom")
    figure.supylabel(name, fontsize=9, x=0.1 / width, ha="left")
    figure.legend(lines.values(), lines, loc="lower right", ncols=2)
    return figure, note


def _median_and_range(curves: list[Curve]) -> list[Curve]:
    """Return the median, the lowest and the highest at each epoch that any has."""
    at: dict[float, list[float]] = defaultdict(list)
    for x, y in curves:
        for epoch, value in zip(x, y, strict=True):
            at[epoch].append(value)
    epochs = sorted(at)
    return [
        (epochs, [float(of(at[epoch])) for epoch in epochs])
        for of in (np.median, min, max)
    ]


def _curve(history: dict[str, list[float | None]], name: str) -> Curve:
    """Return epochs from 1 and values, thinned to at most `POINTS`."""
    pairs = zip(history.get("epoch", []), history.get(name, []), strict=False)
    kept = [(e + 1, v) for e, v in pairs if e is not None and v is not None]
    kept = kept[:: -(-len(kept) // POINTS) or 1]
    return [x for x, _ in kept], [y for _, y in kept]
