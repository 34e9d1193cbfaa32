"""How fast a network trains here, the usual way and ours, measured in turns.

    python -m resnet_se.benchmark model=se_resnet80 batch_size=128 out=PATH

Six variants of one training take turns in one process, a chunk of steps each, round
after round, so that what else happens on the machine meets all of them.  A figure is
the median of its chunks, the spread their minimum and maximum; every sample is kept.

    a  the usual way: a plain loop, torchvision image by image in a DataLoader with as
       many workers as cores, float32, NCHW
    b  the Trainer, torchvision engine, float32, NCHW
    c  the Trainer, batched engine, float32, NCHW
    d  … + channels_last + the precision that `trainer.precision` says (auto: bf16 where
       it is faster)
    e  … + torch.compile, on a GPU with CUDA graphs
    f  a bare loop of the very same step as the best of b to e: no Trainer, callbacks,
       metrics or schedule

A chunk begins with steps that are not counted: the first are slow, and the workers of a
loader prefetch.  Time runs from the end of one step to the end of another, on a GPU
with a synchronisation at either and none between.  Loading and augmentation are in it.
"""

from __future__ import annotations

import json
import math
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from resnet_se.classifier import Classifier
from resnet_se.checks import build, check_config
from resnet_se.config import explain, run
from resnet_se.datamodule import ImageDataModule
from resnet_se.errors import UserError, nearest
from resnet_se.ranks import (
    Stopped,
    in_group,
    is_leader,
    launch,
    share_cores,
    world_size,
)
from resnet_se.resnet import describe
from resnet_se.results import (
    atomic_file,
    environment,
    hardware,
    peak_memory_mb,
    reset_peak_memory,
    usable_cores,
)
from resnet_se.train import (
    PLACES,
    build_classifier,
    build_data,
    build_trainer,
    choose_precision,
    compile_net,
    console,
    quiet,
)

OWN = ("batch_size", "devices", "size", "out")  # keys that `train` does not have

Batch = tuple[Tensor, Tensor]

PREFETCH = 2  # batches that each worker of a DataLoader has ready: torch's default
INFERENCE_BATCHES = (1, 128, 1024)
EPOCH = 45_000  # CIFAR-10's training images without the validation part


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    steps: tuple[int, int]  # of a chunk: at least, at most
    seconds: float  # that a chunk of the fastest variant should take


SIZES = {"normal": Size(3, (4, 200), 5.0), "smoke": Size(2, (2, 2), 0.0)}

# Steps at the head of a chunk.  A GPU's clocks rise and CUDA graphs are captured.
WARMUP = {"cpu": 2, "cuda": 10}


class Card(NamedTuple):
    """A GPU's peaks by its data sheet: dense bf16 FLOP/s, and bytes/s of its memory."""

    bf16: float
    bandwidth: float


CARDS = {  # part of the name that CUDA reports: peaks
    r"H100 80GB HBM3": Card(989e12, 3.35e12),
    r"H100 PCIe": Card(756e12, 2.0e12),
    r"H200": Card(989e12, 4.8e12),
    r"A100.*40GB": Card(312e12, 1.555e12),
    r"A100.*80GB": Card(312e12, 2.039e12),
    r"RTX 4090\b": Card(165e12, 1.008e12),
    r"L4\b": Card(121e12, 0.3e12),
}


def find_card(name: str) -> Card | None:
    """The peaks of a GPU by the name that CUDA reports; None if it is not known."""
    return next((c for part, c in CARDS.items() if re.search(rf"\b{part}", name)), None)


# --- counting bytes ----------------------------------------------


