"""experiments/small: the tables are those of the records, the records of the budget."""

import copy
import functools
import json
import re
import runpy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import resnet_se.config.compose  # noqa: F401 (it registers the resolvers)
from resnet_se.config import CONF

FOLDER = Path(__file__).parents[2] / "experiments" / "small"
RECORDS = sorted(FOLDER.glob("*/*/seed*/result.json"))


def read(path):
    return json.loads(path.read_text())


@functools.cache
def small_twin(experiment):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", "budget=small"])


def test_there_are_records():
    assert len(RECORDS) >= 2


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: "-".join(p.parts[-4:-1]))
def test_a_record_is_whole_and_of_the_budget(path):
    run = read(path)
    assert run["status"] == "finished"
    assert path.parent.name == f"seed{run['seed']}-{run['config_hash']}"
    assert path.parts[-3] == run["experiment"]
    assert run["test"]["images"] == 10_000
    # Earlier records, not yet committed, made a tree dirty until commit d256bc0.
    assert run["git"]["commit"].startswith("d256bc0") or not run["git"]["dirty"]
    small = small_twin(run["experiment"])
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
    paths = (FOLDER / folder / "e14_final").glob("seed0-*/result.json")
    [path] = [p for p in paths if read(p)["data"]["train"] == 45_000]
    lines = (FOLDER / "README.md").read_text().splitlines()
    [row] = [line for line in lines if line.startswith(start)]
    assert row.endswith(f"| 1 | {100 * read(path)['val']['acc']:.2f} |")


def test_the_gates_are_of_networks_of_the_study():
    known = {(r["config_hash"], r["seed"]) for r in map(read, RECORDS)}
    for path in (FOLDER / "gates").glob("*.json"):
        entries = read(path)["runs"]
        assert {(e["config_hash"], e["seed"]) for e in entries} <= known
        assert len({e["config_hash"] for e in entries}) == 1
        assert len({e["seed"] for e in entries}) == len(entries)


def test_gates_of_several_networks_are_their_mean_and_deviation(found):
    [entry] = read(FOLDER / "gates" / "e14_final.seed0.json")["runs"]
    entries = [copy.deepcopy(entry) for _ in range(2)]
    for e, by in zip(entries, (0.01, 0.03), strict=True):
        for a in e["ablations"]:
            a["difference"] = by
    rows = found[0]["_over_seeds"](entries)
    assert [*map(len, rows)] == [5] * 4
    assert {cell for row in rows for cell in [*row.values()][1:]} == {"+2.00 ± 1.41"}


@pytest.fixture(scope="module")
def found():
    script = runpy.run_path(str(FOLDER / "findings.py"))
    return script, *script["blocks"]()


def test_the_pages_are_those_of_the_records(found):
    script, texts, svg = found
    pages = [page.read_text() for page in script["PAGES"]]
    assert [script["written"](page, texts) for page in pages] == pages
    marks = [
        name for page in pages for name in re.findall(r"findings\.py: (\w+)", page)
    ]
    assert sorted(marks) == sorted(texts)
    picture = FOLDER / "length.svg"
    assert picture.is_file() == bool(svg)
    if svg:  # Matplotlib's versions draw differently; the title says what is drawn
        title = re.compile("<title>.*?</title>")
        assert title.search(picture.read_text())[0] == title.search(svg)[0]
        assert picture.stat().st_size < 200_000


def test_a_changed_number_is_noticed(found):
    script, texts, _ = found
    for page in (page.read_text() for page in script["PAGES"]):
        for match in re.finditer(r"<!-- findings.*?<!-- end -->", page, re.DOTALL):
            for digit in re.finditer(r"\d", match[0].partition("\n")[2]):
                at = match.start() + match[0].index("\n") + 1 + digit.start()
                changed = page[:at] + str((int(digit[0]) + 1) % 10) + page[at + 1 :]
                assert script["written"](changed, texts) == page


def test_one_seed_decides_nothing(found):
    _, texts, _ = found
    rows = [
        [cell.strip() for cell in r.split("|")] for r in texts["measured"].split("\n")
    ]
    of_one = [cells for cells in rows if len(cells) > 5 and cells[4] == "1"]
    assert all("not decided (n = 1)" in cells[7] for cells in of_one)


def test_finished_records_are_taken_in_once(found, tmp_path, monkeypatch):
    take = found[0]["take"]
    monkeypatch.setitem(take.__globals__, "HERE", tmp_path)
    for name, status in (("seed0-a", "finished"), ("seed1-a", "running")):
        path = tmp_path / "elsewhere" / "e14_final" / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"status": status}))
    [taken] = take(tmp_path / "elsewhere")
    assert taken == tmp_path / "runs" / "e14_final" / "seed0-a" / "result.json"
    assert take(tmp_path / "elsewhere") == []
