"""The arguments of a target: what it takes, by signature and hints, and what is given.

A stranger's class is asked the same way as ours; whose hints say less than they take
(`foreign`) has narrower ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from resnet_se.config.kinds import located, place_of
from resnet_se.config.schema import FOREIGN, GIVEN, OWN_KEYS, PLACES
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import check_value, hints_of

HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


class Signature(NamedTuple):
    """What a target takes: parameters and their hints; whether it takes any other."""

    name: str
    parameters: dict[str, inspect.Parameter]
    hints: dict[str, Any]
    open_ended: bool

    @property
    def shown(self) -> str:
        """`Net(hidden: int, depth: int = 3)`."""
        listed = inspect.Signature(list(self.parameters.values()))
        return f"{self.name}{listed}"


def signature_of(target: Callable[..., Any], node: DictConfig) -> Signature:
    """Raises ValueError, TypeError where Python cannot tell."""
    parameters = dict(inspect.signature(target).parameters)
    kinds = inspect.Parameter
    open_ended = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    hints = hints_of(target)
    name = target.__name__
    cls = node.get("cls")
    if open_ended and isinstance(cls, DictConfig) and "path" in cls:
        options = located("optimizer.cls.path", cls["path"])  # make_optimizer's
        theirs = dict(inspect.signature(options).parameters)
        parameters = {
            n: p for n, p in parameters.items() if p.kind is not kinds.VAR_KEYWORD
        }
        parameters |= {n: p for n, p in theirs.items() if n not in parameters}
        hints = _with_foreign(options, hints_of(options)) | hints
        name, open_ended = options.__name__, False
    hints = _with_foreign(target, hints)
    many = (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    return Signature(
        name,
        {n: p for n, p in parameters.items() if p.kind not in many},
        hints,
        open_ended,
    )


def _with_foreign(target: Any, hints: dict[str, Any]) -> dict[str, Any]:
    """Other people's hints, which say less than they take, made narrower."""
    for cls in reversed(inspect.getmro(target) if inspect.isclass(target) else ()):
        narrower = FOREIGN.get(f"{cls.__module__}.{cls.__qualname__}", {})
        hints = hints | {n: h for n, h in narrower.items() if n in hints}
    return hints


def check_arguments(path: str, node: DictConfig, target: Any) -> None:
    """What `node`, at `path` of its configuration, gives to `target`.

    Raises:
        UserError: an argument that it does not take, lacks, or cannot use.
    """
    try:
        signature = signature_of(target, node)
    except (TypeError, ValueError):  # written in C, and silent about it
        return
    place = place_of(path)
    # Those of what is nested in a place come from nowhere else.
    given = GIVEN.get(path, ()) if place else ()
    for key in node:
        name = f"{path}.{key}"
        if name in OWN_KEYS or key in HYDRA_KEYS:
            continue
        if key not in signature.parameters and not signature.open_ended:
            hint = nearest(str(key), set(signature.parameters) - set(given))
            raise UserError(
                f"{name}: {_called(node, signature)} has no such argument; {hint}"
            )
        value = plain(value_at(name, node))
        parameter = signature.parameters.get(key)
        null = value is None and (parameter is None or parameter.default is None)
        if name in PLACES and not (null or _holds_target(value)):
            strings = isinstance(value, str) and path == "trainer"
            if not strings:  # its names of profilers and strategies
                raise UserError(
                    f"{name}: expected a mapping with a _target_, got {value!r}"
                )
        if key in signature.hints and not _holds_target(value):
            check_value(name, value, signature.hints[key])
    if "_args_" in node or (node.get("_partial_") and path not in GIVEN):
        return
    for key, parameter in signature.parameters.items():
        needed = parameter.default is parameter.empty
        if needed and key not in node and key not in given:
            raise UserError(
                f"{path}.{key}: {signature.shown} needs it; add +{path}.{key}=…"
            )


def _called(node: DictConfig, signature: Signature) -> str:
    return (
        signature.name if "cls" in node else str(node.get("_target_", signature.name))
    )


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_holds_target, value.values()))
    return isinstance(value, list) and any(map(_holds_target, value))


def value_at(path: str, node: DictConfig) -> Any:
    """`node`'s value of the last key of `path`.

    Raises:
        UserError: there is none.
    """
    key = path.rpartition(".")[2]
    if key not in node or OmegaConf.is_missing(node, key):
        raise UserError(f"{path}: expected a value, got ??? (none is set)")
    return node[key]


def plain(value: Any) -> Any:
    """Mappings and lists without OmegaConf, resolved."""
    if isinstance(value, DictConfig | ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    return value
