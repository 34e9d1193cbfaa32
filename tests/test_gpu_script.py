"""experiments/gpu.py: nothing but its order and its commands can be tested here."""

from __future__ import annotations

import runpy
from pathlib import Path

from resnet_se.config import CONF

SCRIPT = Path(__file__).parents[1] / "experiments/gpu.py"


def test_steps_come_in_order_and_name_experiments_that_exist(tmp_path):
    script = runpy.run_path(str(SCRIPT))
    steps = list(script["steps"](tmp_path, dry=False))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert [name.partition("-")[0] for name in names[:3]] == ["benchmark"] * 3
    assert names[3:6] == [f"speedrun.seed{seed}" for seed in range(3)]
    for step in steps[3:]:
        (experiment,) = (o for o in step.command if o.startswith("experiment="))
        name = experiment.removeprefix("experiment=")
        assert (CONF / f"experiment/{name}.yaml").is_file()
    timed = [script["is_timed"](step) for step in steps]
    assert timed == sorted(timed, reverse=True)


def test_only_a_finished_run_counts(tmp_path):
    script = runpy.run_path(str(SCRIPT))
    step = next(s for s in script["steps"](tmp_path, dry=False) if "e14" in s.name)
    assert not script["finish"](step, tmp_path)
    run = tmp_path / "runs/e14_final/seed0-00000000"
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"status": "running"}')
    assert not script["finish"](step, tmp_path)
    (run / "result.json").write_text('{"status": "finished"}')
    assert script["finish"](step, tmp_path)
    assert (tmp_path / "e14_final.seed0.json").is_file()
