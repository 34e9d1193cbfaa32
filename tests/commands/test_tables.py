"""Tables at the width of an old terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from resnet_se.analysis import gate_figures
from resnet_se.commands import export, model_table, predict
from resnet_se.commands.predict import Summary
from resnet_se.inference.export import Row
from resnet_se.utils.console import plain_table

NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_a_table_folds_what_does_not_fit(capsys):
    table = plain_table("title", "job", *(f"column{i}" for i in range(20)))
    table.add_row("1", *["12345678"] * 20)
    Console().print(table)
    assert "…" not in capsys.readouterr().out


def test_the_gates_table_has_whole_headings(capsys):
    columns = (*gate_figures.COLUMNS, *gate_figures.COLUMNS_OF_CLASSES)
    table = plain_table(None, "gates of", *columns)
    table.add_row("stage 1", *["100.0"] * len(columns))
    Console().print(table)
    shown = capsys.readouterr().out.split()
    assert set(" ".join(("gates of", *columns, "stage 1")).split()) <= set(shown)


def test_the_table_of_an_export_has_whole_names(capsys):
    row = Row("BatchNorm, static gates folded", 18.55, 0.88, 1.0, 1e-5, (12.3, 1234.5))
    export._print_rows("run → file", [row, row])
    shown = capsys.readouterr().out
    assert "BatchNorm, static gates folded" in shown
    assert {"accuracy", "agrees", "logit|", "batch"} <= set(shown.split())


def test_the_confusion_of_ten_thousand_has_whole_names(capsys):
    of_class = torch.full((10, 10), 1000)
    summary = Summary(10_000, [], 0, of_class, 1.0)
    predict._print_summary(SimpleNamespace(classes=NAMES), summary)
    shown = capsys.readouterr().err
    assert all(f"{i:>2} {name}" in shown for i, name in enumerate(NAMES, 1))
    assert max(map(len, shown.splitlines())) <= 80
    many = [f"class {i}" for i in range(40)]
    summary = summary._replace(confusion=torch.full((40, 40), 1000))
    predict._print_summary(SimpleNamespace(classes=many), summary)
    assert "class 1" not in capsys.readouterr().err


def test_the_presets_have_whole_counts(capsys, monkeypatch):
    sizes = {"trainable": 4_950_662, "non_trainable": 11_200, "total": 4_956_422}
    row = {**sizes, "macs": 782e6, "layers": 80}
    rows = {"vanilla_resnet_table": {**row, "small": row}}
    monkeypatch.setattr(model_table, "presets", lambda: rows)
    monkeypatch.setattr("sys.argv", ["resnet-se models"])
    model_table.main()
    shown = set(capsys.readouterr().out.split())
    assert {"vanilla_resnet_table", "non-trainable", "4,956,422", "782.0"} <= shown
