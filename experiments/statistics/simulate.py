"""The error rates of the report's first two rules, by simulation of alike recipes.

    python experiments/statistics/simulate.py [--studies 20] [--out FILE]

`verdicts.json` beside it is of 500 studies, about four minutes.

A study is 22 recipes in three families, compared in 18 pairs, tested on 10,000 images
of which 1,500 are uncertain; seeds differ by 0.3 points.  Under the null all recipes
are alike, so every "better" or "worse" is a false alarm, and intervals ought to hold 0.
In the study for power the 11 recipes of the first family vary ten times as much, and
one pair of the last family truly differs by 1.0 points.

"Before" are the rules of the first version: of one seed McNemar's test decided; noise
was pooled over all 22 and never below the pair's own; the interval was a bootstrap.
"After" are those of the second: noise pooled within a family of recipes, corrected by
Holm.  `unlike_noise.py` is where the report's rules of today come from.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from resnet_se.analysis.report.significance import ALPHA, Noise, images_only, pooled
from resnet_se.utils.files import atomic_file
from resnet_se.utils.system import environment

SEEDS = (1, 2, 3, 5, 10)
IMAGES, UNCERTAIN = 10_000, 1_500
FAMILIES = (11, 2, 9)
PAIRS = (
    *((4, 0), (5, 1), (6, 2), (7, 3), (8, 6), (9, 6), (10, 6), (11, 10), (12, 10)),
    *((13, 12), (14, 13), (15, 13), (16, 13), (17, 13), (18, 13), (19, 13), (13, 20)),
    (21, 13),
)
TRUE = (13, 20)  # the pair that differs in the study for power
DEVIATION = 0.003  # of accuracy, from seed to seed
CHANCE = UNCERTAIN / IMAGES / 6 / IMAGES  # variance that independent mistakes give
PREFERENCE = (
    0.2  # an image suits one recipe more than another: deviation of its probability
)


def draw_study(
    rng: np.random.Generator, seeds: int, deviations: np.ndarray, gains: np.ndarray
) -> np.ndarray:
    """Return right (1) or wrong (0) for each recipe, seed and image: int8 (22, S, N).

    Args:
        deviations, gains: of each recipe's accuracy: (22,).
    """
    shifts = np.sqrt(np.maximum(deviations**2 - CHANCE, 0))[:, None]
    of_seed = gains[:, None] + shifts * rng.normal(size=(len(gains), seeds))
    p = rng.random(UNCERTAIN) + PREFERENCE * rng.normal(size=(len(gains), UNCERTAIN))
    p = p[:, None] + of_seed[:, :, None] * IMAGES / UNCERTAIN
    right = np.ones((len(gains), seeds, IMAGES), np.int8)
    right[:, :, :UNCERTAIN] = rng.random(p.shape, dtype=np.float32) < p
    return right


Results = list[tuple[float, tuple[float, float]]]  # p and 95 % interval of each pair


def after(right: np.ndarray, pairs: Sequence[tuple[int, int]]) -> Results:
    """Return the results by the second version; one seed is never decided."""
    from scipy import stats

    differences = [right[a] - right[b] for a, b in pairs]
    if right.shape[1] == 1:
        return [(1.0, images_only(d[0])[1]) for d in differences]
    accuracies = right.mean(axis=2)
    edges = np.cumsum((0, *FAMILIES))
    noise = [
        pool
        for i, size in enumerate(FAMILIES)
        for pool in [pooled(accuracies[edges[i] : edges[i + 1]])] * size
    ]
    results: Results = []
    for d, (a, b) in zip(differences, pairs, strict=True):
        mean, error, degrees = contrast([d], [(noise[a], noise[b])])
        half = error * stats.t.isf(ALPHA / 2, degrees)
        p = float(2 * stats.t.sf(abs(mean) / error, degrees))
        results.append((p, (mean - half, mean + half)))
    return results


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


def contrast(
    differences: Sequence[np.ndarray], noises: Sequence[tuple[Noise, Noise]]
) -> tuple[float, float, float]:
    """Return mean, error and degrees of treatment less baseline: pools by family.

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
    by_seeds = max(by_seeds, rest)
    total = by_seeds + by_images
    return float(mean), total**0.5, freedom * (total / by_seeds) ** 2


