"""What a network has and costs: parameters, multiply-accumulates, layers."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameter_counts(net: nn.Module) -> dict[str, int]:
    """Parameters as Keras counts them: {trainable, non_trainable, total}.

    The non-trainable ones are BatchNorm's running means and variances; the integer
    counter that PyTorch keeps beside them is none.
    """
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    buffers = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    non_trainable = frozen + buffers
    return {
        "trainable": trainable,
        "non_trainable": non_trainable,
        "total": trainable + non_trainable,
    }


@torch.no_grad()
def forward_macs(net: nn.Module, size: int = 32, in_channels: int = 3) -> int:
    """Multiply-accumulates of one image's forward pass: convolutions, linear layers.

    Counted from the operators that run, on the `meta` device: nothing is computed.
    """
    shadow = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, in_channels, size, size, device="meta"))
    return counter.get_total_flops() // 2  # a multiply and an add are two FLOPs


def network_summary(net: nn.Module, size: int = 32) -> dict[str, int]:
    """The `model` field of `result.json`: counts, MACs, weighted layers.

    Layers are those of the longest path, where the network says so (`num_layers`); of
    any other network all convolutions and linear layers.
    """
    weighted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    layers = sum(isinstance(module, weighted) for module in net.modules())
    return {
        **parameter_counts(net),
        "macs": forward_macs(net, size),
        "layers": getattr(net, "num_layers", layers),
    }
