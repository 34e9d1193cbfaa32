"""The most power that any rule can have at two and three seeds: `bound.json`.

    python experiments/statistics/bound.py > experiments/statistics/bound.json

A rule finds +1.0 where both recipes have a deviation of 0.3, and may call a comparison
of equal recipes better in 5 % of studies at most where one of the two is noisier than
the others by a factor of 3 or 7.5 (`plan.md`: 0.6 or 1.5 among 0.2), the rest of the
study, and so the scale, being known exactly.  By Neyman and Pearson's lemma no rule has
more power than E[max(1 - Σ wⱼ f₀ⱼ / f₁, 0)] + 0.05 Σ wⱼ, whatever the weights w ≥ 0
are; the smallest of these bounds is taken.  What a rule sees is the variance of either
side and the gap of their means; f₁ is their density at +1.0, f₀ⱼ without a difference.
"""

from __future__ import annotations

import json

import numpy as np
from scipy import optimize, stats

QUIET, GAIN, ALPHA = 0.3, 1.0, 0.05
TIMES = (3.0, 7.5)
DRAWS = 50_000


def log_density(
    seen: np.ndarray, deviations: tuple[float, float], gap: float, n: int
) -> np.ndarray:
    """Return that of two variances and a gap (3, R)."""
    result = stats.norm.logpdf(seen[2], gap, np.hypot(*deviations) / n**0.5)
    for variance, deviation in zip(seen, deviations, strict=False):
        scale = deviation**2 / (n - 1)
        result = result + stats.chi2.logpdf(variance, n - 1, scale=scale)
    return result


def bound(n: int, seed: int) -> float:
    """Return the most power with n seeds of both sides."""
    rng = np.random.default_rng(seed)
    scale = QUIET**2 / (n - 1)
    seen = np.stack(
        [
            *(scale * rng.chisquare(n - 1, (2, DRAWS))),
            rng.normal(GAIN, QUIET * (2 / n) ** 0.5, DRAWS),
        ]
    )
    found = log_density(seen, (QUIET, QUIET), GAIN, n)
    noisy = [QUIET * times for times in TIMES]
    pairs = [(d, QUIET) for d in noisy] + [(QUIET, d) for d in noisy]
    ratios = np.exp([log_density(seen, pair, 0.0, n) - found for pair in pairs])
    ratios = ratios[:2] + ratios[2:]  # either side noisy: one weight, by symmetry

    def most(log_weights: np.ndarray) -> float:
        weights = np.exp(log_weights)
        return float(
            np.maximum(1 - weights @ ratios, 0).mean() + 2 * ALPHA * weights.sum()
        )

    best = optimize.minimize(most, np.zeros(len(TIMES)), method="Nelder-Mead")
    return float(best.fun)


def main() -> None:
    """Print the bounds, of two seeds of the simulation each."""
    print(json.dumps({n: [round(bound(n, s), 4) for s in (0, 1)] for n in (2, 3, 5)}))


if __name__ == "__main__":
    main()
