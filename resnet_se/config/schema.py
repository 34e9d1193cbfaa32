"""What a configuration may hold: the kind of each place, the values of each key.

Ranges of our own classes stand in their signatures; here are those of the keys that no
signature takes, and of other people's signatures, which say less than they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from resnet_se.utils.validation import Count, Natural, NonNegative, Positive, Text, Unit

# --- places ------------------------------------------------------


class Place(NamedTuple):
    """What may stand as a `_target_` somewhere in a configuration.

    Args:
        words: the same for a person to read.
        bases: a class must be one of these or a subclass.
        packages: whose functions may stand there too, if they say that they return one.
        methods: what a class must have besides.
    """

    words: str
    bases: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("resnet_se",)
    methods: tuple[str, ...] = ()


def _one_of(what: str, base: str) -> Place:
    return Place(f"{what}: a subclass of {base}", (base,))


_SOURCE = Place("a source: a class with key() and load()", (), (), ("key", "load"))

# A path lies in the longest of these that it starts with.
PLACES = {
    "model": Place(
        "a network: a subclass of torch.nn.Module, or a function of timm or "
        "torchvision that returns one",
        ("torch.nn.Module",),
        ("resnet_se", "timm", "torchvision"),
    ),
    "data": _one_of("a data module", "resnet_se.data.datamodule.ImageDataModule"),
    "data.source": _SOURCE,
    "data.fallback": _SOURCE,
    "augment": Place(
        "a transform: a subclass of Augmentation or of torchvision's v2.Transform",
        ("resnet_se.data.augmentation.pipeline.Augmentation", "torch.nn.Module"),
    ),
    "mixing": _one_of("a mixing", "resnet_se.training.mixing.Mixing"),
    "tta": _one_of("test-time augmentation", "resnet_se.models.tta.TTA"),
    "optimizer": Place(
        "resnet_se.training.param_groups.make_optimizer, "
        "resnet_se.training.muon.make_muon or a subclass of torch.optim.Optimizer",
        ("torch.optim.Optimizer",),
    ),
    "optimizer.cls": _one_of("an optimizer", "torch.optim.Optimizer"),
    "scheduler": _one_of("a schedule", "resnet_se.training.schedules.Schedule"),
    "scheduler.decay": Place(
        "a decay of resnet_se.training.schedules", ("builtins.float",)
    ),
    "callbacks": _one_of("a callback", "lightning.pytorch.Callback"),
    "logger": _one_of("a logger", "lightning.pytorch.loggers.Logger"),
    "trainer": _one_of("a trainer", "lightning.Trainer"),
    "trainer.profiler": _one_of("a profiler", "lightning.pytorch.profilers.Profiler"),
    "trainer.strategy": _one_of("a strategy", "lightning.pytorch.strategies.Strategy"),
}

# Arguments that the code adds to those in the configuration.
GIVEN = {
    "model": ("num_classes",),
    "data": ("augment", "seed"),
    "optimizer": ("net", "params"),
    "scheduler": ("optimizer", "steps_per_epoch", "epochs"),
    "scheduler.decay": ("t", "total"),
    "scheduler.plateau": ("optimizer",),
}
# Mappings without a `_target_` that are somebody's arguments all the same.
ARGUMENTS_OF = {"scheduler.plateau": "torch.optim.lr_scheduler.ReduceLROnPlateau"}

# --- values ------------------------------------------------------

NULLABLE = {"tta", "logger"}  # and what is null in conf/train.yaml
# Read by train, no arguments of the target beside them.
OWN_KEYS = {"trainer.compile", "trainer.scale_lr"}

_ACCELERATOR = Literal["auto", "cpu", "gpu", "cuda", "mps"]
_RUNS = Text | Annotated[Sequence[Text], Field(min_length=1)]
_BATCHES = Count | Annotated[float, Field(gt=0, le=1)]

KEYS: dict[str, dict[str, Any]] = {
    "train": {
        "seed": Annotated[int, Field(ge=0, le=2**32 - 1)],
        "tags": Sequence[str | int | float],
        "notes": dict,
        "against": Sequence[dict],
        "noise_family": Text | None,
        "plots": bool,
        "ckpt_path": Text | None,
        "init_from": Text | None,
        "force": bool,
        "distill": Text | None,
        "distill_weight": Unit,
        "distill_temperature": Positive,
        "runs_dir": Text,
        "fail_fast": bool,
        "optimizer.lr": Positive,
        "budget.scale": Positive,
        "budget.depth": Positive,
        "budget.width": Positive,
        "budget.limit_batches": _BATCHES,
        "budget.train_subset": Count | None,
        "launcher.jobs": Count,
        "launcher.gpus": Sequence[str | int],
        "launcher.dry_run": bool,
        "trainer.compile": Literal["off", "default", "cuda_graphs", False],
        "trainer.scale_lr": bool,
    },
    "evaluate": {
        "run": Text,
        "ckpt": Literal["best", "last"],
        "accelerator": _ACCELERATOR,
        "out": Text | None,
    },
    "demo": {
        "run": _RUNS,
        "host": Text,
        "port": Annotated[int, Field(ge=1, le=65535)],
        "accelerator": _ACCELERATOR,
        "trust": bool,
    },
    "inspect": {
        "run": _RUNS,
        "out": Text | None,
        "images": Count | None,
        "maps": Sequence[Natural] | None,
        "accelerator": _ACCELERATOR,
    },
    "plots": {"run": Text, "out": Text | None},
}

PRECISION = Literal["32-true", "bf16-mixed", "16-mixed"]  # settled: of a record
_RATES = {
    "lr": Positive,
    "weight_decay": NonNegative,
    "eps": NonNegative,
    "momentum": Annotated[float, Field(ge=0, lt=1)],  # from 1 on no step is forgotten
}

FOREIGN: dict[str, dict[str, Any]] = {
    "lightning.pytorch.trainer.trainer.Trainer": {
        "accelerator": _ACCELERATOR,
        "precision": Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
        "devices": Count | Sequence[Natural] | Text | Literal[-1],
        # Groups of their own.
        **dict.fromkeys(("callbacks", "logger", "plugins"), NoneType),
        "num_nodes": Count,
        "fast_dev_run": Literal[False],  # it leaves no checkpoint; debug=fast does
        "max_epochs": Annotated[int, Field(ge=1, le=10**6)],
        "min_epochs": Count | None,
        "max_steps": Count | Literal[-1],
        "min_steps": Count | None,
        "limit_train_batches": _BATCHES,
        "limit_val_batches": _BATCHES,
        "limit_test_batches": _BATCHES,
        "overfit_batches": Natural | Unit,
        "val_check_interval": _BATCHES | None,
        "check_val_every_n_epoch": Count,
        "num_sanity_val_steps": Natural | Literal[-1],
        "log_every_n_steps": Count,
        "accumulate_grad_batches": Count,
        "gradient_clip_val": Positive | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "enable_checkpointing": Literal[True],  # a run without cannot be resumed
        "barebones": Literal[False],
        "use_distributed_sampler": Literal[False],  # ours deals the images out
        "reload_dataloaders_every_n_epochs": Natural,
    },
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping": {
        "patience": Natural,
        "min_delta": NonNegative,
        "mode": Literal["min", "max"],
    },
    "torch.optim.optimizer.Optimizer": _RATES,
    "torch.optim.lr_scheduler.ReduceLROnPlateau": {
        "factor": Annotated[float, Field(gt=0, lt=1)],
        "patience": Natural,
        "cooldown": Natural,
        "threshold": NonNegative,
        "mode": Literal["min"],  # of the validation loss
        "threshold_mode": Literal["rel", "abs"],
    },
}
