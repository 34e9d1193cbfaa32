"""The report's text, page and files, of planted runs."""

from __future__ import annotations

import copy
import csv
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from resnet_se.analysis.canvas import draw
from resnet_se.analysis.report import claims, document, tables
from resnet_se.analysis.report.compare import compare
from resnet_se.analysis.report.document import report
from resnet_se.analysis.report.figures import figures, pareto, spread_labels
from resnet_se.analysis.report.groups import sections
from resnet_se.analysis.report.runs import Run, frame, load
from resnet_se.utils.errors import UserError
from tests.records import GPU, record, swept, unfinished, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take seconds to draw, and few tests look at them."""
    monkeypatch.setattr(document, "figures", lambda *_: [])


@pytest.fixture
def text_of(tmp_path, monkeypatch, undrawn):
    """REPORT.md of some records, and the exit status."""
    monkeypatch.chdir(tmp_path)

    def make(*records, **asked):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        write(tmp_path / "runs", *records)
        status = report(["runs"], tmp_path / "out", "the name", **asked)
        return (tmp_path / "out/REPORT.md").read_text(), status

    return make


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


def against(*names):
    return [{"experiment": name, "question": f"what of {name}?"} for name in names]


# --- the command -------------------------------------------------


def test_exit_status(command, tmp_path, undrawn, capsys):
    write(tmp_path / "runs", record("a"))
    write(tmp_path / "half", unfinished("a", 0, "running"))
    assert command("report", "runs", "--out", "a") == 0
    assert command("report", "runs", "nowhere", "--out", "b") == 1
    assert "not used: nowhere: no result.json" in capsys.readouterr().err
    for wrong in (["nowhere"], ["half"], [], ["runs", "--where", "model=x"]):
        assert command("report", *wrong, "--out", "c") == 2
    assert command("report", "runs", "--where", "model", "--out", "c") == 2
    assert "KEY=VALUE expected, got 'model'" in capsys.readouterr().err
    assert command("report", "runs", "--equivalence", "0", "--out", "c") == 2
    assert command("report", "runs", "--factor", "lr", "--out", "d") == 1
    assert "lr: no two runs differ in it alone" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ([record("a"), "{"], "not used: runs/001/result.json: not a result"),
        (
            [record("a"), record("b", images=200)],
            "mixed test sets, kept apart: cifar10",
        ),
        ([record("a", against=against("b"))], "not compared: a − b: no run of b"),
        ([record("a"), record("a", 0, [1])], "conflict, same run but other numbers: a"),
    ],
)
def test_what_is_wrong_is_named_the_rest_used_and_the_status_says_so(
    text_of, records, named
):
    text, status = text_of(*records)
    assert status == 1
    assert f"- {named}" in text
    assert "runs/000/result.json | finished" in text


def test_nothing_to_report(tmp_path, undrawn):
    with pytest.raises(UserError, match="no finished run"):
        report([str(tmp_path)], tmp_path / "out", "name")


def paths_of(value, path=()):
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from paths_of(inner, (*path, key))


PATHS = sorted(paths_of(record("a", 0, against=against("b"))))
WRONG = [None, -1, 0, True, 3.5, "x", "", [], {}, [1, 2], {"a": 1}]


def spoil(path, value):
    """Whatever one field holds, the report is made or the file is named."""
    spoilt = copy.deepcopy(record("a", 0, against=against("b")))
    inner = spoilt
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "runs", spoilt, record("b", 0), record("b", 1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(document, "figures", lambda *_: [])
            status = report([str(folder / "runs")], folder / "out", "name")
        text = (folder / "out/REPORT.md").read_text()
    named = ("- not used", "- not compared", "- mixed", "- conflict")
    assert (status == 1) == any(words in text for words in named)


@pytest.mark.parametrize("path", [("data", "batch_size"), ("history", "train/acc")])
def test_a_field_that_once_stopped_the_report(path):
    spoil(path, None)


@given(st.sampled_from(PATHS), st.sampled_from(WRONG))
@settings(max_examples=10, deadline=None)
def test_no_field_of_a_record_can_stop_the_report(path, value):
    spoil(path, value)


@pytest.mark.soak
@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_no_value_of_any_field_can_stop_the_report(path):
    for value in WRONG:
        spoil(path, value)


# --- what it says ------------------------------------------------


def test_the_table_is_what_was_planted(text_of):
    few = {
        "train": {"images_per_second": None, "epochs": 4},
        "test": {"acc_tta": None, "predicted_tta": None},
    }
    text, status = text_of(
        record("e14_final", 0, range(40), range(20), val={"acc": 0.5}),
        record("e14_final", 1, range(44), range(28), val={"acc": 0.52}),
        record("e15_batch64", 0, range(4), **few),
    )
    final, batch64 = rows_of(text, "## cifar10")
    assert final == {
        "run": "e14_final",
        "n": "2",
        "val %": "51.00 ± 1.41",
        "test %": "89.50 ± 0.71",
        "test TTA %": "94.00 ± 1.41",
        "test ± of all images": "0.61",
        "epochs": "5",
        "images/s": "100",
    }
    assert batch64["test %"] == "99.00 (n = 1)"  # never ± 0
    assert batch64["test TTA %"] == batch64["images/s"] == "–"
    # what all share is said once
    shared = next(line for line in text.splitlines() if line.startswith("- in common"))
    assert "budget=short" in shared
    assert "4,628,210 parameters, 728.6 MMAC, 1.5 minutes" in shared
    assert status == 0


def test_the_headline_is_the_best_by_validation(text_of):
    text, _ = text_of(
        *[record("a", s, range(40 + s), val={"acc": 0.9}) for s in (0, 1)],
        *[record("b", s, range(20 + s), val={"acc": 0.8}) for s in (0, 1)],
        record("c", 0, val={"acc": 0.1}, against=against("a")),
    )
    text = text.partition("## In short")[2]
    first, highest, single, *_ = re.findall(r"^- (.*)$", text, re.M)
    assert "best by validation: a, n = 2: validation 90.00" in first
    assert "test 89.88 ± 0.18" in first
    assert highest.startswith("highest of 3 tests: 100.00 (n = 1) of c; chosen by the")
    assert single == "1 comparison of too few seeds"


def test_without_tta_the_headline_names_none(text_of):
    text, _ = text_of(record("a", test={"acc_tta": None, "predicted_tta": None}))
    assert "validation 50.00 (n = 1), test 100.00 (n = 1) per cent" in text


def test_comparisons_show_power_and_are_counted(text_of):
    runs = [record("a", s, range(80 + 2 * s)) for s in range(3)]
    runs += [record("b", s, range(2 * s), against=against("a")) for s in range(3)]
    runs += [record("c", 0, range(9), against=against("a"))]
    text, _ = text_of(*runs)
    (b,) = rows_of(text, "### Comparisons")
    (c,) = rows_of(text, "Too few seeds to decide")
    assert b["comparison"] == "b − a"
    assert b["n"] == "3"
    assert b["difference [interval]"].startswith("+20.00 [+")
    assert (b["p"], b["verdict"]) == ("<0.001", "better")
    assert b["worse / equal / better %"] == "0 / 0 / 100"
    assert b["a run wins %"] == "100 [50, 100]"
    assert float(b["detects"]) > 0
    assert b["seeds for 0.5"] == "more images"  # 400 are too few, with any seeds
    assert c["verdict"] == "networks differ; recipes not decided (n = 1)"
    assert c["p"] == "<0.001 (images)"
    assert c["detects"] == "–"
    assert "worse / equal / better %" not in c
    assert "- of 1 comparison: 1 better\n- 1 comparison of too few seeds" in text


def test_the_page_begins_with_the_answers_and_then_what_is_open(text_of):
    runs = [record("a", s, range(80 + 2 * s)) for s in range(3)]
    runs += [record("b", s, range(2 * s), against=against("a")) for s in range(3)]
    runs += [record("c", 0, range(9), against=against("a"))]
    text, _ = text_of(*runs)
    order = [
        "## Decided: 1 of 2 comparisons",
        "- better: what of a? (b − a), +20.00 points [+",
        "A study of this shape (2 recipes, ",
        "## Open: 1 comparison",
        "- what of a? (c − a), ",
        "one seed decides nothing of a recipe: three of each can",
        "## In short",
        "## cifar10",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_a_diverged_seed_is_named_counted_and_decides_nothing(text_of, capsys):
    runs = [record("a", s, range(80 + 2 * s)) for s in range(4)]
    errors = (82, 84, 83, 360)
    runs += [
        record("b", s, range(n), against=against("a")) for s, n in enumerate(errors)
    ]
    runs += [record("c", s, range(40 + s), against=against("a")) for s in range(4)]
    text, status = text_of(*runs)
    assert status == 1
    named = "far from the others of its recipe: b seed 3: 10.00 per cent, 69.1 points"
    assert named in text
    assert named in capsys.readouterr().err
    assert "- 1 seed far from the others of the recipe" in text
    b, c = rows_of(text, "### Comparisons")
    assert b["verdict"] == "not decided"
    assert b["difference [interval]"].startswith("−")  # it counts
    assert c["verdict"] == "better"  # by the noise of the others


def test_a_users_own_sweep_is_compared(text_of):
    runs = [
        swept(s, range(n), model=m, optimizer__lr=lr)
        for m, lr, n in (("a", 0.1, 90), ("a", 0.2, 90), ("b", 0.1, 20), ("b", 0.2, 21))
        for s in range(3)
    ]
    text, status = text_of(*runs)
    assert status == 0
    assert [row["run"] for row in rows_of(text, "## cifar10")] == [
        "model=a lr=0.1",
        "model=a lr=0.2",
        "model=b lr=0.1",
        "model=b lr=0.2",
    ]
    model, lr = rows_of(text, "### Comparisons")
    assert (model["question"], model["verdict"]) == ("model, mean of 2 cells", "better")
    assert lr["verdict"] == "no difference of 0.5 points or more"
    assert len(rows_of(text, "The cells of the averages")) == 4
    text, _ = text_of(*runs, where=[("model", "a")])
    assert [row["question"] for row in rows_of(text, "### Comparisons")] == [
        "optimizer.lr"
    ]


def test_what_only_tried_things_out_is_left_out_unless_asked_for(text_of):
    smoke = record("b", 0, choices={"model": "x", "budget": "smoke"})
    debug = record("c", 0, choices={"model": "x", "budget": "short", "debug": "fast"})
    text, status = text_of(record("a", 0), smoke, debug)
    assert status == 0
    assert "1 finished run of 1 experiment" in text
    assert "left out: 2 runs of budget=smoke or debug=…" in text
    text, _ = text_of(record("a", 0), smoke, debug, trials=True)
    assert "3 finished runs of 3 experiments" in text
    assert "left out" not in text
    with pytest.raises(UserError, match=r"among them but 1 run of budget=smoke"):
        text_of(smoke)


def test_what_a_reader_should_know_is_noted(text_of):
    early = {"train": {"stopped": "early_stopping"}}
    dirty = {"git": {"commit": "fedcba9876543210", "dirty": True}}
    half = {"hardware": GPU | {"precision": "bf16-mixed"}}
    half["choices"] = {"reading": "keras"}
    text, _ = text_of(
        record("a", 0),
        record("a", 1, versions={"torch": "2.14.0"}),
        record("b", 0, against=against("a"), **dirty, **half, **early),
        unfinished("c", 0, "failed", error="OSError: /home/me/data/x is full"),
    )
    for note in (
        "failed: c seed 0",
        "result.json: OSError: …/x is full",
        "stopped early: b: seed 0 after 5 epochs",
        "identical histories: a seed 0 and b seed 0",
        "no run of seed 1: b",
        "reading differs within the pair: b − a",
        "precision differs within the pair: b − a",
        "hardware differs within the pair: b − a",
        "commit differs within the pair: b − a",
        "runs of different commit: 0123456 (2 runs); fedcba9 + changes (1 run)",
        "runs of different software: python 3.11.7, torch 2.14.0",
        "1 run of a working tree with uncommitted changes",
    ):
        assert note in text
    assert "/home" not in text


def test_a_whole_set_of_runs_has_nothing_to_note(text_of):
    text, status = text_of(*(record(name, 0, range(i)) for i, name in enumerate("abc")))
    assert "## Missing" not in text
    assert status == 0


def test_records_without_a_setting_make_a_report(monkeypatch, tmp_path, undrawn):
    monkeypatch.chdir(ROOT)
    assert report(["tests/fixtures"], tmp_path, "old") == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert [row["n"] for row in rows_of(text, "## cifar10")] == ["1", "1"]
    assert "stopped early: e05_se_resnet20: seed 0 after 4 epochs" in text


# --- claimed and measured ----------------------------------------


def test_claims_stand_beside_what_was_measured(text_of):
    plain, final = "e03_vanilla_resnet80", "e14_final"
    text, _ = text_of(
        record(plain, 0, range(48)),
        record("e07_se_resnet80", 0, range(40), against=against(plain)),
        *[record(final, s, range(24 + s), range(20 + s)) for s in (0, 1)],
    )
    rows = rows_of(text, "## Claimed and measured")
    measured = {row["claim"]: row for row in rows}
    assert measured["parameters added by SE"]["measured"].startswith("0.77 %")
    gain = measured["accuracy gained by SE"]
    assert gain["measured"].startswith("+2.00 [+")
    assert gain["measured"].endswith("networks differ; recipes not decided (n = 1)")
    assert gain["n"] == "1"
    assert measured["test accuracy (abstract)"]["measured"] == "93.88 ± 0.18 %"
    assert measured["training accuracy, last epoch"]["measured"] == "60.00 ± 0.00 %"
    assert "+1.00 [+" in measured["TTA improves the accuracy"]["measured"]
    assert measured["accuracy gained by SE, final recipe"]["measured"] == "not measured"


def test_a_study_of_something_else_is_not_held_against_the_paper(text_of):
    text, _ = text_of(record("mine"))
    assert "Claimed and measured" not in text


def test_the_claims_name_experiments_and_columns_that_exist():
    known = {path.stem for path in ROOT.glob("conf/experiment/*.yaml")}
    for claim in OmegaConf.to_container(OmegaConf.load(ROOT / "conf/claims.yaml")):
        assert {claim[k] for k in ("of", "against") if k in claim} <= known
        columns = {claim[k] for k in ("column", "over") if k in claim}
        assert columns <= {*frame([Run.of("", record("a"))]).columns}
    assert round(100 * (4_617_010 / 4_581_898 - 1), 2) == 0.77


@pytest.mark.parametrize("text", ["a: [", "3", "- {claim: x}", "- {claim: x, of: y}"])
def test_claims_that_are_none_are_named(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/claims.yaml").write_text(text)
    with pytest.raises(UserError, match=r"claims\.yaml: not a list of claims"):
        claims.load_claims()


# --- files -------------------------------------------------------


def test_the_formats_show_the_same_numbers(text_of, tmp_path):
    runs = [record("a_b", s, range(40 + 4 * s)) for s in (0, 1)]
    runs += [record("c_50%", s, against=against("a_b")) for s in (0, 1)]
    text_of(*runs)

    def rows(name):
        return list(csv.DictReader(io.StringIO((tmp_path / "out" / name).read_text())))

    first, second = rows("table.csv")
    assert float(first["test.acc_mean"]) == pytest.approx(0.895)
    assert float(first["test.acc_std"]) == pytest.approx(0.00707107)
    assert (first["n"], first["seeds"]) == ("2", "0 1")
    assert [row["experiment"] for row in rows("runs.csv")] == ["a_b"] * 2 + [
        "c_50%"
    ] * 2
    (compared,) = rows("comparisons.csv")
    assert float(compared["difference"]) == pytest.approx(0.105)
    shares = [float(compared[f"p_{word}"]) for word in ("worse", "equal", "better")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares[2] > 0.9
    tex = (tmp_path / "out/tables.tex").read_text()
    assert r"a\_b & 2 & 50.00 $\pm$ 0.00 & 89.50 $\pm$ 0.71 &" in tex
    assert second["experiment"] == "c_50%"
    assert r"c\_50\% & 2 &" in tex
    assert tex.count("{") == tex.count("}")
    assert r"\caption{cifar10 sha256:aaaaaaaa: mean $\pm$ sample" in tex
    assert r"found with 80 \% power" in tex
    assert "<td>89.50 ± 0.71</td>" in (tmp_path / "out/report.html").read_text()


def test_a_text_of_a_record_is_neither_a_command_nor_a_formula(text_of, tmp_path):
    texts = {"data": {"name": r"x}\input{/etc/passwd}^^5c~%"}, "config_hash": "@SUM(1)"}
    text_of(*(record("=1+1", seed, **texts) for seed in (0, 1)))
    tex = (tmp_path / "out/tables.tex").read_text()
    assert r"x\}\textbackslash{}input\{/etc/passwd\}" in tex
    assert r"\textasciicircum{}\textasciicircum{}5c\textasciitilde{}\%" in tex
    assert r"\input" not in tex
    for name in ("runs.csv", "table.csv"):
        rows = list(csv.reader((tmp_path / "out" / name).read_text().splitlines()))
        assert any("'=1+1" in row for row in rows)
        assert not any(cell[:1] in ("=", "@") for row in rows for cell in row)


def test_other_data_are_other_sections_and_files(text_of, tmp_path):
    elsewhere = {"fingerprint": "sha256:0000000000000000"}
    text, _ = text_of(*[record("a", s) for s in (0, 1)], record("b", data=elsewhere))
    assert [row["run"] for row in rows_of(text, "(sha256:0000000000000000)")] == ["b"]
    tables = sorted(path.name for path in (tmp_path / "out").glob("table*.csv"))
    assert tables == ["table-2.csv", "table.csv"]


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


def drawn(tmp_path, *records):
    (section,) = sections(load(map(str, write(tmp_path, *records))).runs)
    return {name: (c, f) for name, c, f in figures(section, compare(section), 0.005)}


def test_pictures_are_the_same_text_each_time(tmp_path):
    twice = [
        [draw(figure) for _, figure in drawn(tmp_path, record("quickstart")).values()]
        for _ in range(2)
    ]
    assert twice[0] == twice[1]
    assert not any("Bitstream" in svg for svg in twice[0])  # each word names its fonts


def test_long_names_leave_room_for_what_is_drawn(tmp_path):
    """A layout that collapses warns, which is an error here."""
    # Of a comparison within one experiment the label is the override as typed.
    runs = [
        swept(seed, model=f"somewhere.deep.in_a_module_of_ones_own.Network{name}" * 3)
        for name in "ab"
        for seed in (0, 1)
    ]
    for _, figure in drawn(tmp_path, *runs).values():
        draw(figure)


def test_names_stay_whole_and_the_lowest_panels_count_their_epochs(tmp_path):
    runs = [record("e01_a", 0), record("e02_b", 0, [1], against=against("e01_a"))]
    question = "the paper's layer table for the network of its very counts"
    runs[1]["against"][0]["question"] = question
    runs += [record(f"e0{i}_c", 0, setting={"x": i}) for i in (3, 4, 5, 6)]
    found = drawn(tmp_path, *runs)
    figure = found["differences"][1]
    [label] = figure.axes[0].get_yticklabels()
    assert "e02\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}e01" in label.get_text()
    panels = [a for a in found["curves-accuracy"][1].axes if a.get_visible()]
    labelled = [a.xaxis.get_tick_params()["labelbottom"] for a in panels]
    assert labelled == [False, False, True, True, True, True]
    for _, other in found.values():
        draw(other)


def test_a_diverged_epoch_does_not_flatten_the_other_panels(tmp_path):
    def run(name, losses):
        history = {"epoch": list(range(100)), "val/loss": losses}
        return record(name, history=history | {"train/loss": [1.0] * 100})

    losses = list(np.linspace(2, 1, 100))
    found = drawn(tmp_path, run("a", losses), run("b", [5e6, *losses[1:]]))
    caption, figure = found["curves-loss"]
    assert "log axis that ends below 1 values" in caption
    assert figure.axes[0].get_ylim()[1] < 4
    assert figure.axes[0].get_yscale() == "log"
    for _, other in found.values():
        draw(other)


def test_each_length_has_a_front_of_its_own(tmp_path):
    def run(name, total, wrong, train):
        size = {"total": total, "macs": total}
        of = record(name, 0, range(wrong), data={"train": train}, model=size)
        return of | {"config_hash": f"{name}{train}"}

    of = [run("a", 10**6, 90, 500), run("b", 4 * 10**6, 50, 500)]
    of += [run("a", 10**6, 70, 1500), run("b", 4 * 10**6, 30, 1500)]
    of += [run("c", 9 * 10**6, 200, 500)]
    figure = drawn(tmp_path, *of)["cost"][1]
    fronts = [line for line in figure.axes[0].lines if line.get_label()[0] != "_"]
    assert [line.get_label() for line in fronts] == [
        "500 images, 5 epochs",
        "1,500 images, 5 epochs",
    ]
    assert [list(line.get_xdata()) for line in fronts] == [[1, 4], [1, 4]]
    assert [line.get_ydata()[-1] for line in fronts] == [87.5, 92.5]
    draw(figure)
    low = figure.axes[0].get_ylim()[0]
    assert all(text.xyann[1] > low for text in figure.axes[0].texts)


def test_a_far_seed_is_drawn_where_it_lies(tmp_path):
    errors = {"a": (40, 42, 38, 360), "b": (30, 31, 32)}
    runs = [
        record(name, seed, range(n), against=against("b") if name == "a" else [])
        for name, of in errors.items()
        for seed, n in enumerate(of)
    ]
    figure = drawn(tmp_path, *runs)["differences"][1]
    (far,) = [x for x in figure.axes[0].lines if x.get_label() == "a far seed"]
    assert far.get_xdata() == pytest.approx([-100 * (360 - 31) / 400])


def lengths(epochs=(5, 5), seeds=(2, 2)):
    """b against a with 500 images, and with all of 1,500, which nobody types."""
    return [
        record(name, s, range(n + s), **fields, data={"train": train})
        for train, e, n_seeds in zip((500, 1500), epochs, seeds, strict=True)
        for name, n, fields in (("a", 40, {}), ("b", 20, {"against": against("a")}))
        for s in range(n_seeds)
        for told in [[f"data.train_subset={train}"] if train == 500 else []]
        for fields in [fields | {"overrides": told, "train": {"epochs": e}}]
    ]


def test_a_difference_against_the_length_of_training(tmp_path):
    caption, figure = drawn(tmp_path, *lengths(seeds=(2, 1)))["length-1"]
    assert caption.startswith("b − a in points against training images, log axis. 500:")
    assert caption.endswith(", n = 1; dashed: for new images only")
    [axis] = figure.axes
    assert list(axis.lines[0].get_xdata()) == [500, 1500]
    assert list(axis.lines[0].get_ydata()) == pytest.approx([5, 5])  # paired, not mixed
    assert [t.get_text() for t in axis.get_xticklabels()] == ["500", "1,500"]
    words = [note.get_text() for note in axis.texts]
    assert words == ["n = 2: better", "n = 1: not decided"]
    styles = [line.get_linestyle() for line in axis.lines if line.get_xdata()[0] > 0]
    assert styles.count("--") == 1


def test_lengths_in_epochs_and_images_are_multiplied(tmp_path):
    caption, figure = drawn(tmp_path, *lengths(epochs=(5, 10)))["length-1"]
    assert "against images trained on (epochs × images)" in caption
    assert list(figure.axes[0].lines[0].get_xdata()) == [2500, 15000]


def test_many_seeds_are_three_lines_a_panel_and_many_pairs_four_pictures(tmp_path):
    columns = [{"epoch": [0, 1], "val/acc": [0.1, s / 100]} for s in range(9)]
    of = [record("a", s, history=h) for s, h in enumerate(columns)]
    caption, figure = drawn(tmp_path / "seeds", *of)["curves-accuracy"]
    assert caption.endswith("; of over 5 seeds, median, lowest and highest")
    [line] = (x for x in figure.axes[0].lines if x.get_linestyle() == "-")
    assert list(line.get_ydata())[1::3] == [0.04, 0, 0.08]
    pairs = lengths()
    for i in range(5):
        for run in copy.deepcopy(lengths()):
            if run["experiment"] == "b":
                pairs.append(run | {"experiment": f"b{i}"})
    found = drawn(tmp_path / "pairs", *pairs)
    series = sorted(name for name in found if name.startswith("length"))
    assert series == [f"length-{i}" for i in (1, 2, 3, 4)]
    assert found["length-1"][0].endswith("; 4 of 6 shown")


# --- the page ----------------------------------------------------


def test_a_long_table_ends_and_says_where_the_rest_is(text_of, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 3)
    text, _ = text_of(*(record(f"e{i}", 0, setting={"x": i}) for i in range(5)))
    assert len(rows_of(text, "3 of 5 rows are shown; all are in the CSV")) == 3


@pytest.mark.slow
def test_a_report_imports_no_framework_and_no_statistics_package(tmp_path):
    """They take longer to import than hundreds of records to read."""
    write(tmp_path / "runs", record("a"), record("b", 0, [1], against=against("a")))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from resnet_se.analysis.report.document import report\n"
        "report(['runs'], Path('out'), 'name')\n"
        "heavy = {'torch', 'lightning', 'hydra', 'scipy.stats'}\n"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"
    )
    path = {"PYTHONPATH": str(ROOT), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr.decode()[-500:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report with all its figures; one experiment has a hostile name."""
    folder = tmp_path_factory.mktemp("whole")
    names = ("e01_a", "e05_b", 'e14_"<script>alert(1)</script>|`x`')
    records = [
        record(
            name,
            seed,
            range(60 - 20 * i + seed),
            against=against(*names[:i]),
            model={"macs": 10**7 * (i + 1)},
        )
        for i, name in enumerate(names)
        for seed in (0, 1)
    ]
    write(folder / "runs", *records)
    assert report([str(folder / "runs")], folder / "out", "the <name>") == 0
    return folder / "out"


