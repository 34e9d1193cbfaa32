"""Hydra 1.3 and what comes after it, each in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
VERSIONS = {
    "1.3": ("hydra-core>=1.3.8,<1.4", "omegaconf>=2.3,<2.4"),
    "1.4": ("hydra-core==1.4.0rc3", "omegaconf>=2.4.1rc1,<2.5"),
}


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_training_sweep_plan_and_report_run_without_warnings(version, tmp_path):
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    environment = tmp_path / "env"
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, environment], check=True)
    python = environment / "bin/python"
    install = [uv, "pip", "install", "-q", "--no-deps", "-p", python]
    # Elsewhere, as this folder's own limits are for its own environment.
    line = [*install, *VERSIONS[version]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True)
    if done.returncode:
        pytest.skip(f"no registry: {done.stderr.decode()[-200:]}")
    # The rest is this environment's; its launchers register resolvers the former way.
    purelib = Path(sysconfig.get_paths()["purelib"])
    (site,) = environment.glob("lib/*/site-packages")
    for folder in purelib.iterdir():
        ours = folder.name.partition("-")[0].lower()
        here = site / folder.name
        if not (ours.startswith(("hydra", "omegaconf", "_", "ray")) or here.exists()):
            here.symlink_to(folder)
    commands = [
        ("train", *TINY, "trainer.max_epochs=1"),
        ("train", "-m", *TINY, "trainer.max_epochs=1", "seed=0,1"),
        ("plan", *TINY, "seed=0,1"),
        ("report", "runs", "--out", "report"),
    ]
    for command in commands:
        end = subprocess.run(
            [python, "-m", "resnet_se", *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert end.returncode == 0, end.stderr
        assert "Warning" not in end.stderr
    assert len(list(tmp_path.glob("runs/*/*/result.json"))) == 2
