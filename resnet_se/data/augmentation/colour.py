"""Colour jitter: brightness, contrast and saturation, each image with its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # columns of `JitterDraws.factors`
# Luma weights of torchvision's `rgb_to_grayscale` (ITU-R 601-2).
LUMA = (0.2989, 0.587, 0.114)


class JitterDraws(NamedTuple):
    """Parameters of `jitter_`, one row an image."""

    factors: Tensor  # (B, 3) of brightness, contrast, saturation; 1 changes nothing
    order: Tensor  # (B, 3) int64, the columns of `factors` in the order of their use


def grey(images: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of float (B, 3, H, W)."""
    r, g, b = images.split(1, dim=1)
    return (r * LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def jitter_(images: Tensor, draws: JitterDraws) -> None:
    """Change float (B, 3, H, W) of 0..255, in place.

    Each step blends an image with another: black, its mean grey, its grey.
    """
    for step in draws.order.view(-1, 3, 1, 1, 1).unbind(1):  # (B, 1, 1, 1)
        factor = draws.factors.gather(1, step.view(-1, 1)).view_as(step)
        luma = grey(images)  # (B, 1, H, W)
        mean = luma.mean(dim=(2, 3), keepdim=True) * (step == CONTRAST)
        other = torch.where(step == SATURATION, luma, mean)
        images.mul_(factor).add_(other * (1 - factor)).clamp_(0, 255)
