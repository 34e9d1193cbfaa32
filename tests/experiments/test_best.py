"""experiments/best: its tables and sentences say what its records say."""

import json
import statistics
from pathlib import Path

import pytest

from resnet_se.analysis.report.compare import compare
from resnet_se.analysis.report.groups import sections
from resnet_se.analysis.report.runs import load
from resnet_se.analysis.report.significance import mean_std

FOLDER = Path(__file__).parents[2] / "experiments" / "best"
FINAL = ("best_cpu", "without_se", "rival_resnet18", "rival_e14")


def records(name):
    return [json.loads(p.read_text()) for p in sorted((FOLDER / name).glob("*/*.json"))]


def rows():
    """{folder in backquotes: the cells after the first} of all tables."""
    found = {}
    for line in (FOLDER / "README.md").read_text().splitlines():
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("| ") and first.endswith("`)"):
            found[first.rpartition("(")[2].strip("`)")] = rest
    return found


def text():
    return " ".join((FOLDER / "README.md").read_text().split())


def percent(values):
    mean, std = mean_std(values)
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")


def with_tta(name):
    return [100 * run["test"]["acc_tta"] for run in records(name)]


def pflop(run):
    steps = run["train"]["steps"] * run["data"]["batch_size"]
    return f"{6 * run['model']['macs'] * steps / 1e15:.3f}"


@pytest.mark.parametrize("name", FINAL)
def test_the_table_is_that_of_the_records(name):
    runs = records(name)
    parts = [("val", "acc"), ("test", "acc"), ("test", "acc_tta")]
    shown = [percent([run[a][b] for run in runs]) for a, b in parts]
    assert rows()[name] == [str(len(runs)), pflop(runs[0]), *shown]


def test_the_trials_are_all_told_and_the_best_by_validation_is_best_cpu():
    folders = {path.name for path in (FOLDER / "trials").iterdir()}
    told = {name: cells for name, cells in rows().items() if name not in FINAL}
    assert set(told) == folders
    means = {}
    for name, cells in told.items():
        runs = records(f"trials/{name}")
        val = [run["val"]["acc"] for run in runs]
        assert cells == [str(len(runs)), pflop(runs[0]), percent(val)]
        assert runs[0]["data"]["val"] == 5000
        means[name] = statistics.mean(val)
    assert list(told) == sorted(told, key=lambda name: -means[name])
    winner, final = (
        records(n)[0]["setting"] for n in (f"trials/{next(iter(told))}", "best_cpu")
    )
    differ = {key for key in winner | final if winner.get(key) != final.get(key)}
    assert differ == {"data.val_fraction"}
    gain = [
        100 * (means[f"{n}_cutout"] - means[f"{n}_plain"]) for n in ("deep", "base")
    ]
    assert f"cutout is worth {gain[0]:.1f} points" in text()
    assert gain[1] < 0.5
    lower = 100 * (means["base_plain"] - means["base_cutmix"])
    below = 100 * (means[next(iter(told))] - means["sgd"])
    assert f"by {lower:.1f}, and what best_cpu was lies {below:.1f} below" in text()


def test_what_is_said_of_the_rivals_is_welch_s_interval():
    from scipy import stats

    mine = with_tta("best_cpu")
    assert f"missed by {92.5 - statistics.mean(mine):.1f} points" in text()
    for name, said in (
        ("rival_resnet18", "{:.1f} points [{:.1f}, {:.1f}] above the ResNet-18"),
        ("rival_e14", "{:.1f} [{:.1f}, {:.1f}] above e14's recipe"),
    ):
        theirs = with_tta(name)
        interval = stats.ttest_ind(mine, theirs, equal_var=False).confidence_interval()
        gain = statistics.mean(mine) - statistics.mean(theirs)
        assert said.format(gain, interval.low, interval.high) in text()


def test_what_is_said_of_se_is_the_report_s():
    [section] = sections(load([str(FOLDER / n) for n in FINAL[:2]]).runs)
    (found,) = compare(section, factors=["model.reduction"]).comparisons
    low, high = found.interval
    said = f"{100 * found.mean:.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"
    assert said.replace("-", "−") in text()


def test_the_time_is_that_of_the_steps_in_turns():
    figures = json.loads((FOLDER / "turns.json").read_text())["figures"]["kept"]
    lines = (FOLDER / "README.md").read_text().splitlines()
    best = figures["best_cpu"]["training"]
    for name, figure in figures.items():
        step = figure["step"]
        median = statistics.median(step)
        whole = figure["steps"] * median
        whole += figure["validations"] * statistics.median(figure["validation"])
        assert round(whole) == figure["training"] >= best
        cells = (name, len(step), f"{median:.2f} ({min(step):.2f}–{max(step):.2f})")
        cells += (f"{figure['steps']:,}", f"{whole:,.0f}", f"{figure['share']:.3f}")
        assert f"| {' | '.join(map(str, cells))} |" in lines
