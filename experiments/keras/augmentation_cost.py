"""Time and memory of the augmentation of Keras's reading, against that before it.

    git worktree add BEFORE 61cf916^   # the last commit without Keras's options
    python experiments/keras/augmentation_cost.py BEFORE

Each measurement is a forked process of its own on one thread: 40 batches of 128 images
of 32×32 by the batched engine.  Rounds are interleaved.  Seconds are CPU seconds, so
that other work on the machine counts little; memory is the peak of the whole process,
torch with it.  Writes `augmentation_cost.json`.
"""

import argparse
import importlib
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROUNDS, BATCHES, SIZE = 7, 40, 128
PAPER = {"rotation": 15, "shift": 0.1, "shear": 10, "zoom": 0.1, "flip": 0.5}
KERAS = {"fill": "nearest", "zoom_axes": 2, "whole_shifts": False, "affine": "keras"}
CASES = {  # name: (before the options?, arguments)
    "paper, before": (True, PAPER),
    "paper": (False, PAPER),
    "paper, fractional shifts": (False, PAPER | {"whole_shifts": False}),
    "paper, as Keras": (False, PAPER | KERAS),
    "crop and flip, before": (True, {"crop_padding": 4, "flip": 0.5}),
    "crop and flip": (False, {"crop_padding": 4, "flip": 0.5}),
}


AUGMENTS: dict = {}  # of each case; forked processes have it


def imported(root: Path) -> type:
    """Return the class of a checkout, whatever was imported before."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "resnet_se"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    module = importlib.import_module("resnet_se.data.augmentation.pipeline")
    sys.path.remove(str(root))
    assert Path(module.__file__).is_relative_to(root), module.__file__
    return module.Augmentation


def measured(name: str) -> dict[str, float]:
    """Return images a second and the peak memory of this process."""
    augment = AUGMENTS[name]
    generator = torch.Generator().manual_seed(0)
    shape = (SIZE, 3, 32, 32)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    def batches(epoch: int, number: int) -> None:
        draws = augment.draw(number * SIZE, 32, 32, 0, epoch)
        for index in torch.arange(number * SIZE).split(SIZE):
            augment.apply(images, draws.select(index))

    batches(0, 3)  # warms up
    started = time.process_time()
    batches(1, BATCHES)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": BATCHES * SIZE / seconds, "peak_mb": peak}


def main() -> None:
    """Measure all cases in interleaved rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout without the options")
    before = parser.parse_args().before.resolve()
    torch.set_num_threads(1)
    classes = {True: imported(before), False: imported(HERE.parents[1])}
    AUGMENTS.update((n, classes[old](**args)) for n, (old, args) in CASES.items())
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name in CASES:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                rows[name].append(pool.apply(measured, (name,)))
    cases = {
        name: {key: [round(row[key], 1) for row in found] for key in found[0]}
        for name, found in rows.items()
    }
    record = {"torch": torch.__version__, "cases": cases}
    (HERE / "augmentation_cost.json").write_text(json.dumps(record, indent=1) + "\n")
    for name, found in cases.items():
        print(name, {key: statistics.median(v) for key, v in found.items()})


if __name__ == "__main__":
    main()
