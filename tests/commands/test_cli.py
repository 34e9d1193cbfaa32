"""Mistakes in an experiment's file; the console script; the wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import resnet_se
from resnet_se.__main__ import COMMANDS, MODULES, TASKS, main
from resnet_se.commands import model_table
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]

BAD_YAML = {
    "trianer: {max_epochs: 3}": "did you mean 'trainer'?",
    "trainer: {max_epoch: 3}": "did you mean 'max_epochs'?",
    "callbacks: {early_stoping: {patience: 3}}": "did you mean 'early_stopping'?",
    "tta: {views: [{flop: true}]}": "tta.views[0]: unknown key 'flop'; did you mean",
    "defaults: [{override /model: se_resnet8}]": "did you mean 'se_resnet80'?",
}


@pytest.mark.parametrize(("text", "answer"), BAD_YAML.items(), ids=list(BAD_YAML))
def test_a_mistake_in_an_experiment_file(command, tmp_path, capsys, text, answer):
    folder = tmp_path / "mine/experiment"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text(f"# @package _global_\n{text}\n")
    tiny = [override for override in TINY if not override.startswith("tta")]
    assert command("train", "--config-dir=mine", *tiny, "experiment=bad") == 2
    error = capsys.readouterr().err
    assert answer in error
    assert "Traceback" not in error


def test_models_prints_every_preset(model_rows, command, capsys, monkeypatch):
    assert model_rows["se_resnet80"]["total"] == 4_628_210
    few = {name: model_rows[name] for name in ("se_resnet20", "se_resnet80")}
    monkeypatch.setattr(model_table, "presets", lambda *_: few)  # once is enough
    assert command("models") == 0
    shown = capsys.readouterr().out
    assert "4,628,210" in shown
    assert all(name in shown for name in few)


@pytest.fixture
def entry(monkeypatch, tmp_path):
    """Calls the console script with arguments; returns the exit status."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["resnet-se", *arguments])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(entry, capsys, arguments):
    assert entry(*arguments) == 0
    shown = capsys.readouterr().out
    assert "usage: resnet-se COMMAND" in shown
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_printed(entry, capsys, flag):
    assert entry(flag) == 0
    assert capsys.readouterr().out == f"resnet-se {resnet_se.__version__}\n"


def test_help_of_one_command_is_its_own(entry, capsys):
    assert entry("help", "report") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: resnet-se report")
    assert entry("report", "--help") == 0
    assert capsys.readouterr().out == shown
    assert entry("help", "reprot") == 2
    assert "did you mean 'report'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_function(name):
    place = TASKS.get(name) or f"{MODULES[name]}.main"
    module, _, function = place.rpartition(".")
    assert callable(getattr(import_module(f"resnet_se.commands.{module}"), function))


def test_an_unknown_command(entry, capsys):
    assert entry("trian") == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_a_commands_arguments_are_its_own(entry, capsys):
    assert entry("train", "modle=se_resnet20") == 2
    assert "did you mean 'model'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "evaluate", "train", "plan"])
def test_the_help_of_a_command_has_its_own_keys_with_comments(entry, capsys, command):
    assert entry(command, "--help") == 0
    shown = capsys.readouterr().out
    assert f"resnet-se {command} " in shown
    assert ("top: 5  # classes of each picture" in shown) == (command == "predict")
    assert ("optimizer: adam, adamw" in shown) == (command == "train")
    assert ("tta: flip, flip_shift" in shown) == (command != "plan")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["tr"], ["train"]),
        (["train", "model=vanilla_resnet2"],
         ["model=vanilla_resnet20", "model=vanilla_resnet20w4"]),
        (["train", "model=se_resnet20", "model.se_p"], ["model.se_position="]),
        (["plan", "experiment=mi"], ["experiment=mine"]),
        (["train", "experiment=quickstart", "model.wi"], ["model.widths="]),
        (["predict", "ru"], ["run="]),
        (["predict", "tr"], ["trust="]),
        (["predict", "trust="], ["trust=false", "trust=true"]),
        (["export", "format=o"], ["format=onnx"]),
        (["evaluate", "run=con"], ["run=conf/"]),
        (["report", "con"], ["conf/"]),
        (["predict", "con"], ["conf/"]),
    ],
)  # fmt: skip
def test_a_tab_offers_words_groups_choices_keys_and_files(
    entry, capsys, tmp_path, typed, offered
):
    conf = tmp_path / "conf/experiment"
    conf.mkdir(parents=True)
    for name in ("mine", "quickstart"):  # the latter is ours: it is offered once
        (conf / f"{name}.yaml").write_text("# @package _global_\n")
    assert entry("-sc", "query", *typed) == 0
    assert capsys.readouterr().out.split() == offered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "ask"),
    [
        ("bash", "COMP_LINE='resnet-se tr' COMP_POINT=12; _resnet_se; echo $COMPREPLY"),
        ("zsh", "compadd() { print -r -- ${@[3,-1]/#--/} }; words=(resnet-se tr); "
                "CURRENT=2; _resnet_se"),
        ("fish", "complete -C 'resnet-se tr'"),
    ],
)  # fmt: skip
def test_a_shell_asks_and_offers(tmp_path, shell, ask):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program = tmp_path / "resnet-se"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resnet_se "$@"\n')
    program.chmod(0o755)
    load = f'eval "$(resnet-se -sc install={shell})"'
    load = "resnet-se -sc install=fish | source" if shell == "fish" else load
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    line = [shell, "-c", f"{load}; {ask}"]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["train"], done.stderr


@pytest.mark.slow
def test_the_wheel_finds_its_configuration(fresh_python, tmp_path):
    code = """
import json, sys
from importlib.metadata import version
import resnet_se.config.compose
from resnet_se.__main__ import main
print(resnet_se.__version__, version("resnet-se"), resnet_se.config.compose.CONF)
sys.argv[1:] = ["models", "--json"]
main()
"""
    line = [fresh_python, "-c", code]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        line, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    where, shown = done.stdout.split("\n", 1)
    version, built, conf = where.split()
    package = Path(conf).parent
    assert version == built == resnet_se.__version__
    assert package.is_relative_to(fresh_python.parents[1])
    assert "se_resnet80" in json.loads(shown)
    beside = [
        p for p in (ROOT / "resnet_se").rglob("*.*") if "__pycache__" not in p.parts
    ]
    others = [p.relative_to(ROOT / "resnet_se") for p in beside if p.suffix != ".py"]
    assert len(others) >= 5  # templates, a style sheet, py.typed
    assert [path for path in others if not (package / path).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("words", ["help", "train --help", "models"])
def test_a_reader_that_leaves_early_ends_a_listing_without_a_word(words):
    """As `resnet-se help | head` does."""
    command = [sys.executable, "-m", "resnet_se", *words.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
