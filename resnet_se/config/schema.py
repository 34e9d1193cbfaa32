"""The schema: each key of a configuration, once, and the kind of each target's slot.

A key that is an argument of a class has its type and range in that class's signature;
here are those that no signature takes, those whose library's hints say less than it
takes, and all that is known of a key besides.  Every list of keys is derived from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from resnet_se.runs.run_hash import HashRules
from resnet_se.utils.validation import (
    Count,
    Natural,
    NonNegative,
    Positive,
    Text,
    Unit,
)

ALWAYS = object()  # hashed, whatever its value


class Key(NamedTuple):
    """A key, or all keys below it.

    Args:
        hint: its type and range; None: the signature of the target says.
        hashed: False where it names, places or watches a run and so cannot change the
            result; `content`: of what lies at that path; `resolved`: by what it has
            been resolved into.
        idle: the value with which it does nothing; runs from before the key was there
            keep their hash.
        private: says where, or on whose machine: no part of a bundle.
        recorded: False where a record's list of overrides leaves it out.
        wrapper: stands among a target's arguments and is read by us, not handed on.
        path: a file or folder, or several, taken as the shell gives it.
    """

    hint: Any = None
    hashed: bool | Literal["content", "resolved"] = True
    idle: Any = ALWAYS
    private: bool = False
    recorded: bool = True
    wrapper: bool = False
    path: bool = False


_ACCELERATOR = Literal["auto", "cpu", "gpu", "cuda", "mps"]
PATHS = Text | Annotated[Sequence[Text], Field(min_length=1)]
_BATCHES = Count | Annotated[float, Field(gt=0, le=1)]

# --- keys of `train` ---------------------------------------------

TRAIN: dict[str, Key] = {
    # The directory's name holds the seed.
    "seed": Key(Annotated[int, Field(ge=0, le=2**32 - 1)], hashed=False),
    "tags": Key(Sequence[str | int | float], hashed=False),
    # Its settings are hashed.
    "reading": Key(dict, hashed=False),
    "reading.name": Key(Text),
    "notes": Key(dict, hashed=False, private=True),
    "against": Key(Sequence[dict], hashed=False),
    "noise_family": Key(Text | None, hashed=False),
    "plots": Key(bool, hashed=False),
    "ckpt_path": Key(Text | None, hashed="content", private=True, path=True),
    "init_from": Key(Text | None, hashed="content", path=True),
    "distill": Key(Text | None, hashed="content", path=True),
    "distill_weight": Key(Unit, idle=0.9),
    "distill_temperature": Key(Positive, idle=4.0),
    "loss": Key(dict),
    "loss.class_weights": Key(
        Literal["balanced"] | Sequence[Positive] | None, idle=None
    ),
    "force": Key(bool, hashed=False),
    "runs_dir": Key(Text, hashed=False, private=True, recorded=False, path=True),
    "run_dir": Key(hashed=False, private=True),
    "fail_fast": Key(bool, hashed=False),
    "hparams_search": Key(recorded=False),
    # Into the epochs, images and widths that it scales.
    "budget": Key(hashed="resolved"),
    "budget.scale": Key(Positive),
    "budget.depth": Key(Positive),
    "budget.width": Key(Positive),
    "budget.limit_batches": Key(_BATCHES),
    "budget.train_subset": Key(Count | None),
    "launcher": Key(hashed=False, private=True, recorded=False),
    "launcher.jobs": Key(Count),
    "launcher.gpus": Key(Sequence[str | int]),
    "launcher.dry_run": Key(bool),
    "logger": Key(hashed=False, private=True),
    "callbacks": Key(private=True),
    "callbacks.pruner": Key(recorded=False),
    # Its metric is hashed, which decides on what is tested.
    "callbacks.checkpoint.every_n_steps": Key(hashed=False),
    "callbacks.checkpoint.mode": Key(idle="min"),
    "model.drop_path": Key(idle=0.0),
    "model.zero_init": Key(idle=False),
    "model.activation": Key(idle="relu"),
    "model.residual": Key(idle=True),
    "model.gate_scale": Key(idle=1.0),
    "model.padding": Key(idle="symmetric"),
    "model.init": Key(idle="he"),
    "augment.fill": Key(idle="black"),
    "augment.zoom_axes": Key(idle=1),
    "augment.whole_shifts": Key(idle=True),
    "augment.affine": Key(idle="torchvision"),
    "model.attention": Key(idle=None),
    "augment.erase": Key(idle=0),
    "augment.policy": Key(idle=None),
    "mixing.probability": Key(idle=1.0),
    "data.num_workers": Key(hashed=False),
    "data.batch_size": Key(hashed="resolved"),  # into the global one
    "data.source": Key(hashed="resolved"),  # into the identity of its images
    "data.source.root": Key(private=True, recorded=False, path=True),
    "data.fallback": Key(hashed=False),
    "data.repeats": Key(idle=1),
    "data.split": Key(idle="stratified"),
    "data.drop_last": Key(idle=True),
    "data.label_noise": Key(idle=0.0),
    "data.label_noise_kind": Key(idle="symmetric"),
    "data.resolution": Key(idle=None),
    "data.folds": Key(idle=None),
    "data.fold": Key(idle=0),
    "data.sampler": Key(idle="shuffled"),
    "optimizer.lr": Key(Positive),
    "optimizer.penalty": Key(idle="decay"),
    "optimizer.epsilon": Key(idle="inside"),
    "scheduler.plateau_rule": Key(idle="torch"),
    "scheduler.overrides_plateau": Key(idle=False),
    "optimizer.fused": Key(hashed=False),  # and `compile`: the same within rounding
    "trainer.compile": Key(
        Literal["off", "default", "cuda_graphs", False], hashed=False, wrapper=True
    ),
    # Into the rate in force.
    "trainer.scale_lr": Key(bool, hashed="resolved", wrapper=True),
    "trainer.precision": Key(hashed="resolved"),  # `auto`, into that of the machine
    "trainer.accelerator": Key(hashed=False),
    "trainer.devices": Key(hashed=False),  # the world size is
    "trainer.num_nodes": Key(hashed=False),
    "trainer.strategy": Key(hashed=False),
    "trainer.default_root_dir": Key(hashed=False, private=True),
    "trainer.profiler": Key(hashed=False),
    "trainer.log_every_n_steps": Key(hashed=False),
    "trainer.enable_progress_bar": Key(hashed=False),
    "trainer.enable_model_summary": Key(hashed=False),
    "trainer.use_distributed_sampler": Key(hashed=False),
}

# --- keys of the other commands ----------------------------------

COMMANDS: dict[str, dict[str, Key]] = {
    "train": TRAIN,
    "evaluate": {
        "run": Key(Text, path=True),
        "ckpt": Key(Literal["best", "last"]),
        "accelerator": Key(_ACCELERATOR),
        "out": Key(Text | None, path=True),
        "trust": Key(bool),
    },
    "predict": {
        "run": Key(Text, path=True),
        "inputs": Key(PATHS, path=True),
        "out": Key(Text | None, path=True),
        "top": Key(Count),
        "batch_size": Key(Count),
        "accelerator": Key(_ACCELERATOR),
        "own_tta": Key(bool),
        "trust": Key(bool),
    },
    "export": {
        "run": Key(Text, path=True),
        "format": Key(Literal["onnx", "torch", "safetensors", "keras"]),
        "out": Key(Text | None, path=True),
        "preprocess": Key(bool),
        "fold": Key(bool),
        "gates": Key(Literal["free", "mean"]),
        "int8": Key(bool),
        "opset": Key(Count),
        "images": Key(Count),
        "tolerance": Key(Positive),
    },
    "inspect": {
        "run": Key(PATHS, path=True),
        "out": Key(Text | None, path=True),
        "images": Key(Count | None),
        "maps": Key(Sequence[Natural] | None),
        "accelerator": Key(_ACCELERATOR),
    },
    "data_summary": {
        "run": Key(PATHS | None, path=True),
        "out": Key(Text, path=True),
        "near": Key(Annotated[float, Field(gt=0, le=1)]),
    },
    "plots": {"run": Key(Text, path=True), "out": Key(Text | None, path=True)},
    "bundle": {"run": Key(Text, path=True), "out": Key(Text | None, path=True)},
    "demo": {
        "run": Key(PATHS, path=True),
        "host": Key(Text),
        "port": Key(Annotated[int, Field(ge=1, le=65535)]),
        "accelerator": Key(_ACCELERATOR),
        "trust": Key(bool),
    },
    "benchmark": {
        "batch_size": Key(Count),
        "devices": Key(Count),
        "rounds": Key(Annotated[int, Field(ge=1, le=100)]),
        "steps": Key(Annotated[int, Field(ge=1, le=10_000)]),
        "out": Key(Text | None, path=True),
    },
}

# --- derived -----------------------------------------------------

# A record's overrides leave these out: where and how one machine ran it.
UNRECORDED = tuple(key for key, known in TRAIN.items() if not known.recorded)
PRIVATE = tuple(key for key, known in TRAIN.items() if known.private)
WRAPPER_KEYS = frozenset(key for key, known in TRAIN.items() if known.wrapper)
# Callbacks that watch, by their canonical names.
MONITORING_CALLBACKS = {
    "resnet_se:Forecast",
    "resnet_se:GradientNorm",
    "resnet_se:History",
    "resnet_se:Pruner",
    "resnet_se:SaveOnSigterm",
    "resnet_se:progress",
    "lightning.pytorch.callbacks.DeviceStatsMonitor",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.ModelSummary",
    "lightning.pytorch.callbacks.RichModelSummary",
    "lightning.pytorch.callbacks.RichProgressBar",
    "lightning.pytorch.callbacks.TQDMProgressBar",
}
HASH_RULES = HashRules(
    unhashed=tuple(key for key, known in TRAIN.items() if known.hashed is not True),
    by_content=tuple(key for key, k in TRAIN.items() if k.hashed == "content"),
    idle={key: k.idle for key, k in TRAIN.items() if k.idle is not ALWAYS},
    monitoring=frozenset(MONITORING_CALLBACKS),
)
# Not hashed as typed, since what they are resolved into is: these do change a result.
RESOLVED = tuple(
    key
    for key, known in TRAIN.items()
    if known.hashed in ("content", "resolved") and not known.private
)


@cache  # asked anew of each of many records
def is_idle(key: str) -> bool:
    """Return True for a dotted key, or a group, that cannot change a result."""

    def below(names: tuple[str, ...]) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in names)

    return below(HASH_RULES.unhashed) and not below(RESOLVED)


# --- slots of targets --------------------------------------------


class Slot(NamedTuple):
    """The kind of `_target_` that may stand somewhere in a configuration.

    Args:
        words: the same for a person to read.
        bases: a class must be one of these or a subclass.
        packages: whose functions may stand there too, if they say that they return one.
        methods: a class must have these besides.
        call: a class of one's own with `__call__` may stand there too.
    """

    words: str
    bases: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("resnet_se",)
    methods: tuple[str, ...] = ()
    call: bool = False


def _one_of(noun: str, base: str) -> Slot:
    return Slot(f"{noun}: a subclass of {base}", (base,))


_SOURCE = Slot("a source: a class with key() and load()", (), (), ("key", "load"))

# A path lies in the longest of these that it starts with.
TARGET_SLOTS = {
    "model": Slot(
        "a network: a subclass of torch.nn.Module, or a function of timm, torchvision "
        "or your own that says it returns one (-> torch.nn.Module)",
        ("torch.nn.Module",),
        ("resnet_se", "timm", "torchvision"),
    ),
    "data": Slot(
        "a subclass of resnet_se.data.datamodule.ImageDataModule; images of your own "
        "need none: data.source._target_=module.Class, a class with key() and load()",
        ("resnet_se.data.datamodule.ImageDataModule",),
    ),
    "data.source": _SOURCE,
    "data.fallback": _SOURCE,
    "augment": Slot(
        "a transform: a subclass of Augmentation or of torchvision's v2.Transform, or "
        "a class of your own with __call__",
        ("resnet_se.data.augmentation.pipeline.Augmentation", "torch.nn.Module"),
        call=True,
    ),
    "mixing": _one_of("a mixing", "resnet_se.training.mixing.Mixing"),
    "tta": _one_of("test-time augmentation", "resnet_se.models.tta.TTA"),
    "optimizer": Slot(
        "make_optimizer, make_muon or a subclass of torch.optim.Optimizer",
        ("torch.optim.Optimizer",),
    ),
    "optimizer.cls": _one_of("an optimizer", "torch.optim.Optimizer"),
    "scheduler": _one_of("a schedule", "resnet_se.training.schedules.Schedule"),
    "scheduler.decay": Slot("a decay of resnet_se.training", ("builtins.float",)),
    "callbacks": _one_of("a callback", "lightning.pytorch.Callback"),
    "logger": _one_of("a logger", "lightning.pytorch.loggers.Logger"),
    "trainer": _one_of("a trainer", "lightning.Trainer"),
    "trainer.profiler": _one_of("a profiler", "lightning.pytorch.profilers.Profiler"),
    "trainer.strategy": _one_of("a strategy", "lightning.pytorch.strategies.Strategy"),
}

# Arguments that the code adds to those in the configuration.
INJECTED_ARGS = {
    "model": ("num_classes",),
    "data": ("augment", "seed", "exact_batch_size", "epochs"),
    "optimizer": ("net", "params"),
    "scheduler": ("optimizer", "steps_per_epoch", "epochs"),
    "scheduler.decay": ("t", "total"),
    "scheduler.plateau": ("optimizer",),
}
# Mappings without a `_target_` that are somebody's arguments all the same.
ARGUMENTS_OF = {"scheduler.plateau": "torch.optim.lr_scheduler.ReduceLROnPlateau"}
NULLABLE = {"tta", "logger", "reading"}  # and what is null in conf/train.yaml

# --- narrower hints for other people's signatures ----------------

PRECISION = Literal["32-true", "bf16-mixed", "16-mixed"]  # settled: of a record
_RATES = {
    "lr": Positive,
    "weight_decay": NonNegative,
    "eps": NonNegative,
    "momentum": Annotated[float, Field(ge=0, lt=1)],  # from 1 on no step is forgotten
}

THIRD_PARTY_HINTS: dict[str, dict[str, Any]] = {
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
