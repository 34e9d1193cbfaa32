"""`calibration`: torchmetrics' ECE, and the temperature that made the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from resnet_se.analysis.calibration import fit_temperature
from resnet_se.training.reliability import reliability


@pytest.mark.parametrize("scale", [0.1, 1, 30])
def test_ece_is_torchmetrics(scale):
    torch.manual_seed(0)
    logits, labels = scale * torch.randn(500, 10), torch.randint(10, (500,))
    logits[:20] = 0  # a confidence on no edge
    found = reliability(logits, labels)
    expected = multiclass_calibration_error(logits, labels, 10, n_bins=15)
    assert found.ece == pytest.approx(float(expected), abs=1e-6)
    assert float(found.share.sum()) == pytest.approx(1)


def test_a_confidence_of_one_is_in_the_highest_bin():
    logits = torch.tensor([[1000.0, 0.0], [3.0, 0.0]])  # 1 and 0.9526
    found = reliability(logits, torch.tensor([0, 1]))
    assert float(found.share[-1]) == 1
    expected = abs(0.5 - (1 + float(torch.tensor(3.0).sigmoid())) / 2)
    assert found.ece == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_the_temperature_of_labels_drawn_from_cooled_logits_is_found(temperature):
    torch.manual_seed(0)
    logits = 3 * torch.randn(20_000, 5)
    labels = torch.multinomial((logits / temperature).softmax(1), 1)[:, 0]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    best = float(F.cross_entropy(logits / found, labels))
    for other in (0.97, 1.03):
        assert best < float(F.cross_entropy(logits / (found * other), labels))


def test_where_all_is_right_there_is_an_end():
    assert 0.009 < fit_temperature(torch.eye(3), torch.arange(3)) < 0.1
