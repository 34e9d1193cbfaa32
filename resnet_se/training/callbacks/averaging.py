"""Averages of the weights, validated and kept in place of the trained ones.

* EMA: Polyak & Juditsky 1992, with BatchNorm's statistics
* SWA: Izmailov et al. 2018, arXiv 1803.05407
"""

from __future__ import annotations

from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field
from torch.optim.swa_utils import update_bn

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.validation import Unit, validated


class WeightAverage(L.Callback):
    """Validate, checkpoint and end with an average of the weights.

    With a decay, EMA: average ← decay × average + (1 − decay) × weights after every
    optimizer step, for parameters and BatchNorm's statistics alike.  Without, SWA: the
    mean of the weights at the ends of the epochs from `start` on, with BatchNorm's
    statistics computed for it on `BN_IMAGES` augmented training images.  A checkpoint's
    `state_dict` is the average; its `trained_state` are the weights being trained.

    Lightning's `EMAWeightAveraging` waits for the GPU in every step, keeps the average
    of a GPU's weights on the CPU, and replaces the best checkpoint by the final average
    when that is validated after training.

    Args:
        decay: averages about the last 1 / (1 − decay) steps.
        start: of SWA, a share of all epochs; until then there is no average.

    Raises:
        UserError: `decay` is not in (0, 1), `start` not in 0..1.
    """

    BN_IMAGES = 5000

    @validated
    def __init__(
        self, decay: Annotated[float, Field(gt=0, lt=1)] | None, start: Unit = 0.0
    ):
        self.decay = decay
        self.start = start
        self.loaded: dict[str, torch.Tensor] | None = None
        self.average: list[torch.Tensor] = []  # empty unless the network is trained

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Not earlier: only now are the weights on the device and loaded.
        state = module.state_dict()
        self.weights = _floating(state)
        self.average = [
            t.to(module.device, copy=True) for t in _floating(self.loaded or state)
        ]
        self.step = trainer.global_step

    def _averaged_epochs(self, trainer: L.Trainer) -> int:
        """Return how many epochs SWA averages, with the present one."""
        first = int(self.start * internals.max_epochs(trainer))
        return trainer.current_epoch + 1 - first

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == self.step:  # gradients are being accumulated
            return
        self.step = trainer.global_step
        if self.decay is not None:
            share = 1 - self.decay
        elif (epochs := self._averaged_epochs(trainer)) < 1:
            share = 1.0
        elif index + 1 == trainer.num_training_batches:
            share = 1 / epochs
        else:
            return  # a step within an epoch costs nothing
        torch._foreach_lerp_(self.average, self.weights, share)

    def _swap(self) -> None:
        if not self.average:
            return
        # In place: a compiled network knows its weights by their address.
        trained = [t.clone() for t in self.weights]
        torch._foreach_copy_(self.weights, self.average)
        torch._foreach_copy_(self.average, trained)

    def on_validation_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        self._swap()
        swa = self.average and self.decay is None
        if swa and self._averaged_epochs(trainer) > 1:
            data = internals.datamodule(trainer, ImageDataModule)
            images = data.shuffled(self.BN_IMAGES)
            with torch.compiler.set_stance("force_eager"):
                update_bn(images, module.net)

    def on_validation_epoch_end(self, *_: Any) -> None:
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


def _floating(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [t for t in state.values() if t.is_floating_point()]
