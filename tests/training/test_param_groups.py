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


@pytest.mark.parametrize("dampening", [0.0, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_gradient_may_come_later_than_the_others(dampening, nesterov):
    if nesterov and dampening:
        return
    more = {"dampening": dampening, "nesterov": nesterov}
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimizer = make_optimizer(
            net, torch.optim.SGD, lr=0.1, momentum=0.9, fused=fused, **more
        )
        for step in range(3):
            optimizer.zero_grad()
            part = net[1] if step == 0 else net  # the first layer is left out at first
            part(torch.ones(2, 4 if step == 0 else 3)).sum().backward()
            optimizer.step()
        weights.append([p.detach().clone() for p in net.parameters()])
    torch.testing.assert_close(*weights)


def test_a_first_step_that_a_scaler_skips_leaves_no_trace():
    net = nn.Linear(3, 2)
    optimizer = make_optimizer(net, torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = net.weight.detach().clone()
    scaler.scale(net(torch.full((1, 3), 3e38)).sum() * 10).backward()  # overflows
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(net.weight, before)
    for state in optimizer.state.values():
        assert not state["momentum_buffer"].any()
    optimizer.zero_grad()
    scaler.scale(net(torch.ones(1, 3)).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(net.weight, before - 0.1)
