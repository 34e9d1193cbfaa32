"""Validation: one walk over a composed configuration before anything of it is called.

    keys      is there a reader for every key, and a value of its type and range?
    targets   does each slot name a class of its kind, and are its arguments right?
    together  does it fit this machine; do optimizer, schedule, mixing and TTA work?

The result is a `Recipe` of plain values; nothing writes to a configuration after it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from resnet_se.config import CONF
from resnet_se.config.command_line import known_key, top_level
from resnet_se.config.compose import as_mapping, plain_values
from resnet_se.config.recipe import Recipe
from resnet_se.config.schema import COMMANDS, NULLABLE, TRAIN
from resnet_se.config.targets import (
    HYDRA_KEYS,
    check_kind,
    check_set,
    check_targets,
    located,
    signature_of,
    targets,
    value_below,
)
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.system import accelerator
from resnet_se.utils.validation import check_value

# Chosen to change others' keys; they leave none of their own.
NO_KEYS = {"hydra", "experiment", "debug", "hparams_search"}
TARGET_GROUPS = ("model", "data", "augment", "mixing", "optimizer", "scheduler")
NEEDED = ("optimizer.lr", "trainer.max_epochs", "data.source")


def validate(cfg: DictConfig) -> Recipe:
    """Check a composed training configuration, whole, and return it as plain values.

    Where a preset's target has been replaced, the preset's keys that the new one does
    not take are left out; keys that the user gave are checked.

    Raises:
        UserError: the first key without a reader, value out of its range, target that
            is not of its slot's kind or argument that it does not take.
    """
    values = check_keys(cfg)
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        choices = hydra.runtime.choices
        multirun = hydra.mode == RunMode.MULTIRUN
        recipe = Recipe(
            _without_stale_keys(values, cfg, hydra),
            choices.get("experiment") or "custom",
            {
                group: choice
                for group, choice in choices.items()
                if (group in values or group == "debug") and choice is not None
            },
            tuple(hydra.overrides.task),
            Path(hydra.runtime.output_dir).parent if multirun else None,
        )
    else:
        recipe = Recipe(values)
    _check_reading(recipe.values)
    check_targets(recipe.values, "")
    _check_machine(recipe.values)
    # A misspelt key is answered before torch has been imported.
    from resnet_se.config.build import rehearse

    rehearse(recipe)
    return recipe


# --- keys --------------------------------------------------------


def check_keys(cfg: DictConfig, command: str = "train") -> dict[str, Any]:
    """Check the keys of the top level and of groups without a target; resolve them.

    Args:
        command: whose configuration it is.

    Raises:
        UserError: as `validate`.
    """
    for group in ("budget", "launcher"):  # what others are resolved from
        if command == "train" and isinstance(cfg.get(group), DictConfig):
            node = OmegaConf.to_container(cfg[group], resolve=True)
            _check_values({group: node}, TRAIN)
    if command == "train":
        _check_top_level(cfg)
    elif command in COMMANDS:
        _check_known(cfg, command)
    values = plain_values(cfg)
    _check_values(values, COMMANDS.get(command, {}))
    runs = values.get("run")
    if isinstance(runs, list) and len({Path(r).resolve() for r in runs}) < len(runs):
        raise UserError(f"run: expected different runs, got {', '.join(runs)}")
    if command == "train":
        _check_groups(values)
    return values


def _check_values(values: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    for path, known in keys.items():
        parent, _, key = path.rpartition(".")
        owner = value_below(values, parent) if parent else values
        if known.hint is not None and isinstance(owner, Mapping) and key in owner:
            check_set(path, owner[key])
            check_value(path, owner[key], known.hint)


def _check_known(cfg: DictConfig, command: str) -> set[str]:
    """Return the keys that a command reads at the top level; refuse any other."""
    known = set(top_level(command)) - NO_KEYS
    for key in map(str, cfg):
        if key not in known:
            raise UserError(f"unknown key {key!r}; {known_key(command, key)}")
    return known


def _check_top_level(cfg: DictConfig) -> None:
    known = _check_known(cfg, "train")
    if cfg.get("run_dir"):
        raise UserError("run_dir: train names it; runs_dir=… says where runs lie")
    for key in sorted(known):
        choices = [path.stem for path in (CONF / key).glob("*.yaml")]
        # A group set to null on the command line leaves no key at all.
        nullable = key in NULLABLE or top_level("train")[key] is None
        if not nullable and (key not in cfg or cfg[key] is None):
            hint = f"; {nearest('', choices)}" if choices else ""
            raise UserError(f"{key}: expected a value, got null{hint}")
        if choices and not isinstance(cfg.get(key) or {}, dict | DictConfig):
            raise UserError(f"{key}: expected a mapping, got {cfg[key]!r}")


def _check_groups(values: Mapping[str, Any]) -> None:
    for key in ("budget", "launcher"):
        names = [p.partition(".")[2] for p in TRAIN if p.startswith(f"{key}.")]
        for name in values[key]:
            if name not in names:
                raise UserError(f"{key}.{name}: unknown; {nearest(str(name), names)}")
    for i, named in enumerate(values["against"]):  # else no report takes the record
        texts = all(isinstance(text, str) for text in named.values())
        if set(named) != {"experiment", "question"} or not texts:
            raise UserError(
                f"against[{i}]: expected {{experiment: NAME, question: TEXT}}, got "
                f"{named}"
            )
    for group in ("callbacks", "logger"):
        for name, node in (values.get(group) or {}).items():
            _check_entry(f"{group}.{name}", node)
    for group in TARGET_GROUPS:
        if "_target_" not in values[group]:
            raise UserError(f"{group}._target_: expected a value, got none")
    for path in NEEDED:
        if value_below(values, path) is None:
            raise UserError(f"{path}: expected a value, got null")


def _check_entry(path: str, node: Any) -> None:
    if node is None:  # a preset's, left out
        return
    if not isinstance(node, Mapping):
        raise UserError(
            f"{path}: expected a mapping with a _target_, or null, got {node!r}"
        )
    if "_target_" not in node:
        names = set(OmegaConf.load(CONF / "callbacks/default.yaml"))
        name = path.partition(".")[2]
        raise UserError(f"{path}: no _target_ there; {nearest(name, names)}")


# --- a preset whose target was replaced --------------------------


def _without_stale_keys(
    values: dict[str, Any], cfg: DictConfig, hydra: HydraConf
) -> dict[str, Any]:
    """The values without a preset's keys that the target in its place does not take."""
    folders = [
        Path(source.path)
        for source in hydra.runtime.config_sources
        if source.schema == "file"
    ]
    typed = {override.split("=")[0].lstrip("+~") for override in hydra.overrides.task}
    values, raw = copy.deepcopy(values), OmegaConf.to_container(cfg)
    for group in TARGET_GROUPS:
        preset = {group: _preset(folders, group, hydra.runtime.choices.get(group))}
        for path, node in list(targets(values[group], group)):
            old = value_below(preset, path)
            if isinstance(old, dict) and _named(old) != _named(node):
                check_kind(path, node)
                stale = _stale_keys(path, node, old, typed)
                for key in stale:
                    unresolved = value_below(raw, f"{path}.{key}")
                    if key in node and unresolved == old[key]:
                        assert isinstance(node, dict)
                        del node[key]
    return values


