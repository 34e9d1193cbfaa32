"""Data, network, classifier, trainer, precision, compilation from a configuration."""

from __future__ import annotations

import copy
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf, open_dict

from resnet_se.config import validate
from resnet_se.config.compose import load_config
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.runs import checkpoint
from resnet_se.training.callbacks.checkpointing import CheckpointFiles
from resnet_se.training.callbacks.sam import SAM
from resnet_se.training.mixing import Mixing
from resnet_se.training.module import METRICS, Classifier
from resnet_se.utils import distributed
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.files import atomic_file
from resnet_se.utils.system import accelerator, cache_folder, has_bf16, processor

# trainer.compile: the mode of torch's compiler.
COMPILE = {"off": None, "default": "default", "cuda_graphs": "reduce-overhead"}


def build_data(cfg: DictConfig, training: bool = True) -> ImageDataModule:
    """The data module of a configuration; reads nothing yet.

    Args:
        training: else without augmentation: no part of `cfg.augment` is built.
    """
    # Partial: Hydra would turn the dataclass into a configuration again.
    make = validate.build("data", cfg.data, _partial_=True)
    augment = validate.build("augment", cfg.augment) if training else Augmentation()
    if not isinstance(augment, Augmentation):  # a transform alone, of one's own
        augment = Augmentation(own=augment)
    data = make(augment=augment, seed=cfg.seed)
    # What was typed is meant; a preset's may give way to a small set.
    data.exact_batch_size = "data.batch_size" in validate.typed_keys()
    return data


def run_data(
    run_dir: Path, fingerprint: str | None = None, training: bool = False
) -> ImageDataModule:
    """The data of a run that has been trained, read.

    Args:
        fingerprint: of the pixels it was trained on, where they must be the same.
        training: as `build_data`.

    Raises:
        UserError: no run directory, the data are not there, or are others.
    """
    data = build_data(load_config(run_dir), training)
    data.setup()
    if fingerprint and data.images.fingerprint != fingerprint:
        raise UserError(
            f"{run_dir}: trained on data with fingerprint {fingerprint}, these have "
            f"{data.images.fingerprint}"
        )
    return data


def build_classifier(
    cfg: DictConfig, num_classes: int, training: bool = True
) -> Classifier:
    """Network, optimizer, schedule, mixing and TTA as one module.

    Args:
        training: else network and TTA alone, all that a test needs.

    Raises:
        UserError: `model.num_classes` is set and is not the data's.
    """
    asked = cfg.model.get("num_classes", num_classes)
    if asked != num_classes:
        raise UserError(
            f"model.num_classes: the data have {num_classes} classes, got {asked}"
        )
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    net = validate.build_net(cfg.model, num_classes)
    tta = validate.build("tta", cfg.tta) if cfg.tta else None
    if not training:
        return Classifier(net, None, None, num_classes, Mixing(), tta, cfg.seed)
    if not any(p.requires_grad for p in net.parameters()):
        raise UserError(f"model: {type(net).__name__} has no parameters to train")
    lr = cfg.optimizer.lr
    if cfg.trainer.get("scale_lr"):  # Goyal et al. 2017, arXiv 1706.02677
        lr *= distributed.world_size()
    return Classifier(
        net,
        validate.build_optimizer(cfg.optimizer, lr),
        validate.build("scheduler", cfg.scheduler, _partial_=True),
        num_classes,
        validate.build("mixing", cfg.mixing),
        tta,
        cfg.seed,
    )


def check_shape(net: torch.nn.Module, size: tuple[int, int], num_classes: int) -> None:
    """Refuses a network that does not give a row of logits an image.

    Raises:
        UserError: with the expected and the actual shape, or what it raised instead.
    """
    shadow = copy.deepcopy(net).to("meta").eval()
    images = torch.empty(2, 3, *size, device="meta")
    name, given, expected = type(net).__name__, tuple(images.shape), (2, num_classes)
    try:
        logits = shadow(images)
    except Exception as error:
        raise UserError(f"model: {name} fails on images {given}: {error}") from error
    shape = tuple(getattr(logits, "shape", ())) or type(logits).__name__
    if shape != expected:
        raise UserError(
            f"model: {name}: expected logits {expected} of images {given}, got {shape}"
        )


