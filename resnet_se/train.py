"""Trains, tests the best checkpoint once, and writes the run directory.

    python -m resnet_se.train experiment=NAME group=choice key=value
    python -m resnet_se.train -m 'experiment=glob(e*)' seed=0,1,2

Training is idempotent: the same command again skips a finished run, resumes a broken
one from its `last.ckpt`, and starts otherwise.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table

from resnet_se import dashboard, plots, ranks
from resnet_se.callbacks import History
from resnet_se.classifier import METRICS, Classifier
from resnet_se.config import (
    check_config,
    config_hash,
    experiment_name,
    explain,
    run,
)
from resnet_se.datamodule import ImageDataModule
from resnet_se.errors import UserError, nearest
from resnet_se.resnet import describe
from resnet_se.results import (
    SCHEMA,
    atomic_file,
    environment,
    exclusive,
    hardware,
    pack_labels,
    peak_memory_mb,
    read_result,
    reset_peak_memory,
    write_result,
)
from resnet_se.sweep import Outcome, recorded

console = Console()


# What went wrong: in the only process or rank 0; in another rank.
ERROR, OTHER_RANKS = "error.txt", "error.other_ranks.txt"

# Where and how one machine ran it, no part of a record.
PLACES = ("runs_dir=", "data.source.root=", "launcher", "hparams_search=")


# --- building ----------------------------------------------------


# --- the run -----------------------------------------------------


def train(cfg: DictConfig) -> Outcome:
    """Runs one configuration to its `result.json`, or finds it done.

    Raises:
        UserError: a mistake in the configuration or the data; recorded where a run
            directory could be named.
        Busy: another process is at it.
    """
    quiet()  # a launcher's worker comes here first
    check_config(cfg)
    data = build_data(cfg)
    key = data.locate()
    if data.fell_back:
        cfg.data.source = cfg.data.fallback
        _banner(data.fell_back)
    if "root" in cfg.data.source:  # `evaluate` may be called from elsewhere
        cfg.data.source.root = str(Path(cfg.data.source.root).expanduser().resolve())
    digest = config_hash(cfg, key)
    run_dir = Path(cfg.runs_dir) / experiment_name() / f"seed{cfg.seed}-{digest}"
    cfg.run_dir = str(run_dir.resolve())

    # Of a run's processes the first works in its directory, for which the one that
    # started them, where it is ours, keeps the lock.
    alone = ranks.is_leader() and not ranks.has_parent()
    with exclusive(run_dir) if alone else nullcontext():
        previous = read_result(run_dir)
        _check_directory(run_dir, digest, key)
        if previous and previous["status"] == "finished":
            console.print(f"skipped: {run_dir} is finished")
            print_closing_table(previous, run_dir)
            return Outcome("skipped", previous)
        resumed = (run_dir / "checkpoints/last.ckpt").is_file()
        result = _run(cfg, data, run_dir, digest, previous)
    if not ranks.has_parent():
        print_closing_table(result, run_dir)
    return Outcome("resumed" if resumed else "done", result)


def _run(
    cfg: DictConfig,
    data: ImageDataModule,
    run_dir: Path,
    digest: str,
    previous: dict[str, Any] | None,
) -> dict[str, Any]:
    """The run itself, with its record kept true whatever happens."""
    result = {
        "schema": SCHEMA,
        "status": "running",
        "experiment": experiment_name(),
        "seed": cfg.seed,
        "config_hash": digest,
        "overrides": [
            override
            for override in HydraConfig.get().overrides.task
            if not override.startswith(PLACES)
        ],
        "tags": list(cfg.tags),
        **environment(),
    }
    if previous and "hardware" in previous:
        result["hardware"] = previous["hardware"]  # its precision is kept on resuming
    error_file = run_dir / (ERROR if ranks.is_leader() else OTHER_RANKS)
    _record(run_dir, result)
    if ranks.is_leader():
        with atomic_file(run_dir / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
    error_file.unlink(missing_ok=True)
    processes = 1 if ranks.in_group() else ranks.local_processes(cfg.trainer)
    try:
        work = _train_and_test if processes == 1 else _train_in_ranks
        work(cfg, data, run_dir, result)
        result["status"] = "finished"
        _record(run_dir, result)
    except BaseException as error:
        # Lightning turns Ctrl-C into SystemExit, and ignores further ones.
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | ranks.Stopped)
        result["status"] = "interrupted" if stopped else "failed"
        result["error"] = explain(error)
        if stopped and not isinstance(error, ranks.Stopped):
            result["error"] = "interrupted from outside"
        with suppress(OSError):  # a full disk must not hide what happened
            _record(run_dir, result)
            if not stopped and not error_file.exists():  # else a rank's: it says more
                error_file.write_text(traceback.format_exc())
        if stopped:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        raise
    finally:
        dashboard.finish(result["status"])
    return result


def _record(run_dir: Path, result: dict[str, Any]) -> None:
    if ranks.is_leader():
        write_result(run_dir, result)


def _train_in_ranks(
    cfg: DictConfig, data: ImageDataModule, run_dir: Path, result: dict[str, Any]
) -> None:
    """`_train_and_test` in one process a device; fills `result` in with its record."""
    data.setup()  # decoded once, read from the cache by all
    if "hardware" not in result:  # measured here: they must agree
        net = build_classifier(cfg, data.num_classes).net
        precision = choose_precision(cfg, net, data.image_size)
        result["hardware"] = {"precision": precision}
        write_result(run_dir, result)
    (run_dir / OTHER_RANKS).unlink(missing_ok=True)
    # They are no jobs of a multirun any more; wandb is to group them all the same.
    group = Path(HydraConfig.get().runtime.output_dir).parent.name
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        os.environ.setdefault("WANDB_RUN_GROUP", group)
    try:
        ranks.launch(
            "resnet_se.train",
            HydraConfig.get().overrides.task,
            ranks.local_processes(cfg.trainer),
        )
    except UserError as error:
        # Who wrote first is the reason; the others may only have seen it go.
        files = [run_dir / name for name in (ERROR, OTHER_RANKS)]
        # On a full disk a file may be there and empty.
        files = [file for file in files if file.is_file() and file.stat().st_size]
        if not files:
            raise
        first = min(files, key=lambda file: file.stat().st_mtime_ns)
        line = first.read_text().strip().splitlines()[-1]
        raise UserError(f"{error}: {line} (see {first})") from None
    finally:
        result |= read_result(run_dir) or {}


def _check_directory(run_dir: Path, digest: str, key: str) -> None:
    """Refuses to mix two configurations in one directory."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return
    try:
        found = config_hash(OmegaConf.load(path), key)
    except Exception as error:
        raise UserError(f"{path}: not a configuration of a run: {error}") from None
    if found != digest:
        raise UserError(
            f"{run_dir}: holds a run of another configuration (its config.yaml has the "
            f"hash {found}, the name says {digest}); move it away to start afresh"
        )


