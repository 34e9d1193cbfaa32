"""A trained network made smaller for inference: BatchNorm and mean gates folded away.

In eval mode BatchNorm is an affine map of each channel, y = s x + t.  After a
convolution it is one with other weights (Jacob et al. 2018, arXiv 1712.05877, §3.2);
past a max-pooling in between as well, where s > 0.  An SE gate set to its mean over
images is such a map without t.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnet_se.models.se_gates import gate_values
from resnet_se.utils.errors import UserError


class ChannelScale(nn.Module):
    """Multiplies each channel by a constant: what is left of a gate set to its mean."""

    gate: Tensor

    def __init__(self, gate: Tensor):
        super().__init__()
        self.register_buffer("gate", gate)  # (C,)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x * self.gate[:, None, None]


def mean_gates(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """{name of an SE block: the mean of its gate over all images, (C,)}; see `gates`.

    Args:
        batches: normalised images (B, 3, H, W) each, one or more in all.

    Raises:
        UserError: the network has no SE blocks.
    """
    values = gate_values(net, batches)
    return {name: gate.double().mean(0).float() for name, gate in values.items()}


def with_mean_gates(net: nn.Module, gates: dict[str, Tensor]) -> nn.Module:
    """A copy whose SE blocks, by name, multiply by constants (C,)."""
    net = copy.deepcopy(net)
    for name, gate in gates.items():
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, ChannelScale(gate))
    return net


def fold_batchnorm(net: nn.Module) -> nn.Module:
    """A copy in eval mode without the BatchNorm and constant scales that can be folded.

    The same function but for rounding.  Folded is what follows a convolution in an
    `nn.Sequential`; the rest stays as it is.

    Raises:
        UserError: there is nothing to fold.
    """
    net = copy.deepcopy(net).eval()
    before = _count(net)
    for sequence in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        _fold(sequence)
    if _count(net) == before:
        raise UserError(
            "fold: no BatchNorm follows a convolution in an nn.Sequential here"
        )
    return net


def _count(net: nn.Module) -> int:
    kinds = (nn.BatchNorm2d, ChannelScale)
    return sum(isinstance(module, kinds) for module in net.modules())


def _fold(sequence: nn.Sequential) -> None:
    """In place: takes the foldable modules of one sequence into its convolutions."""
    conv: tuple[str, nn.Conv2d] | None = None  # the last, with nothing else since
    pooled = False
    for name, module in list(sequence.named_children()):
        if isinstance(module, nn.Conv2d):
            conv, pooled = (name, module), False
        elif isinstance(module, nn.MaxPool2d) and conv:
            pooled = True
        elif isinstance(module, nn.BatchNorm2d) and conv:
            if pooled and not _increasing(module):
                conv = None
                continue
            conv = conv[0], fuse_conv_bn_eval(conv[1], module)
            setattr(sequence, conv[0], conv[1])
            setattr(sequence, name, nn.Identity())
        elif isinstance(module, ChannelScale) and conv:  # gates are positive
            _scale(conv[1], module.gate)
            setattr(sequence, name, nn.Identity())
        elif not isinstance(module, nn.Identity):
            conv = None


def _increasing(norm: nn.BatchNorm2d) -> bool:
    return norm.weight is None or bool((norm.weight > 0).all())


@torch.no_grad()
def _scale(conv: nn.Conv2d, gate: Tensor) -> None:
    conv.weight.mul_(gate[:, None, None, None])
    if conv.bias is not None:
        conv.bias.mul_(gate)
