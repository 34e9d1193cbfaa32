"""One training: fits, tests the best checkpoint once, fills the record in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from resnet_se.analysis import run_figures
from resnet_se.config.build import (
    build_classifier,
    build_trainer,
    check_shape,
    compile_net,
    load_weights,
    run_name,
)
from resnet_se.config.compose import resolved
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.inference.distillation import criterion
from resnet_se.models.complexity import network_summary
from resnet_se.models.layers import sync_batchnorm
from resnet_se.runs import checkpoint
from resnet_se.runs.record import short, write_result
from resnet_se.training import loggers, memory
from resnet_se.training.callbacks.checkpointing import Checkpoints
from resnet_se.training.callbacks.history import History
from resnet_se.training.callbacks.pruning import Pruner
from resnet_se.training.evaluation import save_predictions, score
from resnet_se.training.mixing import Mixing
from resnet_se.utils import distributed
from resnet_se.utils.console import console, print_devices, print_header
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import (
    hardware,
    keep_freed_memory,
    peak_memory_mb,
    reset_peak_memory,
)


def train_and_test(
    cfg: DictConfig, data: ImageDataModule, run_dir: Path, result: dict[str, Any]
) -> None:
    """Fits, tests the best checkpoint, and fills `result` in."""
    started = time.perf_counter()
    data.setup()
    data.augment.check(*data.image_size)
    model = build_classifier(cfg, data.num_classes)
    check_shape(model.net, data.image_size, data.num_classes)
    model.criterion = criterion(cfg, data)
    ckpt = _goes_on_from(cfg, run_dir, model)
    trainer = build_trainer(cfg, cfg.trainer.precision)
    device, world_size = trainer.strategy.root_device, trainer.world_size
    if device.type == "cpu":
        keep_freed_memory()
    data.fit_batch_size(world_size)
    if cfg.trainer.get("sync_batchnorm") and device.type == "cpu":
        sync_batchnorm(model.net)
    result |= {
        "hardware": hardware(device, cfg.trainer.precision, world_size),
        "data": data.describe(),
        "model": network_summary(model.net, data.image_size[0]),
    }
    if distributed.is_leader():
        write_result(run_dir, result)
    reset_peak_memory(device)
    print_header(result, run_dir)
    if data.fitted:
        console.print(data.fitted, soft_wrap=True, highlight=False)
    if world_size > 1:
        scaled = bool(cfg.trainer.get("scale_lr"))
        print_devices(world_size, data.batch_size, cfg.optimizer.lr, scaled)
    history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
    compiled = compile_net(cfg, model, trainer, (data.batch_size, 3, *data.image_size))

    for logger in trainer.loggers:
        logger.log_hyperparams({**resolved(cfg), **_identity(result)})
    try:
        trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    except Exception as error:
        memory.explain(error, trainer, model, data)
        if ckpt and not (history and history.epochs > 1):
            _explain_resume(error, ckpt)
        raise
    result["train"] = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": history and short(history.seconds),
        "images_per_second": history and short(history.images_per_second),
        "compile_seconds": short(compiled),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "stopped": _stopped_by(trainer),
    }
    if any(isinstance(c, Pruner) and c.pruned for c in trainer.callbacks):
        result["train"]["stopped"] = result["status"] = "pruned"
        return
    best = _best(trainer, run_dir, run_name(cfg))
    result["best_epoch"] = load_weights(model, data, best)["epoch"] if best else None
    result |= score(trainer, model, data)
    result["seconds_in_all"] = round(time.perf_counter() - started, 2)
    if history:
        columns = dict.fromkeys(key for row in history.rows for key in row)
        result["history"] = {
            name: [short(row.get(name)) for row in history.rows] for name in columns
        }
    if distributed.is_leader():
        _save_test(cfg, trainer, model, data, run_dir, best, result)


def _stopped_by(trainer: L.Trainer) -> str:
    if 0 < trainer.max_steps <= trainer.global_step:
        return "max_steps"
    early = trainer.current_epoch < trainer.max_epochs
    return "early_stopping" if early else "max_epochs"


def _identity(result: dict[str, Any]) -> dict[str, Any]:
    """What tells a run from others in a dashboard, beside its settings."""
    return {
        "experiment": result["experiment"],
        "config_hash": result["config_hash"],
        "parameters": result["model"]["total"],
    }


def _goes_on_from(cfg: DictConfig, run_dir: Path, model: Any) -> Path | None:
    """The checkpoint that training goes on from: the run's own, else `ckpt_path`."""
    choice = checkpoint.choose(run_dir / "checkpoints", run_name(cfg))
    if choice is not None:
        for sentence in choice.damage:
            console.print(f"[yellow]{sentence}; going on from {choice.path.name}")
        path, loaded = choice.path, choice.checkpoint
    elif cfg.ckpt_path:
        path = Path(cfg.ckpt_path)
        loaded = checkpoint.read(path)
    else:
        if cfg.init_from:
            _init_from(Path(cfg.init_from), model)
        return None
    checkpoint.check(loaded, path, model)
    console.print(f"resuming from {path}")
    return path


