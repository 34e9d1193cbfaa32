"""A composed configuration, checked before anything of it is called.

Three questions, in this order:

    keys     is there a reader for every key, and a value of its type and range?
    kinds    does each place name a class of its kind: a model where a model belongs?
    values   does every argument of a target meet its hint (`hints`)?

`build` is the only way from a `_target_` to an object: what reads a stranger's run
directory asks the same questions, of the parts that it needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from resnet_se.config import CONF
from resnet_se.config.arguments import (
    HYDRA_KEYS,
    check_arguments,
    plain,
    signature_of,
    value_at,
)
from resnet_se.config.kinds import check_kind, located, targets
from resnet_se.config.schema import (
    ARGUMENTS_OF,
    FOREIGN,
    KEYS,
    NULLABLE,
)
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import check_value

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Chosen to change others' keys; they leave none of their own.
NO_KEYS = {"hydra", "experiment", "debug", "hparams_search"}


def check_config(cfg: DictConfig) -> None:
    """A composed training configuration, whole.

    Where a preset's target has been replaced, the preset's keys that the new one does
    not take are removed from `cfg`; keys that the user gave are checked.

    Raises:
        UserError: the first key without a reader, value out of its range, target that
            is not of its place's kind or argument that it does not take.
    """
    check_keys(cfg)
    for path, node in targets(cfg, ""):
        check_kind(path, node)
    _drop_preset_keys(cfg)
    for path, node in targets(cfg, ""):
        if path != "optimizer.cls":
            check_arguments(path, node, located(path, node["_target_"]))
    for path in ARGUMENTS_OF:
        node = OmegaConf.select(cfg, path)
        if node is not None:
            check_value("scheduler.plateau", plain(node), dict)
            check_arguments(path, node, located(path, ARGUMENTS_OF[path]))
    _check_together(cfg)
    _rehearse(cfg)


def build(path: str, node: DictConfig, **given: Any) -> Any:
    """`node`'s target, called with `node`'s arguments and those `given`.

    Args:
        path: the place of `node` in its configuration, such as `model`.

    Raises:
        UserError: a target in it is not of its place's kind.
        InstantiationException: of Hydra, around what the constructor has raised.
    """
    _check_builds(path, node)
    for inner, target in targets(node, path):
        check_kind(inner, target)
    return instantiate(node, _convert_="all", **given)


def _check_builds(path: str, node: Any) -> None:
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{path}: expected a mapping with a _target_, got {node!r}")


def build_net(node: DictConfig, num_classes: int) -> Any:
    """The network of a `model`, told the number of classes if it can be told."""
    _check_builds("model", node)
    target = located("model._target_", node["_target_"])
    try:
        signature = signature_of(target, node)
        told = signature.open_ended or "num_classes" in signature.parameters
    except (TypeError, ValueError):  # written in C: it will say
        told = True
    return build("model", node, **({"num_classes": num_classes} if told else {}))


def build_optimizer(options: DictConfig, lr: float) -> Callable[[nn.Module], Optimizer]:
    """What makes the optimizer of a network: `make_optimizer`, or a class alone."""
    from resnet_se.training.param_groups import make_optimizer

    make = build("optimizer", options, lr=lr, _partial_=True)
    if isinstance(make.func, type):
        return functools.partial(make_optimizer, cls=make.func, **make.keywords)
    return make


def check_saved(cfg: DictConfig) -> None:
    """The parts of a saved configuration that its readers build.

    Raises:
        UserError: one is missing, of another kind, or has a value out of its range.
    """
    check_value("seed", value_at("seed", cfg), KEYS["train"]["seed"])
    for group in ("model", "data", "trainer"):
        check_value(group, plain(cfg.get(group)), dict)
    hints = FOREIGN["lightning.pytorch.trainer.trainer.Trainer"]
    for key in ("limit_val_batches", "limit_test_batches"):
        check_value(f"trainer.{key}", cfg.trainer.get(key), hints[key])
    if cfg.get("tta"):
        check_value("tta", plain(cfg.tta), dict)
    for group in ("model", "data", "tta"):
        for path, node in targets(cfg.get(group), group):
            check_kind(path, node)
            check_arguments(path, node, located(path, node["_target_"]))


# --- keys --------------------------------------------------------


def check_keys(cfg: DictConfig, config_name: str = "train") -> None:
    """The keys of the top level, and of the groups that name no target.

    Args:
        config_name: the command's own, in `conf/`.

    Raises:
        UserError: as `check_config`.
    """
    if config_name == "train":
        _check_top_level(cfg)
    for path, hint in KEYS.get(config_name, {}).items():
        parent = OmegaConf.select(cfg, path.rpartition(".")[0]) if "." in path else cfg
        key = path.rpartition(".")[2]
        if isinstance(parent, DictConfig) and key in parent:
            check_value(path, plain(value_at(path, parent)), hint)
    if config_name == "train":
        _check_groups(cfg)


def _check_top_level(cfg: DictConfig) -> None:
    primary, groups = _top_level()
    known = (primary.keys() | groups.keys()) - NO_KEYS
    for key in cfg:
        if key not in known:
            raise UserError(f"unknown key {key!r}; {nearest(str(key), known)}")
    if cfg.get("run_dir"):
        raise UserError("run_dir: train names it; runs_dir=… says where runs lie")
    for key in sorted(known):
        # A group set to null on the command line leaves no key at all.
        nullable = key in NULLABLE or primary.get(key, "") is None
        if not nullable and (key not in cfg or cfg[key] is None):
            choices = groups.get(key)
            hint = f"; {nearest('', choices)}" if choices else ""
            raise UserError(f"{key}: expected a value, got null{hint}")
        if key in groups and not isinstance(cfg.get(key) or {}, dict | DictConfig):
            raise UserError(f"{key}: expected a mapping, got {cfg[key]!r}")


def _check_groups(cfg: DictConfig) -> None:
    for key in ("budget", "launcher"):
        names = [p.partition(".")[2] for p in KEYS["train"] if p.startswith(f"{key}.")]
        for name in cfg[key]:
            if name not in names:
                raise UserError(f"{key}.{name}: unknown; {nearest(str(name), names)}")
    for group in ("callbacks", "logger"):
        for name, node in (cfg[group] or {}).items():
            _check_entry(f"{group}.{name}", node)
    for group in ("model", "data", "augment", "mixing", "optimizer", "scheduler"):
        if "_target_" not in cfg[group]:
            raise UserError(f"{group}._target_: expected a value, got none")
    for path in ("optimizer.lr", "trainer.max_epochs", "data.source"):
        if OmegaConf.select(cfg, path) is None:
            raise UserError(f"{path}: expected a value, got null")


def _check_entry(path: str, node: Any) -> None:
    if node is None:  # a preset's, left out
        return
    if not isinstance(node, DictConfig):
        got = plain(node)
        raise UserError(
            f"{path}: expected a mapping with a _target_, or null, got {got!r}"
        )
    if "_target_" not in node:
        names = set(OmegaConf.load(CONF / "callbacks/default.yaml"))
        name = path.partition(".")[2]
        raise UserError(f"{path}: no _target_ there; {nearest(name, names)}")


@functools.cache
def _top_level() -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Keys of the top level with their defaults, and {group: its choices}."""
    primary = OmegaConf.load(CONF / "train.yaml")
    assert isinstance(primary, DictConfig)
    groups = {
        str(key): sorted(path.stem for path in (CONF / str(key)).glob("*.yaml"))
        for entry in primary.pop("defaults")
        if isinstance(entry, DictConfig)
        for key in entry
        if not str(key).startswith("override")
    }
    return {str(key): value for key, value in primary.items()}, groups


