"""Networks that do not fit are told before the first step, by what they return."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from resnet_se.models.resnet import ResNet
from resnet_se.training.preparation import check_shape, check_training
from resnet_se.utils.errors import UserError


class TwoHeads(nn.Linear):
    """As torchvision's GoogLeNet: logits in evaluation, more of them in training."""

    def forward(self, x):
        logits = super().forward(x.flatten(1))
        return (logits, logits) if self.training else logits


class Flat(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 7))


def test_more_than_logits_in_training_is_refused():
    net = TwoHeads(48, 7)
    check_shape(net, (4, 4), 7)
    with pytest.raises(UserError, match=r"TwoHeads in training: .*\(2, 7\).* tuple"):
        check_training(net, (4, 4), 7, 32)


def test_a_batch_of_one_is_told_where_batchnorm_fails():
    check_training(Flat(), (4, 4), 7, 2)
    with pytest.raises(UserError, match=r"data\.batch_size=2 or more"):
        check_training(Flat(), (4, 4), 7, 1)


class Detached(Flat):
    """A careless forward: `argmax`, `numpy` and `no_grad` leave no gradient either."""

    def forward(self, x):
        return super().forward(x).detach()


def test_logits_without_a_gradient_are_refused():
    with pytest.raises(UserError, match="model: Detached: its logits have no gradient"):
        check_training(Detached(), (4, 4), 7, 2)


def test_probabilities_in_place_of_logits_are_refused():
    log = nn.Sequential(*Flat(), nn.LogSoftmax(1))
    check_training(log, (4, 4), 7, 2)  # the softmax of these is the same again
    soft = nn.Sequential(*Flat(), nn.Softmax(1))
    with pytest.raises(UserError, match=r"got probabilities .*softmax"):
        check_training(soft, (4, 4), 7, 2)


def test_a_network_of_fixed_size_is_told():
    with torch.device("meta"):
        net = torchvision.models.VisionTransformer(224, 16, 1, 2, 8, 8, num_classes=7)
    with pytest.raises(UserError, match=r"VisionTransformer fails on images .*224"):
        check_shape(net, (32, 32), 7)


def test_the_check_leaves_network_and_random_stream_as_they_were():
    net = ResNet([1], [8], [1], reduction=4, num_classes=7, dropout=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_training(net, (8, 8), 7, 32)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
