"""Pictures of a run: training curves, confusion matrix, its surest mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works without a display
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor


def save_run_plots(
    folder: Path,
    *,
    history: list[dict[str, float]],
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    classes: Sequence[str],
) -> None:
    """Writes `curves.png`, `confusion.png` and `mistakes.png` into `folder`.

    Args:
        history: one row an epoch (`callbacks.History`).
        images: the test set, uint8 (N, 3, H, W).
        labels: (N,);  logits: (N, K), of the plain images, in the same order.
        classes: K names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "curves": curves(history),
        "confusion": confusion(labels, logits.argmax(dim=1), classes),
        "mistakes": mistakes(images, labels, logits, classes),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)


def curves(history: list[dict[str, float]]) -> Figure:
    """Loss, accuracy and learning rate against the epoch."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels = [("loss", "loss"), ("acc", "accuracy"), ("lr", "learning rate")]
    for axis, (metric, title) in zip(axes, panels, strict=True):
        for part in ("train", "val"):
            points = [
                (row["epoch"] + 1, row[f"{part}/{metric}"])
                for row in history
                if f"{part}/{metric}" in row
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", ms=3, label=part)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.lines and metric != "lr":
            axis.legend()
    return figure


def confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> Figure:
    """Rows are the true classes, columns the predicted ones; per cent of the row."""
    k = len(classes)
    counts = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
    share = 100 * counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    side = min(max(4.5, 0.62 * k), 25)  # inches, where 40 names fit
    figure, axis = plt.subplots(figsize=(side + 1.2, side), layout="constrained")
    axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    ticks = range(k)
    if k <= 40:
        # A class may be called $…$, which is no formula.
        axis.set_xticks(ticks, classes, rotation=45, ha="right", parse_math=False)
        axis.set_yticks(ticks, classes, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true", title="confusion, % of the true class")
    if k <= 20:
        for i in ticks:
            for j in ticks:
                value = share[i, j].item()
                shade = "white" if value > 60 else "black"
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", color=shade)
    return figure


def mistakes(
    images: Tensor, labels: Tensor, logits: Tensor, classes: Sequence[str]
) -> Figure:
    """The 24 mistakes with the highest probability of the wrong class."""
    probability, predicted = logits.softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    worst = wrong[probability[wrong].argsort(descending=True)][:24].tolist()
    figure, axes = plt.subplots(3, 8, figsize=(13, 5.9), layout="constrained")
    figure.suptitle("surest mistakes: predicted (probability), true")
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, worst, strict=False):
        axis.imshow(images[i].permute(1, 2, 0).numpy())  # (H, W, 3)
        axis.set_title(
            f"{classes[predicted[i]]} ({probability[i]:.2f})\n{classes[labels[i]]}",
            fontsize=8,
            parse_math=False,
        )
    return figure
