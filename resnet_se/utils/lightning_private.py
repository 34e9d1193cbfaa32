"""Lightning's undocumented names, each behind a function that says why it is used.

A test calls each of them, so that an upgrade that removes one fails there.
"""

from __future__ import annotations

from typing import Any

import lightning as L


def batches_done(trainer: L.Trainer) -> int:
    """Return how many batches of the current epoch have been trained on.

    A checkpoint in mid-epoch must know its place; Lightning saves it without a public
    name (`batch_idx` is that of a hook, and a save happens outside of one).  Not
    `completed`: that is one behind in `on_train_batch_end`, where a callback may save.
    """
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    processed: int = current.processed
    return processed


def epochs_done(trainer: L.Trainer) -> int:
    """Return how many epochs have been trained on.

    `current_epoch` is one behind when a checkpoint is saved.
    """
    current: Any = trainer.fit_loop.epoch_progress.current  # typed as its base class
    processed: int = current.processed
    return processed


def is_of_another_run(trainer: L.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Return True for a checkpoint that the trainer's files say another run wrote."""
    own = getattr(trainer.strategy.checkpoint_io, "run", None)
    return bool(checkpoint.get("run", own) != own)


def make_loaders(trainer: L.Trainer) -> None:
    """Make the training loader, so that `num_training_batches` is known.

    `estimated_stepping_batches` would do so, but is cut by `max_steps`, which would
    squeeze the schedule of all epochs into the steps that are taken.
    """
    trainer.fit_loop.setup_data()


def note_sigterm(trainer: L.Trainer) -> None:
    """Note SIGTERM as Lightning's own handler does, without telling the other ranks.

    That collective call may interrupt another one half-way.  The note is enough: before
    each step Lightning broadcasts rank 0's.
    """
    trainer._signal_connector.received_sigterm = True
