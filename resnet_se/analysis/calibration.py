"""Calibration of probabilities: temperature scaling.

Guo et al. 2017, arXiv 1706.04599, §4.2: of the ways to lower the expected calibration
error (`training.reliability`), the one that leaves every prediction as it is.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


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
