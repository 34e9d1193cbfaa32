"""Imports follow the data: none of a higher layer, no circle, nothing heavy early."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import resnet_se

ROOT = Path(resnet_se.__file__).parent
# One direction; packages of one line do not know each other.
LAYERS = (
    ("utils",),
    ("models", "data", "runs"),
    ("training",),
    ("config",),
    ("inference",),
    ("analysis",),
    ("commands",),
)
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
SHARED_BY_COMMANDS = {"commands.app", "commands.sweep"}
TOP = len(LAYERS)  # `__init__`, `__main__` and `train` beside the packages

# What a module must not pull in when it is imported, itself or by others of ours.
FRAMEWORKS = {"lightning", "torchvision", "torchmetrics", "wandb"}
COMPUTING = FRAMEWORKS | {"torch", "matplotlib", "pandas", "scipy"}
HYDRA = {"hydra", "omegaconf"}
CHEAP = COMPUTING | HYDRA | {"numpy", "rich", "PIL"}
LIGHT = {
    "": CHEAP,
    "__main__": CHEAP,
    "utils.errors": CHEAP,
    "utils.files": CHEAP,
    "utils.system": CHEAP,
    "runs.record": CHEAP,
    "config": CHEAP,
    "commands.report": COMPUTING | HYDRA,
    "commands.record": CHEAP,
    "analysis.report.runs": FRAMEWORKS | HYDRA | {"torch", "matplotlib"},
    "config.compose": COMPUTING,
    "utils.distributed": COMPUTING,
    "commands.sweep.multirun": COMPUTING,
    # A misspelt key is answered before torch has been imported.
    "commands.train": COMPUTING,
    "commands.app": COMPUTING,
    "commands.sweep.search": COMPUTING,
    # A Tab and a help page compose nothing.
    "commands.completion": COMPUTING | HYDRA | {"numpy", "rich", "PIL"},
    "commands.model_table": FRAMEWORKS | {"matplotlib", "pandas", "scipy"},
    "models.resnet": FRAMEWORKS | HYDRA,
    "training.param_groups": FRAMEWORKS | HYDRA,
    "training.schedules": FRAMEWORKS | HYDRA,
    "utils.random_streams": FRAMEWORKS | HYDRA,
}


def module_name(path: Path) -> str:
    """`data.module`; `report` for its `__init__`; empty for the package's own."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path, at_start: bool = False) -> Iterator[str]:
    """Dotted names that a file imports: all of them, or those that its own import does.

    The latter leaves out what stands in functions or is for a type checker's eyes.
    """
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if not (at_start and lazy):
            waiting.extend(ast.iter_child_nodes(node))


def own(path: Path, at_start: bool = False) -> set[str]:
    """Modules of this package that a file imports, a package's `__init__` with them."""
    found = set()
    for dotted in imports(path, at_start):
        root, *parts = dotted.split(".")
        if root == "resnet_se":
            names = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
            found |= {name for name in names if name in FILES}
    return found - {module_name(path)}


def package(name: str) -> str:
    return name.partition(".")[0]


def layer(name: str) -> int:
    return LAYER.get(package(name), TOP)


def pulled_in(name: str) -> set[str]:
    """Top-level names of others that importing a module of ours imports."""
    seen: set[str] = set()
    waiting, roots = [name], set()
    while waiting:
        name = waiting.pop()
        if name not in seen and name in FILES:
            seen.add(name)
            dotted = imports(FILES[name], at_start=True)
            roots |= {other.partition(".")[0] for other in dotted}
            waiting += own(FILES[name], at_start=True)
    return roots - {"resnet_se"}


def test_the_packages_are_the_folders():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(LAYER)
    beside = {path.name for path in ROOT.glob("*.py")}
    assert beside == {"__init__.py", "__main__.py", "train.py"}
    assert set(LIGHT) <= set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name])
