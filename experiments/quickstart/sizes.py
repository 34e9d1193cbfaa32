"""CPU seconds of quickstart's step in three ways, interleaved: sizes.json.

    OMP_NUM_THREADS=1 python experiments/quickstart/sizes.py --root DATA

A step is augmentation, resizing, forward, backward and optimizer, in bf16; 32 pixels
are the step of quickstart as it is.  One thread, CPU seconds of the process.  A
training is its 22 steps of each epoch at the median, and a validation an epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose

from resnet_se.config import build
from resnet_se.config.compose import plain_values
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.recipe import Recipe
from resnet_se.data.resolution import Resolution
from resnet_se.models import convolutions
from resnet_se.training.module import Classifier
from resnet_se.utils import system

# Activation, and the largest side of a map whose weights' gradient is ours.
WAYS = {
    "as it was": ("gelu", 0),
    "products on small maps": ("gelu", convolutions.SMALL),
    "hardswish too": ("hardswish", convolutions.SMALL),
}
SIDES, ROUNDS, STEPS = (32, 28, 24, 20), 7, 22
SCHEDULES: dict[str, tuple[int, list[list[float]]]] = {
    "10 epochs at 32": (10, []),
    "10 epochs, 24 to 40 %, 28 to 70 %": (10, [[24, 0.4], [28, 0.7]]),
    "11 epochs, 24 to 40 %, 28 to 70 %": (11, [[24, 0.4], [28, 0.7]]),
    "10 epochs, 20 to 20 %, 24 to 50 %, 28 to 70 %": (
        10,
        [[20, 0.2], [24, 0.5], [28, 0.7]],
    ),
}


def network(overrides: list[str], num_classes: int, activation: str) -> Classifier:
    with with_conf():
        cfg = compose("train", [*overrides, f"model.activation={activation}"])
    torch.manual_seed(0)
    return build.build_module(Recipe(plain_values(cfg)), num_classes).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    root = parser.parse_args().root
    torch.set_num_threads(1)
    system.keep_freed_memory()
    overrides = ["experiment=quickstart", "trainer=cpu", f"data.source.root={root}"]
    with with_conf():
        recipe = Recipe(plain_values(compose("train", overrides)))
    data = build.build_datamodule(recipe)
    data.locate()
    data.setup()
    modules = {
        way: network(overrides, data.num_classes, activation)
        for way, (activation, _) in WAYS.items()
    }
    optimizers = {
        way: module.new_optimizer(module.net) for way, module in modules.items()
    }
    batches = {}
    for side in SIDES:
        # One epoch, of which a phase would have to leave something.
        phases = ((side, 0.5),) if side < 32 else ()
        data.resolution = Resolution(phases, 2)
        batches[side] = cycle(data.training_batches())

    def step(side: int, way: str) -> float:
        module, optimizer = modules[way], optimizers[way]
        convolutions.SMALL = WAYS[way][1]
        started = time.process_time()
        images, labels = next(batches[side])
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(module(images), labels, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return round(time.process_time() - started, 3)

    @torch.inference_mode()
    def validation(way: str) -> float:
        module = modules[way].eval()
        started = time.process_time()
        for images, labels in data.val_dataloader():
            with torch.autocast("cpu", torch.bfloat16):
                pixels = data.on_after_batch_transfer((images, labels), 0)[0]
                # Not `module`, which without a Trainer tests in float32.
                module.net(pixels.contiguous(memory_format=torch.channels_last))
        module.train()
        return round(time.process_time() - started, 3)

    seconds: dict[str, dict[str, list[float]]] = {
        name: {key: [] for key in (*map(str, SIDES), "validation")} for name in WAYS
    }
    for number in range(ROUNDS + 1):  # the first is not counted
        for side in SIDES:
            for name, taken in seconds.items():
                now = step(side, name)
                if number:
                    taken[str(side)].append(now)
        if number:
            for name, taken in seconds.items():
                taken["validation"].append(validation(name))
        print(number, flush=True)
    trainings: dict[str, dict[str, Any]] = {}
    for way, taken in seconds.items():
        at = {key: statistics.median(values) for key, values in taken.items()}
        for name, (epochs, phases) in SCHEDULES.items():
            sides = Resolution(tuple(map(tuple, phases)), epochs).sizes((32, 32))
            whole = sum(STEPS * at[str(side)] for side, _ in sides)
            trainings[f"{way}; {name}"] = {
                "epochs": epochs,
                "resolution": phases,
                "seconds": round(whole + epochs * at["validation"], 1),
            }
    first = next(iter(trainings.values()))["seconds"]
    for training in trainings.values():
        training["share"] = round(training["seconds"] / first, 3)
    record = {
        **system.environment(),
        "hardware": system.hardware(torch.device("cpu"), "bf16-mixed"),
        "threads": 1, "rounds": ROUNDS, "seconds": seconds, "trainings": trainings,
    }  # fmt: skip
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(trainings, indent=1))


if __name__ == "__main__":
    main()
