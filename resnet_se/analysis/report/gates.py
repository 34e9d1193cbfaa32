"""The report's section on SE gates, from the `inspect.json` in run directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resnet_se.analysis.canvas import draw
from resnet_se.analysis.gate_figures import (
    STATIC,
    ablation_rows,
    ablations,
    latency_text,
    overview,
    share_rows,
)
from resnet_se.analysis.report.text import Block, Table

if TYPE_CHECKING:
    from resnet_se.analysis.report.runs import Run

FILE = "inspect/inspect.json"
KEYS = {"config_hash", "seed", "label", "data", "blocks", "stages", "all"}
KEYS |= {"accuracy", "ablations", "latency"}
SHOWN = 6  # runs whose figures stand in a report
ABOUT = (
    "Gates by stage: mean, deviation over channels and images (std) and over images "
    "alone; parts of E[g²]: one number a block, a constant a channel (both: constant), "
    "what a class has in common, the rest; last, the classes' share of the variance "
    "over images"
)


def read_study(run: Run) -> dict[str, Any] | None:
    """Return a run's entry, or None where there is none, or another run's."""
    if run.folder is None:
        return None
    try:
        entries = json.loads((run.folder / FILE).read_bytes())["runs"]
        for entry in entries:
            identity = entry["config_hash"], entry["seed"]
            if identity == (run.config_hash, run.seed) and entry.keys() >= KEYS:
                return entry
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def blocks(runs: Sequence[Run]) -> list[Block]:
    """Return the section without its heading, nothing where no run has a study."""
    import pandas as pd

    entries = [entry for run in runs if (entry := read_study(run))]
    if not entries:
        return []
    about = (
        "Made by `resnet-se inspect`. Means are over validation images, all "
        "else over test images; intervals are of each difference alone (McNemar), for "
        "these networks and new images. A class's mean is that of an image's true "
        "class: it tells the network the answer."
    )
    result = [Block("p", about)]
    for caption, make in (
        (ABOUT, share_rows),
        (
            "Test accuracy with other gates, less that of the network",
            ablation_rows,
        ),
    ):
        rows = [{"run": e["label"], **row} for e in entries for row in make(e)]
        cells = pd.DataFrame(rows).fillna("–")
        left = {"gates of", "gates set to"}
        result.append(Block("table", table=Table(caption, cells, left)))
    facts = [
        f"{e['label']}: {e['data']['images']:,} test images; {latency_text(e)}"
        + (f"; {STATIC}" if e.get("static") else "")
        for e in entries
    ]
    result.append(Block("ul", items=facts))
    few = entries[:SHOWN]
    of = f"; {SHOWN} of {len(entries)} runs shown" if few != entries else ""
    for name, caption, figure in (
        (
            "gates",
            "Gates block by block, and what varies in them",
            overview,
        ),
        ("ablations", "What other gates cost in test accuracy", ablations),
    ):
        result.append(Block("figure", caption + of, name=name, svg=draw(figure(few))))
    return result
