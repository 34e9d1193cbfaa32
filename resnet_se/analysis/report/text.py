"""Numbers as text, tables of text, and both as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resnet_se.analysis.report.significance import mean_std

if TYPE_CHECKING:
    import pandas as pd

NONE = "–"


def number(value: float | None, digits: int = 0, unit: float = 1) -> str:
    return NONE if value is None else f"{value / unit:,.{digits}f}"


def accuracy(values: Sequence[float]) -> str:
    """Return per cent: `94.10 ± 0.12`; of one seed `38.66 (n = 1)`."""
    if not len(values):
        return NONE
    mean, std = mean_std(values)
    tail = " (n = 1)" if std is None else f" ± {100 * std:.2f}"
    return f"{100 * mean:.2f}{tail}"


def points(value: float) -> str:
    text = f"{100 * value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def gain(mean: float, interval: tuple[float, float]) -> str:
    low, high = map(points, interval)
    return f"{points(mean)} [{low}, {high}]"


def p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def settings(values: dict[str, object]) -> str:
    return " ".join(f"{k}={v}" for k, v in values.items() if v is not None)


@dataclass
class Table:
    """Cells as text; the first column and those in `left` are aligned left."""

    caption: str
    cells: pd.DataFrame
    left: set[str] = field(default_factory=set)

    def is_left(self, column: str) -> bool:
        return column == self.cells.columns[0] or column in self.left


@dataclass
class Block:
    """A heading (h2, h3), paragraph (p), list (ul), table or figure (its SVG).

    `notes` is a list that the page shows collapsed under its text.
    """

    kind: str
    text: str = ""
    items: Sequence[str] = ()
    table: Table | None = None
    name: str = ""  # a heading's anchor, a figure's file
    svg: str = ""


# --- Markdown ----------------------------------------------------


def markdown(title: str, blocks: list[Block]) -> str:
    """Return the whole report; figures are links to `figures/`."""
    parts = [f"# {_escaped(title)}"]
    for block in blocks:
        text = _escaped(block.text)
        if block.kind in ("h2", "h3"):
            parts.append(f"{'#' * int(block.kind[1])} {text}")
        elif block.kind in ("ul", "notes"):
            parts += [f"## {text}"] if block.kind == "notes" else []
            parts.append("\n".join(f"- {_escaped(item)}" for item in block.items))
        elif block.table is not None:
            parts.append(markdown_table(block.table))
        elif block.kind == "figure":
            parts.append(f"![{text}](figures/{block.name}.svg)")
        else:
            parts.append(text)
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([|*]|<(?=[a-zA-Z/!?]))", r"\\\1", text).replace("\n", " ")


def markdown_table(table: Table) -> str:
    cells = table.cells.rename(columns=_escaped).map(_escaped)
    sides = ["left" if table.is_left(c) else "right" for c in table.cells.columns]
    text = cells.to_markdown(index=False, colalign=sides, disable_numparse=True)
    return f"{_escaped(table.caption)}\n\n{text}" if table.caption else text
