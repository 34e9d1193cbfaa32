"""Checkpoints of a run: `last.ckpt` and `best.ckpt`, and how they reach the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from resnet_se.runs import checkpoint as checkpoint_files
from resnet_se.training.metrics import Mode, direction
from resnet_se.training.param_groups import averaged
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.validation import Count, Natural, Text, check_value, validated


class CheckpointFiles(CheckpointIO):
    """Lightning's reads and writes, by `runs.checkpoint`: whole, synced, verified.

    Args:
        run: the run's name, kept in every checkpoint to tell it from another run's.
    """

    def __init__(self, run: str):
        self.run = run

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        checkpoint_files.write(Path(path), checkpoint | {"run": self.run})

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return checkpoint_files.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def save(trainer: L.Trainer, path: Path) -> None:
    """Write a checkpoint, of the weights that are tested."""
    with averaged(trainer.optimizers):
        # Said, since Lightning prints a line in every epoch where it is not.
        trainer.save_checkpoint(path, weights_only=False)


class Checkpoints(Checkpoint):
    """Write `last.ckpt` after every epoch, `best.ckpt` after the best by a metric.

    Lightning's `ModelCheckpoint` writes its last one only when it writes its best, and
    forgets the best score where the directory has moved; this one keeps the score in
    the checkpoints.

    Args:
        dirpath: the folder of both.
        monitor: the metric, one of `metrics.MONITORED`.
        mode: the direction in which it improves, which the metric knows.
        every_n_steps: write `last.ckpt` after so many optimizer steps as well.

    Raises:
        UserError: `every_n_steps` is below 1; the metric is none of a training, or the
            mode not its own.
    """

    @validated
    def __init__(
        self,
        dirpath: Text,
        monitor: str = "val/loss",
        every_n_steps: Count | None = None,
        mode: Mode | None = None,
    ):
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.mode = direction(monitor, mode, "callbacks.checkpoint")
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.validated_at = -1  # steps
        self.begins = False  # from another run's checkpoint

    def setup(self, *_: Any, **__: Any) -> None:
        self.dirpath.mkdir(parents=True, exist_ok=True)  # fails before training

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        # The best that another run had is none of this one's files.
        self.begins = internals.is_of_another_run(trainer, checkpoint)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_value("Checkpoints.best_score", state["best_score"], float | None)
        check_value("Checkpoints.best_epoch", state["best_epoch"], Natural | None)
        if not self.begins:
            self.best_score = state["best_score"]
            self.best_epoch = state["best_epoch"]

    def is_best(self, checkpoint: dict[str, Any]) -> bool:
        """Return true for the best checkpoint, of this start or an earlier one.

        An earlier start may have been killed between its best and its last checkpoint,
        and rounding have led this one to another score.
        """
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        own = state.get("best_epoch") == checkpoint["epoch"]
        # Not worse than this start's best.
        return own and not self._improves(self.best_score, state["best_score"])

    def _improves(self, score: float | None, other: float | None) -> bool:
        if score is None or other is None:
            return score is not None
        return score < other if self.mode == "min" else score > other

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        last = index + 1 == trainer.num_training_batches  # the epoch's end writes it
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        stepped = (index + 1) % trainer.accumulate_grad_batches == 0
        if due and stepped and not last:
            save(trainer, self.dirpath / checkpoint_files.LAST)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        of_these = self.validated_at == trainer.global_step
        if of_these or not self.monitor.startswith("val/"):
            self._keep_if_best(trainer)
        save(trainer, self.dirpath / checkpoint_files.LAST)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note of which weights the figures are; in mid-epoch they may be the best."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.validated_at = trainer.global_step
        done = internals.batches_done(trainer)
        stepped = done % trainer.accumulate_grad_batches == 0
        within = 0 < done < trainer.num_training_batches
        if within and stepped and self.monitor.startswith("val/"):
            self._keep_if_best(trainer)

    def _keep_if_best(self, trainer: L.Trainer) -> None:
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and self._improves(float(score), self.best_score):
            self.best_score, self.best_epoch = float(score), trainer.current_epoch
            save(trainer, self.dirpath / checkpoint_files.BEST)
