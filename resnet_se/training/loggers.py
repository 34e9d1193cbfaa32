"""Watching a run: wandb, TensorBoard, and what they are shown beside the metrics.

Lightning's loggers carry the metrics; this module starts and ends one wandb run a job,
whatever the network does, and adds pictures and sample predictions.
wandb reads its key itself: no key passes through here.

wandb: https://docs.wandb.ai/ref/python/sdk/functions/init
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file

if TYPE_CHECKING:  # importing wandb takes a second, which few runs need
    import wandb

# Seconds; WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT set others.  wandb's own limits
# are a minute and a half, and none at the end.
LIMITS = {"init_timeout": 20.0, "finish_timeout": 120.0}
EXIT_CODES = {
    "finished": 0,
    "failed": 1,
    "pruned": 0,
    "interrupted": 255,
}  # as wandb's own hooks
SAMPLES = 48  # images in the table of sample predictions
MAX_CLASSES = 100  # whose confusion matrix fits the 10,000 rows of a wandb table

# Why runs of this process stay on this machine: found out, and said, once a sweep.
_offline: list[str] = []


# --- wandb -------------------------------------------------------


class WandbRun(WandbLogger):
    """Lightning's logger on a wandb run of this job's own.

    A resumed job goes on in its run: the id is kept in `<run_dir>/wandb/id`.  Without
    an account or a network the run is kept on this machine for `wandb sync`.  What the
    `WANDB_…` variables say beats the defaults here, and an agent of `wandb sweep`
    decides on id, project and group.

    Args:
        run_dir: `…/<experiment>/seed<k>-<hash>`, which names the run.
        project: of the dashboard.
        tags: of the run.
        group: None takes the sweep's in a multirun, which is the same when it is
            typed again, else the experiment's name.
        offline: keep the run on this machine.
        log_model: upload best.ckpt after the test.
    """

    def __init__(
        self,
        run_dir: str | Path,
        project: str,
        tags: Sequence[str] = (),
        group: str | None = None,
        offline: bool = False,
        log_model: bool = False,
    ):
        self.uploads_model = log_model  # Lightning would upload last.ckpt as well
        run = None
        if rank_zero_only.rank == 0:
            run = _start(Path(run_dir), project, tags, group, offline)
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        super().__init__(project=project, save_dir=str(run_dir), experiment=run)


def _start(
    run_dir: Path, project: str, tags: Sequence[str], group: str | None, offline: bool
) -> wandb.Run:
    import wandb

    ours: dict[str, Any] = {"tags": list(tags) or None, "resume": "allow"}
    if "WANDB_NAME" not in os.environ:
        ours["name"] = f"{run_dir.parent.name} {run_dir.name.split('-')[0]}"
    if "WANDB_DIR" not in os.environ:
        ours["dir"] = str(run_dir)
    if "WANDB_SWEEP_ID" not in os.environ:
        ours |= {"project": project, "group": group or _group(run_dir)}
        if "WANDB_RUN_ID" not in os.environ:
            ours["id"] = _run_id(run_dir)
    ours["settings"] = {
        name: seconds
        for name, seconds in LIMITS.items()
        if f"WANDB_{name.upper()}" not in os.environ
    }
    init = partial(wandb.init, **ours)
    if offline:
        return init(mode="offline")
    if wandb.setup().settings.mode not in ("online", "run"):
        return init()  # WANDB_MODE or `wandb offline` has decided
    if not _offline:
        try:
            # Unverified: a check under way keeps teardown waiting for ever, at times.
            if wandb.login(prompt=False, verify=False):
                return init()
            _stay_offline("no account on this machine; `wandb login` adds one")
        except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
            server = wandb.setup().settings.base_url
            wandb.teardown()  # what is left of the attempt holds the run's id
            _stay_offline(f"{server}: {str(error).splitlines()[0].rstrip('.')}")
    return init(mode="offline")


def _stay_offline(reason: str) -> None:
    _offline.append(reason)
    print(
        f"wandb: {reason}. Runs stay in their directories; "
        "`wandb sync DIR/wandb/offline-run-*` uploads one later.",
        file=sys.stderr,
    )


def _run_id(run_dir: Path) -> str:
    """The id of the run in this directory; a directory made anew gets another one."""
    path = run_dir / "wandb/id"
    if not path.is_file():
        with atomic_file(path) as file:
            file.write(f"{run_dir.name}-{uuid.uuid4().hex[:8]}".encode())
    return path.read_text()


def _group(run_dir: Path) -> str:
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return sweep_group(Path(HydraConfig.get().runtime.output_dir).parent)
    return run_dir.parent.name


def sweep_group(folder: Path) -> str:
    """What the jobs of a sweep, and those of its repetition, have in common.

    Args:
        folder: of the sweep, named by time, process and `${typed:}`; or of a search.
    """
    typed = folder.name.rpartition("-")[2]
    return f"sweep-{typed}" if folder.parent.name == "sweeps" else folder.name


def finish(status: str) -> None:
    """Closes the job's wandb run, if there is one, as what the job has become.

    Without this the jobs of a multirun merge into one run.

    Args:
        status: of `result.json`.
    """
    if wandb := sys.modules.get("wandb"):
        try:
            wandb.finish(exit_code=EXIT_CODES[status])
        except Exception as error:  # its process has died: no reason to lose ours
            print(f"wandb: the run could not be closed: {error}", file=sys.stderr)


# --- TensorBoard -------------------------------------------------


def tensorboard(run_dir: str | Path) -> TensorBoardLogger:
    """Lightning's logger, writing to `<run_dir>/tensorboard`.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        return TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard")
    except ModuleNotFoundError:
        raise UserError(
            "logger=tensorboard: TensorBoard is not installed; "
            "uv sync --extra tensorboard, or pip install tensorboard"
        ) from None


