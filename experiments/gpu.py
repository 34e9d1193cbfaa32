"""What a GPU should measure, as much as fits into the minutes that it is lent.

    python experiments/gpu.py --out OUT --minutes 30
    python experiments/gpu.py --out OUT --minutes 5 --only best speedrun --jobs 8
    python experiments/gpu.py --out OUT --dry-run          # a minute or two, on a CPU

The parts, most valuable first: `full`, the paper's network with and without SE for a
tenth of its epochs, then with SE for all 300 of them; `benchmark` of `se_resnet80`,
eager, compiled and with CUDA graphs; `turns`, speedrun and the reference one after the
other; `short`, the small study's other pair at full size; `best`, an hour of two cores,
with rivals and without one of its means each; `speedrun`, its variants; `small`, the
small study; `trials` and `factors`, what best and speedrun were chosen from.  What
publishes seconds has the card alone, the others share it.  Each step leaves a record
below OUT; typed again, the command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SEEDS = range(5)
PAIRS = ("e14_final", "e21_vanilla", "e07_se_resnet80", "e03_vanilla_resnet80")
MORE = ("e11_dropout_weight_decay", "e12_cosine", "e15_batch64", "e16_batch256")
MORE += ("e22_se_resnet20w4",)
REST = ("e01_vanilla_resnet20", "e02_vanilla_resnet56", "e04_vanilla_resnet_table")
REST += ("e05_se_resnet20", "e06_se_resnet56", "e08_se_resnet_table", "e09_dropout")
REST += ("e10_weight_decay", "e13_plateau", "e17_se_resnet74", "e18_se_resnet68")
REST += ("e19_reduction4", "e20_reduction8")
GRAPHS = " trainer.compile=cuda_graphs"  # five times as fast
SGD = (
    "experiment=speedrun optimizer=sgd_nesterov scheduler=triangular callbacks=ema "
    "data.batch_size=512"
)
VARIANTS = {  # of speedrun's recipe, number of seeds
    "speedrun": ("experiment=speedrun", 5),
    "seven": ("experiment=speedrun trainer.max_epochs=7", 5),
    "seven_1960": ("experiment=speedrun trainer.max_epochs=7 data.batch_size=1960", 5),
    "se_lr83": ("experiment=speedrun optimizer.se_lr=83", 5),
    "seven_se_lr83": (
        "experiment=speedrun trainer.max_epochs=7 optimizer.se_lr=83",
        5,
    ),
    "se_lr330": ("experiment=speedrun optimizer.se_lr=330", 3),
    "thawed": ("experiment=speedrun optimizer.se_lr=83 callbacks.freeze=null", 3),
    "sgd": (SGD, 3),
    "vanilla": (
        "experiment=speedrun model=vanilla_airbench optimizer.se_lr=83",
        5,
    ),
    "vanilla_seven": (
        "experiment=speedrun model=vanilla_airbench optimizer.se_lr=83 "
        "trainer.max_epochs=7",
        5,
    ),
    "quickstart": ("experiment=quickstart_gelu", 5),
    "quickstart9": ("experiment=quickstart_gelu trainer.max_epochs=9", 5),
}
BEST = {
    "best_cpu": ("experiment=best_cpu", 3),
    "rival_e14": ("experiment=rival_e14", 3),
    "rival_resnet18": ("experiment=rival_resnet18", 3),
    "without_se": ("experiment=ablation_best_se", 3),
    "without_cutout": ("experiment=ablation_best_cutout", 3),
    "without_width": ("experiment=ablation_best_width", 3),
    "without_muon": ("experiment=ablation_best_muon", 3),
}
HELD_OUT = "experiment=speedrun data.val_fraction=0.1 optimizer.se_lr="
NETWORKS = {  # 1.0 PFLOP each on the 45,000 images that are left
    "base": "trainer.max_epochs=32",
    "wide": "trainer.max_epochs=15 model.widths=[96,384,384]",
    "deep": "trainer.max_epochs=19 model.depths=[2,2,2] model.residual=true",
}
CUTOUT = "augment.crop_padding=4 augment.cutout=12"
AVERAGE = "+callbacks.weight_average._target_="
AVERAGE += "resnet_se.training.callbacks.averaging.WeightAverage "
AVERAGE += "+callbacks.weight_average.decay=0.98"
MEANS = {  # of which `best_cpu` may be made: SE's rate, settings, networks
    "plain": (83, "", "base wide deep"),
    "cutout": (83, CUTOUT, "base wide deep"),
    "cutout_se20": (20, CUTOUT, "base wide deep"),
    "cutmix": (83, "mixing.cutmix_alpha=1 mixing.probability=0.5", "base deep"),
    "trivial": (83, "augment.policy=trivial", "base"),
    "trivial_cutout_se20": (20, f"{CUTOUT} augment.policy=trivial", "base"),
    "average": (83, AVERAGE, "deep"),
    "vanilla": (83, "model.reduction=null", "base deep"),
}
TRIALS = {
    f"{network}_{means}": (f"{HELD_OUT}{rate} {NETWORKS[network]} {told}", 2)
    for means, (rate, told, networks) in MEANS.items()
    for network in networks.split()
}
TRIALS["sgd"] = (
    "experiment=speedrun model=se_resnet8_quick mixing=cutmix mixing.smoothing=0.1 "
    "mixing.probability=0.5 augment.policy=trivial optimizer=sgd_nesterov "
    "scheduler=triangular data.batch_size=512 data.val_fraction=0.1 "
    f"callbacks.early_stopping=null callbacks.freeze=null {AVERAGE} "
    "trainer.max_epochs=86",
    1,
)
FACTORS = (  # of a speedrun of seven epochs
    "mixing.smoothing=0.1",
    "augment.jitter=0.1",
    "optimizer.lr=0.32",
    "data.batch_size=1500",
)
DESIGN = {}  # a half of 2⁴ combinations, the last factor the product of the others
for on in itertools.product((False, True), repeat=3):
    levels = (*on, sum(on) % 2 == 1)
    told = " ".join(itertools.compress(FACTORS, levels))
    name = "".join("01"[level] for level in levels)
    DESIGN[name] = (f"{HELD_OUT}83 trainer.max_epochs=7 {told}", 2)
DRY = ("budget.limit_batches=2", "data=synthetic", "data.batch_size=32", "trainer=cpu")
DRY += ("trainer.precision=32-true", "tta=none")
DRY += ("trainer.max_epochs=2", "budget.scale=0.005")  # warm-up and decays fit into it
DRY += ("data.source.num_train=800", "data.source.num_test=64")
DRY_BENCHMARK = (
    "model=se_resnet20 data=synthetic trainer=cpu trainer.precision=32-true "
    "batch_size=8 rounds=1 steps=1"
)


class Step(NamedTuple):
    """A command: its record, a pattern below OUT, and what that says once whole."""

    name: str
    target: str  # a module, or a script
    arguments: list[str]
    record: str
    whole: str
    alone: bool = False  # its seconds are published


def training(
    folder: str, seed: int, told: str, out: Path, dry: bool, alone: bool = False
) -> Step:
    arguments = [f"runs_dir={out / folder}", f"seed={seed}", "plots=false"]
    arguments += [*told.split(), *(DRY if dry else ())]
    experiment = told.split()[0].removeprefix("experiment=")
    record = f"{folder}/{experiment}/seed{seed}-*/result.json"
    name = f"{folder}/{experiment}.seed{seed}"
    whole = '"status": "finished"'
    return Step(name, "resnet_se.train", arguments, record, whole, alone)


def benchmark(out: Path, dry: bool) -> Iterator[Step]:
    told = DRY_BENCHMARK if dry else "model=se_resnet80 rounds=2 steps=20"
    arguments = [*told.split(), f"out={out / 'benchmark.json'}"]
    whole = '"complete": true'
    target = "resnet_se.commands.benchmark"
    yield Step("benchmark", target, arguments, "benchmark.json", whole, True)


def turns(out: Path, dry: bool) -> Iterator[Step]:
    script = str(HERE / "speedrun/reference.py")
    root = os.environ.get("RESNET_SE_DATA", "data")
    for seed in SEEDS[:3]:
        if not dry:  # it has no smaller size
            name = f"turns/reference.seed{seed}.json"
            told = ["--seeds", str(seed), "--root", root, "--out", str(out / name)]
            yield Step(name, script, told, name, '"acc_tta"', True)
        yield training("turns", seed, "experiment=speedrun", out, dry, alone=True)


def small(out: Path, dry: bool) -> Iterator[Step]:
    """The pairs, what SE adds against the images, the other pairs, the rest."""

    def one(experiment: str, seed: int, images: int | None = None) -> Step:
        told = f"experiment={experiment} budget=small"
        if images:
            told += f" budget.train_subset={images}"
        return training(f"small/{images or 45_000}", seed, told, out, dry)

    yield from (one(name, seed) for seed in SEEDS for name in PAIRS)
    for images in (15_000, 5_000):
        yield from (one(name, seed, images) for seed in SEEDS for name in PAIRS[:2])
    yield from (one(name, seed) for seed in SEEDS for name in MORE)
    yield from (one(name, seed) for seed in SEEDS[:2] for name in REST)


def full(out: Path, dry: bool) -> Iterator[Step]:
    """SE's own pair for a tenth of the paper's epochs, then e14 for all of them."""
    yield from _at_full_size(PAIRS[:2], out, dry)
    told = "experiment=e14_final" + ("" if dry else GRAPHS)
    yield training("paper", 0, told, out, dry)


def short(out: Path, dry: bool) -> Iterator[Step]:
    """The other pair for a tenth of the paper's epochs."""
    yield from _at_full_size(PAIRS[2:], out, dry)


