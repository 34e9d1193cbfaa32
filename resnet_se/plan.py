"""What a sweep would cost, and whether every job of it can work, before it is launched.

    python -m resnet_se.plan 'experiment=glob(e*)' seed=0,1,2 budget=short

Composes and builds every job that `train -m` with the same overrides would run, takes
two timed steps and one evaluation batch of each, and prints parameters, MMAC, peak
memory, time and disk.  Times are this machine's, now, with validation, test and TTA.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from resnet_se.config import (
    CONF,
    EXPECTED,
    check_config,
    config_hash,
    experiment_name,
    explain,
)
from resnet_se.datamodule import EVAL_BATCH_SIZE, ImageDataModule
from resnet_se.resnet import describe
from resnet_se.results import peak_memory_mb, reset_peak_memory
from resnet_se.train import (
    build_classifier,
    build_data,
    choose_precision,
    quiet,
)
from resnet_se.train import console as train_console

WARMUP_STEPS, TIMED_STEPS = 1, 2


class Cost(NamedTuple):
    """One job's measured and estimated cost."""

    total: int  # parameters
    macs: int
    memory_mb: float
    seconds: float
    disk_mb: float


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a multirun, as Hydra's own sweeper expands them."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    batches = BasicSweeper.split_arguments(parser.parse_overrides(overrides), None)
    return [job for batch in batches for job in batch]


def compose_job(overrides: list[str]) -> DictConfig:
    """The configuration that `train` would be called with."""
    cfg = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    check_config(cfg)
    cfg.run_dir = ""
    return cfg


def measure(cfg: DictConfig, data: ImageDataModule) -> Cost:
    """Builds the job, takes its steps, and extrapolates to its whole length."""
    model = build_classifier(cfg, data.num_classes)
    facts = describe(model.net, data.image_size[0])
    train_console.quiet = True  # what a run says of itself is not asked for here
    try:
        precision = choose_precision(cfg, model.net, data.image_size)
    finally:
        train_console.quiet = False
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    model.to(device)
    reset_peak_memory(device)

    steps = _limited(len(data.train_dataloader()), cfg.trainer.limit_train_batches)
    epochs = cfg.trainer.max_epochs
    optimizer = model.make_optimizer(model.net)
    model.make_schedule(optimizer, steps, epochs)  # checks itself
    images = data.train_part[0][: data.batch_size].to(device)
    labels = data.train_part[1][: data.batch_size].to(device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, precision == "bf16-mixed")

    def step() -> None:
        batch = data.on_after_batch_transfer((images, labels), 0)
        x, targets = model.mixing(*batch, model.num_classes)
        with autocast():
            loss = F.cross_entropy(model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def look() -> None:
        part = data.val_part[0][:EVAL_BATCH_SIZE].to(device)
        batch = data.on_after_batch_transfer((part, labels), 0)
        with autocast():
            model(batch[0])

    step_seconds = _timed(step, device)
    model.eval()
    look_seconds = _timed(look, device) / min(EVAL_BATCH_SIZE, len(data.val_part[0]))
    trainer = cfg.trainer
    val = _limited_images(len(data.val_part[0]), trainer.limit_val_batches)
    test = _limited_images(len(data.test_part[0]), trainer.limit_test_batches)
    views = len(model.tta.views) if model.tta else 1
    seconds = epochs * steps * step_seconds
    seconds += ((epochs + 1) * val + test * views) * look_seconds
    tensors = [*model.state_dict().values()]
    tensors += [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    checkpoint = sum(t.numel() * t.element_size() for t in tensors)
    return Cost(
        facts["total"],
        facts["macs"],
        peak_memory_mb(device),
        seconds,
        2 * checkpoint / 1e6,  # best and last; the rest of a run is small
    )


def _timed(call: Any, device: torch.device) -> float:
    """Seconds of one call, the mean of a few after a warm-up."""
    for i in range(WARMUP_STEPS + TIMED_STEPS):
        if i == WARMUP_STEPS:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / TIMED_STEPS


def _limited(batches: int, limit: float) -> int:
    """Lightning's `limit_…_batches`: an integer is a number, a float a share."""
    many = limit if isinstance(limit, int) else math.floor(batches * limit)
    return min(batches, many)


def _limited_images(images: int, limit: float) -> int:
    batches = _limited(math.ceil(images / EVAL_BATCH_SIZE), limit)
    return min(images, batches * EVAL_BATCH_SIZE)


def main() -> None:
    """Console entry: `resnet-se plan …`."""
    quiet()
    console = Console()
    table = Table(title="plan")
    for name in ("job", "parameters", "MMAC", "memory MB", "minutes", "disk MB"):
        table.add_column(name, justify="left" if name == "job" else "right")
    known: dict[str, Cost] = {}
    modules: dict[str, ImageDataModule] = {}
    sums = [0.0, 0.0]
    failures: list[str] = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            jobs = expand(sys.argv[1:])
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            print(f"error: {explain(error)}", file=sys.stderr)
            sys.exit(2)
        for number, overrides in enumerate(jobs):
            name = f"{number} {' '.join(overrides)}"
            try:
                cfg = compose_job(overrides)
                name = f"{number} {experiment_name()} seed {cfg.seed}"
                data = build_data(cfg)
                key = data.locate()
                digest = config_hash(cfg, key)
                if digest not in known:
                    source = f"{key} {data.val_fraction} {data.train_subset}"
                    if source in modules:
                        _share(modules[source], data)
                    data.setup()
                    modules[source] = data
                    known[digest] = measure(cfg, data)
                cost = known[digest]
            except EXPECTED as error:
                failures.append(f"{name}: {explain(error)}")
                table.add_row(name, "[red]cannot work", "", "", "", "")
                continue
            sums = [sums[0] + cost.seconds, sums[1] + cost.disk_mb]
            table.add_row(
                name,
                f"{cost.total:,}",
                f"{cost.macs / 1e6:.1f}",
                f"{cost.memory_mb:,.0f}",
                f"{cost.seconds / 60:,.1f}",
                f"{cost.disk_mb:,.0f}",
            )
    table.add_section()
    table.add_row(
        f"{len(jobs)} jobs", "", "", "", f"{sums[0] / 60:,.1f}", f"{sums[1]:,.0f}"
    )
    console.print(table)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(2)


def _share(loaded: ImageDataModule, fresh: ImageDataModule) -> None:
    """The same pixels are not decoded and dealt out again for the next job."""
    for name in ("images", "train_part", "val_part", "test_part", "mean", "std"):
        setattr(fresh, name, getattr(loaded, name))


if __name__ == "__main__":
    main()
