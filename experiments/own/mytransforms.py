"""A transform of one's own: uint8 (3, H, W) to the same, or (B, 3, H, W) to the same.

What it draws from torch's generator is the same again where a run is resumed.
"""

import torch
from torch import Tensor, nn


class Speckle(nn.Module):
    """Sets a share of the pixels to a random grey."""

    def __init__(self, share: float = 0.05):
        super().__init__()
        self.share = share

    def forward(self, image: Tensor) -> Tensor:
        hit = torch.rand(image.shape[-2:]) < self.share
        grey = torch.randint(256, image.shape[-2:], dtype=torch.uint8)
        return torch.where(hit, grey, image)
