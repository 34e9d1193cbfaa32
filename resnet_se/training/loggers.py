"""Dashboards of a run: wandb and TensorBoard, with pictures beside the metrics.

Lightning's loggers carry the metrics; this module starts and ends one wandb run a job,
whether or not the network answers, and adds pictures and sample predictions.  wandb
reads its key itself: no key passes through here.

wandb: https://docs.wandb.ai/ref/python/sdk/functions/init
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from resnet_se.training.wandb_file import read_rows
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file

if TYPE_CHECKING:  # importing wandb takes a second, which few runs need
    import wandb

# Seconds, unless WANDB_INIT_TIMEOUT or WANDB_FINISH_TIMEOUT is set.  wandb's own limits
# are a minute and a half, and none at the end.
TIMEOUTS = {"init_timeout": 20.0, "finish_timeout": 120.0}
FLUSH = 1.0  # seconds until a row is in the file; wandb's 15 s are lost to `kill -9`
# By status; those of wandb's own hooks.
EXIT_CODES = {"finished": 0, "failed": 1, "pruned": 0, "interrupted": 255}
SAMPLES = 48  # images in the table of sample predictions
MAX_CLASSES = 100  # whose confusion matrix fits the 10,000 rows of a wandb table

# Why runs of this process stay on this machine: tried, and reported, once a sweep.
_offline: list[str] = []


# --- wandb -------------------------------------------------------


class WandbRun(WandbLogger):
    """Lightning's logger on a wandb run of this job's own.

    A resumed job continues its run, whose id is kept in `<run_dir>/wandb/id`.  Without
    an account or a network the run is kept on this machine for `wandb sync`.  The
    `WANDB_…` variables override the defaults here, and an agent of `wandb sweep` sets
    the id, the project and the group.

    Args:
        run_dir: `…/<experiment>/seed<k>-<hash>`, which names the run.
        project: of the dashboard.
        tags: of the run.
        group: by default the sweep's in a multirun, which is the same when the command
            is repeated, else the experiment's name.
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
        # Steps and names, by earlier starts.
        self.logged: set[tuple[int | None, str]] = set()
        self.next_row: int | None = None  # after theirs; wandb would begin at 0
        run = None
        if internals.rank() == 0:
            self._read_earlier(Path(run_dir))
            run = _start(Path(run_dir), project, tags, group, offline)
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        super().__init__(project=project, save_dir=str(run_dir), experiment=run)

    def _read_earlier(self, run_dir: Path) -> None:
        for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
            for row in read_rows(file):
                self.next_row = max(self.next_row or 0, row["_step"] + 1)
                step = row.get("trainer/global_step")
                self.logged |= {(step, name) for name in row}

    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Log a row; what an earlier start has logged of this step stays as it is."""
        new = {k: v for k, v in metrics.items() if (step, k) not in self.logged}
        if not new.keys() - {"epoch"}:
            return
        row = {**new, "trainer/global_step": step} if step is not None else new
        first, self.next_row = self.next_row, None
        if first is None:
            self.experiment.log(row)
        else:
            self.experiment.log(row, step=first, commit=True)


def _start(
    run_dir: Path, project: str, tags: Sequence[str], group: str | None, offline: bool
) -> wandb.Run:
    import wandb

    options: dict[str, Any] = {"tags": list(tags) or None, "resume": "allow"}
    if "WANDB_NAME" not in os.environ:
        options["name"] = f"{run_dir.parent.name} {run_dir.name.split('-')[0]}"
    if "WANDB_DIR" not in os.environ:
        options["dir"] = str(run_dir)
    if "WANDB_SWEEP_ID" not in os.environ:
        options |= {"project": project, "group": group or run_dir.parent.name}
        if "WANDB_RUN_ID" not in os.environ:
            options["id"] = _run_id(run_dir)
    options["settings"] = {
        name: seconds
        for name, seconds in TIMEOUTS.items()
        if f"WANDB_{name.upper()}" not in os.environ
    } | {"x_transaction_log_flush_interval": FLUSH}
    if offline:
        return wandb.init(mode="offline", **options)
    if wandb.setup().settings.mode not in ("online", "run"):
        return wandb.init(**options)  # WANDB_MODE or `wandb offline` has decided
    if not _offline:
        try:
            # Unverified: a check under way keeps teardown waiting for ever, at times.
            if wandb.login(prompt=False, verify=False):
                return wandb.init(**options)
            reason = "no account on this machine; `wandb login` adds one"
        except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
            server = wandb.setup().settings.base_url
            reason = f"{server}: {str(error).splitlines()[0].rstrip('.')}"
            wandb.teardown()  # the failed attempt still holds the run's id
        _offline.append(reason)
        print(
            f"wandb: {reason}. Runs stay in their directories; "
            "`wandb sync DIR/wandb/offline-run-*` uploads one later.",
            file=sys.stderr,
        )
    return wandb.init(mode="offline", **options)


def _run_id(run_dir: Path) -> str:
    """Return the run's id, from its directory; a new directory gets a new one."""
    path = run_dir / "wandb/id"
    if not path.is_file():
        with atomic_file(path) as file:
            file.write(f"{run_dir.name}-{uuid.uuid4().hex[:8]}".encode())
    return path.read_text()


