"""What the report's pictures are drawn on, and with.

Colours are Okabe and Ito's, which the colour-blind tell apart, and never alone: marks
differ too.  A figure is drawn as SVG whose text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#777777"
NUMBERS = re.compile(r'\b(d|x|y|transform)="[^"]*"')  # attributes of an SVG
DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is enough


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


def of_all(shown: Sequence[Any], known: Sequence[Any]) -> str:
    return f"; {len(shown)} of {len(known)} shown" if len(shown) < len(known) else ""
