"""Statistics of a difference between trainings: its estimate, its test, its power.

- One training against one: McNemar's exact test (Psychometrika 12 (1947) 153; chosen
  for single trainings by Dietterich, Neural Computation 10 (1998)).  It speaks of two
  networks, never of their recipes.
- Several seeds: a t interval of a contrast of means.  Its variance is the noise from
  seed to seed, pooled within groups that may be alike (Fisher 1925; Montgomery, Design
  and Analysis of Experiments, chapter 3), plus what the choice of test images adds
  (Dorfman, Berbaum & Metz, Investigative Radiology 27 (1992) 723: their readers and
  patients are seeds and images); its degrees of freedom: Satterthwaite, Biometrics
  Bulletin 2 (1946) 110.
- Many comparisons: Holm, Scandinavian Journal of Statistics 6 (1979) 65.

Axes: S seeds, N images.  A table of differences (S, N) holds, for each seed and image,
right (1) or wrong (0) of the treatment less the same of the baseline: -1, 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, sqrt

import numpy as np

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000  # no more are worth naming


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (n - 1), None for a single value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[tuple[float, float]]:
    """Return (p corrected for their number, level of the test) for each, in order.

    The interval 1 - level leaves out 0 exactly where the corrected p is below alpha:
    the smallest of m is tested at alpha / m, the next at alpha / (m - 1), …, and all
    from the first that is not rejected at that one's level.
    """
    m = len(p_values)
    pairs, largest, stopped = [(1.0, alpha)] * m, 0.0, 0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        stopped = stopped or (m - rank if largest >= alpha else 0)
        pairs[i] = largest, alpha / (stopped or m - rank)
    return pairs


# --- one seed ----------------------------------------------------


def mcnemar_exact(differences: np.ndarray) -> float:
    """Return the two-sided p for the differences (N,) of one pair of networks.

    Where both are right, or both wrong, nothing is learnt; where they differ, either is
    as likely to be the right one under the hypothesis: a fair coin.
    """
    from scipy import stats

    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def images_only(
    differences: np.ndarray, alpha: float = ALPHA
) -> tuple[float, tuple[float, float]]:
    """Return p and interval of the mean of differences (N,): new images, same networks.

    Of one pair: McNemar's p, and the wider of the normal interval and of the exact one
    that McNemar's test implies, so that it leaves out 0 exactly where p is below alpha.
    Of a mean over pairs, whose differences are fractions: both normal.
    """
    from scipy import stats

    d = np.asarray(differences, dtype=np.float64)
    mean, error = float(d.mean()), float(d.std()) / sqrt(len(d))
    if error == 0:
        return float(mean == 0), (mean, mean)
    half = float(stats.norm.isf(alpha / 2)) * error
    if not np.isin(d, (-1, 0, 1)).all():
        p = float(2 * stats.norm.sf(abs(mean) / error))
        return p, (mean - half, mean + half)
    wins, differ = int((d > 0).sum()), int((d != 0).sum())
    exact = stats.binomtest(wins, differ).proportion_ci(1 - alpha, "exact")
    low, high = ((2 * share - 1) * differ / len(d) for share in exact)
    return mcnemar_exact(d), (min(low, mean - half), max(high, mean + half))


# --- several seeds -----------------------------------------------


@dataclass(frozen=True)
class Noise:
    """Variance of one training's accuracy over seeds, and its degrees of freedom."""

    variance: float
    freedom: int


def pooled(groups: Iterable[Sequence[float]]) -> Noise:
    """Return the noise within groups of accuracies, taken as alike in all of them."""
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    squares = sum(float(((a - a.mean()) ** 2).sum()) for a in arrays)
    freedom = sum(len(a) - 1 for a in arrays)
    return Noise(squares / freedom if freedom else 0.0, freedom)