def sweep_group(folder: Path) -> str:
    """Return the name that the jobs of a sweep and of its repetition share.

    Args:
        folder: of the sweep, named by time, process and `${typed:}`; or of a search.
    """
    typed = folder.name.rpartition("-")[2]
    return f"sweep-{typed}" if folder.parent.name == "sweeps" else folder.name


def finish(status: str) -> None:
    """Close the job's wandb run, if there is one, with the job's status.

    Without this the jobs of a multirun merge into one run.

    Args:
        status: a key of `EXIT_CODES`.
    """
    if wandb := sys.modules.get("wandb"):
        try:
            wandb.finish(exit_code=EXIT_CODES[status])
        except Exception as error:  # wandb's process has died; the job need not
            print(f"wandb: the run could not be closed: {error}", file=sys.stderr)


# --- after a resume ----------------------------------------------


def catch_up(trainer: L.Trainer, rows: Sequence[Mapping[str, float]]) -> None:
    """Log the epochs of earlier starts to dashboards that may lack their last ones.

    wandb's has what its file holds; TensorBoard and CSV begin anew, in a file that
    outdates the earlier ones.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if not isinstance(logger, WandbRun | TensorBoardLogger | CSVLogger):
            continue
        for row in rows:
            metrics = {name: value for name, value in row.items() if "/" in name}
            step = int(row["step"]) - 1  # as Lightning counts an epoch's last
            logger.log_metrics({**metrics, "epoch": row["epoch"]}, step)
        logger.save()


# --- TensorBoard -------------------------------------------------


def tensorboard(run_dir: str | Path) -> TensorBoardLogger:
    """Return Lightning's logger, writing to `<run_dir>/tensorboard`.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        # Readers leave out what an earlier start wrote: `catch_up` writes it again.
        return TensorBoardLogger(run_dir, "", "tensorboard", purge_step=0)
    except ModuleNotFoundError:
        raise UserError(
            "logger=tensorboard: TensorBoard is not installed; "
            "uv sync --extra tensorboard, or pip install tensorboard"
        ) from None


# --- the test ----------------------------------------------------


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
    """Log the test of a finished run to its dashboards.

    wandb gets the summary, the pictures, its own confusion matrix, a table of sample
    predictions and, where asked, the checkpoint; TensorBoard gets the pictures.

    Args:
        plots: the folder of the run's pictures.
        images: the test set, uint8 (N, 3, H, W).
        labels: (N,);  logits: (N, K), in the same order.
        classes: K names.
        best: the checkpoint that was tested.
        summary: single values of the run, columns in wandb's table of runs.
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
                    artifact = wandb.Artifact(f"model-{run.id}", type="model")
                    artifact.add_file(str(best))
                    run.log_artifact(artifact, aliases=["best"])
            except wandb.Error as error:  # these two, unlike the rest, ask the server
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

    true = labels.tolist()
    probability, predicted = (t.tolist() for t in logits.softmax(dim=1).max(dim=1))
    table = wandb.Table(columns=["image", "true", "predicted", "probability"])
    n = len(labels)
    # Evenly spaced: some data sets are in the order of their classes.
    for i in torch.linspace(0, n - 1, min(SAMPLES, n)).long().tolist():
        image = wandb.Image(images[i].permute(1, 2, 0).numpy())  # (H, W, 3)
        table.add_data(image, classes[true[i]], classes[predicted[i]], probability[i])
    tables: dict[str, Any] = {"test/samples": table}
    if len(classes) <= MAX_CLASSES:
        tables["test/confusion"] = wandb.plot.confusion_matrix(
            y_true=true, preds=predicted, class_names=list(classes)
        )
    run.log(tables)
