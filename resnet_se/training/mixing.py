"""Soft targets: one-hot labels, label smoothing, Mixup and CutMix.

* label smoothing: Szegedy et al. 2016, arXiv 1512.00567 (§7)
* Mixup: Zhang et al. 2018, arXiv 1710.09412;  CutMix: Yun et al. 2019, arXiv 1905.04899

torchvision's `v2.MixUp` and `v2.CutMix` mix each image with its neighbour in the batch.
After this there is one loss over soft targets, and no branching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from resnet_se.utils.validation import NonNegative, Unit, validated


def soft_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Return targets (B, K) of labels (B,): 1 − s + s/K at the label, s/K elsewhere."""
    return smoothed(F.one_hot(labels, num_classes).float(), smoothing)


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    """Return targets (B, K), a share `smoothing` of each spread over all K classes."""
    return targets * (1 - smoothing) + smoothing / targets.shape[1]


@validated
@dataclass(frozen=True)
class Mixing:
    """Mix images and labels into soft targets; drawing from torch's CPU generator.

    Args:
        smoothing: label smoothing s in [0, 1).
        mixup_alpha: α of Mixup's weight, drawn from Beta(α, α); 0 for no Mixup.
        cutmix_alpha: the same for CutMix; where both are given each batch draws one.
        probability: of a batch to be mixed; 0.5 is CutMix's own on CIFAR (its §4.1).

    Raises:
        UserError: a value is out of its range.
    """

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup_alpha: NonNegative = 0.0
    cutmix_alpha: NonNegative = 0.0
    probability: Unit = 1.0

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) and targets (B, K) of the same and labels (B,)."""
        every = ((v2.MixUp, self.mixup_alpha), (v2.CutMix, self.cutmix_alpha))
        kinds = [(kind, alpha) for kind, alpha in every if alpha > 0]
        unmixed = self.probability < 1 and torch.rand(()) >= self.probability
        if not kinds or unmixed:
            return images, soft_targets(labels, num_classes, self.smoothing)
        kind, alpha = kinds[int(torch.randint(len(kinds), ()))]
        mix = kind(num_classes=num_classes, alpha=float(alpha))
        images, targets = mix(images, labels)
        return images, smoothed(targets, self.smoothing)
