"""Two processes against one on the CPUs of this machine: images per second, efficiency.

    python experiments/scaling/measure.py --out experiments/scaling/cpu.json

Every sample is a run of its own, `python -m resnet_se.train`, of 2 × 12 steps; its
figure is the record's `train.images_per_second`, validation and start left out, the
first slow steps not.  The four ways take turns.  *one half*: a process on half of the
cores.  *weak*, *strong*: two, each with its half; a batch for either, or half a batch.
*one whole*: a process on all of them.  And the time of the all-reduce alone, of as many
bytes as the gradients have.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from resnet_se.results import atomic_file, environment, hardware, usable_cores

STEPS, EPOCHS = 12, 2


def run(model: str, processes: int, batch: int, cores: list[int], root: Path) -> float:
    """Images per second of one training."""
    folder = tempfile.mkdtemp(dir=root)
    line = [sys.executable, "-m", "resnet_se.train", "~experiment", f"model={model}"]
    line += [f"trainer={'ddp_sim' if processes > 1 else 'cpu'}", "scheduler=constant"]
    line += [f"trainer.devices={processes}", f"data.batch_size={batch}", "tta=none"]
    line += ["trainer.precision=bf16-mixed", f"trainer.max_epochs={EPOCHS}"]
    line += [f"trainer.limit_train_batches={STEPS}", f"runs_dir={folder}"]
    line += [f"trainer.limit_{part}_batches=1" for part in ("val", "test")]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    subprocess.run(
        ["taskset", "-c", ",".join(map(str, cores)), *line],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (found,) = Path(folder).glob("*/*/result.json")
    return json.loads(found.read_text())["train"]["images_per_second"]


def all_reduce(rank: int, elements: int, folder: str) -> None:
    """Writes the seconds of 20 all-reduces between two processes."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.set_num_threads(max(1, usable_cores() // 2))
    values, seconds = torch.ones(elements), []
    for _ in range(25):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - start)
        values.fill_(1)
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds[5:]))
    dist.destroy_process_group()


def summary(samples: list[float]) -> dict:
    return {
        "median": statistics.median(samples),
        "spread": [min(samples), max(samples)],
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="se_resnet80")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    half, batch = len(cores) // 2, options.batch
    ways = {  # processes, batch of each, cores
        "one half": (1, batch, cores[:half]),
        "weak": (2, batch, cores[: 2 * half]),
        "strong": (2, batch // 2, cores[: 2 * half]),
        "one whole": (1, batch, cores[: 2 * half]),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as root:
        for number in range(options.rounds):
            for name, way in ways.items():
                samples[name].append(run(options.model, *way, Path(root)))
                print(number, name, f"{samples[name][-1]:.1f} images/s", flush=True)
        (found, *_) = Path(root).glob("*/*/*/result.json")
        record = json.loads(found.read_text())
        elements = record["model"]["trainable"]
        times = {}
        for n in (1, elements):
            folder = tempfile.mkdtemp(dir=root)
            torch.multiprocessing.spawn(all_reduce, (n, folder), nprocs=2)
            seconds = json.loads(Path(folder, "seconds.json").read_text())
            times[f"{4 * n} bytes"] = summary(seconds)
    halves = {name: len(way[2]) / half for name, way in ways.items()}
    base = statistics.median(samples["one half"])
    result = {
        **environment(),
        "hardware": hardware(torch.device("cpu"), "bf16-mixed"),
        "data": record["data"],
        "model": {"name": options.model, **record["model"]},
        "settings": {"steps": STEPS, "epochs": EPOCHS, "rounds": options.rounds},
        "images_per_second": {
            name: summary(taken)
            | {
                "processes": ways[name][0],
                "batch_size": ways[name][1],
                "cores": len(ways[name][2]),
                "efficiency": statistics.median(taken) / base / halves[name],
            }
            for name, taken in samples.items()
        },
        "all_reduce_seconds": times,
    }
    with atomic_file(options.out) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
