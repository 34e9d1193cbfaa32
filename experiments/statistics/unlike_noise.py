"""Verdicts where the noise of recipes is unlike, by simulation; `plan.md` says how.

    python experiments/statistics/unlike_noise.py [--studies 3000] [--seed 1] [--out …]

Axes: R studies, K recipes (the first is the baseline), M = K - 1 comparisons.  Only the
three sums of a study that the rules need are kept: means, variances, counts of seeds.

Where all true differences are 0, a study has a false verdict exactly where its
simultaneous intervals do not all hold; under any true differences the share of studies
whose intervals all hold is the same, as they move along with the means.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

ALPHA = 0.05
RECIPES = (6, 22, 60)
SEEDS = (2, 3, 5, 10)
GAIN = 1.0  # of the last recipe, where power is asked for


@dataclass(frozen=True)
class Study:
    """Means and variances over seeds (R, K), and how many seeds (K,)."""

    means: np.ndarray
    variances: np.ndarray
    seeds: np.ndarray
    correlation: np.ndarray  # (R, 1), of the study's seeds; 0 where none is measured

    @property
    def freedom(self) -> np.ndarray:
        return self.seeds - 1


# --- what is drawn -----------------------------------------------

Setting = Callable[[np.random.Generator, int, int, int], Study]


def summary(accuracies: np.ndarray, seeds: np.ndarray) -> Study:
    """Of accuracies (R, K, S); recipe i has the first `seeds[i]` of them."""
    used = np.arange(accuracies.shape[2]) < seeds[:, None]
    means = np.where(used, accuracies, 0).sum(axis=2) / seeds
    squares = np.where(used, (accuracies - means[:, :, None]) ** 2, 0).sum(axis=2)
    shared = accuracies[:, :, : seeds.min()]
    variances = squares / (seeds - 1)
    return Study(means, variances, seeds, correlation(shared))


def correlation(accuracies: np.ndarray) -> np.ndarray:
    """Mean over pairs of recipes less two standard errors, never below 0: (R, 1)."""
    r, k, s = accuracies.shape
    if s < 3:
        return np.zeros((r, 1))
    z = accuracies - accuracies.mean(axis=2, keepdims=True)
    z /= np.sqrt((z**2).sum(axis=2, keepdims=True))
    mean = ((z.sum(axis=1) ** 2).sum(axis=1) - k) / (k * (k - 1))
    # a pair's correlation has variance 1 / (s - 1); pairs hang together if mean > 0
    error = np.sqrt(2 / (k * (k - 1)) / (s - 1)) + np.abs(mean) * np.sqrt(2 / (s - 1))
    return np.maximum(mean - 2 * error, 0)[:, None]


def rotation(k: int, n: int) -> np.ndarray:
    """Seeds of each recipe where they are unequal; the baseline has n."""
    return np.resize([n, 2, 2 * n, max(2, n // 2)], k)


def noisy(which: int | slice, deviation: float, unequal: bool = False) -> Setting:
    """One recipe, or several, of another deviation among 0.2."""

    def draw(rng: np.random.Generator, r: int, k: int, n: int) -> Study:
        deviations = np.full(k, 0.2)
        deviations[which] = deviation
        seeds = rotation(k, n) if unequal else np.full(k, n)
        drawn = rng.normal(size=(r, k, seeds.max())) * deviations[:, None]
        return summary(drawn, seeds)

    return draw


def alike(unequal: bool = False, correlated: float = 0.0) -> Setting:
    """All of deviation 0.3."""

    def draw(rng: np.random.Generator, r: int, k: int, n: int) -> Study:
        seeds = rotation(k, n) if unequal else np.full(k, n)
        own = rng.normal(size=(r, k, seeds.max()))
        common = rng.normal(size=(r, 1, seeds.max())) if correlated else 0.0
        drawn = np.sqrt(correlated) * common + np.sqrt(1 - correlated) * own
        return summary(0.3 * drawn, seeds)

    return draw


def log_uniform(unequal: bool = False) -> Setting:
    """Deviations from 0.2 to 4, anew in every study."""

    def draw(rng: np.random.Generator, r: int, k: int, n: int) -> Study:
        deviations = np.exp(rng.uniform(np.log(0.2), np.log(4), size=(r, k, 1)))
        seeds = rotation(k, n) if unequal else np.full(k, n)
        return summary(deviations * rng.normal(size=(r, k, seeds.max())), seeds)

    return draw


def diverged(which: int) -> Setting:
    """One seed of one recipe lies 80 points low."""

    def draw(rng: np.random.Generator, r: int, k: int, n: int) -> Study:
        drawn = 0.3 * rng.normal(size=(r, k, n))
        drawn[:, which, 0] -= 80
        return summary(drawn, np.full(k, n))

    return draw


def student(rng: np.random.Generator, r: int, k: int, n: int) -> Study:
    drawn = 0.3 / np.sqrt(3) * rng.standard_t(3, size=(r, k, n))
    return summary(drawn, np.full(k, n))


SETTINGS: dict[str, Setting] = {
    "alike": alike(),
    "noisy recipe": noisy(1, 1.5),
    "mildly noisy recipe": noisy(1, 0.6),
    "noisy baseline": noisy(0, 1.5),
    "mildly noisy baseline": noisy(0, 0.6),
    "log-uniform": log_uniform(),
    "diverged seed": diverged(1),
    "diverged baseline": diverged(0),
    "Student-3": student,
    "correlated": alike(correlated=0.5),
    "a third noisy": noisy(slice(1, None, 3), 1.5),
    "unequal": alike(unequal=True),
    "unequal, noisy": noisy(1, 1.5, unequal=True),
    "unequal, log-uniform": log_uniform(unequal=True),
}


# --- what is concluded: half an interval (R, M) at a level --------


def quantile(degrees: np.ndarray, level: float) -> np.ndarray:
    """Student's, two-sided, interpolated over 1 / degrees."""
    grid, of = _quantiles(level)
    return np.exp(np.interp(1 / degrees, grid, of))


