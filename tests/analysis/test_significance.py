"""The statistics against cases counted by hand, and their laws."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resnet_se.analysis.report.significance import (
    Estimate,
    Noise,
    contrast,
    holm,
    images_only,
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


# --- many comparisons --------------------------------------------


def test_holm_by_hand():
    # in order: 4 × 0.005, 3 × 0.01, 2 × 0.03, and 1 × 0.04, which may not fall again
    pairs = holm([0.01, 0.04, 0.03, 0.005])
    assert [p for p, _ in pairs] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # two are rejected, at 0.05 / 4 and 0.05 / 3; the rest was tested at 0.05 / 2
    levels = [0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4]
    assert [level for _, level in pairs] == pytest.approx(levels)
    assert [p for p, _ in holm([0.7, 0.9])] == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=25))
@quick
def test_holm_rejects_exactly_what_is_below_its_level(p_values):
    for p, (corrected, level) in zip(p_values, holm(p_values), strict=True):
        if abs(p - level) > 1e-12:
            assert (corrected < 0.05) == (p < level)
        assert corrected >= p


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


# --- several seeds -----------------------------------------------


def test_variance_is_pooled_within_groups():
    assert pooled([[1, 3], [8, 8, 11], [5]]) == Noise(pytest.approx(8 / 3), 3)
    assert pooled([[5], [9]]) == Noise(0, 0)


def test_contrast_by_hand():
    crossed = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])  # no seed, no image stands out
    one = contrast([crossed], [(Noise(0.1, 2), Noise(0.1, 2))])
    assert (one.mean, one.by_seeds, one.by_images) == (0.5, pytest.approx(0.1), 0)
    assert one.degrees == 2  # one pool of two degrees, not two
    # Student's distribution of two degrees has a closed form
    t = 0.5 / sqrt(0.1)
    assert one.p == pytest.approx(1 - t / sqrt(2 + t**2))
    # seeds agree: independent mistakes, 2 / 3 a cell of 8, stand in for the noise
    none = contrast([crossed], [(Noise(0, 2), Noise(0, 2))])
    assert none.by_seeds == pytest.approx(2 / 3 / 8)
    # seeds agree in every image: images have variance 1 / 3
    alike = contrast([np.array([[1, 1, 0, 0]] * 2)], [(Noise(0.05, 2), Noise(0.05, 2))])
    assert alike.by_images == pytest.approx(1 / 3 / 4)
    assert alike.degrees == pytest.approx(2 * ((0.05 + 1 / 12) / 0.05) ** 2)


def test_two_pools_are_welch_and_satterthwaite():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.9, 0.01, 5), rng.normal(0.8, 0.03, 5)
    d = (a - b)[:, None] * np.ones((5, 3))  # images add nothing
    e = contrast([d], [(pooled([a]), pooled([b]))])
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert e.p == pytest.approx(expected.pvalue, rel=1e-4)
    assert e.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_cells_average_and_share_their_pool():
    d = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])
    noise = Noise(0.1, 6)
    both = contrast([d, -d], [(noise, noise)] * 2)
    assert both.mean == 0
    assert both.by_seeds == pytest.approx(4 * 0.1 / 2 / 4)  # four groups, two seeds
    assert both.degrees == pytest.approx(6)


def test_nothing_varies():
    flat = [(Noise(0, 2), Noise(0, 2))]
    assert contrast([np.zeros((2, 4))], flat).p == 1
    assert contrast([np.ones((2, 4))], flat).p == 0
    assert contrast([np.ones((2, 4))], flat).interval() == (1, 1)


@given(
    st.floats(-0.05, 0.05),
    st.floats(1e-8, 1e-3),
    st.floats(0, 1e-4),
    st.floats(1, 60),
    st.floats(0.001, 0.05),
)
@quick
def test_the_interval_leaves_out_zero_exactly_where_the_test_rejects(
    mean, by_seeds, by_images, freedom, level
):
    e = Estimate(mean, by_seeds, by_images, freedom)
    low, high = e.interval(level)
    if abs(e.p - level) > 1e-9:
        assert (low <= 0 <= high) == (e.p > level)


def test_seeds_needed_are_those_that_were_checked():
    """0.5 points at p < 0.05 / 18: 6 seeds at a deviation of 0.2, about 13 at 0.3."""
    for deviation, expected in ((0.002, 6), (0.003, 12)):
        e = Estimate(0, 2 * deviation**2 / 3, 0, 11 * 2)  # 3 seeds of 11 groups
        assert e.seeds_needed(0.005, 3, 0.05 / 18) == expected
        n = expected
        enough = Estimate(0, 2 * deviation**2 / n, 0, 11 * (n - 1))
        assert enough.detectable(0.05 / 18) <= 0.005
    images = Estimate(0, 1e-6, 1e-4, 4)
    assert images.seeds_needed(0.005, 3, 0.05) is None  # more seeds do not help


@pytest.mark.parametrize("freedom", [1, 2, 4, 40, inf])
def test_power_is_what_is_found(freedom):
    """A true difference as large as `detectable` is found in 80 % of draws."""
    rng = np.random.default_rng(0)
    e = Estimate(0, 1.0, 0, freedom)
    effect = e.detectable(0.05)
    n = 20_000
    scale = np.sqrt(rng.chisquare(freedom, n) / freedom) if freedom < inf else 1
    t = (rng.normal(effect, 1, n)) / scale
    found = np.mean(t > stats.t.isf(0.025, freedom))
    assert found == pytest.approx(0.8, abs=0.015)
    assert Estimate(0, 1.0, 0, 1).detectable(0.05 / 18) > 100  # does not overflow
