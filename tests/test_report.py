"""The report of planted runs, and its statistics against cases counted by hand."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from scipy import stats

from resnet_se import report as module
from resnet_se.comparison import COMPARISONS, EXPERIMENTS, compare, load, sections
from resnet_se.pages import markdown
from resnet_se.report import document, report
from resnet_se.report_figures import draw, figures, pareto, spread_labels
from resnet_se.results import SCHEMA, pack_labels
from resnet_se.statistics import (
    contrast_test,
    holm,
    mcnemar_exact,
    mean_std,
    paired_bootstrap,
    pooled_variance,
)

IMAGES = 400
CPU = {"accelerator": "cpu", "device": "Chip", "cores": 4, "precision": "32-true"}
GPU = CPU | {"accelerator": "cuda", "device": "Card"}


def record(experiment, seed=0, wrong=(), wrong_tta=None, **fields):
    """A finished run that errs on the images `wrong` of 400; `fields` go over it."""
    labels = np.arange(IMAGES) % 4

    def predict(errors):
        predicted = labels.copy()
        predicted[list(errors)] += 1
        return predicted % 4

    found = predict(wrong)
    tta = predict(wrong if wrong_tta is None else wrong_tta)
    acc, acc_tta = (float((p == labels).mean()) for p in (found, tta))
    result = {
        "schema": SCHEMA,
        "status": "finished",
        "experiment": experiment,
        "seed": seed,
        "config_hash": "00c0ffee",
        "overrides": [f"experiment={experiment}", f"seed={seed}", "budget=cpu"],
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "hardware": CPU,
        "data": {
            "name": "cifar10",
            "origin": "official batches",
            "fingerprint": "sha256:aaaaaaaaaaaaaaaa",
            "classes": ["ant", "bee", "cow", "<dog> | &"],
            "train": 1500,
            "val": 500,
            "test": IMAGES,
            "split_seed": 0,
            "fallback": None,
        },
        "model": {
            "trainable": 4_617_010,
            "total": 4_628_210,
            "macs": 728_600_000,
            "layers": 80,
        },
        "train": {
            "epochs": 5,
            "steps": 55,
            "seconds": 90.0,
            "images_per_second": 100.0,
            "peak_memory_mb": 1234.0,
        },
        "best_epoch": 1,
        "val": {"acc": 0.5, "loss": 1.0},
        "test": {
            "acc": acc,
            "acc_tta": acc_tta,
            "images": IMAGES,
            "labels": pack_labels(torch.from_numpy(labels)),
            "predicted": pack_labels(torch.from_numpy(found)),
            "predicted_tta": pack_labels(torch.from_numpy(tta)),
        },
        "history": {
            "epoch": [0.0, 1.0],
            "train/acc": [0.3, 0.6],
            "val/acc": [0.25, 0.5],
            "train/loss": [2.0, None],
            "val/loss": [2.1, 1.0],
        },
    }
    for key, value in fields.items():
        merge = isinstance(value, dict) and key in result
        result[key] = result[key] | value if merge else value
    return result


def unfinished(experiment, seed, status, **fields):
    whole = record(experiment, seed, status=status, **fields)
    return {k: v for k, v in whole.items() if k not in ("test", "val", "train", "data")}


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Writes records as files below `runs/` of the current folder; their paths."""
    monkeypatch.chdir(tmp_path)

    def write(*records):
        paths = []
        for i, content in enumerate(records):
            path = tmp_path / "runs" / f"{i:02d}" / "result.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text)
            paths.append(str(path.relative_to(tmp_path)))
        return paths

    return write


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take seconds to draw, and few tests look at them."""
    monkeypatch.setattr(module, "figures", lambda section, made: {})


def text_of(paths):
    return markdown(document(load(paths), "name")[0])


def rows_of(text, heading):
    """The first table after a heading, as dicts."""
    lines = text.split(heading, 1)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        cells.append([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]])
    head, _, *rows = cells
    return [dict(zip(head, row, strict=True)) for row in rows]


def csv_rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


# --- statistics --------------------------------------------------


def test_mean_and_sample_deviation():
    mean, std = mean_std([1, 2, 6])
    assert mean == 3
    assert std == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert mean_std([0.25]) == (0.25, None)


def test_mcnemar_counts_the_images_that_differ():
    differences = np.array([1] * 9 + [-1] + [0] * 500)
    assert mcnemar_exact(differences) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_exact(-differences) == mcnemar_exact(differences)
    assert mcnemar_exact(np.array([1, -1, 1, -1])) == 1
    assert mcnemar_exact(np.zeros(5)) == 1


def test_holm_by_hand():
    # in order: 4 × 0.005, 3 × 0.01, 2 × 0.03, and 1 × 0.04, which may not fall again
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1, 1]
    assert holm([]) == []


def test_variance_is_pooled_within_groups():
    assert pooled_variance([[1, 3], [8, 8, 11], [5]]) == (pytest.approx(8 / 3), 3)
    assert pooled_variance([[5], [9]]) == (0, 0)


def test_contrast_test_by_hand():
    def of_two_degrees(t):  # Student's distribution has a closed form there
        return 1 - t / np.sqrt(2 + t**2)

    crossed = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])  # no seed, no image stands out
    assert contrast_test(crossed, 0.1, 2) == pytest.approx(of_two_degrees(2.5**0.5))
    # no noise between seeds: the residual mean square, 2 / 3, stands in for it
    assert contrast_test(crossed, 0.0, 2) == pytest.approx(of_two_degrees(3**0.5))
    # the pair's own mean square is 2, more than the pooled 2 × 0.1 × 4
    apart = np.array([[1, 1, 1, 1], [0, 0, 0, 0]])
    assert contrast_test(apart, 0.1, 2) == pytest.approx(of_two_degrees(1))
    # seeds agree, images do not: mean squares 0.4 (pooled) + 2 / 3
    alike, share = np.array([[1, 1, 0, 0]] * 2), 1 + 2 / 3 / 0.4
    p = 2 * stats.t.sf(0.5 / np.sqrt(0.4 * share / 8), 2 * share**2)
    assert contrast_test(alike, 0.05, 2) == pytest.approx(p)
    assert contrast_test(np.zeros((2, 4)), 0.0, 2) == 1
    assert contrast_test(np.ones((2, 4)), 0.0, 2) == 0


def simulated(rng, effect):
    """Differences (3, 800) of one pair out of six groups; seeds and images vary."""
    hard = rng.normal(size=800)
    right = [
        hard
        + 0.3 * rng.normal(size=800)  # an image suits one recipe more than another
        + 0.4 * rng.normal(size=(3, 800))
        + 0.05 * rng.normal(size=(3, 1))
        + (effect if group == 0 else 0)
        > -1
        for group in range(6)
    ]
    noise = pooled_variance(r.mean(axis=1) for r in right)
    return right[0].astype(int) - right[1].astype(int), noise


def test_contrast_test_keeps_its_level_and_finds_an_effect():
    rng = np.random.default_rng(0)
    found = {}
    for effect in (0, 0.3):
        pairs = (simulated(rng, effect) for _ in range(200))
        p = [contrast_test(d, *noise) for d, noise in pairs]
        found[effect] = np.mean(np.array(p) < 0.05)
    assert 0 < found[0] <= 0.09  # 0.05 and three of its standard errors
    assert found[0.3] > 0.8


def test_bootstrap_of_one_seed_is_the_interval_of_a_proportion():
    differences = np.array([[1] * 60 + [-1] * 20 + [0] * 320])
    low, high = paired_bootstrap(differences)
    half = 1.96 * differences.std() / 20
    assert low == pytest.approx(0.1 - half, abs=0.004)
    assert high == pytest.approx(0.1 + half, abs=0.004)
    assert paired_bootstrap(differences) == (low, high)
    assert paired_bootstrap(differences, seed=1) != (low, high)


def test_bootstrap_knows_seeds_and_where_nothing_varies():
    assert paired_bootstrap(np.ones((3, 50))) == (1, 1)
    assert paired_bootstrap(np.zeros((1, 50))) == (0, 0)
    # Two seeds, -1 and +1 everywhere: deviations widened by √2 of what two can show.
    apart = np.stack([np.ones(50), -np.ones(50)])
    assert paired_bootstrap(apart) == pytest.approx((-(2**0.5), 2**0.5))


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(0)
    truth, covered = 0.1, 0
    for _ in range(100):
        differences = rng.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(2, 300))
        low, high = paired_bootstrap(differences, resamples=200)
        covered += low <= truth <= high
    assert covered >= 88
    assert high - low < 0.25


# --- loading -----------------------------------------------------


def test_files_are_found_in_every_form_and_once(plant, tmp_path):
    paths = plant(record("e01_a"), record("e02_b"))
    (tmp_path / "runs/00/other.json").write_text("{}")
    (tmp_path / "flat").mkdir()
    shutil.copy(paths[0], tmp_path / "flat/e01_a.seed0.json")
    for arguments, expected in (
        (["runs"], paths),
        (["runs/01"], paths[1:]),
        (["runs/00/result.json", "runs"], paths),
        (["flat"], ["flat/e01_a.seed0.json"]),
        (["flat/e01_a.seed0.json"], ["flat/e01_a.seed0.json"]),
        ([str(tmp_path / "runs")], paths),  # never an absolute path
    ):
        loaded = load(arguments)
        assert [run.path for run in loaded.runs] == expected
        assert not loaded.problems
        assert not loaded.duplicates


def broken(change):
    result = record("e01_a")
    change(result)
    return json.dumps(result)


BROKEN = {
    "truncated": json.dumps(record("e01_a"))[:300],
    "empty": "",
    "a list": "[]",
    "other schema": broken(lambda r: r.update(schema=SCHEMA + 1)),
    "status": broken(lambda r: r.update(status="done")),
    "seed": broken(lambda r: r.update(seed="0")),
    "no data": broken(lambda r: r.pop("data")),
    "no number": broken(lambda r: r["val"].update(acc=None)),
    "no predictions": broken(lambda r: r["test"].pop("predicted")),
    "damaged predictions": broken(lambda r: r["test"].update(predicted="AAAA")),
    "another accuracy": broken(lambda r: r["test"].update(acc=0.9)),
    "more images": broken(lambda r: r["test"].update(images=401)),
    "no history": broken(lambda r: r.update(history={"epoch": 3})),
    "fewer classes": broken(lambda r: r["data"].update(classes=["ant"])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_skipped(plant, undrawn, tmp_path, capsys, name):
    good, bad = plant(record("e02_b"), BROKEN[name])
    assert report(["runs"], tmp_path / "out", "name") == 1
    assert f"not used: {bad}: " in capsys.readouterr().err
    text = (tmp_path / "out/REPORT.md").read_text()
    assert f"- not used: {bad}: " in text
    assert [r["file"] for r in rows_of(text, "## Every run")] == [good]


def test_exit_status(plant, undrawn, tmp_path, command, capsys):
    plant(record("e01_a"))
    assert command("report", "runs", "--out", "a") == 0
    assert command("report", "runs", "nowhere", "--out", "b") == 1
    assert "nowhere: no result.json" in capsys.readouterr().err
    assert command("report", "nowhere", "--out", "c") == 2
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert command("report") == 2
    plant(unfinished("e01_a", 0, "running"))
    assert command("report", "runs", "--out", "c") == 2


def test_labels_of_another_test_set_under_the_same_fingerprint_are_refused(plant):
    other = record("e02_b", wrong=range(4))
    other["test"] |= {"labels": other["test"]["predicted"], "acc": 1.0, "acc_tta": 1.0}
    other["test"]["predicted_tta"] = other["test"]["predicted"]
    paths = plant(record("e01_a"), other)
    loaded = load(paths)
    assert [run.path for run in loaded.runs] == paths[:1]
    assert f"{paths[1]}: test.labels are not those of {paths[0]}" in loaded.problems[0]


def test_duplicates_and_conflicts_are_named_and_counted_once(plant, undrawn):
    first, again = record("e01_a", wrong=range(40)), record("e01_a", wrong=range(40))
    other = record("e01_a", wrong=range(80))
    text = text_of(plant(first, again, other))
    assert "- duplicate: e01_a seed 0 (00c0ffee): runs/01/result.json is not" in text
    assert (
        "- conflict: same run, other numbers: e01_a seed 0 (00c0ffee): runs/02" in text
    )
    (row,) = rows_of(text, "## cifar10")
    assert (row["n"], row["test %"]) == ("1", "90.00 ± –")


# --- groups and tables -------------------------------------------


def test_main_table_is_what_was_planted(plant, undrawn):
    few = {
        "train": {"images_per_second": None, "epochs": 4},
        "test": {"acc_tta": None, "predicted_tta": None},
    }
    text = text_of(
        plant(
            record("e14_final", 0, range(40), range(20), val={"acc": 0.5}),
            record("e14_final", 1, range(44), range(28), val={"acc": 0.52}),
            record("e15_batch64", 0, range(4), **few),
        )
    )
    final, batch64 = rows_of(text, "## cifar10")
    assert final == {
        "experiment": "e14_final",
        "n": "2",
        "val %": "51.00 ± 1.41",
        "test %": "89.50 ± 0.71",
        "test TTA %": "94.00 ± 1.41",
        "setting": "budget=cpu",
        "hash": "00c0ffee",
        "epochs": "5",
        "steps": "55",
        "parameters": "4,628,210",
        "MMAC": "728.6",
        "images/s": "100",
        "minutes": "1.5",
        "memory MB": "1,234",
    }
    assert batch64["test %"] == "99.00 ± –"  # never ± 0
    assert batch64["test TTA %"] == batch64["images/s"] == "–"
    assert batch64["epochs"] == "4"


def test_the_formats_show_the_same_numbers(plant, undrawn, tmp_path):
    runs = [record("e01_a", s, range(40 + 4 * s)) for s in (0, 1)]
    plant(*runs, record("e02_b_50%", 0))
    assert report(["runs"], tmp_path / "out", "name") == 0
    rows = csv_rows(tmp_path / "out/table.csv")
    assert [row["experiment"] for row in rows] == ["e01_a", "e02_b_50%"]
    assert float(rows[0]["test_acc_mean"]) == pytest.approx(0.895)
    assert float(rows[0]["test_acc_std"]) == pytest.approx(0.00707107)
    assert (rows[0]["n"], rows[0]["seeds"], rows[0]["train_images"]) == (
        "2",
        "0 1",
        "1500",
    )
    assert rows[1]["test_acc_std"] == ""
    tex = (tmp_path / "out/table.tex").read_text()
    assert r"e01\_a & 2 & 50.00 $\pm$ 0.00 & 89.50 $\pm$ 0.71 &" in tex
    assert r"e02\_b\_50\% & 1 & 50.00 $\pm$ -- &" in tex
    assert tex.count("{") == tex.count("}")
    page = (tmp_path / "out/report.html").read_text()
    assert "<td>89.50 ± 0.71</td>" in page


def test_other_data_are_other_sections(plant, undrawn, tmp_path):
    elsewhere = {"fingerprint": "sha256:0000000000000000", "origin": "JPEG files"}
    runs = plant(
        record("e05_a", 0, range(40)),
        record("e05_a", 1, range(40)),
        record("e01_a", 0, range(200), data=elsewhere),
        record("e01_a", 0, range(100), data={"train": 45_000}),
    )
    found = sections(load(runs).runs)
    assert [len(section.runs) for section in found] == [2, 1, 1]
    assert all(compare(section)[0] == [] for section in found)
    text = text_of(runs)
    assert "- 3 different data sets or subsets, kept apart: " in text
    for heading, accuracy in (
        ("## cifar10: 1,500 to train on", "90.00 ± 0.00"),
        ("## cifar10: 45,000 to train on", "75.00 ± –"),
        ("400 to test (sha256:0000000000000000)", "50.00 ± –"),
    ):
        (row,) = rows_of(text, heading)
        assert row["test %"] == accuracy
    report(runs, tmp_path / "out", "name")
    tables = sorted(path.name for path in (tmp_path / "out").glob("*.csv"))
    assert tables == ["table-2.csv", "table-3.csv", "table.csv"]
    for name in tables:
        rows = csv_rows(tmp_path / "out" / name)
        assert len({(r["fingerprint"], r["train_images"]) for r in rows}) == 1


def test_speeds_of_different_machines_stand_in_columns_of_their_own(plant, undrawn):
    fast = {"images_per_second": 900.0, "seconds": 6.0}
    text = text_of(
        plant(
            record("e01_a", 0),
            record("e01_a", 1, hardware=GPU, train=fast),
            record("e02_b", 0, hardware=GPU, train=fast),
        )
    )
    mixed, one = rows_of(text, "## cifar10")
    assert (mixed["images/s A"], mixed["images/s B"]) == ("100", "900")
    assert (one["images/s A"], one["minutes B"]) == ("–", "0.1")
    assert "hardware A: cpu: Chip, 4 cores" in text
    assert "- e01_a (00c0ffee) ran on several machines" in text


def test_what_is_missing_or_differs_is_named(plant, undrawn):
    dirty = {"git": {"commit": "fedcba9876543210", "dirty": True}}
    text = text_of(
        plant(
            record("e01_a", 0),
            record("e01_a", 1, versions={"torch": "2.14.0"}),
            record("e02_b", 0, **dirty),
            record("e02_b", 0, config_hash="12345678"),
            unfinished("e02_b", 1, "failed", error="OSError: /home/me/data/x is full"),
            unfinished("e03_c", 0, "interrupted"),
        )
    )
    notes = text.split("## Missing")[1].split("\n## ")[0]
    for note in (
        "failed: e02_b seed 1 (00c0ffee), runs/04/result.json: OSError: …/x is full",
        "interrupted: e03_c seed 0 (00c0ffee), runs/05/result.json",
        "missing: e02_b (00c0ffee) seed 1, failed",
        "missing: e02_b (12345678) seed 1, failed",
        "e02_b has 2 configurations, a row each: 00c0ffee, 12345678",
        "runs of different commit: 0123456 (3 runs); fedcba9 + changes (1 runs)",
        "runs of different software: python 3.11.7, torch 2.14.0 (1 runs); ",
        "1 runs of a working tree with uncommitted changes",
        "missing experiments of e01–e22: e03 (interrupted), e04, e05, ",
    ):
        assert f"- {note}" in notes
    assert "/home" not in text
    statuses = [row["status"] for row in rows_of(text, "## Every run")]
    assert statuses == ["finished"] * 4 + ["failed", "interrupted"]


def test_a_whole_set_of_runs_misses_nothing(plant, undrawn):
    text = text_of(plant(*(record(f"{e}_x", 0) for e in EXPERIMENTS)))
    assert "## Missing, failed, mixed\n\nNothing." in text
    assert "Not compared" not in text
    assert len(rows_of(text, "### Comparisons")) == len(COMPARISONS) == 18


def test_names_that_are_not_numbered_have_no_family(plant, undrawn):
    text = text_of(plant(record("quickstart"), record("e055_x"), record("e1_x")))
    assert "### Comparisons" not in text
    assert "missing experiments" not in text


# --- comparisons -------------------------------------------------


def comparisons(paths):
    (section,) = sections(load(paths).runs)
    return compare(section)


def test_a_clear_difference_and_one_within_noise(plant, undrawn):
    def seeds(name, errors):
        return [record(name, s, range(n, n + n)) for s, n in enumerate(errors)]

    paths = plant(
        *seeds("e01_plain", (100, 102, 98)),
        *seeds("e05_se", (40, 42, 41)),
        *seeds("e02_plain", (60, 64, 62)),
        *seeds("e06_se", (61, 63, 60)),
        *seeds("e03_plain", (40, 41, 39)),
        *seeds("e07_se", (100, 99, 101)),
    )
    rows = {row["pair"]: row for row in rows_of(text_of(paths), "### Comparisons")}
    assert [row["verdict"] for row in rows.values()] == [
        "better",
        "within noise",
        "worse",
    ]
    clear = rows["e05 − e01"]
    assert (clear["seeds"], clear["difference"]) == ("3", "+14.75")  # (300-123)/1200
    low, high = map(float, clear["95 % interval"].strip("[]").split(", "))
    assert 0 < low < 14.75 < high
    assert rows["e07 − e03"]["difference"] == "−15.00"
    made, _ = comparisons(paths)
    assert [c.p_holm for c in made] == holm([c.p for c in made])
    spreads = [[0.75, 0.745, 0.755], [0.9, 0.895, 0.8975], [0.85, 0.84, 0.845]]
    spreads += [[0.8475, 0.8425, 0.85], [0.9, 0.8975, 0.9025], [0.75, 0.7525, 0.7475]]
    assert made[0].noise == pytest.approx(pooled_variance(spreads))


def test_one_seed_is_tested_by_mcnemar_and_says_so(plant, undrawn):
    paths = plant(record("e01_a", 0, range(10)), record("e05_a", 0, range(9, 10)))
    ((made,), missing) = comparisons(paths)
    assert made.p == pytest.approx(2 / 2**9)  # nine images, all for one side
    text = text_of(paths)
    (row,) = rows_of(text, "### Comparisons")
    assert row["verdict"] == "better (one seed)"
    assert row["McNemar p by seed"] == row["p"] == "0.004"
    assert "the noise from seed to seed is not measured" in text
    assert len(missing) == len(COMPARISONS) - 1
    assert "e06 − e02: no run of e06 or e02" in missing


def test_many_comparisons_take_their_toll(plant):
    """McNemar's 0.004 is too much for one of 18."""
    runs = [record(f"{e}_x", 0) for e in EXPERIMENTS if e != "e01"]
    made, _ = comparisons(plant(*runs, record("e01_a", 0, range(9))))
    first = next(c for c in made if c.name == "e05 − e01")
    assert first.p < 0.05
    assert first.p_holm == pytest.approx(18 * first.p)
    assert first.verdict == "within noise"


