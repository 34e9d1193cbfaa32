"""Value checks: a type hint states a value's type and range, once; it is read here.

    def __init__(self, depths: Sequence[Count], dropout: Annotated[float, Field(lt=1)])

`validated` checks a constructor's arguments where it is called, `check_value` one
value of a configuration before anything is called; pydantic judges both, strictly:
`"3"` is no number, `true` no integer, NaN and infinity no value.
"""

from __future__ import annotations

import functools
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import reduce
from numbers import Number, Real
from operator import or_
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from resnet_se.utils.errors import UserError, nearest

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
UNIONS = (Union, types.UnionType)
SEQUENCES = (list, Sequence, set, frozenset)
WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
    types.NoneType: "null",
}
NON_EMPTY = "non-empty"
F = TypeVar("F", bound=Callable[..., Any])


# --- hints -------------------------------------------------------


@functools.cache
def configurable_hint(hint: Any) -> Any:
    """Return a hint with `Any` in place of what a configuration cannot express.

    Alternatives that only Python code can give, a Tensor or a module, are left out, so
    that `float | Tensor` is a number; an Enum, which some libraries take by its name,
    may be anything.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        core = configurable_hint(inner[0])
        return core if core is Any else Annotated[(core, *inner[1:])]
    if kind in UNIONS:
        options = [configurable_hint(option) for option in inner]
        enums = any(isinstance(o, type) and issubclass(o, Enum) for o in inner)
        known = [option for option in options if option is not Any]
        nothing = not known or known == [types.NoneType]
        return Any if enums or nothing or Any in inner else reduce(or_, known)
    if kind is tuple and Ellipsis not in inner:
        items = tuple(configurable_hint(item) for item in inner)
        return Annotated[types.GenericAlias(tuple, items), Strict(False)]
    if kind in SEQUENCES or kind is tuple:
        return types.GenericAlias(Sequence, (configurable_hint(inner[0]),))
    if hint in SEQUENCES or hint is tuple:
        return Sequence[Any]
    if kind in (dict, Mapping) or hint is Mapping:
        return dict
    if hint in (Number, Real):  # torchvision's
        return float
    return hint if hint in WORDS or kind is Literal else Any


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(hint, config=STRICT)
    except (PydanticSchemaGenerationError, PydanticUserError):  # cannot be checked
        return None


def describe_hint(hint: Any) -> str:
    """Return a hint in words: `an integer >= 1`, `a number 0..1`, `one of a, b`."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        limits = _range(inner[1:])
        if limits == NON_EMPTY:
            return describe_hint(inner[0]).replace("a ", f"a {NON_EMPTY} ", 1)
        closed = inner[0] is float and ".." in limits
        return limits.strip() if closed else f"{describe_hint(inner[0])}{limits}"
    if kind is Literal:
        names = [_yaml(value) for value in inner]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if kind in UNIONS:
        return " or ".join(describe_hint(option) for option in inner)
    if kind is tuple:
        return f"a list of {len(inner)}: {', '.join(map(describe_hint, inner))}"
    if kind is Sequence:
        items = "" if inner[0] is Any else f", each {describe_hint(inner[0])}"
        return f"a list{items}"
    return WORDS.get(hint, str(hint))


def _yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _range(metadata: Sequence[Any]) -> str:
    """Return the limits in an annotation's metadata in words, empty without any."""
    names = ("gt", "ge", "lt", "le", "min_length")
    limits: dict[str, Any] = {}
    for entry in metadata:
        for limit in getattr(entry, "metadata", [entry]):
            limits |= {n: getattr(limit, n) for n in names if hasattr(limit, n)}
    if {"ge", "le"} <= limits.keys():
        return f" {limits['ge']}..{limits['le']}"
    if "min_length" in limits:
        return NON_EMPTY
    signs = zip(names, (">", ">=", "<", "<="), strict=False)
    parts = [f"{sign} {limits[name]}" for name, sign in signs if name in limits]
    return f" {' and '.join(parts)}" if parts else ""


# --- checking ----------------------------------------------------


def check_value(name: str, value: Any, hint: Any) -> None:
    """Check one value against its hint.

    Raises:
        UserError: it has another type or is out of range; names the item of a list.
    """
    hint = configurable_hint(hint)
    adapter = _adapter(hint)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        options = _alternatives(hint)
        for option in options if isinstance(value, list | tuple) else ():
            if get_origin(option) is Sequence:
                for i, item in enumerate(value):
                    check_value(f"{name}[{i}]", item, get_args(option)[0])
        expected = f"{name}: expected {describe_hint(hint)}"
        raise UserError(
            f"{expected}, got {_shown(value)}{_suggestion(value, options)}"
        ) from error


def _alternatives(hint: Any) -> list[Any]:
    """Return the options of a union, or the hint alone, without their ranges."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _alternatives(inner[0])
    if kind in UNIONS:
        return [option for part in inner for option in _alternatives(part)]
    return [hint]


def _suggestion(value: Any, options: list[Any]) -> str:
    literals = [get_args(o) for o in options if get_origin(o) is Literal]
    choices = [c for values in literals for c in values if isinstance(c, str)]
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return f"; {hint}" if hint.startswith("did you mean") else ""


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else _yaml(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Return {argument: hint} of a class or function; {} where they cannot be read."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(target).parameters
    except (NameError, AttributeError, TypeError, ValueError):
        return {}  # names that only a type checker imports
    for name, parameter in parameters.items():
        if name in hints and parameter.default is None:
            hints[name] = hints[name] | None  # from `x: int = None`
    return {name: hint for name, hint in hints.items() if name in parameters}


def validated(function: F) -> F:
    """Return a constructor, or a dataclass, that checks its arguments when called.

    The call raises UserError as `check_value` does.
    """
    if inspect.isclass(function):
        cls: Any = function
        cls.__init__ = validated(cls.__init__)
        return function
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:  # at the first call: the module is complete
        hints = get_type_hints(function, include_extras=True)
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        single = [p.name for p in signature.parameters.values() if p.kind not in kinds]
        return {name: hints[name] for name in single if name in hints}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        for name, hint in hints().items():
            if name in arguments:
                check_value(name, arguments[name], hint)
        return function(*args, **kwargs)

    return cast(F, checked)
