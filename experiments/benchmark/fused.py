"""BatchNorm and ReLU in one pass, by inductor on them alone; max-pooling too.

    OMP_NUM_THREADS=1 python experiments/benchmark/fused.py

Forward and back in float32, channels last, at `se_resnet80`'s and quickstart's shapes;
eager and compiled in turns, CPU seconds of this process.  Writes fused.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_se import machine

CPU = torch.device("cpu")
ROUNDS = 10
NORMED = ((128, 32, 32, 32), (128, 64, 16, 16), (128, 128, 8, 8))
POOLED = ((512, 32, 31, 31), (512, 128, 15, 15), (512, 256, 7, 7))


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def norm(x: Tensor) -> Tensor:
    ones, zeros = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    return F.batch_norm(x, None, None, ones, zeros, training=True)


def norm_relu(x: Tensor) -> Tensor:
    return F.relu(norm(x))


def pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def milliseconds(call: Callable[[Tensor], Tensor], x: Tensor, back: bool) -> float:
    start = time.process_time()
    y = call(x)
    if back:
        y.sum().backward()
    return 1000 * (time.process_time() - start)


def measure(call: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> dict:
    x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
    ways = {"eager": call, "compiled": torch.compile(call, dynamic=False)}
    found: dict[str, list[float]] = {}
    for turn in range(ROUNDS + 2):
        for name, way in ways.items():
            for back in (False, True):
                taken = milliseconds(way, x, back)
                if turn >= 2:
                    key = f"{name}, {'forward and back' if back else 'forward'}"
                    found.setdefault(key, []).append(taken)
    return {
        key: {
            "median": statistics.median(taken),
            "spread": [min(taken), max(taken)],
        }
        for key, taken in found.items()
    }


def main() -> None:
    machine.keep_freed_memory()
    cases = [(call, shape) for call in (relu, norm, norm_relu) for shape in NORMED]
    cases += [(pool, shape) for shape in POOLED]
    figures = {}
    for call, shape in cases:
        name = f"{call.__name__} {'×'.join(map(str, shape))}"
        figures[name] = measure(call, shape)
        print(name, {k: round(v["median"], 2) for k, v in figures[name].items()})
    record = {
        **machine.environment(),
        "hardware": machine.hardware(CPU, "32-true"),
        "settings": {"rounds": ROUNDS, "threads": torch.get_num_threads()},
        "milliseconds": figures,
    }
    path = Path(__file__).parent / "fused.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
