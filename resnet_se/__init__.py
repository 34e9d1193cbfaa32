"""Squeeze-and-Excitation ResNets on CIFAR-10: train, compare, hand on.

The public names load what they need when they are first used.

    model = resnet_se.load("runs/quickstart/seed0-…")  # a trained network
    net = resnet_se.build("se_resnet80", num_classes=100)  # a new one
    runs = resnet_se.load_runs("runs")  # a pandas DataFrame, a row a run
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_se.analysis.report.runs import load_runs
    from resnet_se.inference.pretrained import build, load

__all__ = ["__version__", "build", "load", "load_runs"]
__version__ = "0.1.0"

_HOMES = {
    "build": "inference.pretrained",
    "load": "inference.pretrained",
    "load_runs": "analysis.report.runs",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"resnet_se.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'resnet_se' has no attribute {name!r}")