def _train_and_test(
    cfg: DictConfig,
    data: ImageDataModule,
    run_dir: Path,
    result: dict[str, Any],
) -> None:
    """Fits, tests the best checkpoint, and fills `result` in."""
    started = time.perf_counter()
    data.setup()
    model = build_classifier(cfg, data.num_classes)
    last, best = (run_dir / f"checkpoints/{name}.ckpt" for name in ("last", "best"))
    ckpt = last if last.is_file() else cfg.ckpt_path and Path(cfg.ckpt_path)
    if ckpt:
        check_checkpoint(load_checkpoint(ckpt), ckpt, model)
        console.print(f"resuming from {ckpt}")
    precision = result.get("hardware", {}).get("precision") or choose_precision(
        cfg, model.net, data.image_size
    )
    trainer = build_trainer(cfg, precision)
    device = trainer.strategy.root_device
    if cfg.trainer.get("sync_batchnorm") and device.type == "cpu":
        ranks.sync_batchnorm(model.net)
    result |= {
        "hardware": hardware(device, precision),
        "data": data.describe(),
        "model": describe(model.net, data.image_size[0]),
    }
    _record(run_dir, result)
    reset_peak_memory(device)
    _print_header(cfg, result, run_dir)
    compiled = compile_net(cfg, model, trainer, (data.batch_size, 3, *data.image_size))

    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
    result["train"] = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": history and _short(history.seconds),
        "images_per_second": history and _short(history.images_per_second),
        "compile_seconds": _short(compiled),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "stopped": "early_stopping"
        if trainer.current_epoch < trainer.max_epochs
        else "max_epochs",
    }
    best = best if best.is_file() else None
    result["best_epoch"] = load_checkpoint(best)["epoch"] if best else None
    result |= evaluate_classifier(trainer, model, data, best)
    result["seconds_in_all"] = round(time.perf_counter() - started, 2)
    if history:
        columns = dict.fromkeys(key for row in history.rows for key in row)
        result["history"] = {
            name: [_short(row.get(name)) for row in history.rows] for name in columns
        }
    if not ranks.is_leader():
        return
    save_predictions(run_dir / "predictions.npz", model.predictions)
    tested = {
        "images": data.test_part[0],
        "labels": model.predictions["labels"],
        "logits": model.predictions["logits"],
        "classes": data.images.classes,
    }
    rows = history.rows if history else []
    plots.save_run_plots(run_dir / "plots", history=rows, **tested)
    dashboard.log_test(trainer, run_dir / "plots", **tested, best=best)


