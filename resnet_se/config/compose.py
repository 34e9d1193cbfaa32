"""Composition: Hydra's part of it, our resolvers, and a user's own `conf/` folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from resnet_se.config import CONF
from resnet_se.config.hydra_versions import register_resolver
from resnet_se.config.recipe import RUN_DIR
from resnet_se.training.metrics import METRICS

# --- resolvers ---------------------------------------------------


def _epochs(value: float | int, *, _root_: DictConfig) -> float:
    """`${epochs:N}`: N of the paper's epochs under the chosen budget."""
    return round(float(value) * _root_.budget.scale, 4)


def _whole_epochs(value: float | int, least: int = 1, *, _root_: DictConfig) -> int:
    """`${whole_epochs:N,M}`: the same as an integer of at least M, 1 by default."""
    return max(least, round(float(value) * _root_.budget.scale))


def _depths(*blocks: int, _root_: DictConfig) -> ListConfig:
    """`${depths:A,B,…}`: blocks of each stage × budget.depth, at least one."""
    factor = _root_.budget.get("depth", 1.0)
    return ListConfig([max(1, round(n * factor)) for n in blocks])


def _widths(*channels: int, _root_: DictConfig) -> ListConfig:
    """`${widths:A,B,…}`: channels of each stage × budget.width, at least one."""
    factor = _root_.budget.get("width", 1.0)
    return ListConfig([max(1, round(n * factor)) for n in channels])


def _reduction(ratio: int, *, _root_: DictConfig) -> int:
    """`${reduction:R}`: R × budget.width, so that a gate keeps its hidden units."""
    return max(1, round(ratio * _root_.budget.get("width", 1.0)))


def _direction(metric: str) -> str | None:
    """`${direction:METRIC}`: `min` or `max`, whichever is better, or null."""
    return METRICS.get(metric, "min")  # a name that is none is told when it is built


def _typed() -> str:
    """`${typed:}`: six hex digits of the command line, alike when it is typed again."""
    words = sorted(word for word in sys.argv[1:] if word not in ("-m", "--multirun"))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:6]


register_resolver("depths", _depths, replace=True)
register_resolver("direction", _direction, replace=True)
register_resolver("epochs", _epochs, replace=True)
register_resolver("pid", os.getpid, replace=True, use_cache=True)
register_resolver("reduction", _reduction, replace=True)
register_resolver("typed", _typed, replace=True, use_cache=True)
register_resolver("whole_epochs", _whole_epochs, replace=True)
register_resolver("widths", _widths, replace=True)


# --- composing ---------------------------------------------------


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values, `RUN_DIR` for its run directory."""
    copied = as_mapping(OmegaConf.to_container(cfg))
    if "run_dir" in copied:
        copied["run_dir"] = RUN_DIR
    return as_mapping(OmegaConf.to_container(OmegaConf.create(copied), resolve=True))


def as_mapping(plain: object) -> dict[str, Any]:
    """Return the plain values of a DictConfig, whose keys are names."""
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def compose_job(overrides: list[str]) -> DictConfig:
    """The configuration that `train` would be called with; sets Hydra's own too."""
    cfg = compose("train", [*overrides, *own_conf()], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    return cfg


def own_conf() -> list[str]:
    """The override that adds a `conf/` in the working directory to Hydra's search path.

    Empty where there is none, or the command line says where to look.  Of two files of
    the same name ours wins; a notice says so.
    """
    folder = Path("conf").resolve()
    told = any(
        a.startswith(("hydra.searchpath", "--config-dir", "-cd")) for a in sys.argv
    )
    if told or not folder.is_dir() or folder == CONF.resolve():
        return []
    for path in sorted(folder.glob("*/*.yaml")):
        name = path.relative_to(folder)
        if (CONF / name).is_file():
            said = f"conf/{name}: resnet_se has one of that name, which is taken"
            print(said, file=sys.stderr)  # where the shell's completion does not look
    return [f"hydra.searchpath=[file://{folder}]"]