class Page(HTMLParser):
    """Balances tags and collects what a page would load."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.tags, self.anchors = [], [], [], []
        self.alts = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "srcset")]
        self.anchors += [v for k, v in attributes if k == "id"]
        self.alts += [v for k, v in attributes if k == "alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(whole):
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.tags.count("img") == 5  # differences, cost, two of curves, confusion
    assert len(page.alts) == 5
    assert all(len(alt) > 20 for alt in page.alts)
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    links = {load[1:] for load in page.loads if load.startswith("#")}
    assert links == set(page.anchors)
    assert len(page.anchors) == len(set(page.anchors))
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", text)
    assert "<h1>the &lt;name&gt;</h1>" in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.slow
def test_the_page_of_22_experiments_and_3_seeds_is_below_half_a_megabyte(tmp_path):
    epochs = range(11)
    rng = np.random.default_rng(0)
    records = [
        record(
            f"e{i:02}_{'name' * 4}",
            seed,
            range(3 * i + seed),
            against=against(f"e{i - 1:02}_{'name' * 4}") if i > 1 else [],
            model={"macs": 10**7 * i, "total": 10**6 + 10**4 * i},
            history={
                "epoch": [*map(float, epochs)],
                **{
                    f"{part}/{metric}": rng.random(len(epochs)).tolist()
                    for part in ("train", "val")
                    for metric in ("acc", "loss")
                },
            },
        )
        for i in range(1, 23)
        for seed in range(3)
    ]
    write(tmp_path / "runs", *records)
    assert report([str(tmp_path / "runs")], tmp_path / "out", "22") == 0
    assert 200_000 < (tmp_path / "out/report.html").stat().st_size < 500_000


def test_markdown_links_to_figures_that_exist(whole):
    text = (whole / "REPORT.md").read_text()
    links = re.findall(r"\]\((.*?)\)", text)
    assert set(links) == {
        f"figures/{path.name}" for path in (whole / "figures").iterdir()
    }
    assert len(links) == 5
    for link in links:
        assert "<svg" in (whole / link).read_text()
    assert "<script" not in text.replace("\\<", "")


def test_the_same_runs_give_the_same_text(whole, monkeypatch, tmp_path):
    monkeypatch.setattr(document, "draw", lambda figure: "<svg/>")
    assert report([str(whole.parent / "runs")], tmp_path / "out", "the <name>") == 0
    for name in ("REPORT.md", "table.csv", "runs.csv", "comparisons.csv", "tables.tex"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert str(whole.parent) not in (whole / "REPORT.md").read_text()


def test_what_was_asked_for_afterwards_is_said_to_be(text_of):
    runs = [swept(seed, optimizer__lr=lr) for lr in (0.1, 0.2) for seed in (0, 1)]
    assert "asked for after the runs" not in text_of(*runs)[0]
    assert "asked for after the runs" in text_of(*runs, factor=["optimizer.lr"])[0]
