"""Callbacks: the run's own record, averaged weights, SIGTERM, plain progress."""

from __future__ import annotations

import csv
import io
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_se.errors import UserError
from resnet_se.results import atomic_file


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
        self.__dict__.update(state)

    @property
    def images_per_second(self) -> float | None:
        """Training throughput, validation and start-up left out."""
        return self.images / self.train_seconds if self.train_seconds else None

    def on_train_start(self, *_: Any) -> None:
        self._begin()  # a run that resumes in mid-epoch does not start it again

    def on_train_epoch_start(self, *_: Any) -> None:
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


class WeightAverage(L.Callback):
    """Validates, checkpoints and ends with a moving average of the weights.

    After every optimizer step average ← decay × average + (1 − decay) × weights, of
    parameters and BatchNorm's statistics alike (Polyak & Juditsky 1992).  The
    `state_dict` of a checkpoint is the average; `trained_state` are the weights that
    go on being trained.

    Lightning's `EMAWeightAveraging` would do if it did not wait for the GPU in every
    step, keep the average of a GPU's weights on the CPU, and swap the final average in
    for the best checkpoint when that is validated after training.

    Args:
        decay: in (0, 1); about 1 / (1 − decay) steps are averaged.

    Raises:
        UserError: `decay` is not in (0, 1).
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise UserError(f"decay: expected 0 < decay < 1, got {decay}")
        self.decay = decay
        self.loaded: dict[str, torch.Tensor] | None = None
        self.average: list[torch.Tensor] = []  # empty unless the network is trained

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Not earlier: now the weights lie on the device and are what they will be.
        state = module.state_dict()
        self.weights = _floating(state)
        self.average = [
            t.to(module.device, copy=True) for t in _floating(self.loaded or state)
        ]
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > self.step:  # else gradients are being accumulated
            self.step = trainer.global_step
            torch._foreach_lerp_(self.average, self.weights, 1 - self.decay)

    def _swap(self) -> None:
        # In place: a compiled network knows its weights by their address.
        kept = [t.clone() for t in self.weights]
        torch._foreach_copy_(self.weights, self.average)
        torch._foreach_copy_(self.average, kept)

    def on_validation_epoch_start(self, *_: Any) -> None:
        if self.average:
            self._swap()

    def on_validation_epoch_end(self, *_: Any) -> None:
        if self.average:
            self._swap()

    def on_train_end(self, *_: Any) -> None:
        self._swap()
        self.average = []

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.average:
            trained = checkpoint["state_dict"]
            names = [k for k, v in trained.items() if v.is_floating_point()]
            averaged = dict(zip(names, self.average, strict=True))
            checkpoint["trained_state"] = trained
            checkpoint["state_dict"] = trained | averaged

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Without them (`ckpt_path` of a run that did not average) the average starts.
        if "trained_state" in checkpoint:
            self.loaded = checkpoint["state_dict"]
            module.load_state_dict(checkpoint["trained_state"])


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
        if trainer.world_size > 1:
            # Lightning's handler talks to the other ranks from wherever the signal
            # finds it, between two halves of another conversation too.  A note will do:
            # rank 0's is read out to all before each step.
            connector = trainer._signal_connector
            signal.signal(
                signal.SIGTERM, lambda *_: setattr(connector, "received_sigterm", True)
            )

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, SIGTERMException) and trainer.training:
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            if 0 < done < trainer.num_training_batches:
                trainer.save_checkpoint(self.path)


def _floating(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [t for t in state.values() if t.is_floating_point()]


def progress() -> ProgressBar:
    """A live bar with metrics on a terminal, plain lines elsewhere."""
    return RichProgressBar() if sys.stdout.isatty() else PlainProgress()


class PlainProgress(ProgressBar):
    """One line an epoch, and one every half minute within a long epoch."""

    EVERY_SECONDS = 30.0

    def on_train_start(self, *_: Any) -> None:
        self._start = self._last = time.perf_counter()  # should it resume in mid-epoch

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._start = self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        now = time.perf_counter()
        if now - self._last > self.EVERY_SECONDS:
            self._last = now
            self._say(trainer, f"step {index + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        metrics = "  ".join(
            f"{name} {float(value):.4g}"
            for name, value in sorted(trainer.callback_metrics.items())
        )
        self._say(trainer, f"{metrics}  {time.perf_counter() - self._start:.1f} s")

    def _say(self, trainer: L.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(f"{epoch}  {text}", flush=True)

    def disable(self) -> None:
        """Lightning's bars must offer it; ranks other than zero stay silent anyway."""
