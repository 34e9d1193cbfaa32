"""The cost of a run on this machine, by a few timed steps; times of forward passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from resnet_se.config.build import build_module
from resnet_se.config.settle import Run
from resnet_se.data.loaders import EVAL_BATCH_SIZE
from resnet_se.data.resolution import Size, downsample
from resnet_se.inference.distillation import make_criterion
from resnet_se.models.complexity import network_summary
from resnet_se.training.preparation import check_sizes
from resnet_se.utils.system import accelerator, now, peak_memory_mb, reset_peak_memory

WARMUP_STEPS, TIMED_STEPS = 1, 2


class Cost(NamedTuple):
    """One job's measured and estimated cost."""

    total: int  # parameters
    macs: int
    memory_mb: float
    seconds: float
    disk_mb: float


def measure(run: Run) -> Cost:
    """Build the job of a run whose data are read, take its steps, and extrapolate."""
    recipe, data, precision = run.recipe, run.data, run.environment.precision
    criterion = make_criterion(
        recipe.get("distill"),
        data,
        recipe["distill_weight"],
        recipe["distill_temperature"],
        (recipe.get("loss") or {}).get("class_weights"),
    )
    model = build_module(recipe, data.num_classes, criterion=criterion)
    check_sizes(model.net, data)
    counts = network_summary(model.net, data.image_size[0])
    device = torch.device(accelerator(recipe.trainer["accelerator"]))
    model.to(device)
    reset_peak_memory(device)

    steps = _limited(
        len(data.train_dataloader()), recipe.trainer["limit_train_batches"]
    )
    epochs = recipe.trainer["max_epochs"]
    optimizer = model.new_optimizer(model.net)
    model.new_schedule(optimizer, steps, epochs)  # checks itself
    batch = data.train_part[0][: data.batch_size].to(device)
    labels = data.train_part[1][: data.batch_size].to(device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, precision == "bf16-mixed")

    def step(size: Size) -> None:
        images, _ = data.on_after_batch_transfer((batch, labels), 0)
        images = downsample(images, size)
        x, targets = model.mixing(images, labels, model.num_classes)
        with autocast():
            loss = model.criterion(x, model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def evaluate() -> None:
        part = data.val_part[0][:EVAL_BATCH_SIZE].to(device)
        images, _ = data.on_after_batch_transfer((part, labels), 0)
        with autocast():
            model(images)

    epochs_of = Counter(data.resolution.sizes(data.image_size))
    step_seconds = {size: _timed(partial(step, size), device) for size in epochs_of}
    model.eval()
    evaluation_seconds = _timed(evaluate, device) / min(
        EVAL_BATCH_SIZE, len(data.val_part[0])
    )
    trainer = recipe.trainer
    val = _limited_images(len(data.val_part[0]), trainer["limit_val_batches"])
    test = _limited_images(len(data.test_part[0]), trainer["limit_test_batches"])
    views = len(model.tta.views) if model.tta else 1
    seconds = sum(n * steps * step_seconds[size] for size, n in epochs_of.items())
    seconds += ((epochs + 1) * val + test * views) * evaluation_seconds
    tensors = [*model.state_dict().values()]
    tensors += [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    checkpoint = sum(t.numel() * t.element_size() for t in tensors)
    return Cost(
        counts["total"],
        counts["macs"],
        peak_memory_mb(device),
        seconds,
        2 * checkpoint / 1e6,  # best and last; the rest of a run is small
    )


def _timed(call: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one call, the mean of a few after a warm-up."""
    for _ in range(WARMUP_STEPS):
        call()
    start = now(device)
    for _ in range(TIMED_STEPS):
        call()
    return (now(device) - start) / TIMED_STEPS


def _limited(batches: int, limit: float) -> int:
    """Apply Lightning's `limit_…_batches`: an integer is a number, a float a share."""
    most = limit if isinstance(limit, int) else math.floor(batches * limit)
    return min(batches, most)


def _limited_images(images: int, limit: float) -> int:
    batches = _limited(math.ceil(images / EVAL_BATCH_SIZE), limit)
    return min(images, batches * EVAL_BATCH_SIZE)