def test_only_common_seeds_of_one_setting_are_compared(plant):
    def cpu(run):
        return run | {"overrides": ["budget=short", "seed=7", "runs_dir=/x"]}

    made, missing = comparisons(
        plant(
            record("e01_a", 0, range(40)),
            record("e01_a", 1, range(80)),
            record("e05_a", 1, range(60)),
            record("e05_a", 2, range(4)),
            record("e02_a", 0),
            record("e06_a", 1),
            record("e03_a", 0),
            cpu(record("e07_a", 0)),
            record("e04_a", 0),
            record("e04_a", 0, config_hash="12345678"),
            record("e08_a", 0),
        )
    )
    assert [(c.name, c.n, c.mean) for c in made] == [("e05 − e01", 1, 0.05)]
    for reason in (
        "e06 − e02: no seed in common with budget=cpu",
        "e07 − e03: no run of e07 with budget=cpu",
        "e07 − e03: no run of e03 with budget=short",
        "e08 − e04: several configurations with budget=cpu, not one of each",
    ):
        assert reason in missing


def test_each_setting_is_compared_and_has_its_own_noise(plant):
    def short(run):
        return run | {"overrides": ["budget=short"], "config_hash": "12345678"}

    runs = [
        wrap(record(name, seed, range(n + step * seed)))
        for wrap, step in ((dict, 0), (short, 40))
        for name, n in (("e01_a", 100), ("e05_a", 80))
        for seed in (0, 1)
    ]
    made, _ = comparisons(plant(*runs))
    assert [c.treatment.setting for c in made] == ["budget=cpu", "budget=short"]
    assert [c.mean for c in made] == [0.05, 0.05]
    # 40 of 400 images between two seeds, in either group
    assert [c.noise for c in made] == [(0, 2), (pytest.approx(0.1**2 / 2), 2)]


