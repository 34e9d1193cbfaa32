"""experiments/speedrun: its tables say what its records say."""

import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "speedrun"
ROWS = {  # first words of a table's row → the records it sums up
    "| reference |": "reference.cpu1.seed?.json",
    "| speedrun |": "cpu1.seed?.json",
    "| speedrun with widths 64/128/256": "wide.cpu1.seed?.json",
}


def records(pattern):
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob(pattern))]
    assert found
    # `reference.py` keeps a list of runs in a file, here of one.
    return [run for record in found for run in record.get("runs", [record])]


def row(start):
    lines = (FOLDER / "README.md").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("start", "pattern"), ROWS.items())
def test_the_table_is_that_of_the_records(start, pattern):
    runs = records(pattern)
    _, n, plain, tta, seconds = row(start)
    assert n == str(len(runs))
    for cell, key in ((plain, "acc"), (tta, "acc_tta")):
        values = [f"{100 * run['test'][key]:.2f}" for run in runs]
        assert cell == ", ".join(values) + " %"
    assert seconds == ", ".join(f"{run['train']['seconds']:,.0f}" for run in runs)


def test_cost_is_that_of_the_records():
    [macs] = {run["model"]["macs"] for run in records("cpu1.seed?.json")}
    text = (FOLDER / "README.md").read_text()
    assert f"`experiment=speedrun`: {macs / 1e6:.1f} MMAC" in text


@pytest.mark.parametrize(
    ("start", "name"), [("| Muon, batch", "muon"), ("| SGD as speedrun", "sgd")]
)
def test_the_trials_of_muon_are_those_of_the_records(start, name):
    [run] = records(f"trial_{name}.cpu1.seed0.json")
    assert run["choices"]["optimizer"] == {"muon": "muon", "sgd": "sgd_nesterov"}[name]
    accuracy, seconds = f"{100 * run['val']['acc']:.2f} %", run["train"]["seconds"]
    steps = str(run["train"]["steps"])
    assert row(start)[1:] == ["1", steps, accuracy, f"{seconds:,.0f}"]


def test_the_picture_s_points_are_those_of_the_records():
    script = runpy.run_path(str(FOLDER / "flops.py"))
    kept = json.loads((FOLDER / "flops.json").read_text())
    assert list(script["points"]()) == kept["ours"]
    named = {p["name"]: (p["pflop"], p["acc"]) for p in kept["published"]}
    assert named == script["PUBLISHED"]
    mean = {
        series: mean_of([p["pflop"] for p in kept["ours"] if p["series"] == series])
        for series in script["SERIES"]
    }
    share = mean["speedrun"] / mean["airbench94's recipe, rebuilt"]
    text = (FOLDER / "README.md").read_text()
    assert f"In FLOPs speedrun needs {share:.0%} of the".replace("%", " %") in text


def mean_of(values):
    return sum(values) / len(values)