def before(right: np.ndarray, pairs: Sequence[tuple[int, int]]) -> Results:
    """Return the results by the rules of the first version."""
    from scipy import stats

    results: Results = []
    seeds, noise = right.shape[1], pooled(right.mean(axis=2))
    for a, b in pairs:
        d = right[a] - right[b]
        if seeds == 1:
            results.append(images_only(d[0]))
            continue
        d = d[:, :UNCERTAIN].astype(np.float32)  # the others are 0 in every study
        of_seed, of_image = d.sum(axis=1) / IMAGES, d.mean(axis=0)
        mean = of_seed.mean()
        for_seeds = IMAGES * ((of_seed - mean) ** 2).sum()
        for_images = seeds * ((of_image**2).sum() - IMAGES * mean**2)
        rest = (d**2).sum() - for_seeds - for_images - seeds * IMAGES * mean**2
        ms_rest = rest / ((seeds - 1) * (IMAGES - 1))
        by_seeds = max(2 * noise.variance * IMAGES, for_seeds / (seeds - 1), ms_rest)
        total = by_seeds + max(for_images / (IMAGES - 1) - ms_rest, 0)
        t = abs(mean) / np.sqrt(total / (seeds * IMAGES))
        p = 2 * stats.t.sf(t, noise.freedom * (total / by_seeds) ** 2)
        results.append((float(p), _bootstrap(d)))
    return results


def _bootstrap(d: np.ndarray, resamples: int = 200) -> tuple[float, float]:
    """Return the 95 % percentile interval, seeds and images both redrawn."""
    seeds = len(d)
    rng = np.random.default_rng(0)
    of_seed = d @ _redraws(resamples) / IMAGES  # (S, R)
    drawn = rng.integers(seeds, size=(seeds, resamples))
    redrawn = np.take_along_axis(of_seed, drawn, axis=0).mean(axis=0)
    centre = of_seed.mean(axis=0)
    means = centre + np.sqrt(seeds / (seeds - 1)) * (redrawn - centre)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


@cache
def _redraws(resamples: int) -> np.ndarray:
    """Return the number of times each image is drawn: float32 (UNCERTAIN, R)."""
    rng = np.random.default_rng(1)
    return rng.poisson(1, (UNCERTAIN, resamples)).astype(np.float32)


def simulate(studies: int, seed: int = 0) -> dict[str, Any]:
    """Return {"null": {n: {rules: …}}, "power": {n: {rules: …}}}.

    False alarms are the share of studies with at least one; coverage is the share of
    95 % intervals that hold the truth; power is that of the raw test of the one pair.
    """
    rng = np.random.default_rng(seed)
    recipes = sum(FAMILIES)
    alike = np.full(recipes, DEVIATION)
    noisy = np.where(np.arange(recipes) < FAMILIES[0], 10 * DEVIATION, DEVIATION)
    gains = np.where(np.arange(recipes) == 13, 0.01, 0.0)
    null: dict[tuple[int, str], list[tuple[bool, float]]] = defaultdict(list)
    power: dict[tuple[int, str], list[bool]] = defaultdict(list)
    rules = {"before": before, "after": after}
    for n in SEEDS:
        for _ in range(studies):
            of_alike = draw_study(rng, n, alike, 0 * gains)
            of_noisy = draw_study(rng, n, noisy, gains)
            for name, rule in rules.items():
                p, intervals = zip(*rule(of_alike, PAIRS), strict=True)
                alarm = min(corrected for corrected, _ in holm(p)) < ALPHA
                held = np.mean([low <= 0 <= high for low, high in intervals])
                null[n, name].append((alarm, float(held)))
                power[n, name].append(rule(of_noisy, [TRUE])[0][0] < ALPHA)
    shares = {key: np.mean(alarms, axis=0) for key, alarms in null.items()}
    return {
        "studies": studies,
        "null": {
            str(n): {
                name: {
                    "false_alarms": round(float(shares[n, name][0]), 4),
                    "coverage": round(float(shares[n, name][1]), 4),
                }
                for name in rules
            }
            for n in SEEDS
        },
        "power": {
            str(n): {name: round(float(np.mean(power[n, name])), 4) for name in rules}
            for n in SEEDS
        },
    }


def main() -> None:
    """Print the table, and write the figures as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.studies < 1:
        parser.error(f"--studies: at least 1 expected, got {arguments.studies}")
    result = {**environment(), **simulate(arguments.studies)}
    print("n   false alarms      95 % covers       power for +1.0")
    print("     before   after    before   after    before   after")
    for n, of in result["null"].items():
        figures = [of[r][k] for k in ("false_alarms", "coverage") for r in of]
        figures += result["power"][n].values()
        print(f"{n:<3} " + " ".join(f"{100 * f:5.1f} %" for f in figures))
    if arguments.out:
        with atomic_file(arguments.out) as file:
            file.write(json.dumps(result, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
