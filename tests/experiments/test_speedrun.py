"""experiments/speedrun: its tables say what its records say."""

import json
import re
import runpy
import statistics
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from scipy import stats

from resnet_se.analysis.report.compare import compare
from resnet_se.analysis.report.groups import sections
from resnet_se.analysis.report.runs import load
from resnet_se.analysis.report.significance import mean_std
from resnet_se.analysis.time_to import costs
from resnet_se.config import CONF
from resnet_se.config.compose import plain_values
from resnet_se.config.schema import HASH_RULES
from resnet_se.runs.run_hash import Environment, config_hash, hashed_config

FOLDER = Path(__file__).parents[2] / "experiments" / "speedrun"
ROWS = {  # first words of a table's row → the records it sums up
    "| reference |": "reference.cpu1.seed?.json",
    "| before |": "cpu1.seed?.json",
    "| before, with widths 64/128/256": "wide.cpu1.seed?.json",
}
MEANS = {
    "| reference (": "reference.cpu1.seed?.json",
    "| **speedrun**": "h200/speedrun/seed*/result.json",
    "| 7 epochs": "h200/seven/seed*/result.json",
    "| SE's rate 83 (": "h200/se_lr83/seed*/result.json",
    "| SE's rate 83, 7": "h200/seven_se_lr83/seed*/result.json",
    "| SE's rate 330": "h200/se_lr330/seed*/result.json",
    "| SE's rate 83, stem": "h200/thawed/seed*/result.json",
    "| SGD for Muon": "h200/sgd/seed*/result.json",
    "| without SE (": "h200/vanilla/seed*/result.json",
    "| without SE, 7": "h200/vanilla_seven/seed*/result.json",
    "| quickstart_gelu (": "h200/quickstart/seed*/result.json",
    "| quickstart_gelu, 9": "h200/quickstart9/seed*/result.json",
}


def records(pattern):
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob(pattern))]
    assert found
    # `reference.py` keeps a list of runs in a file, here of one.
    return [run for record in found for run in record.get("runs", [record])]


def row(start):
    lines = (FOLDER / "README.md").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("start", "pattern"), ROWS.items())
def test_the_table_is_that_of_the_records(start, pattern):
    runs = records(pattern)
    _, n, plain, tta, seconds = row(start)
    assert n == str(len(runs))
    for cell, key in ((plain, "acc"), (tta, "acc_tta")):
        values = [f"{100 * run['test'][key]:.2f}" for run in runs]
        assert cell == ", ".join(values) + " %"
    assert seconds == ", ".join(f"{run['train']['seconds']:,.0f}" for run in runs)


@pytest.fixture(scope="module")
def flops():
    return runpy.run_path(str(FOLDER / "flops.py"))


def percent(values):
    mean, std = mean_std(values)
    return f"{100 * mean:.2f} ± {100 * std:.2f}"


@pytest.mark.parametrize(("start", "pattern"), MEANS.items())
def test_means_are_those_of_the_records(start, pattern, flops):
    runs = records(pattern)
    [pflop] = {p["pflop"] for p in flops["points"]() if fits(p["file"], pattern)} or {
        6 * run["model"]["macs"] * flops["_images"](run) / 1e15 for run in runs
    }
    val = [run["val"]["acc"] for run in runs if "val" in run]
    assert row(start)[1:] == [
        str(len(runs)),
        f"{pflop:.3f}",
        percent(val) if val else "",
        percent([run["test"]["acc"] for run in runs]),
        percent([run["test"]["acc_tta"] for run in runs]),
    ]


def fits(file, pattern):
    return Path(file).match(f"speedrun/{pattern}")