def build_trainer(cfg: DictConfig, precision: str) -> L.Trainer:
    """Lightning's Trainer with the configured callbacks and loggers.

    Raises:
        UserError: a callback monitors a metric that is never logged; gradients cannot
            be clipped as they should.
    """
    callbacks = [
        validate.build(f"callbacks.{name}", node)
        for name, node in cfg.callbacks.items()
        if node is not None
    ]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in METRICS:
            raise UserError(
                f"{type(callback).__name__}.monitor: {monitor!r} is never logged; "
                f"{nearest(monitor, METRICS)}"
            )
        if isinstance(callback, SAM):
            callback.check_trainer(
                cfg.trainer.get("accumulate_grad_batches", 1), precision
            )
    mixed = precision.endswith("-mixed")
    if mixed and cfg.trainer.get("gradient_clip_val") and cfg.optimizer.get("fused"):
        raise UserError(
            f"trainer.gradient_clip_val: Lightning does not clip for a fused optimizer "
            f"at precision {precision}; add optimizer.fused=false"
        )
    loggers = [
        validate.build(f"logger.{name}", node)
        for name, node in (cfg.logger or {}).items()
        if node is not None
    ]
    options = cfg.trainer.copy()
    with open_dict(options):
        for key in ("compile", "scale_lr"):  # read elsewhere
            options.pop(key, None)
        if distributed.on_cpu(cfg.trainer):
            options.pop("sync_batchnorm", None)  # ours, see `layers.sync_batchnorm`
    return validate.build(
        "trainer",
        options,
        callbacks=callbacks,
        logger=loggers or False,
        precision=precision,
        plugins=[CheckpointFiles(run_name(cfg))],
    )


def run_name(cfg: DictConfig) -> str:
    """`seed0-3f2a1b4c`: what names a run in its checkpoints, wherever it lies."""
    return Path(cfg.run_dir).name.partition("+")[0]  # forced anew: …+1


def compile_net(
    cfg: DictConfig, model: Classifier, trainer: L.Trainer, batch: tuple[int, ...]
) -> float | None:
    """Compiles the network for training as `trainer.compile` says.

    In place, so that checkpoints keep their names.  A batch of the given shape goes
    forward and back, after which the network is what it was: what the compiler misses
    shows before training, and its time stays out of the first epoch's.

    Args:
        batch: (B, 3, H, W).

    Returns:
        The seconds it took, None if `trainer.compile` is off.

    Raises:
        UserError: an unknown mode, CUDA graphs without CUDA, no working compiler.
    """
    choice = cfg.trainer.get("compile") or "off"  # YAML reads a bare off as false
    if choice not in COMPILE:
        hint = nearest(str(choice), COMPILE)
        raise UserError(f"trainer.compile: unknown {choice!r}; {hint}")
    if choice == "off":
        return None
    device = trainer.strategy.root_device
    if choice == "cuda_graphs" and device.type != "cuda":
        raise UserError(
            f"trainer.compile=cuda_graphs: needs an NVIDIA GPU, this run is on "
            f"{device.type}; trainer.compile=default works there"
        )
    # Networks of a sweep's earlier jobs would count against the compiler's limit.
    torch.compiler.reset()
    model.to(device).train()
    started = time.perf_counter()
    model.net.compile(mode=COMPILE[choice], dynamic=False)
    images = torch.zeros(batch, device=device)
    try:
        with _unchanged(model.net):
            for _ in range(3):  # CUDA graphs: warms up, records, replays
                with trainer.precision_plugin.forward_context():
                    loss = model(images).logsumexp(dim=1).mean()
                loss.backward()
                model.zero_grad()
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"trainer.compile: torch's compiler does not work here ({reason}); on a "
            "CPU it needs a C++ compiler, on a GPU Triton; trainer.compile=off does "
            "without"
        ) from error
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def _unchanged(net: torch.nn.Module) -> Iterator[None]:
    """Lets the body train a little, then restores the state, in place."""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    yield
    net.zero_grad()
    net.load_state_dict(before)  # BatchNorm has seen what are no images


