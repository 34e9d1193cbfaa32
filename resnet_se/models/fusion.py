"""Folding for inference: BatchNorm and constant gates become weights of convolutions.

In eval mode BatchNorm is an affine map of each channel, y = s x + t.  After a
convolution it is one with other weights (Jacob et al. 2018, arXiv 1712.05877, §3.2);
past a max-pooling in between as well, where s > 0.  A static gate, and an SE gate set
to its mean over images, is such a map without t: of the convolution before it or, there
being none, of the one after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnet_se.models.attention import StaticExcite
from resnet_se.models.se_gates import gate_values, with_modules
from resnet_se.utils.errors import UserError


class ChannelScale(nn.Module):
    """Multiplies each channel by a constant, such as the mean of a gate."""

    gate: Tensor

    def __init__(self, gate: Tensor):
        super().__init__()
        self.register_buffer("gate", gate)  # (C,)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x * self.gate[:, None, None]


def mean_gates(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return {name of an SE block: mean of its gate over all images (C,)}.

    Args:
        batches: normalised images (B, 3, H, W) each.

    Raises:
        UserError: the network has no SE blocks.
    """
    values = gate_values(net, batches)
    return {name: gate.double().mean(0).float() for name, gate in values.items()}


def with_mean_gates(net: nn.Module, gates: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy whose SE blocks, by name, multiply by constants (C,)."""
    return with_modules(net, {name: ChannelScale(gate) for name, gate in gates.items()})


@torch.no_grad()
def with_constant_gates(net: nn.Module) -> nn.Module:
    """Return a copy whose static gates multiply by the constants that they are."""
    gates = {
        name: ChannelScale(module.constant_gate())
        for name, module in net.named_modules()
        if isinstance(module, StaticExcite)
    }
    return with_modules(net, gates)


def fold_batchnorm(net: nn.Module) -> nn.Module:
    """Return a copy in eval mode with BatchNorm and constant gates folded away.

    The function is the same but for rounding.  Layers are folded that follow a
    convolution in an `nn.Sequential`, and constant gates that precede one; of the
    others BatchNorm stays and a gate becomes a `ChannelScale`.

    Raises:
        UserError: there is nothing to fold.
    """
    static = sum(isinstance(module, StaticExcite) for module in net.modules())
    net = with_constant_gates(net).eval()
    sequences = [m for m in net.modules() if isinstance(m, nn.Sequential)]
    if not static + sum([_fold(sequence) for sequence in sequences]):
        raise UserError(
            "fold: no BatchNorm follows a convolution in an nn.Sequential here"
        )
    return net


@torch.no_grad()
def _fold(sequence: nn.Sequential) -> int:
    """Fold the layers of one sequence in place and return their number."""
    count = 0
    conv: tuple[str, nn.Conv2d] | None = None  # the last one, with nothing else since
    pooled = False
    for name, module in list(sequence.named_children()):
        if isinstance(module, nn.Conv2d):
            conv, pooled = (name, module), False
        elif isinstance(module, nn.MaxPool2d) and conv:
            pooled = True
        elif isinstance(module, nn.BatchNorm2d) and conv:
            if pooled and module.affine and not (module.weight > 0).all():
                conv = None
                continue
            conv = conv[0], fuse_conv_bn_eval(conv[1], module)
            sequence.set_submodule(conv[0], conv[1])
        elif isinstance(module, ChannelScale) and conv:  # gates are positive
            conv[1].weight.mul_(module.gate[:, None, None, None])
            if conv[1].bias is not None:
                conv[1].bias.mul_(module.gate)
        elif not isinstance(module, nn.Identity):
            conv = None
        if conv and isinstance(module, nn.BatchNorm2d | ChannelScale):
            sequence.set_submodule(name, nn.Identity())
            count += 1
    return count + _fold_forwards(sequence)


def _fold_forwards(sequence: nn.Sequential) -> int:
    """Fold constant gates into the convolution right after them; return their number.

    Padding with zeros does not hinder it: zero times a gate is zero.
    """
    count = 0
    scale: tuple[str, ChannelScale] | None = None
    for name, module in list(sequence.named_children()):
        if isinstance(module, nn.Conv2d) and module.groups == 1 and scale:
            module.weight.mul_(scale[1].gate[None, :, None, None])
            sequence.set_submodule(scale[0], nn.Identity())
            count += 1
        if not isinstance(module, nn.Identity):
            scale = (name, module) if isinstance(module, ChannelScale) else None
    return count
