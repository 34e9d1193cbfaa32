"""The recipe: a validated configuration as plain values, frozen, saved and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from resnet_se.config.schema import THIRD_PARTY_HINTS, TRAIN
from resnet_se.config.targets import check_set, check_targets, present_path
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import read_regular
from resnet_se.utils.validation import check_value

# Stands in a saved configuration for the run directory, which may move.
RUN_DIR = "<run_dir>"
# A configuration has some hundred values; class weights may be thousands.
MOST_BYTES, MOST_VALUES = 1 << 20, 50_000


@dataclass(frozen=True)
class Recipe:
    """All that a training is to do, before the machine and the data have their say.

    Args:
        values: the resolved configuration, `RUN_DIR` where its run directory is meant.
        experiment: the name chosen on the command line, or `custom`.
        choices: {group: its choice}.
        overrides: the command line's, as typed.
        sweep: the directory of the multirun that it is a job of.
    """

    values: Mapping[str, Any]
    experiment: str = "custom"
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    sweep: Path | None = None

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    @property
    def trainer(self) -> Mapping[str, Any]:
        """The arguments of Lightning's Trainer, and the keys that are read beside."""
        return self.values["trainer"]

    @property
    def typed_keys(self) -> set[str]:
        """The keys that the command line sets."""
        return {override.split("=")[0].lstrip("+~") for override in self.overrides}

    def replaced(self, group: str, **values: Any) -> Recipe:
        """The same with other values in one group."""
        values = {**self.values[group], **values}
        return replace(self, values={**self.values, group: values})

    def at(self, run_dir: Path) -> Recipe:
        """The same with `run_dir` for its placeholder."""
        return replace(self, values=_placed(self.values, str(run_dir)))


def _placed(node: Any, run_dir: str) -> Any:
    if isinstance(node, Mapping):
        return {key: _placed(value, run_dir) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(item, run_dir) for item in node]
    return node.replace(RUN_DIR, run_dir) if isinstance(node, str) else node


# --- saved in a run directory ------------------------------------


def saved_config(run_dir: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run directory as plain values.

    Raises:
        UserError: there is none, or it is not readable.
    """
    path = run_dir / "config.yaml"
    try:
        plain = _parsed(read_regular(path, MOST_BYTES).decode())
    except FileNotFoundError:
        raise UserError(f"run: expected a run directory, got {run_dir}") from None
    except Exception as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: not a configuration of a run: {reason}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: not a configuration of a run")
    try:
        _check_numbers(plain)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return plain


def _check_numbers(node: Any, path: str = "") -> None:
    """Raise ValueError at a whole number that what computes with it cannot hold."""
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            _check_numbers(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, int) and abs(node) >= 1 << 64:
        raise ValueError(f"{path}: expected a number of at most 64 bits")


def _parsed(text: str) -> Any:
    """YAML without references, a few of which could stand for billions of values."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for count, event in enumerate(yaml.parse(text, loader)):
        if count > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES:,} values")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 64:
            raise ValueError("references, or more than 64 levels")
    return yaml.load(text, loader)


def load_recipe(run_dir: Path) -> Recipe:
    """The recipe of a run, wherever its directory and our modules lie now.

    Raises:
        UserError: as `saved_config`.
    """
    values = with_present_targets(saved_config(run_dir))
    return Recipe(values).at(run_dir.resolve())


def with_present_targets(node: Any) -> Any:
    """Return a saved configuration with the paths that its targets have today."""
    if isinstance(node, dict):
        return {
            key: present_path(value)
            if key == "_target_" and isinstance(value, str)
            else with_present_targets(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [with_present_targets(item) for item in node]
    return node


def check_saved(recipe: Recipe) -> None:
    """Check the parts of a saved recipe that its readers build.

    Raises:
        UserError: one is missing, of another kind, or has a value out of its range.
    """
    values = recipe.values
    for key in ("seed", "model", "data", "trainer"):
        if key not in values:
            raise UserError(f"{key}: expected a value, got none")
    check_set("seed", values["seed"])
    check_value("seed", values["seed"], TRAIN["seed"].hint)
    for group in ("model", "data", "trainer"):
        check_value(group, values[group], dict)
    hints = THIRD_PARTY_HINTS["lightning.pytorch.trainer.trainer.Trainer"]
    for key in ("limit_val_batches", "limit_test_batches"):
        check_value(f"trainer.{key}", values["trainer"].get(key), hints[key])
    if values.get("tta"):
        check_value("tta", values["tta"], dict)
    for group in ("model", "data", "tta"):
        check_targets(values.get(group), group)
