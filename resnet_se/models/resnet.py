"""Residual networks with Squeeze-and-Excitation for small images.

* Residual network, 3×3 basic blocks, CIFAR stem: He et al. 2016, arXiv 1512.03385, §4.2
* Squeeze-and-Excitation and its positions: Hu et al. 2018, arXiv 1709.01507, §3, §6.5
* Whitening stem, max-pooling after a convolution: Jordan 2024, arXiv 2404.00498, §3
* Stochastic depth: Huang et al. 2016, arXiv 1603.09382
* Last scales that begin at zero: Goyal et al. 2017, arXiv 1706.02677, §5.1

One class, `ResNet`, is the whole family; the presets are `conf/model/*.yaml`.  The
paper reproduced here counts as Keras does: every convolution and both SE layers have a
bias, and the BatchNorm statistics are its "non-trainable parameters" (see
`counts.parameter_counts`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import Count, Positive, validated

SEPosition = Literal["standard", "pre", "post", "identity"]
SE_POSITIONS = get_args(SEPosition)
POOLING = {"avg": torch.mean, "max": torch.amax}
ACTIVATIONS = {"relu": functools.partial(nn.ReLU, inplace=True), "gelu": nn.GELU}


class SqueezeExcite(nn.Module):
    """Rescales each channel by a gate computed from all of them (Hu et al. 2018, §3).

    z = mean over H, W of x;  x ← x · s σ(W₂ relu(W₁ z)), W₁: C → C/reduction, W₂: back.
    s is 1 in the paper; with 2 a block begins as about the identity.
    """

    def __init__(self, channels: int, reduction: int, scale: float = 1.0):
        super().__init__()
        if not 1 <= reduction <= channels:
            raise UserError(
                f"reduction: expected 1..{channels} (the block's width), "
                f"got {reduction}"
            )
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)
        self.scale = scale

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C), in (0, s)."""
        # The gradient of `x.mean((2, 3))` is not channels-last, as x's others are, and
        # the mean of a bf16 tensor copies it to float32 on a CPU; a sum adds up in
        # float32 without the copy (experiments/benchmark).
        z = x.permute(0, 2, 3, 1).sum(dim=(1, 2)) / x[0, 0].numel()  # (B, C)
        gate = self.excite(F.relu(self.squeeze(z))).sigmoid()  # (B, C)
        return gate if self.scale == 1 else gate * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x * self.gate(x)[:, :, None, None]


