"""One training: fit, then one test of the best checkpoint; the record is filled in."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.models.complexity import forward_macs, network_summary
from resnet_se.runs import checkpoint, keras_file, predictions_file
from resnet_se.runs.keras_file import is_keras
from resnet_se.runs.keras_weights import state_of
from resnet_se.runs.record import Outcome, round_significant
from resnet_se.training.callbacks.checkpointing import Checkpoints
from resnet_se.training.callbacks.history import History
from resnet_se.training.callbacks.pruning import Pruner
from resnet_se.training.evaluation import load_weights, score
from resnet_se.training.module import Classifier
from resnet_se.training.preparation import (
    check_sizes,
    check_training,
    compile_network,
    forward_backward,
)
from resnet_se.utils import distributed
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.console import console, print_devices, print_header
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import (
    hardware,
    keep_freed_memory,
    peak_memory_mb,
    reset_peak_memory,
)


@dataclass(frozen=True)
class Job:
    """All that one training needs, finished: nothing is set on its parts any more.

    Args:
        name: of the run, as its checkpoints have it.
        directory: of the run.
        learning_rate: of one device; scale_lr: it is multiplied by their number.
        compile_mode: a key of `preparation.COMPILE_MODES`.
        ckpt_path: to continue from where the run has no checkpoint of its own.
        init_from: a run or checkpoint whose weights to start from.
        hyperparameters: for dashboards.
    """

    name: str
    directory: Path
    module: Classifier
    data: ImageDataModule
    trainer: L.Trainer
    learning_rate: float
    scale_lr: bool
    compile_mode: str
    ckpt_path: Path | None
    init_from: Path | None
    hyperparameters: Mapping[str, Any]

    @property
    def history(self) -> History | None:
        """The callback that keeps a row an epoch, if there is one."""
        return internals.callback(self.trainer, History)


def fit(job: Job, outcome: Outcome) -> None:
    """Train, test the best checkpoint, and fill `outcome` in.

    Raises:
        UserError: the network does not fit the data, a checkpoint is another's, the
            loss is no number, or the memory is too small.
    """
    started = time.perf_counter()
    module, data, trainer = job.module, job.data, job.trainer
    data.augment.check(*data.image_size)
    check_sizes(module.net, data)
    resume_from = _resume_checkpoint(job)
    device, world_size = trainer.strategy.root_device, trainer.world_size
    if device.type == "cpu":
        keep_freed_memory()
    data.fit_batch_size(world_size)
    check_training(module.net, data.image_size, data.num_classes, data.batch_size)
    outcome.hardware = hardware(device, str(trainer.precision), world_size)
    outcome.data = data.describe()
    outcome.model = network_summary(module.net, data.image_size[0])
    if distributed.is_leader():
        outcome.write(job.directory)
    reset_peak_memory(device)
    print_header(outcome.as_dict(), job.directory)
    if data.fitted:
        console.print(data.fitted, soft_wrap=True, highlight=False)
    if world_size > 1:
        print_devices(world_size, data.batch_size, job.learning_rate, job.scale_lr)
    compile_seconds = compile_network(
        module,
        trainer,
        job.compile_mode,
        data.batch_size,
        data.resolution.sizes(data.image_size),
    )
    for logger in trainer.loggers:
        logger.log_hyperparams({**job.hyperparameters, **outcome.identity})
    _train(job, resume_from)
    outcome.train = _training_figures(job, compile_seconds)
    pruner = internals.callback(trainer, Pruner)
    if pruner is not None and pruner.pruned:
        outcome.train["stopped"] = outcome.status = "pruned"
        return
    best = best_checkpoint(job)
    outcome.best_epoch = load_weights(module, data, best)["epoch"] if best else None
    scores = score(trainer, module, data)
    outcome.val, outcome.test = scores["val"], scores["test"]
    outcome.seconds_in_all = round(time.perf_counter() - started, 2)
    if job.history:
        rows = job.history.rows
        columns = dict.fromkeys(key for row in rows for key in row)
        outcome.history = {
            name: [round_significant(row.get(name)) for row in rows] for name in columns
        }
        until = _pflop(job)
        outcome.history["pflop"] = [
            round_significant(until(int(row["step"]))) for row in rows
        ]
    if distributed.is_leader():
        val = {f"val_{name}": rows for name, rows in module.val_predictions.items()}
        arrays = {k: v.numpy() for k, v in (module.predictions | val).items()}
        predictions_file.write(job.directory / predictions_file.NAME, arrays)


def _train(job: Job, resume_from: Path | None) -> None:
    try:
        job.trainer.fit(
            job.module, datamodule=job.data, ckpt_path=resume_from, weights_only=True
        )
    except Exception as error:
        if is_out_of_memory(error):
            error.__traceback__ = None  # its frames hold the tensors of the step
            raise out_of_memory(job) from None
        resumed_well = job.history and job.history.epochs > 1
        if resume_from and not resumed_well:
            _explain_resume(error, resume_from)
        raise


def _training_figures(job: Job, compile_seconds: float | None) -> dict[str, Any]:
    """The `train` field of the record."""
    trainer, history = job.trainer, job.history
    stopped = "early_stopping" if _ended_early(trainer) else "max_epochs"
    if 0 < trainer.max_steps <= trainer.global_step:
        stopped = "max_steps"
    timer = internals.callback(trainer, Timer)
    left = timer.time_remaining() if timer else None
    if left is not None and left <= 0:
        stopped = "max_time"
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "pflop": round_significant(_pflop(job)(trainer.global_step)),
        "seconds": history and round_significant(history.seconds),
        "images_per_second": history and round_significant(history.images_per_second),
        "compile_seconds": round_significant(compile_seconds),
        "peak_memory_mb": round(peak_memory_mb(trainer.strategy.root_device), 1),
        "stopped": stopped,
    }


def _pflop(job: Job) -> Callable[[int], float]:
    """Return a function from steps to the operations of all ranks until then.

    6 for a multiply-accumulate of a forward pass: the gradients of inputs and weights
    cost one each, and a multiply and an add are two (so counts Jordan 2024, arXiv
    2404.00498).
    """
    trainer, data = job.trainer, job.data
    per_epoch = math.ceil(
        trainer.num_training_batches / trainer.accumulate_grad_batches
    )
    images = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    sizes = data.resolution.sizes(data.image_size)
    each = {s: 6e-15 * images * forward_macs(job.module.net, s) for s in set(sizes)}

    def until(steps: int) -> float:
        done = (min(per_epoch, steps - e * per_epoch) for e in range(len(sizes)))
        return sum(each[size] * n for size, n in zip(sizes, done, strict=True) if n > 0)

    return until


def _ended_early(trainer: L.Trainer) -> bool:
    return trainer.max_epochs is not None and trainer.current_epoch < trainer.max_epochs


# --- where training goes on --------------------------------------


def _resume_checkpoint(job: Job) -> Path | None:
    """The checkpoint that training goes on from: the run's own, else `ckpt_path`."""
    choice = checkpoint.choose(job.directory / "checkpoints", job.name)
    if choice is not None:
        for sentence in choice.damage:
            console.print(f"[yellow]{sentence}; going on from {choice.path.name}")
        path, loaded = choice.path, choice.checkpoint
    elif job.ckpt_path:
        path = job.ckpt_path
        loaded = checkpoint.read(path)
    else:
        if job.init_from:
            _init_from(job.init_from, job.module)
        return None
    checkpoint.check_weights(loaded, path, job.module)
    console.print(f"resuming from {path}")
    return path


