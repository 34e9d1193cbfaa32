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


TRIALS = {
    "| Muon, batch": "trial_muon.cpu1.seed0.json",
    "| SGD as speedrun": "trial_sgd.cpu1.seed0.json",
    "| Muon, `se_airbench` (`trial": "trial_muon_plain.cpu1.seed0.json",
    "| Muon, `se_airbench`, stem": "../quickstart/cpu1.seed0.json",
    "| SGD, what quickstart was": "../quickstart/cpu4.seed0.json",
}


@pytest.mark.parametrize(("start", "name"), TRIALS.items())
def test_the_trials_of_muon_are_those_of_the_records(start, name):
    run = json.loads((FOLDER / name).read_text())
    epochs, steps = run["train"]["epochs"], run["train"]["steps"]
    pflop = 6 * run["model"]["macs"] * epochs * run["data"]["train"] / 1e15
    accuracy = f"{100 * run['val']['acc']:.2f} %"
    assert row(start)[1:] == [
        "1", str(epochs), f"{steps:,}", f"{pflop:.3f}", accuracy
    ]  # fmt: skip


def test_what_is_said_of_quickstart_is_in_its_records():
    text = (FOLDER / "README.md").read_text()
    new, old = (
        json.loads((FOLDER.parent / f"quickstart/{name}.seed0.json").read_text())
        for name in ("cpu1", "cpu4")
    )
    tests = [100 * run["test"][key] for run in (new, old) for key in ("acc", "acc_tta")]
    said = "Its test: {:.2f} %, {:.2f} % with TTA, where SGD's\nhad {:.2f} and {:.2f} %"
    assert said.format(*tests) in text
    losses = [run["val"]["loss"] for run in (new, old)]
    assert "(losses {:.3f} and {:.3f})".format(*losses) in text
    share = new["train"]["epochs"] / old["train"]["epochs"]
    assert f"needs {100 * share:.0f} % of the operations" in text


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
