"""A run's metrics by epoch, in `metrics.csv`, and the time that training took."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.training.loggers import catch_up
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.files import atomic_file
from resnet_se.utils.validation import NonNegative, check_value


class History(L.Callback):
    """Record one row of metrics an epoch, and one a validation in the middle of it.

    The rows and times are part of every checkpoint, so that a resumed run's file reads
    as if it had never stopped, whichever logger is used.  Seconds are wall-clock; those
    without validation give the throughput.

    Args:
        path: the CSV file; columns `epoch, step, seconds` and the logged metrics.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self.middle: list[dict[str, float]] = []  # validations within an epoch
        self.seconds = 0.0
        self.train_seconds = 0.0
        self.images = 0
        self.epochs = 0  # begun by this start
        self._start: float | None = None  # of the epoch under way

    def state_dict(self) -> dict[str, Any]:
        elapsed = (
            self._elapsed()
        )  # a checkpoint in mid-epoch (`SaveOnSigterm`) has some
        return {
            "rows": self.rows,
            "middle": self.middle,
            "seconds": self.seconds + elapsed,
            "train_seconds": self.train_seconds + elapsed,
            "images": self.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_value("History.rows", rows := state["rows"], Sequence[dict])
        middle = state.get("middle", [])  # earlier versions kept none
        check_value("History.middle", middle, Sequence[dict])
        for value in (value for row in [*rows, *middle] for value in row.values()):
            check_value("History.rows", value, float | None)
        for name in ("seconds", "train_seconds", "images"):
            check_value(f"History.{name}", state[name], NonNegative)
            setattr(self, name, state[name])
        self.rows, self.middle = rows, middle

    @property
    def images_per_second(self) -> float | None:
        """Training throughput, without validation and start-up."""
        return self.images / self.train_seconds if self.train_seconds else None

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.rows:
            catch_up(trainer, self.rows)
        self._begin()  # resumed in mid-epoch, a run has no `on_train_epoch_start`

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs += 1
        self._begin()

    def _begin(self) -> None:
        self._start = time.perf_counter()
        self._validating = 0.0
        self._validated = False

    def _elapsed(self) -> float:
        return 0.0 if self._start is None else time.perf_counter() - self._start

    def on_validation_start(self, *_: Any) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validating += time.perf_counter() - self._validation_start
            self._validated = True
            if 0 < internals.batches_done(trainer) < trainer.num_training_batches:
                self.middle.append(self._row(trainer, self._elapsed(), "val/"))

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        elapsed, self._start = self._elapsed(), None
        self.seconds += elapsed
        self.train_seconds += elapsed - self._validating
        batches = int(trainer.num_training_batches) * trainer.world_size
        data = internals.datamodule(trainer, ImageDataModule)
        self.images += batches * data.batch_size
        self.rows.append(self._row(trainer, 0.0, ""))
        if trainer.is_global_zero:
            self._write()

    def _row(self, trainer: L.Trainer, elapsed: float, prefix: str) -> dict[str, float]:
        """Return the figures of now whose names begin so; none that are out of date."""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix)
            and (self._validated or not name.startswith("val/"))
        }
        return {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(self.seconds + elapsed, 3),
            **metrics,
        }

    def _write(self) -> None:
        rows = sorted([*self.rows, *self.middle], key=lambda row: row["step"])
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(self.path) as file:
            file.write(text.getvalue().encode())
