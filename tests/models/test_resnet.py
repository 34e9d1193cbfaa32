"""Laws of the network: the paper's counts, each SE position by hand, shapes, errors."""

import math
import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from resnet_se.models.attention import SqueezeExcite
from resnet_se.models.complexity import forward_macs, parameter_counts
from resnet_se.models.layers import (
    SE_POSITIONS,
    BasicBlock,
    LayerFactory,
    PoolBlock,
    WhiteningStem,
)
from resnet_se.models.resnet import ResNet
from resnet_se.utils.errors import UserError

# trainable, non-trainable, MMAC at 32×32, weighted layers
CHECK_VALUES = {
    "se_resnet80": (4_617_010, 11_200, 728.6, 80),
    "se_resnet74": (4_617_010, 11_200, 672.0, 74),
    "se_resnet68": (4_617_010, 11_200, 615.4, 68),
    "se_resnet_table": (4_950_662, 5_760, 782.0, 10),
    "se_resnet20": (275_631, 1_568, 40.8, 20),
    "se_resnet56": (865_017, 4_256, 125.8, 56),
    "se_resnet20w4": (4_364_574, 6_272, 647.7, 20),
}
STAGES = {  # depths, widths
    "80": ((20, 6, 13), (32, 64, 128)),
    "74": ((12, 12, 12), (32, 64, 128)),
    "68": ((4, 18, 11), (32, 64, 128)),
    "_table": ((1, 1, 1, 1), (64, 128, 256, 512)),
    "20": ((3, 3, 3), (16, 32, 64)),
    "56": ((9, 9, 9), (16, 32, 64)),
    "20w4": ((3, 3, 3), (64, 128, 256)),
}


def tiny(**options):
    """Two blocks, the second with stride 2 and a projection; SE in both."""
    arguments = {"depths": [1, 1], "widths": [4, 8], "strides": [1, 2], "reduction": 2}
    return ResNet(**(arguments | options))


def make_block(position, *, kind=BasicBlock, c_in=4, channels=8, stride=2, reduction=2):
    """A block whose every number is drawn, BatchNorm's running statistics too."""
    torch.manual_seed(0)
    layers = LayerFactory(reduction, position, True, 0.1, 1e-3)
    block = kind(c_in, channels, stride, layers)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return block


# --- counts ------------------------------------------------------


@pytest.mark.parametrize("name", CHECK_VALUES)
def test_preset_has_the_papers_counts(model_rows, name):
    trainable, non_trainable, mmac, layers = CHECK_VALUES[name]
    row = model_rows[name]
    assert row["trainable"] == trainable
    assert row["non_trainable"] == non_trainable
    assert row["total"] == trainable + non_trainable
    assert round(row["macs"] / 1e6, 1) == mmac
    assert row["layers"] == layers


@pytest.mark.parametrize("name", STAGES)
def test_vanilla_twin_lacks_exactly_the_se_layers(model_rows, name):
    se, vanilla = (model_rows[f"{kind}_resnet{name}"] for kind in ("se", "vanilla"))
    removed = sum(
        depth * (c * (c // 16) + c // 16 + (c // 16) * c + c)  # W₁, b₁, W₂, b₂
        for depth, c in zip(*STAGES[name], strict=True)
    )
    assert se["trainable"] - vanilla["trainable"] == removed
    for same in ("non_trainable", "layers"):
        assert se[same] == vanilla[same]


def test_every_preset_is_checked_and_the_headline_twin_is_the_papers(model_rows):
    assert set(CHECK_VALUES) < set(model_rows)
    for name in model_rows:
        stem = re.sub("^(vanilla|se|static|eca)_", "", name)
        assert {f"se_{stem}", f"vanilla_{stem}"} <= set(model_rows)
    headline = model_rows["vanilla_resnet80"]
    assert headline["trainable"] == 4_581_898
    assert round(headline["macs"] / 1e6, 1) == 728.6


def test_macs_of_a_tiny_network_by_hand():
    stem = 8 * 8 * 4 * 3 * 9
    first = 2 * 8 * 8 * 4 * 4 * 9 + 2 * 4 * 2  # two convolutions, SE
    second = 4 * 4 * 8 * (4 * 9 + 8 * 9 + 4 * 1) + 2 * 8 * 4  # and a projection
    head = 8 * 3
    net = tiny(num_classes=3)
    assert forward_macs(net, size=8) == stem + first + second + head
    stem = 7 * 7 * 24 * 3 * 4
    first = 7 * 7 * 4 * (24 * 9 + 4 * 9 + 24 * 1) + 2 * 4 * 2
    net = tiny(num_classes=3, whiten=True)
    assert forward_macs(net, size=8) == stem + first + second + head


def test_a_frozen_parameter_counts_as_non_trainable():
    net = tiny()
    before = parameter_counts(net)
    net.head.requires_grad_(False)
    moved = 8 * 10 + 10
    assert parameter_counts(net) == {
        "trainable": before["trainable"] - moved,
        "non_trainable": before["non_trainable"] + moved,
        "total": before["total"],
    }


# --- squeeze and excitation --------------------------------------


def se_by_hand(se, x):
    z = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])  # (B, C)
    hidden = (z @ se.squeeze.weight.T + se.squeeze.bias).clamp(min=0)
    gate = 1 / (1 + torch.exp(-(hidden @ se.excite.weight.T + se.excite.bias)))
    return torch.einsum("bchw,bc->bchw", x, gate)


