"""Every name of Lightning used here that is not in its documentation, and why.

A test calls each of them, so that an upgrade which takes one away fails there.
"""

from __future__ import annotations

import lightning as L


def batches_done(trainer: L.Trainer) -> int:
    """Batches of the epoch under way that have been trained on.

    A checkpoint in mid-epoch must know its place; Lightning saves it and shows it
    nowhere (`batch_idx` is that of a hook, and a save happens outside of one).  Not
    `completed`: that is one behind in `on_train_batch_end`, where a callback may save.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed


def epochs_done(trainer: L.Trainer) -> int:
    """Epochs that have been trained on; `current_epoch` is one behind at a save."""
    return trainer.fit_loop.epoch_progress.current.processed


def make_loaders(trainer: L.Trainer) -> None:
    """Makes the training loader, so that `num_training_batches` is known.

    `estimated_stepping_batches` would do so, but is cut by `max_steps`: that would
    squeeze the schedule of all epochs into the steps that are taken.
    """
    trainer.fit_loop.setup_data()


def note_sigterm(trainer: L.Trainer) -> None:
    """What Lightning's own handler notes, without its talk to the other ranks.

    From within a signal that talk meets another one half-way.  The note will do: rank
    0's is read out to all before each step.
    """
    trainer._signal_connector.received_sigterm = True
