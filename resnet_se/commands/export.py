"""Writes a trained network for another runtime, once it gives what the network gives.

    resnet-se export run=DIR format=onnx|torch|safetensors|keras [out=PATH]

`fold=true` folds BatchNorm and static gates away, `gates=mean` SE gates too,
`int8=true` quantises.  Each step is compared with the network on real test images, and
timed (`inference.export`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console

from resnet_se.config.build import run_data
from resnet_se.inference import export as exporting
from resnet_se.inference.export import Options, Row
from resnet_se.inference.pretrained import read
from resnet_se.models.se_gates import all_static
from resnet_se.utils.console import plain_table
from resnet_se.utils.files import check_file


def export(cfg: DictConfig) -> list[Row]:
    """Write the file; return the rows of the printed table.

    Raises:
        UserError: no run there, an unknown or unfit option, a missing extra, another
            data set, or logits beyond the tolerance.
    """
    options = Options(**{name: cfg[name] for name in Options._fields})
    exporting.check_options(options)
    model = read(cfg.run)
    if model.note:
        print(f"note: {model.note}")
    if options.gates == "mean" and all_static(model.net):
        print(
            "note: gates=mean: nothing to do, every gate of this network is a constant "
            "already; it is folded as by fold=true"
        )
        options = options._replace(gates="free", fold=True)
    out = Path(cfg.out or f"{model.default_name}{exporting.SUFFIXES[options.format]}")
    check_file(out)
    data = run_data(model.source, model.fingerprint)
    rows = exporting.export_network(model, data, options, out)
    _print_rows(f"{cfg.run} → {out}", rows)
    Console().print(
        f"{len(exporting.compared_images(data, options)):,} test images, "
        f"{torch.get_num_threads()} threads; a row is compared with the one above it",
        soft_wrap=True,
    )
    warning = exporting.where_int8_does_not_pay(rows)
    if warning:
        Console().print(warning, soft_wrap=True, highlight=False)
    return rows


def _print_rows(title: str, rows: list[Row]) -> None:
    times = (f"ms, batch {b}" for b in exporting.BATCHES)
    columns = ("", "MB", "accuracy", "agrees", "max |Δ logit|", *times)
    table = plain_table(title, *columns)
    for i, row in enumerate(rows):
        compared = (f"{row.agreement:.2%}", f"{row.difference:.1e}") if i else ("", "")
        table.add_row(
            row.name,
            "" if row.megabytes is None else f"{row.megabytes:.2f}",
            f"{row.accuracy:.2%}",
            *compared,
            *(f"{t:.2f}" for t in row.milliseconds),
        )
    Console().print(table)
