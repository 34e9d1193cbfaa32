"""Searches that stop trials early against searches that do not: best value, epochs.

    python experiments/search/compare.py --runs searches --out search.json \
        --seeds 0 1 2 --rules halving hyperband --jobs 2 -- budget=small

What follows `--` goes to every search.  The same command goes on where it was stopped.
A seed's searches have the same space and the same first proposals (Optuna's sampler
draws from the seed and the trial's number); from there on each learns from its own
trials.  The test set has no say.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from resnet_se.utils.system import environment, hardware


def search(seed: int, rule: str, overrides: list[str], runs: Path) -> dict[str, Any]:
    """One search to its end: the fields of its `optimization_results.yaml`."""
    command = [sys.executable, "-m", "resnet_se.train", "hparams_search=optuna"]
    command += [f"seed={seed}", f"hydra.sweeper.pruner={rule}", f"runs_dir={runs}"]
    subprocess.run([*command, "plots=false", *overrides], check=True)
    (file,) = runs.glob("searches/*/optimization_results.yaml")
    results = yaml.safe_load(file.read_text())
    del results["command"], results["name"]  # it has this machine's folders
    return {"seed": seed, "pruner": rule, **results}


def summary(searches: list[dict[str, Any]]) -> dict[str, Any]:
    """{pruner: mean and deviation of the best value, share of the epochs}."""
    whole = [s for s in searches if s["pruner"] == "null"]
    table = {}
    for rule in dict.fromkeys(s["pruner"] for s in searches):
        mine = [s for s in searches if s["pruner"] == rule]
        values = [s["best_value"] for s in mine]
        table[rule] = {
            "n": len(mine),
            "best_mean": round(statistics.mean(values), 5),
            "best_deviation": round(statistics.stdev(values), 5)
            if len(mine) > 1
            else None,
            "epochs": sum(s["epochs"] for s in mine),
            "share_of_epochs": round(
                sum(s["epochs"] for s in mine) / sum(s["epochs"] for s in whole), 3
            ),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="kept, to go on from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", default=["halving"])
    parser.add_argument("--jobs", type=int, default=1, help="searches side by side")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    import torch

    def one(case: tuple[int, str]) -> dict[str, Any]:
        folder = arguments.runs / "seed{}-{}".format(*case)
        return search(*case, arguments.overrides, folder)

    found = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = product(arguments.seeds, ("null", *arguments.rules))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(one, cases):
            found.append(result)
            content = {
                "overrides": arguments.overrides,
                "jobs": arguments.jobs,
                "summary": summary(found),
                "searches": found,
                **environment(),
                "hardware": hardware(device, "32-true", 1),
            }
            arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(summary(found), indent=1))


if __name__ == "__main__":
    main()
