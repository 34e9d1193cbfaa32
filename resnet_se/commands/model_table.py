"""Prints every preset's parameters, multiply-accumulates and layers.

    resnet-se models [--json]

Counts as Keras counts them, MMAC of one 32×32 image forward (`resnet`).  A preset that
`budget=small` scales is followed by its small twin.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from hydra import compose
from omegaconf import DictConfig, open_dict
from rich.console import Console

import resnet_se.config.compose  # noqa: F401  registers the resolvers of conf/
from resnet_se.config import CONF
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.targets import build_target
from resnet_se.utils.console import plain_table


def counts(model: DictConfig) -> dict[str, int]:
    """Return {trainable, non_trainable, total, macs, layers} of a composed `model`."""
    import torch

    from resnet_se.models.complexity import network_summary

    with torch.device("meta"):  # counts need no weights
        return network_summary(build_target("model", model))


def presets() -> dict[str, dict[str, Any]]:
    """Return {preset: its `counts`}, by name; `small` in it are its small twin's."""
    rows: dict[str, dict[str, Any]] = {}
    with with_conf():
        budgets = [compose("train", [f"budget={b}"]).budget for b in ("paper", "small")]
        for path in sorted((CONF / "model").glob("*.yaml")):
            cfg = compose(f"model/{path.stem}")  # as `train` does, without the rest
            sizes = []
            for budget in budgets:
                with open_dict(cfg):
                    cfg.budget = budget
                sizes.append(counts(cfg.model))
            full, small = sizes
            rows[path.stem] = full if small == full else {**full, "small": small}
    return rows


def main() -> None:
    """Console entry: `resnet-se models`."""
    parser = argparse.ArgumentParser(prog="resnet-se models", description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON keyed by preset")
    as_json = parser.parse_args().json
    rows = presets()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    title = "presets of conf/model, 32×32 images, 10 classes"
    columns = ("model", "trainable", "non-trainable", "total", "MMAC", "layers")
    table = plain_table(title, *columns)
    for name, row in rows.items():
        table.add_row(name, *_cells(row))
        if "small" in row:
            table.add_row("  budget=small", *_cells(row["small"]), style="dim")
    Console().print(table)


def _cells(row: dict[str, int]) -> list[str]:
    sizes = (f"{row[k]:,}" for k in ("trainable", "non_trainable", "total"))
    return [*sizes, f"{row['macs'] / 1e6:.1f}", str(row["layers"])]


if __name__ == "__main__":
    main()
