"""The multirun: each job's outcome, the table at the end, `fail_fast`, and for several
jobs at once on one machine each its own GPU.

Every Hydra launcher runs the same job function, here or in other processes, so the jobs
leave their outcomes as files in the sweep's directory; the table is read from there.
There is nothing to resume here: training itself is idempotent.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from resnet_se.config import CONF
from resnet_se.config.hydra_versions import register_resolver
from resnet_se.config.messages import explain
from resnet_se.utils.console import plain_table
from resnet_se.utils.errors import nearest
from resnet_se.utils.files import Busy, atomic_file, exclusive
from resnet_se.utils.system import usable_cores

# Under `uv run` Ray would copy the working directory to its workers, runs and data with
# it, and let them write their results into the copies.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

PRUNER = "++callbacks.pruner="  # an override of `search`, no part of what is searched
STYLES = {"failed": "red", "not started": "yellow", "busy": "yellow"}

# --- what a job may use of the machine: conf/launcher ------------


def _visible_gpus() -> list[str]:
    """`${visible_gpus:}`: this machine's GPUs as CUDA_VISIBLE_DEVICES names them."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        import torch

        return [str(i) for i in range(torch.cuda.device_count())]
    return [name for name in names.split(",") if name]


def _parallel_jobs(gpus: Sequence[str]) -> int:
    """`${side_by_side:GPUS}`: a job for each GPU; without any, two on the cores."""
    return len(gpus) or 2


def _per_job(what: str, jobs: int) -> float:
    """`${share:cores,N}`, `${share:gpus,N}`: what each of N jobs may use of them."""
    if what == "cores":
        return max(1, usable_cores() // jobs)
    gpus = len(_visible_gpus())
    return gpus // jobs if gpus >= jobs else gpus / jobs


# Cached: a worker asks what the machine had, not what it was left with.
for _name, _resolver, _cached in (
    ("visible_gpus", _visible_gpus, True),
    ("side_by_side", _parallel_jobs, False),
    ("share", _per_job, True),
):
    register_resolver(_name, _resolver, replace=True, use_cache=_cached)

_locks_held: list[Any] = []


def claim_gpus(gpus: Sequence[str], jobs: int, folder: Path) -> None:
    """Gives this process one of `jobs` shares of `gpus`: CUDA_VISIBLE_DEVICES.

    With fewer GPUs than jobs, several jobs share one.  A launcher gives a process many
    jobs and CUDA reads the variable once, so the share is the process's: a lock in
    `folder`, freed when the process ends, even by `kill -9`.  Waits for a free one.
    """
    each = max(1, len(gpus) // jobs)
    while gpus and not _locks_held:
        for share in range(jobs):
            lock = exclusive(folder / f".gpu-share-{share}")
            try:
                lock.__enter__()
            except Busy:
                continue
            _locks_held.append(lock)
            mine = (gpus[(share * each + i) % len(gpus)] for i in range(each))
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))
            return
        time.sleep(1)


# --- the jobs' outcomes ------------------------------------------


class JobResult(NamedTuple):
    """The end of a run, `done`, `resumed`, `skipped` or `pruned`, and its record."""

    kind: str
    record: dict[str, Any]


def recorded(task: Callable[..., JobResult]) -> Callable[[DictConfig], None]:
    """Wrap `task`, so that in a multirun it leaves `outcome.json` in its directory.

    Args:
        task: (configuration, function to call with the run directory) → its end.
    """

    def job(cfg: DictConfig) -> None:
        hydra = HydraConfig.get()
        if hydra.mode != RunMode.MULTIRUN:
            task(cfg)
            return
        folder = Path(hydra.runtime.output_dir)
        record = job_record(hydra.job.num, hydra.overrides.task)
        if cfg.get("fail_fast") and any(
            o["kind"] == "failed" for o in outcomes(folder.parent)
        ):
            write_outcome(folder, record | {"kind": "not started"})
            return
        started = time.perf_counter()

        def name(run_dir: Path) -> None:
            record["run_dir"] = str(run_dir.resolve())
            write_outcome(folder, record | {"kind": "running"})

        try:
            from resnet_se.config.validate import check_keys

            check_keys(cfg)  # the launcher's share is read before the rest
            claim_gpus(cfg.launcher.gpus, cfg.launcher.jobs, folder.parent)
            result = task(cfg, name)
        except Busy as error:
            write_outcome(folder, record | {"kind": "busy", "error": str(error)})
            print(f"busy: {error}", file=sys.stderr)
            return
        except Exception as error:
            failed = {"kind": "failed", "error": explain(error)}
            write_outcome(folder, record | failed)
            raise
        record |= {
            "kind": result.kind,
            "seconds": round(time.perf_counter() - started, 1),
            "epochs": result.record["train"]["epochs"],
        }
        if result.kind != "pruned":
            test, val = result.record["test"], result.record["val"]
            record |= {"acc": test["acc"], "acc_tta": test["acc_tta"]}
            record |= {"val_acc": val["acc"], "val_loss": val["loss"]}
        write_outcome(folder, record)

    return job


