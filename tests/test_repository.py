"""What lies around the package: continuous integration, version, hooks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["variable", "shared", "nowhere"])
def test_ci_finds_real_images_says_so_and_runs_every_check(tmp_path, where):
    """With a `uv` in its place that only notes how it is called."""
    checkout = tmp_path / "checkout"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", checkout / ".ci/run")
    uv = tmp_path / "bin/uv"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\necho "${{RESNET_SE_DATA-}}|$*" >> {tmp_path}/calls\n')
    uv.chmod(0o755)
    env = os.environ | {"PATH": f"{uv.parent}:{os.environ['PATH']}", "CI": ""}
    env.pop("RESNET_SE_DATA", None)
    images = ""
    if where != "nowhere":
        (tmp_path / "shared/data").mkdir(parents=True)
        images = f"{tmp_path}/shared/data"
    if where == "variable":
        images = env["RESNET_SE_DATA"] = f"{tmp_path}/elsewhere"
    line = ["bash", str(checkout / ".ci/run")]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
    [said] = [text for text in done.stdout.splitlines() if "images" in text]
    assert said.startswith(f"real images: {images or 'none'}")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert {call.partition("|")[0] for call in calls} == {images}
    [tests] = re.findall(r"uv (run pytest -n 2)\b", (ROOT / "README.md").read_text())
    assert [call.partition("|")[2] for call in calls] == [
        "run ruff check .",
        "run ruff format --check .",
        "run mypy",
        tests,
        "run pytest -m slow",
    ]
