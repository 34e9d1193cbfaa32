"""Accuracy against training FLOPs, ours and published ones: flops.json, flops.svg.

A training costs 6 × multiply-accumulates of a forward pass × images seen: forward and
twice as much backward, two FLOPs each; so counts Jordan 2024 (arXiv 2404.00498), whose
airbench94 it gives 0.35 for the 0.36 PFLOP that he states.

    python experiments/speedrun/flops.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_se.analysis.canvas import subplots

HERE = Path(__file__).parent
# Ours, on the JPEG copy of CIFAR-10: series → files, from experiments/.
SERIES = {
    "speedrun": "speedrun/h200/speedrun/seed*/result.json",
    "speedrun without SE": "speedrun/h200/vanilla/seed*/result.json",
    "speedrun, 7 epochs": "speedrun/h200/seven/seed*/result.json",
    "best_cpu": "best/best_cpu/seed*/result.json",
    "quickstart": "quickstart/seed?.json",
    "quickstart_gelu": "speedrun/h200/quickstart/seed*/result.json",
    "speedrun before (SGD)": "speedrun/cpu1.seed?.json",
    "quickstart before (SGD)": "quickstart/cpu4.seed?.json",
    "airbench94's recipe, rebuilt": "speedrun/reference.cpu1.seed?.json",
}
# On the original CIFAR-10, with TTA but for the ResNet-18; PFLOP and accuracy as the
# README of KellerJordan/cifar10-airbench has them.
PUBLISHED = {
    "airbench94 with Muon": (0.29, 0.9401),
    "airbench94": (0.36, 0.9401),
    "airbench95": (1.4, 0.9501),
    "airbench96, images filtered": (3.1, 0.9600),
    "airbench96": (4.9, 0.9603),
    "ResNet-18, standard training": (32.3, 0.96),
}


def points() -> Iterator[dict[str, Any]]:
    """A point a finished run: series, PFLOP of its training, accuracies in [0, 1]."""
    for series, pattern in SERIES.items():
        for path in sorted(HERE.parent.glob(pattern)):
            record = json.loads(path.read_text())
            # `reference.py` keeps a list of runs in a file.
            for run in record.get("runs", [record]):
                flop = 6 * record["model"]["macs"] * _images(run)
                pflop = run["train"].get("pflop", flop / 1e15)  # in older records none
                yield {
                    "series": series,
                    "file": str(path.relative_to(HERE.parent)),
                    "pflop": round(pflop, 4),
                    "acc": round(run["test"]["acc"], 4),
                    "acc_tta": round(run["test"]["acc_tta"], 4),
                }


def _images(run: dict[str, Any]) -> float:
    """Images that a training saw, one as often as there were epochs that used it."""
    data = run.get("data", {})
    if "batch_size" in data:
        return run["train"]["steps"] * data["batch_size"]
    if data:  # an older record
        return run["train"]["epochs"] * data["train"]
    return run["train"]["images_per_second"] * run["train"]["seconds"]


def draw(found: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "flops"

    figure, axes = subplots(figsize=(8, 4.8))
    colours = matplotlib.colormaps["tab10"].colors
    for (series, mark), colour in zip(
        zip(SERIES, "osDpPdv<^", strict=True), colours, strict=False
    ):
        xs, ys = zip(
            *((p["pflop"], 100 * p["acc_tta"]) for p in found if p["series"] == series),
            strict=True,
        )
        axes.plot(
            xs,
            ys,
            mark,
            color=colour,
            fillstyle="none",
            label=f"{series} (n = {len(xs)})",
        )
    xs, ys = zip(*PUBLISHED.values(), strict=True)
    axes.plot(xs, [100 * y for y in ys], "x", color="#777777",
              label="published, on the original images")  # fmt: skip
    for name, (x, y) in PUBLISHED.items():
        below = name in ("airbench94 with Muon", "airbench96, images filtered")
        axes.annotate(
            name, (x, 100 * y), (0, -12 if below else 6), fontsize=7, color="#555555",
            textcoords="offset points", ha="right" if below or x > 10 else "left",
        )  # fmt: skip
    axes.set(
        xscale="log", xlim=(0.08, 50), ylim=(88, 97),
        xlabel="PFLOP of training", ylabel="test accuracy with TTA, %",
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(HERE / "flops.svg", metadata={"Date": None})


def main() -> None:
    found = list(points())
    published = [
        {"name": name, "pflop": x, "acc": y} for name, (x, y) in PUBLISHED.items()
    ]
    text = json.dumps({"ours": found, "published": published}, indent=1)
    (HERE / "flops.json").write_text(text + "\n")
    draw(found)


if __name__ == "__main__":
    main()
