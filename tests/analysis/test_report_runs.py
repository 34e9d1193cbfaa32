"""Records are found, checked and read; each that cannot be used is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from resnet_se.analysis.report.runs import Run, frame, load, load_runs
from resnet_se.config.schema import HASH_RULES, RESOLVED
from resnet_se.runs.record import MOST_IMAGES, SCHEMA
from resnet_se.utils.errors import UserError
from tests.records import pack, record, swept, unfinished, write

DATA = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Writes records as files below `runs/` of the current folder; their paths."""
    monkeypatch.chdir(tmp_path)

    def plant(*records):
        paths = write(tmp_path / "runs", *records)
        return [str(path.relative_to(tmp_path)) for path in paths]

    return plant


def test_files_are_found_in_every_form_and_once(plant, tmp_path):
    paths = plant(record("e01_a"), record("e02_b"))
    (tmp_path / "runs/000/other.json").write_text("{}")
    (tmp_path / "flat").mkdir()
    shutil.copy(paths[0], tmp_path / "flat/e01_a.seed0.json")
    for arguments, expected in (
        (["runs"], paths),
        (["runs/001"], paths[1:]),
        (["runs/000/result.json", "runs"], paths),
        (["flat"], ["flat/e01_a.seed0.json"]),
        (["flat/e01_a.seed0.json"], ["flat/e01_a.seed0.json"]),
        ([str(tmp_path / "runs")], paths),  # never an absolute path
    ):
        loaded = load(arguments)
        assert [run.path for run in loaded.runs] == expected
        assert not loaded.problems
        assert not loaded.duplicates
    assert load(["nowhere"]).problems == ["nowhere: no result.json there"]


def test_a_record_under_a_former_name_is_read_under_todays(plant):
    named = {"experiment": "rival_resnet18", "question": "against a ResNet-18"}
    plant(record("rival_e14"), record("best_cpu", against=[named]))
    runs = {run.experiment: run for run in load(["runs"]).runs}
    assert set(runs) == {"baseline_e14", "best_cpu"}
    assert runs["best_cpu"].against == [named | {"experiment": "baseline_resnet18"}]


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
    "a setting of no keys": broken(lambda r: r.update(setting=[1])),
    "infinite history": broken(
        lambda r: r["history"].update({"val/loss": [float("inf"), 1.0]})
    ),
    "epochs of one column more": broken(lambda r: r["history"].update(step=[7])),
    "a clock that goes back": broken(lambda r: r["history"].update(seconds=[9.0, 8.0])),
    "less than no time": broken(lambda r: r["train"].update(seconds=-1.0)),
    "fewer steps than none": broken(lambda r: r["model"].update(macs=-1)),
    "beyond 64 bits": broken(lambda r: r["train"].update(epochs=10**400)),
    "a bomb of labels": broken(
        lambda r: r["test"].update(labels=pack(np.zeros(MOST_IMAGES + 1)))
    ),
    "a loss of text": broken(lambda r: r["test"].update(loss="x")),
    "not a number": broken(lambda r: r["val"].update(loss=float("nan"))),
    "infinity": broken(lambda r: r["train"].update(seconds=float("inf"))),
    "beyond all images": broken(lambda r: r["val"].update(acc=94.1)),
    "below none": broken(lambda r: r["test"].update(acc_tta=-0.1)),
    "against a word": broken(lambda r: r.update(against=["e02"])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_skipped(plant, name):
    good, bad = plant(record("e02_b"), BROKEN[name])
    loaded = load(["runs"])
    assert [run.path for run in loaded.runs] == [good]
    (problem,) = loaded.problems
    assert problem.startswith(f"{bad}: ")
    assert str(Path.cwd()) not in problem


def test_labels_of_another_test_set_under_the_same_fingerprint_are_refused(plant):
    other = record("e02_b", wrong=range(4))
    other["test"] |= {"labels": other["test"]["predicted"], "acc": 1.0, "acc_tta": 1.0}
    other["test"]["predicted_tta"] = other["test"]["predicted"]
    paths = plant(record("e01_a"), other)
    loaded = load(paths)
    assert [run.path for run in loaded.runs] == paths[:1]
    assert f"{paths[1]}: test.labels are not those of {paths[0]}" in loaded.problems[0]


def test_a_trial_with_the_images_in_another_order_drops_nothing(plant):
    trial = record("e00_trial", wrong=range(4))
    trial["test"] |= {"labels": trial["test"]["predicted"], "acc": 1.0, "acc_tta": 1.0}
    trial["test"]["predicted_tta"] = trial["test"]["predicted"]
    trial["choices"] = {**trial.get("choices", {}), "budget": "smoke"}
    paths = plant(trial, record("e01_a"), record("e02_b"))
    loaded = load(paths)
    assert not loaded.problems
    loaded.leave_out_trials()
    assert [run.path for run in loaded.runs] == paths[1:]


def test_copies_are_counted_once_and_conflicts_are_told_from_them(plant):
    runs = [record("e01_a", wrong=range(n)) for n in (40, 40, 80)]
    loaded = load(plant(*runs))
    assert len(loaded.runs) == 1
    copies = [(run.path[-15:-12], conflict) for run, _, conflict in loaded.duplicates]
    assert copies == [("001", False), ("002", True)]


def test_the_runs_own_directory_wins_over_a_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = record("a", 0, range(9))
    home = Path("runs") / "z" / f"seed0-{run['config_hash']}" / "result.json"
    copy = Path("runs") / "a copy" / "result.json"
    for path, of in ((home, run), (copy, record("a", 0, range(12)))):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(of))
    loaded = load(["runs"])
    assert [r.path for r in loaded.runs] == [home.as_posix()]
    ((other, kept, conflict),) = loaded.duplicates
    assert (other.path, kept.path) == (copy.as_posix(), home.as_posix())
    assert conflict