@cache
def _quantiles(level: float) -> tuple[np.ndarray, np.ndarray]:
    grid = np.concatenate([[1e-9], np.geomspace(1e-4, 1, 3000)])
    return grid, np.log(stats.t.isf(level / 2, 1 / grid))


Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # variances (R, K), degrees, most


def satterthwaite(study: Study, of: Part, level: float) -> np.ndarray:
    """One quantile, at the degrees that the two variances give together."""
    variances, freedom, most = of
    parts = variances / study.seeds  # (R, K)
    total = parts[:, 1:] + parts[:, :1]
    spread = parts**2 / freedom
    most = np.broadcast_to(most, parts.shape)
    with np.errstate(divide="ignore"):
        degrees = total**2 / (spread[:, 1:] + spread[:, :1])
    degrees = np.minimum(degrees, np.maximum(most[:, 1:], most[:, :1]))
    return np.sqrt(total) * quantile(degrees, level)


def banerjee(study: Study, of: Part, level: float) -> np.ndarray:
    """Each part with its own quantile, which always holds its level.

    Banerjee, Sankhya 24 (1962) 145; Satterthwaite's degrees are themselves estimated,
    and too many where the noisier of two recipes has the fewer seeds.
    """
    variances, freedom, most = of
    parts = quantile(np.minimum(freedom, most), level) ** 2 * variances / study.seeds
    return np.sqrt(parts[:, 1:] + parts[:, :1])


def own(study: Study) -> Part:
    return study.variances, study.freedom.astype(float), np.inf


def pooled(
    study: Study, most_apart: float = 0.0, gamma: float = 0.0, times: float = 0.0
) -> Part:
    f = study.freedom.astype(float)
    kept = (
        1.0 - apart(study, most_apart, times)
        if most_apart
        else np.ones(study.means.shape)
    )
    total = (kept * f).sum(axis=1, keepdims=True)
    pool = (kept * study.variances * f).sum(axis=1, keepdims=True) / total
    alone = kept == 0
    if gamma:
        alone |= unlike(study, kept, gamma)
    degrees = np.where(alone, f, total)
    return np.where(alone, study.variances, pool), degrees, degrees


def unlike(study: Study, kept: np.ndarray, gamma: float) -> np.ndarray:
    """Recipes (R, K) whose variance lies above that of the others, F test at gamma."""
    f = study.freedom.astype(float)
    squares = kept * study.variances * f
    rest = (kept * f).sum(axis=1, keepdims=True) - kept * f
    others = (squares.sum(axis=1, keepdims=True) - squares) / rest
    return special.fdtrc(f, rest, study.variances / others) < gamma


