"""The kind of each place in a configuration: a network where a model belongs.

Nothing is called here; names are looked up, and only where their place allows them.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from resnet_se.config.schema import PLACES, Place
from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import check_value

GET_CLASS = "hydra.utils.get_class"


def targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """All mappings with a `_target_`, outermost first, and their dotted paths."""
    if isinstance(node, DictConfig) and not node._is_none():
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from targets(node[key], f"{path}.{key}".lstrip("."))
    elif isinstance(node, ListConfig) and not node._is_none():
        for i, item in enumerate(node):
            yield from targets(item, f"{path}[{i}]")


def place_of(path: str) -> tuple[str, Place] | None:
    """The place that a dotted path lies in, the most special one."""
    path = path.replace("[", ".")
    inside = [p for p in PLACES if path == p or path.startswith(f"{p}.")]
    return (name := max(inside, key=len), PLACES[name]) if inside else None


def check_kind(path: str, node: DictConfig) -> None:
    """Raises UserError unless a target is of the kind of the place it stands in."""
    where = place_of(path)
    name = node["_target_"]
    if where is None:
        raise UserError(f"{path}._target_: nothing is built here, got {name!r}")
    key = "_target_"
    if where[0] == "optimizer.cls":  # a class is wanted there, not an object
        if name != GET_CLASS:
            raise UserError(f"{path}._target_: expected {GET_CLASS}, got {name!r}")
        key = "path"
    name = node.get(key)
    check_value(f"{path}.{key}", name, str)
    if not _is_of(where[1], name, f"{path}.{key}"):
        raise UserError(f"{path}.{key}: expected {where[1].words}, got {name!r}")


def _is_of(place: Place, name: str, path: str) -> bool:
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False  # importing alone may run something
    target = located(path, name)
    bases = tuple(located(path, base) for base in place.bases)
    if inspect.isclass(target):
        methods = all(callable(getattr(target, name, None)) for name in place.methods)
        return methods and (not bases or issubclass(target, bases))
    if not inspect.isroutine(target) or home_of(target) not in place.packages:
        return False
    kind = returned(target)
    return inspect.isclass(kind) and issubclass(kind, bases)


def home_of(target: Any) -> str:
    """The package that a function was written in, whatever name it was found by."""
    return str(getattr(target, "__module__", "")).partition(".")[0]


def returned(target: Any) -> Any:
    try:
        return get_type_hints(target).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def located(path: str, name: str) -> Any:
    """What a dotted name stands for; imports its module, calls nothing.

    Raises:
        UserError: there is no such module or name, or importing it failed.
    """
    check_value(path, name, str)
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{path}: expected module.Name, got {name!r}")
    target: Any = None
    for i in range(1, len(parts) + 1):
        module = ".".join(parts[:i])
        if target is not None and hasattr(target, parts[i - 1]):
            target = getattr(target, parts[i - 1])
            continue
        if target is not None and not inspect.ismodule(target):
            raise _no_such_name(path, name, target, parts[i - 1])
        try:
            target = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise UserError(f"{path}: {name!r} needs {error.name}, which is not "
                                "installed") from None  # fmt: skip
            if target is not None:
                raise _no_such_name(path, name, target, parts[i - 1]) from None
            raise UserError(
                f"{path}: no module {module!r}; looked in {_search_path()} and in what "
                "is installed"
            ) from None
        except Exception as error:
            raise UserError(
                f"{path}: importing {module} failed: {type(error).__name__}: {error}"
            ) from error
    return target


def _no_such_name(path: str, name: str, owner: Any, part: str) -> UserError:
    public = [n for n in dir(owner) if not n.startswith("_")]
    close = difflib.get_close_matches(part, public, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"{path}: {name!r}: {owner.__name__} has no {part!r}{hint}")


def _search_path() -> str:
    """The folders that come before what is installed, the working directory first."""
    lib = Path(os.__file__).parent
    folders = [Path(entry or ".").resolve() for entry in sys.path]
    own = [f for f in folders if lib not in (f, *f.parents) and f.is_dir()]
    return ", ".join(dict.fromkeys(map(str, own))) or "no folder of your own"
