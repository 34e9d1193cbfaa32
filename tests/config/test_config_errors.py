"""Careless lines, each answered by one sentence: `careless.yaml` is the corpus.

`habits.yaml` is that of what lightning-hydra-template's users type.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from PIL import Image

from resnet_se.config import messages
from resnet_se.config.messages import explain
from tests.conftest import TINY, Run, call, records

CORPUS = yaml.safe_load((Path(__file__).parent / "careless.yaml").read_text())
HABITS = yaml.safe_load((Path(__file__).parent / "habits.yaml").read_text())

PARTS = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, hidden: int, num_classes: int = 10):
        super().__init__(hidden, num_classes)

class Empty(nn.Identity):
    pass

def function() -> nn.Module:
    return nn.Linear(2, 2)
"""


def sampled(lines: Iterable[str]) -> list[Any]:
    """Return lines of a corpus, three in four marked slow: each is a start of Hydra."""
    return [
        line if i % 4 == 0 else pytest.param(line, marks=pytest.mark.slow)
        for i, line in enumerate(lines)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a person's own modules, some of them broken."""
    path = tmp_path_factory.mktemp("careless")
    (path / "careless_parts.py").write_text(PARTS)
    (path / "careless_broken.py").write_text("1 / 0\n")
    (path / "careless_lacks.py").write_text("import no_such_thing\n")
    for folder in ("photos", "empty"):
        (path / folder).mkdir()
    Image.new("RGB", (40, 40)).save(path / "x.jpg")
    (path / "photos/a.png").touch()
    (path / "notes.txt").touch()
    (path / "broken.jpg").touch()
    for name in ("broken.zip", "empty.zip"):
        (path / name).write_bytes(b"PK")
    return path


def answer(capsys: pytest.CaptureFixture[str], status: int, expected: int) -> str:
    """What was said to a person; no traceback in it, no other status."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert status == expected, error
    (line,) = re.findall(r"^error: (.*(?:\n(?!error: ).*)*)", error, re.MULTILINE)
    return line


@pytest.mark.parametrize("typed", sampled(CORPUS["train"]))
def test_train_answers(folder, monkeypatch, capsys, typed):
    monkeypatch.syspath_prepend(folder)
    words = [typed] if "{" in typed else re.split(r" (?=[+~\w])", typed)
    group = re.match(r"~?(\w+)(?=\._target_|=null|$)", typed)  # its own keys go with it
    tiny = [t for t in TINY if not (group and t.startswith(f"{group[1]}."))]
    status = call(folder, "train", *tiny, *words)
    assert CORPUS["train"][typed] in answer(capsys, status, 2)


@pytest.mark.parametrize("typed", CORPUS["files"])
def test_a_place_that_cannot_be_written_to(folder, capsys, typed):
    status = call(folder, "train", *TINY, typed)
    assert CORPUS["files"][typed] in answer(capsys, status, 1)


@pytest.mark.parametrize("typed", CORPUS["evaluate"])
def test_evaluate_answers(finished: Run, folder, capsys, typed):
    words = [word.replace("RUN", str(finished.folder)) for word in typed.split()]
    status = call(folder, "evaluate", *words)
    assert CORPUS["evaluate"][typed] in answer(capsys, status, 2)


@pytest.mark.parametrize("typed", sampled(CORPUS["commands"]))
def test_a_whole_line_is_answered(finished: Run, folder, capsys, typed):
    words = [w.replace("RUN", str(finished.folder)) for w in shlex.split(typed)]
    answered = answer(capsys, call(folder, *words), 2)
    assert CORPUS["commands"][typed] in answered.replace(str(finished.folder), "RUN")


def tiny_beside(words: list[str]) -> list[str]:
    """The tiny configuration, but for what is typed."""
    typed = {word.split("=")[0].lstrip("+~") for word in words}
    return [override for override in TINY if override.split("=")[0] not in typed]


@pytest.mark.parametrize("typed", sampled(HABITS["refused"]))
def test_another_frameworks_habit_is_answered(folder, monkeypatch, capsys, typed):
    for package in ("mlflow", "comet_ml", "aim"):  # should they be there after all
        monkeypatch.setitem(sys.modules, package, None)
    words = typed.split()
    status = call(folder, "train", *tiny_beside(words), *words)
    assert HABITS["refused"][typed] in answer(capsys, status, 2)


@pytest.mark.slow
@pytest.mark.parametrize("typed", HABITS["trained"])
def test_a_habit_that_means_the_same(tmp_path, typed):
    words = typed.split()
    flags = [word for word in words if word.startswith("-")]
    rest = [word for word in words if not word.startswith("-")]
    assert call(tmp_path, "train", *flags, *tiny_beside(rest), *rest) == 0
    assert records(tmp_path) or list(tmp_path.glob("debug/*/*/*/result.json"))


@pytest.mark.parametrize(
    "value", ["runs/a/epoch=3-step=10.ckpt", "my data, v2 (x)", "it's/here", "a:b}c"]
)
def test_a_value_that_does_not_parse_is_printed_in_a_form_that_does(value):
    parser = OverridesParser.create()
    with pytest.raises(OverrideParseException) as problem:
        parser.parse_overrides([f"init_from={value}"])
    message = explain(problem.value)
    (typed,) = shlex.split(message.partition("; as text: ")[2])
    (parsed,) = parser.parse_overrides([typed])
    assert parsed.key_or_group == "init_from"
    assert parsed.value() == value


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optimizer.lrr", "lr"),
        ("trainer.max_epoch", "max_epochs"),
        ("model.reductoin", "reduction"),
        ("data.batchsize", "batch_size"),
        ("augment.fil", "fill"),
        ("callbacks.early_stopping.patience_", "patience"),
    ],
)
def test_a_slip_inside_a_group_is_answered_before_its_target_is_imported(
    command, capsys, monkeypatch, typed, meant
):
    def imported(*_):
        raise AssertionError("the target is imported")

    monkeypatch.setattr(messages, "located", imported)
    assert command("train", f"{typed}=1") == 2
    said = f"error: unknown key '{typed}'; did you mean '{meant}'?\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lr", "lr"), ("x", "y"), ("lr", "r"), ("steps", "epochs"), ("max", "maxima")],
)
def test_what_is_no_slip(typed, meant):
    assert typed == meant or not messages._is_slip(typed, meant)
