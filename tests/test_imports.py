"""Imports follow the data: no module imports one of a higher layer."""

import ast
from pathlib import Path

import pytest

import resnet_se

LAYERS = {
    # pure pieces
    0: "errors resnet sources augment mixing optim tta plots results statistics pages",
    # Lightning
    1: "ranks datamodule classifier callbacks dashboard",
    # what a person runs, and what those share
    2: "config sweep optuna_search train evaluate predict export benchmark models plan "
    "comparison report_figures report",
    # the console script
    3: "__main__",
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}
FILES = {p.stem: p for p in Path(resnet_se.__file__).parent.glob("*.py")}


def imports(path):
    """Dotted names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "resnet_se." * bool(node.level) + f"{node.module or ''}."
            yield from (prefix.replace("..", ".") + alias.name for alias in node.names)


def own(path):
    """Modules of this package that a file imports."""
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "resnet_se" and len(parts) > 1}


def test_every_module_has_a_layer():
    assert set(FILES) - {"__init__"} <= set(LAYER)
    assert {name for name, layer in LAYER.items() if layer < 2} <= set(FILES)


def test_a_relative_import_is_seen(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "from . import train\nfrom .plan import a\nfrom resnet_se.tta import b"
    )
    assert own(path) == {"train", "plan", "tta"}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"__init__"}))
def test_no_module_imports_a_higher_layer(name):
    found = own(FILES[name])
    assert found <= set(LAYER)
    assert {other for other in found if LAYER[other] > LAYER[name]} == set()


@pytest.mark.parametrize("name", LAYERS[0].split())
def test_pure_pieces_need_neither_lightning_nor_hydra(name):
    roots = {dotted.split(".")[0] for dotted in imports(FILES[name])}
    frameworks = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb"}
    assert roots & frameworks == set()


def test_package_itself_imports_nothing():
    assert list(imports(FILES["__init__"])) == []