# --- what a person sees ------------------------------------------


def _banner(reason: str) -> None:
    console.rule("[bold yellow]synthetic images instead of CIFAR-10", style="yellow")
    console.print(reason)
    console.print("The figures below say nothing about CIFAR-10.", style="bold yellow")
    console.rule(style="yellow")


def _print_header(cfg: DictConfig, result: dict[str, Any], run_dir: Path) -> None:
    model, data, machine = result["model"], result["data"], result["hardware"]
    console.print(
        f"{result['experiment']} · seed {cfg.seed} · {model['total']:,} parameters · "
        f"{model['macs'] / 1e6:.1f} MMAC · {data['origin']}, "
        f"{data['train']:,} to train on · {machine['accelerator']}, "
        f"{machine['precision']} · {run_dir}",
        soft_wrap=True,
        highlight=False,
    )


def print_closing_table(result: dict[str, Any], run_dir: Path) -> None:
    """Accuracy, with TTA, parameters, time, images per second, where the files are."""
    test, fit, data = result["test"], result["train"], result["data"]
    table = Table(title=f"{result['experiment']}, seed {result['seed']}")
    table.show_header = False
    table.add_column()
    table.add_column(justify="right", overflow="fold")
    speed = fit["images_per_second"]
    tta = test["acc_tta"]
    rows = [
        ("data", data["origin"]),
        ("test accuracy", f"{test['acc']:.2%} of {test['images']:,} images"),
        ("test accuracy with TTA", "–" if tta is None else f"{tta:.2%}"),
        ("validation accuracy", f"{result['val']['acc']:.2%}"),
        ("best epoch / epochs", f"{result['best_epoch'] + 1} / {fit['epochs']}")
        if result["best_epoch"] is not None
        else ("epochs", f"{fit['epochs']}"),
        ("parameters", f"{result['model']['total']:,}"),
        ("training time", "–" if fit["seconds"] is None else _clock(fit["seconds"])),
        ("images per second", "–" if speed is None else f"{speed:,.0f}"),
        (
            "hardware",
            f"{result['hardware']['device']}, {result['hardware']['cores']} "
            f"cores, {result['hardware']['precision']}",
        ),
        ("files", os.path.relpath(run_dir)),
    ]
    if data["fallback"]:
        rows.insert(0, ("[yellow]CIFAR-10 was not found", "[yellow]synthetic images"))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def main() -> None:
    """Console entry: `resnet-se train …`."""
    import resnet_se.optuna_search  # noqa: F401  makes itself known to Hydra

    quiet()
    ranks.share_cores()
    console.quiet = not ranks.is_leader()
    run(recorded(train), "train")


if __name__ == "__main__":
    # By its name: a launcher sends the task to other processes, and what belongs to
    # `__main__` would have to travel whole.
    from resnet_se.train import main as by_name

    by_name()
