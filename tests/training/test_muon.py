"""Laws of Muon: the iteration against an SVD, steps against NumPy, groups by kind."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from resnet_se.models.attention import SqueezeExcite
from resnet_se.models.resnet import ResNet
from resnet_se.training import muon
from resnet_se.training.muon import Muon, make_muon, orthogonalized
from resnet_se.training.schedules import Schedule
from resnet_se.utils.errors import UserError

RATES = {"lr": 0.2, "bias_lr": 10.0, "se_lr": 3.0, "head_lr": 2.0}


def network(seed=0):
    torch.manual_seed(seed)
    return ResNet([1, 1], [8, 16], [2, 2], reduction=4, whiten=True, downsample="pool")


def give_gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (20, 20), (1, 9)])
def test_directions_are_those_of_an_svd(shape):
    generator = torch.Generator().manual_seed(0)
    short = min(shape)
    u = torch.linalg.qr(torch.randn(shape[0], short, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(shape[1], short, generator=generator))[0]
    sizes = torch.logspace(0, -0.7, short)
    matrix = 1e3 * (u * sizes) @ v.T
    # Diagonal, if it keeps u and v.
    found = u.T @ orthogonalized(matrix[None], torch.float32)[0] @ v
    diagonal = found.diagonal()
    assert ((diagonal > 0.3) & (diagonal < 1.3)).all()
    # And the directions are kept: nothing beside the diagonal.
    torch.testing.assert_close(found, diagonal.diag(), atol=1e-4, rtol=0)


def test_bfloat16_is_float32_within_its_rounding():
    matrix = torch.randn(1, 32, 100, generator=torch.Generator().manual_seed(0))
    exact = orthogonalized(matrix, torch.float32)
    rounded = orthogonalized(matrix, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.03


def test_no_gradient_is_no_step_and_no_nan():
    assert torch.equal(orthogonalized(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_two_steps_of_a_convolution_in_numpy():
    conv = nn.Conv2d(3, 6, 3, bias=False)
    weight = conv.weight.detach().numpy().astype(np.float64)
    optimizer = Muon(conv.parameters(), lr=0.1, momentum=0.6)
    momentum = np.zeros_like(weight)
    for seed in (1, 2):
        give_gradients(conv, seed)
        grad = conv.weight.grad.numpy().astype(np.float64)
        momentum = 0.6 * momentum + grad
        x = (grad + 0.6 * momentum).reshape(6, 27)
        x /= np.linalg.norm(x)
        for _ in range(3):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        weight = weight * math.sqrt(6) / np.linalg.norm(weight)
        weight = weight - 0.1 * x.reshape(weight.shape)
        optimizer.step()
    torch.testing.assert_close(
        conv.weight.detach().double(), torch.from_numpy(weight), atol=0.01, rtol=0
    )


def one_by_one(matrix):
    """Muon's direction of one matrix as it was before banks were batched, float32."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last]
)
def test_banks_of_a_shape_at_once_are_one_by_one(monkeypatch, memory_format):
    """Within float32's rounding; `40, 2` has more rows than columns, two are 1×1."""
    monkeypatch.setattr(muon, "has_bf16", lambda device: False)
    shapes = [(8, 4, 3, 3)] * 3 + [(40, 2, 3, 3)] * 2 + [(6, 5, 1, 1)] * 2
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    expected = []
    for weight in weights:
        weight.grad = torch.randn(weight.shape).to(memory_format=memory_format)
        scaled = weight.detach() * math.sqrt(len(weight)) / weight.detach().norm()
        direction = one_by_one(1.6 * weight.grad.flatten(1)).view_as(weight)
        expected.append(scaled - 0.1 * direction)
        weight.data = weight.data.to(memory_format=memory_format)
    places = [weight.data_ptr() for weight in weights]
    Muon(weights, lr=0.1, momentum=0.6).step()
    for weight, right in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), right, atol=2e-6, rtol=1e-5)
    assert [weight.data_ptr() for weight in weights] == places  # moved in place


