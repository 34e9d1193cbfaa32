"""Seconds of a step of Muon, bank by bank and batched by shape, interleaved.

    OMP_NUM_THREADS=1 python experiments/benchmark/muon_step.py

CPU seconds of the process, one thread, in turns, weights channels-last as in training;
"before" is the step of commit c62af0a, kept here.  Writes `muon_step.json`.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from torch import Tensor, nn

from resnet_se.config.build import build_network
from resnet_se.config.compose import plain_values
from resnet_se.config.hydra_versions import with_conf
from resnet_se.training.muon import COEFFICIENTS, STEPS, Muon, make_muon
from resnet_se.utils import system

ROUNDS, NETWORKS = 9, ("se_airbench", "se_resnet80", "se_resnet20")


class OneByOne(Muon):
    """Muon as it was: a filter bank after the other, copied out of channels-last."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                grad = p.grad
                if group["weight_decay"] and not group["matrices"]:
                    grad = grad.add(p, alpha=group["weight_decay"])
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum_buffer"]
                momentum.mul_(group["momentum"]).add_(grad)
                moved = grad.add(momentum, alpha=group["momentum"])
                if group["matrices"]:
                    moved = orthogonalized(moved.flatten(1)).reshape(p.shape)
                    p.mul_(math.sqrt(len(p)) / p.norm().clamp(min=1e-12))
                p.add_(moved, alpha=-group["lr"])


def orthogonalized(matrix: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if system.has_bf16(matrix.device) else matrix
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def network(name: str) -> nn.Module:
    with with_conf():
        node = plain_values(compose("train", [f"model={name}"]))["model"]
    torch.manual_seed(0)
    net = build_network(node, 10).to(memory_format=torch.channels_last)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    return net


def main() -> None:
    torch.set_num_threads(1)
    cases: dict[str, dict[str, Any]] = {}
    steps = {}
    for name in NETWORKS:
        for way, kind in (("before", OneByOne), ("batched", Muon)):
            optimizer = make_muon(network(name))
            optimizer.__class__ = kind
            steps[name, way] = optimizer.step
            optimizer.step()  # makes its momenta
        cases[name] = {"before": [], "batched": []}
    for _ in range(ROUNDS):
        for (name, way), step in steps.items():
            step()
            started = time.process_time()
            for _ in range(3):
                step()
            cases[name][way].append(round((time.process_time() - started) / 3, 5))
    for figures in cases.values():
        before, batched = (statistics.median(figures[w]) for w in ("before", "batched"))
        figures["share"] = round(batched / before, 3)
    record = {
        **system.environment(),
        "hardware": system.hardware(torch.device("cpu"), "bf16-mixed"),
        "threads": 1, "rounds": ROUNDS, "seconds": cases,
    }  # fmt: skip
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(record, indent=1) + "\n")
    for name, figures in cases.items():
        print(name, figures)


if __name__ == "__main__":
    main()