def test_no_module_imports_a_higher_layer_or_a_neighbour(name):
    def is_above(other: str) -> bool:
        neighbour = layer(other) == layer(name) < TOP
        neighbour = neighbour and package(other) != package(name)
        return bool(other) and (layer(other) > layer(name) or neighbour)

    assert {other for other in own(FILES[name]) if is_above(other)} == set()


@pytest.mark.parametrize("name", [n for n in FILES if package(n) == "commands"])
def test_no_command_is_another_ones_library(name):
    """But a folder is one command, and what several share is no command."""
    room = name.split(".")[:2]
    others = {o for o in own(FILES[name]) if package(o) == "commands"} - {"commands"}
    others = {other for other in others if other.split(".")[:2] != room}
    shared = {".".join(other.split(".")[:2]) for other in others}
    assert shared <= SHARED_BY_COMMANDS


def test_sizes_and_names():
    for name, path in FILES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{name}: {lines} lines"
        assert path.stem not in sys.stdlib_module_names or path.stem == "__main__", name
    for folder in {path.parent for path in FILES.values()}:
        assert len([*folder.glob("*.py")]) <= 16, folder  # __init__ and 15 files


def test_no_circle():
    graph = {name: own(path, at_start=True) for name, path in FILES.items()}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", LIGHT)
def test_a_light_module_pulls_in_nothing_heavy(name):
    assert pulled_in(name) & LIGHT[name] == set()


@pytest.mark.parametrize("name", [n for n in FILES if package(n) == "models"])
def test_the_mathematics_need_neither_lightning_nor_hydra(name):
    roots = {dotted.partition(".")[0] for dotted in imports(FILES[name])}
    assert roots & (HYDRA | {"lightning", "wandb"}) == set()


@pytest.mark.parametrize(
    "name", [n for n in FILES if layer(n) < LAYER["config"] or package(n) == "analysis"]
)
def test_a_configuration_stops_at_the_door(name):
    roots = {dotted.partition(".")[0] for dotted in imports(FILES[name])}
    assert roots & HYDRA == set()


def test_what_a_function_imports_is_no_start(tmp_path):
    text = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\n"
    text += "class D:\n    import d\nfrom resnet_se.data.datamodule import x\n"
    sample = tmp_path / "sample.py"
    sample.write_text(text)
    assert set(imports(sample, at_start=True)) == {
        "a",
        "d",
        "resnet_se.data.datamodule.x",
    }
    assert {"b", "c"} < set(imports(sample))


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[1] / "experiments").rglob("*.py")),
    ids=lambda path: path.stem,
)
def test_what_a_script_imports_of_ours_is_there(path):
    """No other test runs all of them."""
    for name in imports(path):
        module, _, attribute = name.rpartition(".")
        if module.partition(".")[0] == "resnet_se":
            try:
                import_module(name)
            except ModuleNotFoundError:
                assert hasattr(import_module(module), attribute), name


def test_private_names_of_lightning_stand_in_one_file():
    private = ("fit_loop", "epoch_loop", "batch_progress", "_connector", "setup_data")
    using = [
        name
        for name, path in FILES.items()
        if any(word in path.read_text(encoding="utf-8") for word in private)
    ]
    assert using == ["utils.lightning_private"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_what_an_import_really_loads(name):
    module = f"resnet_se.{name}".rstrip(".")
    code = f"import sys, {module}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) & LIGHT[name] == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    ["optimizer.lrr=1", "trainer.max_epoch=3", "model.reductoin=2", "optim.lr=1"],
)
def test_a_misspelt_key_loads_nothing_that_computes(typed):
    code = (
        "import atexit, sys; sys.argv = ['resnet-se', *sys.argv[1:]]; atexit.register("
    )
    code += "lambda: print(*{m.partition('.')[0] for m in sys.modules})); "
    code += "from resnet_se.__main__ import main; main()"
    line = [sys.executable, "-c", code, "train", typed]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean" in done.stderr
    assert set(done.stdout.split()) & (COMPUTING - {"numpy"}) == set()
