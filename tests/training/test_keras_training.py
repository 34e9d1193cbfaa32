"""Schedule, plateau, L2 and Adam held against what was measured in Keras."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from resnet_se.training.param_groups import l2_penalty, make_optimizer
from resnet_se.training.schedules import Schedule, constant, multistep
from resnet_se.utils.errors import UserError
from tests.keras_reference import KERAS, TF_KERAS

PAPER = {
    "decay": partial(multistep, milestones=[100, 250], gamma=0.1),
    "warmup_epochs": 5,
    "warmup_start": 0.1,
}


def rates_of_epochs(losses, base=1e-3, **options):
    """The rate of each epoch's training, one step an epoch, shown these losses."""
    optimizer = SGD([torch.zeros(1)], lr=base)
    schedule = Schedule(optimizer, 1, len(losses), **options)
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        schedule.observe(loss)
    return rates


# --- rates -------------------------------------------------------


@pytest.mark.parametrize(
    "row", KERAS["plateau"]["rows"], ids=lambda row: str(row["options"])
)
def test_plateau_rule_keras_acts_when_keras_does(row):
    plateau = {"factor": 0.5, **row["options"]}
    rates = rates_of_epochs(row["losses"], plateau=plateau, plateau_rule="keras")
    assert rates == pytest.approx(row["rates"], rel=1e-6)


def test_torchs_plateau_rule_acts_in_other_epochs():
    for row in KERAS["plateau"]["rows"]:
        if row["options"]["patience"]:  # 0 is the same in both, if a fall is
            plateau = {"factor": 0.5, **row["options"]}
            rates = rates_of_epochs(row["losses"], plateau=plateau)
            assert rates != pytest.approx(row["rates"], rel=1e-6)


def test_an_absolute_threshold_that_is_given_stays():
    losses = [1.0 - 0.01 * epoch for epoch in range(8)]
    options = {"factor": 0.5, "patience": 2, "threshold": 0.05}
    rates = rates_of_epochs(losses, plateau=options, plateau_rule="keras")
    # A fall of 0.05 in all is reached after six epochs only, too late for either two.
    assert rates[:4] == [1e-3, 1e-3, 1e-3, 5e-4]
    relative = {**options, "threshold": 1e-3, "threshold_mode": "rel"}
    assert set(rates_of_epochs(losses, plateau=relative, plateau_rule="keras")) == {
        1e-3
    }


def test_a_schedule_that_overrides_the_plateau_is_keras_of_the_epoch():
    row = KERAS["schedule_and_plateau"]
    plateau = {"factor": 0.5, "patience": 20}
    both = {**PAPER, "plateau": plateau, "plateau_rule": "keras"}
    overridden = rates_of_epochs(row["losses"], **both, overrides_plateau=True)
    assert overridden == pytest.approx(row["of_epoch"], rel=1e-6)
    assert row["either_order_alike"]
    assert row["history_differs_at"]  # though it shows halved rates there
    # Factors that multiply are Keras's schedule of (epoch, rate), begun at 10 × ours.
    multiplied = rates_of_epochs(row["losses"], **both)
    scaled = [rate / 10 for rate in row["of_epoch_and_rate"]]
    assert multiplied == pytest.approx(scaled, rel=1e-5)
    assert multiplied[150] == pytest.approx(6.25e-6, rel=1e-5)
    assert overridden[150] == overridden[249] == pytest.approx(1e-4)


def test_a_plateau_without_a_schedule_is_not_overridden():
    row = KERAS["schedule_and_plateau"]
    options = {"plateau": {"factor": 0.5, "patience": 20}, "plateau_rule": "keras"}
    for decay in (constant, partial(constant)):
        rates = rates_of_epochs(
            row["losses"], decay=decay, **options, overrides_plateau=True
        )
        assert rates == pytest.approx(row["plateau_alone"], rel=1e-6)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="plateau_rule"):
        rates_of_epochs([1.0], plateau={}, plateau_rule="tf")


# --- L2 ----------------------------------------------------------


def conv_and_norm():
    row = KERAS["l2"]
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    kernel = torch.tensor(row["kernel"]).permute(3, 2, 0, 1)
    net[0].weight.data.copy_(kernel)
    nn.init.ones_(net[0].bias)
    return row, net