def apart(study: Study, most: float, times: float = 0.0) -> np.ndarray:
    """Recipes (R, K) whose variance is an outlier against the pool of smaller ones.

    As many of the largest as there are down to the last significant one; at most that
    share of the recipes, and one at least.  `times`: how many times the deviation of
    the rest it has at least.
    """
    order = np.argsort(study.variances, axis=1)
    f = study.freedom[order]
    squares = np.take_along_axis(study.variances, order, axis=1) * f
    below, rest = (
        np.cumsum(squares, axis=1),
        np.cumsum(f, axis=1),
    )  # of this and smaller
    k = squares.shape[1]
    first = k - max(int(k * most), 1)
    ratio = squares[:, first:] / f[:, first:]
    ratio /= below[:, first - 1 : -1] / rest[:, first - 1 : -1]
    p = special.fdtrc(f[:, first:], rest[:, first - 1 : -1], ratio)
    outlying = (p < 0.01 / k) & (ratio > times**2)
    outlying = np.logical_or.accumulate(outlying, axis=1)
    marks = np.zeros(squares.shape, bool)
    np.put_along_axis(marks, order[:, first:], outlying, axis=1)
    return marks


def trigamma_inverse(values: np.ndarray) -> np.ndarray:
    grid, of = _trigamma()
    return np.exp(np.interp(np.log(values), of, grid))


@cache
def _trigamma() -> tuple[np.ndarray, np.ndarray]:
    grid = np.linspace(np.log(1e-2), np.log(1e4), 4000)[::-1]
    return grid, np.log(special.polygamma(1, np.exp(grid)))


def moderated(
    study: Study, most_apart: float = 0.0, gamma: float = 0.0, times: float = 0.0
) -> Part:
    """Variances shrunk towards the study's; outlying ones keep their own."""
    f = np.broadcast_to(study.freedom, study.means.shape).astype(float)
    out = apart(study, most_apart, times) if most_apart else np.zeros(f.shape, bool)
    kept = np.where(out, 0.0, 1.0)
    count = kept.sum(axis=1, keepdims=True)
    freedom = (kept * f).sum(axis=1, keepdims=True)
    e = np.log(np.maximum(study.variances, 1e-12))
    e += np.log(f / 2) - special.digamma(f / 2)
    middle = (kept * e).sum(axis=1, keepdims=True) / count
    spread = (kept * (e - middle) ** 2).sum(axis=1, keepdims=True) / (count - 1)
    spread -= (kept * special.polygamma(1, f / 2)).sum(axis=1, keepdims=True) / count
    d0 = np.where(spread > 1e-3, 2 * trigamma_inverse(np.maximum(spread, 1e-3)), np.inf)
    with np.errstate(invalid="ignore"):
        of_logs = np.exp(middle + special.digamma(d0 / 2) - np.log(d0 / 2))
    pool = (kept * f * study.variances).sum(axis=1, keepdims=True) / freedom
    s0 = np.where(np.isinf(d0), pool, of_logs)
    if gamma:
        out = out | unlike(study, kept, gamma)
    d0 = np.where(out, 0.0, d0)
    with np.errstate(invalid="ignore"):
        shrunk = (d0 * s0 + f * study.variances) / (d0 + f)
    shrunk = np.where(np.isinf(d0), s0, shrunk)
    most = np.maximum(freedom, 1)
    return shrunk, d0 + f, np.where(out, f, most)


def simulate(
    rng: np.random.Generator, setting: Setting, r: int, k: int, n: int
) -> dict[str, dict[str, float]]:
    """{method: {"false", "cover", "power", "power_one"}} of R studies, as shares."""
    study = setting(rng, r, k, n)
    gaps = study.means[:, 1:] - study.means[:, :1]
    halves: dict[tuple[str, float], np.ndarray] = {}

    def half(rule: str, level: float) -> np.ndarray:
        if (rule, level) not in halves:
            part, width = RULES[rule]
            halves[rule, level] = width(study, part(study), level)
        return halves[rule, level]

    result = {}
    for name, (base, guard, level) in METHODS.items():
        joint, single = half(base, ALPHA / (k - 1)), half(base, ALPHA)
        if guard:
            joint = np.maximum(joint, half(guard, level))
            single = np.maximum(single, half(guard, level))
        result[name] = {
            "false": float((np.abs(gaps) > joint).any(axis=1).mean()),
            "cover": float((np.abs(gaps) <= single).mean()),
            "power": float((gaps[:, -1] + GAIN > joint[:, -1]).mean()),
            "power_one": float((gaps[:, -1] + GAIN > single[:, -1]).mean()),
        }
    return result


def with_pairs(rule: Callable[..., Part], **options: float) -> Callable[[Study], Part]:
    """The rule with variances reduced by the study's own correlation of seeds."""

    def part(study: Study) -> Part:
        variances, freedom, most = rule(study, **options)
        return variances * (1 - study.correlation), freedom, most

    return part


