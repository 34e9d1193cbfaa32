"""The size of a network: parameters, multiply-accumulates, layers."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameter_counts(net: nn.Module) -> dict[str, int]:
    """Return parameters as Keras counts them: {trainable, non_trainable, total}.

    BatchNorm's running means and variances are non-trainable parameters; the integer
    counter that PyTorch keeps beside them is none.
    """
    buffers = [b for b in net.buffers() if b.is_floating_point()]
    total = sum(tensor.numel() for tensor in [*net.parameters(), *buffers])
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return {
        "trainable": trainable,
        "non_trainable": total - trainable,
        "total": total,
    }


@torch.no_grad()
def forward_macs(
    net: nn.Module, size: int | tuple[int, int] = 32, in_channels: int = 3
) -> int:
    """Return the multiply-accumulates of one image's forward pass.

    Those of convolutions and linear layers, counted on the `meta` device, where the
    operators run without computing.

    Args:
        size: height and width, or the side of a square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    shadow = copy.deepcopy(net).to("meta").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, in_channels, height, width, device="meta"))
    return counter.get_total_flops() // 2  # a multiply and an add are two FLOPs


def network_summary(net: nn.Module, size: int = 32) -> dict[str, int]:
    """Return the field `model` of `result.json`: parameters, MACs, weighted layers.

    A network's `num_layers`, those of its longest path, else the number of its
    convolutions and linear layers.
    """
    weighted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    layers = sum(isinstance(module, weighted) for module in net.modules())
    return {
        **parameter_counts(net),
        "macs": forward_macs(net, size),
        "layers": getattr(net, "num_layers", layers),
    }
