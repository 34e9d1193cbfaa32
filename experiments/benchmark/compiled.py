"""Why a compiled network loses on a CPU: steps in turns, and what they spend it on.

    OMP_NUM_THREADS=1 python experiments/benchmark/compiled.py

A float32 step without loading, eager, compiled by inductor, and compiled but for the
max-pooling, which stays torch's; CPU seconds of this process.  Writes compiled.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor.config
from hydra import compose, initialize_config_dir
from torch import nn
from torch.profiler import ProfilerActivity, profile

from resnet_se import config, machine
from resnet_se.benchmark import training_step
from resnet_se.builders import build_classifier

CPU = torch.device("cpu")
ROUNDS = 5
NETWORKS = {"se_resnet8_quick": 128, "se_resnet80": 16}  # batch sizes
WAYS = ("eager", "compiled", "compiled but for the pooling")


def make_step(name: str, way: str) -> Callable[[], None]:
    torch.manual_seed(0)
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("train", [f"model={name}", "mixing=none"])
    model = build_classifier(cfg, 10)
    if way != "eager":
        for module in model.net.modules():
            if isinstance(module, nn.MaxPool2d) and way.endswith("pooling"):
                module.forward = torch.compiler.disable(module.forward)
        model.net.compile(dynamic=False)
    batch = NETWORKS[name]
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    step = training_step(model, CPU, "32-true")
    return lambda: step((images, labels))


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Of a step: what convolutions take, and kernels with max-pooling in them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    found = dict.fromkeys(("convolution", "max_pool"), 0.0)
    rows = profiler.key_averages()
    for row in rows:
        for kind in found:
            if kind in row.key:
                found[kind] += row.self_cpu_time_total
                break
    whole = sum(row.self_cpu_time_total for row in rows)
    return {kind: round(taken / whole, 4) for kind, taken in found.items()}


def measure(name: str) -> dict:
    steps = {
        way: make_step(name, way)
        for way in WAYS
        if name == "se_resnet8_quick" or not way.endswith("pooling")
    }
    taken: dict[str, list[float]] = {way: [] for way in steps}
    for turn in range(ROUNDS + 2):
        for way, step in steps.items():
            start = time.process_time()
            step()
            if turn >= 2:
                taken[way].append(round(time.process_time() - start, 4))
    return {
        way: {
            "median": statistics.median(taken[way]),
            "spread": [min(taken[way]), max(taken[way])],
            "shares": shares(step),
        }
        for way, step in steps.items()
    }


def main() -> None:
    machine.keep_freed_memory()
    torch._inductor.config.cpp.enable_kernel_profile = True
    record = {
        **machine.environment(),
        "hardware": machine.hardware(CPU, "32-true"),
        "settings": {"rounds": ROUNDS, "threads": torch.get_num_threads()},
        "networks": {name: measure(name) for name in NETWORKS},
    }
    path = Path(__file__).parent / "compiled.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["networks"], indent=1))


if __name__ == "__main__":
    main()
