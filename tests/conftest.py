"""What the tests share: commands called in this process, a configuration of seconds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock
from omegaconf import DictConfig

from resnet_se.__main__ import run
from resnet_se.config.compose import plain_values
from resnet_se.config.recipe import Recipe

# A network and a data set small enough to train in a second or two.
TINY = (
    "data=synthetic",
    "data.source.num_train=240",
    "data.source.num_test=60",
    "data.batch_size=32",
    "data.num_workers=0",
    "augment=crop2_flip",
    "optimizer=sgd",
    "scheduler=constant",
    "model.depths=[1,1,1]",
    "model.widths=[8,8,16]",
    "model.reduction=4",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "tta=flip",
    "plots=false",
)


class Run(NamedTuple):
    """A run directory and its record."""

    folder: Path
    result: dict


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors this small are not worth a second one.

    Processes that a test starts have as many: sums of other threads round otherwise.
    """
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered between runs is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNET_SE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe_of(cfg: DictConfig) -> Recipe:
    """A composed configuration as plain values, unchecked."""
    return Recipe(plain_values(cfg))


def call(folder: Path, name: str, *arguments: str) -> int:
    """Calls a command's `main` in `folder`; returns the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HYDRA_FULL_ERROR", "0")  # a command sets it for Hydra
        patch.setattr(sys, "argv", [f"resnet-se {name}", *arguments])
        try:
            run(name)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0


def records(folder: Path) -> dict[Path, dict]:
    """The run directories under `folder`/runs, and their records."""
    return {
        path.parent: json.loads(path.read_text())
        for path in sorted(folder.glob("runs/*/*/result.json"))
    }


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Calls a command's `main` in `tmp_path`; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    return lambda name, *arguments: call(tmp_path, name, *arguments)


@pytest.fixture
def train(command: Callable[..., int]) -> Callable[..., int]:
    """Trains the tiny configuration with further overrides; returns the exit status."""

    def with_overrides(*overrides: str) -> int:
        flags = [o for o in overrides if o.startswith("-")]  # argparse wants them first
        rest = [o for o in overrides if not o.startswith("-")]
        return command("train", *flags, *TINY, *rest)

    return with_overrides


@pytest.fixture
def run_dirs(tmp_path: Path) -> Callable[[], dict[Path, dict]]:
    """The run directories under `tmp_path`, and their records."""
    return lambda: records(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the tiny configuration, with pictures; only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    assert call(folder, "train", *TINY, "plots=true") == 0
    ((run_dir, result),) = records(folder).items()
    return Run(run_dir, result)


@pytest.fixture(scope="session")
def model_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What `models --json` prints: every preset's counts, once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with FileLock(folder / "models.lock"):
        if not (folder / "models.json").exists():
            shown = io.StringIO()
            with redirect_stdout(shown):
                assert call(folder, "models", "--json") == 0
            (folder / "models.json").write_text(shown.getvalue())
    return json.loads((folder / "models.json").read_text())


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with our wheel, built here, and no checkout.

    What we depend on is this environment's: its folder is a line of a `.pth`, so that
    other such lines in it, an editable install of ours among them, are not read.
    """
    folder = tmp_path_factory.mktemp("fresh")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    root = Path(__file__).parents[1]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    venv.create(folder / "env", symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "env/lib" / version / "site-packages"
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "env/bin/python"
