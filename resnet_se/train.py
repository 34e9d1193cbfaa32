"""Trains, tests the best checkpoint once, and writes the run directory.

    python -m resnet_se.train experiment=NAME group=choice key=value
    python -m resnet_se.train -m 'experiment=glob(e*)' seed=0,1,2

Training is idempotent: the same command again skips a finished run, resumes a broken
one from its `last.ckpt`, and starts otherwise.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from resnet_se import checkpoint, dashboard, plots, ranks
from resnet_se.build import (
    build_classifier,
    build_data,
    build_trainer,
    compile_net,
    load_weights,
    quiet,
    settle_precision,
)
from resnet_se.callbacks import Checkpoints, History
from resnet_se.config import (
    Facts,
    check_config,
    config_hash,
    experiment_name,
    explain,
    load_config,
    resolved,
    run,
    setting,
)
from resnet_se.data.module import ImageDataModule
from resnet_se.errors import UserError
from resnet_se.files import atomic_file, exclusive
from resnet_se.machine import environment, hardware, peak_memory_mb, reset_peak_memory
from resnet_se.record import (
    SCHEMA,
    earlier_version,
    read_result,
    short,
    write_result,
)
from resnet_se.resnet import describe
from resnet_se.scoring import save_predictions, score
from resnet_se.sweep import Outcome, recorded

console = Console()

# What went wrong: in the only process or rank 0; in another rank.
ERROR, OTHER_RANKS = "error.txt", "error.other_ranks.txt"
RANKS_LOCK = ".lock-ranks"  # of rank 0, which may outlive the one that launched it

# Where and how one machine ran it, no part of a record.
PLACES = ("runs_dir=", "data.source.root=", "launcher", "hparams_search=")


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
    world_size = ranks.processes(cfg.trainer)
    cfg.trainer.precision = settle_precision(cfg, data)
    facts = Facts(key, cfg.trainer.precision, world_size)
    kept = setting(resolved(cfg), facts)
    digest = config_hash(kept)
    run_dir = Path(cfg.runs_dir) / experiment_name() / f"seed{cfg.seed}-{digest}"
    cfg.run_dir = str(run_dir.resolve())
    result = _beginning(cfg, kept, digest)

    with _alone(run_dir):
        previous = read_result(run_dir)
        if previous is None:
            _refuse_beside_earlier(run_dir, cfg.seed, result["overrides"])
        _check_directory(run_dir, digest, facts)
        if previous and previous["status"] == "finished":
            _say_skipped(previous, result, run_dir)
            return Outcome("skipped", previous)
        resumed = (run_dir / "checkpoints" / checkpoint.LAST).is_file()
        with ledger(run_dir, result):
            if ranks.is_leader():
                with atomic_file(run_dir / "config.yaml") as file:
                    file.write(yaml.safe_dump(resolved(cfg), sort_keys=False).encode())
            several = world_size > 1 and not ranks.in_group()
            work = _train_in_ranks if several else _train_and_test
            work(cfg, data, run_dir, result)
    if not ranks.has_parent():
        print_closing_table(result, run_dir)
    return Outcome("resumed" if resumed else "done", result)


def _beginning(cfg: DictConfig, kept: dict[str, Any], digest: str) -> dict[str, Any]:
    """What a record says before anything has been trained."""
    hydra = HydraConfig.get()
    return {
        "schema": SCHEMA,
        "status": "running",
        "experiment": experiment_name(),
        "seed": cfg.seed,
        "config_hash": digest,
        "setting": kept,
        "choices": {
            group: choice
            for group, choice in hydra.runtime.choices.items()
            if group in cfg and choice is not None
        },
        "against": OmegaConf.to_container(cfg.get("against") or OmegaConf.create([])),
        "noise_family": cfg.get("noise_family"),
        "overrides": [
            override
            for override in hydra.overrides.task
            if not override.startswith(PLACES)
        ],
        "tags": list(cfg.tags),
        **environment(),
    }


# --- the run directory -------------------------------------------


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """The lock of a run: held by the process that was started, or that launched ranks.

    Rank 0 of those holds one of its own: should its launcher be killed, nobody starts
    before it has gone too.
    """
    if not ranks.is_leader():
        with nullcontext():
            yield
    elif ranks.has_parent():
        with exclusive(run_dir, RANKS_LOCK):
            yield
    else:
        with exclusive(run_dir):
            with exclusive(run_dir, RANKS_LOCK):
                pass
            yield


def _refuse_beside_earlier(run_dir: Path, seed: int, overrides: list[str]) -> None:
    """A run of an earlier version is not trained again in silence beside it.

    Raises:
        UserError: the same command has a run directory with the hash of schema 1.
    """
    for path in earlier_version(run_dir.parent, seed):
        theirs = read_result(path) or {}
        if sorted(theirs.get("overrides", [])) == sorted(overrides):
            raise UserError(
                f"{path}: a run of an earlier version ({theirs['status']}), whose hash "
                "left out what the new one holds (world size, precision, content of "
                "the data); report still reads it; to train anew move it away or give "
                "another runs_dir"
            )


def _check_directory(run_dir: Path, digest: str, facts: Facts) -> None:
    """Refuses to mix two configurations in one directory."""
    if not (run_dir / "config.yaml").is_file():
        return
    cfg = load_config(run_dir)
    theirs = config_hash(setting(resolved(cfg), facts))
    if theirs != digest:
        raise UserError(
            f"{run_dir}: holds a run of another configuration (its config.yaml has the "
            f"hash {theirs}, the name says {digest}); move it away to start afresh"
        )


def _say_skipped(
    previous: dict[str, Any], result: dict[str, Any], run_dir: Path
) -> None:
    console.print(f"skipped: {run_dir} is finished")
    then, now = previous.get("git"), result["git"]
    if then and now and then["commit"] != now["commit"]:
        console.print(
            f"it was trained at commit {then['commit'][:8]}, this is "
            f"{now['commit'][:8]}"
        )
    print_closing_table(previous, run_dir)


class Terminated(KeyboardInterrupt):
    """SIGTERM, before training began or after it."""


def _terminate(*_: Any) -> None:
    raise Terminated


@contextmanager
def ledger(run_dir: Path, result: dict[str, Any]) -> Iterator[None]:
    """Keeps the record of a run true whatever happens in the body.

    It is `running` from here on, and in the end finished, interrupted (by Ctrl-C,
    SIGTERM or a killed rank) or failed, with the error and its traceback beside it.
    """
    error_file = run_dir / (ERROR if ranks.is_leader() else OTHER_RANKS)
    with suppress(ValueError):  # a launcher's thread takes no signals
        signal.signal(signal.SIGTERM, _terminate)
    try:
        _record(run_dir, result)
        error_file.unlink(missing_ok=True)
        yield
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
            with suppress(ValueError):
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        raise
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        dashboard.finish(result["status"])


def _record(run_dir: Path, result: dict[str, Any]) -> None:
    if ranks.is_leader():
        write_result(run_dir, result)


# --- training ----------------------------------------------------


def _train_in_ranks(
    cfg: DictConfig, data: ImageDataModule, run_dir: Path, result: dict[str, Any]
) -> None:
    """`_train_and_test` in one process a device; fills `result` in with its record."""
    data.setup()  # decoded once, read from the cache by all
    (run_dir / OTHER_RANKS).unlink(missing_ok=True)
    # They are no jobs of a multirun any more; wandb is to group them all the same.
    group = Path(HydraConfig.get().runtime.output_dir).parent.name
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        os.environ.setdefault("WANDB_RUN_GROUP", group)
    overrides = [
        o for o in HydraConfig.get().overrides.task if "trainer.precision=" not in o
    ]
    overrides.append(f"trainer.precision={cfg.trainer.precision}")  # all have the same
    try:
        ranks.launch("resnet_se.train", overrides, ranks.local_processes(cfg.trainer))
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
        overrides = result["overrides"]
        result |= read_result(run_dir) or {}
        result["overrides"] = overrides


def _train_and_test(
    cfg: DictConfig, data: ImageDataModule, run_dir: Path, result: dict[str, Any]
) -> None:
    """Fits, tests the best checkpoint, and fills `result` in."""
    started = time.perf_counter()
    data.setup()
    model = build_classifier(cfg, data.num_classes)
    ckpt = _goes_on_from(cfg, run_dir, model)
    trainer = build_trainer(cfg, cfg.trainer.precision)
    device = trainer.strategy.root_device
    if cfg.trainer.get("sync_batchnorm") and device.type == "cpu":
        ranks.sync_batchnorm(model.net)
    result |= {
        "hardware": hardware(device, cfg.trainer.precision, trainer.world_size),
        "data": data.describe(),
        "model": describe(model.net, data.image_size[0]),
    }
    _record(run_dir, result)
    reset_peak_memory(device)
    _print_header(cfg, result, run_dir)
    compiled = compile_net(cfg, model, trainer, (data.batch_size, 3, *data.image_size))

    for logger in trainer.loggers:
        logger.log_hyperparams(resolved(cfg))
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's turn
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
    history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
    result["train"] = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": history and short(history.seconds),
        "images_per_second": history and short(history.images_per_second),
        "compile_seconds": short(compiled),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "stopped": "early_stopping"
        if trainer.current_epoch < trainer.max_epochs
        else "max_epochs",
    }
    best = _best(trainer, run_dir)
    result["best_epoch"] = load_weights(model, data, best)["epoch"] if best else None
    result |= score(trainer, model, data)
    result["seconds_in_all"] = round(time.perf_counter() - started, 2)
    if history:
        columns = dict.fromkeys(key for row in history.rows for key in row)
        result["history"] = {
            name: [short(row.get(name)) for row in history.rows] for name in columns
        }
    if ranks.is_leader():
        _save_test(cfg, trainer, model, data, run_dir, best)


def _goes_on_from(cfg: DictConfig, run_dir: Path, model: Any) -> Path | None:
    """The checkpoint that training goes on from: the run's own, else `ckpt_path`."""
    choice = checkpoint.choose(run_dir / "checkpoints")
    if choice is not None:
        for sentence in choice.damage:
            console.print(f"[yellow]{sentence}; going on from {choice.path.name}")
        path, loaded = choice.path, choice.checkpoint
    elif cfg.ckpt_path:
        path = Path(cfg.ckpt_path)
        loaded = checkpoint.read(path)
    else:
        return None
    checkpoint.check(loaded, path, model)
    console.print(f"resuming from {path}")
    return path


