"""What a training shows of itself while it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from resnet_se.training.callbacks import progress
from resnet_se.training.callbacks.progress import (
    LiveProgress,
    PlainProgress,
    duration,
    forecast,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (40, "40 s"),
        (119, "119 s"),
        (720, "12 min"),
        (3 * 3600, "3.0 h"),
        (2e5, "2.3 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_long_training_names_shorter_ones_and_a_short_one_says_nothing():
    assert forecast([1.0] * 20) == ""
    assert forecast([60.0] * 20) == "about 20 min here: 20 epochs of 60 s"
    growing = [60.0] * 3 + [110.0] * 2
    assert forecast(growing) == "about 7 min here: 5 epochs of 60 s to 110 s"
    lines = forecast([430.0] * 300).splitlines()
    assert lines[0] == "about 35.8 h here: 300 epochs of 7 min"
    assert "experiment=quickstart" in lines[1]
    assert all(len(line) <= 80 for line in lines)


def test_lines_of_an_epoch_fit_eighty_columns_and_count_from_one(train, capsys):
    assert train() == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert max(map(len, lines)) <= 80
    assert all("val" in line and "lr" in line for line in lines)


def test_workers_of_a_sweep_say_whose_a_line_is(monkeypatch, capsys):
    trainer = SimpleNamespace(
        checkpoint_callback=SimpleNamespace(
            dirpath="runs/a/seed3-0a1b2c3d/checkpoints"
        ),
        is_global_zero=True,
        current_epoch=0,
        max_epochs=5,
    )
    PlainProgress()._print(trainer, "loss 1.0")
    worker = SimpleNamespace(name="LokyProcess-1")
    monkeypatch.setattr(progress, "current_process", lambda: worker)
    PlainProgress()._print(trainer, "loss 1.0")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/5  loss 1.0",
        "seed3-0a1b2c3d  epoch 1/5  loss 1.0",
    ]


def test_the_bar_counts_from_one():
    class Trainer:
        max_epochs = 30

    bar = LiveProgress()
    bar._trainer = Trainer()
    assert bar._get_train_description(0) == "epoch 1/30"
