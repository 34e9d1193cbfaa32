"""The spread of a recipe's seeds, estimated from all recipes of a study.

- Each variance is shrunk towards that of all, the more the more alike they are (Smyth,
  Statistical Applications in Genetics and Molecular Biology 3 (2004) 3: limma).
- A recipe that is noisier than the others (F test) keeps its own variance.
- A recipe of a wholly other scale, as with a seed that diverged, has no part in the
  noise of the others (Cochran, Annals of Eugenics 11 (1941) 47: the largest variance).

The constants were chosen by the simulation in `experiments/statistics`.

Axes: R studies (1, or many simulated ones), K recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet_se.analysis.report.groups import Group
from resnet_se.analysis.report.significance import (
    ALPHA,
    GUARD,
    Noise,
    Recipe,
    half_width,
    side,
)

UNLIKE = 0.02  # level of the F test for a recipe noisier than the others
OUTLYING, SHARE = 20.0, 0.1  # times the deviation of the rest; of so many at most
LEAST_FAR = 0.01  # of accuracy: a seed nearer than this is far from nobody
LEAST_VARIANCE = 1e-12  # seeds that agree to the last image do not agree for ever


@dataclass(frozen=True)
class StudyNoise:
    """Variances of one training (R, K), their degrees, and who stands apart."""

    variance: np.ndarray
    freedom: np.ndarray
    most: np.ndarray  # degrees that a sum of them may have, (R, 1)
    unlike: np.ndarray  # keeps its own variance
    outlying: np.ndarray  # … and has no part in the others'


def shrink(variances: np.ndarray, freedom: np.ndarray) -> StudyNoise:
    """Return the noise of all recipes.

    Args:
        variances: within each recipe (R, K), above 0.
        freedom: of each, seeds less one, at least 1: (K,).
    """
    from scipy import special

    f = np.broadcast_to(np.asarray(freedom, dtype=np.float64), variances.shape)
    out = _outlying(variances, f)
    kept = np.where(out, 0.0, f)
    total = kept.sum(axis=1, keepdims=True)
    squares = kept * variances
    pool = squares.sum(axis=1, keepdims=True) / total
    rest = total - kept
    with np.errstate(divide="ignore", invalid="ignore"):
        others = (squares.sum(axis=1, keepdims=True) - squares) / rest
        tail = special.fdtrc(f, rest, variances / others)
    unlike = out | (rest == 0) | (tail < UNLIKE)
    d0, s0 = _prior(variances, f, ~out)
    s0 = np.where(np.isinf(d0), pool, s0)
    d0 = np.where(unlike, 0.0, d0)
    with np.errstate(invalid="ignore"):
        shrunk = (d0 * s0 + f * variances) / (d0 + f)
    shrunk = np.where(np.isinf(d0), s0, shrunk)
    degrees = np.minimum(d0 + f, np.where(unlike, f, total))
    return StudyNoise(shrunk, degrees, total, unlike, out)


def _outlying(variances: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Those of the largest variances that lie wholly above the pool of the rest."""
    from scipy import special

    k = variances.shape[1]
    marks = np.zeros(variances.shape, bool)
    if k < 3:
        return marks
    order = np.argsort(variances, axis=1, kind="stable")
    degrees = np.take_along_axis(f, order, axis=1)
    ranked = np.take_along_axis(variances, order, axis=1)
    squares, rest = np.cumsum(ranked * degrees, axis=1), np.cumsum(degrees, axis=1)
    first = k - max(int(k * SHARE), 1)
    ratio = ranked[:, first:] * rest[:, first - 1 : -1] / squares[:, first - 1 : -1]
    p = special.fdtrc(degrees[:, first:], rest[:, first - 1 : -1], ratio)
    found = (p < 0.01 / k) & (ratio > OUTLYING**2)
    found = np.logical_or.accumulate(found, axis=1)
    np.put_along_axis(marks, order[:, first:], found, axis=1)
    return marks


