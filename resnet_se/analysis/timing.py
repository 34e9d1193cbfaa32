"""Interleaved measurements: cases, a stopwatch, samples, and ratios of their medians.

Each round takes one sample of every case, so that other load on the machine meets all
of them.  A figure is the median of its samples, the spread their minimum and maximum;
every sample is kept.  A sample begins with steps that are not counted: the first are
slow, and the workers of a loader prefetch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from resnet_se.utils import distributed, system
from resnet_se.utils.console import console
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file

WARMUP = {"cpu": 2, "cuda": 10}  # a GPU's clocks rise, CUDA graphs are captured
COMPARED = {  # a figure's fields, and how they are printed
    "ratio": ", {:.2f} × a",
    "share_of_roof": ", {:.1%} of the roof",
    "efficiency": ", {:.1%} efficient",
}


class Case(NamedTuple):
    """A measurement: its unit, a function that takes a sample, its description."""

    unit: str
    sample: Callable[[], float]
    about: dict[str, Any]


class Stopwatch(L.Callback):
    """Seconds of a step: the mean of `steps` after `warmup` others."""

    def __init__(self, device: torch.device, steps: int, warmup: int | None = None):
        self.device, self.steps = device, steps
        self.warmup = WARMUP.get(device.type, 2) if warmup is None else warmup
        self.seconds = float("nan")

    def time(self, batches: Iterable[Any], step: Callable[[Any], Any]) -> float:
        """Take the steps here; return the seconds of one."""
        for i, batch in enumerate(islice(batches, self.warmup + self.steps)):
            step(batch)
            self._lap(i + 1)
        return self.seconds

    def _lap(self, done: int) -> None:
        if done == self.warmup:
            self.start = system.now(self.device)
        elif done == self.warmup + self.steps:
            self.seconds = (system.now(self.device) - self.start) / self.steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self._lap(index + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.should_stop = True


def take_turns(cases: dict[str, Case], result: dict[str, Any]) -> None:
    """Sample every case in each round; `result` and its file always hold all so far."""
    device = torch.device(result["hardware"]["accelerator"])
    figures, skipped = result["figures"], result["skipped"]
    for number in range(result["settings"]["rounds"]):
        for name, case in cases.items():
            if name in skipped:
                continue
            system.reset_peak_memory(device)
            try:
                sample = case.sample()
            except UserError as error:
                if case.about.get("compile", "off") == "off":
                    raise
                skipped[name] = str(error)  # no compiler here
                continue
            samples = [*figures.get(name, {}).get("samples", []), sample]
            figures[name] = case.about | {
                "unit": case.unit,
                "median": statistics.median(samples),
                "spread": [min(samples), max(samples)],
                "samples": samples,
                "peak_memory_mb": system.peak_memory_mb(device),
            }
            say(f"{number + 1}  {name}: {samples[-1]:,.4g} {case.unit}")
            write(result["settings"]["out"], result)


def compare(result: dict[str, Any]) -> None:
    """Add to each figure its ratio, share of the roof or efficiency, by the medians."""
    figures = result["figures"]
    # Of an image: a multiply and an add each, forward and twice as many backward.
    flops = 3 * 2 * result["model"]["macs"]
    for figure in figures.values():
        rate = figure["median"]
        if "trainer" in figure:
            top = figures[f"roof {figure['precision']}"]["median"]
            figure["ratio"] = rate / figures["a"]["median"]
            figure["share_of_roof"] = rate * flops / top
        elif "threads" in figure:
            one = figures["one share"]
            devices = figure["processes"] * figure["threads"] / one["threads"]
            figure["efficiency"] = rate / one["median"] / devices


def print_table(result: dict[str, Any]) -> None:
    """Print all figures measured so far."""
    hardware, data = result["hardware"], result["data"]
    images = "synthetic images" if data["name"] == "synthetic" else data["origin"]
    say(f"{hardware['device']}, {hardware['cores']} cores · {images}")
    for name, figure in result["figures"].items():
        label = f"{name}  {figure.get('name', '')}"
        low, high = figure["spread"]
        rest = f"({low:,.4g} to {high:,.4g}) {figure['unit']}"
        for key, text in COMPARED.items():
            rest += text.format(figure[key]) if key in figure else ""
        say(f"{label:<28}{figure['median']:>10,.4g} {rest}")
    for letter, reason in result["skipped"].items():
        say(f"{letter}  skipped: {reason}")


def say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def write(out: str | None, result: dict[str, Any]) -> None:
    """Write the figures to the file `out`, if there is to be one.

    Raises:
        UserError: it cannot be written.
    """
    if out is None or not distributed.is_leader():
        return
    try:
        with atomic_file(Path(out)) as file:
            text = json.dumps(result, indent=2, allow_nan=False)
            file.write(text.encode() + b"\n")
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error}") from None
