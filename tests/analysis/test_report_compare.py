"""Which runs are compared, and what may be said of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from resnet_se.analysis.report import compare as compare_module
from resnet_se.analysis.report.compare import Family, compare
from resnet_se.analysis.report.groups import Group, Section, sections, short_names
from resnet_se.analysis.report.notes import folds, reordered
from resnet_se.analysis.report.runs import Run
from resnet_se.analysis.report.significance import mcnemar_exact
from resnet_se.analysis.report.tables import group_records, group_table
from tests.records import record, swept


def against(*names):
    return [{"experiment": name, "question": f"what of {name}?"} for name in names]


def one_section(records) -> Section:
    runs = [Run.of(f"{i}", r) for i, r in enumerate(records)]
    (section,) = sections(runs)
    return section


def compared(*records, **asked) -> Family:
    return compare(one_section(records), **asked)


def seeds(name, errors, **fields):
    """Runs of seeds 0, 1, … that err on so many images, not the same ones."""
    return [
        record(name, s, range(10 * s, 10 * s + n), **fields)
        for s, n in enumerate(errors)
    ]


def test_a_sweep_of_many_settings_is_told_apart_by_kinds_of_difference(monkeypatch):
    kinds = []
    only = compare_module._only_factor
    monkeypatch.setattr(
        compare_module, "_only_factor", lambda *of: kinds.append(of) or only(*of)
    )
    grid = [swept(0, optimizer__lr=i, model=f"m{j}") for i in range(9) for j in (0, 1)]
    pairs = compare_module.single(one_section(grid).groups)
    assert {key: len(of) for key, of in pairs.items()} == {
        "model": 9,
        "optimizer.lr": 2 * 9 * 8 // 2,
    }
    assert len(kinds) == 3  # of 153 pairs: the rate, the model, both


# --- groups ------------------------------------------------------


def test_sections_are_what_was_tested_on_the_same_images():
    elsewhere = {"fingerprint": "sha256:0000000000000000"}
    records = [
        record("a", 0),
        record("a", 1),
        record("a", 0, data=elsewhere),
        record("a", 0, images=200),
        record("b", 0, data={"train": 45_000}),
    ]
    found = sections(Run.of("", r) for r in records)
    assert [len(section.runs) for section in found] == [3, 1, 1]
    assert [len(g.runs) for g in found[0].groups] == [2, 1]
    assert found[0].varying == ["data.train"]


def test_groups_are_named_by_what_varies():
    records = [swept(0, optimizer__lr=lr, model=m) for lr in (10, 9) for m in "ab"]
    section = one_section(records)
    labels = [section.labels[id(g)] for g in section.groups]
    assert labels == ["lr=9 model=a", "lr=9 model=b", "lr=10 model=a", "lr=10 model=b"]
    assert section.common["budget"] == "short"
    alike = [record("a", config_hash="1" * 8), record("a", config_hash="2" * 8)]
    section = one_section(alike)
    labels = {section.labels[id(g)] for g in section.groups}
    assert labels == {"a 11111111", "a 22222222"}


def test_names_are_shortened_where_that_tells_them_apart():
    assert short_names(["e01_x", "e02_x"]) == {"e01_x": "e01", "e02_x": "e02"}
    assert short_names(["my_a", "my_b"]) == {"my_a": "my_a", "my_b": "my_b"}
    assert short_names(["my_a"]) == {"my_a": "my_a"}


def test_the_best_is_chosen_by_validation():
    good = record("a", 0, range(40), val={"acc": 0.9})
    lucky = record("b", 0, range(4), val={"acc": 0.8})
    assert one_section([good, lucky]).best.experiment == "a"


# --- named comparisons -------------------------------------------


def test_an_experiment_is_compared_with_those_it_names():
    found = compared(
        *seeds("plain", (100, 102, 98)),
        *seeds("same", (101, 99, 102), against=against("plain")),
        *seeds("mine", (40, 42, 41), against=against("plain", "same")),
    )
    names = [c.name for c in found.comparisons]
    assert names == ["mine − plain", "mine − same", "same − plain"]
    clear = found.comparisons[0]
    assert clear.question == "what of plain?"
    assert clear.mean == pytest.approx((300 - 123) / 1200)
    assert clear.verdict(0.005) == "better"
    assert found.comparisons[2].verdict(0.005) == "not decided"
    assert not found.missing
    assert found.decided == found.comparisons
    for c in found.comparisons:
        assert c.family_size == 3
        assert c.p == c.estimate.p(3)
        assert c.interval == c.estimate.interval(3)


def test_one_seed_is_never_decided_nor_counted():
    found = compared(
        record("plain", 0, range(200)),
        record("better", 0, range(10), against=against("plain")),
        record("alike", 0, range(199), against=against("plain")),
    )
    alike, better = found.comparisons
    ((best, plain),) = better.pairs
    assert better.verdict(0.005) == "networks differ; recipes not decided (n = 1)"
    assert better.p == mcnemar_exact(best.right - plain.right) < 1e-9
    assert alike.verdict(0.005) == "not decided (n = 1)"
    assert found.decided == []


def test_noise_is_shrunk_towards_that_of_all_recipes():
    found = compared(
        *seeds("a", (40, 41, 42)),
        *seeds("b", (30, 31, 32), against=against("a")),
        *seeds("c", (20, 21, 22), against=against("a")),
        *seeds("d", (10, 150, 60), against=against("a")),
    )
    b, c, d = (comparison.estimate for comparison in found.comparisons)
    assert b.study[0].variance == pytest.approx(c.study[0].variance)
    assert b.study[0].freedom > b.own[0].freedom == 2
    own = np.var([0.975, 0.625, 0.85], ddof=1) / 3
    assert d.study[0].variance == pytest.approx(own)  # noisier, so by itself
    assert d.study[0].freedom == 2
    assert d.study[1] == b.study[1]


def test_no_recipe_is_decided_by_the_noise_of_others_alone():
    steady = [r for i in range(6) for r in seeds(f"s{i}", (80, 81, 82))]
    found = compared(
        *steady,
        *seeds("a", (60, 62, 75)),
        *seeds("b", (40, 60, 20), against=against("a")),
    )
    (c,) = found.comparisons
    assert c.verdict(0.005) == "not decided"
    low, high = c.interval
    alone = abs(c.mean) / sum(noise.variance for noise in c.estimate.own) ** 0.5
    assert alone < stats.t.isf(0.035 / 2, 2)
    assert low < 0 < high


def test_what_cannot_decide_is_apart_by_its_seeds_and_costs_the_others_nothing():
    three = seeds("a", (80, 81, 82)), seeds("b", (40, 41, 42), against=against("a"))
    two = [r for i in range(5) for r in seeds(f"c{i}", (2, 3), against=against("a"))]
    alone, beside = compared(*three[0], *three[1]), compared(*three[0], *three[1], *two)
    assert [c.name for c in beside.decided] == ["b − a"]
    assert len(beside.apart) == 5
    assert beside.decided[0].family_size == alone.decided[0].family_size == 1
    assert {c.verdict(0.005) for c in beside.apart} == {"not decided (n = 2)"}
    only_two = compared(*seeds("a", (80, 81)), *two)
    assert len(only_two.decided) == 5  # the best there are
    assert {c.verdict(0.005) for c in only_two.decided} == {"better"}


def test_all_seeds_of_both_sides_are_used():
    found = compared(
        *(record("a", s, range(80 + s)) for s in range(10)),
        *(record("b", s, range(40 + s), against=against("a")) for s in (20, 21, 22)),
    )
    (c,) = found.comparisons
    assert (c.n, c.seeds) == (3, "3, 10")
    assert c.mean == pytest.approx((84.5 - 61) / 400)
    assert [noise.freedom for noise in c.estimate.own] == pytest.approx([2, 9])
    assert c.verdict(0.005) == "better"
    assert not found.missing


def test_a_study_tells_how_often_its_shape_errs():
    found = compared(
        *seeds("a", (80, 81, 83)),
        *seeds("b", (40, 41, 42), against=against("a")),
        *seeds("c", (41, 45, 42), against=against("a")),
    )
    assert found.rates is not None
    assert 0 <= found.rates.false < 0.06
    assert found.rates.coverage > 0.94
    assert compared(record("a"), record("b", against=against("a"))).rates is None


def test_equivalence_has_words_of_its_own():
    rng = np.random.default_rng(0)
    p = rng.random(20_000) * 0.05

    def run(name, seed, **fields):
        wrong = np.flatnonzero(rng.random(20_000) < p)
        return record(name, seed, wrong, images=20_000, **fields)

    found = compared(
        *(run("a", s) for s in range(4)),
        *(run("b", s, against=against("a")) for s in range(4)),
    )
    (c,) = found.comparisons
    assert c.verdict(0.005) == "no difference of 0.5 points or more"
    assert c.verdict(0.02) == "no difference of 2 points or more"
    assert c.verdict(0.0001) == "not decided"
    shifted = compared(
        *seeds("a", (100, 101, 102)), *seeds("b", (98, 99, 100), against=against("a"))
    )
    (c,) = shifted.comparisons
    assert c.verdict(0.9).startswith(("better, by < 90", "no difference of 90"))


@pytest.mark.parametrize("seed", range(5))
def test_a_verdict_never_contradicts_its_interval(seed):
    rng = np.random.default_rng(seed)
    records = [
        record(
            f"x{i}", s, np.flatnonzero(rng.random(400) < 0.2 + 0.02 * i * (seed % 3))
        )
        | {"against": against(*(f"x{j}" for j in range(i)))}
        for i in range(5)
        for s in range(1 + (seed + i) % 4)
    ]
    for c in compared(*records).comparisons:
        low, high = c.interval
        verdict = c.verdict(0.005)
        zero = low <= 0 <= high
        told = verdict.startswith(("better", "worse", "networks"))
        assert told == (not zero) or not c.in_family
        assert verdict.startswith("better") <= (low > 0)
        assert verdict.startswith("worse") <= (high < 0)
        assert ("n = 1" in verdict) == (c.n == 1)


def test_a_named_experiment_is_not_swept_too():
    def at(train):
        fields = {"overrides": [f"data.train_subset={train}"], "data": {"train": train}}
        a = [record("a", s, range(40 + s), **fields) for s in (0, 1)]
        return a + [record("b", s, **fields, against=against("a")) for s in (0, 1)]

    found = compared(*at(500), *at(1500))
    (c,) = found.comparisons  # a pair that was run with two settings is one question
    assert (c.name, c.where) == ("b − a", "")
    assert c.question == "what of a?, mean of 2 cells"
    assert [(c.name, c.where) for c in found.cells] == [
        ("b − a", "train_subset=500"),
        ("b − a", "train_subset=1500"),
    ]
    (c, *_) = compared(*at(500), *at(1500), factors=["data.train_subset"]).comparisons
    assert c.name == "train_subset 1500 − 500"


def test_only_runs_of_one_command_line_are_compared():
    short = {"overrides": ["budget=short"]}
    long = {"overrides": ["budget=long"], "choices": {"budget": "long"}}
    found = compared(
        *[record("a", s, range(40 * s), **short) for s in (0, 1)],
        *[record("b", s, range(20), **short, against=against("a")) for s in (1, 2)],
        record("c", 0, **short),
        record("d", 3, **short, against=against("a")),
        record("e", 0, **long, against=against("a")),
        record("f", 0, config_hash="1" * 8),
        record("f", 0, config_hash="2" * 8),
        record("g", 0, against=against("f")),
    )
    assert [(c.name, c.n, c.seeds, c.mean) for c in found.comparisons] == [
        ("b − a", 2, "2", 0.0),
        ("d − a", 1, "1, 2", pytest.approx(0.05)),
    ]
    for reason in (
        "e − a with budget=long: no run of a that fit",
        "g − f with budget=short: several configurations of f that fit",
    ):
        assert reason in found.missing


def test_a_cell_of_one_seed_does_not_poison_its_average():
    found = compared(*grid(), swept(0, range(99), model="a", optimizer__lr=0.3))
    extra = swept(0, range(9), model="b", optimizer__lr=0.3)
    with_one = compared(
        *grid(), swept(0, range(99), model="a", optimizer__lr=0.3), extra
    )
    for family in (found, with_one):
        model = next(c for c in family.comparisons if c.name == "model b − a")
        assert (model.n, len(model.pairs)) == (3, 2)
        assert model.verdict(0.005) == "better"
    cells = [c for c in with_one.cells if c.name == "model b − a"]
    assert [c.n for c in cells] == [3, 3, 1]


def test_against_itself_or_nobody_is_named():
    found = compared(
        record("mine_final", 0),
        record("a", 0, against=against("a", "mine_fnal")),
    )
    assert found.comparisons == []
    reasons = "; ".join(found.missing)
    assert "a − a: against itself" in reasons
    assert "no run of mine_fnal; did you mean 'mine_final'?" in reasons


def test_records_without_a_setting_name_no_comparison():
    bare = {"setting": {}, "choices": {}}
    found = compared(record("a") | bare, record("b") | bare)
    assert found == Family()


# --- factors -----------------------------------------------------


def grid(runs=3, drop=()):
    errors = {("a", 0.1): 100, ("a", 0.2): 120, ("b", 0.1): 60, ("b", 0.2): 60}
    return [
        swept(s, range(9 * s, 9 * s + n + s), model=m, optimizer__lr=lr)
        for (m, lr), n in errors.items()
        if (m, lr) not in drop
        for s in range(runs)
    ]


def test_a_sweep_is_compared_factor_by_factor_over_the_cells():
    found = compared(*grid())
    effects = {c.name: c for c in found.comparisons}
    assert list(effects) == ["model b − a", "lr 0.2 − 0.1"]
    model, lr = effects.values()
    assert model.question == "model, mean of 2 cells"
    assert model.mean == pytest.approx((40 + 60) / 2 / 400)
    assert lr.mean == pytest.approx(-(20 + 0) / 2 / 400)
    assert model.verdict(0.005) == "better"
    assert len(found.decided) == 2
    cells = {(c.name, c.where): c.mean for c in found.cells}
    assert cells == {
        ("model b − a", "lr=0.1"): pytest.approx(40 / 400),
        ("model b − a", "lr=0.2"): pytest.approx(60 / 400),
        ("lr 0.2 − 0.1", "model=a"): pytest.approx(-20 / 400),
        ("lr 0.2 − 0.1", "model=b"): 0,
    }


def test_a_cell_without_runs_is_named_and_the_rest_used():
    found = compared(*grid(drop=[("b", 0.2)]))
    assert found.missing == ["cell without runs: model=b lr=0.2"]
    assert [c.question for c in found.comparisons] == ["model", "optimizer.lr"]
    assert [c.where for c in found.comparisons] == ["lr=0.1", "model=a"]


def test_a_factor_of_one_seed_is_not_decided():
    found = compared(*grid(runs=1))
    model, lr = found.comparisons
    assert model.verdict(0.005) == "networks differ; recipes not decided (n = 1)"
    assert lr.mean == pytest.approx(-10 / 400)
    for c in found.comparisons:
        low, high = c.interval
        assert low < c.mean < high
        assert (low <= 0 <= high) == (c.p >= 0.05)
    assert found.decided == []


def test_a_factor_of_three_levels_is_set_against_the_first():
    records = [swept(s, optimizer__lr=lr) for lr in (0.2, 0.05, 1) for s in (0, 1)]
    found = compared(*records)
    assert [c.name for c in found.comparisons] == ["lr 0.2 − 0.05", "lr 1 − 0.05"]


def test_what_is_switched_off_is_the_baseline():
    records = [swept(s, mixing=mixing) for mixing in ("mixup", "none") for s in (0, 1)]
    assert [c.name for c in compared(*records).comparisons] == ["mixing mixup − none"]


def test_factor_and_against_choose():
    one = compared(*grid(), factors=["optimizer.lr"])
    assert [c.name for c in one.comparisons] == ["lr 0.2 − 0.1"]
    other = compared(*grid(), against=("model", "b"))
    assert [c.name for c in other.comparisons] == ["model a − b"]
    assert other.comparisons[0].mean < 0


def test_what_one_seed_was_typed_with_is_no_difference_of_the_recipe():
    """Typed out what a budget says, the hash is the same."""
    spelt = record("a", 0, against=[{"experiment": "b", "question": "?"}])
    brief = record("a", 1, against=spelt["against"])
    spelt = spelt | {"overrides": [*spelt["overrides"], "budget.scale=0.1"]}
    assert spelt["config_hash"] == brief["config_hash"]
    choices = {"choices": {"model": "other"}}
    others = [record("b", s, **choices) for s in (0, 1)]
    found = compared(spelt, brief, *others)
    assert [(c.name, c.n) for c in found.comparisons] == [("a − b", 2)]
    found = compared(spelt, brief, *others, factors=["model"])
    assert [(c.name, c.n) for c in found.comparisons] == [
        ("model se_resnet8 − other", 2)
    ]


def test_cells_of_several_experiments_bear_their_names():
    runs = [
        record(name, s, setting={"optimizer.lr": lr, "model.depths": name})
        for name in ("a", "b")
        for lr in (0.1, 0.2)
        for s in (0, 1)
    ]
    found = compared(*runs, factors=["optimizer.lr"])
    assert [c.where for c in found.cells] == ["a", "b"]


def test_where_there_is_nothing_to_choose_from_no_choice_is_offered():
    found = compared(record("a", against=[{"experiment": "b", "question": "?"}]))
    assert found.missing == ["a − b: no run of b"]


def test_a_factor_is_found_across_experiments():
    def run(name, seed, **choices):
        setting = {"model.depths": choices["model"], "optimizer.lr": 0.1}
        return record(name, seed, choices=choices, setting=setting)

    found = compared(
        *(run("e01", s, model="plain", augment="none") for s in (0, 1)),
        *(run("e05", s, model="se", augment="none") for s in (0, 1)),
        *(run("e14", s, model="se", augment="paper") for s in (0, 1)),
        against=("model", "plain"),
    )
    (c,) = found.comparisons  # e14 differs from e01 in two things
    assert c.name == "model se − plain"
    assert [(t.experiment, b.experiment) for t, b in c.pairs] == [("e05", "e01")]


def test_a_factor_that_no_run_varies_is_named():
    found = compared(*grid(), factors=["optimizer.rl"])
    assert found.comparisons == []
    (reason,) = found.missing
    assert reason.startswith("optimizer.rl: no two runs differ in it alone; did you ")
    found = compared(*grid(), against=("model", "c"))
    assert found.missing == ["model=c: no run to compare with; valid choices: a, b"]


def test_factors_changed_together_are_never_compared():
    records = [
        swept(s, model=m, optimizer__lr=lr)
        for m, lr in (("a", 0.1), ("b", 0.2))
        for s in (0, 1)
    ]
    assert compared(*records).comparisons == []


def test_groups_share_what_their_seeds_share():
    group = Group([Run.of("", record("a", s)) for s in (0, 1)])
    assert group.experiment == "a"
    with pytest.raises(AttributeError):
        _ = group.nothing


def folded(seed, wrong, fold, **fields):
    """A run of a threefold; fold 0 is the default, which no record names."""
    of = {"data.folds": 3} | ({"data.fold": fold} if fold else {})
    result = record("a", seed, range(wrong), setting=of, **fields)
    result["overrides"] += ["data.folds=3", f"data.fold={fold}"]
    result["config_hash"] = f"{fold:08x}"
    return result


def test_the_folds_of_a_k_fold_are_one_row_and_no_factor():
    errors = {0: (10, 14), 1: (20, 24), 2: (30,)}  # of 400; the last has one seed
    runs = [
        folded(seed, wrong, fold)
        for fold, of_seeds in errors.items()
        for seed, wrong in enumerate(of_seeds)
    ]
    section = one_section([*runs, record("b", 0, range(40))])
    row, other = section.rows
    assert row.accuracies == pytest.approx([1 - e / 400 for e in (12, 22, 30)])
    assert row.deviation is None
    assert other is section.groups[-1]
    assert section.best is row
    first, second = group_table(section)[0].cells.to_dict("records")
    assert (first["run"], first["n"]) == ("a folds=3", "3 folds (5)")
    means = np.array([388, 378, 370]) / 4
    expected = f"{means.mean():.2f} ± {means.std(ddof=1):.2f}"
    assert first["test %"] == expected
    assert second["test %"] == "90.00 (n = 1)"
    (line,) = folds(section)
    assert line.startswith("a folds=3: mean over 3 of 3 folds (5 runs); the folds")
    assert "no interval" in line
    assert compare(section).comparisons == []
    assert group_records(section)["folds"].tolist()[0] == 3


def test_folds_of_two_recipes_are_cells_of_one_comparison():
    runs = [
        folded(seed, 10 * rate + fold + seed, fold, choices={"optimizer": name})
        for rate, name in enumerate(("sgd", "adam"))
        for fold in (0, 1, 2)
        for seed in (0, 1)
    ]
    for run in runs:
        name = run["choices"]["optimizer"]
        run["overrides"].append(f"optimizer={name}")
        run["setting"]["optimizer.kind"] = name
        run["config_hash"] = f"{run['config_hash'][1:]}{len(name)}"
    section = one_section(runs)
    assert [row.folds.keys() for row in section.rows] == [{0, 1, 2}] * 2
    (comparison,) = compare(section).comparisons
    assert len(comparison.pairs) == 3
    assert comparison.question == "optimizer, mean of 3 cells"


def test_the_same_images_in_two_orders_are_said_to_be_so():
    base = record("a")["data"]
    same, other = ({"set_fingerprint": f"sha256:{k}"} for k in (1, 2))
    runs = [
        record("a", data=base | same | {"order": "official"}),
        record("b", data=base | same | {"order": "content", "fingerprint": "sha256:b"}),
        record("c", data=base | other | {"fingerprint": "sha256:c"}),
        record("d", data=base | {"fingerprint": "sha256:d"}),
    ]
    parts = sections(Run.of(str(i), r) for i, r in enumerate(runs))
    (line,) = reordered(parts)
    assert line.startswith("the same images in another order, so with another split: ")
    assert line.count(";") == 1
    assert "sha256:aaaaaaaa (order: official)" in line
    assert "sha256:b (order: content)" in line
