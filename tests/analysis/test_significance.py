"""The statistics against cases counted by hand, and their laws."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resnet_se.analysis.report.noise import shrink
from resnet_se.analysis.report.significance import (
    ALPHA,
    GUARD,
    Estimate,
    Noise,
    Recipe,
    chance_of_winning,
    contrast,
    half_width,
    images_only,
    independent_mistakes,
    mcnemar_exact,
    mean_std,
    pooled,
)

quick = settings(max_examples=50, deadline=None)


def test_mean_and_sample_deviation():
    mean, std = mean_std([1, 2, 6])
    assert mean == 3
    assert std == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert mean_std([0.25]) == (0.25, None)


# --- one seed ----------------------------------------------------


def test_mcnemar_counts_the_images_that_differ():
    differences = np.array([1] * 9 + [-1] + [0] * 500)
    assert mcnemar_exact(differences) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_exact(-differences) == mcnemar_exact(differences)
    assert mcnemar_exact(np.array([1, -1, 1, -1])) == 1
    assert mcnemar_exact(np.zeros(5)) == 1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200))
@quick
def test_the_interval_of_one_seed_agrees_with_mcnemar(wins, losses, equal):
    d = np.array([1] * wins + [-1] * losses + [0] * (equal + 1))
    p, (low, high) = images_only(d)
    assert p == mcnemar_exact(d)
    assert (low <= 0 <= high) == (p >= 0.05)
    assert low <= d.mean() <= high
    assert images_only(-d)[1] == pytest.approx((-high, -low))


@pytest.mark.parametrize(("wins", "losses"), [(0, 7), (7, 0), (3, 9), (60, 20)])
def test_one_seed_has_scipys_test_and_exact_interval(wins, losses):
    n = wins + losses
    d = np.array([1] * wins + [-1] * losses)
    test = stats.binomtest(wins, n, 0.5)
    assert mcnemar_exact(d) == pytest.approx(test.pvalue)
    exact = 2 * np.array(test.proportion_ci(0.95, "exact")) - 1
    half = stats.norm.isf(0.025) * d.std() / sqrt(n)
    wider = min(exact[0], d.mean() - half), max(exact[1], d.mean() + half)
    if half:
        assert images_only(d)[1] == pytest.approx(wider)


def test_a_run_wins_by_mann_and_whitneys_count():
    first, second = [0.5, 0.7, 0.7, 0.9], [0.7, 0.6, 0.8]
    count = stats.mannwhitneyu(first, second).statistic
    assert chance_of_winning(first, second)[0] == pytest.approx(count / 12)


def test_the_interval_of_one_seed_is_that_of_a_proportion():
    d = np.array([1] * 60 + [-1] * 20 + [0] * 320)
    _, (low, high) = images_only(d)
    half = 1.96 * d.std() / 20
    assert low == pytest.approx(0.1 - half, abs=0.006)
    assert high == pytest.approx(0.1 + half, abs=0.006)
    p, (low, high) = images_only(d / 2)  # as a mean over pairs has it
    assert high - low == pytest.approx(half, rel=1e-3)
    assert p == pytest.approx(2 * stats.norm.sf(0.1 / d.std() * 20))
    assert images_only(np.ones(3)) == (0, (1, 1))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_a_run_wins_as_often_as_said(n, shift):
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(2, 300, n)).round(2)
    first += shift
    truth, held = stats.norm.cdf(shift / sqrt(2)), 0
    for a, b in zip(first, second, strict=True):
        share, (low, high) = chance_of_winning(a, b)
        pairs = np.sign(np.subtract.outer(a, b))
        assert share == pytest.approx((pairs.mean() + 1) / 2)
        assert low <= share <= high
        held += low <= truth <= high
    assert held > 0.87 * 300  # 89.7 to 100 % of 600 when it was chosen
    mirrored = chance_of_winning(b, a)[1]
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)


# --- several seeds -----------------------------------------------


def test_variance_is_pooled_within_groups():
    assert pooled([[1, 3], [8, 8, 11], [5]]) == Noise(pytest.approx(8 / 3), 3)
    assert pooled([[5], [9]]) == Noise(0, 0)


def recipe(right, study=0.1, own=0.1, freedom=2, most=100):
    """Of right (1) or wrong for each seed and image (S, N); variances of a training."""
    right = np.asarray(right)
    chance = independent_mistakes(right)
    noises = Noise(study, freedom), Noise(own, freedom)
    mean = right.mean(axis=0, dtype=np.float32)
    return Recipe(mean, len(right), *noises, most, chance)


def test_independent_mistakes_by_hand():
    # no seed, no image stands out: residuals of 1 / 2, sum of squares 2, 3 degrees
    assert independent_mistakes(np.array([[1, 0, 1, 0], [0, 1, 0, 1]])) == 2 / 3 / 4
    assert independent_mistakes(np.array([[1, 1, 0, 0]] * 3)) == 0  # seeds agree
    assert independent_mistakes(np.array([[1, 1], [0, 0]])) == 0  # only seeds differ
    rng = np.random.default_rng(0)
    right = rng.random((4, 50)) < 0.7
    table = right - right.mean(axis=0) - right.mean(axis=1)[:, None] + right.mean()
    expected = (table**2).sum() / (3 * 49) / 50
    assert independent_mistakes(right.astype(np.int8)) == pytest.approx(expected)
    # drawn so that nothing but chance differs, it is the variance of the accuracy
    right = (rng.random((400, 2000)) < rng.random(2000)).astype(np.int8)
    of_seeds = np.var(right.mean(axis=1), ddof=1)
    assert independent_mistakes(right) == pytest.approx(of_seeds, rel=0.2)


def test_contrast_by_hand():
    alike = [[1, 1, 0, 0]] * 2
    nothing = [[0, 0, 0, 0]] * 4
    e = contrast([(recipe(alike, 0.1, 0.2), recipe(nothing, 0.4, 0.8, freedom=3))])
    assert e.mean == 0.5
    assert [n.variance for n in e.study] == pytest.approx([0.1 / 2, 0.4 / 4])
    assert [n.variance for n in e.own] == pytest.approx([0.2 / 2, 0.8 / 4])
    assert [n.freedom for n in e.own] == pytest.approx([2, 3])
    assert e.images == pytest.approx(1 / 3 / 4)  # variance 1 / 3 over 4 images
    # independent mistakes of the seeds are no part of what images add
    crossed = recipe([[1, 0, 1, 0], [0, 1, 0, 1]])
    assert contrast([(crossed, recipe(nothing))]).images == 0


def test_cells_average_side_by_side():
    right = [[1, 0, 1, 0], [0, 1, 0, 1]]
    cell = recipe(right, 0.1, 0.1, freedom=1), recipe(right, 0.1, 0.1, freedom=1)
    e = contrast([cell, cell[::-1]])
    assert e.mean == 0
    assert [n.variance for n in e.own] == pytest.approx([2 * 0.1 / 2 / 4] * 2)
    assert [n.freedom for n in e.own] == pytest.approx([2, 2])  # Satterthwaite
    unlike = recipe(right, 9.0, 9.0, freedom=1)
    e = contrast([cell, (unlike, cell[1])])
    assert e.own[0].freedom == pytest.approx((0.1 + 9) ** 2 / (0.1**2 + 9**2))
    few = recipe(right, freedom=40, most=50)
    e = contrast([(few, few), (few, few)])
    assert e.study[0].freedom == pytest.approx(50)  # the study knows no more


def test_seeds_need_be_neither_the_same_nor_as_many():
    many, few = recipe([[1, 1, 1, 0]] * 10, freedom=9), recipe([[1, 0, 0, 0]] * 2)
    e = contrast([(many, few)])
    assert e.mean == 0.5
    assert [n.variance for n in e.study] == pytest.approx([0.1 / 10, 0.1 / 2])


def test_half_a_width_is_students_and_never_below_it():
    one = (Noise(4.0, 7),)
    assert half_width(one, 0.0, 0.05) == pytest.approx(2 * stats.t.isf(0.025, 7))
    images = half_width((), 4.0, 0.05)
    assert images == pytest.approx(2 * stats.norm.isf(0.025))
    both = half_width((Noise(4.0, 7), Noise(1.0, inf)), 0.0, 0.05)
    by_hand = 4 * stats.t.isf(0.025, 7) ** 2 + stats.norm.isf(0.025) ** 2
    assert both == pytest.approx(by_hand**0.5)


@pytest.mark.parametrize("ratio", [0.1, 1, 10])
def test_the_own_interval_covers_whatever_the_variances_are(ratio):
    rng = np.random.default_rng(0)
    n, seeds = 20_000, (2, 6)
    sides = [
        rng.normal(size=(n, s)) * d for s, d in zip(seeds, (1, ratio), strict=True)
    ]
    noises = [
        Noise(side.var(axis=1, ddof=1) / s, s - 1)
        for side, s in zip(sides, seeds, strict=True)
    ]
    gap = sides[0].mean(axis=1) - sides[1].mean(axis=1)
    assert (abs(gap) <= half_width(noises, 0.0, 0.05)).mean() > 0.948


def one(mean, variance, freedom=4, own=None, images=0.0):
    own = variance if own is None else own
    return Estimate(mean, (Noise(variance, freedom),), (Noise(own, freedom),), images)


def test_of_the_two_intervals_the_wider_is_told():
    quiet, noisy = one(0, 1, own=0.01), one(0, 1, own=100)
    by_study = stats.t.isf(ALPHA / 2 / 7, 4)
    assert quiet.interval(7)[1] == pytest.approx(by_study)
    assert noisy.interval(7)[1] == pytest.approx(10 * stats.t.isf(GUARD / 2, 4))
    assert noisy.interval(1) == noisy.interval(7)


def test_nothing_varies():
    flat = Estimate(0.0, (Noise(0.0, 2),), (Noise(0.0, 2),))
    assert flat.p() == 1
    assert flat.interval() == (0, 0)
    sure = Estimate(1.0, (Noise(0.0, 2),), (Noise(0.0, 2),))
    assert sure.p() < 1e-90
    assert sure.interval() == (1, 1)


def test_p_is_students():
    e = Estimate(3.0, (Noise(1.0, 4),), ())
    assert e.p() == pytest.approx(2 * stats.t.sf(3, 4))
    assert e.p(5) == pytest.approx(min(1, 10 * stats.t.sf(3, 4)))
    guarded = one(3.0, 1.0, own=2.0)
    own = 2 * stats.t.sf(3 / sqrt(2), 4) * ALPHA / GUARD
    assert guarded.p() == pytest.approx(own)


@given(
    st.floats(-0.05, 0.05),
    st.floats(1e-8, 1e-3),
    st.floats(1e-8, 1e-3),
    st.floats(0, 1e-4),
    st.floats(1, 60),
    st.integers(1, 60),
)
@quick
def test_the_interval_leaves_out_zero_exactly_where_the_test_rejects(
    mean, by_study, by_own, by_images, freedom, comparisons
):
    e = one(mean, by_study, freedom, by_own, by_images)
    low, high = e.interval(comparisons)
    p = e.p(comparisons)
    if abs(p - ALPHA) > 1e-7:
        assert (low <= 0 <= high) == (p > ALPHA)


def test_the_posterior_is_students():
    e = one(0.3, 0.25, own=9.0)
    t = stats.t(4, loc=0.3, scale=0.5)
    expected = t.cdf(-0.5), t.cdf(0.5) - t.cdf(-0.5), t.sf(0.5)
    assert e.posterior(0.5) == pytest.approx(expected)
    assert one(-0.3, 0.25).posterior(0.5) == pytest.approx(expected[::-1])
    two = Estimate(0.3, (Noise(0.1, 7), Noise(0.15, 7)), ())  # one noise for both
    t = stats.t(7, loc=0.3, scale=0.5)
    assert two.posterior(0.5)[2] == pytest.approx(t.sf(0.5))
    images = Estimate(0.3, (), (), 0.25)
    assert images.posterior(0.5)[2] == pytest.approx(stats.norm.sf(0.4))
    # where a bound is the end of the 95 % interval, 2.5 % lie beyond it
    low, high = two.interval()
    assert two.posterior(high)[2] == pytest.approx(0.025)
    assert two.posterior(-low)[0] == pytest.approx(0.025)
    sure = Estimate(0.0, (Noise(0.0, 2),), ())
    assert sure.posterior(0.1) == pytest.approx((0, 1, 0))


@pytest.mark.parametrize("alike", [True, False])
def test_of_those_said_to_be_better_as_many_are(alike):
    """Recipes of three seeds, of one noise or of their own; differences drawn wide."""
    rng = np.random.default_rng(0)
    studies, k, n, margin = 600, 8, 3, 0.5
    deviation = np.ones((studies, k))
    if not alike:
        deviation = (6 / rng.chisquare(6, (studies, k))) ** 0.5
    noise = shrink(deviation**2 * rng.chisquare(n - 1, (studies, k)) / (n - 1),
                   np.full(k, n - 1))  # fmt: skip
    true = rng.uniform(-5, 5, (studies, k // 2))
    means = rng.normal(size=(studies, k)) * deviation / n**0.5
    said, is_so = [], []
    for (i, j), difference in np.ndenumerate(true):
        study = [
            Noise(noise.variance[i, of] / n, noise.freedom[i, of])
            for of in (j, j + k // 2)
        ]
        mean = difference + means[i, j] - means[i, j + k // 2]
        e = Estimate(float(mean), tuple(study), ())
        if abs(abs(mean) - margin) < 2 * e.error:  # else far from 80 %
            said += [e.posterior(margin)[of] for of in (0, 2)]
            is_so += [difference < -margin, difference > margin]
    chosen = (np.array(said) > 0.7) & (np.array(said) < 0.9)
    assert chosen.sum() > 200
    excess = np.array(is_so)[chosen].mean() - np.array(said)[chosen].mean()
    assert -0.03 < excess < 0.06  # a little too careful: each side has its quantile


def planned(deviation, n, groups=11):
    """n seeds of two recipes among alike ones."""
    side = Noise(deviation**2 / n, groups * (n - 1))
    own = Noise(deviation**2 / n, n - 1)
    return Estimate(0.0, (side, side), (own, own))


def test_seeds_needed_are_those_that_were_checked():
    for deviation in (0.002, 0.003):
        needed = planned(deviation, 3).seeds_needed(0.005, 3, 18)
        assert planned(deviation, needed).detectable(18) <= 0.005
        assert planned(deviation, needed - 1).detectable(18) > 0.005
    images = one(0.0, 1e-6, images=1e-4)
    assert images.seeds_needed(0.005, 3) is None  # more seeds do not help
    assert not images.finds(0.005)
    noisy = one(0.0, 1.0)
    assert noisy.seeds_needed(0.005, 3) is None
    assert noisy.finds(0.005)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_power_is_what_is_found(n):
    """A true difference as large as `detectable` is found in about 80 % of draws."""
    rng = np.random.default_rng(0)
    effect = planned(1.0, n).detectable()
    draws = 20_000
    sides = rng.normal(size=(2, draws, n)) + np.array([effect, 0])[:, None, None]
    gap = sides[0].mean(axis=1) - sides[1].mean(axis=1)
    own = [Noise(side.var(axis=1, ddof=1) / n, n - 1) for side in sides]
    half = np.maximum(
        half_width(own, 0.0, GUARD),
        half_width([Noise(1 / n, 1e6)] * 2, 0.0, ALPHA),
    )
    assert 0.75 < (gap > half).mean() < 0.85


def test_power_does_not_overflow():
    assert one(0.0, 1.0, freedom=1).detectable(100) > 100
