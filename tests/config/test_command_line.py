"""Command lines as a shell gives them: paths letter by letter, words without a key."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from resnet_se.config.command_line import as_overrides, quoted
from resnet_se.utils.errors import UserError

NAMES = [
    *("猫.jpg", "it's.jpg", "#5.jpg", "cat (1).jpg", "x[1].jpg", "a=b.jpg", "a,b.jpg"),
    *("5", "true", "null.jpg", "${x}.jpg", r"\${x}.jpg", "a: b.jpg", "[a].jpg", "'q'"),
    *('"q"', "~a.jpg", "+a.jpg", "back\\slash.jpg", " a ", "*.jpg"),
]


def value(override: str) -> object:
    """What a command reads of an override."""
    parsed = OverridesParser.create().parse_override(override)
    plain = OmegaConf.create({"x": parsed.value()})
    container: Any = OmegaConf.to_container(plain, resolve=True)
    return container["x"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_is_there_is_read_letter_by_letter(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert value(f"x={quoted(name)}") == name
    for words in (["run=R", f"inputs={name}"], ["run=R", "--", name]):
        *_, inputs = as_overrides("predict", words)
        assert value(inputs) == name
    assert value(as_overrides("train", [f"data.source.root={name}"])[0]) == name


def test_words_without_a_key_are_runs_and_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b=1.jpg").touch()
    words = ["R", "a.jpg", "b=1.jpg", "-o", "my labels.csv", "top=3"]
    out, top, run, inputs = as_overrides("predict", words)
    assert (top, run) == ("top=3", "run=R")
    assert value(out) == "my labels.csv"
    assert value(inputs) == ["a.jpg", "b=1.jpg"]
    assert as_overrides("inspect", ["A,B"]) == ["run=['A','B']"]
    assert as_overrides("inspect", ["A", "B"]) == ["run=['A','B']"]
    for command in ("evaluate", "plots", "bundle", "export", "demo"):
        assert as_overrides(command, ["R"]) == ["run=R"]


def test_what_is_grammar_stays():
    for word in (
        "inputs=['a b.jpg',c]",
        "inputs='*.jpg'",
        "run=null",
        "out=${oc.env:HOME}",
    ):
        assert as_overrides("predict", [word]) == [word]
    sweep = ["-m", "init_from=a,b", "seed=1,2", "experiment=glob(e*)", "~tags"]
    assert as_overrides("train", [*sweep[1:], sweep[0]]) == sweep
    assert as_overrides("train", ["--cfg", "job", "seed=1"]) == [
        "--cfg",
        "job",
        "seed=1",
    ]
    again = as_overrides("train", ["data.source.root=it's, (x)"])
    assert as_overrides("train", again) == again


def test_what_is_no_grammar_is_a_text():
    (note,) = as_overrides("train", ["+notes.why=it's (not) clear"])
    assert note.startswith("+notes.why=")
    assert value(note.removeprefix("+")) == "it's (not) clear"


def test_a_key_of_a_group_of_ones_own_is_no_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unknown key 'mine'"):
        as_overrides("train", ["+mine=one"])
    (tmp_path / "conf/mine").mkdir(parents=True)
    assert as_overrides("train", ["+mine=one"]) == ["+mine=one"]