class Traffic(TorchDispatchMode):
    """Counts the bytes that the operators inside it read and write.

    Each operator reads every tensor that it is given, and writes every one that it
    makes or changes, once; a view moves nothing.  That is the traffic of a step whose
    operators run one by one and share no cache: an upper bound where they are fused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        takes, gives = func._schema.arguments, func._schema.returns
        given = dict(zip((a.name for a in takes), args, strict=False)) | kwargs
        returned = (result,) if len(gives) == 1 else result or ()
        made = [
            value
            for value, what in zip(returned, gives, strict=True)
            if what.alias_info is None
        ]
        changed = {a.name: given.get(a.name) for a in takes if _is_changed(a)}
        written = _bytes(made) + _bytes(changed)
        name = func._schema.name.removeprefix("aten::")
        if not written or name.startswith(("empty", "new_empty")):
            return result  # a view, or nothing is filled in
        if name in ("copy_", "fill_", "zero_"):  # whatever was there
            given = {k: v for k, v in given.items() if k not in changed}
        elif name.endswith("_like") or name.startswith("new_"):  # its shape alone
            given = {}
        self.bytes += _bytes(given) + written
        return result


def _is_changed(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _bytes(nest: Any) -> int:
    """What the tensors in a nest take; an expanded one no more than is stored of it."""
    return sum(
        min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
        for t in tree_leaves(nest)
        if isinstance(t, Tensor)
    )


# --- taking the time ---------------------------------------------


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """The seconds of `steps` steps after `warmup` >= 1 others."""

    def __init__(self, device: torch.device, warmup: int, steps: int):
        self.device = device
        self.warmup = warmup
        self.last = warmup + steps
        self.seconds = math.nan
        self.resident_mb: float | None = None

    def lap(self, done: int) -> None:
        """To be told after each step how many are done."""
        if done == self.warmup:
            self.start = now(self.device)
        elif done == self.last:
            self.seconds = now(self.device) - self.start
            self.resident_mb = resident_mb()  # while a loader's workers live

    def time(self, batches: Iterable[Batch], step: Callable[[Batch], Any]) -> Stopwatch:
        """Takes as many steps as it needs."""
        for i, batch in enumerate(islice(batches, self.last)):
            step(batch)
            self.lap(i + 1)
        return self


def resident_mb() -> float | None:
    """MB (10⁶ bytes) that this process and its children hold, pages they share counted
    once; None where the system does not say (it is not Linux)."""
    found, waiting = 0, ["self"]
    while waiting:
        folder = Path("/proc", waiting.pop())
        with suppress(OSError):  # a child may end meanwhile
            rollup = (folder / "smaps_rollup").read_text()
            share = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
            found += int(share[1]) if share else 0
            for task in (folder / "task").iterdir():
                waiting += (task / "children").read_text().split()
    return found * 1024 / 1e6 if found else None


def summary(samples: list[float]) -> dict[str, Any]:
    """The fields that every figure in images per second has."""
    return {
        "images_per_second": statistics.median(samples),
        "spread": [min(samples), max(samples)],
        "samples": list(samples),
    }


# --- several devices ---------------------------------------------


def cores() -> int:
    """CPU cores for one of them."""
    return max(1, usable_cores() // world_size())


def agreed(value: Any) -> Any:
    """Rank 0's value, so that what is measured on each leads to the same steps."""
    if dist.is_initialized():
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value


def distributed(net: nn.Module) -> nn.Module:
    """`net`, its gradients averaged over the ranks."""
    return DistributedDataParallel(net) if dist.is_initialized() else net


# --- the variants ------------------------------------------------


@dataclass(frozen=True)
class Way:
    """What one variant does."""

    name: str
    engine: str
    channels_last: bool = False
    precision: str = "32-true"
    compile: str = "off"


def ways(precision: str, compile: str) -> dict[str, Way]:
    """Variants b to e; each changes one thing of the one before it."""
    b = Way("Trainer, torchvision", "torchvision")
    c = replace(b, name="Trainer, batched", engine="batched")
    name = f"… channels_last, {precision}"
    d = replace(c, name=name, channels_last=True, precision=precision)
    e = replace(d, name=f"… compile={compile}", compile=compile)
    return {"b": b, "c": c, "d": d, "e": e}


class PlainImages(Dataset):
    """Image by image, as torchvision's data sets: float (3, H, W) and label."""

    def __init__(self, images: Tensor, labels: Tensor, transform: v2.Transform):
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Batch:
        return self.transform(self.images[i]), self.labels[i]