@dataclass(frozen=True)
class Layers:
    """Makes a block's layers: what all blocks of a network have in common."""

    reduction: int | None
    se_position: str
    bias: bool
    bn: dict[str, float]
    bn_scale: bool = True
    activation: str = "relu"
    residual: bool = True
    gate_scale: float = 1.0

    def se(self, at: str, channels: int) -> nn.Module:
        """An SE block where this is its position, else nothing."""
        if self.reduction is None or self.se_position != at:
            return nn.Identity()
        return SqueezeExcite(channels, self.reduction, self.gate_scale)

    def act(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()

    def conv(self, c_in: int, c: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(c_in, c, kernel, stride, padding=kernel // 2, bias=self.bias)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        layer = nn.BatchNorm2d(channels, **self.bn)
        layer.weight.requires_grad_(self.bn_scale)
        return layer

    def drop(self, p: float) -> list[nn.Module]:
        """What zeroes an image's branch with probability p in training, else / (1 − p).

        torchvision's; imported for those who use it alone.
        """
        if not p:
            return []
        from torchvision.ops import StochasticDepth

        return [StochasticDepth(p, "row")]


class BasicBlock(nn.Module):
    """relu(shortcut(x) + branch(x)), the branch two 3×3 convolutions with BatchNorm.

    Without `residual` there is no shortcut (He et al.'s plain network).  The SE block
    stands where Hu et al. 2018, Figure 5 puts it: on the branch's output (`standard`),
    on the branch's input (`pre`), on the block's output after the activation (`post`)
    or on the shortcut (`identity`).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        layers: Layers,
        drop: float = 0,
    ):
        super().__init__()
        conv, norm, se = layers.conv, layers.norm, layers.se
        self.branch = nn.Sequential(
            se("pre", in_channels),
            conv(in_channels, channels, stride=stride),
            norm(channels),
            layers.act(),
            conv(channels, channels),
            norm(channels),
            se("standard", channels),
            *layers.drop(drop),
        )
        same_shape = stride == 1 and in_channels == channels
        projection = [conv(in_channels, channels, 1, stride), norm(channels)]
        self.shortcut = (
            nn.Sequential(*([] if same_shape else projection), se("identity", channels))
            if layers.residual
            else None
        )
        self.act = layers.act()
        self.after = se("post", channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""
        y = self.branch(x)
        if self.shortcut is not None:
            y = self.shortcut(x) + y
        return self.after(self.act(y))


class PoolBlock(nn.Module):
    """A 3×3 convolution, max-pooled; then relu(shortcut(x) + branch(x)), one 3×3 more.

    As many layers as a `BasicBlock`, which pays for its stride in what it sees; the SE
    block's positions are the same, about the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        layers: Layers,
        drop: float = 0,
    ):
        super().__init__()
        conv, norm, se = layers.conv, layers.norm, layers.se
        self.down = nn.Sequential(
            conv(in_channels, channels),
            nn.MaxPool2d(stride),
            norm(channels),
            layers.act(),
        )
        self.branch = nn.Sequential(
            se("pre", channels),
            conv(channels, channels),
            norm(channels),
            se("standard", channels),
            *layers.drop(drop),
        )
        self.shortcut = se("identity", channels) if layers.residual else None
        self.act = layers.act()
        self.after = se("post", channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C, ⌊H/stride⌋, ⌊W/stride⌋)."""
        x = self.down(x)
        y = self.branch(x)
        if self.shortcut is not None:
            y = self.shortcut(x) + y
        return self.after(self.act(y))


class WhiteningStem(nn.Module):
    """act(W p + b) of every 2×2 patch p, W fixed: whitening filters and negatives.

    Spares a short training the epochs in which a first layer finds such filters.  W is
    not trained and not random: `fit` sets it from training images.
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
        """Sets W from normalised images (N, C, H, W): its outputs are uncorrelated."""
        patches = F.unfold(images, self.PATCH)  # (N, 4 C, L)
        patches = patches.transpose(1, 2).flatten(0, 1).double()  # (N L, 4 C)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (axes / (variances + self.EPS).sqrt()).T  # a row each
        filters = filters.reshape(-1, *self.conv.weight.shape[1:])  # (4 C, C, 2, 2)
        self.conv.weight.copy_(torch.cat([filters, -filters]))


class ResNet(nn.Module):
    """Stem, stages of basic blocks, global average pooling, dropout, one linear layer.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage; the stem has `widths[0]`.
        strides: stride of each stage's first block.
        reduction: SE reduction ratio r of every block, or None for no SE.
        se_position: one of `SE_POSITIONS`.
        gate_scale: what the SE blocks' gates are multiplied with; 2 lets them begin
            at about one.
        residual: whether blocks have shortcuts.
        activation: `relu` or `gelu`, everywhere but within SE blocks.
        conv_bias: biases on all convolutions (the paper has them; He et al. do not).
        bn_momentum: weight of the new batch in BatchNorm's running statistics, in
            (0, 1], PyTorch's convention; Keras's default 0.99 is 0.01 here.
        bn_eps: added to the variance; Keras's default is 1e-3.
        bn_scale: whether BatchNorm's scales are trained, or stay one.
        whiten: a `WhiteningStem` in place of the 3×3 convolution with BatchNorm.
        downsample: how a block with a stride shrinks the image: by the `stride` of its
            convolutions (`BasicBlock`), or by a `pool` after the first (`PoolBlock`).
        identity_init: 3×3 convolutions begin by passing their input on in their first
            C_in filters, the rest being PyTorch's uniform draw; else He normal.
        pooling: of the last feature maps, over all places: `avg` or `max`.
        logit_scale: what the last layer's output is multiplied with.
        dropout: probability of dropping a feature before the last layer, in [0, 1).
        drop_path: probability p of dropping the last block's branch for an image in
            training, in [0, 1); block l of L has p l/L (Huang et al.'s linear decay).
        zero_init: the last scale of each block begins at zero, the block as its
            shortcut; not without `bn_scale`.
        num_classes: K, the number of logits.
        in_channels: channels of the input.

    Raises:
        UserError: an argument is out of its range.
    """

    @validated
    def __init__(
        self,
        depths: Sequence[Annotated[int, Field(ge=1, le=1000)]],
        widths: Sequence[Annotated[int, Field(ge=1, le=65536)]],
        strides: Sequence[Annotated[int, Field(ge=1, le=8)]],
        reduction: Count | None = 16,
        se_position: SEPosition = "standard",
        conv_bias: bool = True,
        bn_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1,
        bn_eps: Positive = 1e-5,
        bn_scale: bool = True,
        whiten: bool = False,
        downsample: Literal["stride", "pool"] = "stride",
        identity_init: bool = False,
        pooling: Literal["avg", "max"] = "avg",
        logit_scale: Positive = 1.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        zero_init: bool = False,
        activation: Literal["relu", "gelu"] = "relu",
        residual: bool = True,
        gate_scale: Positive = 1.0,
        num_classes: Annotated[int, Field(ge=2)] = 10,
        in_channels: Count = 3,
    ):
        super().__init__()
        lengths = (len(depths), len(widths), len(strides))
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise UserError(
                "depths, widths, strides: expected one entry each per stage, got "
                f"{lengths[0]}, {lengths[1]} and {lengths[2]}"
            )
        if zero_init and not bn_scale:
            raise UserError(
                "zero_init: expected false with bn_scale=false, whose scales stay as "
                "they begin, got true"
            )

        if not residual:
            _check_plain(drop_path, zero_init, reduction and se_position)

        bn = {"momentum": bn_momentum, "eps": bn_eps}
        layers = Layers(
            reduction, se_position, conv_bias, bn, bn_scale,
            activation, residual, gate_scale,
        )  # fmt: skip
        self.depths = tuple(depths)
        self.num_layers = 1 + 2 * sum(depths) + 1  # stem, two a block, head
        if whiten:
            self.stem = WhiteningStem(in_channels, activation)
            c_in = self.stem.out_channels
        else:
            self.stem = nn.Sequential(
                layers.conv(in_channels, widths[0]),
                layers.norm(widths[0]),
                layers.act(),
            )
            c_in = widths[0]
        blocks: list[nn.Module] = []
        for depth, width, first in zip(depths, widths, strides, strict=True):
            for stride in [first] + [1] * (depth - 1):
                pool = downsample == "pool" and stride > 1
                block = PoolBlock if pool else BasicBlock
                drop = drop_path * (len(blocks) + 1) / sum(depths)
                blocks.append(block(c_in, width, stride, layers, drop))
                c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(c_in, num_classes)
        self.pooling = POOLING[pooling]
        self.logit_scale = logit_scale
        self.apply(_init_identity if identity_init else _init_he)
        for block in blocks if zero_init else ():
            norms = [m for m in block.branch if isinstance(m, nn.BatchNorm2d)]
            nn.init.zeros_(norms[-1].weight)

    def init_from_images(self, images: Tensor) -> None:
        """Sets a whitening stem from normalised images (N, C, H, W); else nothing."""
        if isinstance(self.stem, WhiteningStem):
            self.stem.fit(images)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → logits (B, K)."""
        x = self.stem(x)
        x = self.blocks(x)
        x = self.pooling(x, dim=(2, 3))  # (B, C)
        return self.head(self.dropout(x)) * self.logit_scale  # (B, K)


def _check_plain(drop_path: float, zero_init: bool, se_position: str | None) -> None:
    """What makes no sense where a block has no shortcut, before it is built."""
    for wrong, name, expected, got in (
        (drop_path > 0, "drop_path", "0", drop_path),
        (zero_init, "zero_init", "false", "true"),
        (se_position == "identity", "se_position", "another position", "identity"),
    ):
        if wrong:
            raise UserError(
                f"{name}: expected {expected} with residual=false, which has no "
                f"shortcuts, got {got}"
            )


def _init_he(module: nn.Module) -> None:
    """He normal for convolutions (He et al. 2015, arXiv 1502.01852), zero biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_identity(module: nn.Module) -> None:
    """Jordan 2024, arXiv 2404.00498, §3: the first C_in filters are the identity."""
    if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
        nn.init.dirac_(module.weight.data[: module.in_channels])
