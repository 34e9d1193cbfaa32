"""experiments/statistics: the committed simulation, and what the report says of it."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

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


def test_holm_by_hand(script):
    # in order: 4 × 0.005, 3 × 0.01, 2 × 0.03, and 1 × 0.04, which may not fall again
    holm = script["holm"]
    pairs = holm([0.01, 0.04, 0.03, 0.005])
    assert [p for p, _ in pairs] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # two are rejected, at 0.05 / 4 and 0.05 / 3; the rest was tested at 0.05 / 2
    levels = [0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4]
    assert [level for _, level in pairs] == pytest.approx(levels)
    assert [p for p, _ in holm([0.7, 0.9])] == [1, 1]
    assert holm([]) == []


def test_a_small_simulation_finds_the_same(script):
    found = script["simulate"](3)
    assert found["null"].keys() == {str(n) for n in script["SEEDS"]}
    assert found["null"]["1"]["after"]["false_alarms"] == 0
    covered = [
        rules["after"]["coverage"] for n, rules in found["null"].items() if n > "1"
    ]
    assert np.mean(covered) > 0.88
    assert found == script["simulate"](3)


def test_what_is_said_of_holms_intervals():
    script = runpy.run_path(str(FOLDER / "holm.py"))
    coverage = json.loads((FOLDER / "holm.json").read_text())["coverage"]
    text = (FOLDER / "README.md").read_text()
    assert f"{100 * coverage['all by 1 or more']['holm']:.1f} % where each" in text
    assert f"{100 * coverage['a third by 1']['holm']:.1f} % where a third" in text
    worst = min(of["bonferroni"] for of in coverage.values())
    assert f"Bonferroni's in {100 * worst:.1f} % or more" in text
    again = script["joint_coverage"](np.random.default_rng(2), np.linspace(1, 5, 21))
    assert again == pytest.approx(coverage["all by 1 or more"], abs=0.015)


# --- recipes whose noise is unlike -------------------------------


@pytest.fixture(scope="module")
def unlike():
    return runpy.run_path(str(FOLDER / "unlike_noise.py"))


@pytest.fixture(scope="module")
def of_unlike():
    return json.loads((FOLDER / "unlike_noise.json").read_text())


def test_the_readme_has_the_tables_of_the_simulation(unlike, of_unlike):
    page = (FOLDER / "README.md").read_text()
    assert unlike["by_setting"](of_unlike) in page
    assert unlike["by_method"](of_unlike) in page


def test_the_simulation_of_one_setting_finds_what_is_committed(unlike, of_unlike):
    for k, n, name in ((6, 2, "log-uniform"), (6, 5, "unequal, noisy")):
        again = unlike["row"](k, n, name, of_unlike["studies"], of_unlike["seed"])
        (found,) = (
            row
            for row in of_unlike["rows"]
            if (row["k"], row["n"], row["setting"]) == (k, n, name)
        )
        for method, figures in again["methods"].items():
            assert figures == pytest.approx(found["methods"][method], abs=1e-3)


def test_the_chosen_rule_holds_where_the_plan_says(of_unlike):
    planned = [row for row in of_unlike["rows"] if row["setting"] != "a third noisy"]
    assert len(planned) == 3 * 4 * 13
    for row in planned:
        assert row["methods"]["chosen"]["false"] <= 0.05
        assert row["methods"]["chosen"]["cover"] >= 0.94
    worst = max(row["methods"]["today, pooled"]["false"] for row in planned)
    assert worst > 0.99  # one diverged seed
    (alike,) = (
        r for r in planned if (r["k"], r["n"], r["setting"]) == (22, 5, "alike")
    )
    assert alike["methods"]["chosen"]["power"] > 0.9


def test_a_quantile_is_students_and_an_exact_width_the_sum_of_two(unlike):
    from scipy import stats

    for degrees in (1.0, 3.5, 40.0, np.inf):
        expected = stats.t.isf(0.01, degrees)
        found = unlike["quantile"](np.array(degrees), 0.02)
        assert found == pytest.approx(expected, rel=1e-3)
    accuracies = np.random.default_rng(0).normal(size=(1, 2, 4))
    study = unlike["summary"](accuracies, np.array([4, 4]))
    (half,) = unlike["banerjee"](study, unlike["own"](study), 0.05)[0]
    total = study.variances.sum() / 4
    assert half == pytest.approx(stats.t.isf(0.025, 3) * total**0.5, rel=1e-3)