def job_record(number: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the beginning of a job's outcome, before its run directory has a name."""
    told = [o for o in overrides if "api_key" not in o and not o.startswith(PRUNER)]
    return {"job": number, "overrides": told, "run_dir": ""}


def write_outcome(folder: Path, record: dict[str, Any]) -> None:
    """Write a job's `outcome.json` into its folder of the sweep."""
    with atomic_file(folder / "outcome.json") as file:
        file.write(json.dumps(record, indent=2).encode())


def outcomes(sweep_dir: Path) -> list[dict[str, Any]]:
    """The outcomes of a sweep's jobs so far, in the jobs' order."""
    records = [
        json.loads(path.read_text()) for path in sweep_dir.glob("*/outcome.json")
    ]
    return sorted(records, key=lambda record: record["job"])


class SweepTable(Callback):
    """Hydra's callback that ends a multirun with a table; status 1 if a job failed.

    Installed by `conf/train.yaml`; a search has its own in its place.

    With `launcher.dry_run` nothing is launched: what SLURM would get is printed.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.dry = slurm_scripts() if config.launcher.get("dry_run") else nullcontext()
        self.dry.__enter__()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        # Hydra's sweeper keeps what each job returned to its end, 0.3 MB of them.
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        self.dry.__exit__(None, None, None)
        if config.launcher.get("dry_run"):
            return
        folder = Path(config.hydra.sweep.dir)
        records = outcomes(folder)
        stopped = sys.exc_info()[0] is not None  # Hydra 1.4 comes here all the same
        if not records and not stopped:
            print(
                f"error: no job left an outcome in {folder.resolve()}: workers on "
                "other machines need a runs_dir that all reach, an absolute path; is "
                "it experiment=glob(…) that matches no experiment? "
                f"{nearest('', experiments())}",
                file=sys.stderr,
            )
            sys.exit(2)
        if records:
            self.show(records, config)
        if not stopped and any(record["kind"] == "failed" for record in records):
            sys.exit(1)

    def show(self, records: list[dict[str, Any]], config: DictConfig) -> None:
        """Prints the outcomes of a sweep."""
        print_outcomes(records, {"test": "acc", "TTA": "acc_tta"})


@contextmanager
def slurm_scripts() -> Iterator[None]:
    """submitit writes its sbatch scripts on standard output, and submits nothing."""
    from submitit.slurm.slurm import SlurmExecutor

    def show(self: Any, jobs: Sequence[Any]) -> list[Any]:
        if len(jobs) > 1:  # as submitit's own does
            self.parameters["map_count"] = len(jobs)
        print(self._make_submission_file_text(self._submitit_command_str, ""), end="")
        return []

    here = classmethod(lambda _: 1)  # SLURM need not be here
    with (
        patch.object(SlurmExecutor, "affinity", here),
        patch.object(SlurmExecutor, "_internal_process_submissions", show),
    ):
        yield


def experiments() -> list[str]:
    """The names that `experiment=` takes."""
    return [path.stem for path in (CONF / "experiment").glob("*.yaml")]


def varying(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return each job's distinguishing overrides: `model=… lr=…`, by short keys."""
    settings = [dict(o.lstrip("+~").partition("=")[::2] for o in job) for job in jobs]
    keys = dict.fromkeys(key for job in settings for key in job)
    vary = [k for k in keys if len({job.get(k) for job in settings}) > 1]
    short = [key.rpartition(".")[2] for key in vary]
    names = [s if short.count(s) == 1 else k for s, k in zip(short, vary, strict=True)]
    return [
        " ".join(f"{n}={job[k]}" for n, k in zip(names, vary, strict=True) if k in job)
        for job in settings
    ]


def print_outcomes(records: list[dict[str, Any]], accuracies: dict[str, str]) -> None:
    """A table of outcomes; `accuracies`: heading → field of the record."""
    columns = ("job", "varies", "outcome", *accuracies, "min")
    table = plain_table(f"sweep of {len(records)} jobs", *columns, left=3)
    labels = varying([record["overrides"] for record in records])
    for record, label in zip(records, labels, strict=True):
        row = _row(record, label, accuracies.values())
        table.add_row(*row, style=STYLES.get(record["kind"]))
    console = Console()
    console.print(table)
    for record in records:  # below the table, which would cut them
        where = record.get("run_dir")
        texts = [os.path.relpath(where)] if where else []
        texts += filter(None, [record.get("error")])
        if texts:
            line = f"job {record['job']}: {': '.join(texts)}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    counts = Counter(record["kind"] for record in records)
    console.print(", ".join(f"{n} {kind}" for kind, n in counts.items()))


def _row(
    record: dict[str, Any], label: str, accuracies: Iterable[str]
) -> tuple[str, ...]:
    def percent(key: str) -> str:
        return "–" if record.get(key) is None else f"{record[key]:.2%}"

    seconds = record.get("seconds")
    return (
        str(record["job"]),
        label,
        record["kind"],
        *map(percent, accuracies),
        "–" if seconds is None else f"{seconds / 60:.1f}",
    )
