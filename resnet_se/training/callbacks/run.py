"""Callbacks: the run's own record, a frozen stem, checkpoints, SIGTERM."""

from __future__ import annotations

import csv
import io
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_se.models.layers import WhiteningStem
from resnet_se.runs import checkpoint as checkpoint_files
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file
from resnet_se.utils.validation import (
    Count,
    Natural,
    NonNegative,
    Text,
    check_value,
    validated,
)


class History(L.Callback):
    """One row an epoch in `metrics.csv`, and the time that training took.

    The rows and times are part of every checkpoint, so that a resumed run's file reads
    as if it had never stopped, whichever logger is used.  Seconds are wall-clock; those
    without validation give the throughput.

    Args:
        path: the CSV file; columns `epoch, step, seconds` and the logged metrics.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self.train_seconds = 0.0
        self.images = 0
        self.epochs = 0  # begun by this start
        self._start: float | None = None  # of the epoch under way

    def state_dict(self) -> dict[str, Any]:
        # Written in mid-epoch (`SaveOnSigterm`), the epoch's time so far counts.
        so_far = 0.0 if self._start is None else time.perf_counter() - self._start
        return {
            "rows": self.rows,
            "seconds": self.seconds + so_far,
            "train_seconds": self.train_seconds + so_far,
            "images": self.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_value("History.rows", rows := state["rows"], Sequence[dict])
        for value in (value for row in rows for value in row.values()):
            check_value("History.rows", value, float | None)
        for name in ("seconds", "train_seconds", "images"):
            check_value(f"History.{name}", state[name], NonNegative)
            setattr(self, name, state[name])
        self.rows = rows

    @property
    def images_per_second(self) -> float | None:
        """Training throughput, validation and start-up left out."""
        return self.images / self.train_seconds if self.train_seconds else None

    def on_train_start(self, *_: Any) -> None:
        self._begin()  # a run that resumes in mid-epoch does not start it again

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs += 1
        self._begin()

    def _begin(self) -> None:
        self._start = time.perf_counter()
        self._validating = 0.0
        self._validated = False

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validating += time.perf_counter() - self._validation_start
            self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        took, self._start = time.perf_counter() - self._start, None
        self.seconds += took
        self.train_seconds += took - self._validating
        batches = trainer.num_training_batches * trainer.world_size
        self.images += batches * trainer.datamodule.batch_size
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith("val/")
        }
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(self.seconds, 3),
        }
        self.rows.append({**row, **metrics})
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_file(self.path) as file:
            file.write(text.getvalue().encode())


class FreezeStem(L.Callback):
    """Stops training a whitening stem's biases after some epochs (Jordan 2024, §3).

    They have found their place by then, and the backward pass ends before the stem.

    Args:
        epochs: that the biases are trained for.

    Raises:
        UserError: the network has no whitening stem.
    """

    @validated
    def __init__(self, epochs: Count):
        self.epochs = epochs

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        stems = (m for m in module.modules() if isinstance(m, WhiteningStem))
        self.biases = [b for s in stems if (b := s.conv.bias) is not None]
        if not self.biases:
            raise UserError(
                "callbacks: FreezeStem freezes a whitening stem, which this network "
                "does not have; add model.whiten=true, or set that callback to null"
            )

    # Not `on_train_epoch_start`, which a resume in mid-epoch does not have.
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # DDP waits for gradients of all that had one when it was made.
        if trainer.current_epoch >= self.epochs and trainer.world_size == 1:
            for bias in self.biases:
                bias.requires_grad_(False)

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch >= self.epochs:
            for bias in self.biases:
                bias.grad = None

    def on_train_end(self, *_: Any) -> None:
        for bias in self.biases:
            bias.requires_grad_(True)


class CheckpointFiles(CheckpointIO):
    """Lightning's way to the disk, by `checkpoint`: whole, synced, verified.

    Args:
        run: stands in every checkpoint, so that another run's is not taken for ours.
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


class Checkpoints(Checkpoint):
    """`last.ckpt` after every epoch, `best.ckpt` by a metric, each by its own rule.

    Lightning's `ModelCheckpoint` writes its last one only when it writes its best, and
    forgets the best score where the directory has moved; this one keeps the score in
    the checkpoints.

    Args:
        dirpath: the folder of both.
        monitor: the metric, one of `classifier.METRICS`; smaller is better.
        every_n_steps: `last.ckpt` is written after so many optimizer steps as well.

    Raises:
        UserError: `every_n_steps` is below 1.
    """

    @validated
    def __init__(
        self,
        dirpath: Text,
        monitor: str = "val/loss",
        every_n_steps: Count | None = None,
    ):
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self.best_epoch: int | None = None

    def setup(self, *_: Any, **__: Any) -> None:
        self.dirpath.mkdir(parents=True, exist_ok=True)  # found out before training

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_value("Checkpoints.best_score", state["best_score"], float | None)
        check_value("Checkpoints.best_epoch", state["best_epoch"], Natural | None)
        self.best_score = state["best_score"]
        self.best_epoch = state["best_epoch"]

    def is_best(self, checkpoint: dict[str, Any]) -> bool:
        """Whether a file is the best one: this start's, or an earlier start's, killed
        between its best and its last, from which another rounding led away."""
        said = checkpoint.get("callbacks", {}).get(self.state_key, {})
        own = said.get("best_epoch") == checkpoint["epoch"]
        return own and said["best_score"] <= self.best_score

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        whole = index + 1 == trainer.num_training_batches  # the epoch's end writes it
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        stepped = (index + 1) % trainer.accumulate_grad_batches == 0
        if due and stepped and not whole:
            trainer.save_checkpoint(self.dirpath / checkpoint_files.LAST)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and (
            self.best_score is None or float(score) < self.best_score
        ):
            self.best_score, self.best_epoch = float(score), trainer.current_epoch
            trainer.save_checkpoint(self.dirpath / checkpoint_files.BEST)
        trainer.save_checkpoint(self.dirpath / checkpoint_files.LAST)


class SaveOnSigterm(L.Callback):
    """Saves a checkpoint in mid-epoch when SIGTERM stops training.

    SLURM and spot machines send it some seconds before they kill.  Lightning stops
    after the step under way; in a validation, or between epochs, the last epoch's
    checkpoint stays.

    Args:
        path: of the checkpoint, which the next start resumes from.
    """

    def __init__(self, path: str):
        self.path = path

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        # Until here, and after training, `train`'s own handler ends the run.  Lightning
        # leaves it alone and would talk to the other ranks from wherever the signal
        # finds it, between two halves of another conversation too.  A note will do:
        # rank 0's is read out to all before each step.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: internals.note_sigterm(trainer))

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, SIGTERMException) and trainer.training:
            done = internals.batches_done(trainer)
            # Gradients that are being accumulated are in no checkpoint.
            stepped = done % trainer.accumulate_grad_batches == 0
            if stepped and 0 < done < trainer.num_training_batches:
                trainer.save_checkpoint(self.path)
