"""The gate study's record (`gate_study`) as rows of text and as figures.

`RUN/inspect/inspect.json` holds one run, `inspect/inspect.json` several.  Each
entry of its `runs`:

    experiment, seed, config_hash, label, note
    static          every gate is a constant: nothing varies from image to image
    data            fingerprint; `images` of the test set looked at; `means_over` how
                    many validation images the means are of
    blocks          from the input on: name, stage, channels, `mean` of the gates,
                    `std` over images and channels, `std_images` (root mean square over
                    channels of that over images), `classes` {name: mean, std_images},
                    `shares` (`MomentShares`: four parts of E[g²], with their sums)
    stages, all     the same of several blocks together, each channel alike
    accuracy        of the plain network: `acc` and its Wilson interval
    ablations       gates, where, acc, interval; `difference` to the plain network with
                    the interval and p of McNemar's exact test (`statistics`)
    latency         device, threads, {batch: {with, without}} in milliseconds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_se.analysis.canvas import (
    BLUE,
    COVER,
    EVIDENCE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    subplots,
)
from resnet_se.analysis.report.text import gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {  # of E[g²]: what it is called in a legend, its colour
    "number": ("one number a block", GREY),
    "channels": ("constant by channel", BLUE),
    "classes": ("by class", ORANGE),
    "images": ("by image within a class", RED),
}
SHARES = ("number", "channels", "constant", "classes", "images", "between_classes")
COLUMNS = ("mean", "std", "std img", "number %", "channel %", "constant %")
COLUMNS_OF_CLASSES = ("class %", "image %", "class/var %")
KINDS = {  # of ablation: what it is called, mark, colour
    "mean": ("their mean", "o", BLUE),
    "class mean": ("their class's mean", "s", GREEN),
    "shuffled": ("another image's", "v", ORANGE),
    "one": ("1", "x", RED),
}
LINES = 10  # classes whose gates are drawn channel by channel


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def share_rows(entry: dict[str, Any]) -> list[dict[str, str]]:
    """Return the gates by stage as text: a row a stage, and all together."""
    named = [(f"stage {s['stage']}", s) for s in entry["stages"]]
    rows = []
    for name, part in [*named, ("all", entry["all"])]:
        of = part["shares"]
        numbers = [f"{part[key]:.3f}" for key in ("mean", "std", "std_images")]
        cells = [name, *numbers, *(percent(of[key]) for key in SHARES)]
        rows.append(
            dict(zip(("gates of", *COLUMNS, *COLUMNS_OF_CLASSES), cells, strict=True))
        )
    return rows


def ablation_rows(entry: dict[str, Any]) -> list[dict[str, str]]:
    """Return differences in points as text: a row a kind, a column a place."""
    places = list(dict.fromkeys(a["where"] for a in entry["ablations"]))
    by = {(a["gates"], a["where"]): a for a in entry["ablations"]}
    rows = []
    for kind, (words, _, _) in KINDS.items():
        row = {"gates set to": words}
        for place in places:
            a = by[kind, place]
            row[f"{place}, points"] = gain(a["difference"], a["difference_interval"])
        rows.append(row)
    return rows


STATIC = "every gate is a learned constant: nothing varies from image to image"


def latency_text(entry: dict[str, Any]) -> str:
    """Return the times of a forward pass as one line."""
    of = entry["latency"]
    times = "; ".join(
        f"batch {b}: {t['with']:.2f} ms with gates, {t['without']:.2f} without"
        for b, t in of["milliseconds"].items()
    )
    return f"{times} ({of['device']}, {of['threads']} threads)"


# --- figures -----------------------------------------------------


def overview(entries: Sequence[dict[str, Any]]) -> Figure:
    """Draw by block the mean gate, the shares of E[g²] and of the variance."""
    rows = len(entries)
    figure, axes = subplots(rows, 3, figsize=(13, 3.4 * rows), squeeze=False)
    for (means, stack, between), entry in zip(axes, entries, strict=True):
        blocks = entry["blocks"]
        x = np.arange(1, len(blocks) + 1)
        _means(means, x, blocks)
        bottom = np.zeros(len(blocks))
        for part, (words, colour) in PARTS.items():
            height = np.array([b["shares"][part] for b in blocks])
            stack.bar(x, height, 0.85, bottom, color=colour, label=words)
            bottom += height
        share = [b["shares"]["between_classes"] for b in blocks]
        share = [np.nan if s is None else s for s in share]
        between.bar(x, share, 0.85, color=ORANGE)
        between.set(title="of the variance over images: between classes", ylim=(0, 1))
        stack.set(title="shares of the second moment E[g²]", ylim=(0, 1))
        _name_row(means, with_accuracy(entry))
        for axis in (means, stack, between):
            _mark_stages(axis, [b["stage"] for b in blocks])
    axes[0][0].legend(fontsize=7)
    axes[0][1].legend(fontsize=7, loc="lower left")
    return figure


def with_accuracy(entry: dict[str, Any]) -> str:
    """Return a run's label with its accuracy."""
    return f"{entry['label']}, {100 * entry['accuracy']['acc']:.2f} %"


def top_of(gates: np.ndarray) -> float:
    """Return the upper end of an axis of gates: 1, or above all of these."""
    return max(1.0, 1.05 * float(np.max(gates)))


def _means(axis: Axes, x: np.ndarray, blocks: list[dict[str, Any]]) -> None:
    mean, std, images = (
        np.array([b[key] for b in blocks]) for key in ("mean", "std", "std_images")
    )
    bars: dict[str, Any] = {"fmt": "none", "capsize": 0}
    label = "± deviation over channels and images"
    axis.errorbar(x, mean, std, ecolor="0.7", lw=5, label=label, **bars)
    label = "± deviation over images"
    axis.errorbar(x, mean, images, ecolor=BLUE, lw=2, label=label, **bars)
    axis.plot(x, mean, "o", color="black", ms=4, label="mean")
    axis.set(title="gates", ylim=(0, top_of(mean + std)))


