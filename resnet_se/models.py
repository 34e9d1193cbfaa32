"""Prints every preset's parameters, multiply-accumulates and layers.

    python -m resnet_se.models [--json]

Counts as Keras counts them, MMAC of one 32×32 image forward (`resnet`).
"""

from __future__ import annotations

import argparse
import json

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from resnet_se.config import CONF
from resnet_se.resnet import describe


def presets() -> dict[str, dict[str, int]]:
    """{preset: {trainable, non_trainable, total, macs, layers}}, by name."""
    found = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for path in sorted((CONF / "model").glob("*.yaml")):
            cfg = compose("train", overrides=[f"model={path.stem}", "~experiment"])
            with torch.device("meta"):  # counts need no weights
                found[path.stem] = describe(instantiate(cfg.model))
    return found


def main() -> None:
    """Console entry: `resnet-se models`."""
    parser = argparse.ArgumentParser(prog="resnet-se models", description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON keyed by preset")
    found = presets() if parser.parse_args().json else None
    if found is not None:
        print(json.dumps(found, indent=2))
        return
    table = Table(title="presets of conf/model, 32×32 images, 10 classes")
    table.add_column("model", no_wrap=True)
    for name in ("trainable", "non-train.", "total", "MMAC", "layers"):
        table.add_column(name, justify="right")
    for name, row in presets().items():
        table.add_row(
            name,
            *(f"{row[k]:,}" for k in ("trainable", "non_trainable", "total")),
            f"{row['macs'] / 1e6:.1f}",
            str(row["layers"]),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
