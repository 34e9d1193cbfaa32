"""A checkpoint on SIGTERM, which SLURM and spot machines send before they kill."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_se.training.callbacks.checkpointing import save
from resnet_se.utils import lightning_private as internals


class SaveOnSigterm(L.Callback):
    """Save a checkpoint in mid-epoch when SIGTERM stops training.

    Lightning stops after the step under way; in a validation, or between epochs, the
    last epoch's checkpoint stays.

    Args:
        path: the checkpoint, from which the next start resumes.
    """

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        # Before and after training the handler of `train` ends the run; Lightning does
        # not replace it, and its own would not be safe here (see `note_sigterm`).
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: internals.note_sigterm(trainer))

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, SIGTERMException) and trainer.training:
            done = internals.batches_done(trainer)
            # Accumulated gradients are in no checkpoint.
            stepped = done % trainer.accumulate_grad_batches == 0
            if stepped and 0 < done < trainer.num_training_batches:
                save(trainer, self.path)
