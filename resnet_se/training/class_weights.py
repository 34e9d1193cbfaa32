"""Cross-entropy with a weight for each class, for sets of uneven classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_se.utils.errors import UserError


class WeightedCrossEntropy:
    """The mean over images of Σₖ wₖ tₖ (−log σ(z)ₖ), logits z and targets t; a loss.

    Args:
        weights: w (K,).
    """

    def __init__(self, weights: Tensor):
        self.weights = weights

    def __call__(self, images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of images (B, …), (B, K), (B, K)."""
        if self.weights.device != logits.device:  # once
            self.weights = self.weights.to(logits.device)
        return F.cross_entropy(logits, targets, self.weights.to(logits.dtype))


def class_weights(how: str | Sequence[float], labels: Tensor, classes: int) -> Tensor:
    """Return weights (K,) that are as given, or `balanced`: N / (K nₖ).

    Balanced, every class has the same share of the loss, and its mean over the images
    is that without weights.

    Raises:
        UserError: another number of weights than classes; balanced, and a class has
            no image.
    """
    if how == "balanced":
        counts = torch.bincount(labels, minlength=classes)
        if not counts.all():
            absent = counts.argmin().item()
            raise UserError(
                f"loss.class_weights: balanced needs images of every class to train "
                f"on; class {absent} has none"
            )
        return len(labels) / (classes * counts.float())
    if isinstance(how, str) or len(how) != classes:
        expected = f"balanced or {classes} weights, one a class"
        raise UserError(f"loss.class_weights: expected {expected}, got {how}")
    return torch.tensor([float(weight) for weight in how])
