"""Plan a sweep before it is launched: its cost, and that every job of it can work.

    resnet-se plan 'experiment=glob(e*)' seed=0,1,2 budget=short

Composes and builds every job that `train -m` with the same overrides would run, takes
two timed steps and one evaluation batch of each, and prints parameters, MMAC, peak
memory, time and disk.  Times are this machine's, now, with validation, test and TTA.
Jobs that differ in their seed alone cost the same: one of them is composed for all.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from resnet_se.analysis.cost import Cost, measure
from resnet_se.analysis.report.text import count
from resnet_se.commands.app import filter_warnings
from resnet_se.commands.sweep.zipped import expand, split_zips
from resnet_se.config.command_line import as_overrides
from resnet_se.config.compose import compose_job
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.messages import EXPECTED, explain
from resnet_se.config.settle import Run, settle
from resnet_se.config.validate import validate
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.utils.console import plain_table

SEED = re.compile(r"seed=(\d{1,9})")


def jobs_of(typed: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a multirun, as the sweeper expands them."""
    words, zips = split_zips(typed)
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return expand(parser.parse_overrides(words), zips)


class Planner:
    """Builds and measures jobs, and what is alike in several of them once."""

    def __init__(self) -> None:
        self.modules: dict[tuple[Any, ...], ImageDataModule] = {}
        self.by_hash: dict[str, Cost] = {}
        self.by_line: dict[tuple[str, ...], tuple[str, int, Cost]] = {}  # but for seeds

    def job(self, overrides: list[str]) -> tuple[str, Cost]:
        """The job's name and cost; raises as a start of it would."""
        seeds = [int(m[1]) for m in map(SEED.fullmatch, overrides) if m]
        line = tuple(o for o in overrides if not SEED.fullmatch(o))
        if line not in self.by_line:
            recipe = validate(compose_job(overrides))
            cost = self._cost(settle(recipe))
            self.by_line[line] = recipe.experiment, recipe["seed"], cost
        experiment, seed, cost = self.by_line[line]
        return f"{experiment} seed {seeds[-1] if seeds else seed}", cost

    def _cost(self, run: Run) -> Cost:
        data = run.data
        source = run.environment.data, *_parting(data)
        if source in self.modules:  # not decoded and dealt out again
            data.share_images(self.modules[source])
        data.setup()
        self.modules[source] = data
        if run.digest not in self.by_hash:
            self.by_hash[run.digest] = measure(run)
        return self.by_hash[run.digest]


def _parting(data: ImageDataModule) -> tuple[Any, ...]:
    """Return all that the parts of one source follow from."""
    how = data.split, data.val_fraction, data.train_subset, data.split_seed
    return (*how, *data.folding, *data.noise)


def main() -> None:
    """Console entry: `resnet-se plan …`."""
    filter_warnings()
    columns = ("job", "parameters", "MMAC", "memory MB", "minutes", "disk MB")
    table = plain_table("plan", *columns)
    planner = Planner()
    sums = [0.0, 0.0]
    failures: list[str] = []
    with with_conf():
        try:
            jobs = jobs_of(as_overrides("train", sys.argv[1:]))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            print(f"error: {explain(error)}", file=sys.stderr)
            sys.exit(2)
        for number, overrides in enumerate(jobs):
            try:
                name, cost = planner.job(overrides)
            except EXPECTED as error:
                name = f"{number} {' '.join(overrides)}"
                reason = explain(error)
                named = any(reason.startswith(override) for override in overrides)
                failures.append(reason if named else f"{name}: {reason}")
                table.add_row(name, "[red]cannot work", "", "", "", "")
                continue
            sums = [sums[0] + cost.seconds, sums[1] + cost.disk_mb]
            table.add_row(
                f"{number} {name}",
                f"{cost.total:,}",
                f"{cost.macs / 1e6:.1f}",
                f"{cost.memory_mb:,.0f}",
                f"{cost.seconds / 60:,.1f}",
                f"{cost.disk_mb:,.0f}",
            )
    table.add_section()
    table.add_row(
        count(len(jobs), "job"), "", "", "", f"{sums[0] / 60:,.1f}", f"{sums[1]:,.0f}"
    )
    Console().print(table)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(2)