def test_l2_is_keras_penalty_and_gradient_on_kernels_alone():
    row, net = conv_and_norm()
    optimizer = make_optimizer(net, SGD, lr=1.0, weight_decay=1e-4, penalty="l2")
    assert l2_penalty(optimizer) == pytest.approx(row["penalty"], rel=1e-6)
    before = net[0].weight.detach().clone()
    for parameter in net.parameters():  # as there: the data's gradient is zero
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = (before - net[0].weight.detach()) / before
    assert float(moved.mean()) == pytest.approx(row["gradient_per_weight"], rel=1e-4)
    assert l2_penalty(optimizer) == pytest.approx(row["val_loss_after"], rel=1e-5)
    assert row["bias_moved"] == row["batch_norm_scale_moved"] == 0
    assert torch.equal(net[0].bias.detach(), torch.ones(4))
    assert torch.equal(net[1].weight.detach(), torch.ones(4))


def test_weight_decay_has_half_of_the_gradient_and_no_penalty():
    row, net = conv_and_norm()
    optimizer = make_optimizer(net, SGD, lr=1.0, weight_decay=1e-4)
    before = net[0].weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = (before - net[0].weight.detach()) / before
    assert float(moved.mean()) == pytest.approx(
        row["gradient_per_weight"] / 2, rel=1e-3
    )
    assert l2_penalty(optimizer) == 0
    assert not torch.equal(net[0].bias.detach(), torch.ones(4))


def test_l2_is_the_gradient_of_the_penalty_in_the_loss_for_adam():
    _, net = conv_and_norm()
    twin = copy.deepcopy(net)
    torch.manual_seed(0)
    x = torch.randn(4, 2, 6, 6)
    optimizer = make_optimizer(net, Adam, lr=0.01, weight_decay=0.05, penalty="l2")
    reference = Adam(twin.parameters(), lr=0.01)
    for _ in range(3):
        for model, rule, penalty in ((net, optimizer, 0.0), (twin, reference, 0.05)):
            rule.zero_grad()
            loss = model(x).square().mean() + penalty * model[0].weight.square().sum()
            loss.backward()
            rule.step()
    torch.testing.assert_close(net[0].weight, twin[0].weight)
    torch.testing.assert_close(net[1].bias, twin[1].bias)


def test_l2_with_a_decoupled_decay_is_refused():
    with pytest.raises(UserError, match="penalty: expected decay with AdamW"):
        make_optimizer(nn.Linear(2, 2), AdamW, lr=0.1, penalty="l2")


# --- Adam's epsilon ----------------------------------------------


def adam_weights(gradient, steps, **options):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = make_optimizer(layer, Adam, lr=1e-3, eps=1e-7, **options)
    weights = []
    for _ in range(steps):
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
        weights.append(layer.weight.item())
    return weights, optimizer, layer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "row", KERAS["adam"]["rows"], ids=lambda row: str(row["gradient"])
)
def test_epsilon_outside_takes_keras_steps(row, fused):
    weights, *_ = adam_weights(row["gradient"], 8, epsilon="outside", fused=fused)
    assert weights == pytest.approx(row["weights"], rel=1e-4)
    assert KERAS["adam"]["epsilon"] == 1e-7


def test_epsilon_inside_takes_a_longer_first_step():
    [small, _] = KERAS["adam"]["rows"]
    [first], *_ = adam_weights(1e-6, 1)
    assert first == pytest.approx(-0.909e-3, rel=1e-3)
    assert small["weights"][0] == pytest.approx(-0.240e-3, rel=2e-3)
    assert TF_KERAS["adam_first_step"] == pytest.approx(small["weights"][0], rel=1e-3)


def test_epsilon_goes_on_where_a_checkpoint_was_saved():
    [row, _] = KERAS["adam"]["rows"]
    _, optimizer, layer = adam_weights(1e-6, 4, epsilon="outside")
    state = copy.deepcopy(optimizer.state_dict())
    other = nn.Linear(1, 1, bias=False)
    other.load_state_dict(layer.state_dict())
    resumed = make_optimizer(other, Adam, lr=1e-3, eps=1e-7, epsilon="outside")
    resumed.load_state_dict(state)
    for _ in range(4):
        other.weight.grad = torch.full_like(other.weight, 1e-6)
        resumed.step()
    assert other.weight.item() == pytest.approx(row["weights"][-1], rel=1e-4)


def test_an_optimizer_without_the_correction_ignores_it():
    layer = nn.Linear(1, 1)
    optimizer = make_optimizer(layer, SGD, lr=0.1, epsilon="outside")
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert "eps" not in optimizer.param_groups[0]
