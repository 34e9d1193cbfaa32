"""Channel attention: gates that multiply the channels of a feature map.

* `se`, Squeeze-and-Excitation: Hu et al. 2018, arXiv 1709.01507, §3
* `static`, a learned vector in place of the pooled features, so that the gate is a
  constant of each channel in inference: Zhong et al. 2024, arXiv 2304.06345
* `eca`, Efficient Channel Attention: Wang et al. 2020, arXiv 1910.03151, §3

Axes: B images, C channels, H × W places.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_se.utils.errors import UserError

Attention = Literal["none", "se", "static", "eca"]
ATTENTIONS = get_args(Attention)


class ChannelGate(nn.Module, ABC):
    """Rescale each channel: x ← x · s g, the gate g in (0, 1).

    Args:
        scale: s, 1 in the papers; with 2 a gate that begins at a half is about one.
    """

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    @abstractmethod
    def relative_gate(self, x: Tensor) -> Tensor:
        """Return g of a feature map (B, C, H, W): (B, C), in (0, 1)."""

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C), in (0, s)."""
        gate = self.relative_gate(x)
        return gate if self.scale == 1 else gate * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x * self.gate(x)[:, :, None, None]


class SqueezeExcite(ChannelGate):
    """Gate each channel by the means of all of them (Hu et al. 2018, §3).

    z = mean over H, W of x;  g = σ(W₂ relu(W₁ z)), W₁: C → C/reduction, W₂: back.

    Raises:
        UserError: the reduction is not in 1..C.
    """

    def __init__(self, channels: int, reduction: int, scale: float = 1.0):
        super().__init__(scale)
        if not 1 <= reduction <= channels:
            raise UserError(
                f"reduction: expected 1..{channels} (the block's width), "
                f"got {reduction}"
            )
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def relative_gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C)."""
        return self.excitation(channel_means(x))

    def excitation(self, z: Tensor) -> Tensor:
        """Return σ(W₂ relu(W₁ z)) of (B, C), as (B, C)."""
        return self.excite(F.relu(self.squeeze(z))).sigmoid()


class StaticExcite(SqueezeExcite):
    """The layers of `SqueezeExcite`, fed by a learned vector (Zhong et al. 2024).

    g = σ(W₂ relu(W₁ v)) is the same for all images, so that a trained one folds into
    the convolution beside it (`fusion`).
    """

    START = 0.1  # of every entry of v: no random number, so that W₁ and W₂ are SE's

    def __init__(self, channels: int, reduction: int, scale: float = 1.0):
        super().__init__(channels, reduction, scale)
        self.vector = nn.Parameter(torch.full((channels,), self.START))

    def constant_gate(self) -> Tensor:
        """Return the gate of every image (C,), in (0, s)."""
        return self.scale * self.excitation(self.vector[None])[0]

    def relative_gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C), a row for all images."""
        return self.excitation(self.vector[None]).expand(len(x), -1)


class EfficientChannelAttention(ChannelGate):
    """Gate each channel by the means of its neighbours (Wang et al. 2020, §3).

    z = mean over H, W of x;  g = σ(w ∗ z), one filter w of `eca_kernel(C)` weights for
    all channels, zeros beyond the first and the last.
    """

    def __init__(self, channels: int, scale: float = 1.0):
        super().__init__(scale)
        size = eca_kernel(channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def relative_gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C)."""
        z = channel_means(x)[:, None]  # (B, 1, C)
        return self.conv(z)[:, 0].sigmoid()  # (B, C)


def eca_kernel(channels: int) -> int:
    """Return ⌊(log₂ C + 1) / 2⌋, or one more where that is even (equation 12)."""
    return int((math.log2(channels) + 1) / 2) | 1


def channel_means(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C)."""
    # The gradient of `x.mean((2, 3))` is not channels-last as x's others are, and
    # the mean of a bf16 tensor copies it to float32 on a CPU; a sum accumulates in
    # float32 without the copy (experiments/benchmark).
    return x.permute(0, 2, 3, 1).sum(dim=(1, 2)) / x[0, 0].numel()


def channel_gate(
    attention: str, channels: int, reduction: int | None, scale: float = 1.0
) -> nn.Module:
    """Return the gate of this name (`ATTENTIONS`), the identity for `none`.

    Args:
        reduction: of `se` and `static`, which need one.

    Raises:
        UserError: the reduction is not in 1..channels.
    """
    if attention == "none":
        return nn.Identity()
    if attention == "eca":
        return EfficientChannelAttention(channels, scale)
    kind = StaticExcite if attention == "static" else SqueezeExcite
    assert reduction is not None
    return kind(channels, reduction, scale)
