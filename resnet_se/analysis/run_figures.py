"""Pictures of a run: curves, confusion, classes, reliability, mistakes, augmentation.

Each function makes one figure of tensors on the CPU; `save_run_plots` writes them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from resnet_se.analysis.calibration import fit_temperature
from resnet_se.analysis.canvas import (
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    confusion,
    save,
    subplots,
)
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.loaders import AugmentedImages, BatchesOnDevice, GivenImages
from resnet_se.training.reliability import BINS, reliability

SHOWN_CLASSES = 40  # bars of a picture
SHEET = (8, 5)  # training images, epochs of their augmentation
HIGH = 10  # a loss above so many times the median is not worth the axis it would take

History = list[dict[str, float]]
Column = tuple[list[float], list[float]]  # epochs from 1, values


def save_run_plots(
    folder: Path,
    run: str,
    *,
    history: History,
    best_epoch: int | None = None,
    soft_targets: bool = False,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    logits: Tensor | None = None,
    val_labels: Tensor | None = None,
    val_logits: Tensor | None = None,
    classes: Sequence[str] = (),
    augmented: Tensor | None = None,
) -> list[str]:
    """Draw all that the arguments allow into `folder`; return the names.

    Args:
        run: its name, which stands on every picture with the accuracy of the test.
        history: one row an epoch (the `History` callback's).
        best_epoch: 0-based, that of the checkpoint which was tested.
        soft_targets: the training loss is of smoothed or mixed labels.
        images: the test set, uint8 (N, 3, H, W).
        labels: (N,);  logits: (N, K), of the plain images, in the same order.
        val_labels, val_logits: the same of the validation part.
        classes: K names.
        augmented: uint8 (E + 1, n, 3, H, W), training images and how E epochs see them.
    """
    figures: dict[str, Figure] = {}
    if history:
        figures["curves"] = curves(history, best_epoch, soft_targets)
    if labels is not None and logits is not None:
        predicted = logits.argmax(dim=1)
        share = float((predicted == labels).double().mean())
        run = f"{run}: {share:.2%} of {len(labels):,} test images"
        arrays = labels.numpy(), predicted.numpy()
        figures["confusion"] = confusion(*arrays, classes)
        figures["per_class"] = per_class(labels, predicted, classes)
        validation = None
        if val_labels is not None and val_logits is not None:
            validation = val_logits, val_labels
        figures["reliability"] = reliability_diagram(logits, labels, validation)
        if images is not None:
            figures["mistakes"] = mistakes(images, labels, logits, classes)
    if augmented is not None:
        figures["augmented"] = augmented_images(augmented)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        own = figure.get_suptitle()
        title = f"{run}\n{own}" if own else run
        figure.suptitle(title, fontsize=10, parse_math=False)
        save(figure, folder / f"{name}.png")
    return list(figures)


# --- curves ------------------------------------------------------


def curves(
    history: History, best_epoch: int | None = None, soft_targets: bool = False
) -> Figure:
    """Draw loss, accuracy and learning rate against the epoch.

    The training loss is drawn twice, epoch by epoch and smoothed; where its targets are
    soft the legend says that it is another loss than that of validation.
    """
    figure, axes = subplots(1, 3, figsize=(13, 3.8))
    panels = [("loss", "loss"), ("acc", "accuracy"), ("lr", "learning rate")]
    for axis, (metric, title) in zip(axes, panels, strict=True):
        columns = {p: _column(history, f"{p}/{metric}") for p in ("train", "val")}
        if metric == "loss":
            _leave_out_diverged(axis, columns)
        for part, (x, y) in columns.items():
            soft = soft_targets and (part, metric) == ("train", "loss")
            label = f"{part}, of soft targets: not comparable" if soft else part
            smooth = part == "train" and metric != "lr"
            _curve(axis, x, y, COLOURS[part], label, smooth)
        x, y = columns["val"]
        if best_epoch is not None and best_epoch + 1 in x:
            at = best_epoch + 1
            axis.axvline(at, color=GREY, lw=1, ls=":")
            look: dict[str, Any] = {"ls": "none", "marker": "*", "ms": 13}
            look |= {"color": BLUE, "label": f"best epoch, {at}"}
            axis.plot(at, y[x.index(at)], **look)
        axis.set(title=title, xlabel="epoch")
        if metric != "loss":
            axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.lines and metric != "lr":
            axis.legend(fontsize=8)
    return figure


def _column(history: History, name: str) -> Column:
    points = [(row["epoch"] + 1, row[name]) for row in history if name in row]
    return [x for x, _ in points], [y for _, y in points]


def _curve(
    axis: Axes, x: list[float], y: list[float], colour: str, label: str, smooth: bool
) -> None:
    if not x:
        return
    marker: dict[str, Any] = {"marker": "o", "ms": 3} if len(x) <= 60 else {}
    half = len(x) // 20  # of the epochs that are averaged
    if not smooth or half == 0:
        axis.plot(x, y, color=colour, label=label, **marker)
        return
    axis.plot(x, y, color=colour, lw=0.8, alpha=0.45)
    means = []
    for i in range(len(y)):
        around = y[max(0, i - half) : i + half + 1]
        finite = [v for v in around if not math.isnan(v)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    label = f"{label}; bold: mean of {2 * half + 1} epochs"
    axis.plot(x, means, color=colour, lw=2, ls="--", label=label)


def _leave_out_diverged(axis: Axes, columns: dict[str, Column]) -> None:
    """Replace values that would flatten all others by gaps, with crosses on top.

    The axis is logarithmic where its values ask for it; either is said on it.
    """
    values = sorted(v for _, y in columns.values() for v in y if 0 < v < math.inf)
    if not values:
        return
    top = HIGH * values[len(values) // 2]
    left_out = 0
    for part, (x, y) in columns.items():
        gone = [i for i, v in enumerate(y) if not v <= top]  # NaN too
        left_out += len(gone)
        for i in gone:
            y[i] = math.nan
        look: dict[str, Any] = {"color": COLOURS[part], "ls": "none", "marker": "x"}
        at_edge = axis.get_xaxis_transform()
        axis.plot([x[i] for i in gone], [0.98] * len(gone), transform=at_edge, **look)
    remarks = []
    if min(top, values[-1]) > 20 * values[0]:
        axis.set_yscale("log")
        remarks.append("log axis")
    if left_out:
        remarks.append(f"crosses: {left_out} above {top:.3g} or not finite")
    axis.set_ylabel(", ".join(remarks), fontsize=8)


# --- what was predicted ------------------------------------------


def per_class(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> Figure:
    """Draw the share of each class that is recognised, with Wilson intervals."""
    from scipy import stats

    k = len(classes)
    counts = torch.bincount(labels, minlength=k)
    hits = torch.bincount(labels[labels == predicted], minlength=k)
    share = hits / counts.clamp_min(1)
    order = share.argsort()[:SHOWN_CLASSES].tolist()
    figure, axis = subplots(figsize=(7, 1.3 + 0.28 * len(order)))
    for row, i in enumerate(order):
        axis.barh(row, 100 * share[i].item(), color=BLUE, height=0.75)
        if counts[i]:
            test = stats.binomtest(int(hits[i]), int(counts[i]))
            ends = test.proportion_ci(method="wilson")
            axis.plot([100 * ends.low, 100 * ends.high], [row, row], color="black")
        text = f"{100 * share[i].item():.1f}" if counts[i] else "no images"
        axis.text(1, row, text, va="center", color="white", fontsize=8)
    names = [classes[i] for i in order]
    axis.set_yticks(range(len(order)), names, fontsize=8, parse_math=False)
    some = f", the {len(order)} lowest of {k}" if len(order) < k else ""
    axis.set(xlim=(0, 100), title=f"accuracy by class{some}")
    axis.set_xlabel("% of a class's test images; line: 95 % for new images", fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    return figure


def reliability_diagram(
    logits: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
) -> Figure:
    """Draw the reliability diagram, before and after temperature scaling.

    Args:
        validation: logits and labels that the temperature is fitted on; without them
            there is no second panel.
    """
    panels = [(reliability(logits, labels), "as trained")]
    if validation is not None:
        t = fit_temperature(*validation)
        title = f"logits / {t:.3f}, fitted on {len(validation[1]):,} validation images"
        panels.append((reliability(logits / t, labels), title))
    n = len(panels)
    options: dict[str, Any] = {"sharex": True, "squeeze": False}
    options |= {"figsize": (4.8 * n, 5.6), "height_ratios": (3, 1)}
    figure, axes = subplots(2, n, **options)
    centres = (np.arange(BINS) + 0.5) / BINS
    for (above, below), (bins, title) in zip(axes.T, panels, strict=True):
        confidence, accuracy, share = (values.numpy() for values in bins)  # (BINS,)
        filled = share > 0
        above.bar(centres[filled], accuracy[filled], 0.9 / BINS, color=BLUE)
        above.plot([0, 1], [0, 1], color="black", lw=1, ls="--")
        look: dict[str, Any] = {"color": ORANGE, "s": 22, "zorder": 3}
        look["label"] = "at the mean probability of the bin"
        above.scatter(confidence[filled], accuracy[filled], **look)
        above.set_title(f"{title}\nECE {100 * bins.ece:.2f} %", fontsize=9)
        above.set(xlim=(0, 1), ylim=(0, 1))
        bars = below.bar(centres, 100 * share, 0.9 / BINS, color=GREY)
        counts = [f"{round(n):,}" if n else "" for n in share * len(labels)]
        below.bar_label(bars, counts, fontsize=6, rotation=90, padding=2)
        below.set_xlabel("probability of the class predicted")
        below.set_ylim(0, 135)  # with room for the numbers of images
    axes[0][0].legend(fontsize=8, loc="upper left")
    axes[0][0].set_ylabel("share of them that are right")
    axes[1][0].set_ylabel("% of images")
    return figure


def mistakes(
    images: Tensor, labels: Tensor, logits: Tensor, classes: Sequence[str]
) -> Figure:
    """Draw the 24 mistakes with the highest probability of the wrong class."""
    probability, predicted = logits.softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    worst = wrong[probability[wrong].argsort(descending=True)][:24].tolist()
    figure, axes = subplots(3, 8, figsize=(13, 5.9))
    figure.suptitle("most confident mistakes: predicted (probability), true")
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, worst, strict=False):
        axis.imshow(images[i].permute(1, 2, 0).numpy())  # (H, W, 3)
        wrong_class, true_class = classes[int(predicted[i])], classes[int(labels[i])]
        title = f"{wrong_class} ({probability[i]:.2f})\n{true_class}"
        axis.set_title(title, fontsize=8, parse_math=False)
    return figure


# --- training images ---------------------------------------------


def augmented_images(augmented: Tensor) -> Figure:
    """Draw training images, and below them the same as the first epochs see them.

    Args:
        augmented: uint8 (E + 1, n, 3, H, W), the first row as they are.
    """
    rows, columns = augmented.shape[:2]
    size = (1.2 * columns + 0.6, 1.2 * rows + 0.4)
    figure, axes = subplots(rows, columns, figsize=size, squeeze=False)
    figure.suptitle("training images and their augmentation", fontsize=10)
    for i in range(rows):
        for j in range(columns):
            axes[i][j].imshow(augmented[i, j].permute(1, 2, 0).numpy())  # (H, W, 3)
            axes[i][j].set_xticks([])
            axes[i][j].set_yticks([])
        axes[i][0].set_ylabel(f"epoch {i}" if i else "as it is", fontsize=8)
    return figure


def draw_corruptions(
    title: str, by: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Draw the accuracy under each corruption (rows) at each severity, in per cent.

    Args:
        title: the run, the test set and the accuracy on all of it.
    """
    severities = list(next(iter(by.values())))
    share = np.array([[100 * by[n][s]["acc"] for s in severities] for n in by])
    figure, axis = subplots(figsize=(5.5, 1.6 + 0.3 * len(by)))
    figure.suptitle(title, fontsize=9, parse_math=False)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axis.set_xticks(range(len(severities)), severities)
    axis.set_yticks(range(len(by)), [name.replace("_", " ") for name in by])
    axis.set(xlabel="severity", title="accuracy, %")
    for (i, j), value in np.ndenumerate(share):
        shade = "white" if value > 60 else "black"
        axis.text(j, i, f"{value:.1f}", ha="center", va="center", color=shade)
    save(figure, path)


def contact_sheet(images: Tensor, titles: Sequence[str], path: Path) -> None:
    """Draw uint8 images (N, 3, H, W), eight a row, with titles."""
    rows = -(-len(images) // 8)
    figure, axes = subplots(rows, 8, figsize=(10, 1.5 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=7, parse_math=False)
    save(figure, path)


def augmented(data: ImageDataModule, n: int, epochs: int) -> Tensor:
    """Return n training images, then as E epochs see them: (1 + E, n, 3, H, W)."""
    images, labels = data.train_part
    index = torch.arange(n) * len(images) // n
    part = images[index], labels[index]
    rows = [part[0].float()]
    for epoch in range(epochs):
        sampler = GivenImages(n, data.seed, epoch)
        if data.engine == "batched":
            loader = BatchesOnDevice(*part, data.augment, sampler, data.statistics)
            x, _ = next(iter(loader))
            x = x * data.std[:, None, None] + data.mean[:, None, None]
            rows.append(255 * x)
        else:
            dataset = AugmentedImages(*part, data.augment, data.seed)
            rows.append(dataset[next(iter(sampler))][0].float())
    return torch.stack(rows).round().clamp(0, 255).to(torch.uint8)
