"""`gates`: watched, taken apart and replaced as by hand; Grad-CAM is CAM at the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_se.models.layers import SE_POSITIONS, BasicBlock
from resnet_se.models.resnet import ResNet
from resnet_se.models.se_gates import (
    class_means,
    gate_values,
    grad_cam,
    moment_shares,
    se_blocks,
    set_gates,
    stages,
)
from resnet_se.utils.errors import UserError


def network(**arguments: object) -> ResNet:
    """A small one in eval mode whose gates differ from image to image."""
    torch.manual_seed(0)
    shape = {"depths": [1, 2], "widths": [8, 16], "strides": [1, 2], "reduction": 4}
    net = ResNet(**(shape | arguments)).eval()
    for block in se_blocks(net).values() if net_has_se(arguments) else ():
        nn.init.normal_(block.squeeze.weight)
        nn.init.normal_(block.excite.weight)
    return net


def net_has_se(arguments: dict[str, object]) -> bool:
    return arguments.get("reduction", 4) is not None


IMAGES = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", SE_POSITIONS)
def test_stages_know_the_blocks_of_every_position(position):
    net = network(se_position=position)
    first, second = stages(net)
    assert [len(first.gates), len(second.gates)] == [1, 2]
    assert first.gates + second.gates == list(se_blocks(net))
    assert (first.last, second.last) == ("blocks.0", "blocks.2")
    assert isinstance(net.get_submodule(second.last), BasicBlock)


def by_hand(net: ResNet, x: Tensor, gates: dict[int, Tensor]) -> tuple[Tensor, list]:
    """The network of `network()` block by block, image by image: logits and gates."""
    rows, recorded = [], []
    for n in range(len(x)):
        y, of_image = net.stem(x[n : n + 1]), []
        for i, block in enumerate(net.blocks):
            branch = y
            for layer in block.branch[:-1]:
                branch = layer(branch)
            se = block.branch[-1]
            z = torch.stack([channel.mean() for channel in branch[0]])
            gate = 1 / (1 + torch.exp(-se.excite(se.squeeze(z).clamp_min(0))))
            of_image.append(gate)
            if i in gates:
                gate = gates[i][n] if gates[i].ndim == 2 else gates[i]
            y = (block.shortcut(y) + branch * gate.view(1, -1, 1, 1)).clamp_min(0)
        rows.append(net.head(y.mean(dim=(2, 3))))
        recorded.append(of_image)
    return torch.cat(rows), [
        torch.stack(block) for block in zip(*recorded, strict=True)
    ]


@torch.no_grad()
def test_gates_are_those_of_a_loop_by_hand_watched_and_replaced():
    net = network()
    names = list(se_blocks(net))
    plain, expected = by_hand(net, IMAGES, {})
    values = gate_values(net, IMAGES.split(4))
    for name, gate in zip(names, expected, strict=True):
        torch.testing.assert_close(values[name], gate)
    assert all(float(gate.std(0).max()) > 0.01 for gate in expected)
    # One by a constant, one by a row an image, one left alone.
    row, rows = expected[0].mean(0), expected[2].flip(0)
    changed, _ = by_hand(net, IMAGES, {0: row, 2: rows})
    with set_gates(net, {names[0]: row, names[2]: rows}):
        torch.testing.assert_close(net(IMAGES), changed)
    assert float((changed - plain).abs().max()) > 0.01
    torch.testing.assert_close(net(IMAGES), plain)  # nothing stays behind


def test_a_network_without_gates_is_told_so():
    net = network(reduction=None)
    with pytest.raises(UserError, match="has no SE blocks"):
        gate_values(net, [IMAGES])


# --- taken apart -------------------------------------------------


def test_shares_of_gates_made_by_hand():
    """0.5 everywhere, ±0.1 by channel, ±0.2 by class, ±0.05 by image."""
    by_channel = np.array([0.1, -0.1])
    labels = np.array([0, 0, 1, 1])
    by_class = np.array([0.2, -0.2])[labels][:, None]
    by_image = np.array([0.05, -0.05, 0.05, -0.05])[:, None]
    g = 0.5 + by_channel + by_class + by_image  # (4, 2)
    result = moment_shares([torch.tensor(g)], torch.tensor(labels), 2)
    total = (g**2).mean()
    expected = np.array([0.25, 0.01, 0.04, 0.0025]) / total
    np.testing.assert_allclose(result, expected)
    assert result.constant == pytest.approx((g.mean(0) ** 2).mean() / total)
    within = np.mean([g[labels == k].var(0, ddof=1) for k in (0, 1)])
    expected = 1 - within / g.var(0, ddof=1).mean()  # ε²
    assert result.between_classes(4, 2) == pytest.approx(expected)


@pytest.mark.parametrize("true", [0.0, 0.4])
def test_the_share_between_classes_does_not_depend_on_the_number_of_images(true):
    random = torch.Generator().manual_seed(0)
    classes = torch.randn(10, 400, generator=random)
    for n in (20, 200, 4000):
        labels = torch.arange(n) % 10
        noise = torch.randn(n, 400, generator=random)
        gates = true**0.5 * classes[labels] + (1 - true) ** 0.5 * noise
        share = moment_shares([gates], labels, 10).between_classes(n, 10)
        # Of ten classes the variance is that of nine degrees of freedom.
        expected = true * 0.9 / (1 - true * 0.1)
        assert share == pytest.approx(expected, abs=0.06)
    assert np.isnan(
        moment_shares([gates[:10]], labels[:10], 10).between_classes(10, 10)
    )


def test_shares_of_several_blocks_weigh_channels_alike():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    wide = torch.rand(60, 6, generator=random)
    narrow = torch.rand(60, 2, generator=random) / 4
    parts = [moment_shares([g], labels, 3) for g in (wide, narrow)]
    weights = np.array([float(g.double().square().sum()) for g in (wide, narrow)])
    mean = weights @ np.array(parts) / weights.sum()
    np.testing.assert_allclose(moment_shares([wide, narrow], labels, 3), mean)


def test_constant_gates_vary_with_nothing():
    result = moment_shares([torch.full((4, 3), 0.25)], torch.tensor([0, 1, 0, 1]), 2)
    assert result == (1.0, 0.0, 0.0, 0.0)
    assert np.isnan(result.between_classes(4, 2))


def test_the_mean_of_a_class_without_images_is_that_of_all():
    values = torch.tensor([[1.0], [2.0], [6.0]])
    means = class_means(values, torch.tensor([0, 0, 2]), 3)
    assert means.tolist() == [[1.5], [3.0], [6.0]]


# --- Grad-CAM ----------------------------------------------------


def test_grad_cam_before_pooling_and_a_linear_layer_is_cam():
    """Zhou et al. 2016: Σ_c w_kc A_c, w the last layer's row of the class."""
    net = network(logit_scale=0.5).requires_grad_(False)
    target = torch.arange(10) % 3
    with torch.inference_mode():  # as a `Pretrained` is used
        images, target = IMAGES.clone(), target.clone()
        maps = grad_cam(net, images, stages(net)[-1].last, target)
        a = net.blocks(net.stem(images))  # (B, C, 8, 8)
    cam = torch.einsum("bc,bchw->bhw", net.head.weight[target], a.clone()).relu()
    cam = F.interpolate(cam[:, None], [16, 16], mode="bilinear")[:, 0]
    cam = cam / cam.amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps, cam)
    assert float(maps.min()) >= 0
    assert float(maps.amax()) == pytest.approx(1)


def test_grad_cam_of_an_early_stage_is_finite_differences():
    net = network().double()
    images, target = IMAGES[:2].double(), torch.tensor([0, 1])
    layer = stages(net)[0].last
    with torch.no_grad():
        a = net.blocks[0](net.stem(images))  # (B, C, 16, 16)
        rest = nn.Sequential(*net.blocks[1:])

        def score(a: Tensor) -> Tensor:
            return net.head(rest(a).mean((2, 3))).gather(1, target[:, None])[:, 0]

        weights = torch.stack(  # of the mean: every place moved at once
            [
                (score(a + 1e-6 * one) - score(a - 1e-6 * one)) / 2e-6
                for one in torch.eye(8).double()[:, :, None, None]
            ],
            dim=1,
        )  # (B, C)
        cam = (weights[:, :, None, None] * a).sum(1).relu()
        cam = cam / cam.amax((1, 2), keepdim=True)
    torch.testing.assert_close(
        grad_cam(net, images, layer, target), cam, atol=1e-5, rtol=1e-5
    )
