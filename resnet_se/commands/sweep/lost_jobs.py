"""Jobs whose process was killed: they are `failed`, and the sweep goes on.

Out of memory, or with its machine, a job leaves no outcome; a launcher raises then, and
Hydra starts no further batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from resnet_se.commands.sweep.multirun import job_record, outcomes, write_outcome
from resnet_se.commands.sweep.zipped import BasicSweeper, ZippedSweeper


class Enduring(BasicSweeper):
    """A sweeper that composes all jobs before the first, and loses none."""

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        super().setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launcher = enduring(self.launcher, Path(config.hydra.sweep.dir))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if self.batch_index == 1:
            jobs = [job for batch in self.overrides or () for job in batch]
            super().validate_batch_is_legal(jobs)


class EnduringZipped(Enduring, ZippedSweeper):
    """The same of `zip(…)`."""


def enduring(launcher: Any, folder: Path) -> Any:
    """Return a launcher whose `launch` comes to its end whatever becomes of a job.

    One that was killed is `failed` in its outcome, one that never began `not started`.
    What goes wrong before any has begun is raised.

    Args:
        folder: of the sweep.
    """
    launch = launcher.launch
    submitit = "submitit" in type(launcher).__module__

    def launch_all(
        job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        try:
            with _errors_as_results() if submitit else nullcontext():
                ends = launch(job_overrides, initial_job_idx=initial_job_idx)
        except Exception as error:
            begun = {record["job"] for record in outcomes(folder)}
            if begun.isdisjoint(numbers):
                raise
            print(
                f"error: {type(error).__name__}: the launcher has lost a worker; the "
                "same command goes on from here",
                file=sys.stderr,
            )
            ends = [error for _ in numbers]
        for number, overrides, end in zip(numbers, job_overrides, ends, strict=False):
            if isinstance(end, Exception):
                _record_loss(folder, job_record(number, overrides), end)
        return [end for end in ends if isinstance(end, JobReturn)]

    launcher.launch = launch_all
    return launcher


def _record_loss(folder: Path, job: dict[str, Any], error: Exception) -> None:
    """Write the outcome of a job that has left none, or that it was running."""
    left = {record["job"]: record for record in outcomes(folder)}.get(job["job"])
    if left and left["kind"] != "running":
        return
    record = left or job
    if left or isinstance(error, Lost):
        why = str(error) if isinstance(error, Lost) else "its process was killed"
        record |= {"kind": "failed", "lost": True, "error": why}
    else:
        record |= {"kind": "not started"}
    write_outcome(folder / str(job["job"]), record)


class Lost(Exception):
    """The process of one job ended without a word."""


@contextmanager
def _errors_as_results() -> Iterator[None]:
    """submitit gives `Lost` as the result of a job that has none, and raises none."""
    from submitit.core.core import Job
    from submitit.core.utils import UncompletedJobError

    results = Job.results

    def results_or_loss(self: Any) -> list[Any]:
        try:
            return list(results(self))
        except UncompletedJobError:
            state = f"its process was killed, or the machine lost ({self.state})"
            return [Lost(f"{state}; see {self.paths.stderr}")]

    with patch.object(Job, "results", results_or_loss):
        yield


# Under the names that configurations have; Hydra takes a plugin by no other package's.
Plugins.instance().class_name_to_class |= {
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper": Enduring,
    "hydra_plugins.ZippedSweeper": EnduringZipped,
}
