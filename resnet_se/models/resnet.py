"""Residual networks with Squeeze-and-Excitation for small images.

* Residual network, CIFAR stem: He et al. 2016, arXiv 1512.03385, §4.2
* Last scales that begin at zero: Goyal et al. 2017, arXiv 1706.02677, §5.1

One class, `ResNet`, is the whole family; the presets are `conf/model/*.yaml`.  The
paper reproduced here counts as Keras does: every convolution and both SE layers have a
bias, and the BatchNorm statistics are its "non-trainable parameters" (see
`complexity.parameter_counts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from resnet_se.models.attention import Attention
from resnet_se.models.layers import (
    BasicBlock,
    LayerFactory,
    PoolBlock,
    SEPosition,
    WhiteningStem,
)
from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import Count, Positive, validated

POOLING: dict[str, Callable[..., Tensor]] = {"avg": torch.mean, "max": torch.amax}


class ResNet(nn.Module):
    """Stem, stages of basic blocks, global average pooling, dropout, one linear layer.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage; the stem has `widths[0]`.
        strides: stride of each stage's first block.
        attention: each block's channel gate (`models.attention`); None: `se` where
            there is a reduction, else `none`.
        reduction: ratio r of the widths in a gate of `se` or `static`.
        se_position: where in a block the gate stands (`layers.ResidualBlock`).
        gate_scale: factor of the gates; with 2 they begin at about one.
        residual: whether blocks have shortcuts.
        activation: `relu`, `gelu` or `hardswish` (Howard et al. 2019, arXiv
            1905.02244), everywhere but within gates.
        conv_bias: biases on all convolutions (the paper has them; He et al. do not).
        bn_momentum: weight of the new batch in BatchNorm's running statistics;
            Keras's default 0.99 is 0.01 here.
        bn_eps: added to the variance; Keras's default is 1e-3.
        bn_scale: whether BatchNorm's scales are trained; else they stay one.
        whiten: a `WhiteningStem` in place of the 3×3 convolution with BatchNorm.
        downsample: by the `stride` of a convolution (`BasicBlock`), or by a max-`pool`
            after one (`PoolBlock`), in blocks with a stride.
        padding: of convolutions with a stride: `symmetric`, PyTorch's, or TensorFlow's
            `same`, below and right alone on an even side (`convolutions.SameConv2d`).
        init: `he`: He's normal for convolutions, PyTorch's own for the rest; `glorot`:
            Glorot's uniform and zero biases in every layer, Keras's default.
        identity_init: the first C_in filters of 3×3 convolutions begin as the identity,
            the others by PyTorch's uniform distribution; in place of `init=he`.
        pooling: of the last feature maps over H and W.
        logit_scale: factor of the last layer's output.
        dropout: probability of dropping a feature before the last layer.
        drop_path: probability p of dropping the last block's branch for an image in
            training; block l of L has p l/L (Huang et al.'s linear decay).
        zero_init: the last scale of each block begins at zero, the block as its
            shortcut; not without `bn_scale`.
        num_classes: number of logits K.

    Raises:
        UserError: an argument is out of its range, or contradicts another.
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
        activation: Literal["relu", "gelu", "hardswish"] = "relu",
        residual: bool = True,
        gate_scale: Positive = 1.0,
        padding: Literal["symmetric", "same"] = "symmetric",
        init: Literal["he", "glorot"] = "he",
        attention: Attention | None = None,
        num_classes: Annotated[int, Field(ge=2)] = 10,
        in_channels: Count = 3,
    ):
        super().__init__()
        _check_stages(depths, widths, strides)
        if zero_init and not bn_scale:
            reason = "bn_scale=false, whose scales stay as they begin"
            raise UserError(f"zero_init: expected false with {reason}, got true")
        if identity_init and init != "he":
            reason = f"init={init}, which sets the same weights"
            raise UserError(f"identity_init: expected false with {reason}, got true")
        if attention in ("se", "static") and reduction is None:
            expected = f"an integer >= 1 with attention={attention}"
            raise UserError(f"reduction: expected {expected}, got null")
        layers = LayerFactory(
            reduction, se_position, conv_bias, bn_momentum, bn_eps, bn_scale,
            activation, residual, gate_scale, padding, attention,
        )  # fmt: skip
        if not residual:
            identity = layers.attention != "none" and se_position == "identity"
            _check_plain(drop_path, zero_init, identity)
        self.depths = tuple(depths)
        self.num_layers = 1 + 2 * sum(depths) + 1  # stem, two a block, head
        self.stem: nn.Module
        if whiten:
            self.stem = WhiteningStem(in_channels, activation)
            c_in = self.stem.out_channels
        else:
            c_in = widths[0]
            conv, norm = layers.conv(in_channels, c_in), layers.norm(c_in)
            self.stem = nn.Sequential(conv, norm, layers.act())
        blocks: list[BasicBlock | PoolBlock] = []
        for depth, width, first in zip(depths, widths, strides, strict=True):
            for stride in [first] + [1] * (depth - 1):
                pooled = downsample == "pool" and stride > 1
                kind = PoolBlock if pooled else BasicBlock
                drop = drop_path * (len(blocks) + 1) / sum(depths)
                blocks.append(kind(c_in, width, stride, layers, drop))
                c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(c_in, num_classes)
        self.pooling = POOLING[pooling]
        self.logit_scale = logit_scale
        self.apply(_init_identity if identity_init else INITIALISERS[init])
        for block in blocks if zero_init else ():
            norms = [m for m in block.branch if isinstance(m, nn.BatchNorm2d)]
            nn.init.zeros_(norms[-1].weight)

    def init_from_images(self, images: Tensor) -> None:
        """Fit a whitening stem, if there is one, to normalised images (N, C, H, W)."""
        if isinstance(self.stem, WhiteningStem):
            self.stem.fit(images)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) → logits (B, K)."""
        x = self.stem(x)
        x = self.blocks(x)
        x = self.pooling(x, dim=(2, 3))  # (B, C)
        return self.head(self.dropout(x)) * self.logit_scale  # (B, K)


def _check_stages(*settings: Sequence[int]) -> None:
    lengths = [len(setting) for setting in settings]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise UserError(
            "depths, widths, strides: expected one entry each per stage, got "
            f"{lengths[0]}, {lengths[1]} and {lengths[2]}"
        )


def _check_plain(drop_path: float, zero_init: bool, identity_se: bool) -> None:
    """Raise UserError for a setting that needs shortcuts."""
    for wrong, name, expected, got in (
        (drop_path > 0, "drop_path", "0", drop_path),
        (zero_init, "zero_init", "false", "true"),
        (identity_se, "se_position", "another position", "identity"),
    ):
        if wrong:
            reason = "residual=false, which has no shortcuts"
            raise UserError(f"{name}: expected {expected} with {reason}, got {got}")


def _init_he(module: nn.Module) -> None:
    """He normal for convolutions (He et al. 2015, arXiv 1502.01852), zero biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_glorot(module: nn.Module) -> None:
    """Glorot uniform (Glorot & Bengio 2010) and zero biases, Keras's in every layer."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


INITIALISERS = {"he": _init_he, "glorot": _init_glorot}


def _init_identity(module: nn.Module) -> None:
    """Jordan 2024, arXiv 2404.00498, §3: the first C_in filters are the identity."""
    if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
        nn.init.dirac_(module.weight.data[: module.in_channels])
