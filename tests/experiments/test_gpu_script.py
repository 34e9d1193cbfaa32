"""experiments/gpu.py: its order, its commands, and what counts as done."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from resnet_se.config import CONF
from resnet_se.config.compose import compose_job, plain_values
from resnet_se.config.schema import HASH_RULES
from resnet_se.config.validate import validate
from resnet_se.runs.run_hash import Environment, config_hash, hashed_config

SCRIPT = Path(__file__).parents[2] / "experiments/gpu.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def steps(script, out):
    return [s for part in script["PARTS"].values() for s in part(out, False)]


def test_steps_come_in_order_and_are_told_apart(script, tmp_path):
    found = steps(script, tmp_path)
    names = [step.name for step in found]
    assert len(set(names)) == len(names)
    assert len({step.record for step in found}) == len(names)
    pairs = [
        f"short/{name}.seed{seed}"
        for seed in range(3)
        for name in ("e14_final", "e21_vanilla")
    ]
    first = len(pairs) + 1
    assert names[:first] == [*pairs, "paper/e14_final.seed0"]
    assert names[first] == "benchmark"
    assert names[first + 1].startswith("turns/reference.seed0")
    assert names[first + 2] == "turns/speedrun.seed0"
    alone = [step.alone for step in found[first:]]
    assert alone == sorted(alone, reverse=True)


def test_the_first_part_is_the_paper_s_epochs_with_cuda_graphs(script, tmp_path):
    *pairs, paper = script["full"](tmp_path, False)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        lengths = [compose("train", s.arguments).trainer for s in (*pairs, paper)]
    assert [trainer.max_epochs for trainer in lengths] == [30] * 6 + [300]
    assert {trainer.compile for trainer in lengths} == {"cuda_graphs"}


def test_the_dry_run_of_the_first_part_can_be_trained(script, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for step in [*script["full"](tmp_path, True)][-3:]:  # one of each kind
            validate(compose_job(step.arguments))


def test_typed_again_it_goes_on_with_what_is_missing(script, tmp_path, monkeypatch):
    """A step leaves its record at the second start; what is done does not begin."""
    work = tmp_path / "work.py"
    work.write_text(
        "import pathlib, sys\n"
        "record = pathlib.Path(sys.argv[1])\n"
        "record.write_text('whole' if record.exists() else 'begun')\n"
    )
    names = ("one", "two")
    steps = [
        script["Step"](n, str(work), [str(tmp_path / n)], n, "whole") for n in names
    ]
    (tmp_path / "one").write_text("whole")
    (tmp_path / "two").write_text("begun")
    begun = []
    globals_ = script["main"].__globals__
    begin = globals_["begin"]
    monkeypatch.setitem(globals_, "PARTS", {"full": lambda out, dry: steps})
    monkeypatch.setitem(
        globals_,
        "begin",
        lambda step, *rest: begun.append(step.name) or begin(step, *rest),
    )
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(tmp_path)])
    for _ in range(2):
        script["main"]()
        assert begun == ["two"]
    assert (tmp_path / "two").read_text() == "whole"


@pytest.mark.slow
def test_every_training_can_be_composed(script, tmp_path):
    trainings = [s for s in steps(script, tmp_path) if s.target == "resnet_se.train"]
    told = {tuple(a for a in s.arguments if "seed=" not in a) for s in trainings}
    assert len(told) > 30
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides in told:
            compose("train", list(overrides))


MEASURED = {  # of its tables, the folder of the records
    "VARIANTS": "speedrun/h200",
    "DESIGN": "speedrun/factors",
    "BEST": "best",
    "TRIALS": "best/trials",
}


@pytest.mark.slow
@pytest.mark.parametrize(("table", "folder"), MEASURED.items())
def test_what_was_measured_is_what_it_would_do_today(script, table, folder):
    """So is what `experiment=speedrun`, `quickstart` and `best_cpu` compose."""
    folders = {p.parent.parent for p in (SCRIPT.parent / folder).glob("*/seed*/*.json")}
    assert folders
    for variant in sorted(folders):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", script[table][variant.name][0].split())
        runs = [json.loads(p.read_text()) for p in variant.glob("seed*/result.json")]
        assert runs, variant
        for run in runs:
            known = run["setting"]
            facts = Environment(known["data.content"], known["precision"], 1)
            hashed = hashed_config(plain_values(cfg), facts, HASH_RULES)
            assert config_hash(hashed) == run["config_hash"]


def test_the_small_study_has_every_experiment_of_the_22(script, tmp_path):
    names = {s.record.split("/")[2] for s in script["small"](tmp_path, False)}
    assert names == {path.stem for path in (CONF / "experiment").glob("e[0-9]*.yaml")}


def test_only_a_finished_run_counts(script, tmp_path):
    step = next(s for s in steps(script, tmp_path) if "45000/e14" in s.name)
    assert not script["is_done"](step, tmp_path)
    run = tmp_path / "small/45000/e14_final/seed0-00000000"
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"status": "running"}')
    assert not script["is_done"](step, tmp_path)
    (run / "result.json").write_text('{"status": "finished"}')
    assert script["is_done"](step, tmp_path)
