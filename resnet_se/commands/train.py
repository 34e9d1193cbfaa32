"""Trains, tests the best checkpoint once, and writes the run directory.

    python -m resnet_se.train experiment=NAME group=choice key=value
    python -m resnet_se.train -m 'experiment=glob(e*)' seed=0,1,2

Training is idempotent: the same command again skips a finished run, resumes a broken
one from its `last.ckpt`, and starts otherwise.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from resnet_se.commands.multirun import PRUNER, Outcome, recorded
from resnet_se.config.compose import (
    experiment_name,
    explain,
    resolved,
    run,
    saved_config,
)
from resnet_se.config.validate import check_config
from resnet_se.runs.record import (
    SCHEMA,
    check_finished,
    earlier_version,
    read_result,
    write_result,
)
from resnet_se.runs.run_hash import BY_CONTENT, Facts, config_hash, setting
from resnet_se.utils import distributed
from resnet_se.utils.console import (
    console,
    print_closing_line,
    print_closing_table,
    print_fallback,
)
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file, exclusive
from resnet_se.utils.system import environment

if TYPE_CHECKING:
    from resnet_se.data.datamodule import ImageDataModule

# What went wrong: in the only process or rank 0; in another rank.
ERROR, OTHER_RANKS = "error.txt", "error.other_ranks.txt"
RANKS_LOCK = ".lock-ranks"  # of rank 0, which may outlive the one that launched it

# Where and how one machine ran it, no part of a record.
PLACES = ("runs_dir=", "data.source.root=", "launcher", "hparams_search=", PRUNER)


def train(cfg: DictConfig) -> Outcome:
    """Runs one configuration to its `result.json`, or finds it done.

    Raises:
        UserError: a mistake in the configuration or the data; recorded where a run
            directory could be named.
        Busy: another process is at it.
    """
    # A misspelt key is to be answered before torch has been imported.
    from resnet_se.config.build import build_data, quiet, settle_precision
    from resnet_se.training.loop import train_and_test

    quiet()  # a launcher's worker comes here first
    check_config(cfg)
    data = build_data(cfg)
    key = data.locate()
    if data.fell_back:
        cfg.data.source = cfg.data.fallback
        print_fallback(data.fell_back)
    if "root" in cfg.data.source:  # `evaluate` may be called from elsewhere
        cfg.data.source.root = str(Path(cfg.data.source.root).expanduser().resolve())
    world_size = distributed.processes(cfg.trainer)
    cfg.trainer.precision = settle_precision(cfg, data)
    facts = Facts(key, cfg.trainer.precision, world_size)
    kept = setting(resolved(cfg), facts)
    digest = config_hash(kept)
    run_dir = Path(cfg.runs_dir) / experiment_name() / f"seed{cfg.seed}-{digest}"
    distributed.check_same_run(run_dir.name)
    if cfg.force:
        run_dir = _beside(run_dir)
    cfg.run_dir = str(run_dir.resolve())
    result = _beginning(cfg, kept, digest)

    with _alone(run_dir):
        previous = read_result(run_dir)
        if previous is None:
            _refuse_beside_earlier(run_dir, cfg.seed, result["overrides"])
        _check_directory(run_dir, digest, cfg, facts)
        if previous and previous["status"] == "finished":
            took = previous["data"].get("batch_size", data.batch_size)
            if data.exact_batch_size and took != data.batch_size:
                raise UserError(
                    f"data.batch_size: {data.batch_size} do not fit these data; "
                    f"{run_dir} took {took}, the preset's giving way"
                )
            _say_skipped(previous, result, run_dir)
            return Outcome("skipped", previous)
        resumed = (run_dir / "checkpoints/last.ckpt").is_file()
        with ledger(run_dir, result):
            if distributed.is_leader():
                with atomic_file(run_dir / "config.yaml") as file:
                    file.write(yaml.safe_dump(resolved(cfg), sort_keys=False).encode())
            if world_size > 1 and not distributed.in_group():
                _train_in_ranks(cfg, data, run_dir, result)
            else:
                train_and_test(cfg, data, run_dir, result)
    if result["status"] == "pruned":
        console.print(f"pruned: {run_dir}; the same command without the search goes on")
        return Outcome("pruned", result)
    if not distributed.launched_by_us():
        show = print_closing_line if _in_sweep() else print_closing_table
        show(result, run_dir)
    return Outcome("resumed" if resumed else "done", result)


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _beside(run_dir: Path) -> Path:
    """The first of `run_dir`, `…+1`, `…+2` that does not hold a finished run."""
    for n in count():
        path = run_dir.with_name(f"{run_dir.name}+{n}") if n else run_dir
        if (read_result(path) or {}).get("status") != "finished":
            return path
    raise AssertionError


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
            if (group in cfg or group == "debug") and choice is not None
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
    if not distributed.is_leader():
        with nullcontext():
            yield
    elif distributed.launched_by_us():
        with exclusive(run_dir, RANKS_LOCK):
            yield
    else:
        with exclusive(run_dir):
            if (run_dir / RANKS_LOCK).exists():  # ranks have been at it
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


def _check_directory(run_dir: Path, digest: str, cfg: DictConfig, facts: Facts) -> None:
    """Refuses to mix two configurations in one directory."""
    if not (run_dir / "config.yaml").is_file():
        return
    # What it started from may have moved since.
    plain = saved_config(run_dir) | {key: cfg.get(key) for key in BY_CONTENT}
    try:
        theirs = config_hash(setting(plain, facts))
    except (LookupError, TypeError, ValueError, AttributeError):
        theirs = "of no configuration"  # somebody has edited it
    if theirs != digest:
        raise UserError(
            f"{run_dir}: holds a run of another configuration (its config.yaml has the "
            f"hash {theirs}, the name says {digest}); move it away to start afresh"
        )


def _say_skipped(
    previous: dict[str, Any], result: dict[str, Any], run_dir: Path
) -> None:
    check_finished(previous, run_dir / "result.json")
    console.print(f"skipped: {run_dir} is finished")
    then, now = previous.get("git"), result["git"]
    if then and now and then["commit"] != now["commit"]:
        console.print(
            f"it was trained at commit {then['commit'][:8]}, this is "
            f"{now['commit'][:8]}"
        )
    if not _in_sweep():
        print_closing_table(previous, run_dir)


class Terminated(KeyboardInterrupt):
    """SIGTERM, before training began or after it."""


def _terminate(*_: Any) -> None:
    raise Terminated


def _interrupt_once() -> Callable[..., None]:
    """Ctrl-C's handler: a second one would cut off what the first one sets off."""
    due = [KeyboardInterrupt]

    def interrupt(*_: Any) -> None:
        if due:
            raise due.pop()

    return interrupt


