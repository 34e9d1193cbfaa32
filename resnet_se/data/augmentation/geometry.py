"""Geometry: crop and flip, which move whole pixels, and the affine map between them.

Pure functions of a batch and of parameters drawn for each of its images.  Everything
stays on the images' device and nothing waits for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AffineDraws(NamedTuple):
    """Parameters of `resample`, one row an image."""

    angle: Tensor  # (B,) degrees
    shear: Tensor  # (B,) degrees along x
    scale: Tensor  # (B,) factors
    shift: Tensor  # (B, 2) pixels down and to the right


def crop_flip(
    images: Tensor, origin: Tensor | None, padding: int, mirror: Tensor | None
) -> Tensor:
    """Return a crop of each reflection-padded image, mirrored where asked.

    Args:
        images: (B, C, H, W) of any dtype, of which the result is as well.
        origin: (B, 2) int64, y and x of the crop in the padded image, 0..2·padding;
            None where there is no padding.
        mirror: (B,) bool; None mirrors nothing.
    """
    b, c, h, w = images.shape
    y, x = (0, 0) if origin is None else origin.unsqueeze(2).unbind(1)  # (B, 1)
    rows = _reflected(y, h, padding, images.device).expand(b, h)
    columns = _reflected(x, w, padding, images.device).expand(b, w)
    if mirror is not None:
        columns = torch.where(mirror[:, None], columns.flip(1), columns)
    # One gather for crop and flip; its index is the same for all channels.
    index = (rows[:, :, None] * w + columns[:, None, :]).view(b, 1, h * w)
    pixels = images.reshape(b, c, h * w).gather(2, index.expand(b, c, h * w))
    return pixels.view(b, c, h, w)


def _reflected(
    start: Tensor | int, n: int, padding: int, device: torch.device
) -> Tensor:
    """Return which of n pixels stand in a crop that begins `start` into the padding."""
    i = (torch.arange(-padding, n - padding, device=device) + start).abs()
    return (n - 1) - ((n - 1) - i).abs()


def resample(images: Tensor, draws: AffineDraws, mirror: Tensor | None) -> Tensor:
    """Shear, scale, rotate, shift and flip float (B, C, H, W), in one reading.

    The map and its order are those of torchvision's `affine`, about the centre and
    black outside; the flip (`mirror`, (B,) bool) comes last.
    """
    h, w = images.shape[-2:]
    angle, tan = torch.deg2rad(draws.angle), torch.deg2rad(draws.shear).tan()
    cos, sin = angle.cos(), angle.sin()
    # Pixels from the centre of the result, before its shift and flip.
    x = torch.arange(w, device=images.device) - (w - 1) / 2  # (W,)
    y = torch.arange(h, device=images.device) - (h - 1) / 2  # (H,)
    if mirror is not None:
        x = torch.where(mirror[:, None], -x, x)
    x, y = x - draws.shift[:, 1:], y - draws.shift[:, :1]  # (B, W), (B, H)
    # The inverse map's columns; grid_sample counts in half sides.  No matrix product:
    # TF32 would leave the coordinates ten bits.
    unit = 2 / draws.scale.unsqueeze(1)
    per_x = unit * torch.stack([(cos - sin * tan) / w, -sin / h], dim=1)  # (B, 2)
    per_y = unit * torch.stack([(cos * tan + sin) / w, cos / h], dim=1)  # (B, 2)
    grid = (per_y[:, :, None] * y[:, None, :])[:, :, :, None] + (
        per_x[:, :, None] * x[:, None, :]
    )[:, :, None, :]  # (B, 2, H, W): as planes, which the CPU reads fastest
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)
