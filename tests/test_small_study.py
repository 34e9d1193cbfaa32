"""experiments/small: the tables are those of the records, the records of the budget."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from resnet_se.config import CONF
from resnet_se.report.compare import compare
from resnet_se.report.gates import ablation_rows
from resnet_se.report.groups import sections
from resnet_se.report.runs import load
from resnet_se.report.text import gain

FOLDER = Path(__file__).parents[1] / "experiments" / "small"
RECORDS = sorted(FOLDER.glob("*/*/seed*/result.json"))


def read(path):
    return json.loads(path.read_text())


def test_there_are_records():
    assert len(RECORDS) >= 2


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: "-".join(p.parts[-4:-1]))
def test_a_record_is_whole_and_of_the_budget(path):
    run = read(path)
    assert run["status"] == "finished"
    assert path.parent.name == f"seed{run['seed']}-{run['config_hash']}"
    assert path.parts[-3] == run["experiment"]
    assert run["test"]["images"] == 10_000
    assert not run["git"]["dirty"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = [f"experiment={run['experiment']}", "budget=small"]
        small = compose("train", asked)
    setting = run["setting"]
    assert setting["precision"] == small.trainer.precision
    assert setting["trainer.max_epochs"] == small.trainer.max_epochs
    assert setting["model.depths"] == OmegaConf.to_object(small.model.depths)
    assert setting["model.widths"] == OmegaConf.to_object(small.model.widths)
    decay = OmegaConf.to_container(small.scheduler.decay or {}, resolve=True)
    if path.parts[-4] == "runs" and "milestones" in decay:
        assert setting["scheduler.decay.milestones"] == decay["milestones"]


@pytest.mark.parametrize(
    ("start", "folder"),
    [("| scaled to the length", "trial"), ("| stretched", "runs")],
)
def test_the_choice_is_that_of_the_records(start, folder):
    [path] = (FOLDER / folder / "e14_final").glob("seed0-*/result.json")
    lines = (FOLDER / "README.md").read_text().splitlines()
    [row] = [line for line in lines if line.startswith(start)]
    assert row.endswith(f"| 1 | {100 * read(path)['val']['acc']:.2f} |")


def test_the_gates_are_those_of_the_file():
    [entry] = read(FOLDER / "gates" / "e14_final.seed0.json")["runs"]
    assert entry["config_hash"] in {path.parent.name[6:] for path in RECORDS}
    text = (FOLDER / "README.md").read_text()
    assert f"is {100 * entry['all']['shares']['constant']:.1f} % constant" in text
    for row in ablation_rows(entry):
        cells = " | ".join(row.values())
        assert f"| {cells} |" in text


@pytest.mark.parametrize("name", ["e14_final", "e21_vanilla"])
def test_what_there_is_so_far_is_that_of_the_records(name):
    runs = [read(p) for p in sorted((FOLDER / "runs" / name).glob("*/result.json"))]
    lines = (FOLDER / "README.md").read_text().splitlines()
    [row] = [line for line in lines if line.startswith(f"| {name} ")]
    values = ", ".join(f"{100 * run['test']['acc']:.2f}" for run in runs)
    assert row.endswith(f"| {len(runs)} | {values} |")


def test_the_difference_so_far_is_the_report_s():
    [section] = sections(load([str(FOLDER / "runs")]).runs)
    [c] = [c for c in compare(section).comparisons if c.name == "e14 − e21"]
    text = " ".join((FOLDER / "README.md").read_text().split())
    assert f"{gain(c.mean, c.interval).replace(' ', ' points ', 1)} for new" in text
    assert f"the recipes are not decided (n = {c.n})" in text
