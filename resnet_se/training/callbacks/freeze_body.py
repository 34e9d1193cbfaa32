"""All but a network's head, kept as it is: transfer of what was learned before."""

from __future__ import annotations

import lightning as L
from torch import nn

from resnet_se.training.module import Classifier
from resnet_se.utils.errors import UserError


class FreezeBody(L.Callback):
    """Train the last linear layer alone; BatchNorm keeps its running statistics.

    Of use after `init_from`.

    Raises:
        UserError: the network does not end in a linear layer of the classes.
    """

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(module, Classifier)
        layers = [m for m in module.net.modules() if isinstance(m, nn.Linear)]
        if not layers or layers[-1].out_features != module.num_classes:
            raise UserError(
                "callbacks: FreezeBody trains a last linear layer of the classes, "
                "which this network does not have; set that callback to null"
            )
        module.net.requires_grad_(False)
        layers[-1].requires_grad_(True)

    def on_train_epoch_start(
        self, trainer: L.Trainer, module: L.LightningModule
    ) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.requires_grad_(True)