def _named(node: Mapping[str, Any]) -> tuple[Any, Any]:
    cls = node.get("cls")
    path = cls.get("path") if isinstance(cls, Mapping) else None
    return node.get("_target_"), path


def _stale_keys(
    path: str, node: Mapping[str, Any], old: Mapping[str, Any], typed: set[str]
) -> set[str]:
    """The keys of a preset that its new target does not take and nobody has typed."""
    target = located(f"{path}._target_", node["_target_"])
    try:
        takes = set(signature_of(target, node).parameters)
    except (TypeError, ValueError):  # Python cannot tell: the constructor will
        return set()
    return {
        key
        for key in set(old) - HYDRA_KEYS - takes
        if not any(f"{t}.".startswith(f"{path}.{key}.") for t in typed)
    }


def _base(entry: str, group: str) -> tuple[str, str]:
    """Group and name of an entry of a `defaults` list: `none`, `/base@_here_`."""
    entry = entry.partition("@")[0]
    if entry.startswith("/"):
        group, _, entry = entry[1:].rpartition("/")
    return group, entry


def _preset(folders: Sequence[Path], group: str, choice: str | None) -> dict[str, Any]:
    """The file of a choice, merged with the files of its group that it starts from."""
    for folder in folders:
        path = folder / group / f"{choice}.yaml"
        if path.is_file():
            own = as_mapping(OmegaConf.to_container(OmegaConf.load(path)))
            bases = [b for b in own.pop("defaults", []) if b != "_self_"]
            merged = [
                _preset(folders, *_base(base, group))
                for base in bases
                if isinstance(base, str)
            ]
            whole = OmegaConf.unsafe_merge(*merged, own)
            return as_mapping(OmegaConf.to_container(whole))
    return {}


# --- the reading -------------------------------------------------


def _check_reading(values: Mapping[str, Any]) -> None:
    model = values["model"]
    if value_below(values, "reading.name") != "keras":
        return
    check_kind("model", model)
    target = located("model._target_", model["_target_"])
    if "padding" not in signature_of(target, model).parameters:
        raise UserError(
            "reading=keras: it sets padding and initialisation of this package's "
            f"ResNet, which {model['_target_']} has in its own way; write "
            "reading=pytorch, and its other options one by one (docs/pages/keras.md)"
        )


# --- the machine -------------------------------------------------


def _check_machine(values: Mapping[str, Any]) -> None:
    trainer = values["trainer"]
    if values["launcher"].get("dry_run"):  # of a multirun it is the launcher's
        raise UserError("launcher.dry_run: only a multirun is launched; add -m")
    device = trainer["accelerator"]
    kind = accelerator(device, "trainer.accelerator")
    if trainer["precision"] == "16-mixed" and kind != "cuda":
        raise UserError(
            "trainer.precision: 16-mixed needs an NVIDIA GPU, this run is on "
            f"{kind}; bf16-mixed and 32-true work there"
        )
    for key, unset in (("max_steps", -1), ("max_time", None)):
        if values["data"].get("resolution") and trainer.get(key, unset) != unset:
            raise UserError(
                f"trainer.{key}: expected none with data.resolution, whose phases are "
                f"shares of trainer.max_epochs, got {trainer[key]}"
            )