# --- a preset whose target was replaced --------------------------


def _drop_preset_keys(cfg: DictConfig) -> None:
    if not HydraConfig.initialized():
        return
    typed = typed_keys()
    choices = HydraConfig.get().runtime.choices
    for group in ("model", "data", "augment", "mixing", "optimizer", "scheduler"):
        preset = _preset(group, choices.get(group))
        for path, node in list(targets(cfg[group], group)):
            old = OmegaConf.select(OmegaConf.create({group: preset}), path)
            if isinstance(old, DictConfig) and _named(old) != _named(node):
                _drop(path, node, old, typed)


def typed_keys() -> set[str]:
    """The keys that the command line sets; none outside of a command."""
    if not HydraConfig.initialized():
        return set()
    return {o.split("=")[0].lstrip("+~") for o in HydraConfig.get().overrides.task}


def _named(node: DictConfig) -> tuple[Any, Any]:
    cls = node.get("cls")
    path = cls.get("path") if isinstance(cls, DictConfig) else None
    return node.get("_target_"), path


def _drop(path: str, node: DictConfig, old: DictConfig, typed: set[str]) -> None:
    """Removes what stands there as the preset has it and the target does not take."""
    target = located(f"{path}._target_", node["_target_"])
    try:
        takes = set(signature_of(target, node).parameters)
    except (TypeError, ValueError):  # Python cannot tell: the constructor will
        return
    ours = OmegaConf.to_container(node)
    theirs = OmegaConf.to_container(old)
    with open_dict(node):
        for key in set(theirs) - HYDRA_KEYS - takes:
            name = f"{path}.{key}"
            user_gave = any(t == name or t.startswith(f"{name}.") for t in typed)
            if key in ours and not user_gave and ours[key] == theirs[key]:
                del node[key]


