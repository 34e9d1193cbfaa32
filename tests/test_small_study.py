"""experiments/small: the tables are those of the records, the records of the budget."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from resnet_se.config import CONF
from resnet_se.report.gates import ablation_rows

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
