"""Makes the pictures of a run again, from what lies in its directory and its data.

    resnet-se plots run=DIR [out=DIR]

Curves are of metrics.csv, confusion, classes and reliability of predictions.npz; the
surest mistakes and the augmented images want the data as well.  What is missing is
named, the rest is drawn.
"""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console

from resnet_se.analysis import run_figures
from resnet_se.config.build import run_data
from resnet_se.config.recipe import load_recipe
from resnet_se.config.targets import build_target
from resnet_se.runs.record import read_result
from resnet_se.training.mixing import Mixing
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import writing

ARRAYS = ("labels", "logits", "val_labels", "val_logits")


def plots(cfg: DictConfig) -> list[str]:
    """Draw what can be drawn; return the names of the pictures.

    Raises:
        UserError: no run there, nothing to draw, or nowhere to write.
    """
    run_dir = Path(cfg.run)
    result = read_result(run_dir)
    if result is None:
        raise UserError(f"run: expected a run directory, got {cfg.run!r}")
    recipe = load_recipe(run_dir)
    missing: list[str] = []
    history = _history(run_dir, missing)
    best_epoch = result.get("best_epoch")
    if best_epoch is None:  # not finished: of what there is
        losses = {r["val/loss"]: i for i, r in enumerate(history) if "val/loss" in r}
        best_epoch = losses[min(losses)] if losses else None
    out = Path(cfg.out or run_dir / "plots")
    with writing(out):
        names = run_figures.save_run_plots(
            out,
            f"{result['experiment']} {run_dir.resolve().name}",
            history=history,
            best_epoch=best_epoch,
            soft_targets=build_target("mixing", recipe["mixing"]) != Mixing(),
            **_predictions(run_dir, missing),
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
        with path.open(newline="") as file:
            rows = [
                {name: float(cell) for name, cell in row.items() if cell}
                for row in csv.DictReader(file)
            ]
            # Validations within an epoch come before its own row.
            return list({row["epoch"]: row for row in rows}.values())
    except FileNotFoundError:
        missing.append(f"curves: no {path}")
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        missing.append(f"curves: {path} cannot be read ({error})")
    return []


def _predictions(run_dir: Path, missing: list[str]) -> dict[str, Any]:
    path = run_dir / "predictions.npz"
    pictures = "confusion, classes, reliability and mistakes"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            loaded = {n: torch.from_numpy(arrays[n]) for n in ARRAYS if n in arrays}
    except FileNotFoundError:
        missing.append(f"{pictures}: no {path}, which the test at the end writes")
        return {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        missing.append(f"{pictures}: {path} cannot be read ({error})")
        return {}
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
