"""The attention study's tables and figure, from its records.

    python experiments/attention/findings.py [RUNS]

Takes in the records and the gates that RUNS (a `runs_dir`) has finished.  Then writes
what stands between `<!-- findings.py: NAME -->` and `<!-- end -->` in the README here,
and differences.svg; `tests/experiments/test_attention_study.py` holds them to the
records.
"""

from __future__ import annotations

import json
import runpy
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from resnet_se.analysis.canvas import draw
from resnet_se.analysis.gate_figures import percent
from resnet_se.analysis.report.compare import Family, compare
from resnet_se.analysis.report.differences import differences
from resnet_se.analysis.report.groups import sections
from resnet_se.analysis.report.runs import load
from resnet_se.analysis.report.text import (
    Table,
    accuracy,
    gain,
    markdown_table,
    p_value,
    points,
)
from resnet_se.utils.errors import UserError

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
ARMS = ("a20_none", "a20_se", "a20_static")
PRIMARY = (("a20_se", ARMS[0]), ("a20_static", ARMS[0]), ("a20_se", "a20_static"))
EQUIVALENCE = 0.005
SMALL = runpy.run_path(str(HERE.parent / "small/findings.py"))
Seeds = Mapping[int, float]  # {seed: test accuracy}


class Paired(NamedTuple):
    """The mean of differences by seed; p and interval of Student's t."""

    seeds: list[int]
    mean: float
    deviation: float
    interval: tuple[float, float]
    p: float

    @property
    def detectable(self) -> float:
        """The difference that a paired t test at 5 % finds with 80 % power."""
        n = len(self.seeds)
        critical = stats.t.ppf(0.975, n - 1)
        effects = np.linspace(0, 60, 6001)  # in standard errors
        power = stats.nct.sf(critical, n - 1, effects)
        return float(effects[np.argmax(power >= 0.8)]) * self.deviation / n**0.5


def paired(name: str, treatment: Seeds, baseline: Seeds) -> Paired:
    """Compare two arms by the seeds that both have.

    Raises:
        UserError: they have fewer than two in common.
    """
    seeds = sorted(treatment.keys() & baseline.keys())
    if len(seeds) < 2:
        has = " and ".join(str(sorted(arm)) for arm in (treatment, baseline))
        raise UserError(
            f"{name}: a paired comparison needs two seeds or more in common, got {has}"
        )
    gains = [treatment[s] - baseline[s] for s in seeds]
    test = stats.ttest_1samp(gains, 0)
    low, high = test.confidence_interval()
    spread = statistics.stdev(gains)
    return Paired(seeds, statistics.fmean(gains), spread, (low, high), test.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Return p corrected for their number, by Holm's steps."""
    corrected = [0.0] * len(p)
    highest = 0.0
    for rank, i in enumerate(np.argsort(p)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


# --- the tables --------------------------------------------------


def records() -> dict[str, dict[int, dict[str, Any]]]:
    """{arm: {seed: its record}}, of the seeds that all arms have."""
    found: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for path in sorted((HERE / "runs").glob("*/*/result.json")):
        run = json.loads(path.read_text())
        found[run["experiment"]][run["seed"]] = run
    common = sorted(set.intersection(*(set(runs) for runs in found.values())))
    return {arm: {seed: runs[seed] for seed in common} for arm, runs in found.items()}


def arms() -> str:
    """A row an arm: its accuracy, parameters and seconds."""
    rows = []
    for arm, runs in records().items():
        first = next(iter(runs.values()))
        rows.append(
            {
                "arm": f"`{arm}`",
                "n": str(len(runs)),
                "parameters": f"{first['model']['trainable']:,}",
                "validation %": accuracy([r["val"]["acc"] for r in runs.values()]),
                "test %": accuracy([r["test"]["acc"] for r in runs.values()]),
                "test % of seeds": ", ".join(
                    f"{seed}: {100 * r['test']['acc']:.2f}" for seed, r in runs.items()
                ),
                "minutes": ", ".join(
                    f"{r['train']['seconds'] / 60:.1f}" for r in runs.values()
                ),
            }
        )
    return _table(rows, "arm", "test % of seeds", "minutes")


def primary() -> str:
    """A row a primary comparison, paired by seed."""
    found = records()
    tests = []
    for treatment, baseline in PRIMARY:
        sides = (
            {seed: run["test"]["acc"] for seed, run in found[arm].items()}
            for arm in (treatment, baseline)
        )
        tests.append(paired(_name(treatment, baseline), *sides))
    corrected = holm([test.p for test in tests])
    rows = [
        {
            "comparison": _name(*pair),
            "n": str(len(test.seeds)),
            "points [95 % interval]": gain(test.mean, test.interval),
            "deviation": f"{100 * test.deviation:.2f}",
            "detectable": f"{100 * test.detectable:.2f}",
            "p": p_value(test.p),
            "p after Holm": p_value(p),
            "answer": "not decided" if p >= 0.05 else points(test.mean),
        }
        for pair, test, p in zip(PRIMARY, tests, corrected, strict=True)
    ]
    return _table(rows, "comparison", "answer")


def report() -> str:
    """The same by the report's rule, which does not pair."""
    rows = [
        {
            "comparison": c.name,
            "n": c.seeds,
            "points [interval]": gain(c.mean, c.interval),
            "answer": c.verdict(EQUIVALENCE),
        }
        for c in _family().comparisons
    ]
    return _table(rows, "comparison", "answer")


def gates() -> str:
    """A row an SE network: its constant share, and the loss by gates without images."""
    rows = []
    for path in sorted((HERE / "gates").glob("*.json")):
        [entry] = json.loads(path.read_text())["runs"]
        lost = {a["gates"]: a for a in entry["ablations"] if a["where"] == "all"}
        rows.append(
            {
                "network": f"`{entry['experiment']}`, seed {entry['seed']}",
                "images": f"{entry['data']['images']:,}",
                "mean gate": f"{entry['all']['mean']:.3f}",
                "deviation by image": f"{entry['all']['std_images']:.3f}",
                "E[g²] constant %": percent(entry["all"]["shares"]["constant"]),
            }
            | {
                f"{kind}, points": gain(
                    lost[kind]["difference"], lost[kind]["difference_interval"]
                )
                for kind in ("mean", "one")
            }
        )
    return _table(rows, "network") if rows else "No network was looked at."


def _name(treatment: str, baseline: str) -> str:
    short = (arm.removeprefix("a20_") for arm in (treatment, baseline))
    short = (name.replace("se", "SE") for name in short)
    return " − ".join(short)


def _family() -> Family:
    runs = records()
    paths = [
        str(HERE / "runs" / arm / f"seed{seed}-{run['config_hash']}")
        for arm, seeds in runs.items()
        for seed, run in seeds.items()
    ]
    [section] = sections(load(paths).runs)
    return compare(section)


def _table(rows: list[dict[str, str]], *left: str) -> str:
    return markdown_table(Table("", pd.DataFrame(rows), set(left)))


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        SMALL["take"](folder, HERE / "runs")
        for path in folder.glob("a20_se/*/inspect/inspect.json"):
            (HERE / "gates").mkdir(exist_ok=True)
            shutil.copyfile(path, HERE / "gates" / f"{path.parts[-3]}.json")
    texts = {part.__name__: part() for part in (arms, primary, report, gates)}
    PAGE.write_text(SMALL["written"](PAGE.read_text(), texts))
    [picture] = [
        rest[1]
        for name, *rest in differences(_family(), EQUIVALENCE)
        if name == "differences"
    ]
    (HERE / "differences.svg").write_text(draw(picture))


if __name__ == "__main__":
    main()
