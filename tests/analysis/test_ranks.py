"""The ranks that the intervals of all differences allow."""

from __future__ import annotations

import csv
from itertools import combinations

import numpy as np

from resnet_se.analysis.canvas import draw
from resnet_se.analysis.report.compare import compare
from resnet_se.analysis.report.document import report
from resnet_se.analysis.report.groups import Section, sections
from resnet_se.analysis.report.noise import rates
from resnet_se.analysis.report.ranks import bounds, intervals, picture, ranks
from resnet_se.analysis.report.runs import Run
from tests.records import record, swept, write

# Errors of 400 images by seed: two good, two alike in the middle, one that is anywhere.
ERRORS = {
    "a": (20, 22, 21),
    "b": (23, 20, 21),
    "c": (120, 121, 119),
    "d": (122, 121, 120),
    "wild": (20, 180, 90),
    "f": (250, 251, 249),
}


def planted(errors=ERRORS):
    return [
        record(name, seed, range(n))
        for name, seeds in errors.items()
        for seed, n in enumerate(seeds)
    ]


def one_section(records) -> Section:
    (section,) = sections(Run.of(str(i), r) for i, r in enumerate(records))
    return section


def ranked(records):
    section = one_section(records)
    return section, ranks(section, compare(section).study)


def test_ranks_by_hand():
    """Of four, the first beats the last two, the second the last; the rest is open."""
    differences = np.tile([-1.0, 1.0], (4, 4, 1))
    for better, worse in ((0, 2), (0, 3), (1, 3)):
        differences[better, worse] = 1, 2
        differences[worse, better] = -2, -1
    assert bounds(differences) == ([1, 1, 2, 3], [2, 3, 4, 4])
    assert bounds(np.tile([0.0, 1.0], (3, 3, 1))) == ([1] * 3, [3] * 3)  # 0 is within


def test_recipes_are_ranked_as_far_as_their_seeds_tell():
    section, found = ranked(planted())
    names = [rank.group.experiment for rank in found]
    assert names == ["a", "b", "wild", "c", "d", "f"]
    assert [rank.place for rank in found] == [1, 2, 3, 4, 5, 6]
    assert {r.group.experiment: (r.low, r.high) for r in found} == {
        "a": (1, 3),
        "b": (1, 3),
        "wild": (1, 6),
        "c": (3, 5),
        "d": (3, 5),
        "f": (5, 6),
    }
    ((name, caption, figure),) = picture(section, found)
    assert name == "ranks"
    assert "Any of the 3 whose bar begins at 1 may be the best" in caption
    assert "no rank" not in caption
    assert "rank of 6" in draw(figure)


def test_long_names_leave_room_for_the_ranks():
    """A layout that collapses warns, which is an error here."""
    long = {f"{'name' * 40}_{name}": errors for name, errors in ERRORS.items()}
    section, found = ranked(planted(long))
    ((*_, figure),) = picture(section, found)
    draw(figure)
    assert min(axis.get_position().width for axis in figure.axes) > 0.15


def test_the_intervals_are_those_of_a_comparison_of_so_many():
    named = [{"experiment": "a", "question": "?"}]
    records = [r | ({"against": named} if r["experiment"] != "a" else {})
               for r in planted()]  # fmt: skip
    section = one_section(records)
    family = compare(section)
    found = intervals(section.groups, family.study)
    c = next(c for c in family.comparisons if c.name == "c − a")
    i, j = (section.groups.index(group) for group in c.pairs[0])
    assert tuple(found[i, j]) == c.estimate.interval(15)
    assert tuple(found[j, i]) == tuple(-v for v in c.estimate.interval(15)[::-1])


def test_recipes_of_the_same_mean_share_a_place():
    _, found = ranked(planted(dict.fromkeys("abcdef", (40, 42))))
    assert {(rank.place, rank.low, rank.high) for rank in found} == {(1, 1, 6)}


def test_one_seed_has_no_rank_and_few_recipes_none():
    section, found = ranked([*planted(), record("alone")])
    assert len(found) == 6
    ((_, caption, _),) = picture(section, found)
    assert "recipes of one seed and folds have no rank" in caption
    few = {name: ERRORS[name] for name in "abcdf"}
    section, found = ranked([*planted(few), record("alone")])
    assert found == []
    assert list(picture(section, found)) == []


def test_folds_are_no_recipes():
    folds = {"data__folds": 6}
    _, found = ranked(
        [swept(s, data__fold=k, **folds) for k in range(6) for s in (0, 1)]
    )
    assert found == []


def test_the_ranks_are_in_the_page_and_a_file(tmp_path):
    write(tmp_path / "runs", *planted())
    assert report([str(tmp_path / "runs")], tmp_path / "out", "six") == 1  # a far seed
    text = (tmp_path / "out/ranks.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["run"] for row in rows] == ["a", "b", "wild", "c", "d", "f"]
    assert (rows[0]["rank_low"], rows[0]["rank_high"]) == ("1", "3")
    assert "figures/ranks.svg" in (tmp_path / "out/REPORT.md").read_text()


def test_intervals_of_all_pairs_hold_at_once():
    """Where nothing differs each rank holds every place, but in one study of 20."""
    seeds = np.array([2, 2, 2, 3, 3, 3, 5, 5, 5, 5])
    deviations = np.array([1.0, 2, 1, 1, 2, 1, 1, 1, 2, 1])
    pairs = [[pair] for pair in combinations(range(10), 2)]
    assert (
        rates(deviations, seeds, pairs).false < 0.05 + 3 * (0.05 * 0.95 / 1333) ** 0.5
    )
