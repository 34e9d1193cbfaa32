"""The report's pictures: differences, accuracy against cost, curves, confusion.

Colours are Okabe and Ito's, which the colour-blind tell apart, and never alone: marks
differ too.  A figure is drawn as SVG whose text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_se.report.compare import Comparison, Family
from resnet_se.report.groups import Group, Section, short_names
from resnet_se.report.statistics import mean_std
from resnet_se.report.text import gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#777777"
MARKS = {  # of a verdict's first words: mark, colour
    "better": ("^", BLUE),
    "worse": ("v", RED),
    "no difference": ("s", GREEN),
    "not decided": ("o", GREY),
    "networks differ": ("x", GREY),
}
NUMBERS = re.compile(r'\b(d|x|y|transform)="[^"]*"')  # attributes of an SVG
DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is enough
NBSP = "\N{NO-BREAK SPACE}"
PANELS = 24  # more curves than this are not drawn
NAMED = 40  # points of the cost figure that bear their names
EFFECTS = 60
POINTS = 50  # of a curve: longer ones are thinned

Drawn = tuple[str, str, "Figure"]  # name, caption, figure


def figures(section: Section, family: Family, equivalence: float) -> Iterator[Drawn]:
    """(name, caption that describes the picture, figure) of all that can be drawn."""
    if family.comparisons:
        shown = family.comparisons[:EFFECTS]
        caption = (
            f"Differences of test accuracy with their intervals; the band is "
            f"±{100 * equivalence:g} points{_of(shown, family.comparisons)}"
        )
        yield "differences", caption, effects(shown, equivalence)
    for i, series in enumerate(by_length(family.comparisons)):
        x, what = lengths(series)
        values = "; ".join(
            f"{at:,}: {gain(c.mean, c.interval)}, n = {c.n}"
            for at, c in zip(x, series, strict=True)
        )
        caption = f"{series[0].name} in points against {what}, log axis. {values}"
        if any(c.n == 1 for c in series):
            caption += "; dashed: for new images only"
        yield f"length-{i + 1}", caption, length(series, equivalence)
    if len({(g.model["total"], g.model["macs"]) for g in section.groups}) > 1:
        caption = "Test accuracy against parameters and operations, log axes; the line "
        caption += "joins the runs that no cheaper one beats"
        yield "cost", caption, cost(section)
    by_validation = sorted(
        (g for g in section.groups if g.runs[0].history.get("epoch")),
        key=lambda g: -mean_std([r.val["acc"] for r in g.runs])[0],
    )
    drawn = {id(g) for g in by_validation[:PANELS]}
    shown = [g for g in section.groups if id(g) in drawn]
    if shown:
        for metric, word in (("acc", "accuracy"), ("loss", "loss")):
            figure, note = curves(section, shown, metric)
            caption = f"Training and validation {word} against the epoch{note}"
            yield f"curves-{word}", f"{caption}{_of(shown, by_validation)}", figure
    best = section.best
    label = section.labels[id(best)]
    caption = (
        f"Confusion of {label}, the best by validation, per cent of the true class"
    )
    yield "confusion", caption, confusion(best)


def _of(shown: Sequence[Any], known: Sequence[Any]) -> str:
    return f"; {len(shown)} of {len(known)} shown" if len(shown) < len(known) else ""


def draw(figure: Figure) -> str:
    """SVG, the same text each time."""
    import matplotlib.pyplot as plt

    out = io.StringIO()
    options = {"svg.hashsalt": "resnet-se", "svg.fonttype": "none"}
    options["font.sans-serif"] = ["DejaVu Sans", "Verdana"]  # named at each word
    with plt.rc_context(options):
        figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return NUMBERS.sub(lambda m: DIGITS.sub(r"\1", m[0]), out.getvalue())


def subplots(*shape: int, **options: Any) -> tuple[Figure, Any]:
    import matplotlib

    matplotlib.use("Agg")  # files only: works without a display
    import matplotlib.pyplot as plt

    return plt.subplots(*shape, layout="constrained", **options)


def mark(c: Comparison, equivalence: float) -> tuple[str, str]:
    verdict = c.verdict(equivalence)
    return next(look for words, look in MARKS.items() if verdict.startswith(words))


def effects(comparisons: list[Comparison], equivalence: float) -> Figure:
    """Differences with their intervals, beside zero."""
    figure, axis = subplots(figsize=(9, 1.4 + 0.34 * len(comparisons)))
    shown = set()
    for i, c in enumerate(comparisons):
        sign, colour = mark(c, equivalence)
        low, high = (100 * v for v in c.interval)
        style = "--" if c.n == 1 else "-"
        axis.plot([low, high], [i, i], style, color=colour, lw=2)
        label = c.verdict(equivalence).partition(",")[0]
        label = None if label in shown else label
        axis.plot(100 * c.mean, i, sign, color=colour, ms=7, label=label, ls="none")
        shown.add(c.verdict(equivalence).partition(",")[0])
    axis.axvline(0, color="black", lw=1)
    axis.axvspan(-100 * equivalence, 100 * equivalence, color=GREY, alpha=0.15, lw=0)
    # A typed `_target_` is longer than what it stands beside; `a − b` stays together.
    names = [
        fill(f"{c.question}   {c.name.replace(' ', NBSP)} {c.where}".strip(), 64)
        for c in comparisons
    ]
    axis.set_yticks(range(len(comparisons)), names, parse_math=False)
    axis.set_ylim(len(comparisons) - 0.4, -0.6)
    axis.set_xlabel("difference of test accuracy, percentage points")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def by_length(comparisons: list[Comparison]) -> list[list[Comparison]]:
    """Comparisons of one pair of recipes after several lengths, the shortest first."""
    series: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons:
        if len(c.pairs) == 1:
            series.setdefault((c.question, c.name), []).append(c)
    ordered = [sorted(s, key=_seen) for s in series.values()]
    return [s for s in ordered if len(set(map(_seen, s))) == len(s) > 1]


def _seen(c: Comparison) -> int:
    return int(c.pairs[0][0].data["train"] * _epochs(c))


def _epochs(c: Comparison) -> int:
    return max(run.train["epochs"] for run in c.pairs[0][0].runs)


def lengths(series: list[Comparison]) -> tuple[list[int], str]:
    """How long each trained, in what varies, and the words for it."""
    if len(set(map(_epochs, series))) == 1:
        return [c.pairs[0][0].data["train"] for c in series], "training images"
    return [*map(_seen, series)], "images trained on (epochs × images)"


def length(series: list[Comparison], equivalence: float) -> Figure:
    """A difference with its interval against the length of training."""
    from matplotlib.ticker import NullFormatter

    figure, axis = subplots(figsize=(7.6, 4.4))
    x, what = lengths(series)
    y = [100 * c.mean for c in series]
    axis.plot(x, y, color=GREY, lw=1, zorder=1)
    for at, height, c in zip(x, y, series, strict=True):
        sign, colour = mark(c, equivalence)
        ends = [100 * v for v in c.interval]
        axis.plot([at, at], ends, "--" if c.n == 1 else "-", color=colour, lw=2)
        axis.plot(at, height, sign, color=colour, ms=8)
        words = "not decided" if c.n == 1 else c.verdict(equivalence)
        note = {"xytext": (0, 6), "textcoords": "offset points", "fontsize": 8}
        text = fill(f"n = {c.n}: {words}", 30)
        axis.annotate(text, (at, ends[1]), **note, ha="center")
    axis.axhline(0, color="black", lw=1)
    axis.axhspan(-100 * equivalence, 100 * equivalence, color=GREY, alpha=0.15, lw=0)
    axis.set(xscale="log", xlabel=f"{what}, log axis")
    axis.margins(x=0.2, y=0.12)
    if len(x) <= 8:
        axis.set_xticks(x, [f"{at:,}" for at in x])
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(f"{series[0].name}, percentage points")
    axis.grid(alpha=0.3)
    return figure


# --- accuracy against cost ---------------------------------------


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
    from scipy.optimize import isotonic_regression

    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = isotonic_regression(np.asarray(heights)[order] - steps).x + steps
    return moved


def cost(section: Section) -> Figure:
    """Test accuracy against parameters and MMAC, and who is on the Pareto front."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = subplots(1, 2, figsize=(12, 5.6), sharey=True)
    accuracies = [100 * mean_std(g.accuracies)[0] for g in section.groups]
    room = max(np.ptp(accuracies), 0.5)
    axes[0].set_ylim(min(accuracies) - 0.1 * room, max(accuracies) + 0.15 * room)
    labels = brief_labels(section)
    for axis, key, name in zip(
        axes, ("total", "macs"), ("parameters, millions", "MMAC an image"), strict=True
    ):
        costs = [g.model[key] / 1e6 for g in section.groups]
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
    """As the section's labels, with the experiments' short names."""
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
    """Names beside points, in columns to the right of those that crowd together."""
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
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6"},
            )


