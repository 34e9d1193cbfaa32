"""What a GPU should measure first, as much as fits into the minutes that it is lent.

    python experiments/gpu.py --out experiments/gpu --minutes 30
    python experiments/gpu.py --out /tmp/gpu --dry-run        # seconds, on a CPU

Most valuable first: the benchmark of `se_resnet80`, eager, compiled and with CUDA
graphs; speedrun with three seeds; then SE with and without at `budget=short`, several
jobs side by side.  Every finished step leaves one small JSON file; typed again, it
goes on with what is missing.  No GPU has run it yet: it was dry-run on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAIRS = ("e14_final", "e21_vanilla", "e07_se_resnet80", "e03_vanilla_resnet80")
SEEDS = (0, 1, 2)
DRY = ("budget=smoke", "trainer=cpu", "data=synthetic", "data.batch_size=32")


class Step(NamedTuple):
    """One command, and the JSON that it leaves."""

    name: str
    command: list[str]
    benchmark: bool = False


def steps(out: Path, dry: bool) -> Iterator[Step]:
    """All steps, most valuable first."""
    python = [sys.executable, "-m"]
    for compiled in ("off", "default", "cuda_graphs"):
        name = f"benchmark-{compiled}"
        command = [*python, "resnet_se.benchmark", "model=se_resnet80"]
        command += [f"trainer.compile={compiled}", f"out={out / name}.json"]
        small = ["model=se_resnet20", "rounds=1", "steps=1", "data=synthetic"]
        small += ["batch_size=8", "trainer=cpu"]
        if not (dry and compiled != "off"):  # a compiler takes minutes on a CPU
            yield Step(name, command + (small if dry else []), benchmark=True)
    train = [*python, "resnet_se.train", f"runs_dir={out / 'runs'}", "plots=false"]
    for seed in SEEDS:
        experiment = ["experiment=speedrun", f"seed={seed}"]
        yield Step(
            f"speedrun.seed{seed}", train + experiment + list(DRY if dry else ())
        )
    for seed in SEEDS:
        for pair in PAIRS:
            told = [f"experiment={pair}", f"seed={seed}", "budget=short"]
            yield Step(f"{pair}.seed{seed}", train + told + list(DRY if dry else ()))


def is_timed(step: Step) -> bool:
    """Whether the step has the card for itself, since its seconds are published."""
    return step.benchmark or step.name.startswith("speedrun")


def finish(step: Step, out: Path) -> bool:
    """Whether the step's JSON is there, copied from its run directory."""
    target = out / f"{step.name}.json"
    if not target.is_file() and not step.benchmark:
        experiment, _, seed = step.name.rpartition(".")
        for path in out.glob(f"runs/{experiment}/{seed}-*/result.json"):
            if '"status": "finished"' in path.read_text():
                shutil.copyfile(path, target)
    return target.is_file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--jobs", type=int, default=3, help="trainings side by side")
    parser.add_argument("--dry-run", action="store_true")
    told = parser.parse_args()
    out, end = told.out.resolve(), time.monotonic() + 60 * told.minutes
    out.mkdir(parents=True, exist_ok=True)
    waiting = [s for s in steps(out, told.dry_run) if not finish(s, out)]
    running: dict[subprocess.Popen, Step] = {}
    stopped = False
    while waiting or running:
        in_time = time.monotonic() < end
        alone = any(is_timed(step) for step in running.values())
        free = len(running) < told.jobs and not alone
        if waiting and in_time and free and not (is_timed(waiting[0]) and running):
            step = waiting.pop(0)
            print(f"begins: {step.name}", flush=True)
            running[subprocess.Popen(step.command)] = step
            continue
        if not in_time and not stopped:
            waiting, stopped = [], True
            for process in running:
                process.terminate()  # saved in mid-epoch; typed again it goes on
        for process in [p for p in running if p.poll() is not None]:
            step = running.pop(process)
            word = "done" if finish(step, out) else f"status {process.returncode}"
            print(f"{word}: {step.name}", flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main()