def _best(trainer: Any, run_dir: Path) -> Path | None:
    """The checkpoint to test; None where nothing was validated.

    Raises:
        UserError: there was a best one, and its file has gone.
    """
    rule = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)
    path = run_dir / "checkpoints" / checkpoint.BEST
    if path.is_file():
        return path
    if rule is None or rule.best_epoch is None:
        return None
    raise UserError(
        f"{path}: missing, though epoch {rule.best_epoch + 1} was the best; put it "
        f"back, or test the last one: evaluate run={run_dir} ckpt=last"
    )


def _save_test(
    cfg: DictConfig,
    trainer: Any,
    model: Any,
    data: ImageDataModule,
    run_dir: Path,
    best: Path | None,
) -> None:
    """Predictions and pictures, in the run directory and on its dashboards."""
    save_predictions(run_dir / "predictions.npz", model.predictions)
    tested = {
        "images": data.test_part[0],
        "labels": model.predictions["labels"],
        "logits": model.predictions["logits"],
        "classes": data.images.classes,
    }
    history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
    if cfg.plots:
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
    import resnet_se.search  # noqa: F401  makes itself known to Hydra

    quiet()
    ranks.die_with_parent()
    ranks.share_cores()
    console.quiet = not ranks.is_leader()
    run(recorded(train), "train")


if __name__ == "__main__":
    # By its name: a launcher sends the task to other processes, and what belongs to
    # `__main__` would have to travel whole.
    from resnet_se.train import main as by_name

    by_name()
