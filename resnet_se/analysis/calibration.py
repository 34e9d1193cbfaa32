"""Calibration of probabilities: reliability, ECE, temperature scaling.

Guo et al. 2017, arXiv 1706.04599: the expected calibration error (§2) and, of the ways
to lower it, the one that leaves every prediction as it is (§4.2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
    """Return the reliability per confidence bin of logits (N, K) and labels (N,)."""
    confidence, predicted = logits.double().softmax(1).max(1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype)[1:-1]
    index = torch.bucketize(confidence, edges)  # a bin holds its upper edge
    correct = (predicted == labels).double()
    parts = confidence, correct, torch.ones_like(confidence)
    sums = [confidence.new_zeros(BINS).index_add(0, index, x) for x in parts]
    count = sums[2].clamp_min(1)
    return Reliability(sums[0] / count, sums[1] / count, sums[2] / len(labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return T > 0 for which softmax(logits / T) has the lowest cross-entropy.

    Within 1/100..100: where all predictions are right, it would fall for ever.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log_t: float) -> float:  # convex in 1/T, so there is one lowest place
        return float(F.cross_entropy(logits * math.exp(-log_t), labels))

    ends = (-math.log(100), math.log(100))
    optimum = minimize_scalar(loss, bounds=ends, options={"xatol": 1e-4})
    return math.exp(optimum.x)
