"""Targets: names that a configuration gives, the slots they stand in, their arguments.

Names are looked up, and only where their slot allows them; `build_target` alone calls
what they stand for.  Any class is asked for its signature and hints in the same way,
ours or not; whose hints say less than it takes has narrower ones in the schema.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from resnet_se.config import CONF, PACKAGE
from resnet_se.config.hydra_versions import checked_targets
from resnet_se.config.interpolations import check_plain
from resnet_se.config.schema import (
    ARGUMENTS_OF,
    INJECTED_ARGS,
    TARGET_SLOTS,
    THIRD_PARTY_HINTS,
    WRAPPER_KEYS,
    Slot,
)
from resnet_se.config.unfit import UNFIT
from resnet_se.runs.run_hash import canonical, own_files
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import check_value, hints_of

GET_CLASS = "hydra.utils.get_class"
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
UNSET = "???"  # OmegaConf's mark of a value that is to be given

Node = Mapping[str, Any]


def targets(node: Any, path: str) -> Iterator[tuple[str, Node]]:
    """All mappings with a `_target_`, outermost first, and their dotted paths."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for i, item in enumerate(node):
            yield from targets(item, f"{path}[{i}]")


def check_targets(node: Any, path: str) -> None:
    """Check the kind, then the arguments, of all targets at or below `path`.

    Raises:
        UserError: a target is not of its slot's kind, or an argument is unknown,
            missing or out of its range.
    """
    found = list(targets(node, path))
    for name, inner in found:
        check_kind(name, inner)
    for name, inner in found:
        if name != "optimizer.cls":
            check_arguments(name, inner, located(name, inner["_target_"]))
    for name, owner in ARGUMENTS_OF.items():
        inner = value_below(node, name.removeprefix(path).lstrip("."))
        if name.startswith(path) and inner is not None:
            check_value(name, inner, dict)
            check_arguments(name, inner, located(name, owner))


def value_below(node: Any, dotted: str) -> Any:
    """The value at a dotted path below `node`, or None."""
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


# --- kinds -------------------------------------------------------


def slot_of(path: str) -> tuple[str, Slot] | None:
    """The slot that a dotted path lies in, the most special one."""
    path = path.replace("[", ".")
    inside = [p for p in TARGET_SLOTS if path == p or path.startswith(f"{p}.")]
    return (name := max(inside, key=len), TARGET_SLOTS[name]) if inside else None


def check_kind(path: str, node: Node) -> None:
    """Raise UserError unless a target is of the kind of the slot it stands in."""
    where = slot_of(path)
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
    assert isinstance(name, str)
    if not _fits(where[1], name, f"{path}.{key}"):
        raise UserError(f"{path}.{key}: expected {where[1].words}, got {name!r}")
    target = located(path, name)
    for cls in inspect.getmro(target) if inspect.isclass(target) else ():
        if reason := UNFIT.get(f"{cls.__module__}.{cls.__qualname__}"):
            raise UserError(f"{path}: {cls.__name__} does not work here: {reason}")


def _fits(slot: Slot, name: str, path: str) -> bool:
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False  # importing alone may run something
    target = located(path, name)
    bases = tuple(located(path, base) for base in slot.bases)
    if inspect.isclass(target):
        methods = all(callable(getattr(target, name, None)) for name in slot.methods)
        own_call = slot.call and "__call__" in vars(target) and _is_own(target)
        return methods and (not bases or issubclass(target, bases) or own_call)
    known = package_of(target) in slot.packages
    if not inspect.isroutine(target) or not (known or _is_own(target)):
        return False
    kind = returned(target)
    return inspect.isclass(kind) and issubclass(kind, bases)


def package_of(target: Any) -> str:
    """The package that a function was written in, whatever name it was found by."""
    return str(getattr(target, "__module__", "")).partition(".")[0]


def _is_own(target: Any) -> bool:
    """Return whether a class or function is the user's own: not installed, not ours."""
    return bool(own_files(package_of(target)))


def returned(target: Any) -> Any:
    """The type that a function says it returns, or None."""
    try:
        return get_type_hints(target).get("return")
    except (NameError, TypeError, AttributeError):
        return None


@functools.cache
def _homes() -> dict[str, str]:
    """{canonical name: today's path} of the package's classes and functions.

    Of several by one name the one that `conf/` names, else none.
    """
    homes: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^(?:class|def) ([A-Za-z]\w*)", text, re.MULTILINE):
            homes.setdefault(f"resnet_se:{name}", set()).add(f"{module}.{name}")
    named = {
        target
        for path in CONF.rglob("*.yaml")
        for target in re.findall(
            r"\bresnet_se(?:\.\w+)+", path.read_text(encoding="utf-8")
        )
    }
    chosen = {name: paths & named or paths for name, paths in homes.items()}
    return {name: paths.pop() for name, paths in chosen.items() if len(paths) == 1}


def present_path(target: str) -> str:
    """Return the path at which a `_target_` of ours lies today; others unchanged.

    It goes by its name where there is no such module any more.
    """
    root, *parts = target.split(".")
    ours = root == "resnet_se" and all(part.isidentifier() for part in parts)
    if not ours or len(parts) not in (2, 3):
        return target
    module = PACKAGE.joinpath(*parts[:-1])
    if module.is_dir() or module.with_suffix(".py").is_file():
        return target
    return _homes().get(canonical(target), target)


def located(path: str, name: str) -> Any:
    """Return the object of a dotted name; imports its module, calls nothing.

    Raises:
        UserError: there is no such module or name, or importing it failed.
    """
    check_value(path, name, str)
    name = present_path(name)
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
            raise UserError(f"{path}: no module {module!r}; looked in {_search_path()} "
                            "and in what is installed") from None  # fmt: skip
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