def _at_full_size(names: Iterable[str], out: Path, dry: bool) -> Iterator[Step]:
    for seed in SEEDS[:3]:
        for name in names:
            told = f"experiment={name} budget=short" + ("" if dry else GRAPHS)
            yield training("short", seed, told, out, dry)


def speedrun(out: Path, dry: bool) -> Iterator[Step]:
    yield from _variants("speedrun", VARIANTS, out, dry)


def best(out: Path, dry: bool) -> Iterator[Step]:
    """best_cpu, its rivals, and without one of its means each."""
    yield from _variants("best", BEST, out, dry)


def trials(out: Path, dry: bool) -> Iterator[Step]:
    """What best_cpu was chosen from, on validation."""
    yield from _variants("trials", TRIALS, out, dry)


def factors(out: Path, dry: bool) -> Iterator[Step]:
    """What a speedrun of seven epochs might be helped by, on validation."""
    yield from _variants("factors", DESIGN, out, dry)


def _variants(
    part: str, variants: dict[str, tuple[str, int]], out: Path, dry: bool
) -> Iterator[Step]:
    for seed in range(max(seeds for _, seeds in variants.values())):
        for name, (told, seeds) in variants.items():
            if seed < seeds:
                yield training(f"{part}/{name}", seed, told, out, dry)