def _name_row(axis: Axes, label: str) -> None:
    axis.set_ylabel(label.replace(", ", "\n", 1), fontsize=8, parse_math=False)


def _mark_stages(axis: Axes, stages: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    for i in range(1, len(stages)):
        if stages[i] != stages[i - 1]:
            axis.axvline(i + 0.5, color="black", lw=0.8, ls=":")
    axis.set(xlabel="SE block (dotted: a new stage)", xlim=(0.4, len(stages) + 0.6))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(axis="y", alpha=0.3)


def ablations(entries: Sequence[dict[str, Any]]) -> Figure:
    """Draw differences of test accuracy with their intervals, a panel a run."""
    from matplotlib.ticker import SymmetricalLogLocator

    columns = min(3, len(entries))
    rows = -(-len(entries) // columns)
    size = (max(4.4 * columns, 6.5), 3.6 * rows)
    options: dict[str, Any] = {"sharey": True, "squeeze": False}
    figure, axes = subplots(rows, columns, figsize=size, **options)
    for axis, entry in zip(axes.flat, entries, strict=False):
        places = list(dict.fromkeys(a["where"] for a in entry["ablations"]))
        for i, (kind, (words, sign, colour)) in enumerate(KINDS.items()):
            rows_of_kind = [a for a in entry["ablations"] if a["gates"] == kind]
            x = [places.index(a["where"]) + 0.16 * (i - 1.5) for a in rows_of_kind]
            y = np.array([100 * a["difference"] for a in rows_of_kind])
            intervals = [a["difference_interval"] for a in rows_of_kind]
            ends = 100 * np.array(intervals).T  # (2, n)
            look = {"color": colour, "fmt": sign, "capsize": 3, "label": words}
            axis.errorbar(x, y, abs(ends - y), **look)
        plain = entry["accuracy"]["acc"]
        title = f"{entry['label']}\nas they are: {100 * plain:.2f} %"
        axis.set_title(title, fontsize=9, parse_math=False)
        axis.set_xticks(range(len(places)), places)
        axis.axhline(0, color="black", lw=0.8)
        axis.set_yscale("symlog", linthresh=1)
        locator = SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5))
        axis.yaxis.set_major_locator(locator)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(axis="y", alpha=0.3)
    for axis in axes.flat[len(entries) :]:
        axis.set_visible(False)
    figure.supylabel("points of test accuracy,\nlogarithmic beyond ±1", fontsize=9)
    legend: dict[str, Any] = {"loc": "outside lower center", "ncols": len(KINDS)}
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="gates set to", **legend)
    return figure


def channels(
    studies: Sequence[tuple[str, Sequence[str], Mapping[str, np.ndarray]]],
) -> Figure:
    """Draw mean gates by class of the last SE block of each stage, a row a run.

    Channels stand by falling mean: as Hu et al.'s Figure 6, in an order that shows.

    Args:
        studies: of each run its label, its classes, and {stage: mean gates (K, C)}.
    """
    columns = max(len(stages) for _, _, stages in studies)
    size = (4.4 * columns + 1.4, 3.2 * len(studies))
    figure, axes = subplots(len(studies), columns, figsize=size, squeeze=False)
    for row, (label, classes, stages) in zip(axes, studies, strict=True):
        for axis in row[len(stages) :]:
            axis.set_visible(False)
        shown = range(0, len(classes), -(-len(classes) // LINES))
        for axis, (stage, means) in zip(row, stages.items(), strict=False):
            mean = np.asarray(means).mean(0)
            order = np.argsort(-mean)
            for k in shown:
                axis.plot(np.asarray(means[k])[order], lw=1, label=f"class {k}")
            axis.plot(mean[order], color="black", lw=2)
            title = f"mean gates of {stage}, last block"
            axis.set(title=title, xlabel="channels, by falling mean")
            axis.set_ylim(0, top_of(means))
            axis.grid(alpha=0.3)
        _name_row(row[0], label)
        handles = row[0].get_legend_handles_labels()[0]
        names = [_no_formula(classes[k]) for k in shown]
        row[len(stages) - 1].legend(handles, names, fontsize=7, ncols=2)
    return figure


def maps(
    label: str, images: np.ndarray, titles: Sequence[str], stages: np.ndarray
) -> Figure:
    """Draw images (n, H, W, 3), and over them maps (S, n, H, W) in 0..1."""
    size = (1.55 * len(images), 1.6 * (1 + len(stages)) + 0.5)
    shape = 1 + len(stages), len(images)
    figure, axes = subplots(*shape, figsize=size, squeeze=False)
    for j, (picture, title) in enumerate(zip(images, titles, strict=True)):
        axes[0][j].set_title(title, fontsize=8, parse_math=False)
        for i, axis in enumerate(axes[:, j]):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
            if i:
                look: dict[str, Any] = {"cmap": EVIDENCE, "vmin": 0, "vmax": 1}
                axis.imshow(stages[i - 1][j], alpha=COVER, **look)
    for i in range(len(stages)):
        axes[i + 1][0].set_ylabel(f"stage {i + 1}", fontsize=8)
    title = f"{label}: Grad-CAM of the predicted class, by number of the test image"
    figure.suptitle(_no_formula(title), fontsize=10)
    return figure


def _no_formula(text: str) -> str:
    return text.replace("$", r"\$")