# --- what they are shown -----------------------------------------


def log_test(
    trainer: L.Trainer,
    plots: Path,
    *,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    classes: Sequence[str],
    best: Path | None,
    summary: dict[str, Any],
) -> None:
    """Shows the test of a finished run on its dashboards.

    wandb gets the summary, the pictures, its own confusion matrix, a table of sample
    predictions and, where asked, the checkpoint; TensorBoard gets the pictures.

    Args:
        plots: the folder of the run's pictures.
        images: the test set, uint8 (N, 3, H, W).
        labels: (N,);  logits: (N, K), in the same order.
        classes: K names.
        best: the checkpoint that was tested.
        summary: what a run has one of; a column in wandb's table of runs.
    """
    if not trainer.is_global_zero:
        return
    pictures = {f"plots/{path.stem}": path for path in sorted(plots.glob("*.png"))}
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            import wandb

            run = logger.experiment
            run.summary.update(summary)
            run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})
            try:
                _log_tables(run, images, labels, logits, classes)
                if logger.uploads_model and best:
                    _upload(run, best)
            except (
                wandb.Error
            ) as error:  # tables and models, unlike the rest, ask first
                print(f"wandb: tables or model not logged: {error}", file=sys.stderr)
        elif isinstance(logger, TensorBoardLogger):
            for name, path in pictures.items():
                pixels = np.asarray(Image.open(path).convert("RGB"))  # (H, W, 3)
                logger.experiment.add_image(
                    name, pixels, trainer.global_step, dataformats="HWC"
                )
            logger.finalize("success")


def _log_tables(
    run: wandb.Run,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    classes: Sequence[str],
) -> None:
    import wandb

    probability, predicted = logits.softmax(dim=1).max(dim=1)
    table = wandb.Table(columns=["image", "true", "predicted", "probability"])
    n = len(labels)  # ordered by class in some data: from all over it
    for i in torch.linspace(0, n - 1, min(SAMPLES, n)).long().tolist():
        table.add_data(
            wandb.Image(images[i].permute(1, 2, 0).numpy()),  # (H, W, 3)
            classes[labels[i]],
            classes[predicted[i]],
            probability[i].item(),
        )
    shown = {"test/samples": table}
    if len(classes) <= MAX_CLASSES:
        shown["test/confusion"] = wandb.plot.confusion_matrix(
            y_true=labels.tolist(), preds=predicted.tolist(), class_names=list(classes)
        )
    run.log(shown)


def _upload(run: wandb.Run, checkpoint: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    artifact.add_file(str(checkpoint))
    run.log_artifact(artifact, aliases=["best"])
