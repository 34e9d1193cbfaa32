"""The Lightning module: one loss, its metrics, the optimizer and the schedule.

`METRICS` are the names that are logged, and all that a callback can monitor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from resnet_se.augment import derive_seed
from resnet_se.errors import UserError
from resnet_se.mixing import Mixing
from resnet_se.optim import Schedule
from resnet_se.resnet import WhiteningStem
from resnet_se.tta import TTA

METRICS = (
    "train/loss",
    "train/acc",
    "train/lr",
    "val/loss",
    "val/acc",
    "test/loss",
    "test/acc",
    "test/acc_tta",
    "test/ece",
)


WHITEN_IMAGES = 2000  # enough for the covariance of 12 numbers


class Diverged(UserError):
    """The training loss became NaN or infinite."""


class Classifier(L.LightningModule):
    """Trains `net` with cross-entropy over soft targets.

    Args:
        net: (B, 3, H, W) → logits (B, K).
        optimizer: net → optimizer.
        scheduler: (optimizer, steps per epoch, epochs) → `Schedule`.
        num_classes: K.
        mixing: images and labels → images and soft targets.
        tta: views averaged in the test beside the plain image, or None.
        seed: of dropout and mixing, which draw from (seed, epoch, rank).
        channels_last: keep images and weights in that memory format; faster on CPUs
            with oneDNN and on GPUs with tensor cores.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        scheduler: Callable[..., Schedule],
        num_classes: int,
        mixing: Mixing,
        tta: TTA | None = None,
        seed: int = 0,
        channels_last: bool = True,
    ):
        super().__init__()
        self.memory_format = (
            torch.channels_last if channels_last else torch.contiguous_format
        )
        self.net = net.to(memory_format=self.memory_format)
        self.make_optimizer = optimizer
        self.make_schedule = scheduler
        self.num_classes = num_classes
        self.mixing = mixing
        self.tta = tta
        self.seed = seed
        self.metrics = nn.ModuleDict(
            {
                part: MetricCollection(
                    {
                        "loss": MeanMetric(nan_strategy="disable"),
                        "acc": MulticlassAccuracy(num_classes, average="micro"),
                    }
                )
                for part in ("train_part", "val_part")
            }
        )
        self.outputs: list[dict[str, Tensor]] = []
        self.predictions: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → logits (B, K), float32."""
        return self.net(images.to(memory_format=self.memory_format)).float()

    # --- training ----------------------------------------------------

    def on_fit_start(self) -> None:
        stem = getattr(self.net, "stem", None)
        if isinstance(stem, WhiteningStem) and self.trainer.ckpt_path is None:
            stem.fit(self.trainer.datamodule.first_images(WHITEN_IMAGES))

    def on_train_epoch_start(self) -> None:
        # Dropout and mixing go on as they would have if the run had not been cut here.
        torch.manual_seed(
            derive_seed("step", self.seed, self.current_epoch, self.global_rank)
        )
        self.first_bad_step = torch.full((), -1, device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = self.mixing(*batch, self.num_classes)  # (B, 3, H, W), (B, K)
        logits = self(images)  # (B, K)
        loss = F.cross_entropy(logits, targets)
        with torch.no_grad():
            self._count("train_part", loss, logits, targets.argmax(dim=1))
            # Kept on the device: asking for the value here would wait for it each step.
            bad = ~torch.isfinite(loss) & (self.first_bad_step < 0)
            self.first_bad_step.masked_fill_(bad, self.global_step)
        if self.global_step % 50 == 0:
            self._stop_if_diverged()
        if batch_idx + 1 == self.trainer.num_training_batches:
            # Not at the epoch's end: callbacks that write the epoch down read it.
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self._log_epoch("train", **{"train/lr": lr})
        return loss

    def _count(self, part: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.metrics[part]["loss"].update(loss, weight=len(labels))
        self.metrics[part]["acc"].update(logits, labels)

    def _stop_if_diverged(self, val_loss: float = 0.0) -> None:
        step = int(self.first_bad_step)
        if step < 0 and math.isfinite(val_loss):
            return
        what = "training" if step >= 0 else "validation"
        raise Diverged(
            f"{what} loss not finite at step {step if step >= 0 else self.global_step} "
            f"(epoch {self.current_epoch}, both from 0); checkpoints/last.ckpt keeps "
            "the last good epoch, if there was one; try a lower optimizer.lr or a "
            "longer warm-up"
        )

    def _log_epoch(self, part: str, **more: float) -> None:
        values = self.metrics[f"{part}_part"].compute()
        self.metrics[f"{part}_part"].reset()
        values = {f"{part}/{name}": value for name, value in values.items()}
        self.log_dict(values | more, prog_bar=True, on_step=False, on_epoch=True)

    # --- validation --------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_diverged()  # before a checkpoint of it could be written

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self._count("val_part", F.cross_entropy(logits, labels), logits, labels)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self.metrics["val_part"].reset()
            return
        loss = float(self.metrics["val_part"]["loss"].compute())
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_diverged(loss)
            self.lr_schedulers().observe(loss)
        self._log_epoch("val")

    # --- test --------------------------------------------------------

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        output = {"labels": labels, "logits": self(images)}
        if self.tta is not None:
            output["tta"] = self.tta(self, images, output["logits"])
        self.outputs.append(output)

    def on_test_epoch_end(self) -> None:
        parts, self.outputs = self.outputs, []
        found = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        self.predictions = {k: v.cpu() for k, v in found.items()}
        labels, logits = found["labels"], found["logits"]
        figures = {
            "test/loss": F.cross_entropy(logits, labels),
            "test/acc": (logits.argmax(dim=1) == labels).float().mean(),
            "test/ece": multiclass_calibration_error(
                logits, labels, self.num_classes, n_bins=15
            ),
        }
        if "tta" in found:
            hits = found["tta"].argmax(dim=1) == labels
            figures["test/acc_tta"] = hits.float().mean()
        self.per_class = multiclass_accuracy(
            logits, labels, self.num_classes, average=None
        )
        self.log_dict(figures)

    # --- optimizer ---------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.net)
        epochs = self.trainer.max_epochs
        steps = self.trainer.estimated_stepping_batches / epochs
        schedule = self.make_schedule(optimizer, steps, epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
