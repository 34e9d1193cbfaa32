"""Layers of residual networks: blocks, stem, BatchNorm.

* Basic block, 3×3 convolutions: He et al. 2016, arXiv 1512.03385, §4.2
* Positions of a channel gate (`attention`): Hu et al. 2018, arXiv 1709.01507, §6.5
* Whitening stem, max-pooling after a convolution: Jordan 2024, arXiv 2404.00498, §3
* Stochastic depth: Huang et al. 2016, arXiv 1603.09382
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_se.models.attention import channel_gate
from resnet_se.models.convolutions import SameConv2d, SmallMapConv2d
from resnet_se.utils.distributed import is_connected

SEPosition = Literal["standard", "pre", "post", "identity"]
SE_POSITIONS = get_args(SEPosition)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": functools.partial(nn.ReLU, inplace=True),
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
}


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of a network's blocks from the settings that they share."""

    reduction: int | None
    se_position: str
    bias: bool
    bn_momentum: float
    bn_eps: float
    bn_scale: bool = True
    activation: str = "relu"
    residual: bool = True
    gate_scale: float = 1.0
    padding: str = "symmetric"
    attention: str | None = None  # None: `se` where there is a reduction

    def __post_init__(self) -> None:
        if self.attention is None:
            name = "none" if self.reduction is None else "se"
            object.__setattr__(self, "attention", name)

    def se(self, position: str, channels: int) -> nn.Module:
        """A channel gate where this is its position, else the identity."""
        if self.attention == "none" or self.se_position != position:
            return nn.Identity()
        assert self.attention is not None  # settled above
        return channel_gate(self.attention, channels, self.reduction, self.gate_scale)

    def act(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()

    def conv(self, c_in: int, c: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
        if self.padding == "same" and stride > 1:  # else it is the symmetric one
            return SameConv2d(c_in, c, kernel, stride, bias=self.bias)
        padding = kernel // 2
        return SmallMapConv2d(c_in, c, kernel, stride, padding, bias=self.bias)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        layer = nn.BatchNorm2d(channels, self.bn_eps, self.bn_momentum)
        layer.weight.requires_grad_(self.bn_scale)
        return layer

    def drop(self, p: float) -> list[nn.Module]:
        """Stochastic depth: an image's branch is 0 with probability p, else / (1 − p).

        No layer for p = 0, so that torchvision is imported by those alone who use it.
        """
        if not p:
            return []
        from torchvision.ops import StochasticDepth

        return [StochasticDepth(p, "row")]


class ResidualBlock(nn.Module):
    """act(shortcut(x) + branch(x)); without a shortcut He et al.'s plain block.

    The SE block stands where Hu et al. 2018, Figure 5 puts it: on the branch's output
    (`standard`), on the branch's input (`pre`), on the block's output after the
    activation (`post`) or on the shortcut (`identity`).
    """

    branch: nn.Sequential
    shortcut: nn.Module | None
    act: nn.Module
    after: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.shortcut is not None:
            y = self.shortcut(x) + y
        return self.after(self.act(y))


class BasicBlock(ResidualBlock):
    """A residual block with two 3×3 convolutions, the first of them with the stride.

    (B, C_in, H, W) → (B, C, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(
        self, c_in: int, c: int, stride: int, layers: LayerFactory, drop: float = 0
    ):
        super().__init__()
        conv, norm, se = layers.conv, layers.norm, layers.se
        self.branch = nn.Sequential(
            se("pre", c_in),
            conv(c_in, c, stride=stride),
            norm(c),
            layers.act(),
            conv(c, c),
            norm(c),
            se("standard", c),
            *layers.drop(drop),
        )
        # Made in every block, for the random numbers that recorded runs began with.
        projection = [conv(c_in, c, 1, stride), norm(c)]
        if stride == 1 and c_in == c:
            projection = []
        shortcut = nn.Sequential(*projection, se("identity", c))
        self.shortcut = shortcut if layers.residual else None
        self.act = layers.act()
        self.after = se("post", c)


class PoolBlock(ResidualBlock):
    """A 3×3 convolution, max-pooled, then a residual block with one 3×3 more.

    (B, C_in, H, W) → (B, C, ⌊H/stride⌋, ⌊W/stride⌋).  As many layers as `BasicBlock`,
    which computes its first convolution at a part of the places only; the SE block's
    positions are the same, about the second convolution.
    """

    def __init__(
        self, c_in: int, c: int, stride: int, layers: LayerFactory, drop: float = 0
    ):
        super().__init__()
        conv, norm, se = layers.conv, layers.norm, layers.se
        self.down = nn.Sequential(
            conv(c_in, c), nn.MaxPool2d(stride), norm(c), layers.act()
        )
        self.branch = nn.Sequential(
            se("pre", c),
            conv(c, c),
            norm(c),
            se("standard", c),
            *layers.drop(drop),
        )
        self.shortcut = se("identity", c) if layers.residual else None
        self.act = layers.act()
        self.after = se("post", c)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.down(x))


class WhiteningStem(nn.Module):
    """act(W p + b) of every 2×2 patch p, W fixed: whitening filters and negatives.

    Saves a short training the epochs in which a first layer finds such filters.  W is
    neither trained nor random: `fit` sets it from training images.
    """

    PATCH = 2
    EPS = 5e-4  # added to the variances, so that near-constant directions stay small

    def __init__(self, in_channels: int, activation: str = "relu"):
        super().__init__()
        half = in_channels * self.PATCH**2
        self.out_channels = 2 * half
        self.conv = nn.Conv2d(in_channels, 2 * half, self.PATCH)
        self.conv.weight.requires_grad_(False)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 8 C, H − 1, W − 1)."""
        return self.act(self.conv(x))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set W by normalised images (N, C, H, W), so that outputs are uncorrelated."""
        patches = F.unfold(images, self.PATCH)  # (N, 4 C, L)
        patches = patches.transpose(1, 2).flatten(0, 1).double()  # (N L, 4 C)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (axes / (variances + self.EPS).sqrt()).T  # a row each
        filters = filters.reshape(-1, *self.conv.weight.shape[1:])  # (4 C, C, 2, 2)
        self.conv.weight.copy_(torch.cat([filters, -filters]))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks on a CPU; torch's own needs a GPU."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        if not (self.training and is_connected()):
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce  # with its gradient

        values = x.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = [values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3)), count]
        total: Tensor = all_reduce(torch.cat(sums))  # (2 C + 1,)
        n = total[-1]
        mean, square = (total[:-1] / n).chunk(2)  # (C,)
        var = square - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            weight = self.momentum  # None: the mean of all batches so far
            if weight is None:
                weight = 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(var * n / (n - 1), weight)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def sync_batchnorm(net: nn.Module) -> None:
    """Make a `SyncBatchNorm2d` of each BatchNorm2d, in place."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # the same tensors and hooks