def bn_by_hand(norm, x, training):
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, training, 0.1, 1e-3)


def block_by_hand(block, position, x, stride):
    """The block with SE written out for each position (Hu et al. 2018, Figure 5)."""
    modules = list(block.modules())
    convs = [m for m in modules if isinstance(m, nn.Conv2d)]  # 3×3, 3×3, projection
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
    [se] = [m for m in modules if isinstance(m, SqueezeExcite)]

    def conv_bn(i, x, stride, padding):
        weights = convs[i].weight, convs[i].bias
        x = F.conv2d(x, *weights, stride=stride, padding=padding)
        return bn_by_hand(norms[i], x, block.training)

    branch = se_by_hand(se, x) if position == "pre" else x
    branch = conv_bn(0, branch, stride, 1).clamp(min=0)
    branch = conv_bn(1, branch, 1, 1)
    if position == "standard":
        branch = se_by_hand(se, branch)
    shortcut = conv_bn(2, x, stride, 0) if len(convs) == 3 else x
    if position == "identity":
        shortcut = se_by_hand(se, shortcut)
    y = (shortcut + branch).clamp(min=0)
    return se_by_hand(se, y) if position == "post" else y


def test_squeeze_excite_is_its_formula():
    torch.manual_seed(0)
    se, x = SqueezeExcite(6, 3), torch.randn(2, 6, 5, 3)
    assert se.squeeze.out_features == 2
    torch.testing.assert_close(se(x), se_by_hand(se, x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("c_in", "stride"), [(8, 1), (4, 1), (8, 2), (4, 2)])
@pytest.mark.parametrize("position", SE_POSITIONS)
def test_block_is_its_position_by_hand(position, c_in, stride, training):
    block = make_block(position, c_in=c_in, stride=stride).train(training)
    x = torch.randn(3, c_in, 7, 6)
    before = x.clone()
    expected = block_by_hand(block, position, x, stride)
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, before)  # the ReLUs in place do not reach the input


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("position", SE_POSITIONS)
def test_pooling_block_is_its_position_by_hand(position, training):
    block = make_block(position, kind=PoolBlock, c_in=4).train(training)
    x = torch.randn(3, 4, 7, 6)
    conv, _, norm, _ = block.down
    weights = conv.weight, conv.bias
    h = F.max_pool2d(F.conv2d(x, *weights, padding=1), 2)
    h = bn_by_hand(norm, h, training).clamp(min=0)  # (3, 8, 3, 3)
    places = block.branch[3], block.branch[0], block.after, block.shortcut
    gate = dict(zip(("standard", "pre", "post", "identity"), places, strict=True))
    assert [p for p, m in gate.items() if isinstance(m, SqueezeExcite)] == [position]

    def se(at, x):
        return se_by_hand(gate[at], x) if at == position else x

    y = F.conv2d(se("pre", h), block.branch[1].weight, block.branch[1].bias, padding=1)
    y = se("standard", bn_by_hand(block.branch[2], y, training))
    expected = se("post", (se("identity", h) + y).clamp(min=0))
    torch.testing.assert_close(block(x), expected)


def test_pooling_blocks_stand_where_a_stage_has_a_stride():
    net = tiny(depths=[1, 2], downsample="pool")
    kinds = [type(block) for block in net.blocks]
    assert kinds == [BasicBlock, PoolBlock, BasicBlock]
    assert net.num_layers == tiny(depths=[1, 2]).num_layers == 8


@pytest.mark.parametrize("position", SE_POSITIONS)
def test_without_reduction_there_is_no_se(position):
    net = tiny(reduction=None, se_position=position)
    assert not any(isinstance(m, SqueezeExcite) for m in net.modules())
    with_se = tiny(se_position=position).modules()
    assert sum(isinstance(m, SqueezeExcite) for m in with_se) == 2


