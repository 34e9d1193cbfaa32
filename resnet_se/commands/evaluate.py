"""Tests the checkpoint of a run again, on its own or on another test set.

    resnet-se evaluate run=DIR [tta=flip] [ckpt=last] [out=PATH]
    resnet-se evaluate run=DIR data=cifar10_1 data.source.root=PATH
    resnet-se evaluate run=FILE.keras model=NAME data=cifar10

The first has the configuration and the data of the run, and changes nothing in its
directory.  The second, for bundles too, writes `evaluations/<name>.json` beside the
run, which the report and `load_runs` read; the names are those of `conf/test_set`.
The third tests a network that Keras trained on images in 0..1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from resnet_se.config.build import build_module, run_data, saved_run
from resnet_se.config.recipe import load_recipe
from resnet_se.config.schema import PRECISION
from resnet_se.config.targets import build_target, check_targets, value_below
from resnet_se.data.sources import CIFAR10, CIFAR100
from resnet_se.data.test_sets.base import LabelledImages, TestSet, Trained, indices_of
from resnet_se.inference.keras_model import without_defaults
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.inference.robustness import figures
from resnet_se.runs.bundle import is_bundle
from resnet_se.runs.checkpoint import LAST
from resnet_se.runs.evaluations import FOLDER, write_evaluation
from resnet_se.runs.keras_file import is_keras
from resnet_se.runs.record import read_result
from resnet_se.training.evaluation import load_weights, score
from resnet_se.utils.console import plain_table
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import (
    check_file,
    check_folder,
    own_folder,
    write_json,
    writing,
)
from resnet_se.utils.system import accelerator
from resnet_se.utils.validation import check_value

CIFAR = {len(c.classes): c.classes for c in (CIFAR10, CIFAR100)}


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Return the `val` and `test` fields of a run's checkpoint, measured anew.

    With `data`, the figures on that test set instead (`inference.robustness`).

    Raises:
        UserError: no run there, another architecture, or other data than it was
            trained on.
    """
    run_dir = Path(cfg.run)
    if cfg.out:
        check_file(Path(cfg.out))
    if cfg.get("data"):
        return _on_test_set(cfg)
    if is_keras(run_dir):
        raise UserError(f"run: {cfg.run} is a Keras file; add data=NAME, say cifar10")
    if cfg.get("model"):
        raise UserError(f"model: {cfg.run} is no Keras file and has its own network")
    result = read_result(run_dir)
    if result is None:
        raise UserError(f"run: expected a run directory, got {cfg.run!r}")
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
    table = plain_table(title, "", "now", "in result.json")

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


# --- another test set --------------------------------------------


def _on_test_set(cfg: DictConfig) -> dict[str, Any]:
    """Write `evaluations/<name>.json`, and a picture of corruptions.

    Raises:
        UserError: as `load`; a test set that is not there or does not fit the network.
    """
    values: Any = OmegaConf.to_container(cfg.data, resolve=True)
    check_targets(values, "data")
    source = build_target("data.source", values["source"])
    path = Path(cfg.run).expanduser()
    is_run = (path / "config.yaml").is_file() and not is_bundle(path)
    last = is_run and cfg.ckpt == "last"
    node: Any = None
    if "model" in cfg:
        composed: Any = OmegaConf.to_container(cfg.model, resolve=True)
        node = without_defaults(composed)
    model = read(path / "checkpoints" / LAST if last else path, bool(cfg.trust), node)
    if is_keras(path) and all(map(str.isdecimal, model.classes)):
        # It names no classes; Keras's CIFAR has the official order.
        model.classes = CIFAR.get(len(model.classes), model.classes)
    if model.note:
        print(f"note: {model.note}", file=sys.stderr)
    model.to(accelerator(cfg.accelerator))
    if "tta" in cfg:
        views = build_target("tta", cfg.tta) if cfg.tta else None
    else:
        views = model.views(model.config.get("tta") or False)
    folder = path / FOLDER
    if not is_run:  # a bundle's files are fixed
        folder = path.with_name(f"{path.name.removesuffix('.zip')}-{FOLDER}")
    if not cfg.out:
        check_folder(own_folder(folder))
    found = figures(model, test_parts(source, model, path), views)
    name = source.key() + ("-last" if last else "")
    record = {
        "name": name,
        "test_set": type(source).__name__,
        "arguments": {
            key: value
            for key, value in values["source"].items()
            if key not in ("_target_", "root")
        },
        "origin": getattr(source, "origin", ""),
        "run": {
            key: (model.record or {}).get(key)
            for key in ("experiment", "seed", "config_hash")
        },
        "ckpt": cfg.ckpt,
        "views": len(views.views) if views else None,
        "hardware": {"accelerator": model.mean.device.type, "precision": "32-true"},
        **found,
    }
    out = Path(cfg.out) if cfg.out else folder / f"{name}.json"
    write_evaluation(out, record)
    if "by" in found:
        from resnet_se.analysis.run_figures import draw_corruptions

        with writing(out):
            share = f"{found['acc']:.2%} of {found['images']:,} images"
            title = f"{model.default_name}\n{name}: {share}"
            draw_corruptions(title, found["by"], out.with_suffix(".png"))
    _print_figures(f"{cfg.run}, {name}", found)
    print(out)
    return record


