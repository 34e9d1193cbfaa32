"""Where commands write: not through a link of others, not where no file can be."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from resnet_se.commands import predict
from tests.conftest import Run


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "plots")
    return folder


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plots", ("plots", "run=theirs")),
        ("inspect", ("inspect", "run=theirs", "images=20")),
        ("evaluations", ("evaluate", "run=theirs", "data=cifar10_1")),
    ],
)
def test_nothing_is_written_through_a_link(copy, command, capsys, tmp_path, name, line):
    (tmp_path / "victim").mkdir()
    (copy / name).symlink_to(tmp_path / "victim")
    assert command(*line) == 2
    assert f"theirs/{name}: a link to" in capsys.readouterr().err
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.slow
def test_a_link_by_a_picture_s_name_is_replaced(copy, command, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (copy / "plots").mkdir()
    (copy / "plots/curves.png").symlink_to(victim)
    assert command("plots", "run=theirs") == 0
    assert victim.read_text() == "mine"
    assert (copy / "plots/curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "line",
    [
        ("export", "out=."),
        ("evaluate", "out=."),
        ("evaluate", "-o", "."),
        ("predict", "inputs=theirs", "out=folder.csv"),
        ("plots", "out=theirs/config.yaml"),
        ("inspect", "out=theirs/config.yaml"),
        ("bundle", "out=."),
        ("bundle", "out=.."),
    ],
)
def test_where_no_output_can_be_is_said_before_the_work(
    copy, command, capsys, tmp_path, monkeypatch, line
):
    def work(*_args, **_options):
        raise AssertionError("the work has begun")

    (tmp_path / "folder.csv").mkdir()
    for place in ("bundle._files", "predict._classify"):
        monkeypatch.setattr(f"resnet_se.commands.{place}", work)
    for name in ("export", "evaluate", "inspect_gates", "plots"):
        monkeypatch.setattr(f"resnet_se.commands.{name}.run_data", work)
    assert command(line[0], "run=theirs", *line[1:]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: out: expected")
    assert len(printed.splitlines()) == 1


def test_an_experiment_of_a_record_is_no_path(copy, command, tmp_path):
    record = copy / "result.json"
    text = record.read_text().replace('"experiment": "custom"', '"experiment": "../x"')
    record.write_text(text)
    line = ("export", "run=theirs", "format=safetensors")
    assert command(*line) == 0
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [
        "_x-theirs.safetensors"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows", ["0,1e308\n1,-1e308", "1e300,1", "nan,1", "-1,1", "0,\x001", "0"]
)
def test_numbers_that_no_picture_can_have_are_said(copy, command, capsys, rows):
    (copy / "metrics.csv").write_text(f"epoch,train/lr\n{rows}\n")
    (copy / "predictions.npz").write_bytes(b"PK")
    assert command("plots", "run=theirs") == 0
    printed = capsys.readouterr().out
    assert "left out: confusion, classes, reliability and mistakes: " in printed
    assert ("left out: curves: " in printed) == (rows != "0")


def test_rows_of_predict_hold_no_formula():
    text = io.StringIO()
    write = predict._csv(text, 1)
    write("=1+1.jpg", ["@SUM(A1)"], [1.0])
    write("a/=1.jpg", ["cat"], [1.0])
    rows = [["./=1+1.jpg", "'@SUM(A1)", "1.000000"], ["a/=1.jpg", "cat", "1.000000"]]
    assert list(csv.reader(text.getvalue().splitlines()))[1:] == rows