@pytest.mark.parametrize(
    ("folders", "factors"),
    [
        (
            "vanilla,vanilla_seven,se_lr83,seven_se_lr83",
            ["model", "trainer.max_epochs"],
        ),
        ("speedrun,seven,se_lr83,seven_se_lr83", ["optimizer.se_lr"]),
    ],
)
def test_what_is_said_of_se_and_of_the_length_is_the_report_s(folders, factors):
    """The report's command as the README has it; of each factor the comparison."""
    text = " ".join((FOLDER / "README.md").read_text().split())
    assert f"experiments/speedrun/h200/{{{folders}}} --factor {factors[0]} " in text
    paths = [str(FOLDER / "h200" / name) for name in folders.split(",")]
    [section] = sections(load(paths).runs)
    family = compare(section, factors=[factors[0], "trainer.max_epochs"])
    said = {c.question.split(",")[0]: c for c in family.comparisons}
    for factor in factors:
        c = said[factor]
        low, high = sorted(x if c.mean > 0 else -x for x in c.interval)
        interval = f"[{100 * low:+.2f}, {100 * high:+.2f}]".replace("-", "−")
        assert f"{100 * abs(c.mean):.2f} points better" in text
        assert interval in text


def test_what_is_said_of_seven_epochs_by_other_means_is_in_their_records():
    folders = sorted((FOLDER / "factors").iterdir())
    accuracy = {  # of one seed, by the design's levels: "0110" has the second and third
        (folder.name, seed): json.loads(path.read_text())["val"]["acc"]
        for folder in folders
        for seed, path in enumerate(sorted(folder.glob("seed*/result.json")))
    }
    assert len(accuracy) == 8 * 2
    text = " ".join((FOLDER / "README.md").read_text().split())
    words = ("makes", "jitter of 0.1", "rate of 0.32", "batches of 1,500")
    for factor, word in enumerate(words):
        high, low = (
            mean_of([a for (name, _), a in accuracy.items() if name[factor] == level])
            for level in "10"
        )
        assert f"{word} {100 * (high - low):.2f}".replace("-", "−") in text


def test_seconds_are_those_of_the_card_alone():
    [reference] = records("h200/alone/reference.seed0.json")
    [ours] = records("h200/alone/speedrun.seed0.json")
    text = (FOLDER / "README.md").read_text()
    seconds = [run["train"]["seconds"] for run in (reference, ours)]
    assert "the reference {:.2f} s, speedrun {:.2f} s".format(*seconds) in text
    assert f"reference's seed 0 has {100 * reference['test']['acc_tta']:.2f} %" in text


@pytest.mark.parametrize("allocator", ["kept", "default"])
def test_the_time_is_that_of_the_steps_in_turns(allocator):
    figures = json.loads((FOLDER / "turns.json").read_text())["figures"][allocator]
    for name, figure in figures.items():
        short = name.removeprefix("speedrun ")
        step = figure["step"]
        median = statistics.median(step)
        assert row(f"| {allocator} | {short}, batch")[2:] == [
            str(len(step)),
            f"{median:.2f} ({min(step):.2f}–{max(step):.2f})",
            str(figure["steps"]),
            f"{figure['training']:,}",
            f"{figure['share']:.3f}",
        ]
        whole = figure["steps"] * median
        whole += figure.get("validations", 0) * statistics.median(
            figure.get("validation", [0])
        )
        assert round(whole) == figure["training"]
        reference = figures["reference"]["training"]
        assert figure["share"] == pytest.approx(whole / reference, abs=1e-3)


def test_what_is_said_of_the_time_follows_from_it():
    found = json.loads((FOLDER / "turns.json").read_text())["figures"]
    kept, default = found["kept"], found["default"]
    ours, theirs = (
        1 - kept[name]["training"] / default[name]["training"]
        for name in ("speedrun", "reference")
    )
    se = kept["speedrun"]["training"] / kept["speedrun without SE"]["training"] - 1
    shares = [kept[name]["share"] for name in ("speedrun", "speedrun without SE")]
    seven = 7 * statistics.median(kept["speedrun"]["validation"])
    seven += 168 * statistics.median(kept["speedrun"]["step"])
    seven /= kept["reference"]["training"]
    text = " ".join((FOLDER / "README.md").read_text().split())
    for said in (
        f"Seven epochs take {seven:.0%},",
        f"{ours:.0%} less for speedrun, {theirs:.0%} for the reference",
        f"SE costs {se:.1%} of the time",
        "takes {:.0%} of the reference's, {:.0%} without SE".format(*shares),
    ):
        assert said.replace("%", " %") in text