def settle_precision(cfg: DictConfig, data: ImageDataModule) -> str:
    """`trainer.precision`, with `auto` settled, once for a machine and a network.

    bf16-mixed needs hardware that has bf16.  A GPU takes it then; on a CPU it wins with
    some networks and loses with others, so a few training steps of either are timed,
    and what won is remembered in the cache folder: every seed of a sweep has the same.
    """
    device = accelerator(cfg.trainer.accelerator)
    if cfg.trainer.precision != "auto":
        bf16 = str(cfg.trainer.precision).startswith("bf16")
        if bf16 and device == "cpu" and not has_bf16(torch.device(device)):
            print(
                f"precision: this processor emulates {cfg.trainer.precision}; "
                "trainer.precision=32-true may be many times faster"
            )
        return cfg.trainer.precision
    if not has_bf16(torch.device(device)):
        return "32-true"
    if device == "cuda":
        return "bf16-mixed"
    if distributed.in_group():  # each would measure, and not all the same
        print("precision: 32-true; torchrun's CPU processes do not measure")
        return "32-true"
    model = OmegaConf.to_container(cfg.model, resolve=True)
    name = json.dumps([processor(), torch.__version__, model], sort_keys=True)
    path = cache_folder() / "precision.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # the first to come measures for all
        try:
            settled = json.loads(path.read_text())
        except (OSError, ValueError):
            settled = {}
        if name not in settled:
            data.setup()
            net = build_classifier(cfg, data.num_classes).net
            float32, bf16 = _step_seconds(net, data.image_size)
            settled[name] = "bf16-mixed" if bf16 < float32 else "32-true"
            print(f"precision: {settled[name]} (bf16: {float32 / bf16:.1f}× float32)")
            with atomic_file(path) as file:
                file.write(json.dumps(settled, indent=1).encode())
    return settled[name]


def _step_seconds(net: torch.nn.Module, size: tuple) -> tuple[float, float]:
    """A CPU training step of 32 images, float32 and bf16 autocast: best of five."""
    x = torch.randn(32, 3, *size).to(memory_format=torch.channels_last)
    times: dict[bool, list[float]] = {False: [], True: []}
    with _unchanged(net):
        for _ in range(7):  # in turns, the first two warm up
            for bf16, taken in times.items():
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = net(x).float().logsumexp(dim=1).mean()
                loss.backward()
                taken.append(time.perf_counter() - start)
    return min(times[False][2:]), min(times[True][2:])


def load_weights(model: Classifier, data: ImageDataModule, path: Any) -> dict[str, Any]:
    """Fills `model` with a checkpoint's weights; returns the checkpoint.

    Raises:
        UserError: unreadable, of another architecture, or trained on other pixels.
    """
    loaded = checkpoint.read(path)
    checkpoint.check(loaded, path, model)
    model.load_state_dict(loaded["state_dict"])
    if "fingerprint" not in loaded.get(checkpoint.DATA, {}):
        raise UserError(f"{path}: it does not say on which data it was trained")
    data.load_state_dict(loaded[checkpoint.DATA])
    return loaded


def quiet() -> None:
    """Silences notices that hide what matters to a person."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices, advertisements
    # The evaluation loaders only slice tensors: workers would slow them down.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Metrics are logged by the epoch, so that a step waits for nothing.
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    # The classifier sums over the ranks itself.
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    # The data module keeps the place in the epoch.
    warnings.filterwarnings("ignore", ".*before the epoch ended and your dataloader.*")
    # Lightning 2.6 with torch 2.15; nothing a user could act on.
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