# --- whitening ---------------------------------------------------


def test_whitened_patches_have_unit_covariance():
    torch.manual_seed(0)
    mixed = torch.einsum("cd,ndhw->nchw", torch.randn(3, 3), torch.randn(9, 3, 20, 19))
    images = 10 * F.avg_pool2d(mixed, 2, stride=1)  # neighbours are correlated
    stem = WhiteningStem(3)
    stem.fit(images)
    y = F.conv2d(images, stem.conv.weight)  # (N, 24, H − 1, W − 1)
    y = y.transpose(0, 1).flatten(1)
    covariance = y[:12] @ y[:12].T / y.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.05, rtol=0)
    torch.testing.assert_close(y[12:], -y[:12])


def test_whitening_filters_are_kept_and_their_biases_trained():
    torch.manual_seed(0)
    stem = tiny(whiten=True).stem
    x = torch.randn(2, 3, 6, 5)
    expected = F.conv2d(x, stem.conv.weight, stem.conv.bias).clamp(min=0)
    assert stem(x).shape == (2, 24, 5, 4)
    torch.testing.assert_close(stem(x), expected)
    assert [n for n, p in stem.named_parameters() if p.requires_grad] == ["conv.bias"]


# --- the whole network -------------------------------------------


@pytest.mark.parametrize("size", [(33, 31), (17, 17), (8, 5), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_odd_sizes_divide_upwards(size, stride):
    net = tiny(strides=[1, stride], num_classes=7).eval()
    x = torch.randn(2, 3, *size)
    expected = (2, 8, *(math.ceil(side / stride) for side in size))
    assert net.blocks(net.stem(x)).shape == expected
    assert net(x).shape == (2, 7)


def test_head_is_linear_in_the_mean_over_positions():
    net = tiny().eval()
    x = torch.randn(2, 3, 9, 7)
    pooled = net.blocks(net.stem(x)).flatten(2).mean(2)
    expected = pooled @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(x), expected)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    net, plain = tiny(dropout=0.5), tiny()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(
        plain(x), plain(x)
    )  # in training, BatchNorm alone repeats itself
    assert not torch.equal(net(x), net(x))
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), plain.eval()(x))


def test_dropout_zeroes_a_feature_or_scales_it():
    net, recorded = tiny(dropout=0.2, widths=[4, 100]), []
    net.head.register_forward_pre_hook(lambda _, inputs: recorded.extend(inputs))
    x = torch.randn(2, 3, 8, 8)
    net(x)
    net.dropout.eval()
    net(x)
    dropped, whole = recorded
    assert torch.isclose(dropped, whole / 0.8).logical_or(dropped == 0).all()


def test_stochastic_depth_keeps_a_branchs_expectation():
    torch.manual_seed(0)
    net = tiny(depths=[2, 2], drop_path=0.6)
    dropped = [m for m in net.modules() if isinstance(m, StochasticDepth)]
    assert [m.p for m in dropped] == pytest.approx([0.15, 0.3, 0.45, 0.6])
    branch = net.blocks[3].branch.eval()
    x = torch.randn(1, 8, 4, 4)
    whole = branch(x)
    dropped[3].train()
    n = 4000
    result = branch(x.expand(n, -1, -1, -1))
    passed = result.flatten(1).abs().sum(1) > 0
    # 1 − p = 0.4 of the images have it, over 0.4; five deviations
    assert abs(passed.float().mean() - 0.4) < 5 * (0.4 * 0.6 / n) ** 0.5
    torch.testing.assert_close(result[passed], (whole / 0.4).expand_as(result[passed]))
    assert not result[~passed].any()


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_with_zero_init_a_block_begins_as_its_shortcut(downsample):
    net = tiny(zero_init=True, downsample=downsample)
    x = torch.randn(2, 4, 8, 8).relu()
    torch.testing.assert_close(net.blocks[0](x), x)
    scales = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(not scale.any() for scale in scales) == len(net.blocks)
    with pytest.raises(UserError, match=r"zero_init: .* bn_scale=false"):
        tiny(zero_init=True, bn_scale=False)


def test_batch_norm_arguments_reach_every_layer():
    net = tiny(bn_momentum=0.01, bn_eps=1e-3)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 2 * 2 + 1  # stem, two a block, projection
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-3)}
    x = torch.randn(4, 3, 8, 8)
    net(x)  # the momentum is the weight of the new batch
    mean = net.stem[0](x).mean(dim=(0, 2, 3))
    torch.testing.assert_close(net.stem[1].running_mean, 0.01 * mean)