def _base(entry: str, group: str) -> tuple[str, str]:
    """Group and name of an entry of a `defaults` list: `none`, `/base@_here_`."""
    entry = entry.partition("@")[0]
    if entry.startswith("/"):
        group, _, entry = entry[1:].rpartition("/")
    return group, entry


def _preset(group: str, choice: str | None) -> DictConfig:
    """The file of a choice, merged with the files of its group that it starts from."""
    for source in HydraConfig.get().runtime.config_sources:
        path = Path(source.path) / group / f"{choice}.yaml"
        if source.schema == "file" and path.is_file():
            own = OmegaConf.load(path)
            assert isinstance(own, DictConfig)
            bases = [b for b in own.pop("defaults", []) if b != "_self_"]
            merged = [_preset(*_base(b, group)) for b in bases if isinstance(b, str)]
            return OmegaConf.unsafe_merge(*merged, own)  # type: ignore[return-value]
    return OmegaConf.create({})


# --- what only shows together ------------------------------------


def _check_together(cfg: DictConfig) -> None:
    from resnet_se.utils.system import accelerator

    trainer = cfg.trainer
    if cfg.launcher.get("dry_run"):  # of a multirun it is the launcher's
        raise UserError("launcher.dry_run: only a multirun is launched; add -m")
    if trainer.precision == "16-mixed" and accelerator(trainer.accelerator) != "cuda":
        raise UserError(
            "trainer.precision: 16-mixed needs an NVIDIA GPU, this run is on "
            f"{accelerator(trainer.accelerator)}; bf16-mixed and 32-true work there"
        )


def _rehearse(cfg: DictConfig) -> None:
    """Mixing, TTA, and a step of an optimizer with its schedule on three layers.

    All that they would refuse shows before the data are read.
    """
    import torch
    from torch import nn

    build("mixing", cfg.mixing)
    if cfg.tta:
        build("tta", cfg.tta)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = build_optimizer(cfg.optimizer, cfg.optimizer.lr)(net)
    build("scheduler", cfg.scheduler, _partial_=True)(
        optimizer, 1, cfg.trainer.max_epochs
    )
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step(lambda: 0.0)
    except Exception as error:
        name = type(optimizer).__name__
        raise UserError(f"optimizer: {name}: {error}") from error
