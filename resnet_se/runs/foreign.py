"""The source of a user's own modules, which belongs to what a run's hash promises."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from resnet_se.utils.errors import UserError

INSTALLED = {"site-packages", "dist-packages"}


def foreign_sources(targets: Iterable[str]) -> dict[str, str]:
    """{"source of MODULE": digest} of each module that is the user's own.

    That is: not of this package, of the standard library or installed.  A package
    counts whole, and what a module imports counts too, so that an edit anywhere in it
    is another configuration.

    Raises:
        UserError: a file of it cannot be read.
    """
    digests: dict[str, str] = {}
    waiting = [target.partition(".")[0] for target in targets]
    while waiting:
        name = waiting.pop()
        if name == "resnet_se" or ":" in name or name in sys.stdlib_module_names:
            continue
        files = [] if f"source of {name}" in digests else _own_files(name)
        whole = hashlib.sha256()
        for file in files:
            try:
                source = file.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{file}: {error.strerror}; the source of {name} belongs to what a "
                    "run's hash promises"
                ) from None
            whole.update(source + b"\0")
            waiting += _imported(source) if file.suffix == ".py" else []
        if files:
            digests[f"source of {name}"] = whole.hexdigest()[:16]
    return digests


def _own_files(name: str) -> list[Path]:
    """The source files of a module or package, unless built in or installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    # A folder needs no __init__.py to be a package.
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    module = [Path(spec.origin)] if spec.origin and spec.has_location else []
    for place in folders or module:
        if INSTALLED & set(place.parts) or any(place.parent.glob("*.dist-info")):
            return []
    return sorted(f for folder in folders for f in folder.rglob("*.py")) or module


def _imported(source: bytes) -> list[str]:
    """The top-level names of all that a source file imports, wherever in it."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # importing it says more
        return []
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    return [name.partition(".")[0] for name in names]
