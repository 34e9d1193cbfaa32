"""Soft targets: one-hot labels, label smoothing, Mixup and CutMix.

* label smoothing: Szegedy et al. 2016, arXiv 1512.00567 (§7)
* Mixup: Zhang et al. 2018, arXiv 1710.09412;  CutMix: Yun et al. 2019, arXiv 1905.04899

After this there is one loss, cross-entropy over soft targets, and no branching.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_se.errors import UserError


def soft_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels (B,) → float (B, K): 1 − s + s/K at the label, s/K elsewhere."""
    one_hot = F.one_hot(labels, num_classes).float()  # (B, K)
    return one_hot * (1 - smoothing) + smoothing / num_classes


def cutmix_box(height: int, width: int, keep: float) -> tuple[int, int, int, int]:
    """A random box (top, bottom, left, right) of area ≈ 1 − keep, cut at the edges."""
    half_h = int(height * math.sqrt(1 - keep)) // 2
    half_w = int(width * math.sqrt(1 - keep)) // 2
    y = int(torch.randint(height, ()))
    x = int(torch.randint(width, ()))
    return (
        max(y - half_h, 0),
        min(y + half_h, height),
        max(x - half_w, 0),
        min(x + half_w, width),
    )


@dataclass(frozen=True)
class Mixing:
    """Images and labels → images and soft targets; draws from torch's CPU generator.

    Args:
        smoothing: label smoothing s in [0, 1).
        mixup_alpha: Beta(α, α) of Mixup's weight; 0 leaves it out.
        cutmix_alpha: the same of CutMix; where both are given each batch picks one.

    Raises:
        UserError: a value is out of its range.
    """

    smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing: expected 0 <= s < 1, got {self.smoothing}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{name}: expected 0 or more, got {getattr(self, name)}"
                )

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B,) → (B, C, H, W), (B, K)."""
        targets = soft_targets(labels, num_classes, self.smoothing)
        alphas = [
            (mix, alpha)
            for mix, alpha in ((mixup, self.mixup_alpha), (cutmix, self.cutmix_alpha))
            if alpha > 0
        ]
        if not alphas:
            return images, targets
        mix, alpha = alphas[int(torch.randint(len(alphas), ()))]
        keep = float(torch.distributions.Beta(alpha, alpha).sample())
        return mix(images, targets, keep)


def mixup(images: Tensor, targets: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Images and targets: keep × itself + (1 − keep) × its neighbour in the batch."""
    images = images.lerp(images.roll(1, 0), 1 - keep)
    return images, targets.lerp(targets.roll(1, 0), 1 - keep)


def cutmix(images: Tensor, targets: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """A box of each image is its neighbour's; targets follow the box's true area."""
    height, width = images.shape[-2:]
    top, bottom, left, right = cutmix_box(height, width, keep)
    images = images.clone()
    box = images.roll(1, 0)[:, :, top:bottom, left:right]
    images[:, :, top:bottom, left:right] = box
    share = (bottom - top) * (right - left) / (height * width)
    return images, targets.lerp(targets.roll(1, 0), share)
