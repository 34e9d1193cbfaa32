"""CPU seconds of a weights' gradient on small maps, torch's and ours: small_maps.json.

    OMP_NUM_THREADS=1 python experiments/benchmark/small_maps.py

3×3 kernels at stride 1, padded by one, channels-last, one thread, CPU seconds of the
process, in turns.  The network trains by what `SmallMapConv2d` finds faster.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_se.models.convolutions import _weight_gradient
from resnet_se.utils import system

ROUNDS = 7
CASES = [  # images, channels in and out, a side of the map
    (2000, 256, 256, 2), (2000, 256, 256, 3), (2000, 256, 256, 4), (2000, 256, 256, 5),
    (2000, 128, 256, 5), (500, 256, 256, 3), (500, 64, 64, 4), (500, 64, 64, 8),
]  # fmt: skip


def tensors(dtype: torch.dtype, images: int, c_in: int, c: int, side: int) -> tuple:
    layout = {"memory_format": torch.channels_last}
    x = torch.randn(images, c_in, side, side).to(dtype, **layout)
    weight = torch.randn(c, c_in, 3, 3).to(dtype, **layout).requires_grad_()
    output = F.conv2d(x, weight, padding=1)
    return x, weight, output, torch.randn_like(output)


def theirs(x: Tensor, weight: Tensor, output: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(output, weight, grad, retain_graph=True)


def ours(x: Tensor, weight: Tensor, output: Tensor, grad: Tensor) -> None:
    _weight_gradient(x, grad, 3)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for case in CASES:
            taken = tensors(dtype, *case)
            ways = {"torch": theirs, "products": ours}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(ROUNDS + 1):  # the first is not counted
                for way, gradient in ways.items():
                    started = time.process_time()
                    gradient(*taken)
                    if number:
                        seconds[way].append(round(time.process_time() - started, 5))
            middle = {way: statistics.median(s) for way, s in seconds.items()}
            share = round(middle["products"] / middle["torch"], 3)
            kind = str(dtype).removeprefix("torch.")
            rows.append({"dtype": kind, "case": case, **seconds, "share": share})
            print(rows[-1]["dtype"], case, share, flush=True)
    record = {
        **system.environment(),
        "hardware": system.hardware(torch.device("cpu"), "bf16-mixed"),
        "threads": 1, "rounds": ROUNDS, "rows": rows,
    }  # fmt: skip
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
