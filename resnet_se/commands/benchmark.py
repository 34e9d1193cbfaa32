"""Benchmark: the training speed of a network, beside the machine's roof; interleaved.

    resnet-se benchmark model=se_resnet80 batch_size=128 out=PATH
    resnet-se benchmark model=se_resnet80 batch_size=128 devices=2

The first compares the usual way with ours (`variants`).  The second compares one device
with several: processes with a share of the cores each, or a GPU, train a batch each
(`weak`), share one (`strong`), or wait while the first trains (`one share`; `one
whole`: on all cores).

All cases take turns (`timing`).

The roof is the most FLOP/s of a few matrix products and convolutions in the variant's
own precision: which of them is the fastest differs between processors.  A step takes
3 × 2 × the forward pass's multiply-accumulates an image: the gradients of inputs and
weights cost a forward pass each, and a multiply and an add are two operations.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from resnet_se.analysis.timing import (
    WARMUP,
    Case,
    Stopwatch,
    compare,
    print_table,
    take_turns,
    write,
)
from resnet_se.commands.app import run_command
from resnet_se.config import build
from resnet_se.config.recipe import Recipe
from resnet_se.config.schema import COMMANDS
from resnet_se.config.settle import settle
from resnet_se.config.validate import validate
from resnet_se.data.datamodule import Engine, ImageDataModule
from resnet_se.models.complexity import network_summary
from resnet_se.training import preparation
from resnet_se.training.callbacks.progress import Forecast
from resnet_se.training.module import Classifier
from resnet_se.utils import distributed, system
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.console import console
from resnet_se.utils.errors import UserError

# Sides n of products (n, n) @ (n, n); B, C, H = W of 3×3 convolutions of C filters.
ROOF_PRODUCTS = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
ROOF_CONVOLUTIONS = {
    "cpu": ((32, 128, 32), (32, 256, 16)),
    "cuda": ((512, 256, 32), (512, 512, 16)),
}
PRECISIONS = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to train: a Trainer with all its callbacks, or a bare loop."""

    name: str
    trainer: bool = True
    engine: Engine = "batched"
    channels_last: bool = True
    precision: str = "32-true"
    compile: str = "off"


def variants(precision: str, on_gpu: bool) -> dict[str, Variant]:
    """From the usual way to ours: b to e change one thing each."""
    ways = {
        "a": Variant("plain loop, torchvision", False, "torchvision", False),
        "b": Variant("Trainer, torchvision", True, "torchvision", False),
        "c": Variant("Trainer, batched", channels_last=False),
        "d": Variant(f"… channels-last, {precision}", precision=precision),
        "e": Variant("… compile=default", precision=precision, compile="default"),
        "f": Variant("bare loop of d's step", False, precision=precision),
    }
    if on_gpu:
        mode = "cuda_graphs"
        ways["g"] = Variant(f"… compile={mode}", precision=precision, compile=mode)
    return ways


def roof(device: torch.device, precision: str) -> float:
    """Return the most FLOP/s of the roof's products and convolutions."""
    kind, dtype = device.type, PRECISIONS[precision]
    if kind not in ROOF_PRODUCTS:
        kind = "cpu"

    def operand(*shape: int) -> Tensor:
        return torch.rand(shape, device=device).to(dtype)

    work: list[tuple[int, Callable[[], Tensor]]] = []
    for n in ROOF_PRODUCTS[kind]:
        matrix = operand(n, n)
        work.append((2 * n**3, partial(torch.matmul, matrix, matrix)))
    for b, c, side in ROOF_CONVOLUTIONS[kind]:
        pair = operand(b, c, side, side), operand(c, c, 3, 3)
        x, w = (t.to(memory_format=torch.channels_last) for t in pair)
        work.append((2 * b * side**2 * 9 * c**2, partial(F.conv2d, x, w, padding=1)))
    return max(
        flop / Stopwatch(device, 5).time(repeat(call), lambda call: call())
        for flop, call in work
    )


# --- training ----------------------------------------------------


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, precision == "bf16-mixed")