# --- claimed and measured ----------------------------------------


def test_claims_stand_beside_what_was_measured(plant, undrawn):
    plain = {"model": {"trainable": 4_581_898, "total": 4_593_098}}
    text = text_of(
        plant(
            record("e03_plain", 0, range(48), **plain),
            record("e07_se", 0, range(40)),
            record("e14_final", 0, range(24), range(20)),
        )
    )
    rows = rows_of(text, "## Claimed and measured")
    measured = {row["claim of the paper"]: row for row in rows}
    size = measured["parameters added by SE"]
    assert size["measured"] == "0.77 % (4,617,010 against 4,581,898)"
    assert size["where"] == "counted: e07_se and e03_plain"
    gain = measured["accuracy gained by SE"]
    assert gain["measured"].startswith("e07 − e03: +2.00 [+")
    assert gain["n"] == "1"
    assert (
        gain["where"] == "cifar10 sha256:aaaaaaaa (1,500 images), 5 epochs, budget=cpu"
    )
    assert measured["test accuracy (abstract)"]["measured"] == "94.00 ± – %"
    assert measured["test accuracy (abstract), with TTA"]["measured"] == "95.00 ± – %"
    assert measured["training accuracy"]["measured"].startswith("60.00 ± – %")
    assert "+1.00 [+" in measured["TTA improves the accuracy"]["measured"]
    final = measured["accuracy gained by SE, final recipe"]
    assert (final["measured"], final["n"]) == ("not measured", "–")
    assert "are not comparable to the paper's" in text


