"""The report's pictures: differences, accuracy against cost, curves, confusion."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from resnet_se import plots
from resnet_se.comparison import FINAL, VERDICTS, Comparison, Group, Section

SHADES = dict(zip(VERDICTS, ("#1a7f37", "#c0392b", "#6b7280"), strict=True))
AMBER, BLUE = "#c98500", "#2563eb"


def figures(section: Section, made: list[Comparison]) -> dict[str, tuple[str, Figure]]:
    """{name: (caption, figure)}."""
    found: dict[str, tuple[str, Figure]] = {}
    on = section.name
    if made:
        caption = "What each factor changes, with 95 % intervals"
        found["factors"] = caption, factor_figure(made, f"{caption}\n{on}")
    if len(section.groups) > 1:
        caption = "Test accuracy against size and cost"
        found["cost"] = caption, cost_figure(section, f"{caption}, {on}")
    if any(run.history.get("epoch") for run in section.runs):
        for metric, word in (("acc", "accuracy"), ("loss", "loss")):
            caption = f"Training and validation {word}"
            figure = curve_figure(section, metric, f"{caption}, {on}")
            found[f"curves-{word}"] = caption, figure
    chosen = [("final", "the final recipe", g) for g in section.of(FINAL)[:1]]
    worst = min(section.groups, key=lambda group: group.accuracy)
    chosen += [("best", "the best", section.best), ("worst", "the worst", worst)]
    shown: list[Group] = []
    for name, what, group in chosen:
        if all(group is not other for other in shown):
            shown.append(group)
            title = f"{group.experiment}, {what}, n = {len(group.runs)}\n% of the class"
            caption = f"Confusion of {group.title}, {what}"
            found[f"confusion-{name}"] = caption, confusion_figure(group, title)
    return found


def draw(figure: Figure) -> dict[str, bytes]:
    """{"png": …, "svg": …}, the same bytes each time."""
    drawn = {}
    with plt.rc_context({"svg.hashsalt": "resnet-se"}):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=110, metadata=metadata)
            drawn[kind] = out.getvalue()
    plt.close(figure)
    return drawn


def factor_figure(made: list[Comparison], title: str) -> Figure:
    """Differences with their intervals, beside zero."""
    figure, axis = plt.subplots(
        figsize=(9, 1.3 + 0.34 * len(made)), layout="constrained"
    )
    for i, c in enumerate(made):
        low, high = (100 * v for v in c.interval)
        shade = SHADES[c.verdict]
        axis.plot([low, high], [i, i], color=shade, lw=2.2, solid_capstyle="butt")
        axis.plot(100 * c.mean, i, "o", color=shade, ms=6)
    axis.axvline(0, color="black", lw=1)
    axis.set_yticks(range(len(made)), [f"{c.question}   {c.name}" for c in made])
    axis.set_ylim(len(made) - 0.4, -0.6)
    axis.set(xlabel="difference of test accuracy, percentage points", title=title)
    axis.grid(axis="x", alpha=0.3)
    for verdict, shade in SHADES.items():
        axis.plot([], [], "o-", color=shade, label=verdict)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in cost (less) and accuracy (more)."""
    front, best = [], -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def spread_labels(heights: Sequence[float], gap: float) -> np.ndarray:
    """Heights at least `gap` apart in their order, as near to `heights` as can be."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = isotonic_regression(np.asarray(heights)[order] - steps).x + steps
    return moved


def cost_figure(section: Section, title: str) -> Figure:
    """Test accuracy against parameters and MMAC, and who is on the Pareto front."""
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 5.6), layout="constrained", sharey=True
    )
    figure.suptitle(title)
    accuracies = [100 * group.accuracy for group in section.groups]
    room = max(np.ptp(accuracies), 0.5)
    axes[0].set_ylim(min(accuracies) - 0.1 * room, max(accuracies) + 0.15 * room)
    for axis, key, name in zip(
        axes, ("total", "macs"), ("parameters, millions", "MMAC an image"), strict=True
    ):
        costs = [group.runs[0].model[key] / 1e6 for group in section.groups]
        points = list(zip(costs, accuracies, strict=True))
        front = pareto(points)
        steps = zip(*(points[i] for i in front), strict=True)
        style = {"color": AMBER, "lw": 1.5, "drawstyle": "steps-post"}
        axis.plot(*steps, **style, label="Pareto front")
        shades = [AMBER if i in front else BLUE for i in range(len(points))]
        axis.scatter(costs, accuracies, s=28, zorder=3, color=shades)
        axis.set_xscale("log")
        axis.set(xlabel=name)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        _label_points(axis, points, _short_names(section), gap=0.04 * room)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(loc="upper left", frameon=False)
    return figure


def _short_names(section: Section) -> list[str]:
    names = [g.prefix or g.experiment for g in section.groups]
    return [
        f"{name} {g.config_hash[:4]}" if names.count(name) > 1 else name
        for name, g in zip(names, section.groups, strict=True)
    ]


def _label_points(
    axis: plt.Axes, points: list[tuple[float, float]], labels: list[str], gap: float
) -> None:
    """Names beside points, in columns to the right of those that crowd together."""
    order = sorted(range(len(points)), key=lambda i: points[i][0])
    width = max(np.log(points[order[-1]][0] / points[order[0]][0]), 0.1)
    crowds = [[order[0]]]
    for i in order[1:]:
        near = np.log(points[i][0] / points[crowds[-1][-1]][0]) < 0.09 * width
        crowds[-1].append(i) if near else crowds.append([i])
    low, high = points[order[0]][0], points[order[-1]][0]
    axis.set_xlim(low * np.exp(-0.06 * width), high * np.exp(0.22 * width))
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
                bbox={"fc": "white", "ec": "none", "pad": 0.8},
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6"},
            )


def curve_figure(section: Section, metric: str, title: str) -> Figure:
    """Training and validation against the epoch, a panel a group, a line a seed."""
    groups = section.groups
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    size = (max(3 * columns, 7.5), 2 * rows + 1)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=size,
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    figure.suptitle(title)
    lines: dict[str, Line2D] = {}
    heights = []
    names = _short_names(section)
    for axis, group, name in zip(axes.flat, groups, names, strict=False):
        for run in group.runs:
            for part, shade in (("train", AMBER), ("val", BLUE)):
                column = run.history.get(f"{part}/{metric}", [])
                pairs = [
                    (epoch + 1, value)
                    for epoch, value in zip(
                        run.history.get("epoch", []), column, strict=False
                    )
                    if value is not None
                ]
                if pairs:
                    marker = "o" if len(pairs) < 12 else ""
                    style = {"color": shade, "lw": 1.2, "marker": marker, "ms": 2.5}
                    (lines[part],) = axis.plot(*zip(*pairs, strict=True), **style)
                    heights += [value for _, value in pairs]
        long = group.experiment if len(name) < 5 else name
        axis.set_title(long, fontsize=8, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    if metric == "loss" and heights:  # one diverged epoch would flatten all the others
        axes.flat[0].set_ylim(0, 1.1 * float(np.quantile(heights, 0.98)) or 1)
    figure.supxlabel("epoch", fontsize=9)
    figure.legend(lines.values(), lines, loc="outside lower right", ncols=2)
    return figure


def confusion_figure(group: Group, title: str) -> Figure:
    """The confusion matrix, mean over seeds."""
    labels, predicted = (
        torch.from_numpy(np.concatenate([getattr(run, name) for run in group.runs]))
        for name in ("labels", "predicted")
    )
    figure = plots.confusion(labels, predicted, group.runs[0].data["classes"])
    figure.axes[0].set_title(title, fontsize=10)
    return figure
