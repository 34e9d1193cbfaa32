"""A whitening stem's biases, trained for the first epochs alone.

Jordan 2024, arXiv 2404.00498, §3.
"""

from __future__ import annotations

from typing import Any

import lightning as L

from resnet_se.models.layers import WhiteningStem
from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import Count, validated


class FreezeStem(L.Callback):
    """Stop training a whitening stem's biases after some epochs.

    They hardly move by then, and the backward pass can end before the stem.

    Args:
        epochs: how many the biases are trained for.

    Raises:
        UserError: the network has no whitening stem.
    """

    @validated
    def __init__(self, epochs: Count):
        self.epochs = epochs

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        stems = (m for m in module.modules() if isinstance(m, WhiteningStem))
        self.biases = [b for s in stems if (b := s.conv.bias) is not None]
        if not self.biases:
            raise UserError(
                "callbacks: FreezeStem freezes a whitening stem, which this network "
                "does not have; add model.whiten=true, or set that callback to null"
            )

    # Not `on_train_epoch_start`, which a resume in mid-epoch does not have.
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # DDP waits for a gradient of every parameter that needed one when it started.
        if trainer.current_epoch >= self.epochs and trainer.world_size == 1:
            for bias in self.biases:
                bias.requires_grad_(False)

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch >= self.epochs:
            for bias in self.biases:
                bias.grad = None

    def on_train_end(self, *_: Any) -> None:
        for bias in self.biases:
            bias.requires_grad_(True)