def test_sizes_are_counted_where_no_run_has_them(plant, undrawn):
    rows = rows_of(text_of(plant(record("quickstart"))), "## Claimed and measured")
    assert rows[0]["measured"] == "0.77 % (4,617,010 against 4,581,898)"
    assert rows[0]["where"] == "counted: `python -m resnet_se.models`"
    assert {row["measured"] for row in rows[2:]} == {"not measured"}


# --- figures -----------------------------------------------------


def test_pareto_front_is_not_beaten():
    points = [(1, 80), (2, 85), (2, 84), (3, 85), (4, 90), (5, 70)]
    assert pareto(points) == [0, 1, 4]


def test_labels_keep_apart_in_order_and_near():
    heights = [5.0, 1.0, 1.1, 1.0]
    moved = spread_labels(heights, 0.5)
    assert moved[0] == 5
    assert np.diff(np.sort(moved)).min() >= 0.5 - 1e-9
    assert moved[1:].mean() == pytest.approx(np.mean(heights[1:]))
    assert moved[2] == max(moved[1:])


# --- the page ----------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report with all its figures; one experiment has a hostile name."""
    folder = tmp_path_factory.mktemp("whole")
    names = ("e01_a", "e05_b", 'e14_"<script>alert(1)</script>|`x`')
    for i, name in enumerate(names):
        for seed in (0, 1):
            path = folder / "runs" / f"{i}{seed}" / "result.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(record(name, seed, range(60 - 20 * i + seed))))
    assert report([str(folder / "runs")], folder / "out", "the name") == 0
    return folder / "out"


