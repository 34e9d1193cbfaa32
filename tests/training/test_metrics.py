"""The direction of a metric, and those who follow it."""

from __future__ import annotations

import pytest

from resnet_se.training.metrics import METRICS, MONITORED, direction
from resnet_se.utils.errors import UserError
from tests.training.test_module import build  # noqa: F401  a fixture


def test_losses_and_errors_fall_and_accuracies_rise():
    for metric in MONITORED:
        if metric != "train/lr":
            assert direction(metric) == ("max" if "acc" in metric else "min")
    assert METRICS["test/ece"] == "min"


@pytest.mark.parametrize(
    ("metric", "mode", "answer"),
    [
        ("val/accuracy", None, "never logged; did you mean 'val/acc'?"),
        ("test/acc", None, "known only after training; did you mean 'val/acc'?"),
        ("val/acc", "min", "expected max for val/acc, got min"),
        ("val/loss", "max", "expected min for val/loss, got max"),
        ("train/lr", None, "has no better end; add mode=min or max"),
        ("val/acc", "best", "expected min or max, got 'best'"),
    ],
)
def test_a_direction_that_would_keep_the_worst_is_refused(metric, mode, answer):
    with pytest.raises(UserError, match=answer.replace("?", r"\?")):
        direction(metric, mode)


def test_callbacks_of_lightning_follow_it_too(build):  # noqa: F811
    keeper = "_target_: lightning.pytorch.callbacks.ModelCheckpoint"
    stopper = "_target_: lightning.pytorch.callbacks.EarlyStopping"
    _, _, trainer = build(
        f"+callbacks.a={{{keeper}, monitor: val/acc, dirpath: .}}",
        f"+callbacks.b={{{keeper}, monitor: val/loss, dirpath: .}}",
        f"+callbacks.c={{{stopper}, monitor: train/acc}}",
        f"+callbacks.d={{{stopper}, monitor: train/lr, mode: max}}",
        "callbacks.early_stopping.monitor=val/acc",
        "+callbacks.checkpoint.monitor=val/acc",
    )
    modes = [c.mode for c in trainer.callbacks if getattr(c, "monitor", None)]
    assert sorted(modes) == ["max"] * 5 + ["min"]
