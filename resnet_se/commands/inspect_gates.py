"""Shows what the gates of trained SE networks do, and what is lost without them.

    resnet-se inspect run=DIR[,DIR…] [out=DIR] [images=1000] [maps=[3,17]]

Writes inspect.json and pictures (`analysis.gate_study`); the report of a run has a
section from `RUN/inspect/inspect.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from resnet_se.analysis.gate_figures import (
    STATIC,
    ablation_rows,
    latency_text,
    share_rows,
)
from resnet_se.analysis.gate_study import (
    GateStudy,
    study_gates,
    write_entries,
    write_pictures,
)
from resnet_se.config.build import run_data
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.models.se_gates import se_blocks
from resnet_se.utils.console import plain_table
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import check_folder, own_folder
from resnet_se.utils.system import accelerator


def inspect(cfg: DictConfig) -> list[GateStudy]:
    """Study each run, write the files, print the findings.

    Raises:
        UserError: as `load`; no SE blocks, other data, or nowhere to write.
    """
    sources = list(cfg.run) if isinstance(cfg.run, ListConfig) else [cfg.run]
    mapped = None if cfg.maps is None else list(cfg.maps)
    console = Console(highlight=False)
    models = [_read_gated(source) for source in sources]  # before anything takes long
    for model in models:
        if model.note:
            console.print(f"note: {model.note}", soft_wrap=True)
    shared = Path("inspect")  # of several runs
    homes = [own_folder(model.source / "inspect") for model in models]
    out = Path(cfg.out) if cfg.out else homes[0] if len(homes) == 1 else shared
    check_folder(out)
    studies = []
    for model in models:
        data = run_data(model.source, model.fingerprint)
        model.to(accelerator(cfg.accelerator))
        studies.append(study_gates(model, data, console, cfg.images, mapped))
        _print_entry(studies[-1].entry, console)
    write_pictures(out, studies)
    write_entries(out, studies)
    if cfg.out is None and len(sources) > 1:  # the report of each looks there
        for home, study in zip(homes, studies, strict=True):
            write_entries(home, [study])
    console.print(f"{out}: inspect.json and pictures", soft_wrap=True)
    return studies


def _read_gated(source: str) -> Pretrained:
    model = read(source)
    try:
        se_blocks(model.net)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return model


def _print_entry(entry: dict[str, Any], console: Console) -> None:
    plain = entry["accuracy"]
    low, high = (100 * v for v in plain["interval"])
    console.print(
        f"{entry['label']}: {100 * plain['acc']:.2f} % [{low:.2f}, {high:.2f}] of "
        f"{entry['data']['images']:,} test images",
        soft_wrap=True,
    )
    if entry["static"]:
        console.print(STATIC, soft_wrap=True)
    for rows in (share_rows(entry), ablation_rows(entry)):
        table = plain_table(None, *rows[0])
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    console.print(latency_text(entry), soft_wrap=True)
