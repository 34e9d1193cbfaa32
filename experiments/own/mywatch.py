"""A callback and a logger of one's own: Lightning's base classes, nothing else."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch.nn.utils import get_total_norm


class Norm(L.Callback):
    """Logs the 2-norm of all weights after each epoch, as `train/norm`."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.log("train/norm", get_total_norm(module.parameters()))


class Lines(Logger):
    """Appends what is logged to a file, a JSON object a line."""

    name, version = "lines", 0

    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)

    @rank_zero_only  # of several processes, one writes
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            print(json.dumps({"step": step, **metrics}), file=file)

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        """The run's config.yaml has them."""
