"""What lies around the package: continuous integration, version, hooks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resnet_se import __version__
from resnet_se.__main__ import COMMANDS

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


def test_the_version_stands_once():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert not re.search(r'^version = "', project, re.MULTILINE)
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert changes.index("## [Unreleased]") < changes.index(f"## {__version__}")


def test_the_hooks_are_those_of_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    [repo] = hooks["repos"]
    assert repo["repo"] == "local"  # the versions are those of pyproject.toml
    entries = {hook["entry"].removesuffix(" --force-exclude") for hook in repo["hooks"]}
    checks = (ROOT / ".ci/run").read_text()
    assert entries == {"uv run ruff check", "uv run ruff format", "uv run mypy"}
    assert all(entry in checks for entry in entries)


def test_what_contributing_names_is_there():
    """Every path in it, and every command."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 120
    paths = re.findall(
        r"`((?:resnet_se|conf|tests|experiments|docs|\.ci)/[^`*…<]*)`", text
    )
    assert len(paths) >= 12
    for path in paths:
        assert (ROOT / path).exists(), path
    for name in re.findall(r"resnet-se ([a-z]+)", text):
        assert name in COMMANDS, name
    packages = {path.parent.name for path in ROOT.glob("resnet_se/*/__init__.py")}
    assert packages <= set(re.findall(r"^\| `(\w+)/`", text, re.MULTILINE))


def modules() -> set[str]:
    """Dotted names of the package's modules that hold anything; `__main__` aside."""
    names = set()
    for path in ROOT.glob("resnet_se/*/**/*.py"):
        if path.read_text(encoding="utf-8").strip():
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.add(".".join(part for part in parts if part != "__init__"))
    packages = {path.parent.name for path in ROOT.glob("resnet_se/*/__init__.py")}
    return names - {f"resnet_se.{package}" for package in packages}


def test_the_reference_has_every_module():
    pages = (ROOT / "docs/pages/reference").glob("*.md")
    text = "\n".join(page.read_text() for page in pages)
    documented = re.findall(r"^::: (.*)", text, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == modules()


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    line = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    line += ["--config-file", "docs/mkdocs.yml", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/models/index.html").read_text()
    assert 'id="resnet_se.models.resnet.ResNet"' in page
    sources = {path.stem for path in (ROOT / "docs/pages").glob("*.md")} - {"index"}
    assert {
        path.parent.name for path in (tmp_path / "site").glob("*/index.html")
    } >= sources
