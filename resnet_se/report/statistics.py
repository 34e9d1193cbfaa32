"""What may be said of a difference between two trainings: spread, tests, intervals.

- McNemar's exact test of two networks on one test set: McNemar, Psychometrika 12
  (1947) 153; chosen for single trainings by Dietterich, Neural Computation 10 (1998).
- The t test of a contrast, its noise pooled over all groups: Fisher, Statistical
  Methods for Research Workers (1925); Montgomery, Design and Analysis of Experiments,
  chapter 3.  The variance that the choice of images adds: Dorfman, Berbaum & Metz,
  Investigative Radiology 27 (1992) 723 (their readers and patients: seeds and images).
- The bootstrap that draws rows and columns by themselves: Owen, "The pigeonhole
  bootstrap", Annals of Applied Statistics 1 (2007) 386.
- Correction for many tests: Holm, Scandinavian Journal of Statistics 6 (1979) 65.

Axes: S seeds, N images.  A table of differences (S, N) holds, for each seed and image,
right (1) or wrong (0) of the treatment less the same of the baseline: -1, 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None of a single value."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def mcnemar_exact(differences: np.ndarray) -> float:
    """Two-sided p for the differences (N,) of one pair of networks.

    Where both are right, or both wrong, nothing is learnt; where they differ, either is
    as likely to be the right one under the hypothesis: a fair coin.
    """
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def pooled_variance(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Variance within groups of equal noise, and its degrees of freedom."""
    groups = [np.asarray(group, dtype=np.float64) for group in groups]
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups)
    freedom = sum(len(group) - 1 for group in groups)
    return float(squares / freedom) if freedom else 0.0, freedom


def contrast_test(differences: np.ndarray, variance: float, freedom: int) -> float:
    """Two-sided p for the mean of differences (S ≥ 2, N ≥ 2): new seeds, new images.

    Args:
        variance, freedom: of one training's accuracy over seeds (`pooled_variance`).
            The pair's own spread counts instead where it is larger, and what the
            residual of seeds and images explains where all seeds agree by luck.
    """
    d = np.asarray(differences, dtype=np.float64)
    s, n = d.shape
    mean, of_seed, of_image = d.mean(), d.mean(axis=1), d.mean(axis=0)
    rest = d - of_seed[:, None] - of_image + mean  # (S, N)
    ms_seeds = n * ((of_seed - mean) ** 2).sum() / (s - 1)
    ms_images = s * ((of_image - mean) ** 2).sum() / (n - 1)
    ms_rest = (rest**2).sum() / ((s - 1) * (n - 1))
    by_seeds = max(2 * variance * n, ms_seeds, ms_rest)
    total = by_seeds + max(ms_images - ms_rest, 0.0)
    if by_seeds < 1e-12:  # the seeds agree in every image
        return 1.0 if abs(mean) < 1e-12 else 0.0
    t = abs(mean) / np.sqrt(total / (s * n))
    return float(2 * stats.t.sf(t, freedom * (total / by_seeds) ** 2))


def paired_bootstrap(
    differences: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of differences (S, N), both axes redrawn.

    A resample of few seeds varies too little, by (S - 1) / S; that factor is given back
    (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
    Only integers are drawn, so that every machine finds the same interval.
    """
    d = np.asarray(differences, dtype=np.int64)
    s, n = d.shape
    widen = np.sqrt(s / (s - 1)) if s > 1 else 0.0
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        seeds = rng.integers(s, size=s)
        times = np.bincount(rng.integers(n, size=n), minlength=n)  # each image is drawn
        of_seed = d @ times / n  # (S,)
        centre = of_seed.mean()
        means[i] = centre + widen * (of_seed[seeds].mean() - centre)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in their order; at most 1."""
    m = len(p_values)
    corrected, largest = [0.0] * m, 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
