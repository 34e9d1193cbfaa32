"""Why inductor loses on a network that pools: the step with pooling kept from it.

    OMP_NUM_THREADS=1 python experiments/benchmark/pooling.py

Eager, compiled, and compiled with max-pooling as an operator of its own, which calls
torch's and which the compiler can neither fuse nor compute anew; interleaved, by CPU
seconds of this process.  bf16 where the processor has it.
"""

import json
import statistics
from pathlib import Path

import torch
from floors import seconds, summary
from hydra import compose
from torch import Tensor, nn

from resnet_se.commands.benchmark import training_step
from resnet_se.config.build import build_module
from resnet_se.config.compose import plain_values
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.recipe import Recipe
from resnet_se.utils import system

OUT = Path(__file__).with_suffix(".json")
NETWORK, BATCH, ROUNDS = "se_resnet8_quick", 256, 9
CPU = torch.device("cpu")
PLACES = [2, 2], [2, 2], [0, 0], [1, 1], False  # kernel, stride, padding, dilation


@torch.library.custom_op("pooling::forward", mutates_args=())
def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) to (B, C, ⌊H/2⌋, ⌊W/2⌋), channels last, and the maxima's places."""
    return torch.ops.aten.max_pool2d_with_indices(x, *PLACES)


@torch.library.custom_op("pooling::backward", mutates_args=())
def pool_backward(gradient: Tensor, x: Tensor, places: Tensor) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, *PLACES, places)


@pool.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    b, c, h, w = x.shape
    out = x.new_empty(b, c, h // 2, w // 2).to(memory_format=torch.channels_last)
    return out, torch.empty_like(out, dtype=torch.int64)


@pool_backward.register_fake
def _(gradient: Tensor, x: Tensor, places: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx, gradient, _) -> Tensor:
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    return pool_backward(gradient, *ctx.saved_tensors)


pool.register_autograd(_backward, setup_context=_save)


class Apart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return pool(x)[0]


def make_step(way: str, precision: str):
    torch.manual_seed(0)
    with with_conf():
        cfg = compose("train", [f"model={NETWORK}", "mixing=none"])
    model = build_module(Recipe(plain_values(cfg)), 10)
    if way == "compiled, pooling apart":
        for module in list(model.net.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.MaxPool2d):
                    setattr(module, name, Apart())
    if way != "eager":
        model.net.compile(dynamic=False)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,))
    step = training_step(model, CPU, precision)
    return lambda: step((images, labels))


def main() -> None:
    system.keep_freed_memory()
    precision = "bf16-mixed" if system.has_bf16(CPU) else "32-true"
    ways = ("eager", "compiled", "compiled, pooling apart")
    steps = {way: make_step(way, precision) for way in ways}
    for step in steps.values():
        step()
        step()
    times = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, step in steps.items():
            times[way].append(seconds(step))
    of_eager = {
        way: summary([e / t for e, t in zip(times["eager"], taken, strict=True)])
        for way, taken in times.items()
    }
    result = {
        **system.environment(),
        "hardware": system.hardware(CPU, precision),
        "settings": {
            "network": NETWORK,
            "batch_size": BATCH,
            "rounds": ROUNDS,
            "threads": torch.get_num_threads(),
            "clock": "process CPU seconds",
        },
        "seconds": {way: statistics.median(taken) for way, taken in times.items()},
        "speed_of_eager": of_eager,
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    for way, ratio in of_eager.items():
        print(way, round(ratio["median"], 3), ratio["spread"])


if __name__ == "__main__":
    main()
