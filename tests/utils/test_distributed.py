"""One run on several processes: the same images, figures and directory."""

import csv
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import nn

from resnet_se.models.layers import sync_batchnorm
from resnet_se.utils import distributed
from resnet_se.utils.errors import UserError
from tests.conftest import TINY

# 61 test images are not divided by two.
PAIR = ("trainer=ddp_sim", "data.source.num_test=61", "trainer.sync_batchnorm=true")


def predictions(run_dir):
    with np.load(run_dir / "predictions.npz") as content:
        return dict(content)


def history(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# --- pieces, two processes without Lightning ---------------------


def in_pairs(rank, folder):
    """What one of two ranks checks; an assertion here fails the whole."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    batchnorm_is_that_of_the_whole_batch(rank)
    rows_come_back_in_order(rank)
    dist.destroy_process_group()


def batchnorm_is_that_of_the_whole_batch(rank):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 5) * 3 + 1
    weights = torch.randn(6, 4, 3, 5)
    alone, shared = (nn.Sequential(nn.BatchNorm2d(4, momentum=0.3)) for _ in range(2))
    sync_batchnorm(shared)
    assert shared.state_dict().keys() == alone.state_dict().keys()
    whole = x.clone().requires_grad_()
    (alone(whole) * weights).sum().backward()
    mine = x[rank * 3 : rank * 3 + 3].clone().requires_grad_()
    y = shared(mine)
    (y * weights[rank * 3 : rank * 3 + 3]).sum().backward()
    torch.testing.assert_close(mine.grad, whole.grad[rank * 3 : rank * 3 + 3])
    for expected, actual in zip(alone.buffers(), shared.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)
    shared.eval(), alone.eval()
    torch.testing.assert_close(shared(x), alone(x))


def rows_come_back_in_order(rank):
    whole = torch.arange(14).view(7, 2)
    assert torch.equal(distributed.gather_rows(whole[rank::2]), whole)
    assert distributed.sum_over_ranks(torch.tensor([1.0, rank])).tolist() == [2.0, 1.0]


@pytest.mark.slow
def test_two_ranks(tmp_path):
    torch.multiprocessing.spawn(in_pairs, (str(tmp_path),), nprocs=2)


# --- who am I ----------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    """Sets what torchrun or srun would; nothing else is left of either."""

    def call(**variables: str) -> None:
        for name in list(os.environ):
            if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return call


SRUN = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("variables", "size", "leader"),
    [
        ({}, 1, True),
        ({"RANK": "1"}, 1, True),  # left over from something else
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, 2, False),
        (SRUN, 2, False),
        (SRUN | {"SLURM_PROCID": "0"}, 2, True),
        (SRUN | {"SLURM_NTASKS": "1"}, 1, True),  # one task, as submitit's
        (SRUN | {"SLURM_JOB_NAME": "bash"}, 1, True),  # a shell on a node, not srun
    ],
)
def test_who_this_process_is(environment, variables, size, leader):
    environment(**variables)
    assert distributed.world_size() == size
    assert distributed.in_group() == (size > 1)
    assert distributed.is_leader() == leader
    asked = OmegaConf.create({"accelerator": "cpu", "devices": 1, "strategy": "auto"})
    assert distributed.processes(asked) == size


def test_a_world_that_is_no_number_is_named(environment):
    environment(WORLD_SIZE="two")
    with pytest.raises(UserError, match=r"WORLD_SIZE .* not a number: 'two'"):
        distributed.in_group()


def test_several_machines_are_not_started_from_one(environment):
    environment()
    trainer = {"accelerator": "cpu", "devices": 1, "strategy": "ddp", "num_nodes": 2}
    with pytest.raises(UserError, match="start it on each machine"):
        distributed.local_processes(OmegaConf.create(trainer))


def test_one_process_needs_no_group():
    x = torch.arange(4)
    assert distributed.gather_rows(x) is x
    assert distributed.sum_over_ranks(x) is x
    assert distributed.is_leader()
    assert not distributed.in_group()


@pytest.mark.parametrize(
    ("trainer", "processes"),
    [
        ({"accelerator": "cpu", "devices": 2}, 1),
        ({"accelerator": "cpu", "devices": 2, "strategy": "ddp"}, 2),
        ({"accelerator": "cpu", "devices": "auto", "strategy": "ddp"}, 1),
    ],
)
def test_processes_asked_for(trainer, processes):
    assert distributed.local_processes(OmegaConf.create(trainer)) == processes


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = {"accelerator": "gpu", "devices": 4, "strategy": "ddp"}
    with pytest.raises(UserError, match="asked for 4 GPUs, this machine has 2"):
        distributed.local_processes(OmegaConf.create(trainer))


# --- whole runs --------------------------------------------------


@pytest.mark.slow
def test_a_sweep_of_pairs_is_the_sweep_of_single_runs(train, run_dirs, tmp_path):
    """Each job once, in its own directory; 2 × 16 images train as 1 × 32 do."""
    assert train("-m", *PAIR, "data.batch_size=16", "seed=0,1") == 0
    pairs = run_dirs()
    assert sorted(r["seed"] for r in pairs.values()) == [0, 1]
    assert {r["status"] for r in pairs.values()} == {"finished"}
    assert len(list((tmp_path / "runs/sweeps").iterdir())) == 1
    assert train("-m", *PAIR, "data.batch_size=16", "seed=0,1") == 0  # skipped
    assert run_dirs().keys() == pairs.keys()
    assert run_dirs() == pairs

    assert train("data.source.num_test=61", "data.batch_size=32") == 0
    (single,) = set(run_dirs()) - set(pairs)
    (pair,) = (d for d, r in pairs.items() if r["seed"] == 0)
    for actual, expected in zip(history(pair), history(single), strict=True):
        for name in ("train/loss", "val/loss", "train/lr", "step"):
            assert float(actual[name]) == pytest.approx(float(expected[name]), rel=2e-3)
    actual, expected = predictions(pair), predictions(single)
    assert pairs[pair]["test"]["images"] == len(actual["labels"]) == 61
    for part in ("", "val_"):  # all images, in their order
        assert (actual[f"{part}labels"] == expected[f"{part}labels"]).all()
        ranks_, alone = actual[f"{part}logits"], expected[f"{part}logits"]
        np.testing.assert_allclose(ranks_, alone, atol=0.02)


@pytest.mark.slow
def test_a_killed_rank_interrupts_the_run(run_dirs, tmp_path):
    line = [sys.executable, "-m", "resnet_se.train", *TINY, *PAIR]
    process = subprocess.Popen(
        [*line, "trainer.max_epochs=400"], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert process.poll() is None
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) >= 2
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(timeout=60) == 130
    (result,) = run_dirs().values()
    assert result["status"] == "interrupted"
    assert "SIGKILL" in result["error"]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_go_with_a_killed_launcher(tmp_path):
    line = [sys.executable, "-m", "resnet_se.train", *TINY, *PAIR]
    process = subprocess.Popen(
        [*line, "trainer.max_epochs=4000"], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    ranks_ = [int(pid) for pid in children.split() if is_running(int(pid))]
    assert len(ranks_) >= 2
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while any(map(is_running, ranks_)):
        time.sleep(0.05)
        assert time.monotonic() < end


@pytest.mark.slow
def test_sigterm_stops_all_ranks_in_mid_epoch_and_both_go_on(train, run_dirs, tmp_path):
    # MASTER_PORT, taken: each run finds a free one of its own.
    overrides = (*PAIR, "data.source.num_train=5000", "trainer.max_epochs=2")
    line = [sys.executable, "-m", "resnet_se.train", *TINY, *overrides]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = subprocess.Popen(
            line, cwd=tmp_path, stdout=subprocess.DEVNULL, env=environment
        )
        while not list(tmp_path.glob("runs/*/*/metrics.csv")):
            time.sleep(0.05)
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    run_dir, result = next(iter(run_dirs().items()))
    assert result["status"] == "interrupted"
    checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    steps = 4500 // 64
    assert steps < checkpoint["global_step"] < 2 * steps
    assert checkpoint["ImageDataModule"]["place"] == {
        "epoch": 1,
        "done": checkpoint["global_step"] - steps,
    }
    assert checkpoint["epoch_so_far"][2] == 64 * (
        checkpoint["global_step"] - steps
    )  # of both
    assert train(*overrides) == 0
    (result,) = run_dirs().values()
    assert (result["status"], result["train"]["steps"]) == ("finished", 2 * steps)
    assert result["history"]["epoch"] == [0, 1]


@pytest.mark.slow
def test_a_rank_on_a_full_disk_fails_the_run_and_says_why(run_dirs, tmp_path):
    def full():  # no file may be longer than some bytes, as on a disk almost full
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    line = [sys.executable, "-m", "resnet_se.train", *TINY, *PAIR]
    done = subprocess.run(
        line, cwd=tmp_path, preexec_fn=full, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: rank 0 ended with status 1: OSError: [Errno 27]")
    ((run_dir, result),) = run_dirs().items()
    assert result["status"] == "failed"
    assert "OSError" in result["error"]
    assert "save_checkpoint" in (run_dir / "error.txt").read_text()


@pytest.mark.slow
def test_the_documented_torchrun_on_two_nodes_trains_one_run(run_dirs, tmp_path):
    """As it stands there, but for the host and a device a node: here on loopback."""
    page = Path(__file__).parents[2] / "docs/pages/many-devices.md"
    text = page.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^torchrun .*", text, re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for original, replacement in (
        ("torchrun", f"{sys.executable} -m torch.distributed.run"),
        ("HOST:29500", f"127.0.0.1:{port}"),
        ("--nproc-per-node 8", "--nproc-per-node 1"),
        ("trainer.devices=8", "trainer.devices=1"),
        ("trainer=ddp", "trainer=ddp trainer.accelerator=cpu"),
    ):
        assert original in line
        line = line.replace(original, replacement)
    words = shlex.split(line, comments=True)
    tiny = [o for o in (*TINY, *PAIR) if "accelerator" not in o and "ddp" not in o]
    words += [*tiny, "trainer.max_epochs=1", "trainer.scale_lr=true"]
    nodes = [
        subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    (result,) = run_dirs().values()
    assert result["status"] == "finished"
    assert result["hardware"]["world_size"] == 2
    assert result["test"]["images"] == 61
    assert result["train"]["steps"] == 216 // 64
    message = "2 devices × 32 images, a global batch of 64; rate "
    (start,) = re.findall(f"{message}(.*)", "".join(printed))  # rank 0's alone
    lr = result["setting"]["optimizer.lr"]
    assert start == f"{lr:g}, 2 × {lr / 2:g} (trainer.scale_lr)"


@pytest.mark.slow
def test_all_ranks_of_a_debugging_run_have_its_directory(train, tmp_path):
    # `runs_dir` holds the second at which each process would have resolved it.
    assert train("trainer=ddp_sim", "debug=fast") == 0
    (record,) = tmp_path.glob("debug/*/*/*/result.json")
    assert json.loads(record.read_text())["hardware"]["world_size"] == 2