# --- arguments ---------------------------------------------------


class Signature(NamedTuple):
    """The parameters of a target and their hints; `open_ended`: it takes any other."""

    name: str
    parameters: dict[str, inspect.Parameter]
    hints: dict[str, Any]
    open_ended: bool

    @property
    def shown(self) -> str:
        """`Net(hidden: int, depth: int = 3)`."""
        listed = inspect.Signature(list(self.parameters.values()))
        return f"{self.name}{listed}"


def signature_of(target: Callable[..., Any], node: Node) -> Signature:
    """The signature of a target, with that of the class that `node` hands it.

    Raises:
        ValueError, TypeError: Python cannot tell.
    """
    parameters = dict(inspect.signature(target).parameters)
    kinds = inspect.Parameter
    open_ended = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    hints = hints_of(target)
    name = target.__name__
    cls = node.get("cls")
    if open_ended and isinstance(cls, Mapping) and "path" in cls:
        options = located("optimizer.cls.path", cls["path"])  # make_optimizer's
        of_options = dict(inspect.signature(options).parameters)
        parameters = {
            n: p for n, p in parameters.items() if p.kind is not kinds.VAR_KEYWORD
        }
        parameters |= {n: p for n, p in of_options.items() if n not in parameters}
        hints = _narrowed(options, hints_of(options)) | hints
        name, open_ended = options.__name__, False
    hints = _narrowed(target, hints)
    many = (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    return Signature(
        name,
        {n: p for n, p in parameters.items() if p.kind not in many},
        hints,
        open_ended,
    )


def _narrowed(target: Any, hints: dict[str, Any]) -> dict[str, Any]:
    """Hints, narrowed where other people's say less than is taken."""
    for cls in reversed(inspect.getmro(target) if inspect.isclass(target) else ()):
        narrower = THIRD_PARTY_HINTS.get(f"{cls.__module__}.{cls.__qualname__}", {})
        hints = hints | {n: h for n, h in narrower.items() if n in hints}
    return hints


def check_arguments(path: str, node: Node, target: Any) -> None:
    """Check the arguments that `node`, at `path` of its configuration, gives `target`.

    Raises:
        UserError: an argument that it does not take, lacks, or cannot use.
    """
    try:
        signature = signature_of(target, node)
    except (TypeError, ValueError):  # written in C, and silent about it
        return
    # Those of what is nested in a slot come from nowhere else.
    injected = INJECTED_ARGS.get(path, ()) if slot_of(path) else ()
    for key, value in node.items():
        name = f"{path}.{key}"
        if name in WRAPPER_KEYS or key in HYDRA_KEYS:
            continue
        if key not in signature.parameters and not signature.open_ended:
            hint = nearest(str(key), set(signature.parameters) - set(injected))
            owner = str(node.get("_target_", signature.name))
            ours = owner.startswith("resnet_se.") or "cls" in node
            raise UserError(
                f"{name}: {signature.name if ours else owner} has no such argument; "
                f"{hint}"
            )
        parameter = signature.parameters.get(key)
        null = value is None and (parameter is None or parameter.default is None)
        if name in TARGET_SLOTS and not (null or _holds_target(value)):
            strings = isinstance(value, str) and path == "trainer"
            if not strings:  # its names of profilers and strategies
                raise UserError(
                    f"{name}: expected a mapping with a _target_, got {value!r}"
                )
        check_set(name, value)
        if key in signature.hints and not _holds_target(value):
            check_value(name, value, signature.hints[key])
    if "_args_" in node or (node.get("_partial_") and path not in INJECTED_ARGS):
        return
    for key, parameter in signature.parameters.items():
        needed = parameter.default is parameter.empty
        if needed and key not in node and key not in injected:
            raise UserError(
                f"{path}.{key}: {signature.shown} needs it; add +{path}.{key}=…"
            )


def _holds_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_holds_target, value.values()))
    return isinstance(value, list) and any(map(_holds_target, value))


def check_set(path: str, value: Any) -> None:
    """Raise UserError where a value is still to be given (OmegaConf's `???`)."""
    if isinstance(value, str) and value == UNSET:
        raise UserError(f"{path}: expected a value, got none; write {path}=…")


# --- building ----------------------------------------------------


def build_target(path: str, node: Any, **arguments: Any) -> Any:
    """Call the target of `node` with its own arguments and those given.

    The only way from a `_target_` to an object: who reads an untrusted run directory
    meets the same checks.

    Args:
        path: the place of `node` in its configuration, such as `model`.

    Raises:
        UserError: a target in it is not of its slot's kind.
        InstantiationException: Hydra's, around what the constructor has raised.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{path}: expected a mapping with a _target_, got {node!r}")
    for inner, target in targets(node, path):
        check_kind(inner, target)
    if not isinstance(node, DictConfig):
        check_plain(path, node)
        nested: Any = dict(node)
        for part in reversed(path.split(".")):  # an error names the whole key
            nested = {part: nested}
        node = OmegaConf.create(nested)
        for part in path.split("."):
            node = node[part]
    with checked_targets():
        return instantiate(node, _convert_="all", **arguments)


def build_network(node: Any, num_classes: int) -> Any:
    """The network of a `model`, told the number of classes if it can be told."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"model: expected a mapping with a _target_, got {node!r}")
    target = located("model._target_", node["_target_"])
    try:
        signature = signature_of(target, node)
        takes = signature.open_ended or "num_classes" in signature.parameters
    except (TypeError, ValueError):  # written in C: it will say
        takes = True
    return build_target(
        "model", node, **({"num_classes": num_classes} if takes else {})
    )