TRIALS = {
    "| Muon, batch": "trial_muon.cpu1.seed0.json",
    "| SGD as speedrun": "trial_sgd.cpu1.seed0.json",
    "| Muon, `se_airbench` (`trial": "trial_muon_plain.cpu1.seed0.json",
    "| Muon, `se_airbench`, stem": "../quickstart/cpu1.seed0.json",
    "| SGD, what quickstart was": "../quickstart/cpu4.seed0.json",
}


@pytest.mark.parametrize(("start", "name"), TRIALS.items())
def test_the_trials_of_muon_are_those_of_the_records(start, name, flops):
    run = json.loads((FOLDER / name).read_text())
    epochs, steps = run["train"]["epochs"], run["train"]["steps"]
    pflop = 6 * run["model"]["macs"] * flops["_images"](run) / 1e15
    accuracy = f"{100 * run['val']['acc']:.2f} %"
    assert row(start)[1:] == [
        "1", str(epochs), f"{steps:,}", f"{pflop:.3f}", accuracy
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("speedrun", "h200/speedrun/seed*/result.json"),
        ("quickstart", "../quickstart/seed?.json"),
        ("quickstart_gelu", "h200/quickstart/seed*/result.json"),
    ],
)
def test_the_header_expects_what_was_measured(name, files):
    text = (CONF / f"experiment/{name}.yaml").read_text()
    runs = records(files)
    assert len(runs) >= 3
    plain, tta = (
        f"{100 * statistics.mean(run['test'][key] for run in runs):.1f} %"
        for key in ("acc", "acc_tta")
    )
    told = rf"^# Expected:  {plain}(,| and) {tta} with TTA"
    assert re.search(told, text, re.MULTILINE)


def test_what_is_said_of_quickstart_is_in_its_records():
    text = " ".join((FOLDER / "README.md").read_text().split())
    new = json.loads((FOLDER.parent / "quickstart/cpu1.seed0.json").read_text())
    assert f"its one run had {100 * new['test']['acc_tta']:.2f} % with TTA" in text
    cpu = json.loads((FOLDER.parent / "quickstart/cpu2.seed0.json").read_text())
    minutes, seconds = divmod(round(cpu["train"]["seconds"]), 60)
    assert f"it took {minutes} min {seconds:02d} s" in text
    assert f"{100 * cpu['test']['acc_tta']:.2f} % with TTA; n = 1" in text
    runs = records("h200/quickstart/seed*/result.json")
    tta = [run["test"]["acc_tta"] for run in runs]
    assert f"**{percent(tta)} % over five seeds" in text
    nine = [
        run["test"]["acc_tta"] for run in records("h200/quickstart9/seed*/result.json")
    ]
    assert (
        f"by {89 - 100 * mean_of(nine):.1f} points over five seeds, so it has ten"
        in text
    )


def test_the_picture_s_points_are_those_of_the_records(flops):
    script = flops
    kept = json.loads((FOLDER / "flops.json").read_text())
    assert list(script["points"]()) == kept["ours"]
    named = {p["name"]: (p["pflop"], p["acc"]) for p in kept["published"]}
    assert named == script["PUBLISHED"]
    mean = {
        series: mean_of([p["pflop"] for p in kept["ours"] if p["series"] == series])
        for series in script["SERIES"]
    }
    share = mean["speedrun"] / mean["airbench94's recipe, rebuilt"]
    text = (FOLDER / "README.md").read_text()
    flat = " ".join(text.split())
    assert f"for {share:.0%} of its operations".replace("%", " %") in flat
    smaller = mean["quickstart_gelu"] / mean["quickstart before (SGD)"]
    assert f"operations it is {smaller:.0%} of".replace("%", " %") in " ".join(
        text.split()
    )


def mean_of(values):
    return sum(values) / len(values)