def _prior(
    variances: np.ndarray, f: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and variance (R, 1) of what all recipes share, by moments of log s²."""
    from scipy import special

    count = kept.sum(axis=1, keepdims=True)
    e = np.log(variances) - special.digamma(f / 2) + np.log(f / 2)
    middle = (kept * e).sum(axis=1, keepdims=True) / count
    spread = (kept * (e - middle) ** 2).sum(axis=1, keepdims=True)
    spread = spread / np.maximum(count - 1, 1)
    chance = (kept * special.polygamma(1, f / 2)).sum(axis=1, keepdims=True) / count
    excess = np.where(count > 1, spread - chance, 0.0)
    alike = excess < 1e-3
    half = _trigamma_inverse(np.where(alike, 1.0, excess))
    s0 = np.exp(middle + special.digamma(half) - np.log(half))
    return np.where(alike, np.inf, 2 * half), s0


def _trigamma_inverse(values: np.ndarray) -> np.ndarray:
    """By Newton's method on the reciprocal, as in the paper's appendix."""
    from scipy import special

    y = 0.5 + 1 / values
    for _ in range(12):
        of = special.polygamma(1, y)
        y = y + of * (1 - of / values) / special.polygamma(2, y)
    return y


# --- of the runs of a report -------------------------------------


def recipes(groups: Sequence[Group]) -> dict[int, Recipe]:
    """Return {id of a group: its recipe} of all groups with two seeds or more."""
    several = [group for group in groups if len(group.runs) > 1]
    if not several:
        return {}
    freedom = np.array([len(group.runs) - 1 for group in several])
    own = np.array(
        [
            max(float(np.var(group.accuracies, ddof=1)), group.chance, LEAST_VARIANCE)
            for group in several
        ]
    )
    noise = shrink(own[None], freedom)
    return {
        id(group): Recipe(
            group.right,
            len(group.runs),
            Noise(float(noise.variance[0, i]), float(noise.freedom[0, i])),
            Noise(float(own[i]), float(freedom[i])),
            float(noise.most[0, 0]),
            group.chance,
        )
        for i, group in enumerate(several)
    }


Far = tuple[Group, int, float]  # a seed, and its distance from the median


def far_seeds(groups: Sequence[Group]) -> list[Far]:
    """Return the seeds far from the median of their recipe.

    Far is over `OUTLYING` times the study's usual distance, by the median of all.  Of
    two seeds that lie apart nobody knows which is the odd one: both are named.
    """
    distances = [
        (group, seed, float(abs(run.test["acc"] - np.median(group.accuracies))))
        for group in groups
        if len(group.runs) > 1
        for seed, run in group.seeds.items()
    ]
    usual = np.median([d for *_, d in distances if d > 0] or [0.0])
    return [of for of in distances if of[2] > max(OUTLYING * usual, LEAST_FAR)]


# --- how often such a study errs ---------------------------------

Cells = Sequence[tuple[int, int]]  # (treatment, baseline) of each, as indices (K,)


@dataclass(frozen=True)
class Rates:
    """Shares: of studies with any false verdict; of 95 % intervals that hold."""

    studies: int
    false: float
    coverage: float


def rates(
    deviations: np.ndarray, seeds: np.ndarray, comparisons: Sequence[Cells]
) -> Rates:
    """Simulate studies of this shape in which no recipe differs from another.

    Args:
        deviations, seeds: of each recipe (K,), two seeds at least.
    """
    studies = int(np.clip(60_000 // len(comparisons), 300, 3000))
    rng = np.random.default_rng(0)
    f = np.asarray(seeds) - 1
    size = (studies, len(f))
    means = rng.normal(size=size) * deviations / np.sqrt(seeds)
    variances = deviations**2 * rng.chisquare(f, size) / f
    noise = shrink(variances, f)
    own_freedom = np.broadcast_to(f.astype(float), size)
    wrong = np.zeros(studies, bool)
    held = 0.0
    for cells in comparisons:
        pairs = np.asarray(cells).T  # (2, C)
        gap = (means[:, pairs[0]] - means[:, pairs[1]]).mean(axis=1)
        study, own = [], []
        for part in pairs:
            weights = 1 / (seeds[part] * len(cells) ** 2)
            of = noise.variance[:, part], noise.freedom[:, part]
            study.append(side(*of, weights, noise.most[:, 0]))
            of = variances[:, part], own_freedom[:, part]
            own.append(side(*of, weights, np.inf))
        guard = half_width(own, 0.0, GUARD)
        half = [
            np.maximum(half_width(study, 0.0, level), guard)
            for level in (ALPHA / len(comparisons), ALPHA)
        ]
        wrong |= np.abs(gap) > half[0]
        held += float((np.abs(gap) <= half[1]).mean())
    return Rates(studies, float(wrong.mean()), held / len(comparisons))
