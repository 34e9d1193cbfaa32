"""Progress of a training: a bar on a terminal, plain lines elsewhere, a forecast.

Every line fits 80 columns, and epochs count from 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.system import now

BRIEF = (  # name, metric and format in a line
    ("loss", "train/loss", ".3f"),
    ("val", "val/loss", ".3f"),
    ("acc", "val/acc", ".2%"),
    ("lr", "train/lr", ".2g"),
)
FORECAST_STEPS = 2, 5  # timed from the one to the other: the first ones are slow
MIN_FORECAST = 60.0  # seconds of training; a shorter one has no forecast
LONG = 3600.0  # seconds from which shorter choices are named


def progress() -> ProgressBar:
    """Return a live bar with metrics on a terminal, plain lines elsewhere."""
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()


def _brief(trainer: L.Trainer) -> dict[str, str]:
    """Return the last epoch's metrics that fit into a line of 80 columns.

    Those of a validation only in an epoch that has one.
    """
    every = trainer.check_val_every_n_epoch or 1
    validated = (trainer.current_epoch + 1) % every == 0
    last = {
        name: value
        for name, value in trainer.callback_metrics.items()
        if validated or not name.startswith("val/")
    }
    return {name: format(float(last[m]), form) for name, m, form in BRIEF if m in last}


def _whose(trainer: L.Trainer) -> str:
    """Return the run's folder where processes share a screen: workers of joblib."""
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    if folder is None or current_process().name == "MainProcess":
        return ""
    return f"{Path(folder).parent.name}  "


class LiveProgress(RichProgressBar):
    """Lightning's bar, with short metrics and epochs from 1."""

    def get_metrics(self, trainer: L.Trainer, *_: Any) -> dict[str, Any]:
        return {name: text for name, text in _brief(trainer).items() if name != "lr"}

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts from 0 here and has no setting for it.
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class PlainProgress(ProgressBar):
    """One line an epoch, and one every half minute within a long epoch."""

    EVERY_SECONDS = 30.0

    def on_train_start(self, *_: Any) -> None:
        self.on_train_epoch_start()  # which a resume in mid-epoch does not call

    def on_train_epoch_start(self, *_: Any) -> None:
        self._start = self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        now = time.perf_counter()
        if now - self._last > self.EVERY_SECONDS:
            self._last = now
            self._print(trainer, f"step {index + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        metrics = _brief(trainer)
        line = "  ".join(f"{name} {value}" for name, value in metrics.items())
        self._print(trainer, f"{line}  {time.perf_counter() - self._start:.1f} s")

    def _print(self, trainer: L.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(f"{_whose(trainer)}{epoch}  {text}", flush=True)

    def disable(self) -> None:
        """Do nothing, as Lightning's bars may: only rank zero prints."""


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


class Forecast(L.Callback):
    """Print after a few steps how long training will take, and shorter choices."""

    def on_train_start(self, *_: Any) -> None:
        self._steps = 0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        first, last = FORECAST_STEPS
        self._steps += 1
        if self._steps == first:
            self._start = now(module.device)
        elif self._steps == last and trainer.is_global_zero:
            step = (now(module.device) - self._start) / (last - first)
            data = internals.datamodule(trainer, ImageDataModule)
            epochs = range(trainer.current_epoch, internals.max_epochs(trainer))
            sizes = (data.resolution.size(e, data.image_size) for e in epochs)
            areas = [height * width for height, width in sizes]
            epoch = step * trainer.num_training_batches
            text = forecast([epoch * area / areas[0] for area in areas])
            if text:
                print(f"{_whose(trainer)}{text}", flush=True)


def forecast(epochs: Sequence[float]) -> str:
    """Return a line with the time without validation, empty for a short training.

    Args:
        epochs: seconds of each; smaller images take less, about by their area.
    """
    total = sum(epochs)
    if total < MIN_FORECAST:
        return ""
    each = dict.fromkeys(duration(seconds) for seconds in (min(epochs), max(epochs)))
    text = f"about {duration(total)} here: {len(epochs)} epochs of {' to '.join(each)}"
    if total > LONG:
        text += "\nshorter: budget=short, budget=small, or experiment=quickstart"
    return text
