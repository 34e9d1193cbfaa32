"""What the README says is what the files say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from resnet_se.__main__ import COMMANDS
from resnet_se.analysis.report.significance import mean_std
from resnet_se.config import CONF

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
QUICKSTART = ROOT / "experiments/quickstart"
PAGES = ROOT / "docs/pages"
DOCUMENTS = [
    README,
    *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG")),
    *sorted(PAGES.glob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


def test_the_closing_table_is_the_records(text):
    record = json.loads(
        (ROOT / "experiments/quickstart/two_cores.seed0.json").read_text()
    )
    test, fit = record["test"], record["train"]
    minutes, seconds = divmod(round(fit["seconds"]), 60)
    for shown in (
        f"{test['acc']:.2%} of {test['images']:,} images",
        f"{test['acc_tta']:.2%}",
        f"{record['val']['acc']:.2%}",
        f"{record['best_epoch'] + 1} / {fit['epochs']}",
        f"{record['model']['total']:,}",
        f"{minutes} min {seconds:02d} s",
        f"{fit['images_per_second']:,.0f}",
    ):
        assert f" {shown} │" in text


def test_the_means_of_quickstart_are_those_of_its_records(text):
    said = (
        ("quickstart/seed?.json", "Five seeds on one core have {} % with TTA"),
        ("speedrun/h200/quickstart/*/result.json", "has {} % on an NVIDIA H200"),
    )
    for files, words in said:
        runs = [json.loads(p.read_text()) for p in (ROOT / "experiments").glob(files)]
        mean, std = mean_std([run["test"]["acc_tta"] for run in runs])
        assert len(runs) == 5
        figures = f"{100 * mean:.2f} ± {100 * std:.2f}"
        assert words.format(figures) in " ".join(text.split())
    sizes = json.loads((ROOT / "experiments/quickstart/sizes.json").read_text())
    ours = sizes["trainings"]["hardswish too; 11 epochs, 24 to 40 %, 28 to 70 %"]
    assert f"in {ours['share']:.2f} of the CPU seconds" in " ".join(text.split())


def test_what_original_images_give_is_the_record(text):
    path = ROOT / "experiments/quickstart/original.cpu2.seed0.json"
    record = json.loads(path.read_text())
    run = json.loads((path.parent / "cpu2.seed0.json").read_text())
    assert record["run"] == f"seed{run['seed']}-{run['config_hash']}"
    acc, (low, high) = record["tta"]["acc"], record["tta"]["interval"]
    said = f"on {record['images']:,} of the original test images it has {acc:.1%} "
    said = said.replace("%", " %") + f"[{100 * low:.1f}, {100 * high:.1f}]"
    assert said in " ".join(text.split())


def test_the_notebook_cell_runs(text, finished, tmp_path, monkeypatch, capsys):
    cell = re.search(r"```python\n(import resnet_se\n.*?)```", text, re.DOTALL)[1]
    shutil.copytree(finished.folder, tmp_path / "runs/quickstart/seed0-…")
    Image.new("RGB", (64, 48), "orange").save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(cell, scope)
    label = scope["model"].predict("cat.jpg", tta=True)[0].label
    share = r"[\d.]+%"
    line = rf"cat\.jpg: {label} {share}, \w+ {share}, \w+ {share}\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    (row,) = scope["runs"].to_dict("records")
    assert row["test.acc"] == finished.result["test"]["acc"]


def test_whether_se_helps_is_said_as_in_the_study(text):
    """Whose page a test of its own holds to the records."""
    study = (ROOT / "experiments/README.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in study.splitlines()
        if line.startswith("| SE ") and " cells " in line
    ]
    assert len(rows) == 2
    said = " ".join(text.split())
    for question, _, images, n, points, _, answer in rows:
        line = f"* {question} ({images} images): {points} points (n = {n}), {answer}."
        assert line in said
    assert '"SE adds about 10 %" of accuracy does not survive' in study


def test_tta_is_spelled_out_at_its_first_use(text):
    body = text.replace("```", "")
    assert body.index("TTA, test-time augmentation,") == body.index("TTA")


def test_every_link_leads_to_a_file(text):
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 4
    for link in links:
        path, _, heading = link.partition("#")
        assert (ROOT / path).is_file(), link
        titles = re.findall(r"^#+ (.*)", (ROOT / path).read_text(), re.MULTILINE)
        assert not heading or heading in [t.lower().replace(" ", "-") for t in titles]


def test_every_choice_of_a_group_is_in_the_table():
    text = (PAGES / "configuration.md").read_text()
    rows = {
        row.split("|")[1].split("`")[1]: row
        for row in text.splitlines()
        if row.startswith("| `")
    }
    for group in ("augment", "mixing", "optimizer", "scheduler", "tta", "budget"):
        choices = {path.stem for path in (CONF / group).glob("*.yaml")}
        assert choices <= set(re.findall(r"`(\w+)`", rows[group])), group


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_named_is_one(path):
    text = path.read_text()
    typed = re.findall(r"^uv run resnet-se ([a-z]+)", text, re.MULTILINE)
    named = re.findall(r"`(?:uv run )?resnet-se ([a-z]+)", text)
    assert {*typed, *named} <= {*COMMANDS, "help"}
    assert set(re.findall(r"-m resnet_se\.(\w+)", text)) <= {"train", "COMMAND"}


def test_the_readme_is_short(text):
    assert len(text.splitlines()) <= 130
    assert text.count("![") == 1
    assert "resnet-se train experiment=e14_final --cfg job" in text