@contextmanager
def ledger(run_dir: Path, result: dict[str, Any]) -> Iterator[None]:
    """Keeps the record of a run true whatever happens in the body.

    It is `running` from here on, and in the end finished, pruned, interrupted (Ctrl-C,
    SIGTERM or a killed rank) or failed, with the error and its traceback beside it.
    """
    error_file = run_dir / (ERROR if distributed.is_leader() else OTHER_RANKS)
    with suppress(ValueError):  # a launcher's thread takes no signals
        signal.signal(signal.SIGTERM, _terminate)
        signal.signal(signal.SIGINT, _interrupt_once())
    stopped = False
    try:
        _record(run_dir, result)
        error_file.unlink(missing_ok=True)
        yield
        if result["status"] == "running":  # else a search has pruned it
            result["status"] = "finished"
        _record(run_dir, result)
    except BaseException as error:
        # Lightning turns Ctrl-C into SystemExit, and ignores further ones.
        stopped = isinstance(
            error, KeyboardInterrupt | SystemExit | distributed.Stopped
        )
        result["status"] = "interrupted" if stopped else "failed"
        result["error"] = explain(error)
        if stopped and not isinstance(error, distributed.Stopped):
            result["error"] = "interrupted from outside"
        with suppress(OSError):  # a full disk must not hide what happened
            _record(run_dir, result)
            if not stopped and not error_file.exists():  # else a rank's: it says more
                error_file.write_text(traceback.format_exc())
        if stopped:
            raise KeyboardInterrupt from None
        raise
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # Stopped, the command ends; Lightning ignores further ones as well.
            further = signal.SIG_IGN if stopped else signal.default_int_handler
            signal.signal(signal.SIGINT, further)
        if "wandb" in sys.modules:
            from resnet_se.training.loggers import finish

            finish(result["status"])


def _record(run_dir: Path, result: dict[str, Any]) -> None:
    if distributed.is_leader():
        write_result(run_dir, result)


def _train_in_ranks(
    cfg: DictConfig, data: ImageDataModule, run_dir: Path, result: dict[str, Any]
) -> None:
    """`_train_and_test` in one process a device; fills `result` in with its record."""
    from resnet_se.training.loggers import sweep_group

    data.setup()  # decoded once, read from the cache by all
    (run_dir / OTHER_RANKS).unlink(missing_ok=True)
    # They are no jobs of a multirun any more; wandb is to group them all the same.
    sweep = Path(HydraConfig.get().runtime.output_dir).parent
    if _in_sweep():
        os.environ.setdefault("WANDB_RUN_GROUP", sweep_group(sweep))
    overrides = [
        o for o in HydraConfig.get().overrides.task if "trainer.precision=" not in o
    ]
    overrides.append(f"trainer.precision={cfg.trainer.precision}")  # all have the same
    try:
        local, run = (
            distributed.local_processes(cfg.trainer),
            run_dir.name.partition("+")[0],
        )
        distributed.launch("resnet_se.train", overrides, local, run)
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


# --- command line ------------------------------------------------


def main() -> None:
    """Console entry: `resnet-se train …`."""
    import resnet_se.commands.search  # noqa: F401  makes itself known to Hydra

    try:
        distributed.die_with_parent()
        distributed.share_cores()
        console.quiet = not distributed.is_leader()
    except UserError as error:  # the environment says what cannot be
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    run(recorded(train), "train")