def _explain_resume(error: Exception, path: Path) -> None:
    """A checkpoint's states have any form; an epoch from them went through, or not.

    Raises:
        UserError: it did not, and nothing better is known of why.
    """
    if isinstance(error, UserError | OSError):
        return
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise UserError(
        f"{path}: the first epoch from there failed: {reason}; the rest is in error.txt"
    ) from error


def _init_from(path: Path, module: Classifier) -> None:
    """Fill in weights of another run or checkpoint, where shapes are the same.

    Those of a Keras file fit altogether.

    Raises:
        UserError: unreadable, or not one tensor fits.
    """
    file = path / "checkpoints" / checkpoint.BEST if path.is_dir() else path
    state = module.state_dict()
    if is_keras(file):
        weights = state_of(keras_file.read(file), module.net)
        donor = {f"net.{name}": tensor for name, tensor in weights.items()}
    else:
        donor = checkpoint.read(file)["state_dict"]
    fitting = {
        name: tensor
        for name, tensor in donor.items()
        if name in state and state[name].shape == tensor.shape
    }
    if not fitting:
        raise UserError(f"init_from: {file}: none of its tensors fits this network")
    module.initialise(fitting)
    left = sorted(state.keys() - fitting.keys())
    names = f", new: {', '.join(left)}" if left else ""
    console.print(f"weights of {file}: {len(fitting)} of {len(state)} tensors{names}")


def best_checkpoint(job: Job) -> Path | None:
    """The checkpoint to test; None where nothing was validated.

    Raises:
        UserError: there was a best one, and its file has gone or is another's.
    """
    rule = internals.callback(job.trainer, Checkpoints)
    path = job.directory / "checkpoints" / checkpoint.BEST
    if path.is_file():
        loaded = checkpoint.read_own(path, job.name)
        if rule is None or rule.best_epoch is None or rule.is_best(loaded):
            return path
        state = f"of epoch {loaded['epoch'] + 1}"
    elif rule is None or rule.best_epoch is None:
        return None
    else:
        state = "missing"
    raise UserError(
        f"{path}: {state}, though epoch {rule.best_epoch + 1} was the best; put it "
        f"back, or test the last one: evaluate run={job.directory} ckpt=last"
    )


# --- out of memory -----------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for CUDA's, Python's, and the error of torch's allocator for CPUs."""
    kinds = torch.OutOfMemoryError | MemoryError
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def out_of_memory(job: Job) -> UserError:
    """The error of a training that has run out of memory: it names a batch that fits.

    The caller has let go of the error's traceback, whose frames hold tensors.
    """
    device = job.module.device
    job.module.zero_grad(set_to_none=True)
    fits = fitting_batch(job)
    hint = "a smaller network might" if fits is None else f"data.batch_size={fits} does"
    return UserError(
        f"data.batch_size: {job.data.batch_size} images do not fit into the memory of "
        f"{device}; {hint}; the learning rate may have to change with it"
    )


def fitting_batch(job: Job) -> int | None:
    """The largest half, quarter, eighth, … of a batch whose step goes through."""
    net, device = copy.deepcopy(job.module.net).train(), job.module.device
    batch = job.data.batch_size
    while batch > 1:
        batch //= 2
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            images = torch.zeros(batch, 3, *job.data.image_size, device=device)
            forward_backward(net, job.trainer, images)
            return batch
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None
    return None
