"""Normalisation: the channels' mean and standard deviation, measured and applied."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,), in 0..1, of uint8 (N, C, H, W)."""
    # From the 256-bin histograms: exact, and without a float copy of the data set.
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(c.reshape(-1), minlength=256) for c in images.transpose(0, 1)]
    ).double()  # (C, 256)
    total = counts.sum(dim=1)
    mean = (counts @ levels) / total
    var = (counts @ levels**2) / total - mean**2
    return mean.float(), var.clamp_min(0).sqrt().float()


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (x/255 − mean) / std of uint8 (B, C, H, W), float32 of the same shape."""
    return normalise_(images.float(), mean, std)


def normalise_(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise float32 images of 0..255 in place, and return them."""
    scale, offset = 1 / (255 * std), mean / std
    return images.mul_(scale[:, None, None]).sub_(offset[:, None, None])
