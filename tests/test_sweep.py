"""Multiruns: failures, resuming, locks, launchers; the 22 experiments; the plan."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from resnet_se.config import CONF, check_config
from tests.conftest import TINY

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("e*.yaml"))


def outcomes(folder: Path) -> list[dict]:
    """The outcomes of the newest sweep under `folder`, in order."""
    newest = max((folder / "runs/sweeps").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    found = [json.loads(p.read_text()) for p in newest.glob("*/outcome.json")]
    return sorted(found, key=lambda o: o["job"])


def test_a_failing_job_does_not_stop_the_others(train, tmp_path, run_dirs, capsys):
    sweep = ("-m", "trainer.max_epochs=1", "optimizer.lr=0.1,-1,0.2")
    assert train(*sweep) != 0
    assert [o["kind"] for o in outcomes(tmp_path)] == ["done", "failed", "done"]
    printed = capsys.readouterr()
    assert "2 done, 1 failed" in printed.out
    assert printed.err.count("optimizer.lr: expected a positive number, got -1") == 1
    (failed,) = (d for d, r in run_dirs().items() if r["status"] == "failed")
    assert "UserError" in (failed / "error.txt").read_text()

    # The same command again skips what is finished, and only that.
    assert train(*sweep) != 0
    assert [o["kind"] for o in outcomes(tmp_path)] == ["skipped", "failed", "skipped"]

    # fail_fast starts nothing after the first failure.
    assert train(*sweep, "seed=1", "fail_fast=true") != 0
    assert [o["kind"] for o in outcomes(tmp_path)] == ["done", "failed", "not started"]


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


def test_a_run_that_somebody_else_trains_is_left_to_them(
    train, tmp_path, run_dirs, capsys
):
    assert train("trainer.max_epochs=1") == 0
    (run_dir,) = run_dirs()
    (run_dir / "result.json").unlink()
    with (run_dir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert train("trainer.max_epochs=1") == 2
        assert "another process is training this run" in capsys.readouterr().err
        assert train("-m", "trainer.max_epochs=1", "seed=0,1") == 0
        assert [o["kind"] for o in outcomes(tmp_path)] == ["busy", "done"]
    assert not (run_dir / "result.json").exists()


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


def test_a_full_disk_fails_the_job_and_nothing_else(
    train, tmp_path, run_dirs, monkeypatch, capsys
):
    from resnet_se import callbacks

    assert train("trainer.max_epochs=1") == 0
    before = {d: (d / "result.json").read_bytes() for d in run_dirs()}
    write = callbacks.atomic_file

    def full(path):
        if "seed1" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return write(path)

    monkeypatch.setattr(callbacks, "atomic_file", full)
    assert train("-m", "trainer.max_epochs=1", "seed=0,1,2") != 0
    assert [o["kind"] for o in outcomes(tmp_path)] == ["skipped", "failed", "done"]
    printed = capsys.readouterr().err
    assert "No space left on device" in printed
    assert "once the run directory has room" in printed
    assert "Traceback" not in printed
    assert all((d / "result.json").read_bytes() == text for d, text in before.items())


def test_where_nothing_can_be_written(train, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train("runs_dir=file/runs") == 2
    assert "runs_dir: cannot write in file/runs/" in capsys.readouterr().err


def composed(experiment: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train", [f"experiment={experiment}", *overrides], return_hydra_config=True
        )
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    cfg.run_dir = ""
    check_config(cfg)
    return cfg


def test_there_are_22_and_each_says_what_it_is():
    assert [name[:3] for name in EXPERIMENTS] == [f"e{i:02}" for i in range(1, 23)]
    for name in EXPERIMENTS:
        text = (CONF / f"experiment/{name}.yaml").read_text()
        for heading in ("# Question: ", "# Expected: ", "# Cost: ", "# Command: "):
            assert heading in text
        assert f"experiment={name}" in text


def test_e14_is_what_the_paper_prints():
    cfg = composed("e14_final")
    assert cfg.optimizer.cls.path == "torch.optim.Adam"
    assert cfg.data.batch_size == 128
    assert cfg.data.val_fraction == 0.1
    assert (cfg.scheduler.warmup_epochs, cfg.scheduler.decay.milestones) == (
        5,
        [100, 250],
    )
    assert cfg.scheduler.plateau is not None
    assert cfg.callbacks.early_stopping.patience == 200
    assert cfg.callbacks.checkpoint.monitor == "val/loss"
    assert (cfg.augment.rotation, cfg.augment.shift, cfg.augment.flip) == (15, 0.1, 0.5)
    assert cfg.augment.shear > 0
    assert cfg.augment.zoom > 0
    assert len(cfg.tta.views) > 1
    assert (cfg.model.depths, cfg.model.widths) == ([20, 6, 13], [32, 64, 128])


def test_the_budget_scales_every_epoch_together():
    cfg = composed("e14_final", "budget=short")
    assert cfg.trainer.max_epochs == 30
    assert cfg.scheduler.warmup_epochs == 0.5
    assert cfg.scheduler.decay.milestones == [10, 25]
    assert cfg.scheduler.plateau.patience == 2
    assert cfg.callbacks.early_stopping.patience == 20


# What each experiment changes: (path in the configuration, value).
DELTAS = {
    "e01": [("model.reduction", None), ("scheduler.decay._target_", "constant")],
    "e05": [("model.reduction", 16), ("optimizer.cls.path", "SGD")],
    "e09": [("model.dropout", 0.5), ("optimizer.weight_decay", 0.0)],
    "e10": [("model.dropout", 0.0), ("optimizer.weight_decay", 1e-4)],
    "e11": [("model.dropout", 0.5), ("optimizer.weight_decay", 1e-4)],
    "e12": [("scheduler.decay._target_", "cosine"), ("model.dropout", 0.5)],
    "e13": [("scheduler.plateau.factor", 0.5), ("optimizer.weight_decay", 1e-4)],
    "e15": [("data.batch_size", 64)],
    "e16": [("data.batch_size", 256)],
    "e17": [("model.depths", [12, 12, 12]), ("optimizer.cls.path", "Adam")],
    "e18": [("model.depths", [4, 18, 11]), ("augment.rotation", 15)],
    "e19": [("model.reduction", 4), ("scheduler.warmup_epochs", 5)],
    "e20": [("model.reduction", 8)],
    "e21": [("model.reduction", None), ("optimizer.cls.path", "Adam")],
    "e22": [("model.widths", [64, 128, 256]), ("model.depths", [3, 3, 3])],
}


@pytest.mark.parametrize("prefix", DELTAS)
def test_an_experiment_varies_what_it_says(prefix):
    from omegaconf import OmegaConf

    (name,) = (n for n in EXPERIMENTS if n.startswith(prefix))
    cfg = composed(name)
    for path, value in DELTAS[prefix]:
        found = OmegaConf.select(cfg, path)
        if isinstance(value, str):
            assert found.endswith(value)
        else:
            assert found == value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_a_step(command, run_dirs, name):
    """Its own network, made narrow and shallow; its own recipe, in seconds."""
    small = ["model.depths=[1,1,1]", "model.widths=[8,8,16]"]
    if "table" in name:
        small = ["model.depths=[1,1,1,1]", "model.widths=[8,8,8,16]"]
    tiny = [o for o in TINY if not o.startswith(("model", "trainer.max", "data.batch"))]
    status = command(
        "train", *tiny, *small, f"experiment={name}", "budget=smoke",
        "data.batch_size=16",
        *(["model.reduction=4"] if "vanilla" not in name else []),
    )  # fmt: skip
    assert status == 0
    ((run_dir, result),) = run_dirs().items()
    assert run_dir.parent.name == name
    assert result["train"]["steps"] == 4


def test_the_plan_names_what_cannot_work(command, capsys):
    sweep = (*TINY, "trainer.max_epochs=1", "model.reduction=4,99", "seed=0,1")
    assert command("plan", *sweep) == 2
    printed = capsys.readouterr()
    assert "4 jobs" in printed.out
    assert printed.out.count("cannot work") == 2
    assert "model.reduction: expected 1..8" in printed.err
    assert command("plan", *TINY, "experiment=quikstart") == 2
    assert "quickstart" in capsys.readouterr().err


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
