"""CPU seconds of quickstart's step at several image sizes, interleaved: sizes.json.

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

import torch
import torch.nn.functional as F
from hydra import compose

from resnet_se.config import build
from resnet_se.config.compose import plain_values
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.recipe import Recipe
from resnet_se.data.resolution import Resolution
from resnet_se.utils import system

SIDES, ROUNDS, EPOCHS, STEPS = (32, 28, 24, 20), 7, 10, 22
SCHEDULES = {
    "as it is": [],
    "24 to 30 %, 28 to 60 %": [[24, 0.3], [28, 0.6]],
    "24 to 40 %, 28 to 70 %": [[24, 0.4], [28, 0.7]],
    "20 to 20 %, 24 to 50 %, 28 to 70 %": [[20, 0.2], [24, 0.5], [28, 0.7]],
}


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
    module = build.build_module(recipe, data.num_classes).train()
    optimizer = module.new_optimizer(module.net)
    batches = {}
    for side in SIDES:
        # One epoch, of which a phase would have to leave something.
        phases = ((side, 0.5),) if side < 32 else ()
        data.resolution = Resolution(phases, 2)
        batches[side] = cycle(data.training_batches())

    def step(side: int) -> float:
        started = time.process_time()
        images, labels = next(batches[side])
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(module(images), labels, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return round(time.process_time() - started, 3)

    @torch.inference_mode()
    def validation() -> float:
        module.eval()
        started = time.process_time()
        for images, labels in data.val_dataloader():
            with torch.autocast("cpu", torch.bfloat16):
                pixels = data.on_after_batch_transfer((images, labels), 0)[0]
                # Not `module`, which without a Trainer tests in float32.
                module.net(pixels.contiguous(memory_format=torch.channels_last))
        module.train()
        return round(time.process_time() - started, 3)

    seconds: dict[str, list[float]] = {str(side): [] for side in SIDES}
    seconds["validation"] = []
    for number in range(ROUNDS + 1):  # the first is not counted
        for side in SIDES:
            taken = step(side)
            if number:
                seconds[str(side)].append(taken)
        if number:
            seconds["validation"].append(validation())
        print(number, {k: v[-1:] for k, v in seconds.items()}, flush=True)
    at = {name: statistics.median(values) for name, values in seconds.items()}
    trainings = {}
    for name, phases in SCHEDULES.items():
        epochs = Resolution(tuple(map(tuple, phases)), EPOCHS).sizes((32, 32))
        whole = sum(STEPS * at[str(side)] for side, _ in epochs)
        trainings[name] = {
            "resolution": phases,
            "seconds": round(whole + EPOCHS * at["validation"], 1),
        }
    for training in trainings.values():
        now = trainings["as it is"]["seconds"]
        training["share"] = round(training["seconds"] / now, 3)
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