class PlainLoop:
    """Variant a, the loop of a tutorial; of ours are the network and the optimizer."""

    way = Way("plain loop, torchvision", "torchvision")

    def __init__(self, cfg: DictConfig, data: ImageDataModule, device: torch.device):
        self.device = device
        net = build("model", cfg.model, num_classes=data.num_classes).to(device)
        self.net = distributed(net)
        # torch's own default: not fused.
        options = {"fused": None} if "fused" in cfg.optimizer else {}
        self.optimizer = build("optimizer", cfg.optimizer, **options)(net)
        augment = replace(data.augment, alternate_flip=False)
        steps = [
            augment.transform(*data.image_size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*(values.tolist() for values in data.statistics)),
        ]
        images = PlainImages(*data.train_part, v2.Compose([s for s in steps if s]))
        several = world_size() > 1
        self.workers = cores()
        self.loader = DataLoader(
            images,
            batch_size=data.batch_size,
            shuffle=not several,
            sampler=DistributedSampler(images) if several else None,
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )

    def chunk(self, warmup: int, steps: int) -> Stopwatch:
        self.net.train()
        return Stopwatch(self.device, warmup, steps).time(self.loader, self.step)

    def step(self, batch: Batch) -> None:
        images, labels = (t.to(self.device, non_blocking=True) for t in batch)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(images), labels)
        loss.backward()
        self.optimizer.step()


