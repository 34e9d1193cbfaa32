"""Each private name of Lightning that is used does what it is used for."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_se.utils import lightning_private as internals

BATCHES = 3
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",
    "ignore:.*does not have many workers.*",
)


class Line(L.LightningModule):
    """One weight; `recorded` is what `note` returns at each hook."""

    def __init__(self, note=lambda trainer: None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.note, self.recorded = note, []

    def training_step(self, batch, batch_idx):
        return (self.weight * batch[0]).sum()

    def on_train_batch_start(self, batch, batch_idx):
        self.recorded.append(self.note(self.trainer))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.recorded.append(self.note(self.trainer))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(torch.ones(BATCHES, 1))
        return torch.utils.data.DataLoader(data)


@pytest.fixture
def trainer(tmp_path):
    return L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def test_batches_done(trainer):
    line = Line(internals.batches_done)
    trainer.fit(line)
    epoch = [0, 1, 1, 2, 2, 3]  # before and after each step
    assert line.recorded == epoch * 2


def test_epochs_done(trainer):
    class Ends(L.Callback):
        recorded: list[int] = []  # noqa: RUF012

        def on_train_epoch_end(self, trainer, module):
            self.recorded.append(internals.epochs_done(trainer))

    trainer.callbacks.append(Ends())
    line = Line(internals.epochs_done)
    trainer.fit(line)
    assert line.recorded == [0] * 6 + [1] * 6
    assert Ends.recorded == [1, 2]  # where checkpoints are written


def test_make_loaders(trainer):
    class Asks(Line):
        def configure_optimizers(self):
            internals.make_loaders(self.trainer)
            self.batches = self.trainer.num_training_batches
            return super().configure_optimizers()

    line = Asks()
    trainer.fit(line)
    assert line.batches == BATCHES


def test_note_sigterm(trainer):
    def stop(trainer):
        if trainer.global_step == 2:
            internals.note_sigterm(trainer)

    with pytest.raises(SIGTERMException):
        trainer.fit(Line(stop))
    assert trainer.global_step == 2  # the step under way was finished, no other begun


class Named(L.Callback):
    """A callback to be found."""


def test_callbacks_are_the_trainers_own_list(trainer):
    first, second = Named(), Named()
    internals.callbacks(trainer).extend([first, second])
    assert trainer.callbacks[-2:] == [first, second]
    assert internals.callback(trainer, Named) is first
    assert internals.callback(trainer, L.pytorch.callbacks.EarlyStopping) is None


class Lines(L.LightningDataModule):
    def train_dataloader(self):
        return Line().train_dataloader()


def test_the_data_module_of_the_loop_that_runs(trainer):
    data = Lines()
    line = Line(lambda trainer: internals.datamodule(trainer, Lines))
    trainer.fit(line, datamodule=data)
    assert {id(found) for found in line.recorded} == {id(data)}


def test_another_data_module_is_refused(trainer):
    class Others(L.LightningDataModule):
        pass

    with pytest.raises(TypeError, match="expected Lines, got None"):
        internals.datamodule(trainer, Lines)
    with pytest.raises(TypeError, match=r"expected Others, got <.*Lines"):
        trainer.fit(
            Line(lambda trainer: internals.datamodule(trainer, Others)),
            datamodule=Lines(),
        )


def test_rank(monkeypatch):
    assert internals.rank() == 0
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    assert internals.rank() == 3