def training_step(
    model: Classifier, device: torch.device, precision: str, several: bool = False
) -> Callable[[Batch], None]:
    """A step of `model` with a new optimizer, alone or in a group of processes."""
    model.to(device).train()  # a Trainer leaves it on the CPU
    optimizer = model.new_optimizer(model.net)
    forward = DistributedDataParallel(model) if several else model

    def step(batch: Batch) -> None:
        images, targets = model.mixing(*batch, model.num_classes)
        with autocast(device, precision):
            loss = F.cross_entropy(forward(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Runner:
    """One device's training, as each variant does it; and the same data alone."""

    def __init__(self, recipe: Recipe, data: ImageDataModule, steps: int):
        self.recipe, self.data, self.steps = recipe, data, steps
        self.trainer = build.build_trainer(recipe)
        self.device = self.trainer.strategy.root_device
        self._start("torchvision")  # an epoch that is too short shows now
        self._built: dict[Variant, Classifier] = {}

    def model(self, variant: Variant, about: dict[str, Any]) -> Classifier:
        """The variant's network; what compiling it took goes into `about`.

        Raises:
            UserError: `variant.compile` does not work here.
        """
        if variant in self._built:
            return self._built[variant]
        model = build.build_module(self.recipe, self.data.num_classes)
        if not variant.channels_last:
            model.memory_format = torch.contiguous_format
            model.net.to(memory_format=torch.contiguous_format)
        trainer = build.build_trainer(self.recipe, precision=variant.precision)
        batch = self.data.batch_size, [self.data.image_size]
        about["compile_seconds"] = preparation.compile_network(
            model, trainer, variant.compile, *batch
        )
        self._built[variant] = model
        return model

    def train(self, variant: Variant, about: dict[str, Any]) -> float:
        """Images per second of a turn, which is an epoch of a Trainer."""
        model = self.model(variant, about)
        watch, batches = self._start(variant.engine)
        if variant.trainer:  # a new one: a used one may be at its last epoch
            trainer = build.build_trainer(self.recipe, precision=variant.precision)
            trainer.limit_train_batches = watch.warmup + watch.steps
            trainer.limit_val_batches = 0
            # No forecast of a training that ends after these steps.
            kept = [c for c in internals.callbacks(trainer) if type(c) is not Forecast]
            internals.callbacks(trainer)[:] = [*kept, watch]
            trainer.fit(model, datamodule=self.data)
        else:
            step = training_step(model, self.device, variant.precision)
            watch.time(batches, lambda batch: step(self._on_device(batch)))
        model.zero_grad()  # the others need the memory
        return self.data.batch_size / watch.seconds

    def load(self, engine: Engine) -> float:
        """Images per second of loading and augmentation alone."""
        watch, batches = self._start(engine)
        return self.data.batch_size / watch.time(batches, self._on_device)

    @torch.inference_mode()
    def infer(self, variant: Variant, n: int) -> float:
        """Images per second forward, n at a time; eager, channels last."""
        model = self.model(variant, {})
        images = torch.zeros(n, 3, *self.data.image_size, device=self.device)
        model.to(self.device).eval()
        with autocast(self.device, self.recipe.trainer["precision"]):
            return n / Stopwatch(self.device, self.steps).time(repeat(images), model)

    def _start(self, engine: Engine) -> tuple[Stopwatch, Iterable[Batch]]:
        """Warms up until what the loader's workers have prefetched is used up."""
        self.data = self.data.with_engine(engine)
        batches = self.data.training_batches(self.device)
        ahead = 2 * getattr(batches, "num_workers", 0)  # batches, torch's default
        warmup = WARMUP.get(self.device.type, 2) + ahead
        if warmup + self.steps > len(batches):
            raise UserError(
                f"batch_size: expected an epoch of {warmup} batches to warm up and "
                f"{self.steps} to measure, got {len(batches)}; take a smaller one"
            )
        return Stopwatch(self.device, self.steps, warmup), batches

    def _on_device(self, batch: Batch) -> Batch:
        """Return normalised images and labels as a Trainer gives them to its module."""
        images, labels = (t.to(self.device, non_blocking=True) for t in batch)
        return self.data.on_after_batch_transfer((images, labels), 0)


def training_cases(runner: Runner) -> dict[str, Case]:
    """The roof, the variants, either data path alone, and inference.

    What is compiled comes last: on a GPU that takes minutes, which may not be there.
    """
    precision, device = runner.recipe.trainer["precision"], runner.device
    ways = variants(precision, device.type == "cuda")
    cases = {
        f"roof {p}": Case("FLOP/s", partial(roof, device, p), {}) for p in PRECISIONS
    }
    trained = {}
    for letter, way in ways.items():
        about = asdict(way)
        trained[letter] = Case("images/s", partial(runner.train, way, about), about)
    cases |= {k: v for k, v in trained.items() if v.about["compile"] == "off"}
    for engine in get_args(Engine)[::-1]:
        cases[f"data, {engine}"] = Case("images/s", partial(runner.load, engine), {})
    for n in (1, 128, 1024):
        sample = partial(runner.infer, ways["f"], n)
        cases[f"inference, {n}"] = Case("images/s", sample, {})
    return cases | trained


def scaling_cases(recipe: Recipe, data: ImageDataModule, steps: int) -> dict[str, Case]:
    """One device, and all of this group; and the all-reduce of the gradients alone."""
    device = torch.device(system.accelerator(recipe.trainer["accelerator"]))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    n, batch, precision = (
        distributed.world_size(),
        data.batch_size,
        recipe.trainer["precision"],
    )
    images = data.first_images(batch).to(device)  # (B, 3, H, W)
    labels = data.train_part[1][:batch].to(device)
    model, shared = (build.build_module(recipe, data.num_classes) for _ in "ab")
    alone = training_step(model, device, precision)
    together = training_step(shared, device, precision, several=True)

    def sample(step: Any, processes: int, size: int, threads: int) -> float:
        torch.set_num_threads(threads)
        rate = 0.0
        if processes > 1 or distributed.is_leader():
            batches = repeat((images[:size], labels[:size]))
            rate = processes * size / Stopwatch(device, steps).time(batches, step)
        dist.barrier()  # where the others wait
        return rate

    cores = system.usable_cores()
    part = max(1, cores // n)
    cases = {}
    for name, step, *settings in (
        ("one share", alone, 1, batch, part),
        ("weak", together, n, batch, part),
        ("strong", together, n, max(1, batch // n), part),
        ("one whole", alone, 1, batch, cores),  # as `one share` on a GPU
    ):
        about = dict(zip(("processes", "batch_size", "threads"), settings, strict=True))
        cases[name] = Case("images/s", partial(sample, step, *settings), about)
    for numbers in (1, sum(p.numel() for p in model.parameters() if p.requires_grad)):
        values = repeat(torch.zeros(numbers, device=device))
        reduce = partial(Stopwatch(device, 4 * steps).time, values, dist.all_reduce)
        cases[f"all-reduce, {4 * numbers:,} bytes"] = Case("s", reduce, {})
    return cases


# --- the command -------------------------------------------------


def benchmark(cfg: DictConfig) -> None:
    """Measures, prints the table and writes `out`.

    Raises:
        UserError: a mistake in the configuration, before anything is measured.
    """
    own, recipe = split_config(cfg)
    run = settle(recipe)
    recipe, data = run.recipe, run.data
    data.setup()
    precision = run.environment.precision
    if own["devices"] > 1 and not distributed.in_group():
        overrides = [*recipe.overrides, f"trainer.precision={precision}"]
        module = "resnet_se.commands.benchmark"
        try:
            distributed.launch(module, overrides, own["devices"])  # all have the same
        except distributed.Stopped:
            raise KeyboardInterrupt from None
        return
    net = build.build_module(recipe, data.num_classes).net
    device = torch.device(system.accelerator(recipe.trainer["accelerator"]))
    if device.type == "cpu":
        system.keep_freed_memory()  # as training does
    result: dict[str, Any] = {
        "complete": False,
        **system.environment(),
        "hardware": system.hardware(device, precision, distributed.world_size()),
        "data": data.describe(),
        "model": network_summary(net, data.image_size[0]),
        "settings": own | {"threads": torch.get_num_threads()},
        "setting": recipe["model"],
        "skipped": {},
        "figures": {},
    }
    write(own["out"], result)  # a mistake in the path shows now
    try:
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipe.at(Path(folder))  # for what callbacks write
            if distributed.in_group():
                dist.init_process_group()
                cases = scaling_cases(recipe, data, own["steps"])
            else:
                cases = training_cases(Runner(recipe, data, own["steps"]))
            take_turns(cases, result)
            result["complete"] = True
    except SystemExit:  # Lightning's for Ctrl-C, after which it ignores further ones
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None
    finally:
        if distributed.is_leader():
            compare(result)
            print_table(result)
        write(own["out"], result)
        if dist.is_initialized():
            dist.destroy_process_group()


def split_config(cfg: DictConfig) -> tuple[dict[str, Any], Recipe]:
    """The benchmark's own keys, and the recipe of the training to measure.

    Raises:
        UserError: a key that nothing reads, or a value out of its range.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    own = {key: plain.pop(key) for key in COMMANDS["benchmark"]}
    if "download" in plain["data"]["source"]:
        plain["data"]["source"]["download"] = False
    plain["data"]["resolution"] = None  # a step is one of the images' own size
    recipe = validate(OmegaConf.create(plain))
    on_cpu = system.accelerator(recipe.trainer["accelerator"]) != "cuda"
    # On a CPU a process stands for a device.
    there = system.usable_cores() if on_cpu else torch.cuda.device_count()
    if own["devices"] > there:
        raise UserError(f"devices: expected 1..{there}, got {own['devices']!r}")
    return own, recipe


def main() -> None:
    """Console entry: `resnet-se benchmark …`."""
    distributed.die_with_parent()
    distributed.share_cores()
    console.quiet = not distributed.is_leader()
    run_command(benchmark, "benchmark")


if __name__ == "__main__":
    main()