def test_weights_have_the_norm_of_their_filters_before_a_step():
    conv = nn.Conv2d(4, 9, 3, bias=False)
    optimizer = Muon(conv.parameters(), lr=0.0)
    give_gradients(conv, 0)
    direction = conv.weight.detach() / conv.weight.norm()
    optimizer.step()
    torch.testing.assert_close(conv.weight.detach(), 3 * direction)


def test_the_others_go_by_torchs_sgd():
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}
    optimizers = (
        Muon(ours.parameters(), matrices=False, **options),
        SGD(theirs.parameters(), nesterov=True, **options),
    )
    for seed in range(3):
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            give_gradients(net, seed)
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_each_kind_of_parameter_has_its_rate_and_decay():
    net = network()
    rates, decays = {}, {}
    for group in make_muon(net, weight_decay=0.06, **RATES).param_groups:
        for parameter in group["params"]:
            assert parameter not in rates
            rates[parameter] = pytest.approx(group["lr"])
            decays[parameter] = pytest.approx(group["lr"] * group["weight_decay"])
            assert group["matrices"] == (parameter.ndim == 4)
    assert set(rates) == {p for p in net.parameters() if p.requires_grad}
    assert net.stem.conv.weight not in rates
    assert rates[net.stem.conv.bias] == 2.0
    assert rates[net.head.weight] == rates[net.head.bias] == 0.4
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (rates[module.bias], rates[module.weight]) == (2.0, 0.2)
        if isinstance(module, SqueezeExcite):
            assert {rates[p].expected for p in module.parameters()} == {3.0 * 0.2}
    for parameter, decay in decays.items():
        assert decay == (0.0 if parameter.ndim == 4 else 0.2 * 0.06)


def test_a_schedule_scales_every_rate():
    optimizer = make_muon(network(), **RATES)
    base = [group["lr"] for group in optimizer.param_groups]
    schedule = Schedule(optimizer, 1, 4, decay=lambda t, total: 1 - t / total)
    optimizer.step()
    schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.75 * lr for lr in base])


def test_a_resumed_optimizer_goes_on_as_if_uninterrupted():
    def steps(net, optimizer, seeds):
        for seed in seeds:
            give_gradients(net, seed)
            optimizer.step()

    whole = network()
    optimizer = make_muon(whole, weight_decay=0.01, **RATES)
    steps(whole, optimizer, (0, 1))
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    resumed = network(seed=1)
    going_on = make_muon(resumed, lr=0.7)
    weights, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights)
    going_on.load_state_dict(state)
    steps(whole, optimizer, (2, 3))
    steps(resumed, going_on, (2, 3))
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_lowers_a_loss():
    net = network()
    optimizer = make_muon(net, lr=0.05)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 16, 16, generator=generator)
    labels = torch.arange(32) % 10
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, r"^lr: expected a number > 0, got 0"),
        ({"se_lr": -1.0}, r"^se_lr: .* got -1"),
        ({"head_lr": math.inf}, r"^head_lr: .* got inf"),
        ({"momentum": 1.0}, r"^momentum: .* < 1, got 1"),
        ({"vector_momentum": -0.1}, r"^vector_momentum: .* got -0.1"),
        ({"weight_decay": -1.0}, r"^weight_decay: .* got -1"),
    ],
)
def test_impossible_rates_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        make_muon(network(), **options)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_without_convolutions_to_train_is_refused(frozen):
    net = nn.Sequential(nn.Conv2d(3, 4, 3).requires_grad_(False), nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"Sequential has none.*optimizer=sgd"):
        make_muon(net if frozen else net[1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -0.1}, "lr: expected a number >= 0, got -0.1"),
        ({"momentum": 1.0}, "momentum: .* < 1, got 1"),
        ({"weight_decay": -1.0}, "weight_decay: .* got -1"),
        ({}, "vector among the matrices"),
    ],
)
def test_the_class_refuses_as_torchs_do(options, words):
    with pytest.raises(ValueError, match=words):
        Muon([torch.zeros(3)], **options)
