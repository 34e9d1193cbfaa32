"""The noise of a study: its shrinkage, who stands apart, and how often it errs."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from resnet_se.analysis.report.groups import sections
from resnet_se.analysis.report.noise import far_seeds, rates, recipes, shrink
from resnet_se.analysis.report.runs import Run
from tests.records import record

STUDY = Path(__file__).parents[2] / "experiments" / "statistics" / "unlike_noise.py"


def drawn(rng, deviations, freedom, studies=1):
    freedom = np.broadcast_to(freedom, len(deviations))
    size = (studies, len(deviations))
    return np.square(deviations) * rng.chisquare(freedom, size) / freedom, freedom


def test_alike_variances_become_their_pool():
    variances, freedom = np.array([[1.0, 1.1, 0.9, 1.0]]), np.array([4, 8, 4, 4])
    noise = shrink(variances, freedom)
    pool = (variances[0] * freedom).sum() / 20
    assert noise.variance[0] == pytest.approx([pool] * 4)
    assert noise.freedom[0] == pytest.approx([20] * 4)
    assert not noise.unlike.any()


def test_the_prior_is_that_of_the_moments_of_log_variances():
    """Smyth 2004: e = log s² - ψ(f/2) + log(f/2); var e - ψ'(f/2) = ψ'(d0/2)."""
    rng = np.random.default_rng(1)
    variances, freedom = drawn(rng, np.exp(rng.normal(size=40)), 9)
    noise = shrink(variances, freedom)
    e = np.log(variances[0]) - special.digamma(4.5) + np.log(4.5)
    excess = e.var(ddof=1) - special.polygamma(1, 4.5)
    kept = ~noise.unlike[0]
    assert kept.sum() > 10
    d0 = noise.freedom[0, kept][0] - 9
    assert special.polygamma(1, d0 / 2) == pytest.approx(excess, rel=1e-6)
    s0 = np.exp(e.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))
    expected = (d0 * s0 + 9 * variances[0, kept]) / (d0 + 9)
    assert noise.variance[0, kept] == pytest.approx(expected)


def test_the_prior_is_found_again():
    """Variances drawn from it: s0² d0 / χ²(d0)."""
    rng = np.random.default_rng(2)
    d0, s0 = 6.0, 4.0
    truth = np.sqrt(s0 * d0 / rng.chisquare(d0, 3000))
    noise = shrink(*drawn(rng, truth, 4))
    kept = ~noise.unlike[0]
    assert noise.freedom[0, kept][0] - 4 == pytest.approx(d0, rel=0.2)


def test_a_noisy_recipe_keeps_its_own_variance():
    variances = np.array([[1.0, 1.2, 0.8, 1.0, 30.0]])
    noise = shrink(variances, np.full(5, 4))
    assert noise.unlike[0].tolist() == [False] * 4 + [True]
    assert (noise.variance[0, 4], noise.freedom[0, 4]) == (30, 4)
    assert stats.f.sf(30 / 1.0, 4, 16) < 0.02
    assert not noise.outlying.any()
    assert noise.most == 20


def test_a_diverged_recipe_has_no_part_in_the_noise_of_the_others():
    variances = np.array([[1.0, 1.2, 0.8, 1.0, 1e4]])
    noise = shrink(variances, np.full(5, 4))
    without = shrink(variances[:, :4], np.full(4, 4))
    assert noise.outlying[0].tolist() == [False] * 4 + [True]
    assert noise.variance[0, :4] == pytest.approx(without.variance[0])
    assert noise.freedom[0, :4] == pytest.approx(without.freedom[0])
    assert noise.most == without.most


def test_few_recipes():
    assert shrink(np.array([[2.0]]), np.array([3])).variance == 2
    two = shrink(np.array([[1.0, 1e6]]), np.array([3, 3]))
    assert two.variance[0, 1] == 1e6


def test_scale_does_not_matter():
    variances, freedom = drawn(np.random.default_rng(3), np.linspace(1, 3, 12), 2)
    one, other = shrink(variances, freedom), shrink(1e-6 * variances, freedom)
    assert other.variance == pytest.approx(1e-6 * one.variance)
    assert other.freedom == pytest.approx(one.freedom)


def test_the_rule_is_the_one_that_was_chosen_by_simulation():
    study = runpy.run_path(str(STUDY))
    rng = np.random.default_rng(4)
    for name in ("alike", "log-uniform", "diverged seed", "unequal, noisy"):
        of = study["SETTINGS"][name](rng, 40, 22, 5)
        variances, degrees, most = study["moderated"](of, **study["CHOSEN"])
        noise = shrink(of.variances, of.freedom)
        assert noise.variance == pytest.approx(variances, rel=1e-4)
        assert noise.freedom == pytest.approx(np.minimum(degrees, most), rel=1e-4)


# --- rates -------------------------------------------------------


def test_rates_are_those_of_the_simulation():
    k = 22
    against_first = [[(i, 0)] for i in range(1, k)]
    alike = rates(np.full(k, 0.003), np.full(k, 5), against_first)
    assert 0.01 < alike.false < 0.04  # 2.4 % in the committed table
    assert 0.98 < alike.coverage < 1
    deviations = np.full(k, 0.002)
    deviations[0] = 0.006
    mild = rates(deviations, np.full(k, 5), against_first)
    assert alike.false < mild.false < 0.055


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("noisy", [[], [0], [0, 4, 8], [0, 1, 2, 3]])
def test_averages_over_cells_hold_too(seeds, noisy):
    """Three levels in four cells, each against the first."""
    deviations = np.full(12, 0.002)
    deviations[noisy] = 0.015
    cells = [[(4 * level + c, c) for c in range(4)] for level in (1, 2)]
    found = rates(deviations, np.full(12, seeds), cells)
    assert found.false < 0.055
    assert found.coverage > 0.94


# --- seeds of a report -------------------------------------------


def groups(**accuracies):
    runs = [
        Run.of(f"{name}{seed}", record(name, seed, range(wrong)))
        for name, errors in accuracies.items()
        for seed, wrong in enumerate(errors)
    ]
    return sections(runs)[0].groups


def test_a_far_seed_is_named_with_its_distance():
    of = groups(a=(40, 42, 38, 360), b=(30, 31, 32), c=(50,))
    ((group, seed, distance),) = far_seeds(of)
    assert (group.experiment, seed) == ("a", 3)
    assert distance == pytest.approx((360 - 41) / 400)
    assert far_seeds(groups(a=(40, 42, 38), b=(30, 31, 60))) == []
    assert far_seeds(groups(a=(40, 40), b=(30, 30))) == []
    two = far_seeds(groups(a=(40, 360), b=(30, 31), c=(30, 32)))
    assert [seed for _, seed, _ in two] == [0, 1]


def test_the_deviation_on_all_images_is_jordans():
    """His estimate: N / (N - 1) of the variance less Σ p (1 - p) / N²."""
    rng = np.random.default_rng(6)
    runs = [
        record("a", s, rng.choice(400, 60 + 20 * s, replace=False)) for s in range(4)
    ]
    (group,) = sections([Run.of("a", r) for r in runs])[0].groups
    correct = np.stack([run.correct() for run in group.runs])
    mistakes = correct.var(axis=0, ddof=1).sum() / 400**2
    expected = (400 / 399) * (np.var(correct.mean(axis=1), ddof=1) - mistakes)
    assert group.deviation == pytest.approx(expected**0.5)
    assert groups(b=(40,))[0].deviation is None
    alike = groups(c=(40, 40, 40))[0]
    assert alike.deviation == 0


def test_recipes_are_of_two_seeds_or_more():
    of = groups(a=(40, 44), b=(30, 31, 35), c=(50,))
    found = recipes(of)
    assert [found[id(g)].seeds for g in of[:2]] == [2, 3]
    assert id(of[2]) not in found
    own = found[id(of[1])].own
    assert own.variance == pytest.approx(np.var([0.925, 0.9225, 0.9125], ddof=1))
    assert own.freedom == 2
    assert recipes(of[2:]) == {}