def test_what_cannot_matter_is_not_a_setting():
    run = Run.of(
        "", record("a", overrides=["a=1", "+b.c=2", "~d", "x@y=z", "experiment=a"])
    )
    assert run.overridden == {"a": "1", "b.c": "2", "d": "", "x": "z"}
    assert set(RESOLVED) < set(HASH_RULES.unhashed)
    idle = set(HASH_RULES.unhashed) - set(RESOLVED)
    typed = [f"{key}{rest}=1" for key in idle for rest in ("", ".x", "@y")]
    assert Run.of("", record("a", overrides=typed)).overridden == {}
    typed = [f"{key}=1" for key in (*RESOLVED, "trainer.compiled", "budget.scale")]
    assert len(Run.of("", record("a", overrides=typed)).overridden) == len(typed)


def test_values_are_what_was_resolved_rather_than_what_was_typed():
    run = Run.of("", record("a", overrides=["optimizer.lr=1e-1", "budget=short"]))
    assert run.values["optimizer.lr"] == 0.1
    assert run.values["model"] == "se_resnet8"
    earlier = Run.of("", record("a", overrides=["optimizer.lr=1e-1"]) | {"setting": {}})
    assert earlier.values["optimizer.lr"] == "1e-1"


def test_where_keeps_what_is_asked_and_names_the_nearest(plant):
    paths = plant(swept(0, optimizer__lr=0.1), swept(0, optimizer__lr=0.2))
    loaded = load(paths)
    loaded.where([("optimizer.lr", "0.2")])
    assert [run.path for run in loaded.runs] == paths[1:]
    with pytest.raises(UserError, match=r"--where optimizer.rl: .* 'optimizer.lr'"):
        load(paths).where([("optimizer.rl", "0.2")])
    with pytest.raises(UserError, match=r"lr=3: no run has that; valid choices: 0.1, "):
        load(paths).where([("optimizer.lr", "3")])


# --- the table ---------------------------------------------------


def test_a_number_beyond_64_bits_is_kept_as_it_is():
    huge = [record("a", seed=1), record("a", seed=2 << 62), record("a", seed=-(2**70))]
    table = frame(Run.of(str(i), r) for i, r in enumerate(huge))
    assert list(table["seed"]) == [1, 1 << 63, -(2**70)]
    assert frame([Run.of("", huge[0])])["seed"].dtype == "Int64"


def test_a_row_a_run_with_typed_columns(plant):
    plant(
        swept(0, range(40), optimizer__lr=0.1, model="a"),
        swept(1, range(60), optimizer__lr=0.2, model="b"),
        unfinished("other", 0, "failed"),
    )
    table = load_runs("runs")
    assert table["status"].tolist() == ["finished", "finished", "failed"]
    assert table["test.acc"].tolist()[:2] == [0.9, 0.85]
    assert table["optimizer.lr"].tolist()[:2] == [0.1, 0.2]
    assert table["model"].tolist()[:2] == ["a", "b"]
    assert pd.isna(table["test.acc"][2])
    for column in ("seed", "train.epochs", "data.train", "model.macs"):
        assert pd.api.types.is_integer_dtype(table[column])
    for column in ("test.acc", "train.seconds", "optimizer.lr"):
        assert pd.api.types.is_float_dtype(table[column])
    assert table["train.acc"][0] == 0.6
    assert "history" not in table
    mean = table.groupby("model")["test.acc"].mean()
    assert mean["a"] == pytest.approx(0.9)


def test_histories_and_predictions_on_request(plant):
    paths = plant(record("a", 0, range(40)), unfinished("b", 0, "running"))
    table = load_runs(paths, history=True, predictions=True)
    assert table["history"][0]["train/acc"] == [0.3, 0.6]
    right = table["labels"][0] == table["predicted"][0]
    assert right.mean() == table["test.acc"][0]
    assert table["predicted"][0].dtype == np.int64
    assert table["predicted"][1] is None


def test_what_cannot_be_read_is_warned_of(plant):
    plant(record("a"), "{")
    with pytest.warns(UserWarning, match=r"not used: runs/001/result.json: "):
        assert len(load_runs()) == 1
    with pytest.warns(UserWarning, match="nowhere"):
        assert list(load_runs("nowhere").columns)[:3] == [
            "path",
            "status",
            "experiment",
        ]


def test_records_without_a_setting_are_read():
    table = load_runs(DATA)
    assert table["experiment"].tolist() == ["e05_se_resnet20", "e13_plateau"]
    assert table["budget"].tolist() == ["cpu", "cpu"]
    assert table["train.epochs"].tolist() == [4, 5]
    assert table["train.stopped"].notna().all()


@pytest.mark.slow
def test_importing_the_report_pulls_in_nothing_heavy():
    code = (
        "import sys; import resnet_se.commands.report; "
        "import resnet_se.analysis.report.runs; "
        "heavy = 'torch torchvision lightning hydra pandas scipy matplotlib'.split(); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
