"""A training's computing seconds, ours against the reference, by interleaved steps.

    OMP_NUM_THREADS=1 python experiments/speedrun/turns.py --root DATA
    OMP_NUM_THREADS=1 python experiments/speedrun/turns.py --root DATA --best

Where a whole training takes an hour, a step stands for it: each recipe takes
one step that is not counted and one that is, ours through the Trainer.  CPU seconds of
the process, so that what else the machine does counts less; float32 for all, since not
every processor has bf16.  A training is its steps, and ours its validations too.

`--best` measures best_cpu and its rivals instead, for `../best/turns.json`.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose

from resnet_se.analysis.timing import Stopwatch
from resnet_se.commands.app import filter_warnings
from resnet_se.config import build
from resnet_se.config.compose import plain_values
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.recipe import Recipe
from resnet_se.data.normalisation import channel_statistics, normalise
from resnet_se.data.sources import CIFAR10
from resnet_se.utils import system

HERE = Path(__file__).parent
CPU = torch.device("cpu")
OURS = {
    "speedrun": ["experiment=speedrun"],
    "speedrun without SE": ["experiment=speedrun", "model=vanilla_airbench"],
}
BEST = {n: [f"experiment={n}"] for n in ("best_cpu", "rival_resnet18", "rival_e14")}


class Ours:
    """A recipe through the Trainer."""

    def __init__(self, overrides: list[str], root: Path):
        with with_conf():
            told = ["trainer=cpu", "trainer.precision=32-true"]
            told += [f"data.source.root={root}", "data.num_workers=0", *overrides]
            self.recipe = Recipe(plain_values(compose("train", told)))
        self.data = build.build_datamodule(self.recipe)
        self.data.locate()
        self.data.setup()
        self.model = build.build_module(self.recipe, self.data.num_classes)
        per_epoch = len(self.data.train_part[0]) // self.data.batch_size
        self.steps = per_epoch * self.recipe.trainer["max_epochs"]
        self.validations = self.recipe.trainer["max_epochs"]

    def step(self) -> float:
        trainer = build.build_trainer(self.recipe)
        watch = Stopwatch(CPU, 1, 1)
        trainer.limit_train_batches, trainer.limit_val_batches = 2, 0
        trainer.callbacks = [watch]
        trainer.fit(self.model, datamodule=self.data)
        return watch.seconds

    @torch.inference_mode()
    def validation(self) -> float:
        self.model.eval()
        images = normalise(self.data.val_part[0], *self.data.statistics)
        started = time.process_time()
        for part in images.split(500):
            self.model(part)
        self.model.train()
        return time.process_time() - started


class Reference:
    """airbench94's recipe, a plain loop (`reference.py`)."""

    def __init__(self, root: Path):
        script = runpy.run_path(str(HERE / "reference.py"))
        script["steps"].__globals__["PRECISION"] = torch.float32
        images = CIFAR10(str(root)).load()
        pixels = normalise(
            images.train_images, *channel_statistics(images.train_images)
        )
        self.steps = round(script["EPOCHS"] * (len(pixels) // script["BATCH"]))
        self.one = script["steps"](pixels, images.train_labels, 0)

    def step(self) -> float:
        return Stopwatch(CPU, 1, 1).time(self.one, lambda net: None)


def add_trainings(figures: dict[str, dict[str, Any]]) -> None:
    """Seconds of a whole training, and their share of the first's."""
    for figure in figures.values():
        whole = figure["steps"] * statistics.median(figure["step"])
        if "validations" in figure:
            whole += figure["validations"] * statistics.median(figure["validation"])
        figure["training"] = round(whole)
        first = next(iter(figures.values()))["training"]
        figure["share"] = round(whole / first, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--best", action="store_true", help="best_cpu and its rivals")
    told = parser.parse_args()
    system.now = lambda device: time.process_time()
    filter_warnings()
    recipes = BEST if told.best else OURS
    ours = {name: Ours(overrides, told.root) for name, overrides in recipes.items()}
    theirs = None if told.best else Reference(told.root)
    found = {}
    # In this order, there is no way back.
    for allocator in ("kept",) if told.best else ("default", "kept"):
        if allocator == "kept":
            system.keep_freed_memory()
        found[allocator] = figures = {}
        if theirs:
            figures["reference"] = {"steps": theirs.steps, "step": []}
        for name, recipe in ours.items():
            counts = {"steps": recipe.steps, "validations": recipe.validations}
            figures[name] = {**counts, "step": [], "validation": []}
        for _ in range(told.rounds):
            if theirs:
                figures["reference"]["step"].append(round(theirs.step(), 2))
            for name, recipe in ours.items():
                figures[name]["step"].append(round(recipe.step(), 2))
                figures[name]["validation"].append(round(recipe.validation(), 2))
            print(allocator, json.dumps(figures), flush=True)
        add_trainings(figures)
    record = {
        **system.environment(),
        "hardware": system.hardware(CPU, "32-true"),
        "threads": torch.get_num_threads(),
        "rounds": told.rounds,
        "figures": found,
    }
    out = HERE.parent / "best/turns.json" if told.best else HERE / "turns.json"
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
