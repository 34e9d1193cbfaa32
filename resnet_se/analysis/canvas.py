"""The palette, the canvas and the confusion matrix of the pictures of runs and reports.

Colours are Okabe and Ito's, which the colour-blind tell apart, and never alone: marks
differ too.  A report's figure is drawn as SVG whose text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from resnet_se.utils.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#777777"
COLOURS = {"train": ORANGE, "val": BLUE}
EVIDENCE, COVER = "inferno", 0.55  # Grad-CAM's colour map, and how much it hides
NUMBERS = re.compile(r'\b(d|x|y|transform)="[^"]*"')  # attributes of an SVG
UNSEEN = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is enough


def draw(figure: Figure) -> str:
    """Return the figure as SVG, the same text each time."""
    import matplotlib

    out = io.StringIO()
    options: dict[Any, Any] = {"svg.hashsalt": "resnet-se", "svg.fonttype": "none"}
    options["font.sans-serif"] = ["DejaVu Sans", "Verdana"]  # named at each word
    with matplotlib.rc_context(options):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = NUMBERS.sub(lambda m: DIGITS.sub(r"\1", m[0]), out.getvalue())
    return re.sub(r"\s+", " ", UNSEEN.sub("", text)).replace("> <", "><") + "\n"


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, whole; a link by its name is replaced, not followed."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def subplots(
    *shape: int,
    figsize: tuple[float, float] | None = None,
    layout: Literal["constrained"] | None = "constrained",
    **options: Any,
) -> tuple[Figure, Any]:
    """Return a figure and its axes, for files only.

    pyplot would keep each figure until it is closed, and may ask for a display.

    Args:
        layout: None for many panels, whose layout takes as long as drawing them twice.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(*shape, **options)


def shown_of(shown: Sequence[Any], known: Sequence[Any]) -> str:
    return f"; {len(shown)} of {len(known)} shown" if len(shown) < len(known) else ""


def confusion(
    labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Draw the confusion matrix of class indices (N,) in per cent of the true class."""
    k = len(classes)
    counts = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (K, K)
    side = min(max(4.5, 0.62 * k), 25)  # inches, where 40 names fit
    figure, axis = subplots(figsize=(side + 1.2, side))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if k <= 40:  # a class may be called $…$, which is no formula
        axis.set_xticks(range(k), classes, rotation=45, ha="right", parse_math=False)
        axis.set_yticks(range(k), classes, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true", title="confusion, % of the true class")
    for (i, j), value in np.ndenumerate(share) if k <= 20 else ():
        shade = "white" if value > 60 else "black"
        axis.text(j, i, f"{value:.0f}", ha="center", va="center", color=shade)
    return figure