def test_quickstart_is_told_as_measured():
    flat = " ".join((FOLDER / "README.md").read_text().split())
    runs, before = (
        records("../quickstart/seed?.json"),
        records("h200/quickstart/*/*.json"),
    )
    assert len(runs) == 5
    tta, accuracies = (
        [r[part][key] for r in runs]
        for part, key in (("test", "acc_tta"), ("val", "acc"))
    )
    each, val = (
        ", ".join(f"{100 * v:.2f}" for v in found) for found in (tta, accuracies)
    )
    assert (
        f"**{percent(tta)} % with TTA over five seeds** ({each}; validation {val} %;"
        in flat
    )
    assert (
        f"it had {percent([r['test']['acc_tta'] for r in before])} % on an H200" in flat
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["experiment=quickstart"])
    for run in runs:
        known = run["setting"]
        facts = Environment(known["data.content"], known["precision"], 1)
        hashed = hashed_config(plain_values(cfg), facts, HASH_RULES)
        assert config_hash(hashed) == run["config_hash"]
        assert run["git"]["commit"] == runs[0]["git"]["commit"]
    preset = (CONF / "experiment/quickstart.yaml").read_text()
    assert f"and 3 at 28: {runs[0]['train']['pflop']:.3f} PFLOP" in preset
    for kept, told in (
        ("hardswish.seed100", "87.94 %"),
        ("resized.seed0", "87.88 and"),
    ):
        [trial] = records(f"../quickstart/{kept}.json")
        assert f"{100 * trial['val']['acc']:.2f}" == told.split()[0]
        assert told in flat


def test_quickstart_s_seconds_are_told_as_measured():
    flat = " ".join((FOLDER / "README.md").read_text().split())
    [sizes] = records("../quickstart/sizes.json")
    assert f"n = {sizes['rounds']} in turns" in flat
    middle = {
        way: {k: statistics.median(v) for k, v in taken.items()}
        for way, taken in sizes["seconds"].items()
    }
    for side in ("32", "28", "24", "20"):
        cells = [
            f"{middle[way][side]:.2f} ({min(taken[side]):.2f}–{max(taken[side]):.2f})"
            for way, taken in sizes["seconds"].items()
        ]
        assert f"| {side} | {' | '.join(cells)} |" in flat
    rows: dict[str, list[str]] = {}
    for name, told in sizes["trainings"].items():
        way, schedule = name.split("; ")
        epochs = told["epochs"]
        seconds = epochs * middle[way]["validation"] + 22 * sum(
            middle[way][
                str(next((s for s, end in told["resolution"] if e <= epochs * end), 32))
            ]
            for e in range(1, epochs + 1)
        )
        assert told["seconds"] == pytest.approx(seconds, abs=0.1)
        rows.setdefault(schedule, []).append(f"{seconds:.0f} ({told['share']:.2f})")
    for schedule, cells in rows.items():
        assert f"| {schedule} | {' | '.join(cells)} |" in flat
    ours = sizes["trainings"]["hardswish too; 11 epochs, 24 to 40 %, 28 to 70 %"]
    assert f"in {ours['share']:.2f} of the seconds" in flat
    gains = [
        f"{middle['as it was']['32'] / middle[way]['32']:.2f}"
        for way in ("hardswish too", "products on small maps")
    ]
    assert f"{gains[0]} times the images a second at 32 pixels ({gains[1]} by" in flat


def test_time_to_accuracy_is_told_as_the_report_has_it():
    text = " ".join((FOLDER / "README.md").read_text().split())
    for name, words in (("se_lr83", "PFLOP with it"), ("vanilla", "without, five")):
        [section] = sections(load([str(FOLDER / "h200" / name)]).runs)
        found = costs(section.groups[0], 0.88)
        assert [cost.reached for cost in found] == [True] * 5
        logs = np.log([cost.pflop for cost in found])
        interval = stats.t.interval(0.95, 4, logs.mean(), stats.sem(logs))
        mean, low, high = np.exp([logs.mean(), *interval])
        assert f"{mean:.3g} [{low:.3g}, {high:.3g}] {words}" in text
