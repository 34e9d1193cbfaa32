"""Train one configuration, test its best checkpoint once, write the run directory.

    resnet-se train experiment=NAME group=choice key=value
    resnet-se train -m 'experiment=glob(e*)' seed=0,1,2

Training is idempotent: the same command again skips a finished run, resumes a broken
one from its `last.ckpt`, and starts otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig

from resnet_se.commands.app import filter_warnings, run_command
from resnet_se.commands.sweep.multirun import JobResult, recorded
from resnet_se.config.command_line import quoted
from resnet_se.config.messages import explain
from resnet_se.config.schema import HASH_RULES, UNRECORDED
from resnet_se.config.validate import validate
from resnet_se.runs.directory import (
    OTHER_RANKS,
    first_error,
    next_free_dir,
    run_lock,
    tracked_status,
)
from resnet_se.runs.record import Outcome, check_finished, read_result
from resnet_se.runs.run_hash import config_hash, hashed_config
from resnet_se.utils import distributed
from resnet_se.utils.console import (
    console,
    print_closing_line,
    print_closing_table,
    print_fallback,
)
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file
from resnet_se.utils.system import environment

if TYPE_CHECKING:
    from resnet_se.config.settle import Run
    from resnet_se.training.loop import Job


def train(
    cfg: DictConfig, on_named: Callable[[Path], None] = lambda _: None
) -> JobResult:
    """Run one configuration to its `result.json`, or find it done.

    Args:
        on_named: called with the run directory once it has a name.

    Raises:
        UserError: a mistake in the configuration or the data; recorded where a run
            directory could be named.
        Busy: another process is at it.
    """
    filter_warnings()  # a launcher's worker comes here first
    recipe = validate(cfg)
    from resnet_se.config.settle import settle  # torch: after what is misspelt

    run = settle(recipe)
    if run.data.fell_back:
        print_fallback(run.data.fell_back)
    distributed.check_same_run(run.directory.name)
    if run.recipe["force"]:
        run = replace(run, directory=next_free_dir(run.directory))
    on_named(run.directory)
    outcome = _initial_record(run)
    with run_lock(run.directory):
        previous = read_result(run.directory)
        _check_directory(run)
        if previous and previous["status"] == "finished":
            _report_skipped(previous, run, outcome)
            return JobResult("skipped", previous)
        resumed = (run.directory / "checkpoints/last.ckpt").is_file()
        with tracked_status(run.directory, outcome, explain, _finish_loggers):
            _train(run, outcome)
    if outcome.status == "pruned":
        console.print(
            f"pruned: {run.directory}; the same command without the search goes on"
        )
        return JobResult("pruned", outcome.as_dict())
    if not distributed.launched_by_us():
        show = print_closing_line if recipe.sweep else print_closing_table
        show(outcome.as_dict(), run.directory)
    return JobResult("resumed" if resumed else "done", outcome.as_dict())


def _initial_record(run: Run) -> Outcome:
    recipe = run.recipe
    overrides = [
        override
        for override in recipe.overrides
        if not override.lstrip("+~").startswith(UNRECORDED)
    ]
    return Outcome(
        experiment=recipe.experiment,
        seed=recipe["seed"],
        config_hash=run.digest,
        setting=run.hashed,
        choices=dict(recipe.choices),
        against=list(recipe.get("against") or ()),
        noise_family=recipe.get("noise_family"),
        overrides=overrides,
        tags=list(recipe["tags"]),
        **environment(),
    )


def _check_directory(run: Run) -> None:
    """Refuse to mix two configurations in one directory.

    Raises:
        UserError: the `config.yaml` in it has another hash than its name says.
    """
    from resnet_se.config.recipe import saved_config

    if not (run.directory / "config.yaml").is_file():
        return
    # The files it started from may have moved since.
    paths = {key: run.recipe.get(key) for key in HASH_RULES.by_content}
    saved = saved_config(run.directory) | paths
    try:
        digest = config_hash(hashed_config(saved, run.environment, HASH_RULES))
    except (LookupError, TypeError, ValueError, AttributeError):
        digest = "of no configuration"  # somebody has edited it
    if digest != run.digest:
        raise UserError(
            f"{run.directory}: holds a run of another configuration (its config.yaml "
            f"has the hash {digest}, the name says {run.digest}); move it away to "
            "start afresh"
        )


def _report_skipped(previous: dict[str, Any], run: Run, outcome: Outcome) -> None:
    """Say that a run is finished, and where it is not what would be trained now.

    Raises:
        UserError: it was trained with another batch size than was typed.
    """
    data = run.data
    used = previous["data"].get("batch_size", data.batch_size)
    if data.exact_batch_size and used != data.batch_size:
        raise UserError(
            f"data.batch_size: {data.batch_size} do not fit these data; "
            f"{run.directory} has {used}, to which the preset's was reduced"
        )
    check_finished(previous, run.directory / "result.json")
    console.print(f"skipped: {run.directory} is finished")
    from resnet_se.data.decode import decoder

    made, here = previous["data"].get("decoder"), decoder()
    if made not in (None, here):  # the hash holds the files, not the pixels
        console.print(f"its pixels are of {made}, those read now of {here}")
    then, now = previous.get("git"), outcome.git
    if then and now and then["commit"] != now["commit"]:
        console.print(
            f"it was trained at commit {then['commit'][:8]}, this is "
            f"{now['commit'][:8]}"
        )
    if run.recipe.sweep is None:
        print_closing_table(previous, run.directory)


def _train(run: Run, outcome: Outcome) -> None:
    if distributed.is_leader():
        with atomic_file(run.directory / "config.yaml") as file:
            values = dict(run.recipe.values)
            file.write(yaml.safe_dump(values, sort_keys=False).encode())
    if run.environment.world_size > 1 and not distributed.in_group():
        _train_in_ranks(run, outcome)
        return
    from resnet_se.config.build import build
    from resnet_se.inference.distillation import make_criterion
    from resnet_se.training.loop import fit

    run.data.setup()
    recipe = run.recipe
    criterion = make_criterion(
        recipe.get("distill"),
        run.data,
        recipe["distill_weight"],
        recipe["distill_temperature"],
        (recipe.get("loss") or {}).get("class_weights"),
    )
    job = build(run, criterion)
    fit(job, outcome)
    if outcome.test and distributed.is_leader():
        _publish(job, outcome, recipe["plots"])


def _publish(job: Job, outcome: Outcome, plots: bool) -> None:
    """Draw the pictures of a tested run, and send the test to its dashboards."""
    from resnet_se.analysis import run_figures
    from resnet_se.training import loggers
    from resnet_se.training.mixing import Mixing

    assert outcome.data is not None  # it was trained and tested
    assert outcome.train is not None
    module, data = job.module, job.data
    folder = job.directory / "plots"
    tested = {
        "images": data.test_part[0],
        "labels": module.predictions["labels"],
        "logits": module.predictions["logits"],
        "classes": outcome.data["classes"],
    }
    if plots:
        try:
            run_figures.save_run_plots(
                folder,
                f"{outcome.experiment} {job.name}",
                history=job.history.rows if job.history else [],
                best_epoch=outcome.best_epoch,
                soft_targets=module.mixing != Mixing(),
                augmented=run_figures.augmented(data, *run_figures.SHEET),
                val_labels=module.val_predictions.get("labels"),
                val_logits=module.val_predictions.get("logits"),
                **tested,
            )
        except OSError:
            raise
        except Exception as error:  # no reason to lose what was trained
            message = f"no pictures: {type(error).__name__}: {error}"
            console.print(message, style="yellow", markup=False, soft_wrap=True)
    best = job.directory / "checkpoints/best.ckpt"
    summary = outcome.identity
    summary["images_per_second"] = outcome.train["images_per_second"]
    loggers.log_test(
        job.trainer,
        folder,
        **tested,
        best=best if best.is_file() else None,
        summary=summary,
    )


def _train_in_ranks(run: Run, outcome: Outcome) -> None:
    """The same in one process a device; fills `outcome` in with their record."""
    from resnet_se.training.loggers import sweep_group

    run.data.setup()  # decoded once, read from the cache by all
    (run.directory / OTHER_RANKS).unlink(missing_ok=True)
    # They are no jobs of a multirun any more; wandb is to group them all the same.
    if run.recipe.sweep:
        os.environ.setdefault("WANDB_RUN_GROUP", sweep_group(run.recipe.sweep))
    overrides = [o for o in run.recipe.overrides if "trainer.precision=" not in o]
    # All have the same.
    overrides.append(f"trainer.precision={run.environment.precision}")
    # A time in it (`${now:}`) would be another in each of them.
    overrides.append(f"runs_dir={quoted(str(run.recipe['runs_dir']))}")
    try:
        processes = distributed.local_processes(run.recipe.trainer)
        name = run.directory.name.partition("+")[0]
        distributed.launch("resnet_se.train", overrides, processes, name)
    except UserError as error:
        reason = first_error(run.directory)
        if reason is None:
            raise
        line, file = reason
        raise UserError(f"{error}: {line} (see {file})") from None
    finally:
        outcome.update(read_result(run.directory) or {})


def _finish_loggers(status: str) -> None:
    if "wandb" in sys.modules:
        from resnet_se.training.loggers import finish

        finish(status)


def main() -> None:
    """Console entry: `resnet-se train …`."""
    import resnet_se.commands.sweep.lost_jobs
    import resnet_se.commands.sweep.search  # noqa: F401  make themselves known to Hydra

    try:
        distributed.die_with_parent()
        distributed.share_cores()
        console.quiet = not distributed.is_leader()
    except UserError as error:  # the environment says what cannot be
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    run_command(recorded(train), "train")
