"""Layers and initial weights held against those measured in Keras."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from resnet_se.models.complexity import parameter_counts
from resnet_se.models.layers import LayerFactory
from resnet_se.models.resnet import ResNet
from resnet_se.utils.errors import UserError
from tests.keras_reference import KERAS

SE_RESNET20 = {"depths": [3, 3, 3], "widths": [16, 32, 64], "strides": [1, 2, 2]}
PADDED = KERAS["same_padding"]["rows"]


def channels_first(values) -> torch.Tensor:
    """(H, W, C) → (C, H, W); kernels (h, w, in, out) → (out, in, h, w)."""
    array = torch.tensor(values, dtype=torch.float32)
    return array.permute(2, 0, 1) if array.ndim == 3 else array.permute(3, 2, 0, 1)


@pytest.mark.parametrize("row", PADDED, ids=lambda row: f"stride{row['stride']}")
def test_same_padding_is_keras(row):
    x, kernel, y = (channels_first(row[name]) for name in ("x", "kernel", "y"))
    outputs = {}
    for padding in ("same", "symmetric"):
        layers = LayerFactory(None, "standard", False, 0.1, 1e-5, padding=padding)
        conv = layers.conv(2, 2, kernel.shape[-1], row["stride"])
        conv.weight.data.copy_(kernel)
        outputs[padding] = conv(x[None])[0]
    torch.testing.assert_close(outputs["same"], y, rtol=0, atol=1e-4)
    # Equal where each side has as many rows to pad: stride 1, kernel 1, odd sides at 2.
    kernel_size, height, width = kernel.shape[-1], *x.shape[1:]
    rests = [
        max(0, (math.ceil(n / row["stride"]) - 1) * row["stride"] + kernel_size - n)
        for n in (height, width)
    ]
    if all(rest == 2 * (kernel_size // 2) for rest in rests):
        assert torch.equal(outputs["symmetric"], outputs["same"])
    elif any(rest % 2 for rest in rests):
        assert not torch.allclose(outputs["symmetric"], outputs["same"])


def test_same_padding_reaches_both_convolutions_of_a_stride_and_keeps_the_names():
    torch.manual_seed(0)
    symmetric = ResNet([1, 1], [4, 8], [1, 2], reduction=2)
    same = ResNet([1, 1], [4, 8], [1, 2], reduction=2, padding="same")
    same.load_state_dict(symmetric.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for net in (symmetric, same):
        net.eval()
    assert torch.equal(
        symmetric.blocks[0](symmetric.stem(x)), same.blocks[0](same.stem(x))
    )
    assert not torch.allclose(symmetric(x), same(x))
    # By hand: one row and one column of zeros, below and right.
    conv = same.blocks[1].branch[1]
    inputs = torch.randn(2, 4, 8, 8)
    padded = nn.functional.pad(inputs, (0, 1, 0, 1))
    expected = nn.functional.conv2d(padded, conv.weight, conv.bias, 2)
    torch.testing.assert_close(conv(inputs), expected)


def test_glorot_initial_weights_are_keras():
    torch.manual_seed(0)
    net = ResNet(**SE_RESNET20, init="glorot")
    kernels = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    rows = {
        tuple(row["shape"]): row for row in KERAS["networks"]["se_resnet20"]["kernels"]
    }
    shapes = set()
    for layer in kernels:
        weight = layer.weight.detach().numpy()
        shape = weight.transpose((2, 3, 1, 0) if weight.ndim == 4 else (1, 0)).shape
        shapes.add(shape)
        fans = weight.shape[0] + weight.shape[1]
        places = math.prod(weight.shape[2:])
        limit = math.sqrt(6 / (fans * places))
        error = 4 / math.sqrt(weight.size)  # of a standard deviation, relative
        assert np.abs(weight).max() <= limit >= rows[shape]["most"]
        assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=error)
        assert rows[shape]["std"] == pytest.approx(limit / math.sqrt(3), rel=error)
        assert not layer.bias.any()
    assert shapes == set(rows)
    assert KERAS["networks"]["se_resnet20"]["largest_bias"] == 0


def test_he_initial_convolutions_are_wider_than_keras_by_the_root_of_two():
    torch.manual_seed(0)
    net = ResNet(**SE_RESNET20)
    widest = KERAS["networks"]["se_resnet20"]["kernels"]
    row = next(row for row in widest if row["shape"] == [3, 3, 64, 64])
    conv = net.blocks[-1].branch[4]
    assert float(conv.weight.detach().std()) / row["std"] == pytest.approx(
        2**0.5, rel=0.02
    )


@pytest.mark.parametrize(
    ("name", "depths", "widths", "strides"),
    [
        ("se_resnet20", (3, 3, 3), (16, 32, 64), (1, 2, 2)),
        ("se_resnet80", (20, 6, 13), (32, 64, 128), (1, 2, 2)),
        ("se_resnet_table", (1, 1, 1, 1), (64, 128, 256, 512), (1, 1, 2, 2)),
    ],
)
def test_counts_are_those_of_the_same_network_in_keras(name, depths, widths, strides):
    counts = parameter_counts(ResNet(depths, widths, strides))
    row = KERAS["networks"][name]
    assert counts["trainable"] == row["trainable"]
    assert counts["non_trainable"] == row["non_trainable"]


def test_identity_init_with_glorot_is_refused():
    with pytest.raises(UserError, match="identity_init: expected false with init=glo"):
        ResNet(**SE_RESNET20, init="glorot", identity_init=True)
