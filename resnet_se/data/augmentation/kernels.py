"""What augmentation does to pixels, a batch at once: crop, affine map, jitter, holes.

Pure functions of images and of parameters that were drawn for each of them (`augment`
draws and orders them); everything stays on the images' device and nothing waits for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_se.data.augmentation.policies import GREY

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # columns of `Draws.jitter`


def window(
    images: Tensor, corner: Tensor | None, padding: int, mirror: Tensor | None
) -> Tensor:
    """Each image's window of its reflection-padded self, mirrored where asked."""
    b, c, h, w = images.shape
    y, x = (0, 0) if corner is None else corner.unsqueeze(2).unbind(1)  # (B, 1)
    rows = reflected(y, h, padding, images.device).expand(b, h)
    columns = reflected(x, w, padding, images.device).expand(b, w)
    if mirror is not None:
        columns = torch.where(mirror[:, None], columns.flip(1), columns)
    # One gather for crop and flip; its index is the same for all channels.
    index = (rows[:, :, None] * w + columns[:, None, :]).view(b, 1, h * w)
    found = images.reshape(b, c, h * w).gather(2, index.expand(b, c, h * w))
    return found.view(b, c, h, w)


def reflected(
    start: Tensor | int, n: int, padding: int, device: torch.device
) -> Tensor:
    """Which of n pixels each of a window's is; it starts at `start` of the padding."""
    i = (torch.arange(-padding, n - padding, device=device) + start).abs()
    return (n - 1) - ((n - 1) - i).abs()


def resample(
    images: Tensor,
    angle: Tensor,
    shear: Tensor,
    scale: Tensor,
    shift: Tensor,
    mirror: Tensor | None,
) -> Tensor:
    """Shear, scale, rotation, shift and flip of float (B, C, H, W), in one reading.

    The map and its order are those of torchvision's `affine`, about the centre and
    black outside; the flip comes last.

    Args:
        angle, shear: degrees (B,).
        scale: factors (B,).
        shift: pixels (B, 2), down and to the right.
        mirror: bool (B,).
    """
    h, w = images.shape[-2:]
    angle, tan = torch.deg2rad(angle), torch.deg2rad(shear).tan()
    cos, sin = angle.cos(), angle.sin()
    # Pixels from the centre of the result, before its shift and flip.
    x = torch.arange(w, device=images.device) - (w - 1) / 2  # (W,)
    y = torch.arange(h, device=images.device) - (h - 1) / 2  # (H,)
    if mirror is not None:
        x = torch.where(mirror[:, None], -x, x)
    x, y = x - shift[:, 1:], y - shift[:, :1]  # (B, W), (B, H)
    # The inverse map's columns; grid_sample counts in half sides.  No matrix product:
    # TF32 would leave the coordinates ten bits.
    unit = 2 / scale.unsqueeze(1)
    per_x = unit * torch.stack([(cos - sin * tan) / w, -sin / h], dim=1)  # (B, 2)
    per_y = unit * torch.stack([(cos * tan + sin) / w, cos / h], dim=1)  # (B, 2)
    grid = (per_y[:, :, None] * y[:, None, :])[:, :, :, None] + (
        per_x[:, :, None] * x[:, None, :]
    )[:, :, None, :]  # (B, 2, H, W): as planes, which the CPU reads fastest
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)


def jitter_(x: Tensor, factors: Tensor, order: Tensor) -> None:
    """Brightness, contrast and saturation of float (B, 3, H, W), each in its order.

    Each of them blends the image with another: black, its mean grey, its grey.
    """
    for which in order.view(-1, 3, 1, 1, 1).unbind(1):  # (B, 1, 1, 1)
        factor = factors.gather(1, which.view(-1, 1)).view_as(which)
        grey = x[:, :1] * GREY[0]  # (B, 1, H, W)
        grey.add_(x[:, 1:2], alpha=GREY[1]).add_(x[:, 2:], alpha=GREY[2])
        mean = grey.mean(dim=(2, 3), keepdim=True) * (which == CONTRAST)
        other = torch.where(which == SATURATION, grey, mean)
        x.mul_(factor).add_(other * (1 - factor)).clamp_(0, 255)


def cut_(x: Tensor, corner: Tensor, size: Tensor) -> None:
    """Blackens a rectangle of each of (B, C, H, W), from `corner` (B, 2) on."""
    size = size.expand_as(corner)
    rows, columns = (
        (i >= corner[:, d, None]) & (i < (corner + size)[:, d, None])  # (B, n)
        for d, n in enumerate(x.shape[-2:])
        for i in [torch.arange(n, device=x.device)]
    )
    x.masked_fill_((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)


def rectangles(
    n: int, height: int, width: int, p: float, generator: torch.Generator
) -> Tensor:
    """y, x, height, width (n, 4) as torchvision's `RandomErasing` draws them; 0: none.

    It tries up to ten times for one that is smaller than the image.
    """
    used = torch.rand(n, 1, generator=generator) < p
    share, shape, *place = torch.rand(4, n, 10, generator=generator)
    area = height * width * (0.02 + 0.31 * share)
    ratio = (shape * math.log(3.3 / 0.3)).exp() * 0.3
    sides = [(area * ratio).sqrt().round(), (area / ratio).sqrt().round()]
    ends = height, width
    fits = used & (sides[0] < height) & (sides[1] < width)  # (n, 10)
    starts = [
        (u * (e - s + 1)).floor() for u, e, s in zip(place, ends, sides, strict=True)
    ]
    drawn = torch.stack([*starts, *sides], dim=2)  # (n, 10, 4)
    first = fits.int().argmax(1)
    return drawn[torch.arange(n), first].long() * fits.any(1)[:, None]


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), in 0..1, of uint8 images (N, C, H, W)."""
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
    """uint8 (B, C, H, W) → float32 of the same shape: (x/255 − mean) / std."""
    return normalise_(images.float(), mean, std)


def normalise_(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`normalise` of float32 images in 0..255, in place."""
    scale, offset = 1 / (255 * std), mean / std
    return images.mul_(scale[:, None, None]).sub_(offset[:, None, None])