class Laps(L.Callback):
    """Lets a stopwatch see a Trainer's steps, and ends the fit with the epoch."""

    def __init__(self, watch: Stopwatch):
        self.watch = watch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self.watch.lap(index + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.should_stop = True


class WithTrainer:
    """Variants b to e: a chunk is one epoch of a Trainer with all its callbacks.

    Raises:
        UserError: `way.compile` does not work here.
    """

    def __init__(self, cfg: DictConfig, data: ImageDataModule, way: Way):
        self.data = data
        self.way = way
        self.cfg = cfg = cfg.copy()
        cfg.trainer.compile = way.compile
        self.model = build_classifier(cfg, data.num_classes)
        if not way.channels_last:
            self.model.memory_format = torch.contiguous_format
            self.model.net.to(memory_format=torch.contiguous_format)
        self.trainer = build_trainer(cfg, way.precision)
        self.device = self.trainer.strategy.root_device
        shape = data.batch_size, 3, *data.image_size
        self.compile_seconds = compile_net(cfg, self.model, self.trainer, shape)
        self.workers = getattr(self.loader(), "num_workers", 0)

    def loader(self) -> Iterable[Batch]:
        self.data.engine = self.way.engine
        return self.data.train_dataloader()

    def chunk(self, warmup: int, steps: int) -> Stopwatch:
        self.data.engine = self.way.engine
        # A new one: an old one may be at the end of its epochs.
        trainer = build_trainer(self.cfg, self.way.precision)
        trainer.limit_train_batches = warmup + steps
        watch = Stopwatch(self.device, warmup, steps)
        trainer.callbacks.append(Laps(watch))
        trainer.fit(self.model, datamodule=self.data)
        self.model.zero_grad()  # the others need the memory
        return watch


class BareLoop:
    """Variant f: network, optimizer, batches and precision of another, and no more."""

    def __init__(self, base: WithTrainer):
        self.base = base
        self.way = replace(base.way, name="bare loop")
        self.workers = base.workers

    def chunk(self, warmup: int, steps: int) -> Stopwatch:
        base = self.base
        step = make_step(base.model, base.device, base.way.precision)

        def whole_step(batch: Batch) -> None:
            step(on_device(batch, base.data, base.device))

        watch = Stopwatch(base.device, warmup, steps)
        watch.time(base.loader(), whole_step)
        base.model.zero_grad()
        return watch


def on_device(batch: Batch, data: ImageDataModule, device: torch.device) -> Batch:
    """What a Trainer hands to its module: normalised images (B, 3, H, W) and labels."""
    moved = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
    return data.on_after_batch_transfer(moved, 0)


def make_step(
    model: Classifier, device: torch.device, precision: str
) -> Callable[[Batch], None]:
    """A training step of `model`, with a new optimizer."""
    model.to(device).train()  # a Trainer leaves it on the CPU
    optimizer = model.make_optimizer(model.net)
    forward = distributed(model)

    def step(batch: Batch) -> None:
        images, targets = model.mixing(*batch, model.num_classes)
        with autocast(device, precision):
            loss = F.cross_entropy(forward(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, precision == "bf16-mixed")


# --- the measurement ---------------------------------------------


class Benchmark:
    """The measurement; `result` is its record, at any time true to what is done.

    Raises:
        UserError: a mistake in the configuration.
    """

    def __init__(self, cfg: DictConfig, size: Size):
        self.cfg = cfg
        self.size = size
        self.data = data = build_data(cfg)
        data.locate()
        if data.fell_back:
            say("images not found (RESNET_SE_DATA says where): synthetic ones instead")
        data.setup()
        net = build_classifier(cfg, data.num_classes).net
        precision = agreed(choose_precision(cfg, net, data.image_size))
        self.eager = WithTrainer(cfg, data, ways(precision, "off")["d"])
        data.trainer = self.eager.trainer  # whose device the data module asks for
        self.device = device = self.eager.device
        compile = cfg.trainer.compile or "off"
        if compile == "off":
            compile = "cuda_graphs" if device.type == "cuda" else "default"
        self.ways = ways(precision, compile)
        self.warmup = WARMUP.get(device.type, WARMUP["cpu"])
        self.batch = data.batch_size * world_size()  # of all devices
        self.batches = len(data.train_part[0]) // self.batch
        if self.batches < self.warmup + size.steps[0]:
            steps = (self.warmup + size.steps[0]) * world_size()
            most = len(data.train_part[0]) // steps
            raise UserError(
                f"batch_size: expected at most {most}, so that {self.warmup} steps to "
                f"warm up and {size.steps[0]} to measure are an epoch, got "
                f"{data.batch_size}"
            )
        self.runners: dict[str, PlainLoop | WithTrainer | BareLoop] = {}
        self.step_seconds: dict[str, float] = {}  # by the pilot
        self.result: dict[str, Any] = {
            "complete": False,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **environment(),
            "hardware": hardware(device, precision),
            "data": data.describe(),
            "model": describe(net, data.image_size[0]),
            "settings": {
                "batch_size": data.batch_size,
                "devices": cfg.trainer.devices,
                "rounds": size.rounds,
                "threads": torch.get_num_threads(),
                "augment": OmegaConf.to_container(cfg.augment),
                "overrides": [
                    override
                    for override in HydraConfig.get().overrides.task
                    if not override.startswith((*PLACES, "out="))
                ],
            },
            "variants": {},
            "data_path": {},
            "inference": {},
            "peak_memory": {},
        }

    def run(self) -> None:
        """Everything, in the order in which each part needs the one before it."""
        self.count_step()
        self.measure_data_path()
        self.pilot()
        self.measure_variants()
        self.measure_inference()
        self.result["complete"] = True

    def count_step(self) -> None:
        """FLOPs by multiply-accumulates, bytes by the operators of one step."""
        step = make_step(self.eager.model, self.device, self.eager.way.precision)
        batch = next(iter(self.eager.loader()))
        batch = on_device(batch, self.data, self.device)
        step(batch)  # an optimizer makes its state in the first
        start = now(self.device)
        with Traffic() as traffic:
            step(batch)
        seconds = now(self.device) - start
        # The gradients of the inputs and of the weights cost a forward pass each.
        flops = 3 * 2 * self.result["model"]["macs"] * self.data.batch_size
        self.result["step"] = {
            "flops": flops,
            "bytes": traffic.bytes,
            "how": "of one device; flops: 3 × 2 × the forward pass's "
            "multiply-accumulates; bytes: what each operator of an eager step reads "
            "and writes, every tensor once an operator, an upper bound where operators "
            "are fused",
        }
        steps = (self.size.rounds + 1) * 6 * (self.warmup + self.size.steps[0])
        minutes = max(steps * seconds, 6 * self.size.rounds * self.size.seconds) / 60
        say(
            f"{self.result['model']['total']:,} parameters, batches of {self.batch}, "
            f"{_images(self.result['data'])}: about {minutes:.1f} minutes, and what "
            "compilation takes"
        )

    def measure_data_path(self) -> None:
        """Each engine alone, up to normalised batches on the device."""
        configured, self.data.num_workers = self.data.num_workers, cores()
        warmups = {"torchvision": PREFETCH * cores(), "batched": self.warmup}
        samples: dict[str, list[float]] = {engine: [] for engine in warmups}
        for _ in range(self.size.rounds):
            for engine, warmup in warmups.items():
                self.data.engine = engine
                warmup = min(warmup, self.batches // 2)
                steps = min(self.size.steps[1], self.batches - warmup)
                watch = Stopwatch(self.device, warmup, steps).time(
                    self.data.train_dataloader(),
                    lambda batch: on_device(batch, self.data, self.device),
                )
                samples[engine].append(steps * self.batch / watch.seconds)
                self.result["data_path"][engine] = {
                    **summary(samples[engine]),
                    "workers": cores() if engine == "torchvision" else 0,
                }
        self.data.num_workers = configured

    def pilot(self) -> None:
        """Builds every variant; a short chunk of each, to see how fast it is."""
        makers: dict[str, Callable[[], Any]] = {
            "a": lambda: PlainLoop(self.cfg, self.data, self.device)
        }
        for letter, way in self.ways.items():
            makers[letter] = lambda way=way: WithTrainer(self.cfg, self.data, way)
        for letter, make in makers.items():
            try:
                runner = make()
            except UserError as error:
                if letter != "e":
                    raise
                skipped = {**asdict(self.ways[letter]), "skipped": str(error)}
                self.result["variants"][letter] = skipped
                say(f"{letter}: skipped: {error}")
                continue
            steps = self.size.steps[0] // 2
            seconds = agreed(runner.chunk(self.warmup, steps).seconds / steps)
            self.step_seconds[letter] = seconds
            self._add(letter, runner)
            compiled = getattr(runner, "compile_seconds", None)
            if compiled is not None:
                self.result["variants"][letter]["compile_seconds"] = compiled
            say(f"{letter}: {runner.way.name}: {self.batch / seconds:,.0f} images/s")

    def _add(self, letter: str, runner: PlainLoop | WithTrainer | BareLoop) -> None:
        self.runners[letter] = runner
        found = {**asdict(runner.way), "workers": runner.workers}
        self.result["variants"][letter] = found

    def _add_bare_loop(self) -> str:
        """Adds f beside the best variant of the first round, and returns that."""
        found = self.result["variants"]
        measured = self.ways.keys() & self.runners
        best = agreed(max(measured, key=lambda k: found[k]["images_per_second"]))
        self._add("f", BareLoop(self.runners[best]))
        found["f"]["of"] = best
        return best

    def measure_variants(self) -> None:
        """All variants in turns."""
        low, high = self.size.steps
        wanted = self.size.seconds / min(self.step_seconds.values())
        warmups = agreed({letter: self._warmup(letter) for letter in self.runners})
        steps = max(low, min(high, round(wanted), self.batches - max(warmups.values())))
        round_seconds = (self.warmup + steps) * min(self.step_seconds.values())  # f
        for letter, seconds in self.step_seconds.items():
            round_seconds += (warmups[letter] + steps) * seconds
        minutes = self.size.rounds * round_seconds / 60
        say(f"{self.size.rounds} rounds of {steps} steps: about {minutes:.1f} minutes")
        found = self.result["variants"]
        for number in range(self.size.rounds):
            for letter in [*self.step_seconds, "f"]:
                if letter == "f" and number == 0:
                    warmups["f"] = warmups[self._add_bare_loop()]
                reset_peak_memory(self.device)
                watch = self.runners[letter].chunk(warmups[letter], steps)
                peak = peak_memory_mb(self.device)
                sample = steps * self.batch / watch.seconds
                figures = summary([*found[letter].get("samples", []), sample])
                rate = figures["images_per_second"]
                found[letter] |= figures
                found[letter] |= {
                    "ratio": rate / found["a"]["images_per_second"],
                    "seconds_per_step": self.batch / rate,
                    "steps": steps,
                    "warmup_steps": warmups[letter],
                    "peak_memory_mb": max(peak, found[letter].get("peak_memory_mb", 0)),
                }
                self._note_memory(peak, watch.resident_mb)
        self._compare()

    def _warmup(self, letter: str) -> int:
        """So many steps that a loader's workers gain nothing from what they did before.

        Where the loader is the slower side, all that they can prefetch has to be used
        up; where it is the faster, they have to have filled their queue: after it they
        make one batch a step.
        """
        runner = self.runners[letter]
        if not runner.workers:
            return self.warmup
        rate = self.result["data_path"]["torchvision"]["images_per_second"]
        filled = PREFETCH * cores() * self.batch / rate  # seconds
        # Twice, as the network competes for the cores.
        steps = math.ceil(2 * filled / self.step_seconds[letter])
        enough = max(self.warmup, min(steps, PREFETCH * runner.workers))
        return min(enough, self.batches - self.size.steps[0])

    def _note_memory(self, peak: float, resident: float | None) -> None:
        found = self.result["peak_memory"]
        name = "device_mb" if self.device.type == "cuda" else "process_mb"
        found[name] = max(peak, found.get(name, 0.0))
        if resident is not None:
            found["resident_mb"] = max(resident, found.get("resident_mb", 0.0))

    def _compare(self) -> None:
        """What follows from the medians."""
        found = {k: v for k, v in self.result["variants"].items() if "ratio" in v}
        best = max(self.ways.keys() & found, key=lambda k: found[k]["ratio"])
        seconds = found[best]["seconds_per_step"]
        of = found["f"]["of"]
        paths = self.result["data_path"]
        fast = paths["batched"]["images_per_second"]
        paths["ratio"] = fast / paths["torchvision"]["images_per_second"]
        paths["share_of_step"] = self.batch / fast / seconds
        self.result |= {
            "best": best,
            "epoch_seconds": EPOCH / found[best]["images_per_second"],
            "trainer_cost": found[of]["seconds_per_step"]
            / found["f"]["seconds_per_step"]
            - 1,
        }
        step = self.result["step"]
        flops, moved = step["flops"] / seconds, step["bytes"] / seconds
        sheet = find_card(self.result["hardware"]["device"])
        self.result["share_of_peak"] = {
            "flops_per_second": flops,
            "bf16": flops / sheet.bf16 if sheet else None,
            "bytes_per_second": moved,
            "bandwidth": moved / sheet.bandwidth if sheet else None,
        }

    def measure_inference(self) -> None:
        """Of the eager network, channels last: compiling each batch size takes long."""
        model, precision = self.eager.model, self.eager.way.precision
        model.to(self.device).eval()
        size = self.data.image_size
        batches = {
            n: torch.randn(n, 3, *size, device=self.device).contiguous(
                memory_format=torch.channels_last
            )
            for n in INFERENCE_BATCHES
        }
        samples: dict[int, list[float]] = {n: [] for n in batches}
        calls = dict.fromkeys(batches, 1)

        @torch.inference_mode()
        def seconds(n: int) -> float:
            start = now(self.device)
            with autocast(self.device, precision):
                for _ in range(calls[n]):
                    model(batches[n])
            return now(self.device) - start

        for n in batches:
            seconds(n)  # warms up
            if self.size.seconds:
                calls[n] = max(1, round(1 / seconds(n)))
        for _ in range(self.size.rounds):
            for n in batches:
                samples[n].append(calls[n] * n / seconds(n))
                self.result["inference"][str(n)] = summary(samples[n])
        self.result["inference"]["how"] = (
            f"one device, eager, channels_last, {precision}"
        )


# --- what a person sees ------------------------------------------


def say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _images(data: dict[str, Any]) -> str:
    return "synthetic images" if data["name"] == "synthetic" else data["origin"]


def print_table(result: dict[str, Any]) -> None:
    """Whatever is measured of all that there is."""
    machine, data = result["hardware"], result["data"]
    table = Table(
        title=f"{machine['device']}, {machine['cores']} cores · "
        f"{result['model']['total']:,} parameters · batches of "
        f"{result['settings']['batch_size']} · {_images(data)}",
        caption="a to c: float32, NCHW; spread: of the samples, minimum to maximum",
    )
    table.add_column("")
    for name in ("images/s", "spread", "ms/step", "× a", "memory MB"):
        table.add_column(name, justify="right")

    def spread(figures: dict[str, Any]) -> str:
        return "–".join(f"{value:,.0f}" for value in figures["spread"])

    def rate(name: str, figures: dict[str, Any], *more: str) -> None:
        rest = (f"{figures['images_per_second']:,.0f}", spread(figures), *more)
        table.add_row(name, *rest)

    for letter, found in sorted(result["variants"].items()):
        name = f"{letter}  {found['name']}"
        if "of" in found:
            name += f" of {found['of']}'s step"
        if "skipped" in found:
            table.add_row(name, "skipped")
        elif "samples" in found:
            rate(
                name,
                found,
                f"{found['seconds_per_step'] * 1000:,.1f}",
                f"{found['ratio']:.2f}",
                f"{found['peak_memory_mb']:,.0f}",
            )
    table.add_section()
    for part, name in (("data_path", "data path, {}"), ("inference", "inference, {}")):
        for key, found in result[part].items():
            if isinstance(found, dict):
                rate(name.format(key), found)
    console.print(table)
    if "best" not in result:
        return
    step, peak = result["step"], result["share_of_peak"]
    share = result["data_path"]["share_of_step"]
    lines = [
        f"{EPOCH:,} images: {result['epoch_seconds']:,.1f} s with {result['best']}",
        f"the Trainer costs {result['trainer_cost']:+.1%} of the bare loop's step "
        f"({result['variants']['f']['of']} against f)",
        f"the batched data path is {share:.1%} of a step",
        f"a step: {step['flops'] / 1e9:,.1f} GFLOP, at most {step['bytes'] / 1e9:,.2f} "
        f"GB; {result['best']}: {peak['flops_per_second'] / 1e9:,.0f} GFLOP/s",
    ]
    if result["hardware"]["accelerator"] == "cuda":
        lines.append(
            f"{peak['bf16']:.1%} of the card's bf16 peak, {peak['bandwidth']:.1%} of "
            "its memory bandwidth (all operators unfused)"
            if peak["bf16"]
            else "the card's peaks are not known here"
        )
    if "resident_mb" in result["peak_memory"]:
        resident = result["peak_memory"]["resident_mb"]
        lines.append(f"this process and its workers held {resident:,.0f} MB at most")
    for line in lines:
        say(f"  {line}")


# --- the command -------------------------------------------------


def benchmark(cfg: DictConfig) -> None:
    """Measures, prints the table and writes `out`.

    Raises:
        UserError: a mistake in the configuration, before anything is measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg.run_dir = folder  # for what callbacks write
        own, cfg = split_config(cfg)
        if own["size"] not in SIZES:
            hint = nearest(str(own["size"]), SIZES)
            raise UserError(f"size: unknown {own['size']!r}; {hint}")
        check_devices(cfg.trainer)
        if cfg.trainer.devices > 1:
            if not in_group():
                launch_ranks(cfg.trainer.devices)
                return
            dist.init_process_group()
        out = None if own["out"] is None else Path(own["out"])
        if out:
            check_writable(out)
        measured = Benchmark(cfg, SIZES[own["size"]])
        measured.result["settings"]["size"] = own["size"]
        try:
            measured.run()
        except BaseException as error:
            # Lightning turns Ctrl-C into SystemExit, and ignores further ones.
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            measured.result["error"] = "interrupted" if stopped else explain(error)
            if stopped:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from None
            raise
        finally:
            if is_leader():
                print_table(measured.result)
                if out:
                    write(out, measured.result)
            if dist.is_initialized():
                dist.destroy_process_group()


def split_config(cfg: DictConfig) -> tuple[dict[str, Any], DictConfig]:
    """The benchmark's own keys, and the configuration of the training to measure."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    own = {key: plain.pop(key) for key in OWN}
    plain["trainer"]["enable_progress_bar"] = False
    if (
        plain["trainer"]["devices"] != 1
        and plain["trainer"].get("strategy", "auto") == "auto"
    ):
        plain["trainer"]["strategy"] = "ddp"
    plain["callbacks"]["progress"] = None
    for callback in plain["callbacks"].values():
        if callback and "monitor" in callback:
            callback["monitor"] = "train/loss"  # as nothing is validated
    if "download" in plain["data"]["source"]:
        plain["data"]["source"]["download"] = False
    training = OmegaConf.create(plain)
    check_config(training)
    training.trainer.limit_val_batches = 0  # no run is to come of it
    return own, training


def check_devices(trainer: DictConfig) -> None:
    """Raises UserError where there are not as many as asked for."""
    gpus = torch.cuda.device_count()
    on_gpu = trainer.accelerator not in ("cpu", "mps") and gpus > 0
    most = gpus if on_gpu else usable_cores()  # on a CPU a process stands for one
    if not (isinstance(trainer.devices, int) and 1 <= trainer.devices <= most):
        raise UserError(
            f"devices: expected 1..{most} (what this machine has), "
            f"got {trainer.devices!r}"
        )


def launch_ranks(devices: int) -> None:
    """Runs this command as one process a device."""
    try:
        launch("resnet_se.benchmark", HydraConfig.get().overrides.task, devices)
    except Stopped:
        raise KeyboardInterrupt from None


def check_writable(out: Path) -> None:
    """Raises UserError where no file can be written there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError("is a folder")
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error}") from None


def write(out: Path, result: dict[str, Any]) -> None:
    with atomic_file(out) as file:
        file.write(json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")


def main() -> None:
    """Console entry: `resnet-se benchmark …`."""
    quiet()
    share_cores()
    console.quiet = not is_leader()
    run(benchmark, "benchmark")


if __name__ == "__main__":
    main()
