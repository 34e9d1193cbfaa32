"""Settling: a recipe on this machine and these data becomes a run with a name.

train, plan, benchmark and search go this one way from a `Recipe` to its hash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from resnet_se.config.build import build_datamodule, build_module
from resnet_se.config.recipe import Recipe
from resnet_se.config.schema import HASH_RULES
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.runs.run_hash import Environment, config_hash, hashed_config
from resnet_se.training.preparation import restored_state
from resnet_se.utils import distributed, system
from resnet_se.utils.console import console
from resnet_se.utils.files import atomic_file
from resnet_se.utils.system import now


@dataclass(frozen=True)
class Run:
    """A recipe settled: what `auto` and the data left open is decided.

    Args:
        recipe: with the source that the data come from, its root absolute.
        directory: `<runs_dir>/<experiment>/seed<k>-<hash>`.
        hashed: of `hashed_config`; `digest` is its hash.
        environment: data identity, precision, world size.
        data: located, not decoded.
    """

    recipe: Recipe
    directory: Path
    hashed: dict[str, Any]
    digest: str
    environment: Environment
    data: ImageDataModule

    @property
    def name(self) -> str:
        """`seed0-3f2a1b4c`: names the run in its checkpoints, wherever it lies."""
        return f"seed{self.recipe['seed']}-{self.digest}"


def settle(recipe: Recipe) -> Run:
    """Find the data, decide precision and world size, and name the run.

    Raises:
        UserError: no data, more devices than there are, a path that is not there.
    """
    data = build_datamodule(recipe)
    key = data.locate()
    if data.fell_back:
        recipe = recipe.replaced("data", source=recipe["data"]["fallback"])
    source = recipe["data"]["source"]
    if "root" in source:  # `evaluate` may be called from elsewhere
        root = str(Path(source["root"]).expanduser().resolve())
        recipe = recipe.replaced("data", source={**source, "root": root})
    precision = resolve_precision(recipe, data)
    recipe = recipe.replaced("trainer", precision=precision)
    environment = Environment(key, precision, distributed.processes(recipe.trainer))
    hashed = hashed_config(dict(recipe.values), environment, HASH_RULES)
    digest = config_hash(hashed)
    folder = Path(recipe["runs_dir"], recipe.experiment)
    directory = folder / f"seed{recipe['seed']}-{digest}"
    return Run(recipe, directory, hashed, digest, environment, data)


def recipe_hash(recipe: Recipe) -> str:
    """The hash of a recipe alone, whatever the machine and the data."""
    nothing = Environment("", "", 1)
    return config_hash(hashed_config(dict(recipe.values), nothing, HASH_RULES))


def resolve_precision(recipe: Recipe, data: ImageDataModule) -> str:
    """`trainer.precision` with `auto` resolved, once for a machine and a network.

    bf16-mixed needs hardware that has bf16.  A GPU takes it then; on a CPU it wins with
    some networks and loses with others, so a few training steps of either are timed,
    and the faster is remembered in the cache folder: every seed of a sweep has the
    same.
    """
    device = system.accelerator(recipe.trainer["accelerator"], "trainer.accelerator")
    asked = str(recipe.trainer["precision"])
    has_bf16 = system.has_bf16(torch.device(device))
    if asked != "auto":
        if asked.startswith("bf16") and device == "cpu" and not has_bf16:
            console.print(
                f"precision: this processor emulates {asked}; "
                "trainer.precision=32-true may be many times faster",
                soft_wrap=True,
                highlight=False,
            )
        return asked
    if not has_bf16:
        return "32-true"
    if device == "cuda":
        return "bf16-mixed"
    if distributed.in_group():  # each would measure, and not all the same
        console.print("precision: 32-true; torchrun's CPU processes do not measure")
        return "32-true"
    name = json.dumps(
        [system.processor(), torch.__version__, recipe["model"]], sort_keys=True
    )
    path = system.cache_folder() / "precision.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # the first to come measures for all
        try:
            resolved = json.loads(path.read_text())
        except (OSError, ValueError):
            resolved = {}
        if name not in resolved:
            data.setup()
            net = build_module(recipe, data.num_classes).net
            float32, bf16 = step_seconds(net, data.image_size)
            resolved[name] = "bf16-mixed" if bf16 < float32 else "32-true"
            console.print(
                f"precision: {resolved[name]} (bf16: {float32 / bf16:.1f}× float32)"
            )
            with atomic_file(path) as file:
                file.write(json.dumps(resolved, indent=1).encode())
    return resolved[name]


def step_seconds(net: torch.nn.Module, size: tuple[int, int]) -> tuple[float, float]:
    """Seconds of a CPU training step of 32 images, float32 and bf16: best of five."""
    x = torch.randn(32, 3, *size).to(memory_format=torch.channels_last)
    times: dict[bool, list[float]] = {False: [], True: []}
    with restored_state(net):
        for _ in range(7):  # interleaved; the first two warm up
            for bf16, samples in times.items():
                start = now(x.device)
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = net(x).float().logsumexp(dim=1).mean()
                loss.backward()
                samples.append(now(x.device) - start)
    return min(times[False][2:]), min(times[True][2:])
