"""A checkpoint when the machine is about to be taken away."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_se.utils import lightning_private as internals


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
