"""The identity of a run: all that determines its result, flat, and the hash of it.

Same hash, same result, within rounding.  What can change the result is in it, resolved;
where, how it is watched and by how many workers is not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from resnet_se.utils.errors import UserError
from resnet_se.utils.files import read_regular

# Raised where the same configuration is to mean another training than before.
RECIPE = 1


class HashRules(NamedTuple):
    """The keys that a hash leaves out, or has in another form.

    Args:
        unhashed: keys, and all below them, that cannot change a result.
        by_content: of these, paths whose content is hashed.
        idle: {key: the value with which it does nothing}, left out where it has it.
        monitoring: canonical names of callbacks that only watch.
    """

    unhashed: tuple[str, ...]
    by_content: tuple[str, ...]
    idle: dict[str, Any]
    monitoring: frozenset[str]


class Environment(NamedTuple):
    """The facts that a configuration leaves open: of the data and the machine."""

    data: str  # the identity of the data's content
    precision: str
    world_size: int  # processes, of one device each


def hashed_config(
    plain: dict[str, Any], environment: Environment, rules: HashRules
) -> dict[str, Any]:
    """Return all that determines a run's result but its seed: {dotted key: value}.

    A pure function; `config_hash` covers it, and the record keeps it.  Our own targets
    go by a name that stays when a module moves.

    Args:
        plain: a resolved configuration.
        environment: of this machine and these data.
        rules: of the schema.
    """
    flat = _flat(plain)
    monitors = {
        key.rpartition(".")[0]
        for key, value in flat.items()
        if key.startswith("callbacks.") and value in rules.monitoring
    }
    dropped = (*rules.unhashed, *monitors)
    hashed = {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in dropped)
        and not (key in rules.idle and value == rules.idle[key])
    }
    world = environment.world_size
    hashed["recipe"] = RECIPE
    hashed["precision"] = environment.precision
    hashed["world_size"] = world  # each rank has its own BatchNorm, dropout and mixing
    hashed["data.content"] = environment.data
    hashed["data.global_batch_size"] = plain["data"]["batch_size"] * world
    trainer = plain["trainer"]
    if world == 1:
        hashed.pop("trainer.sync_batchnorm", None)
    elif trainer.get("scale_lr"):
        hashed["optimizer.lr"] = plain["optimizer"]["lr"] * world
    for key in rules.by_content:
        if plain.get(key):
            hashed[f"{key}.content"] = _digest(key, Path(plain[key]))
    hashed |= own_sources(value for key, value in flat.items() if _is_target(key))
    return dict(sorted(hashed.items()))


def config_hash(hashed: dict[str, Any]) -> str:
    """Return eight hex digits of a `hashed_config`."""
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a callback set to null leaves nothing."""
    if isinstance(node, dict):
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat |= _flat(value, f"{path}.{key}".lstrip("."))
        return flat
    if node is None and path.count(".") == path.startswith("callbacks."):
        return {}
    if _is_target(path):
        node = canonical(str(node))
    elif isinstance(node, list):
        node = [_flat(item) if isinstance(item, dict) else item for item in node]
    return {path: node}


def _is_target(path: str) -> bool:
    return path.rpartition(".")[2] == "_target_"


def canonical(target: str) -> str:
    """The name of a `_target_` that stays when our module moves: `resnet_se:ResNet`."""
    root, _, rest = target.partition(".")
    return f"{root}:{rest.rpartition('.')[2]}" if root == "resnet_se" else target


def _digest(key: str, path: Path) -> str:
    weights = path / "checkpoints/best.ckpt", path / "model.safetensors"  # a bundle's
    file = next(
        (f for f in weights if f.is_file()), weights[0] if path.is_dir() else path
    )
    try:
        return hashlib.sha256(read_regular(file, 64 << 30)).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{key}: {file}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


# --- a user's own modules ----------------------------------------

INSTALLED = {"site-packages", "dist-packages"}


def own_sources(targets: Iterable[str]) -> dict[str, str]:
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
        files = [] if f"source of {name}" in digests else own_files(name)
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


def own_files(name: str) -> list[Path]:
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
    absolute = [n for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    names += [n.module for n in absolute if n.module]
    return [name.partition(".")[0] for name in names]