def test_parts(source: Any, model: Pretrained, path: Path) -> Iterable[LabelledImages]:
    """Return the parts of a test set, or the test part of a source to train on."""
    if isinstance(source, TestSet):
        own = partial(_own_part, model, path)
        return source.load(Trained(model.classes, model.size, own))
    images = source.load()
    index = indices_of(images.classes, model.classes)
    return [LabelledImages(images.test_images, index[images.test_labels])]


def _own_part(model: Pretrained, path: Path) -> tuple[Tensor, Tensor]:
    """Return the run's own test images and labels.

    Nothing that a bundle names is built: its images are CIFAR's, below RESNET_SE_DATA.

    Raises:
        UserError: they are not there, or others.
    """
    if (path / "config.yaml").is_file() and not is_bundle(path):
        return run_data(path, model.fingerprint, recipe=load_recipe(path)).test_part
    named = value_below(model.config, "data.source._target_")
    known = {f"{c.__module__}.{c.__qualname__}": c for c in (CIFAR10, CIFAR100)}
    if named not in known:
        expected = f"a bundle of a network of {' or '.join(known)}"
        raise UserError(f"data: expected {expected}, whose own test images these are, "
                        f"got {named!r}")  # fmt: skip
    root = os.environ.get("RESNET_SE_DATA", "data")
    images = known[named](root, download=False).load()
    if images.fingerprint != model.fingerprint:
        raise UserError(
            f"data: {path} was trained on data with fingerprint {model.fingerprint}, "
            f"those in {root} have {images.fingerprint}"
        )
    return images.test_images, images.test_labels


def _print_figures(title: str, found: Mapping[str, Any]) -> None:
    """Print the figures; of corruptions, accuracy by severity."""
    low, high = found["acc_95"]
    line = f"{found['acc']:.2%} [{low:.2%}, {high:.2%}] of {found['images']:,} images"
    by = found.get("by")
    if by is None:
        more = f", TTA {found['acc_tta']:.2%}" if found["acc_tta"] is not None else ""
        line += f"{more}, loss {found['loss']:.4f}, ECE {found['ece']:.4f}"
        if people := found.get("people"):
            line += (
                f"; against people: cross-entropy {people['cross_entropy']:.4f}, "
                f"their own entropy {people['entropy']:.4f}"
            )
        Console(highlight=False).print(f"{title}: {line}", soft_wrap=True)
        return
    title = f"{title}: accuracy by severity"
    table = plain_table(title, "corruption", "1", "2", "3", "4", "5", "mean")
    for name, severities in by.items():
        cells = [f"{f['acc']:.1%}" for f in severities.values()]
        table.add_row(name, *cells, f"{found['by_corruption'][name]:.1%}")
    console = Console(highlight=False)
    console.print(table)
    error = found["mean_corruption_error"]
    console.print(f"mean corruption error {error:.2%}; {line}", soft_wrap=True)