@pytest.mark.parametrize("bias", [True, False])
def test_conv_bias_is_all_or_none(bias):
    convs = [m for m in tiny(conv_bias=bias).modules() if isinstance(m, nn.Conv2d)]
    assert {m.bias is not None for m in convs} == {bias}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduction": 5}, "reduction: expected 1..4 .* got 5"),
        ({"reduction": 0}, "reduction: expected an integer >= 1 .* got 0"),
        ({"se_position": "standart"}, "'standart'; did you mean 'standard'"),
        ({"downsample": "pol"}, "'pol'; did you mean 'pool'"),
        ({"depths": [1]}, "depths, widths, strides: .* 1, 2 and 2"),
        ({"depths": [], "widths": [], "strides": []}, "got 0, 0 and 0"),
        ({"depths": [1, 0]}, r"depths\[1\]: expected an integer 1\.\.1000, got 0"),
        ({"widths": [-4, 8]}, r"widths\[0\]: .* got -4"),
        ({"strides": [1, 0]}, r"strides\[1\]: .* got 0"),
        ({"dropout": 1.0}, "dropout: .* got 1.0"),
        ({"dropout": -0.1}, "dropout: .* got -0.1"),
        ({"drop_path": 1.0}, "drop_path: .* got 1.0"),
        ({"bn_momentum": 0.0}, "bn_momentum: .* got 0.0"),
        ({"bn_momentum": 1.1}, "bn_momentum: .* got 1.1"),
        ({"bn_eps": 0.0}, "bn_eps: .* got 0.0"),
        ({"num_classes": 1}, "num_classes: .* got 1"),
    ],
)
def test_value_out_of_range_is_named(options, words):
    with pytest.raises(UserError, match=words):
        tiny(**options)


def test_squeeze_excite_refuses_a_reduction_above_its_width():
    with pytest.raises(UserError, match=r"reduction: expected 1\.\.8 .* got 16"):
        SqueezeExcite(8, 16)


@pytest.mark.parametrize("kind", [BasicBlock, PoolBlock])
def test_a_plain_block_is_its_branch_alone(kind):
    layers = LayerFactory(2, "standard", True, 0.1, 1e-3, True, "gelu", False, 2.0)
    block, x = kind(4, 8, 2, layers).eval(), torch.randn(3, 4, 8, 6)
    h = block.down(x) if kind is PoolBlock else x
    torch.testing.assert_close(block(x), F.gelu(block.branch(h)))
    assert not any("shortcut" in name for name, _ in block.named_parameters())
    assert not any(isinstance(m, nn.ReLU) for m in block.modules())


def test_the_gates_scale_multiplies_what_a_block_lets_through():
    one, two = SqueezeExcite(6, 3), SqueezeExcite(6, 3, 2.0)
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 6, 5, 3)
    torch.testing.assert_close(two(x), 2 * one(x))
    torch.testing.assert_close(two.gate(x), 2 * one.gate(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_path": 0.2}, r"drop_path: expected 0 with residual=false.* got 0.2"),
        ({"zero_init": True}, r"zero_init: expected false with residual=false"),
        ({"se_position": "identity"}, r"se_position: expected another .* identity"),
    ],
)
def test_what_needs_a_shortcut_is_refused_without(options, message):
    with pytest.raises(UserError, match=message):
        tiny(residual=False, **options)


def test_without_se_and_shortcuts_it_is_airbench_s_network():
    """The same weights, the same logits as experiments/speedrun/reference.py."""
    path = Path(__file__).parents[2] / "experiments/speedrun/reference.py"
    reference = runpy.run_path(str(path))["Reference"]().eval()
    net = ResNet(
        [1, 1, 1], [64, 256, 256], [2, 2, 2], None, conv_bias=False, bn_momentum=0.4,
        bn_eps=1e-12, bn_scale=False, whiten=True, downsample="pool", pooling="max",
        logit_scale=1 / 9, activation="gelu", residual=False,
    ).eval()  # fmt: skip
    nn.init.zeros_(net.head.bias)  # the reference has none
    for tensor, other in zip(net.parameters(), reference.parameters(), strict=False):
        tensor.data.copy_(other.data)
    for tensor, other in zip(net.buffers(), reference.buffers(), strict=True):
        tensor.copy_(
            torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor
        )
        other.copy_(tensor)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(images), reference(images), atol=1e-5, rtol=1e-4)
