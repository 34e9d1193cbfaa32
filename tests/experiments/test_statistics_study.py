"""experiments/statistics: the committed simulation, and what the report says of it."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from resnet_se.analysis.report.document import METHOD

FOLDER = Path(__file__).parents[2] / "experiments" / "statistics"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(FOLDER / "simulate.py"))


@pytest.fixture(scope="module")
def committed():
    return json.loads((FOLDER / "verdicts.json").read_text())


def test_the_committed_simulation_says_that_the_verdicts_hold(committed):
    assert committed["studies"] >= 500
    for n, rules in committed["null"].items():
        after = rules["after"]
        assert after["false_alarms"] <= 0.05
        if n != "1":
            assert 0.94 <= after["coverage"] <= 0.965
    assert committed["null"]["1"]["before"]["false_alarms"] > 0.5
    assert committed["power"]["3"]["before"] < 0.05
    assert committed["power"]["3"]["after"] > 0.9


def test_the_report_states_what_was_simulated(committed, script):
    null = {int(n): rules["after"] for n, rules in committed["null"].items()}
    several = [n for n in script["SEEDS"] if n > 1]
    text = " ".join(METHOD)
    for key in ("coverage", "false_alarms"):
        assert ", ".join(f"{100 * null[n][key]:.1f}" for n in several) + " %" in text
    assert f"{', '.join(map(str, several))} seeds" in text
    assert f"{100 * null[1]['coverage']:.1f} %" in text


def test_a_small_simulation_finds_the_same(script):
    found = script["simulate"](3)
    assert found["null"].keys() == {str(n) for n in script["SEEDS"]}
    assert found["null"]["1"]["after"]["false_alarms"] == 0
    covered = [
        rules["after"]["coverage"] for n, rules in found["null"].items() if n > "1"
    ]
    assert np.mean(covered) > 0.88
    assert found == script["simulate"](3)