@dataclass(frozen=True)
class Estimate:
    """A difference with its variance in two parts; its test, interval and power."""

    mean: float
    by_seeds: float  # variance of `mean` from the seeds
    by_images: float  # … and from the choice of test images
    freedom: float  # of `by_seeds`

    @property
    def error(self) -> float:
        return sqrt(self.by_seeds + self.by_images)

    @property
    def degrees(self) -> float:
        """Satterthwaite: the images' part is known well, the seeds' is not."""
        if self.by_seeds == 0:
            return inf
        return self.freedom * ((self.by_seeds + self.by_images) / self.by_seeds) ** 2

    @property
    def p(self) -> float:
        """Two-sided p of no difference over new seeds and new images."""
        from scipy import stats

        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.degrees))

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the interval that leaves out 0 exactly where `p` is below alpha."""
        half = self.error * _quantile(self.degrees, alpha) if self.error else 0.0
        return self.mean - half, self.mean + half

    def detectable(self, alpha: float, power: float = POWER) -> float:
        """Return the smallest difference that is found with this power."""
        return self.error * _effect(min(self.degrees, 1e6), alpha, power)

    def seeds_needed(self, difference: float, seeds: int, alpha: float) -> int | None:
        """Return the seeds that detect this difference, None if no number does."""

        def enough(n: int) -> bool:
            share = seeds / n
            freedom = max(self.freedom * (n - 1) / (seeds - 1), 1)
            planned = Estimate(0, self.by_seeds * share, self.by_images, freedom)
            return planned.detectable(alpha) <= difference

        if not enough(MOST_SEEDS):
            return None
        low, high = 1, MOST_SEEDS  # enough(high) holds, enough(low) does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high


@lru_cache(maxsize=4096)
def _quantile(degrees: float, alpha: float) -> float:
    from scipy import stats

    return float(stats.t.isf(alpha / 2, degrees))


@lru_cache(maxsize=4096)
def _effect(degrees: float, alpha: float, power: float) -> float:
    """Return the effect, in standard errors, that a t test finds with this power."""
    from scipy import optimize, stats

    critical = _quantile(degrees, alpha)
    if degrees > 1000:  # Student's distribution is normal by then
        return critical + float(stats.norm.isf(1 - power))

    def missing_power(effect: float) -> float:
        return float(stats.nct.sf(critical, degrees, effect)) - power

    if critical > 100:  # one or two degrees: the noncentral one overflows
        return critical * sqrt(float(stats.chi2.isf(1 - power, degrees)) / degrees)
    return float(optimize.brentq(missing_power, 0, 4 * critical + 10, xtol=1e-4))


def contrast(
    differences: Sequence[np.ndarray], noises: Sequence[tuple[Noise, Noise]]
) -> Estimate:
    """Estimate the mean over cells of treatment less baseline, new seeds and images.

    Args:
        differences: a table (S ≥ 2, N) for each cell; S may vary, N not.
        noises: of each cell's treatment and of its baseline; equal ones are one pool.
    """
    cells = len(differences)
    weights: dict[Noise, float] = {}
    of_image, rest, mean = 0.0, 0.0, 0.0
    for table, pair in zip(differences, noises, strict=True):
        d = np.asarray(table, dtype=np.float32)
        s, n = d.shape
        images, seeds = d.mean(axis=0), d.mean(axis=1, dtype=np.float64)
        mean += seeds.mean() / cells
        of_image = of_image + images / cells  # (N,)
        squares = float(np.square(d, dtype=np.float32).sum(dtype=np.float64))
        left = squares - s * float(np.square(images).sum(dtype=np.float64))
        left -= n * float(((seeds - seeds.mean()) ** 2).sum())
        # what independent mistakes alone would add to the variance of the mean
        rest += max(left, 0.0) / ((s - 1) * (n - 1)) / s / cells**2 / n
        for noise in pair:
            weights[noise] = weights.get(noise, 0.0) + 1 / s / cells**2
    parts = [(noise.variance * w, noise.freedom) for noise, w in weights.items()]
    by_seeds = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts if freedom)
    freedom = by_seeds**2 / spread if spread else float(sum(f for _, f in parts))
    by_images = max(float(np.var(of_image, ddof=1, dtype=np.float64)) / n - rest, 0.0)
    return Estimate(float(mean), max(by_seeds, rest), by_images, freedom)
