"""What the tests share: commands called in this process, a configuration of seconds."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

# A network and a data set small enough to train in a second or two.
TINY = (
    "data=synthetic",
    "data.source.num_train=240",
    "data.source.num_test=60",
    "data.batch_size=32",
    "data.num_workers=0",
    "optimizer.lr=0.1",  # quickstart's own is for batch 512
    "optimizer.norm_bias_lr=1",
    "model.depths=[1,1,1]",
    "model.widths=[8,8,16]",
    "model.reduction=4",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "tta=flip",
)


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(2)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Calls a command's `main` in `tmp_path`; returns the exit status."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str) -> int:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # a command sets it for Hydra
        monkeypatch.setattr(sys, "argv", [f"resnet-se {name}", *arguments])
        try:
            import_module(f"resnet_se.{name}").main()
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return call


@pytest.fixture
def train(command):
    """Trains the tiny configuration with further overrides; returns the exit status."""

    def call(*overrides: str) -> int:
        flags = [o for o in overrides if o.startswith("-")]  # argparse wants them first
        rest = [o for o in overrides if not o.startswith("-")]
        return command("train", *flags, *TINY, *rest)

    return call


@pytest.fixture
def run_dirs(tmp_path):
    """The run directories under `tmp_path`, and their records."""

    def find() -> dict[Path, dict]:
        return {
            path.parent: json.loads(path.read_text())
            for path in sorted(tmp_path.glob("runs/*/*/result.json"))
        }

    return find
