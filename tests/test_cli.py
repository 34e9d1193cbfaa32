"""Mistakes on the command line and in YAML; the other commands; the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import TINY

MISTAKES = {
    # what is typed: what the answer must say
    "trianer.max_epochs=3": "did you mean 'trainer'?",
    "modle=se_resnet20": "did you mean 'model'?",
    "model=se_resnet8": "did you mean 'se_resnet80'?",
    "experiment=quikstart": "did you mean 'quickstart'?",
    "model.dephts=[1]": "'model.dephts'; did you mean 'depths'?",
    "+model.dephts=[1]": "model.dephts: resnet_se.resnet.ResNet has no such argument",
    "+optimizer.momentm=3": "optimizer.momentm: SGD has no such argument",
    "+trianer=3": "did you mean 'trainer'?",
    "trainer.gradient_clip_val=1": "write +trainer.gradient_clip_val=…",
    "data.batch_size=0": "data.batch_size: expected an integer >= 1, got 0",
    "data.batch_size=big": "data.batch_size: expected int, got 'big'",
    "data.batch_size=1000": "data.batch_size: expected at most",
    "data.val_fraction=1": "data.val_fraction: expected 0 < f < 1, got 1",
    "seed=-1": "seed: expected an integer 0..4294967295, got -1",
    "trainer.max_epochs=0": "trainer.max_epochs: expected an integer 1..1000000, got 0",
    "trainer.precision=bf17": "trainer: Precision 'bf17' is invalid",
    "scheduler.warmup_epochs=9": "scheduler.warmup_epochs: expected 0..2",
    "optimizer.lr=-1": "optimizer.lr: expected a positive number, got -1",
    "model.reduction=64": "model.reduction: expected 1..8",
    "augment.flip=2": "augment.flip: expected 0..1, got 2",
    "callbacks.early_stopping.monitor=val/los": "did you mean 'val/loss'?",
    "model.dropout=high": "model.dropout: expected float, got 'high'",
    "model.depths=[1,b]": "model.depths: expected",
    "optimizer.lr=fast": "optimizer.lr: expected float, got 'fast'",
    "trainer.log_every_n_steps=1.5": "trainer.log_every_n_steps: expected",
    "ckpt_path=nowhere.ckpt": "no such file: nowhere.ckpt",
    "+budget.epochs=3": "budget.epochs: unknown",
    "foo": "missing EQUAL",
}


@pytest.mark.parametrize(("typed", "answer"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_gets_one_clear_message(train, capsys, typed, answer):
    assert train(typed) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert "Traceback" not in error


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


def test_models_prints_every_preset(command, capsys):
    assert command("models", "--json") == 0
    presets = json.loads(capsys.readouterr().out)
    assert len(presets) >= 14
    assert presets["se_resnet80"]["total"] == 4_628_210
    assert command("models") == 0
    assert "4,628,210" in capsys.readouterr().out


def test_an_unknown_command(monkeypatch, capsys):
    from resnet_se.__main__ import main

    monkeypatch.setattr(sys, "argv", ["resnet-se", "trian"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_the_wheel_finds_its_configuration(tmp_path):
    root = Path(__file__).parent.parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    line = [sys.executable, "-m", "resnet_se", "models", "--json"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        line,
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "se_resnet80" in json.loads(done.stdout)
    where = [sys.executable, "-c", "import resnet_se.config as c; print(c.CONF)"]
    done = subprocess.run(
        where,
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / "site/resnet_se/conf"