def _explain_resume(error: Exception, ckpt: Path) -> None:
    """A checkpoint's states have any form; an epoch from them went through, or not.

    Raises:
        UserError: it did not, and nothing better is known of why.
    """
    if isinstance(error, UserError | OSError):
        return
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise UserError(
        f"{ckpt}: the first epoch from there failed: {what}; the rest is in error.txt"
    ) from error


def _init_from(path: Path, model: Any) -> None:
    """Weights of another run or checkpoint; where shapes differ (a head) ours stay.

    Raises:
        UserError: unreadable, or not one tensor fits.
    """
    file = path / "checkpoints" / checkpoint.BEST if path.is_dir() else path
    theirs, ours = checkpoint.read(file)["state_dict"], model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in theirs.items()
        if name in ours and ours[name].shape == tensor.shape
    }
    if not fitting:
        raise UserError(f"init_from: {file}: none of its tensors fits this network")
    model.load_state_dict(fitting, strict=False)
    model.initialised = True
    left = sorted(ours.keys() - fitting.keys())
    names = f", new: {', '.join(left)}" if left else ""
    console.print(f"weights of {file}: {len(fitting)} of {len(ours)} tensors{names}")


def _best(trainer: Any, run_dir: Path, run: str) -> Path | None:
    """The checkpoint to test; None where nothing was validated.

    Raises:
        UserError: there was a best one, and its file has gone or is another's.
    """
    rule = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)
    path = run_dir / "checkpoints" / checkpoint.BEST
    if path.is_file():
        loaded = checkpoint.read_own(path, run)
        if rule is None or rule.best_epoch is None or rule.is_best(loaded):
            return path
        what = f"of epoch {loaded['epoch'] + 1}"
    elif rule is None or rule.best_epoch is None:
        return None
    else:
        what = "missing"
    raise UserError(
        f"{path}: {what}, though epoch {rule.best_epoch + 1} was the best; put it "
        f"back, or test the last one: evaluate run={run_dir} ckpt=last"
    )


def _save_test(
    cfg: DictConfig,
    trainer: Any,
    model: Any,
    data: ImageDataModule,
    run_dir: Path,
    best: Path | None,
    result: dict[str, Any],
) -> None:
    """Predictions and pictures, in the run directory and on its dashboards."""
    val = {f"val_{name}": rows for name, rows in model.val_predictions.items()}
    save_predictions(run_dir / "predictions.npz", model.predictions | val)
    tested = {
        "images": data.test_part[0],
        "labels": model.predictions["labels"],
        "logits": model.predictions["logits"],
        "classes": data.images.classes,
    }
    history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
    if cfg.plots:
        try:
            run_figures.save_run_plots(
                run_dir / "plots",
                history=history.rows if history else [],
                best_epoch=result["best_epoch"],
                soft_targets=model.mixing != Mixing(),
                augmented=data.augmented(*run_figures.SHEET),
                **tested,
                **val,
            )
        except OSError:
            raise
        except Exception as error:  # no reason to lose what was trained
            said = f"no pictures: {type(error).__name__}: {error}"
            console.print(said, style="yellow", markup=False, soft_wrap=True)
    summary = _identity(result)
    summary["images_per_second"] = result["train"]["images_per_second"]
    loggers.log_test(trainer, run_dir / "plots", **tested, best=best, summary=summary)
