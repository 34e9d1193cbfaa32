"""What a multirun adds to a run: each job's outcome, the table at the end, `fail_fast`.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from resnet_se.config import CONF, explain
from resnet_se.errors import nearest
from resnet_se.results import Busy, atomic_file

STYLES = {"failed": "red", "not started": "yellow", "busy": "yellow"}


class Outcome(NamedTuple):
    """How a run ended, `done`, `resumed` or `skipped`, and its record."""

    kind: str
    result: dict[str, Any]


def recorded(task: Callable[[DictConfig], Outcome]) -> Callable[[DictConfig], None]:
    """`task`, which in a multirun also leaves `outcome.json` in the job's directory."""

    def job(cfg: DictConfig) -> None:
        hydra = HydraConfig.get()
        if hydra.mode != RunMode.MULTIRUN:
            task(cfg)
            return
        folder = Path(hydra.runtime.output_dir)
        record = {"job": hydra.job.num, "overrides": list(hydra.overrides.task)}
        if cfg.fail_fast and any(
            o["kind"] == "failed" for o in outcomes(folder.parent)
        ):
            _write(folder, record | {"kind": "not started"})
            return
        started = time.perf_counter()
        try:
            outcome = task(cfg)
        except Busy as error:
            _write(folder, record | {"kind": "busy", "error": str(error)})
            print(f"busy: {error}", file=sys.stderr)
            return
        except Exception as error:
            failed = {"kind": "failed", "error": explain(error)}
            # Where it went wrong before a run directory could be named, the overrides
            # have to do.
            _write(folder, record | failed | {"run_dir": cfg.run_dir})
            raise
        test = outcome.result["test"]
        record |= {
            "kind": outcome.kind,
            "run_dir": cfg.run_dir,
            "seconds": round(time.perf_counter() - started, 1),
            "acc": test["acc"],
            "acc_tta": test["acc_tta"],
        }
        _write(folder, record)

    return job


def _write(folder: Path, record: dict[str, Any]) -> None:
    with atomic_file(folder / "outcome.json") as file:
        file.write(json.dumps(record, indent=2).encode())


def outcomes(sweep_dir: Path) -> list[dict[str, Any]]:
    """The outcomes of a sweep's jobs so far, in the jobs' order."""
    found = [json.loads(path.read_text()) for path in sweep_dir.glob("*/outcome.json")]
    return sorted(found, key=lambda record: record["job"])


class SweepTable(Callback):
    """Hydra's callback that ends a multirun with a table; status 1 if a job failed."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        found = outcomes(Path(config.hydra.sweep.dir))
        if not found:
            print(
                "error: no job ran; experiment=glob(…) that matches no experiment? "
                f"{nearest('', experiments())}",
                file=sys.stderr,
            )
            sys.exit(2)
        table = Table(title=f"sweep of {len(found)} jobs")
        for name in ("job", "outcome", "test", "TTA", "min", "run or error"):
            right = name in ("job", "test", "TTA", "min")
            table.add_column(
                name, justify="right" if right else "left", overflow="fold"
            )
        for record in found:
            table.add_row(*_row(record), style=STYLES.get(record["kind"]))
        console = Console()
        console.print(table)
        counts = Counter(record["kind"] for record in found)
        console.print(", ".join(f"{n} {kind}" for kind, n in counts.items()))
        if counts["failed"]:
            sys.exit(1)


def experiments() -> list[str]:
    """The names that `experiment=` takes."""
    return [path.stem for path in (CONF / "experiment").glob("*.yaml")]


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    def percent(key: str) -> str:
        return "–" if record.get(key) is None else f"{record[key]:.2%}"

    seconds = record.get("seconds")
    where = record.get("run_dir")
    what = os.path.relpath(where) if where else " ".join(record["overrides"])
    what += f"\n{record.get('error', '')}"
    return (
        str(record["job"]),
        record["kind"],
        percent("acc"),
        percent("acc_tta"),
        "–" if seconds is None else f"{seconds / 60:.1f}",
        what.strip(),
    )
