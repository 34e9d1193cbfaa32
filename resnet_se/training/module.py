"""The Lightning module: one loss, its metrics, the optimizer and the schedule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.models.tta import TTA
from resnet_se.runs.checkpoint import OPTIMIZER
from resnet_se.training.mixing import Mixing
from resnet_se.training.param_groups import (
    check_donor,
    check_state,
    l2_penalty,
    set_anew,
    set_mode,
)
from resnet_se.training.reliability import reliability
from resnet_se.training.schedules import Schedule
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.distributed import (
    gather_rows,
    is_connected,
    is_leader,
    sum_over_ranks,
)
from resnet_se.utils.errors import UserError
from resnet_se.utils.random_streams import derive_seed

INIT_IMAGES = 2000  # training images that a whitening stem is computed from
NO_SUMS = torch.zeros(3, dtype=torch.float64)

# Images (B, 3, H, W), logits (B, K), soft targets (B, K) → the mean loss.
Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]
# Loss, correct predictions and images of one batch; the first two on the device.
BatchFigures = tuple[Tensor, Tensor, int]


def cross_entropy(images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a training without a teacher; a `Criterion`."""
    return F.cross_entropy(logits, targets)


class Diverged(UserError):
    """The training loss became NaN or infinite."""


class Classifier(L.LightningModule):
    """Train `net` with one loss over soft targets.

    Args:
        net: (B, 3, H, W) → logits (B, K).
        optimizer: net → optimizer; None for tests alone.
        scheduler: (optimizer, steps per epoch, epochs) → `Schedule`; None likewise.
        num_classes: K.
        mixing: images and labels → images and soft targets.
        tta: views averaged in the test beside the plain image, or None.
        seed: of dropout and mixing, which draw from (seed, epoch, rank, batch).
        channels_last: keep images and weights in that memory format; faster on CPUs
            with oneDNN and on GPUs with tensor cores.
        criterion: the training loss.
        initialised: the weights were trained before; nothing is set up from images.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None,
        scheduler: Callable[..., Schedule] | None,
        num_classes: int,
        mixing: Mixing,
        tta: TTA | None = None,
        seed: int = 0,
        channels_last: bool = True,
        criterion: Criterion = cross_entropy,
        initialised: bool = False,
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
        self.criterion = criterion
        self.initialised = initialised
        self.continues_other = False  # from a checkpoint that another run has written
        # By batch index, on the device: reading a value would wait for it, and summing
        # them up in each step costs more.
        self.train_batches: dict[int, BatchFigures] = {}
        self.sums_before_resume = NO_SUMS  # the resumed epoch's `_sums`
        self.val_batches: list[BatchFigures] = []
        self.val_loss: float | None = None  # of the present epoch's last validation
        self.outputs: list[dict[str, Tensor]] = []
        self.predictions: dict[str, Tensor] = {}  # of the test
        self.val_predictions: dict[str, Tensor] = {}  # of a validation outside a fit

    def initialise(self, weights: dict[str, Tensor]) -> None:
        """Start from trained weights: nothing is set up from images any more."""
        self.load_state_dict(weights, strict=False)
        self.initialised = True

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 logits (B, K) of normalised images (B, 3, H, W).

        A test computes in float32 whatever the precision of the training: logits of
        eight significant bits tie, and a tie goes to the lower class.
        """
        images = images.to(memory_format=self.memory_format)
        if self.training:
            return self.net(images).float()
        # Evaluation is a small part of the time; its batch sizes differ, and each would
        # be compiled anew.
        with torch.compiler.set_stance("force_eager"), self._test_precision():
            return self.net(images).float()

    def _test_precision(self) -> AbstractContextManager[Any]:
        attached = self._trainer is not None  # else `trainer` raises
        if attached and self.trainer.state.fn == TrainerFn.FITTING:
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    # --- training ----------------------------------------------------

    def on_fit_start(self) -> None:
        # A network may set itself up from training images, once: a whitening stem does.
        init = getattr(self.net, "init_from_images", None)
        resumed = self.trainer.ckpt_path is not None or self.initialised
        if callable(init) and not resumed:
            data = internals.datamodule(self.trainer, ImageDataModule)
            init(data.first_images(INIT_IMAGES))

    def on_train_start(self) -> None:
        if self.trainer.ckpt_path is not None:
            fresh = self.new_optimizer(copy.deepcopy(self.net))
            optimizer = self.trainer.optimizers[0]
            if self.continues_other:
                set_anew(optimizer, fresh)
                cast(Schedule, self.lr_schedulers()).set_rates()
            check_state(optimizer, fresh)  # takes a step of `fresh`
        self._set_mode(training=True)

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self._set_mode(training=False)

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        self._set_mode(training=True)

    def on_train_end(self) -> None:
        self._set_mode(training=False)

    def _set_mode(self, training: bool) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            for optimizer in self.trainer.optimizers:
                set_mode(optimizer, training)

    def on_train_epoch_start(self) -> None:
        self.train_batches = {}
        self.sums_before_resume = NO_SUMS

    def on_train_epoch_end(self) -> None:
        # An epoch counts once, however often it was validated, and before its
        # checkpoint is written.
        if self.val_loss is not None:
            cast(Schedule, self.lr_schedulers()).observe(self.val_loss)
            self.val_loss = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        done = internals.batches_done(self.trainer)
        if 0 < done < self.trainer.num_training_batches:
            checkpoint["epoch_so_far"] = self._train_sums()
        checkpoint[OPTIMIZER] = type(self.trainer.optimizers[0]).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "epoch_so_far" in checkpoint:
            self.sums_before_resume = checkpoint["epoch_so_far"].double()
        self.continues_other = internals.is_of_another_run(self.trainer, checkpoint)
        if self.continues_other and self.make_optimizer is not None:
            fresh = self.make_optimizer(copy.deepcopy(self.net))
            check_donor(checkpoint, fresh)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        # Dropout and mixing are the same after a resume, and in a batch's two passes
        # (`SAM`).
        step = (self.seed, self.current_epoch, self.global_rank, batch_idx)
        torch.manual_seed(derive_seed("step", *step))
        images, targets = self.mixing(*batch, self.num_classes)  # (B, 3, H, W), (B, K)
        logits = self(images)  # (B, K)
        loss = self.criterion(images, logits, targets)
        if batch_idx in self.train_batches:  # the second pass
            return loss
        labels = targets.argmax(dim=1)
        self.train_batches[batch_idx] = _figures(loss, logits, labels)
        if batch_idx + 1 == self.trainer.num_training_batches:
            # Not at the epoch's end, where callbacks already read these figures.
            losses = [loss for loss, *_ in self.train_batches.values()]
            self._stop_if_diverged("training", losses)
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self._log_epoch(
                "train", self._penalised(self._train_sums()), **{"train/lr": lr}
            )
        return loss

    def _stop_if_diverged(self, part: str, losses: list[Tensor]) -> None:
        finite = torch.stack(losses).isfinite()
        if not finite.all():
            batch = int(finite.int().argmin())
            raise Diverged(
                f"{part} loss not finite at batch {batch + 1} of epoch "
                f"{self.current_epoch + 1}; checkpoints/last.ckpt keeps the last good "
                "epoch, if there was one; try a lower optimizer.lr or a longer warm-up"
            )

    def _penalised(self, sums: Tensor) -> Tensor:
        """Add Keras's penalty to a loss that may be watched: at the epoch's end."""
        penalty = l2_penalty(self.trainer.optimizers[0])
        return sums + sums.new_tensor([penalty, 0, 0]) * sums[2]

    def _train_sums(self) -> Tensor:
        return _sums(list(self.train_batches.values()), self.sums_before_resume)

    def _log_epoch(self, part: str, sums: Tensor, **more: float) -> None:
        loss, acc, _ = (sums / sums[2]).float()
        values: dict[str, Tensor | float] = {f"{part}/loss": loss, f"{part}/acc": acc}
        values |= more
        self.log_dict(values, prog_bar=True, on_step=False, on_epoch=True)

    # --- validation --------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.val_batches = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self.val_batches.append(_figures(loss, logits, labels))
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.outputs.append({"labels": labels, "logits": logits})

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        sums = _sums(self.val_batches)
        if self.trainer.state.fn == TrainerFn.FITTING:
            # Before its checkpoint is written.
            self._stop_if_diverged("validation", [b[0] for b in self.val_batches])
            sums = self._penalised(sums)
            self.val_loss = float((sums[0] / sums[2]).float())
        else:
            self.val_predictions = _on_cpu(self._all_outputs())
        self._log_epoch("val", sums)

    # --- test --------------------------------------------------------

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        output = {"labels": labels, "logits": self(images)}
        if self.tta is not None:
            output["tta"] = self.tta(self, images, output["logits"])
        self.outputs.append(output)

    def on_test_epoch_end(self) -> None:
        outputs = self._all_outputs()
        self.predictions = _on_cpu(outputs)
        labels, logits = outputs["labels"], outputs["logits"]
        figures: dict[str, Tensor | float] = {
            "test/loss": F.cross_entropy(logits, labels),
            "test/acc": _accuracy(logits, labels),
            "test/ece": reliability(logits, labels).ece,
        }
        if "tta" in outputs:
            figures["test/acc_tta"] = _accuracy(outputs["tta"], labels)
        self.per_class = multiclass_accuracy(
            logits, labels, self.num_classes, average=None
        )
        self.log_dict(figures)

    def _all_outputs(self) -> dict[str, Tensor]:
        """Return the outputs of all batches on all ranks, in the images' order."""
        parts, self.outputs = self.outputs, []
        outputs = {
            k: gather_rows(torch.cat([part[k] for part in parts])) for k in parts[0]
        }
        if not outputs["logits"].isfinite().all():
            raise Diverged("test: the network gives no finite logits for some images")
        return outputs

    # --- optimizer ---------------------------------------------------

    def new_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimizer of `net`'s parameters; what is fitted has one."""
        assert self.make_optimizer is not None
        return self.make_optimizer(net)

    def new_schedule(
        self, optimizer: torch.optim.Optimizer, steps: int, epochs: int | None
    ) -> Schedule:
        """Return a new schedule of `epochs` of `steps`; what is fitted has one."""
        assert self.make_schedule is not None
        return self.make_schedule(optimizer, steps, epochs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.new_optimizer(self.net)
        trainer = self.trainer
        internals.make_loaders(trainer)
        steps = math.ceil(
            trainer.num_training_batches / trainer.accumulate_grad_batches
        )
        schedule = self.new_schedule(optimizer, steps, trainer.max_epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _figures(loss: Tensor, logits: Tensor, labels: Tensor) -> BatchFigures:
    correct = (logits.argmax(dim=1) == labels).sum()
    return loss.detach(), correct, len(labels)


def _sums(batches: list[BatchFigures], before: Tensor = NO_SUMS) -> Tensor:
    """Return loss × images, correct predictions and images (3,), over all ranks.

    In float64 on the CPU, one batch after the other from `before` on, so that an epoch
    cut in two has the same sums.
    """
    losses, correct, sizes = zip(*batches, strict=True)
    device = losses[0].device
    values = zip(
        torch.stack(losses).float().tolist(),
        torch.stack(correct).tolist(),
        sizes,
        strict=True,
    )
    # What came before is in the sum of all ranks; one of them adds it.
    start = before.tolist() if is_leader() else NO_SUMS.tolist()
    sums = [*start]
    for loss, hits, size in values:
        sums = [sums[0] + loss * size, sums[1] + hits, sums[2] + size]
    if not is_connected():
        return torch.tensor(sums, dtype=torch.float64)
    on_device = torch.tensor(sums, dtype=torch.float64, device=device)
    return sum_over_ranks(on_device).cpu()


def _accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(dim=1) == labels).float().mean()


def _on_cpu(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows.cpu() for name, rows in outputs.items()}
