"""Tests the checkpoint of a run again, with its own or another test-time augmentation.

    resnet-se evaluate run=DIR [tta=flip] [ckpt=last] [out=PATH]

The configuration and the data are the run's; nothing in its directory is changed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from resnet_se.commands.app import run_command
from resnet_se.config.build import build_module, run_data, saved_run
from resnet_se.config.schema import PRECISION
from resnet_se.runs.record import read_result
from resnet_se.training.evaluation import load_weights, score
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.files import write_json
from resnet_se.utils.validation import check_value

CHECKPOINTS = ("best", "last")


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Return the `val` and `test` fields of a run's checkpoint, measured anew.

    Raises:
        UserError: no run there, another architecture, or other data than it was
            trained on.
    """
    run_dir = Path(cfg.run)
    result = read_result(run_dir)
    if result is None:
        raise UserError(f"run: expected a run directory, got {cfg.run!r}")
    if cfg.ckpt not in CHECKPOINTS:
        hint = nearest(str(cfg.ckpt), CHECKPOINTS)
        raise UserError(f"ckpt: unknown {cfg.ckpt!r}; {hint}")
    precision = result.get("hardware", {}).get("precision")
    check_value("hardware.precision", precision, PRECISION)
    recipe = saved_run(run_dir)
    if "tta" in cfg:
        views = OmegaConf.to_container(cfg.tta, resolve=True) if cfg.tta else None
        recipe = replace(recipe, values={**recipe.values, "tta": views})

    trained_on = result.get("data", {}).get("fingerprint")
    data = run_data(run_dir, trained_on, recipe=recipe)
    model = build_module(recipe, data.num_classes, training=False)
    ckpt = run_dir / "checkpoints" / f"{cfg.ckpt}.ckpt"
    trainer = L.Trainer(
        accelerator=cfg.accelerator,
        devices=1,
        precision=precision,
        limit_val_batches=recipe.trainer["limit_val_batches"],
        limit_test_batches=recipe.trainer["limit_test_batches"],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    load_weights(model, data, ckpt)
    figures = score(trainer, model, data)
    _print_table(f"{cfg.run}, {cfg.ckpt}.ckpt", figures, result)
    if cfg.out:
        record = {"run": str(run_dir), "ckpt": cfg.ckpt, **figures}
        record["tta"] = recipe["tta"]
        write_json(Path(cfg.out), record)
    return figures


def _print_table(title: str, now: dict[str, Any], then: dict[str, Any]) -> None:
    table = Table(title=title)
    for name in ("", "now", "in result.json"):
        table.add_column(name, justify="right" if name else "left")

    def cell(value: Any, percent: bool) -> str:
        if not isinstance(value, int | float):
            return "–"
        return f"{value:.2%}" if percent else f"{value:.4f}"

    for part, metric in (
        ("test", "acc"),
        ("test", "acc_tta"),
        ("test", "loss"),
        ("test", "ece"),
        ("val", "acc"),
        ("val", "loss"),
    ):
        percent = metric.startswith("acc")
        before = then.get(part, {}).get(metric)
        table.add_row(
            f"{part}/{metric}", cell(now[part][metric], percent), cell(before, percent)
        )
    Console().print(table)


def main() -> None:
    """Console entry: `resnet-se evaluate …`."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
