"""Intervals at Holm's levels, beside Bonferroni's: how often all of a study hold.

    python experiments/statistics/holm.py

21 recipes against one baseline, five seeds each of deviation 0.3, the noise pooled.
Writes `holm.json`, which `README.md` quotes.
"""

import json
from pathlib import Path

import numpy as np
from scipy import special

K, SEEDS, DEVIATION, STUDIES, ALPHA = 22, 5, 0.3, 10_000, 0.05


def joint_coverage(rng: np.random.Generator, truth: np.ndarray) -> dict[str, float]:
    """Return the shares of studies all of whose intervals hold the true differences.

    Args:
        truth: of each recipe less the baseline (K - 1,).
    """
    m, freedom = K - 1, K * (SEEDS - 1)
    means = rng.normal(size=(STUDIES, K)) * DEVIATION / np.sqrt(SEEDS)
    variance = DEVIATION**2 * rng.chisquare(freedom, (STUDIES, 1)) / freedom
    error = np.sqrt(2 * variance / SEEDS)
    found = means[:, 1:] - means[:, :1] + truth
    p = 2 * special.stdtr(freedom, -np.abs(found) / error)
    passed = np.sort(p, axis=1) <= ALPHA / (m - np.arange(m))
    rejected = np.logical_and.accumulate(passed, axis=1).sum(axis=1, keepdims=True)
    rank = np.minimum(np.argsort(np.argsort(p, axis=1), axis=1), rejected)
    levels = {
        "holm": ALPHA / (m - np.minimum(rank, m - 1)),
        "bonferroni": np.full_like(p, ALPHA / m),
    }
    return {
        name: float((np.abs(found - truth) <= half * error).all(axis=1).mean())
        for name, level in levels.items()
        for half in [-special.stdtrit(freedom, level / 2)]
    }


def main() -> None:
    rng = np.random.default_rng(1)
    truths = {
        "no difference": np.zeros(K - 1),
        "a third by 1": np.where(np.arange(K - 1) % 3 == 0, 1.0, 0.0),
        "all by 1 or more": np.linspace(1, 5, K - 1),
    }
    found = {name: joint_coverage(rng, truth) for name, truth in truths.items()}
    text = json.dumps({"studies": STUDIES, "seed": 1, "coverage": found}, indent=2)
    Path(__file__).with_name("holm.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
