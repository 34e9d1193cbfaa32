"""Erasing: Cutout's black square and random erasing's black rectangle.

Cutout: DeVries & Taylor 2017, arXiv 1708.04552; random erasing: Zhong et al. 2020,
arXiv 1708.04896.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2


def erase_(images: Tensor, origin: Tensor, size: Tensor) -> None:
    """Blacken a rectangle of each of (B, C, H, W), in place.

    Args:
        origin: (B, 2), y and x of its first pixel, which may lie outside the image.
        size: height and width, of any shape that broadcasts to (B, 2); 0 is none.
    """
    size = size.expand_as(origin)
    rows, columns = (
        (i >= origin[:, d, None]) & (i < (origin + size)[:, d, None])  # (B, n)
        for d, n in enumerate(images.shape[-2:])
        for i in [torch.arange(n, device=images.device)]
    )
    images.masked_fill_((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)


def sample_boxes(
    n: int, height: int, width: int, p: float, generator: torch.Generator
) -> Tensor:
    """Return y, x, height and width (n, 4) int64 of random erasing; all 0 is none.

    Drawn as torchvision's `RandomErasing` does: with probability p, up to ten times
    until one is smaller than the image.
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
    boxes = torch.stack([*starts, *sides], dim=2)  # (n, 10, 4)
    first = fits.int().argmax(1)
    return boxes[torch.arange(n), first].long() * fits.any(1)[:, None]


class Cutout(v2.Transform):
    """A black square around a uniformly drawn pixel, for torchvision's engine.

    Args:
        side: in pixels; what lies outside the image is cut off.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = flat_inputs[0].shape[-2:]
        starts = [int(torch.randint(n, ())) - self.side // 2 for n in size]
        return {"square": [slice(max(0, i), i + self.side) for i in starts]}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        rows, columns = params["square"]
        result = inpt.clone()
        result[..., rows, columns] = 0
        return result