PARTS = {
    part.__name__: part
    for part in (full, benchmark, turns, short, best, speedrun, small, trials, factors)
}


def is_done(step: Step, out: Path) -> bool:
    return any(step.whole in path.read_text() for path in out.glob(step.record))


def begin(step: Step, out: Path, side_by_side: bool) -> multiprocessing.Process:
    """In a fork of this process, which has imported all and not touched the card."""
    log = out / "logs" / f"{step.name.replace('/', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if side_by_side:
            import torch

            torch.set_num_threads(1)
        sys.argv = [step.target, *step.arguments]
        if step.target.endswith(".py"):
            runpy.run_path(step.target, run_name="__main__")
        else:
            import importlib

            importlib.import_module(step.target).main()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--jobs", type=int, default=12, help="trainings side by side")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry-run", action="store_true")
    told = parser.parse_args()
    out, end = told.out.resolve(), time.monotonic() + 60 * told.minutes
    import resnet_se.commands.benchmark
    import resnet_se.commands.train
    import resnet_se.training.loop  # noqa: F401  once for all

    steps = [s for part in told.only for s in PARTS[part](out, told.dry_run)]
    waiting = [step for step in steps if not is_done(step, out)]
    running: dict[multiprocessing.Process, Step] = {}
    stopped = False
    while waiting or running:
        in_time = time.monotonic() < end
        alone = any(step.alone for step in running.values())
        free = len(running) < told.jobs and not alone
        if waiting and in_time and free and not (waiting[0].alone and running):
            step = waiting.pop(0)
            print(f"begins: {step.name}", flush=True)
            running[begin(step, out, told.jobs > 1)] = step
            continue
        if not in_time and not stopped:
            waiting, stopped = [], True
            for process in running:
                process.terminate()  # saved in mid-epoch; typed again it goes on
        for process in [p for p in running if not p.is_alive()]:
            step = running.pop(process)
            word = "done" if is_done(step, out) else f"status {process.exitcode}"
            print(f"{word}: {step.name}", flush=True)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
