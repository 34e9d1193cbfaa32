"""What stands between a training step on one core and its roof; see the README.

    OMP_NUM_THREADS=1 taskset -c 0 python experiments/benchmark/floors.py

A process for each network and allocator, whose parts take turns; CPU seconds of this
process, so that what else runs on the machine is left out as far as it can be.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from hydra import compose
from torch.profiler import ProfilerActivity, profile

from resnet_se.commands.benchmark import training_step
from resnet_se.config.build import build_module
from resnet_se.config.compose import plain_values
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.recipe import Recipe
from resnet_se.models import layers
from resnet_se.models.complexity import network_summary
from resnet_se.utils import system

HERE = Path(__file__).parent
NETWORKS = {"se_resnet80": 128, "se_resnet8_quick": 512}  # batch sizes
CPU = torch.device("cpu")
ROUNDS = 3
JOBS = (  # network, allocator, the parts that take turns
    ("se_resnet8_quick", "default", "as it is"),
    ("se_resnet8_quick", "kept", "as it is,mean"),
    ("se_resnet80", "kept", "as it is,mean"),
    ("pools", "kept", "-"),
    ("se_resnet80", "default", "as it is"),
)


def mean_squeeze(self, x):
    """`SqueezeExcite.forward` by a mean, as it was."""
    z = x.permute(0, 2, 3, 1).mean(dim=(1, 2))
    gate = self.excite(F.relu(self.squeeze(z))).sigmoid()
    return x * gate[:, :, None, None]


def make_step(name: str, parts: str):
    """A bf16 step of a preset: `as it is`, `mean`, or `compiled`; and its MACs."""
    with with_conf():
        cfg = compose("train", [f"model={name}", "mixing=none"])
    net = build_module(Recipe(plain_values(cfg)), 10)
    if parts == "mean":
        for module in net.modules():
            if isinstance(module, layers.SqueezeExcite):
                module.forward = MethodType(mean_squeeze, module)
    if parts == "compiled":
        net.net.compile(dynamic=False)
    batch = NETWORKS[name]
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    step = training_step(net, CPU, "bf16-mixed")
    return lambda: step((images, labels)), network_summary(net.net)["macs"] * batch


def roof() -> float:
    a = torch.rand(2048, 2048).bfloat16()
    start = time.process_time()
    for _ in range(5):
        a @ a
    return 5 * 2 * 2048**3 / (time.process_time() - start)


def seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def summary(samples: list[float]) -> dict:
    return {
        "median": statistics.median(samples),
        "spread": [min(samples), max(samples)],
        "samples": samples,
    }


def operators(step) -> dict[str, float]:
    """Each operator's share of two steps' CPU time, those over half a per cent."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
        step()
    rows = {row.key: row.self_cpu_time_total for row in profiler.key_averages()}
    shares = {key: value / sum(rows.values()) for key, value in rows.items()}
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return {key: value for key, value in ranked if value > 0.005}


def measure(name: str, allocator: str, parts: list[str]) -> dict:
    if allocator == "kept":
        system.keep_freed_memory()
    torch.manual_seed(0)
    steps, flops = {}, 0
    for part in parts:
        steps[part], macs = make_step(name, part)
        flops = 3 * 2 * macs
        system.reset_peak_memory(CPU)
        for _ in range(2):
            steps[part]()
        if part == parts[0]:
            peak = system.peak_memory_mb(CPU)
    times = {part: [] for part in parts}
    roofs = []
    for _ in range(ROUNDS):
        for part, step in steps.items():
            times[part].append(seconds(step))
        roofs.append(roof())
    top = statistics.median(roofs)
    return {
        "network": name,
        "batch_size": NETWORKS[name],
        "allocator": allocator,
        "peak_memory_mb": peak,
        "roof_flops": summary(roofs),
        "step_seconds": {
            part: summary(taken)
            | {"share_of_roof": flops / statistics.median(taken) / top}
            for part, taken in times.items()
        },
        "operators": operators(steps[parts[0]]),
    }


def pools() -> dict:
    """Milliseconds of 2×2 max-pooling forward and back, by two ways."""

    def amax(x):
        b, c, h, w = x.shape
        x = x[:, :, : h // 2 * 2, : w // 2 * 2].permute(0, 2, 3, 1)
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).amax((2, 4))
        return x.permute(0, 3, 1, 2)

    system.keep_freed_memory()
    result = {}
    for shape in ((512, 32, 31, 31), (512, 128, 15, 15), (512, 256, 7, 7)):
        x = torch.randn(shape).bfloat16().to(memory_format=torch.channels_last)
        x.requires_grad_()
        calls = {"max_pool2d": lambda x: F.max_pool2d(x, 2), "amax": amax}
        samples = {key: [] for key in calls}
        for _ in range(ROUNDS + 1):
            for key, call in calls.items():
                samples[key].append(
                    1000 * seconds(lambda call=call, x=x: call(x).sum().backward())
                )
        result["×".join(map(str, shape))] = {
            key: summary(taken[1:]) for key, taken in samples.items()
        }
    return result


def main() -> None:
    if len(sys.argv) > 1:
        name, allocator, parts = sys.argv[1:]
        found = (
            pools() if name == "pools" else measure(name, allocator, parts.split(","))
        )
        print("RESULT", json.dumps(found))
        return
    result = {
        **system.environment(),
        "hardware": system.hardware(CPU, "bf16-mixed"),
        "settings": {"rounds": ROUNDS, "threads": 1, "clock": "process CPU seconds"},
        "networks": [],
    }
    for job in JOBS:
        done = subprocess.run(
            [sys.executable, __file__, *job], check=True, capture_output=True, text=True
        )
        line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))
        found = json.loads(line.removeprefix("RESULT"))
        if job[0] == "pools":
            result["pools_ms"] = found
        else:
            result["networks"].append(found)
        (HERE / "floors.json").write_text(json.dumps(result, indent=2) + "\n")
        print(*job, flush=True)


if __name__ == "__main__":
    main()
