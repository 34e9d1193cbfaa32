"""The reliability of probabilities, and the expected calibration error.

Guo et al. 2017, arXiv 1706.04599, §2.  torchmetrics takes logits that all lie in 0 … 1
for probabilities, and gives a confidence of exactly 1 a bin of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15  # of equal width, as `test/ece` has them


class Reliability(NamedTuple):
    """By bin of confidence, ascending (BINS,); an empty bin has zeros."""

    confidence: Tensor  # mean probability of the class predicted
    accuracy: Tensor
    share: Tensor  # of all images

    @property
    def ece(self) -> float:
        return float((self.share * (self.accuracy - self.confidence).abs()).sum())


def reliability(logits: Tensor, labels: Tensor) -> Reliability:
    """Return the reliability per confidence bin of logits (N, K) and labels (N,).

    On the CPU, in float64.
    """
    labels = labels.cpu()  # not every device has float64
    confidence, predicted = logits.cpu().double().softmax(1).max(1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype)[1:-1]
    index = torch.bucketize(confidence, edges)  # a bin holds its upper edge
    correct = (predicted == labels).double()
    parts = confidence, correct, torch.ones_like(confidence)
    sums = [confidence.new_zeros(BINS).index_add(0, index, x) for x in parts]
    count = sums[2].clamp_min(1)
    return Reliability(sums[0] / count, sums[1] / count, sums[2] / len(labels))
