"""Laws of the parameter groups: steps computed by hand, torch's own optimizers."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from resnet_se.training.param_groups import make_optimizer
from resnet_se.utils.errors import UserError


@pytest.mark.parametrize("spare", [False, True])
def test_one_sgd_step_by_hand(spare):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = make_optimizer(
        net, SGD, lr=0.1, weight_decay=0.01, decay_norm_and_bias=not spare
    )
    expected = []
    for parameter in net.parameters():
        nn.init.normal_(parameter)  # BatchNorm's start at 0 and 1
        parameter.grad = torch.randn_like(parameter)
        decay = 0 if spare and parameter.ndim == 1 else 0.01
        gradient = parameter.grad + decay * parameter.detach()
        expected.append(parameter.detach() - 0.1 * gradient)
    optimizer.step()
    torch.testing.assert_close([p.detach() for p in net.parameters()], expected)


def test_every_trainable_parameter_is_in_one_group():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    net[2].requires_grad_(False)
    groups = make_optimizer(net, AdamW, lr=0.1, weight_decay=0.5).param_groups
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for m in net[:2] for p in m.parameters())


@pytest.mark.parametrize(
    ("cls", "options"),
    [(SGD, {"momentum": 0.9, "nesterov": True}), (Adam, {}), (AdamW, {})],
)
def test_fused_is_the_same_within_rounding(cls, options):
    nets = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
        optimizer = make_optimizer(
            net, cls, lr=0.1, weight_decay=0.01, fused=fused, **options
        )
        for _ in range(3):
            for parameter in net.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        nets.append([p.detach() for p in net.parameters()])
    torch.testing.assert_close(*nets)


def test_options_reach_the_optimizer():
    optimizer = make_optimizer(nn.Linear(2, 2), Adam, lr=0.1, betas=(0.5, 0.6))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.6)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr: .* got 0"),
        ({"lr": -0.1}, "lr: .* got -0.1"),
        ({"lr": float("nan")}, "lr: .* got nan"),
        ({"lr": 0.1, "weight_decay": -1}, "weight_decay: .* got -1"),
        ({"lr": 0.1, "momentun": 0.9}, "momentun: SGD .* 'momentum'"),
        ({"lr": 0.1, "momentum": -1}, "SGD: .*momentum"),
    ],
)
def test_impossible_optimizer_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        make_optimizer(nn.Linear(2, 2), SGD, **options)
