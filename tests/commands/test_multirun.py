"""Multiruns: failures, resuming, locks; every experiment's first steps; the plan."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn

from resnet_se.commands import plan
from resnet_se.commands.plan import compose_job
from resnet_se.commands.sweep.multirun import SweepTable
from resnet_se.config import CONF
from resnet_se.utils.files import exclusive
from tests.conftest import TINY

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("e*.yaml"))


def outcomes(folder: Path) -> list[dict]:
    """The outcomes of the newest sweep under `folder`, in order."""
    newest = max((folder / "runs/sweeps").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    found = [json.loads(p.read_text()) for p in newest.glob("*/outcome.json")]
    return sorted(found, key=lambda o: o["job"])


@pytest.mark.slow
def test_a_failing_job_does_not_stop_the_others(train, tmp_path, run_dirs, capsys):
    # A seed is refused before a run directory is named, a batch once the data are read.
    sweep = ("-m", "trainer.max_epochs=1", "data.batch_size=1000,32", "seed=-1,0")
    assert train(*sweep) != 0
    kinds = [o["kind"] for o in outcomes(tmp_path)]
    assert kinds == ["failed", "failed", "failed", "done"]
    printed = capsys.readouterr()
    assert "1 done" in printed.out
    assert "3 failed" in printed.out
    assert printed.err.count("seed: expected an integer 0..4294967295, got -1") == 2
    assert printed.err.count("at most 220") == 1
    (failed,) = (d for d, r in run_dirs().items() if r["status"] == "failed")
    assert "UserError" in (failed / "error.txt").read_text()

    # The same command again skips what is finished, and only that.
    assert train(*sweep) != 0
    kinds = [o["kind"] for o in outcomes(tmp_path)]
    assert kinds == ["failed", "failed", "failed", "skipped"]

    # fail_fast starts nothing after the first failure.
    assert train(*sweep, "fail_fast=true") != 0
    kinds = [o["kind"] for o in outcomes(tmp_path)]
    assert kinds == ["failed", *["not started"] * 3]


@pytest.mark.slow
def test_a_killed_sweep_goes_on(train, tmp_path, run_dirs):
    sweep = ("trainer.max_epochs=12", "seed=0,1,2")
    line = [sys.executable, "-m", "resnet_se.train", "-m", *TINY, *sweep]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("runs/*/seed1-*/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    statuses = {r["seed"]: r["status"] for r in run_dirs().values()}
    assert statuses == {0: "finished", 1: "running"}
    assert train("-m", *sweep) == 0
    assert [o["kind"] for o in outcomes(tmp_path)] == ["skipped", "resumed", "done"]
    assert {r["status"] for r in run_dirs().values()} == {"finished"}
    assert all(r["train"]["epochs"] == 12 for r in run_dirs().values())


@pytest.mark.slow
def test_a_run_that_somebody_else_trains_is_left_to_them(
    train, tmp_path, run_dirs, capsys
):
    assert train("trainer.max_epochs=1") == 0
    (run_dir,) = run_dirs()
    (run_dir / "result.json").unlink()
    with exclusive(run_dir):
        assert train("trainer.max_epochs=1") == 2
        assert "another process is training this run" in capsys.readouterr().err
        assert train("-m", "trainer.max_epochs=1", "seed=0,1") == 0
        assert [o["kind"] for o in outcomes(tmp_path)] == ["busy", "done"]
    assert not (run_dir / "result.json").exists()


@pytest.mark.slow
def test_two_sweeps_at_once_train_nothing_twice(tmp_path, run_dirs):
    sweep = ("trainer.max_epochs=4", "seed=0,1,2")
    line = [sys.executable, "-m", "resnet_se.train", "-m", *TINY, *sweep]
    both = [
        subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    kinds = [
        json.loads(path.read_text())["kind"]
        for path in tmp_path.glob("runs/sweeps/*/*/outcome.json")
    ]
    assert len(kinds) == 6
    assert kinds.count("done") == 3
    assert set(kinds) <= {"done", "busy", "skipped"}
    assert {r["status"] for r in run_dirs().values()} == {"finished"}


@pytest.mark.parametrize(
    ("typed", "answer"),
    {
        "experiment=glob(zz*)": "matches no experiment",
        "experiment=e14_finl": "did you mean 'e14_final'?",
    }.items(),
)
def test_a_sweep_over_nothing(train, capsys, typed, answer):
    assert train("-m", typed) == 2
    assert answer in capsys.readouterr().err


def test_a_sweep_keeps_no_configuration_of_a_job_that_is_over(train, monkeypatch):
    def alive():
        return [kept for kept in gc.get_objects() if type(kept) is JobReturn]

    jobs: list[JobReturn] = []
    earlier = alive()  # of other tests
    end = SweepTable.on_multirun_end

    def count(table, config, **more):
        jobs.extend(job for job in alive() if all(job is not e for e in earlier))
        end(table, config, **more)

    monkeypatch.setattr(SweepTable, "on_multirun_end", count)
    assert train("-m", "seed=-1,-2") == 1
    assert len(jobs) == 2
    assert not any(job.cfg or job.hydra_cfg for job in jobs)


@pytest.mark.slow
def test_a_full_disk_fails_the_job_and_nothing_else(
    train, tmp_path, run_dirs, monkeypatch, capsys
):
    from resnet_se.training.callbacks import history

    assert train("trainer.max_epochs=1") == 0
    before = {d: (d / "result.json").read_bytes() for d in run_dirs()}
    write = history.atomic_file

    def full(path):
        if "seed1" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return write(path)

    monkeypatch.setattr(history, "atomic_file", full)
    assert train("-m", "trainer.max_epochs=1", "seed=0,1,2") != 0
    assert [o["kind"] for o in outcomes(tmp_path)] == ["skipped", "failed", "done"]
    printed = capsys.readouterr().err
    assert "No space left on device" in printed
    assert "once the run directory has room" in printed
    assert "Traceback" not in printed
    assert all((d / "result.json").read_bytes() == text for d, text in before.items())


def test_tables_of_eighty_columns_keep_paths_whole(
    train, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "80")
    name = "experiments_of_ours/" + "a_long_name_" * 8
    assert train("trainer.max_epochs=1", f"runs_dir={name}") == 0
    (path,) = re.findall(r"^files: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / path / "result.json").is_file()
    assert len(path) > 100


def test_where_nothing_can_be_written(train, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train("runs_dir=file/runs") == 2
    assert "runs_dir: cannot write in file/runs/" in capsys.readouterr().err


# --- the experiments ---------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        name if name == "e14_final" else pytest.param(name, marks=pytest.mark.slow)
        for name in EXPERIMENTS
    ],
)
def test_every_experiment_takes_a_step(command, run_dirs, name):
    """Its own network, made small; its own recipe, in seconds."""
    # Not narrower: where a processor has no AVX-512, torch 2.15 corrupts memory in the
    # backward pass of fewer than eight channels, channels last.
    tiny = [o for o in TINY if o.startswith(("data.source", "data=", "trainer.pre"))]
    status = command(
        "train", *tiny, f"experiment={name}", "budget=smoke", "budget.depth=0.1",
        "budget.width=0.5", "data.batch_size=16", "trainer=cpu", "plots=false",
    )  # fmt: skip
    assert status == 0
    ((run_dir, result),) = run_dirs().items()
    assert run_dir.parent.name == name
    assert result["train"]["steps"] == 4


# --- plan --------------------------------------------------------


def test_the_plan_names_what_cannot_work(command, capsys):
    sweep = (*TINY, "trainer.max_epochs=1", "model.reduction=4,99", "seed=0,1")
    assert command("plan", *sweep) == 2
    printed = capsys.readouterr()
    assert "4 jobs" in printed.out
    assert printed.out.count("cannot work") == 2
    assert "model.reduction: expected 1..8" in printed.err
    assert command("plan", *TINY, "experiment=quikstart") == 2
    assert "quickstart" in capsys.readouterr().err


def test_the_plan_composes_jobs_that_differ_in_their_seed_once(
    command, capsys, monkeypatch
):
    composed = []

    def counted(overrides):
        composed.append(overrides)
        return compose_job(overrides)

    monkeypatch.setattr(plan, "compose_job", counted)
    assert command("plan", *TINY, "model.reduction=2,4", "seed=range(250)") == 0
    assert len(composed) == 2
    table = capsys.readouterr().out
    assert "500 jobs" in table
    assert "499 custom seed 249" in table


@pytest.mark.slow
def test_the_plan_builds_all_22(command, capsys):
    tiny = [o for o in TINY if o.startswith(("data", "trainer")) and "batch" not in o]
    tiny.append("data.batch_size=4")
    assert command("plan", *tiny, "experiment=glob(e*)", "budget=smoke") == 0
    assert "22 jobs" in capsys.readouterr().out


def test_nothing_of_the_environment_reaches_the_record(train, run_dirs, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not-to-be-seen")
    assert train("trainer.max_epochs=1") == 0
    ((run_dir, _),) = run_dirs().items()
    for path in run_dir.rglob("*"):
        if path.is_file():
            assert b"not-to-be-seen" not in path.read_bytes()
    assert "WANDB_API_KEY" in os.environ
