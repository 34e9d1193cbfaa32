"""The machine: honest git, hardware, the device, memory, which is kept on a CPU."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_se.runs.record import SCHEMA, read_result, write_result
from resnet_se.utils import system
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import (
    environment,
    git_state,
    hardware,
    peak_memory_mb,
    reset_peak_memory,
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Makes `tmp_path` a repository with a package in it; returns git's command."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook's would lead to the repository around us
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.c")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*command):
        call = ["git", "-C", str(tmp_path), *command]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout

    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    git("init", "-q")
    return git


@pytest.mark.slow
def test_git_state_is_the_commit_and_its_changes(tmp_path, repository):
    package = tmp_path / "package"
    repository("add", ".")
    repository("-c", "commit.gpgsign=false", "commit", "-qm", "first")
    commit = repository("rev-parse", "HEAD").strip()
    assert git_state(package) == {"commit": commit, "dirty": False}
    record = tmp_path / "runs/a/seed0-00000000/result.json"
    record.parent.mkdir(parents=True)
    record.touch()  # which is no code
    assert git_state(package) == {"commit": commit, "dirty": False}
    (tmp_path / "mine.py").touch()
    assert git_state(package) == {"commit": commit, "dirty": True}
    (tmp_path / "mine.py").unlink()
    (package / "__init__.py").write_text("changed = True\n")
    assert git_state(package) == {"commit": commit, "dirty": True}


@pytest.mark.slow
def test_a_repository_that_does_not_track_the_package_is_not_its_own(
    tmp_path, repository
):
    assert git_state(tmp_path / "package") is None


@pytest.mark.slow
def test_no_git_state_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "__init__.py").touch()
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")  # no git at all
    assert git_state(tmp_path) is None


def test_environment_and_hardware_can_be_written(tmp_path):
    cpu = hardware(torch.device("cpu"), "32-true", world_size=2)
    fields = {"schema": SCHEMA, "status": "running", **environment(), "hardware": cpu}
    write_result(tmp_path, fields)
    assert read_result(tmp_path) == fields
    assert fields["versions"]["torch"] == torch.__version__.split("+")[0]
    assert cpu["cores"] >= 1
    assert cpu["world_size"] == 2


@pytest.mark.parametrize(
    ("wanted", "cuda", "settled"),
    [
        ("auto", True, "cuda"),
        ("gpu", True, "cuda"),
        ("cpu", True, "cpu"),
        ("auto", False, "cpu"),
    ],
)
def test_the_device_is_lightnings_choice(monkeypatch, wanted, cuda, settled):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert system.accelerator(wanted) == settled


@pytest.mark.parametrize("wanted", ["gpu", "cuda", "mps"])
def test_a_device_that_is_not_there_is_named(monkeypatch, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"accelerator={wanted}: no such"):
        system.accelerator(wanted)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNET_SE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert system.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("RESNET_SE_CACHE")
    assert system.cache_folder() == tmp_path / "resnet-se"


def test_peak_memory_is_in_megabytes():
    before = peak_memory_mb(torch.device("cpu"))
    block = np.ones(300_000_000 // 8)  # 300 MB, of which a little was free before
    grown = peak_memory_mb(torch.device("cpu")) - before
    assert block.sum() == 37_500_000
    assert before > 50
    assert 0 <= grown < 400


def test_peak_memory_can_be_counted_afresh():
    cpu = torch.device("cpu")
    block = torch.ones(60_000_000)  # 240 MB
    high = peak_memory_mb(cpu)
    del block
    reset_peak_memory(cpu)
    assert peak_memory_mb(cpu) < high - 200


FAULTS = """
import ctypes, resource
from resnet_se.utils.system import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(64_000_000)
    ctypes.memset(block, 1, 64_000_000)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(3)))
keep_freed_memory()
faults()  # the heap grows
print(max(faults() for _ in range(3)))
"""


@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_tensor_of_that_size():
    """Pages are mapped anew for every large block, and no more once they are kept."""
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("not glibc")
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.is_file() and "[always]" in huge.read_text():
        pytest.skip("few faults anyway: pages are large")
    call = [sys.executable, "-c", FAULTS]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    mapped, reused = map(int, done.stdout.split())
    assert mapped > 10_000
    assert reused < 100


def test_kept_memory_is_no_part_of_the_next_job_s_peak():
    system.keep_freed_memory()
    test_peak_memory_can_be_counted_afresh()


def test_freed_memory_may_be_kept_anywhere(monkeypatch):
    monkeypatch.setattr(system.ctypes, "CDLL", lambda name: object())  # no glibc
    system.keep_freed_memory()
    system.reset_peak_memory(torch.device("cpu"))
