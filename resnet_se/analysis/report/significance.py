"""Statistics of a difference between trainings: its estimate, its test, its power.

- One training against one: McNemar's exact test (Psychometrika 12 (1947) 153; chosen
  for single trainings by Dietterich, Neural Computation 10 (1998)).  It speaks of two
  networks, never of their recipes.
- Several seeds: a contrast of means, all seeds of both sides used.  Its variance is the
  noise from seed to seed, of a study whose recipes are not alike (`noise`), plus what
  the choice of test images adds (Dorfman, Berbaum & Metz, Investigative Radiology 27
  (1992) 723: their readers and patients are seeds and images).  Of two variances each
  has its own quantile (Banerjee, Sankhya 24 (1962) 145): Satterthwaite's degrees
  (Biometrics Bulletin 2 (1946) 110) are too many where the noisier side has the fewer
  seeds; they serve within a side.
- Many comparisons: intervals at 1 - alpha / m, which hold all at once (Bonferroni).

Axes: S seeds, N images, C cells of an average.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, sqrt
from typing import Any

import numpy as np

ALPHA = 0.05
GUARD = 0.035  # level of the interval by the own noise of the two sides
POWER = 0.8
LEAST = -230.0  # logarithm of the smallest p that is told from 0
MOST_SEEDS = 1000  # no more are worth naming


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (n - 1), None for a single value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


# --- one seed ----------------------------------------------------


def mcnemar_exact(differences: np.ndarray) -> float:
    """Return the two-sided p for the differences (N,) of one pair of networks.

    Where both are right, or both wrong, nothing is learnt; where they differ, either is
    as likely to be the right one under the hypothesis: a fair coin.
    """
    from scipy import special

    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return min(2 * float(special.bdtr(min(wins, losses), wins + losses, 0.5)), 1.0)


def images_only(
    differences: np.ndarray, alpha: float = ALPHA
) -> tuple[float, tuple[float, float]]:
    """Return p and interval of the mean of differences (N,): new images, same networks.

    Of one pair: McNemar's p, and the wider of the normal interval and of the exact one
    that McNemar's test implies, so that it leaves out 0 exactly where p is below alpha.
    Of a mean over pairs, whose differences are fractions: both normal.
    """
    from scipy import special

    d = np.asarray(differences, dtype=np.float64)
    mean, error = float(d.mean()), float(d.std()) / sqrt(len(d))
    if error == 0:
        return float(mean == 0), (mean, mean)
    half = -float(special.ndtri(alpha / 2)) * error
    if not np.isin(d, (-1, 0, 1)).all():
        p = float(2 * special.ndtr(-abs(mean) / error))
        return p, (mean - half, mean + half)
    wins, differ = int((d > 0).sum()), int((d != 0).sum())
    # Clopper and Pearson's, by quantiles of the beta distribution
    least = special.betaincinv(wins, differ - wins + 1, alpha / 2) if wins else 0.0
    most = special.betaincinv(wins + 1, differ - wins, 1 - alpha / 2)
    exact = (least, most if wins < differ else 1.0)
    low, high = (float(2 * share - 1) * differ / len(d) for share in exact)
    return mcnemar_exact(d), (min(low, mean - half), max(high, mean + half))


# --- several seeds -----------------------------------------------


@dataclass(frozen=True)
class Noise:
    """A variance and its degrees of freedom; arrays where many are simulated."""

    variance: Any
    freedom: Any


def pooled(groups: Iterable[Sequence[float]]) -> Noise:
    """Return the noise within groups of accuracies, taken as alike in all of them."""
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    squares = sum(float(((a - a.mean()) ** 2).sum()) for a in arrays)
    freedom = sum(len(a) - 1 for a in arrays)
    return Noise(squares / freedom if freedom else 0.0, freedom)


def side(variances: Any, freedom: Any, weights: Any, most: Any) -> Noise:
    """Return the noise of one side's mean over cells, Satterthwaite's degrees.

    Args:
        variances, freedom: of one training of each cell's recipe, (…, C).
        weights: of each, 1 / (seeds · C²): (C,).
        most: degrees that it may have at most.
    """
    parts = variances * weights
    total = parts.sum(axis=-1)
    spread = (parts**2 / freedom).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(spread > 0, total**2 / spread, most)
    return Noise(total, np.minimum(degrees, most))


def half_width(noises: Sequence[Noise], images: float, level: float) -> Any:
    """Return half an interval of a sum whose parts have their own quantiles.

    It holds its level whatever the true variances are (Banerjee).

    Args:
        noises: independent parts of the variance, each estimated.
        images: a part that is known well.
    """
    from scipy import special

    total = images * special.ndtri(level / 2) ** 2 if images else 0.0
    for noise in noises:
        freedom = np.minimum(noise.freedom, 1e9)
        total = total + noise.variance * special.stdtrit(freedom, level / 2) ** 2
    return np.sqrt(total)


@dataclass(frozen=True)
class Estimate:
    """A difference with the variances of its two sides; its test, interval and power.

    The interval is the wider of two: with the noise of the whole study, corrected for
    the number of comparisons, and with the sides' own noise at the level `GUARD`.
    """

    mean: float
    study: tuple[Noise, ...]  # of each side's mean, shrunk towards the study's
    own: tuple[Noise, ...]  # … from its own seeds alone; none: no second interval
    images: float = 0.0  # variance from the choice of test images

    @property
    def error(self) -> float:
        return sqrt(sum(noise.variance for noise in self.study) + self.images)

    def interval(self, comparisons: int = 1) -> tuple[float, float]:
        """Return the interval; those of all the comparisons hold at once, 95 %."""
        half = float(half_width(self.study, self.images, ALPHA / comparisons))
        if self.own:
            half = max(half, float(half_width(self.own, self.images, GUARD)))
        return self.mean - half, self.mean + half

    def p(self, comparisons: int = 1) -> float:
        """Return the corrected p: below 0.05 where the interval leaves out 0."""
        p = comparisons * _level(self.study, self.images, abs(self.mean))
        if self.own:
            own = _level(self.own, self.images, abs(self.mean))
            p = max(p, own * ALPHA / GUARD)
        return min(p, 1.0)

    def posterior(self, margin: float) -> tuple[float, float, float]:
        """Return the probabilities of worse, practically equal (± margin) and better.

        Of the distribution whose central part of any size is the interval by the
        study's noise: with one noise, Student's, which a flat prior on the difference
        gives.  Neither the number of comparisons nor `GUARD` has a part in it.
        """

        def above(bound: float) -> float:
            half = _level(self.study, self.images, abs(self.mean - bound)) / 2
            return 1 - half if self.mean > bound else half

        better, not_worse = above(margin), above(-margin)
        return 1 - not_worse, max(not_worse - better, 0.0), better

    def detectable(self, comparisons: int = 1, power: float = POWER) -> float:
        """Return the smallest difference that each interval finds with this power.

        It follows from the seeds and the study's noise, not from the sides' own luck.
        """
        if self.error == 0:
            return 0.0
        planned = [(ALPHA / comparisons, self.study)]
        if self.own:
            own = zip(self.study, self.own, strict=True)
            planned += [(GUARD, tuple(Noise(s.variance, o.freedom) for s, o in own))]
        effects = []
        for level, noises in planned:
            critical = float(half_width(noises, self.images, level)) / self.error
            spread = sum(noise.variance**2 / noise.freedom for noise in noises)
            degrees = min(self.error**4 / spread, 1e6) if spread else 1e6
            effects.append(_effect(critical, degrees, power))
        return self.error * max(effects)

    def finds(self, difference: float, comparisons: int = 1) -> bool:
        """Return True if seeds without end would find it with these test images."""
        endless = Estimate(0.0, (), (), self.images)
        return endless.detectable(comparisons) <= difference

    def seeds_needed(
        self, difference: float, seeds: int, comparisons: int = 1
    ) -> int | None:
        """Return the seeds that detect this difference, None if no number does."""

        def planned(noises: tuple[Noise, ...], n: int) -> tuple[Noise, ...]:
            grown = (n - 1) / (seeds - 1)
            return tuple(
                Noise(noise.variance * seeds / n, max(noise.freedom * grown, 1))
                for noise in noises
            )

        def enough(n: int) -> bool:
            study, own = planned(self.study, n), planned(self.own, n)
            plan = Estimate(0.0, study, own, self.images)
            return plan.detectable(comparisons) <= difference

        if not enough(MOST_SEEDS):
            return None
        low, high = 1, MOST_SEEDS  # enough(high) holds, enough(low) does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high


def _level(noises: tuple[Noise, ...], images: float, gap: float) -> float:
    """Return the level at which half an interval is just as wide as the gap."""
    from scipy import optimize

    if gap == 0:
        return 1.0

    def missing(log_level: float) -> float:
        return float(half_width(noises, images, exp(log_level))) - gap

    if missing(LEAST) < 0:  # also where nothing varies
        return exp(LEAST)
    return exp(optimize.brentq(missing, LEAST, 0.0, xtol=1e-10))


@lru_cache(maxsize=4096)
def _effect(critical: float, degrees: float, power: float) -> float:
    """Return the effect, in standard errors, that such a t test finds."""
    from scipy import special

    if degrees > 1000:  # Student's distribution is normal by then
        return critical + float(special.ndtri(power))
    if critical > 100:  # one or two degrees: the noncentral one overflows
        return critical * sqrt(float(special.chdtri(degrees, power)) / degrees)
    return float(special.nctdtrinc(degrees, 1 - power, critical))


@dataclass(frozen=True)
class Recipe:
    """The seeds of one setting: how often each image was recognised, and the noise."""

    right: np.ndarray  # mean over seeds, float32 (N,)
    seeds: int
    study: Noise  # of one training's accuracy, shrunk towards the study's
    own: Noise  # … and from its seeds alone
    most: float  # degrees that the study has at most
    chance: float  # variance of one accuracy by independent mistakes alone


def chance_of_winning(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """Return how likely a run of the first beats one of the second, and 95 % interval.

    The estimate is Mann and Whitney's U over all pairs, ties by half (rliable's
    probability of improvement: Agarwal et al., arXiv 2108.13264); the interval is
    Newcombe's method 5 (Statistics in Medicine 25 (2006) 559), since a bootstrap of two
    to five seeds is too narrow.
    """
    from scipy import optimize, special

    m, n = len(first), len(second)
    order = np.sign(np.subtract.outer(first, second))  # (m, n)
    share = float(0.5 + order.mean() / 2)
    more = (m + n) / 2 - 1
    z = float(special.ndtri(1 - ALPHA / 2))

    def excess(at: float) -> float:
        spread = 1 + more * ((1 - at) / (2 - at) + at / (1 + at))
        return (share - at) ** 2 - z**2 * at * (1 - at) * spread / (m * n)

    edge = 1e-9  # 0 and 1 are roots too
    low = optimize.brentq(excess, 0, min(share, 1 - edge)) if share > 0 else 0.0
    high = optimize.brentq(excess, max(share, edge), 1) if share < 1 else 1.0
    return share, (low, high)


def independent_mistakes(right: np.ndarray) -> float:
    """Return the variance of an accuracy if seeds differ by independent mistakes.

    Args:
        right: right (1) or wrong (0) of each seed and image, or a difference of two
            such (-1, 0, 1): (S ≥ 2, N).
    """
    s, n = right.shape
    images = right.mean(axis=0, dtype=np.float64)
    seeds = right.mean(axis=1, dtype=np.float64)
    left = np.count_nonzero(right) - s * float(np.square(images).sum())
    left -= n * float(((seeds - seeds.mean()) ** 2).sum())
    return max(left, 0.0) / ((s - 1) * (n - 1)) / n


def contrast(cells: Sequence[tuple[Recipe, Recipe]]) -> Estimate:
    """Estimate the mean over cells of treatment less baseline, new seeds and images.

    All seeds of both are used, which need not be the same nor equally many.
    """
    share = 1 / len(cells)
    of_image = sum(share * (t.right - b.right) for t, b in cells)
    sides = [tuple(pair[i] for pair in cells) for i in (0, 1)]
    chance = sum(r.chance / r.seeds * share**2 for recipes in sides for r in recipes)
    variance = float(np.var(of_image, ddof=1, dtype=np.float64)) / len(of_image)
    study: list[Noise] = []
    own: list[Noise] = []
    for recipes in sides:
        weights = np.array([share**2 / r.seeds for r in recipes])
        for parts, of, most in (
            (study, [r.study for r in recipes], recipes[0].most),
            (own, [r.own for r in recipes], inf),
        ):
            variances = np.array([noise.variance for noise in of])
            freedom = np.array([noise.freedom for noise in of])
            whole = side(variances, freedom, weights, most)
            parts.append(Noise(float(whole.variance), float(whole.freedom)))
    mean = float(np.mean(of_image, dtype=np.float64))
    by_images = max(variance - chance, 0.0)
    return Estimate(mean, tuple(study), tuple(own), by_images)
