"""Makes the pictures of a run again, from what lies in its directory and its data.

    resnet-se plots run=DIR [out=DIR]

Curves are of metrics.csv, confusion, classes and reliability of predictions.npz; the
surest mistakes and the augmented images want the data as well.  What is missing is
named, the rest is drawn.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from resnet_se.analysis import run_figures
from resnet_se.config.build import run_data
from resnet_se.config.recipe import load_recipe
from resnet_se.config.targets import build_target
from resnet_se.runs import predictions_file
from resnet_se.runs.record import EVERY, check_fields, read_result
from resnet_se.training.mixing import Mixing
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import check_folder, own_folder, read_regular, writing

MOST_BYTES, MOST_EPOCHS, LARGEST = 64 << 20, 10**6, 1e30  # of metrics.csv


def plots(cfg: DictConfig) -> list[str]:
    """Draw what can be drawn; return the names of the pictures.

    Raises:
        UserError: no run there, nothing to draw, or nowhere to write.
    """
    run_dir = Path(cfg.run)
    result = read_result(run_dir)
    if result is None:
        raise UserError(f"run: expected a run directory, got {cfg.run!r}")
    try:
        check_fields(result, EVERY)
    except UserError as error:
        raise UserError(f"{run_dir}: {error}") from None
    out = Path(cfg.out) if cfg.out else own_folder(run_dir / "plots")
    check_folder(out)
    recipe = load_recipe(run_dir)
    missing: list[str] = []
    history = _history(run_dir, missing)
    best_epoch = result.get("best_epoch")
    if best_epoch is None:  # not finished: of what there is
        losses = {r["val/loss"]: i for i, r in enumerate(history) if "val/loss" in r}
        best_epoch = losses[min(losses)] if losses else None
    with writing(out):
        names = run_figures.save_run_plots(
            out,
            f"{result['experiment']} {run_dir.resolve().name}",
            history=history,
            best_epoch=best_epoch,
            soft_targets=build_target("mixing", recipe["mixing"]) != Mixing(),
            **_predictions(run_dir, result, missing),
            **_images(run_dir, result, missing),
        )
    console = Console(highlight=False)
    for sentence in missing:
        console.print(f"left out: {sentence}", soft_wrap=True)
    if not names:
        raise UserError(
            f"{run_dir}: nothing to draw in a run that is {result['status']}"
        )
    console.print(f"{out}: {', '.join(names)}", soft_wrap=True)
    return names


def _history(run_dir: Path, missing: list[str]) -> run_figures.History:
    """Return the rows of metrics.csv, an empty cell leaving its column out."""
    path = run_dir / "metrics.csv"
    try:
        lines = read_regular(path, MOST_BYTES).decode().splitlines()
        rows = [
            {name: float(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(lines)
        ]
        if not all(0 <= row["epoch"] < MOST_EPOCHS for row in rows):
            raise ValueError(f"epochs expected in 0..{MOST_EPOCHS:,}")
        if any(LARGEST < abs(v) < math.inf for row in rows for v in row.values()):
            raise ValueError(f"numbers up to {LARGEST:g} expected")
        # Validations within an epoch come before its own row.
        return list({row["epoch"]: row for row in rows}.values())
    except FileNotFoundError:
        missing.append(f"curves: no {path}")
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        missing.append(f"curves: {path} cannot be read ({error})")
    return []


def _predictions(
    run_dir: Path, result: dict[str, Any], missing: list[str]
) -> dict[str, Any]:
    path = run_dir / predictions_file.NAME
    pictures = "confusion, classes, reliability and mistakes"
    try:
        arrays = predictions_file.read(path)
        classes = len((result.get("data") or {}).get("classes", ()))
        if "logits" in arrays and arrays["logits"].shape[1] != classes:
            raise UserError(f"{path}: expected the {classes} classes of result.json")
    except FileNotFoundError:
        missing.append(f"{pictures}: no {path}, which the test at the end writes")
        return {}
    except (OSError, UserError) as error:
        missing.append(f"{pictures}: {error}")
        return {}
    loaded = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if "val_logits" not in loaded:
        missing.append(
            f"reliability after temperature scaling: {path} is of an earlier version, "
            "without validation logits"
        )
    return loaded


def _images(
    run_dir: Path, result: dict[str, Any], missing: list[str]
) -> dict[str, Any]:
    recorded = result.get("data") or {}
    classes = recorded.get("classes", ())
    try:
        data = run_data(run_dir, recorded.get("fingerprint"), training=True)
    except (UserError, OSError) as error:
        missing.append(f"mistakes and augmented images: {error}")
        return {"classes": classes}
    return {
        "classes": data.images.classes,
        "images": data.test_part[0],
        "augmented": run_figures.augmented(data, *run_figures.SHEET),
    }
