"""Lightning's undocumented names, each behind a function that says why it is used.

A test calls each of them, so that an upgrade that removes one fails there.
"""

from __future__ import annotations

from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from resnet_se.utils.errors import UserError

C = TypeVar("C", bound=L.Callback)
D = TypeVar("D", bound=L.LightningDataModule)


def callbacks(trainer: L.Trainer) -> list[L.Callback]:
    """Return the trainer's callbacks, in their order; the list itself.

    The attribute is documented, but set from outside the class, so that no type checker
    sees it; `datamodule` and `rank` likewise.
    """
    attached: list[L.Callback] = vars(trainer)["callbacks"]
    return attached


def callback(trainer: L.Trainer, kind: type[C]) -> C | None:
    """Return the trainer's first callback of a kind, or None."""
    return next((c for c in callbacks(trainer) if isinstance(c, kind)), None)


def datamodule(trainer: L.Trainer, kind: type[D]) -> D:
    """Return the data module of the loop that runs.

    Raises:
        TypeError: it is of another kind, or nothing runs.
    """
    data = vars(trainer)["datamodule"]
    if not isinstance(data, kind):
        raise TypeError(f"datamodule: expected {kind.__name__}, got {data!r}")
    return data


def max_epochs(trainer: L.Trainer) -> int:
    """Return how many epochs there are to be, which a trainer may leave open."""
    assert trainer.max_epochs is not None  # the configuration's are a number
    return trainer.max_epochs


def rank() -> int:
    """Return this process's rank, which Lightning settles before a process group is."""
    return int(getattr(rank_zero_only, "rank", 0))


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

    Raises:
        UserError: a validation is due after more batches than an epoch has.
    """
    try:
        trainer.fit_loop.setup_data()
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        raise UserError(
            "trainer.val_check_interval: expected at most "
            f"{trainer.num_training_batches}, the batches of an epoch, got "
            f"{trainer.val_check_interval}; +trainer.check_val_every_n_epoch=… is for "
            "validations that are rarer"
        ) from None


def note_sigterm(trainer: L.Trainer) -> None:
    """Note SIGTERM as Lightning's own handler does, without telling the other ranks.

    That collective call may interrupt another one half-way.  The note is enough: before
    each step Lightning broadcasts rank 0's.
    """
    trainer._signal_connector.received_sigterm = True
