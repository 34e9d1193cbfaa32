"""experiments/attention: its tables are its records', its records the recipe's."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import stats

from resnet_se.config import CONF
from resnet_se.config.compose import plain_values
from resnet_se.config.schema import HASH_RULES
from resnet_se.runs.run_hash import Environment, config_hash, hashed_config
from resnet_se.utils.errors import UserError

FOLDER = Path(__file__).parents[2] / "experiments" / "attention"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(FOLDER / "findings.py"))


def read(pattern):
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob(pattern))]


def test_the_page_is_that_of_the_records(script):
    page = (FOLDER / "README.md").read_text()
    parts = ("arms", "primary", "report", "gates")
    texts = {name: script[name]() for name in parts}
    assert all(f"<!-- findings.py: {name} -->" in page for name in parts)
    assert script["SMALL"]["written"](page, texts) == page


def test_what_is_said_in_words_is_in_the_tables(script):
    rows = script["primary"]().splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    front = " ".join((FOLDER.parents[1] / "README.md").read_text().split())
    assert f"{cells[0][0]} is {cells[0][2]} points (n = {cells[0][1]})" in front
    for cell in cells[1:]:
        assert cell[2] in front
    assert {row[7] for row in cells} == {"not decided"}
    assert len(read("runs/*/*/result.json")) == 15
    [*entries] = (entry for file in read("gates/*.json") for entry in file["runs"])
    assert len(entries) == 5
    constant = sorted(round(100 * e["all"]["shares"]["constant"]) for e in entries)
    said = f"{constant[0]} to {constant[-1]} %"
    assert f"[{said} of a gate is the same" in front
    lost = sorted(
        -100 * a["difference"]
        for entry in entries
        for a in entry["ablations"]
        if (a["gates"], a["where"]) == ("mean", "all")
    )
    page = " ".join((FOLDER / "README.md").read_text().split())
    assert f"{said} is the same for every image" in page
    assert f"they lose {lost[0]:.1f} to {lost[-1]:.1f} points" in page


def test_every_record_is_of_the_recipe_and_of_one_commit(script):
    runs = read("runs/*/*/result.json")
    assert {run["git"]["commit"] for run in runs} == {runs[0]["git"]["commit"]}
    assert not any(run["git"]["dirty"] for run in runs)
    for arm in script["ARMS"]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            values = plain_values(compose("train", [f"experiment={arm}"]))
        mine = [run for run in runs if run["experiment"] == arm]
        assert mine
        for run in mine:
            assert run["status"] == "finished"
            assert run["test"]["images"] == 10_000
            content = run["setting"]["data.content"]
            facts = Environment(content, "bf16-mixed", 1)
            digest = config_hash(hashed_config(values, facts, HASH_RULES))
            assert digest == run["config_hash"]


@pytest.mark.parametrize(
    ("arm", "key", "factor"),
    [("a20_none", "optimizer.lr", 1), ("a20_se", "optimizer.se_lr", 0.1)],
)
def test_rates_are_the_best_of_their_trials_by_validation(arm, key, factor):
    trials = [r for r in read("trials/*/result.json") if r["experiment"] == arm]
    assert len(trials) == 2
    best = max(trials, key=lambda run: run["val"]["acc"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={arm}"])
    assert best["setting"][key] == OmegaConf.select(cfg, key)
    page = (FOLDER / "README.md").read_text()
    for run in trials:
        rate = f"{run['setting'][key] * factor:g}"
        assert f"| {rate} | {100 * run['val']['acc']:.2f} |" in page
        assert run["seed"] == 100


def test_the_gates_are_of_networks_of_the_study():
    known = {(r["config_hash"], r["seed"]) for r in read("runs/a20_se/*/result.json")}
    entries = [e for file in read("gates/*.json") for e in file["runs"]]
    assert entries
    assert {(e["config_hash"], e["seed"]) for e in entries} <= known


def test_a_paired_comparison_is_scipy_s_of_the_common_seeds(script):
    a = {0: 0.61, 1: 0.65, 2: 0.60, 7: 0.99}
    b = {2: 0.62, 1: 0.61, 0: 0.60, 9: 0.01}
    test = script["paired"]("a − b", a, b)
    other = stats.ttest_rel([a[s] for s in range(3)], [b[s] for s in range(3)])
    assert test.seeds == [0, 1, 2]
    assert test.p == pytest.approx(other.pvalue)
    assert test.interval == pytest.approx(tuple(other.confidence_interval()))
    # Of a difference so large, as simulated, four in five studies find it.
    draws = np.random.default_rng(0).normal(
        test.detectable, test.deviation, (20_000, 3)
    )
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize("other", [{2: 0.6, 3: 0.6}, {1: 0.6}, {}])
def test_a_paired_comparison_without_common_seeds_says_so(script, other):
    with pytest.raises(UserError, match=r"SE − none: .* got \[0, 1\] and \["):
        script["paired"]("SE − none", {0: 0.5, 1: 0.6}, other)


def test_holm_s_correction_of_three(script):
    """By hand: 3 × 0.01; 2 × 0.04 = 0.08, which 1 × 0.05 may not fall below."""
    assert script["holm"]([0.04, 0.01, 0.05]) == pytest.approx([0.08, 0.03, 0.08])
