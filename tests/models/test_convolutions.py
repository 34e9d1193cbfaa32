"""A convolution of small maps is torch's, by other products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_se.models import convolutions
from resnet_se.models.convolutions import SmallMapConv2d


def layer(kernel=3, c_in=5, c=6, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    conv = SmallMapConv2d(
        c_in, c, kernel, padding=kernel // 2, bias=False, dtype=dtype, **settings
    )
    return conv.to(memory_format=torch.channels_last)


def gradients(conv, x, forward):
    x = x.clone().requires_grad_()
    output = forward(x)
    output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(output))
    found = output.detach(), x.grad, conv.weight.grad
    conv.weight.grad = None
    return found


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 3), (3, 2)])
def test_output_and_gradients_are_those_of_torch(kernel, size):
    conv, x = layer(kernel), torch.randn(7, 5, *size, dtype=torch.float64)
    assert conv._is_faster(x)
    ours = gradients(conv, x, conv)
    theirs = gradients(conv, x, lambda x: nn.Conv2d.forward(conv, x))
    torch.testing.assert_close(ours, theirs)


def test_under_autocast_it_is_torch_s_within_bfloat16_s_rounding():
    conv, x = layer(c_in=32, c=32, dtype=torch.float32), torch.randn(64, 32, 3, 3)
    exact = gradients(conv, x, lambda x: nn.Conv2d.forward(conv, x))
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(conv, x, conv)
    assert ours[0].dtype == torch.bfloat16
    assert ours[2].dtype == torch.float32
    for mine, theirs in zip(ours, exact, strict=True):
        assert (mine.float() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("case", ["no gradient", "frozen", "a larger map", "a bias"])
def test_elsewhere_it_is_torch_s_own(case, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(convolutions._SmallMapConvolution, "apply", never)
    conv, x = layer(), torch.randn(2, 5, 3, 3, dtype=torch.float64)
    if case == "frozen":
        conv.weight.requires_grad_(False)
    if case == "a bias":
        conv.bias = nn.Parameter(torch.ones(6, dtype=torch.float64))
    if case == "a larger map":
        x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    with torch.set_grad_enabled(case != "no gradient"):
        expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(conv(x), expected)
    with pytest.raises(AssertionError):
        layer()(torch.randn(2, 5, 3, 3, dtype=torch.float64))


def test_a_frozen_input_costs_no_gradient():
    conv = layer()
    conv(torch.randn(2, 5, 3, 3, dtype=torch.float64)).sum().backward()
    assert conv.weight.grad is not None