# --- curves and confusion ----------------------------------------


def curves(section: Section, groups: list[Group], metric: str) -> tuple[Figure, str]:
    """Training and validation, a panel a group, a line a seed; what the axes leave out.

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
            for part, colour, style in (("train", ORANGE, "--"), ("val", BLUE, "-")):
                x, y = _curve(run.history, f"{part}/{metric}")
                if len(x):
                    marker = "." if len(x) < 12 else ""
                    look = {"color": colour, "ls": style, "lw": 1.2, "marker": marker}
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
    """Epochs from 1 and values, every k-th so that they are at most `POINTS`."""
    pairs = zip(history.get("epoch", []), history.get(name, []), strict=False)
    kept = [(e + 1, v) for e, v in pairs if e is not None and v is not None]
    kept = kept[:: -(-len(kept) // POINTS) or 1]
    return [x for x, _ in kept], [y for _, y in kept]


def confusion(group: Group) -> Figure:
    """Rows are the true classes, columns the predicted; all seeds together."""
    classes = group.data["classes"]
    k = len(classes)
    labels = np.concatenate([run.labels for run in group.runs])
    predicted = np.concatenate([run.predicted for run in group.runs])
    counts = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.5, 0.55 * k), 20)
    figure, axis = subplots(figsize=(side + 1.2, side))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if k <= 40:  # a class may be called $…$, which is no formula
        axis.set_xticks(range(k), classes, rotation=45, ha="right", parse_math=False)
        axis.set_yticks(range(k), classes, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    for (i, j), value in np.ndenumerate(share) if k <= 20 else ():
        shade = "white" if value > 60 else "black"
        axis.text(j, i, f"{value:.0f}", ha="center", va="center", color=shade)
    return figure
