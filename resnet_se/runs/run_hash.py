"""Which run it is: all that determines a result, as a flat mapping, and its hash.

Same hash, same result, within rounding.  What can change the result is in it, resolved;
where, how it is watched and by how many workers is not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from resnet_se.runs.foreign import foreign_sources
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import read_regular

# Raised where the same configuration is to mean another training than before.
RECIPE = 1

# What names a run, says where and how it is watched, or has been resolved into other
# keys, but does not change its result.
NOT_HASHED = (
    "seed",  # stands in the directory's name
    "tags",
    "notes",
    "plots",
    "against",
    "noise_family",
    "runs_dir",
    "run_dir",
    "ckpt_path",  # this and the next two: `BY_CONTENT`
    "init_from",
    "distill",
    "force",
    "fail_fast",
    "launcher",
    "logger",
    "budget",  # resolved into the epochs, images and widths that it scales
    "data.num_workers",
    "data.batch_size",  # the global one is hashed
    "data.source",  # its content is hashed
    "data.fallback",
    "callbacks.checkpoint.every_n_steps",  # its metric is hashed: what is tested
    "optimizer.fused",  # this and `compile`: the same within rounding
    "trainer.compile",
    "trainer.precision",  # what `auto` has been settled to is hashed
    "trainer.accelerator",
    "trainer.devices",  # the world size is hashed
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.default_root_dir",
    "trainer.profiler",
    "trainer.scale_lr",  # the rate in force is hashed
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.use_distributed_sampler",
)
# Of these paths the content is hashed.
BY_CONTENT = ("ckpt_path", "init_from", "distill")
# Settings that came later, as they are where they do nothing: runs from before keep
# their names.
ADDED = {
    "augment.erase": 0,
    "augment.policy": None,
    "distill_weight": 0.9,
    "distill_temperature": 4.0,
    "data.repeats": 1,
    "mixing.probability": 1.0,
    "model.drop_path": 0.0,
    "model.zero_init": False,
    "model.activation": "relu",
    "model.residual": True,
    "model.gate_scale": 1.0,
}
# Callbacks that watch, by their canonical names.
WATCHERS = {
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


class Facts(NamedTuple):
    """What the configuration leaves open and the machine and the data settle."""

    data: str  # the identity of the data's content
    precision: str
    world_size: int  # processes, of one device each


def setting(plain: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """All that determines a run's result but its seed: {dotted key: plain value}.

    A pure function; what `config_hash` covers, and what the record keeps.  Our own
    targets go by a name that stays when a module moves.

    Args:
        plain: of `resolved`.
        facts: of this machine and these data.
    """
    flat = _flat(plain)
    watchers = {
        key.rpartition(".")[0]
        for key, value in flat.items()
        if key.startswith("callbacks.") and value in WATCHERS
    }
    dropped = (*NOT_HASHED, *watchers)
    kept = {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in dropped)
        and not (key in ADDED and value == ADDED[key])
    }
    world = facts.world_size
    kept["recipe"] = RECIPE
    kept["precision"] = facts.precision
    kept["world_size"] = world  # each rank has its own BatchNorm, dropout and mixing
    kept["data.content"] = facts.data
    kept["data.global_batch_size"] = plain["data"]["batch_size"] * world
    trainer = plain["trainer"]
    if world == 1:
        kept.pop("trainer.sync_batchnorm", None)
    elif trainer.get("scale_lr"):
        kept["optimizer.lr"] = plain["optimizer"]["lr"] * world
    for key in BY_CONTENT:
        if plain.get(key):
            kept[f"{key}.content"] = _digest(key, Path(plain[key]))
    kept |= foreign_sources(value for key, value in flat.items() if _is_target(key))
    return dict(sorted(kept.items()))


def config_hash(kept: dict[str, Any]) -> str:
    """Eight hex digits of a `setting`."""
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a callback set to null leaves nothing."""
    if isinstance(node, dict):
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat |= _flat(value, f"{path}.{key}".lstrip("."))
        return flat
    if node is None and path.count(".") == path.startswith("callbacks."):
        return {}
    if _is_target(path):
        node = canonical(str(node))
    elif isinstance(node, list):
        node = [_flat(item) if isinstance(item, dict) else item for item in node]
    return {path: node}


def _is_target(path: str) -> bool:
    return path.rpartition(".")[2] == "_target_"


def canonical(target: str) -> str:
    """The name of a `_target_` that stays when our module moves: `resnet_se:ResNet`."""
    root, _, rest = target.partition(".")
    return f"{root}:{rest.rpartition('.')[2]}" if root == "resnet_se" else target


def _digest(key: str, path: Path) -> str:
    weights = path / "checkpoints/best.ckpt", path / "model.safetensors"  # a bundle's
    file = next(
        (f for f in weights if f.is_file()), weights[0] if path.is_dir() else path
    )
    try:
        return hashlib.sha256(read_regular(file, 64 << 30)).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{key}: {file}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
