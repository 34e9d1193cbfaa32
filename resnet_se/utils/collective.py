"""What the ranks of a run share: sums, rows in order, BatchNorm's statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors


def gathered(part: Tensor) -> Tensor:
    """All ranks' rows in the images' order; rank r has images r, r + world size, …"""
    if not (dist.is_available() and dist.is_initialized()):
        return part
    parts = gather_all_tensors(part)  # of lengths that may differ by one
    whole = part.new_empty((sum(map(len, parts)), *part.shape[1:]))
    for rank, rows in enumerate(parts):
        whole[rank :: len(parts)] = rows
    return whole


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


class _Sum(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return summed(values.clone())

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return summed(grad.clone())


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks, on a CPU; torch's own wants a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        values = x.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = [values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3)), count]
        total = _Sum.apply(torch.cat(sums))  # (2 C + 1,)
        n = total[-1]
        mean, square = (total[:-1] / n).chunk(2)  # (C,)
        var = square - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.momentum  # None: the mean over all batches so far
            if share is None:
                share = 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * n / (n - 1), share)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def sync_batchnorm(net: nn.Module) -> None:
    """Puts a `SyncBatchNorm2d` of the same tensors in place of each BatchNorm2d."""
    for parent in net.modules():
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                synced = SyncBatchNorm2d(
                    child.num_features, child.eps, child.momentum, child.affine
                )
                for tensors in ("_parameters", "_buffers"):
                    getattr(synced, tensors).update(getattr(child, tensors))
                setattr(parent, name, synced)
