"""Channel gates: each by hand, folded exactly, and none that changes older networks."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor, nn

from resnet_se.models.attention import (
    ATTENTIONS,
    ChannelGate,
    EfficientChannelAttention,
    SqueezeExcite,
    StaticExcite,
    eca_kernel,
)
from resnet_se.models.complexity import forward_macs, parameter_counts
from resnet_se.models.fusion import ChannelScale, fold_batchnorm
from resnet_se.models.layers import SE_POSITIONS, PoolBlock
from resnet_se.models.resnet import ResNet
from resnet_se.models.se_gates import all_static, gate_values, without_gates
from resnet_se.utils.errors import UserError

SHAPE = {"depths": [1, 2], "widths": [8, 16], "strides": [1, 2], "reduction": 4}
KINDS = {"se": SqueezeExcite, "static": StaticExcite, "eca": EfficientChannelAttention}


def network(**arguments: object) -> ResNet:
    """In float64 and eval mode, every number of it drawn, gates far from a half."""
    torch.manual_seed(0)
    net = ResNet(**(SHAPE | arguments)).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
        elif isinstance(module, ChannelGate):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    return net.eval()


def images(n: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 16, 16, generator=random, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- by hand -----------------------------------------------------


def test_a_static_gate_is_its_formula_whatever_the_image():
    torch.manual_seed(0)
    gate = StaticExcite(6, 3, scale=2.0)
    nn.init.normal_(gate.vector)
    w1, b1, w2, b2, v = (
        t.tolist()
        for t in (
            *(gate.squeeze.weight, gate.squeeze.bias),
            *(gate.excite.weight, gate.excite.bias, gate.vector),
        )
    )
    hidden = [
        max(0, sum(w * z for w, z in zip(row, v, strict=True)) + b)
        for row, b in zip(w1, b1, strict=True)
    ]
    expected = torch.tensor(
        [
            2 * sigmoid(sum(w * h for w, h in zip(row, hidden, strict=True)) + b)
            for row, b in zip(w2, b2, strict=True)
        ]
    )
    x = torch.randn(3, 6, 5, 4)
    torch.testing.assert_close(gate.gate(x), expected.expand(3, -1))
    torch.testing.assert_close(gate.constant_gate(), expected)
    torch.testing.assert_close(gate(x), x * expected[:, None, None])


def test_every_part_of_a_static_gate_learns():
    torch.manual_seed(1)
    gate = StaticExcite(16, 2)
    gate(torch.randn(2, 16, 3, 3)).square().sum().backward()
    assert all(bool(p.grad.any()) for p in gate.parameters())


@pytest.mark.parametrize(
    ("channels", "kernel"),
    [(1, 1), (2, 1), (8, 3), (16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5)],
)
def test_the_kernel_of_eca_is_the_papers(channels, kernel):
    """|log₂(C)/2 + 1/2| by hand, and one more where its integer part is even."""
    assert eca_kernel(channels) == kernel
    gate = EfficientChannelAttention(channels)
    assert gate(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


def test_eca_is_its_formula():
    torch.manual_seed(0)
    gate, x = EfficientChannelAttention(8), torch.randn(2, 8, 5, 4)
    (left, middle, right) = gate.conv.weight.flatten().tolist()
    for image in x:
        z = [0.0, *(channel.mean().item() for channel in image), 0.0]
        expected = torch.stack(
            [
                channel * sigmoid(left * z[c] + middle * z[c + 1] + right * z[c + 2])
                for c, channel in enumerate(image)
            ]
        )
        torch.testing.assert_close(gate(image[None])[0], expected)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("position", SE_POSITIONS)
@pytest.mark.parametrize("attention", KINDS)
def test_every_kind_stands_in_every_position(attention, position, downsample):
    """Where SE stands, and multiplying there is all that it does."""
    options = {"se_position": position, "downsample": downsample}
    net = network(attention=attention, **options)
    se = network(attention="se", **options)
    found = {n: type(m) for n, m in net.named_modules() if isinstance(m, ChannelGate)}
    assert set(found.values()) == {KINDS[attention]}
    assert list(found) == list(gate_values(se, [images(1)]))
    assert any(isinstance(b, PoolBlock) for b in net.blocks) == (downsample == "pool")
    for gate in net.modules():
        if isinstance(gate, ChannelGate):
            gate.relative_gate = lambda x: x.new_ones(x.shape[:2])
    with torch.no_grad():
        torch.testing.assert_close(net(images()), without_gates(net)(images()))


def test_none_is_the_network_without_a_reduction():
    nets = [network(attention="none"), network(reduction=None)]
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
    assert torch.equal(nets[0](images()), nets[1](images()))


# --- older networks stay -----------------------------------------


def weights(**arguments: object) -> str:
    torch.manual_seed(0)
    state = ResNet(**(SHAPE | arguments)).state_dict()
    content = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    return hashlib.sha256(content).hexdigest()[:16]


def test_se_by_its_name_is_what_a_reduction_has_always_been():
    assert weights() == weights(attention=None) == weights(attention="se")
    assert weights(reduction=None) == weights(attention="none")


def test_a_static_network_begins_with_the_weights_of_the_se_network():
    torch.manual_seed(0)
    se = ResNet(**SHAPE).state_dict()
    torch.manual_seed(0)
    static = ResNet(**SHAPE, attention="static").state_dict()
    assert {name for name in static if name not in se} == {
        f"blocks.{i}.branch.6.vector" for i in range(3)
    }
    assert all(torch.equal(static[name], tensor) for name, tensor in se.items())


# --- counts ------------------------------------------------------


def test_counts_of_each_kind_by_hand():
    nets = {name: ResNet(**SHAPE, attention=name) for name in ATTENTIONS}
    size = {n: parameter_counts(net)["trainable"] for n, net in nets.items()}
    macs = {n: forward_macs(net, 16) for n, net in nets.items()}
    widths = [8, 16, 16]
    layers = sum(2 * c * (c // 4) + c // 4 + c for c in widths)
    products = sum(2 * c * (c // 4) for c in widths)
    assert size["se"] - size["none"] == layers
    assert size["static"] - size["none"] == layers + sum(widths)
    assert size["eca"] - size["none"] == 3 * 3
    assert macs["se"] - macs["none"] == macs["static"] - macs["none"] == products
    assert macs["eca"] - macs["none"] == sum(3 * c for c in widths)


def test_presets_have_their_kind(model_rows):
    """The vectors of static presets; three weights a block in widths of 16 to 64."""
    for n, widths in {
        "20": 3 * (16 + 32 + 64),
        "80": 20 * 32 + 6 * 64 + 13 * 128,
    }.items():
        static, se = model_rows[f"static_resnet{n}"], model_rows[f"se_resnet{n}"]
        assert static["trainable"] - se["trainable"] == widths
    eca, plain = model_rows["eca_resnet20"], model_rows["vanilla_resnet20"]
    assert eca["trainable"] - plain["trainable"] == 9 * 3


# --- folding -----------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("position", SE_POSITIONS)
def test_a_static_gate_folds_to_rounding(position, downsample, bias):
    net = network(
        attention="static", se_position=position, downsample=downsample, conv_bias=bias
    )
    small = fold_batchnorm(net)
    x = images()
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(small(x), expected, rtol=1e-11, atol=1e-12)
        close = fold_batchnorm(net.float())(x.float()).double()
    assert (close - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not any(isinstance(m, ChannelGate) for m in small.modules())
    left = sum(isinstance(m, ChannelScale) for m in small.modules())
    # The shortcut of a block with another width has a convolution to take it.
    alone = {"standard": 0, "pre": 0, "post": 3, "identity": 2}[position]
    assert left == alone + (position == "identity" and downsample == "pool")


def test_all_static_knows_constants_alone():
    assert all_static(network(attention="static"))
    for other in ("none", "se", "eca"):
        assert not all_static(network(attention=other))


# --- mistakes ----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"attention": "static", "reduction": 9},
            r"reduction: expected 1\.\.8 .*got 9",
        ),
        ({"attention": "static", "reduction": None}, "integer >= 1 with attention=sta"),
        ({"attention": "se", "reduction": None}, "integer >= 1 with attention=se"),
        ({"attention": "cbam"}, "attention: expected one of none, se, static, eca"),
        (
            {"attention": "eca", "se_position": "identity", "residual": False},
            "se_position: expected another position",
        ),
    ],
)
def test_one_sentence_for_each_mistake(arguments, message):
    with pytest.raises(UserError, match=message):
        ResNet(**(SHAPE | arguments))