class Page(HTMLParser):
    """Balances tags and collects what a page would load."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.tags = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(whole):
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.tags.count("img") == 6  # factors, cost, two of curves, two confusions
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", text)
    assert "<h1>the name</h1>" in text


def test_markdown_links_to_figures_that_exist(whole):
    text = (whole / "REPORT.md").read_text()
    links = re.findall(r"\]\((.*?)\)", text)
    drawn = {f"figures/{path.name}" for path in (whole / "figures").iterdir()}
    assert set(links) == drawn
    assert len(drawn) == 6
    for link in links:
        assert (whole / link).read_bytes().startswith(b"\x89PNG")
    assert "<script" not in text.replace("\\<", "")


def test_the_same_runs_give_the_same_text(whole, plant, tmp_path, monkeypatch):
    def again(folder, out):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(module, "draw", lambda figure: {"png": b"", "svg": b""})
        runs = "runs" if folder != tmp_path else str(whole.parent / "runs")
        assert report([runs], tmp_path / out, "the name") == 0
        return (tmp_path / out / "REPORT.md").read_bytes()

    assert again(whole.parent, "a") == (whole / "REPORT.md").read_bytes()
    assert again(tmp_path, "b") == (whole / "REPORT.md").read_bytes()
    for name in ("table.csv", "table.tex"):
        assert (tmp_path / "a" / name).read_bytes() == (whole / name).read_bytes()
    assert str(tmp_path.parent) not in (whole / "REPORT.md").read_text()


def test_pictures_are_the_same_bytes_each_time(plant):
    (section,) = sections(load(plant(record("quickstart"))).runs)
    twice = [
        {name: draw(figure) for name, (_, figure) in figures(section, []).items()}
        for _ in range(2)
    ]
    assert twice[0] == twice[1]
    assert list(twice[0]) == ["curves-accuracy", "curves-loss", "confusion-best"]


chromium = pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="needs chromium: apt-get install chromium",
)


def browse(page, profile):
    """What Chromium says on its console, and the addresses that a page asks for."""
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    switches += " disable-background-networking disable-component-update dump-dom"
    done = subprocess.run(
        [
            "chromium",
            *(f"--{switch}" for switch in switches.split()),
            f"--user-data-dir={profile}",
            f"--log-net-log={profile}/net.json",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    log = json.loads((profile / "net.json").read_text())
    asked = (event.get("params", {}) for event in log["events"])
    # The browser's own requests come from "not an origin".
    loads = {
        params["url"]
        for params in asked
        if params.get("initiator", "not an origin") != "not an origin"
        and not params.get("url", "data:").startswith("data:")
    }
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, loads


@chromium
def test_chromium_opens_the_page_without_an_error_or_a_request(whole, tmp_path):
    dom, console, loads = browse(whole / "report.html", tmp_path)
    assert "<h1>the name</h1>" in dom
    assert dom.count("<img") == 6
    assert console == []
    assert loads == set()


@chromium
def test_chromium_would_show_an_error_and_a_request(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x"><script>nothing()</script>')
    _, console, loads = browse(page, tmp_path)
    assert "nothing is not defined" in console[0]
    assert loads == {"http://127.0.0.1:9/x"}
