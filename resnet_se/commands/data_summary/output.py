"""The summary of a data set on the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from resnet_se.utils.console import plain_table

WIDE = 30  # classes of a printed table


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Print counts, duplicates and likely label errors."""
    console = Console(highlight=False)
    parts, size = summary["parts"], summary["size"]
    console.print(f"{summary['name']}: {summary['origin']}", soft_wrap=True)
    for part, facts in parts.items():
        mean, std = (
            ", ".join(f"{v:.4f}" for v in facts[key]) for key in ("mean", "std")
        )
        console.print(
            f"{part}: {facts['images']:,} images of {size[0]}×{size[1]}, "
            f"mean {mean}, deviation {std}",
            soft_wrap=True,
        )
    by_class = {part: facts["by_class"] for part, facts in parts.items()}
    if len(by_class["train"]) <= WIDE:
        table = plain_table("images by class", "class", *parts)
        for name in by_class["train"]:
            table.add_row(name, *(f"{by_class[part][name]:,}" for part in parts))
        console.print(table)
    else:
        for part, counts in by_class.items():
            least, most = (f(counts, key=counts.__getitem__) for f in (min, max))
            console.print(
                f"{part}: {counts[least]:,} ({least}) to {counts[most]:,} ({most}) "
                f"images of {len(counts)} classes"
            )
    title = f"pairs of duplicates (near: correlation ≥ {summary['near']})"
    table = plain_table(title, "", "exact", "near", "with other labels")
    for place, counts in summary["duplicates"]["counts"].items():
        table.add_row(place, *(f"{n:,}" for n in counts.values()))
    console.print(table)
    if errors := summary.get("label_errors"):
        likely, n = len(errors["likely"]), errors["looked_at"]
        console.print(f"label errors: {likely:,} likely of {n:,} images held out")
    console.print(f"{out}: summary.json and pictures")