CHOSEN = {"most_apart": 0.1, "gamma": 0.02, "times": 20.0}
Rule = tuple[Callable[[Study], Part], Callable[[Study, Part, float], np.ndarray]]
RULES: dict[str, Rule] = {
    "pooled": (pooled, satterthwaite),
    "own": (own, satterthwaite),
    "own exact": (own, banerjee),
    "moderated": (moderated, satterthwaite),
    "robust": (partial(moderated, most_apart=0.5), satterthwaite),
    "moderated exact": (moderated, banerjee),
    "chosen": (partial(moderated, **CHOSEN), banerjee),
    "pooled alone": (partial(pooled, **CHOSEN), banerjee),
    "chosen pairs": (with_pairs(moderated, **CHOSEN), banerjee),
    "own pairs": (with_pairs(own), banerjee),
}

# {name: (rule corrected for M, the guard that is not, its level)}
METHODS: dict[str, tuple[str, str, float]] = {
    "today, pooled": ("pooled", "", 1),
    "today, own noise": ("own", "", 1),
    "own noise, exact": ("own exact", "", 1),
    "moderated": ("moderated", "", 1),
    "moderated, outliers apart": ("robust", "", 1),
    "pooled, guarded": ("pooled", "own", 0.05),
    "moderated, guarded": ("moderated", "own", 0.05),
    "moderated, guarded exactly": ("moderated exact", "own exact", 0.05),
    "pooled or alone, guarded exactly": ("pooled alone", "own exact", 0.035),
    "chosen": ("chosen", "own exact", 0.035),
    "chosen, pairs": ("chosen pairs", "own pairs", 0.035),
}


def upper_bound(share: float, studies: int) -> float:
    """95 % one-sided, exact, of a share."""
    hits = round(share * studies)
    return (
        float(stats.beta.ppf(0.95, hits + 1, studies - hits)) if hits < studies else 1.0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--studies", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    studies, seed = arguments.studies, arguments.seed
    rows = [
        row(k, n, name, studies, seed)
        for k in RECIPES
        for n in SEEDS
        for name in SETTINGS
    ]
    result = {"studies": studies, "seed": seed, "rows": rows}
    print(by_setting(result), by_method(result), sep="\n\n")
    if arguments.out:
        lines = ",\n".join(json.dumps(row) for row in rows)
        head = f'{{"studies": {studies}, "seed": {seed}, "rows": [\n'
        arguments.out.write_text(f"{head}{lines}\n]}}\n")


def row(k: int, n: int, name: str, studies: int, seed: int) -> dict[str, Any]:
    """Return all that was found of one setting, which has random numbers of its own."""
    rng = np.random.default_rng((seed, k, n, list(SETTINGS).index(name)))
    found = simulate(rng, SETTINGS[name], studies, k, n)
    return {"k": k, "n": n, "setting": name, "methods": found}


# --- tables, in per cent -----------------------------------------


def by_setting(result: dict[str, Any]) -> str:
    """Return the false verdicts of each setting, the worst k: today and chosen."""
    lines = [
        "| setting | " + " | ".join(f"n = {n}" for n in SEEDS) + " |",
        "|---|" + "---|" * len(SEEDS),
    ]
    for name in SETTINGS:
        cells = []
        for n in SEEDS:
            of = [r["methods"] for r in _rows(result, n) if r["setting"] == name]
            worst = [
                100 * max(methods[rule]["false"] for methods in of)
                for rule in ("today, pooled", "today, own noise", "chosen")
            ]
            cells.append("{:.1f}, {:.1f} → **{:.1f}**".format(*worst))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_method(result: dict[str, Any]) -> str:
    """Return the worst of all settings and k of each method and n, and its power."""
    lines = [
        "| method | n | false (bound) | where | least cover | power | one planned |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        for n in SEEDS:
            of_n = _rows(result, n)
            worst = max(of_n, key=lambda r: r["methods"][method]["false"])
            false = worst["methods"][method]["false"]
            bound = upper_bound(false, result["studies"])
            cover = min(r["methods"][method]["cover"] for r in of_n)
            at = next(r for r in of_n if (r["k"], r["setting"]) == (22, "alike"))
            power, one = (at["methods"][method][p] for p in ("power", "power_one"))
            lines.append(
                f"| {method} | {n} | {100 * false:.1f} ({100 * bound:.1f}) "
                f"| {worst['setting']}, k = {worst['k']} | {100 * cover:.1f} "
                f"| {100 * power:.0f} | {100 * one:.0f} |"
            )
    return "\n".join(lines)


def _rows(result: dict[str, Any], n: int) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["n"] == n]


if __name__ == "__main__":
    main()
