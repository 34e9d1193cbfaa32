"""Parts of one's own, `experiments/own`, from another folder and with the wheel alone.

The page own-parts is that folder, line by line; its lines are typed here as they
stand, with settings of seconds after them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import records

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

SECONDS = {  # what a line does not set itself
    "data": "synthetic",
    "data.source.num_train": "120",
    "data.source.num_test": "40",
    "data.source.size": "16",
    "data.batch_size": "32",
    "model.depths": "[1,1,1]",
    "model.widths": "[8,8,16]",
    "model.reduction": "4",
    "scheduler": "constant",
    "tta": "none",
    "plots": "false",
    "trainer.precision": "32-true",
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": "1",
}
# A line after the other in one process: its start takes longer than most of them.
TYPIST = """
import json, sys
from glob import glob
import resnet_se
from resnet_se.__main__ import main
assert resnet_se.__file__.startswith(sys.argv[1]), resnet_se.__file__
for words in json.loads(sys.argv[2]):
    print("$", *words, flush=True)
    sys.argv[:] = words
    for i, word in enumerate(words):
        if word.endswith("…"):  # the page's
            key, value = word.split("=")
            sys.argv[i] = f"{key}={glob(value[:-1] + '*')[0]}"
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{words}: status {stop.code}")
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A copy of the example, far from the checkout."""
    return shutil.copytree(ROOT / "experiments/own", tmp_path / "own")


def start(own: Path, python: Path, code: str, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [python, "-c", code, *words],
        cwd=own,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def page_lines() -> list[list[str]]:
    """The commands of the page *Your own parts*, as a shell splits them."""
    text = (ROOT / "docs/pages/own-parts.md").read_text()
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    return [line for line in lines if line[0] == "resnet-se"]


def in_seconds(line: list[str]) -> list[str]:
    """A line of the page with settings that make it short."""
    if line[1] != "train" or any(word.startswith("experiment=") for word in line):
        return line
    keys = {word.split("=")[0] for word in line}
    skipped = set()
    if "model._target_" in keys:
        skipped |= {"model.depths", "model.widths", "model.reduction"}
    if "data.source._target_" in keys:
        skipped |= {k for k in SECONDS if k == "data" or k.startswith("data.source")}
    return [*line, *(f"{k}={v}" for k, v in SECONDS.items() if k not in skipped)]


def test_the_pages_lines_as_they_stand(own, fresh_python):
    lines = page_lines()
    assert len(lines) == 11
    timm = next(line for line in lines if "model._target_=timm.create_model" in line)
    lines = [in_seconds(line) for line in lines]
    for seed in (0, 1):  # a timm model's whole way, apart from the others
        lines.append([*in_seconds(timm), "runs_dir=timm", f"seed={seed}"])
    lines.append(["resnet-se", "evaluate", "run=timm/custom/seed1-…", "out=again.json"])
    lines.append(["resnet-se", "report", "timm", "--out", "timm-report"])
    process = start(
        own, fresh_python, TYPIST, str(fresh_python.parents[1]), json.dumps(lines)
    )
    printed = process.communicate(timeout=1200)[0]
    assert process.returncode == 0, printed

    runs = records(own)
    assert {result["status"] for result in runs.values()} == {"finished"}
    assert len([d for d in runs if d.parent.name == "custom"]) == 8
    sizes = {r["model"]["total"] for d, r in runs.items() if d.parent.name == "custom"}
    assert len(sizes) == 4  # mynet's, timm's, ours for ten classes and for two
    narrow, wide = (
        {r["seed"]: r for d, r in runs.items() if d.parent.name == name}
        for name in ("narrow", "wide")
    )
    assert (sorted(narrow), sorted(wide)) == ([0, 1, 2], [0, 1])
    assert min(r["test"]["acc"] for r in (*narrow.values(), *wide.values())) > 0.6
    for name in ("mynet", "mydata", "mytransforms"):
        assert f"source of {name}" in narrow[0]["setting"]
    assert "wide − narrow" in (own / "report/REPORT.md").read_text()
    assert "train/norm" in next(own.glob("runs/wide/*/lines.jsonl")).read_text()
    assert "tensors" in printed  # of init_from

    again = json.loads((own / "again.json").read_text())
    (path,) = own.glob("timm/custom/seed1-*/result.json")
    then = json.loads(path.read_text())
    assert again["test"]["acc"] == then["test"]["acc"]
    assert "2 finished runs" in (own / "timm-report/REPORT.md").read_text()


def test_a_sweep_killed_typed_again_and_its_network_edited(own, fresh_python):
    code = "from resnet_se.__main__ import main; main()"
    sweep = ("train", "-m", "experiment=narrow,wide", "seed=0,1")
    first = start(own, fresh_python, code, *sweep)
    while not list(own.glob("runs/narrow/seed1-*/checkpoints/last.ckpt")):
        time.sleep(0.02)
        assert first.poll() is None, first.communicate()[0]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = records(own)
    assert {r["seed"]: r["status"] for r in before.values()} == {
        0: "finished",
        1: "running",
    }

    again = start(own, fresh_python, code, *sweep)
    printed = again.communicate(timeout=900)[0]
    assert again.returncode == 0, printed
    assert "1 skipped, 1 resumed, 2 done" in printed
    after = records(own)
    assert {r["status"] for r in after.values()} == {"finished"}
    assert len(after) == 4
    lines = next(own.glob("runs/narrow/seed1-*/lines.jsonl")).read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines if "train/norm" in line]
    assert sorted(set(epochs)) == list(range(12))

    with (own / "mynet.py").open("a") as file:
        file.write("# Another thought.\n")
    edited = start(own, fresh_python, code, *sweep[:1], "experiment=narrow", "seed=0")
    printed = edited.communicate(timeout=900)[0]
    assert edited.returncode == 0, printed
    assert "skipped" not in printed
    (new,) = set(records(own)) - set(after)
    (old,) = (d for d in after if d.parent == new.parent and "seed0-" in d.name)
    digests = [records(own)[d]["setting"]["source of mynet"] for d in (old, new)]
    assert digests[0] != digests[1]


def test_the_same_parts_on_two_devices(own, fresh_python):
    code = "from resnet_se.__main__ import main; main()"
    line = ("-m", "experiment=narrow,wide", "seed=0", "trainer=ddp_sim")
    short = ("data.batch_size=30", "trainer.max_epochs=2")
    process = start(own, fresh_python, code, "train", *line, *short)
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    rule = (
        "2 devices × 30 images, a global batch of 60; rate 0.02, trainer.scale_lr=true"
    )
    assert printed.count(rule) == 2
    results = records(own).values()
    assert {r["status"] for r in results} == {"finished"}
    assert {r["hardware"]["world_size"] for r in results} == {2}
    assert {r["test"]["images"] for r in results} == {200}
    names = ("narrow", "wide")
    lines = [next(own.glob(f"runs/{name}/*/lines.jsonl")).read_text() for name in names]
    assert all(text.count("train/norm") == 2 for text in lines)  # of rank 0 alone
