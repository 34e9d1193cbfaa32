"""What a value may be: said once, in the type hint, with its range; checked here.

    def __init__(self, depths: Sequence[Count], dropout: Annotated[float, Field(lt=1)])

`validated` checks a constructor's arguments where it is called, `check_value` one
value of a configuration before anything is called; pydantic judges both, strictly:
`"3"` is no number, `true` no integer, NaN and infinity no value.
"""

from __future__ import annotations

import functools
import inspect
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
PLAIN = (int, float, bool, str, dict, types.NoneType)
MANY = (list, Sequence, set, frozenset)
KINDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
    types.NoneType: "null",
}
KEYWORDS = {True: "true", False: "false", None: "null"}
F = TypeVar("F", bound=Callable[..., Any])


# --- hints -------------------------------------------------------


@functools.cache
def configurable_hint(hint: Any) -> Any:
    """A hint without what a configuration cannot say: `Any` in its place.

    Of several alternatives those are left out that only Python code can give, a Tensor
    or a module, so that `float | Tensor` is a number; an Enum, whose names are texts
    to some, may be anything.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        core = configurable_hint(inner[0])
        return core if core is Any else Annotated[(core, *inner[1:])]
    if kind in UNIONS:
        options = [configurable_hint(option) for option in inner]
        enums = any(isinstance(o, type) and issubclass(o, Enum) for o in inner)
        said = [option for option in options if option is not Any]
        nothing = not said or said == [types.NoneType]
        return Any if enums or nothing or Any in inner else reduce(or_, said)
    if kind is tuple and Ellipsis not in inner:
        return Annotated[tuple[tuple(map(configurable_hint, inner))], Strict(False)]
    if kind in MANY or kind is tuple:
        return Sequence[configurable_hint(inner[0])]  # type: ignore[misc]
    if hint in MANY or hint is tuple:
        return Sequence[Any]
    if kind in (dict, Mapping) or hint is Mapping:
        return dict
    if hint in (Number, Real):  # torchvision's
        return float
    return hint if hint in PLAIN or kind is Literal else Any


@functools.cache
def _adapter(hint: Any) -> TypeAdapter | None:
    try:
        return TypeAdapter(hint, config=STRICT)
    except (PydanticSchemaGenerationError, PydanticUserError):  # not ours to judge
        return None


def describe_hint(hint: Any) -> str:
    """A plain hint in words: `an integer >= 1`, `a number 0..1`, `one of a, b`."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        limits = _range(inner[1:])
        closed = inner[0] is float and ".." in limits
        return limits.strip() if closed else f"{describe_hint(inner[0])}{limits}"
    if kind is Literal:
        names = [_spelt(value) for value in inner]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if kind in UNIONS:
        return " or ".join(describe_hint(option) for option in inner)
    if kind is tuple:
        return f"a list of {len(inner)}: {', '.join(map(describe_hint, inner))}"
    if kind is Sequence:
        return (
            "a list" if inner[0] is Any else f"a list, each {describe_hint(inner[0])}"
        )
    return KINDS.get(hint, str(hint))


def _spelt(value: Any) -> str:
    """As YAML spells it."""
    plain_words = value is None or isinstance(value, bool)
    return KEYWORDS[value] if plain_words else str(value)


def _range(metadata: Sequence[Any]) -> str:
    limits: dict[str, Any] = {}
    for entry in metadata:
        for limit in getattr(entry, "metadata", [entry]):
            limits |= {
                name: getattr(limit, name)
                for name in ("ge", "gt", "le", "lt", "min_length", "max_length")
                if hasattr(limit, name)
            }
    if {"ge", "le"} <= limits.keys():
        return f" {limits['ge']}..{limits['le']}"
    if "min_length" in limits:
        return ", not empty"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    parts = [f"{signs[name]} {limits[name]}" for name in signs if name in limits]
    return f" {' and '.join(parts)}" if parts else ""


# --- checking ----------------------------------------------------


def check_value(name: str, value: Any, hint: Any) -> None:
    """One value against its hint.

    Raises:
        UserError: it is not of that type, or out of its range; names the item of a
            list that is.
    """
    hint = configurable_hint(hint)
    adapter = _adapter(hint)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        for item, item_hint, i in _items(value, hint):
            check_value(f"{name}[{i}]", item, item_hint)
        choices = [c for c in _choices(hint) if isinstance(c, str)]
        hint_of_name = f"; {nearest(value, choices)}" if _near(value, choices) else ""
        raise UserError(
            f"{name}: expected {describe_hint(hint)}, got {_shown(value)}{hint_of_name}"
        ) from error


def _items(value: Any, hint: Any) -> list[tuple[Any, Any, int]]:
    """The entries of a list and their hint, where the hint is one of a list."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    options = get_args(hint) if get_origin(hint) in UNIONS else (hint,)
    lists = [option for option in options if get_origin(option) is Sequence]
    if not lists or not isinstance(value, list | tuple):
        return []
    inner = get_args(lists[0])[0]
    return [(item, inner, i) for i, item in enumerate(value)]


def _choices(hint: Any) -> list[Any]:
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return list(inner)
    if kind in (*UNIONS, Annotated):
        return [choice for option in inner for choice in _choices(option)]
    return []


def _near(value: Any, choices: list[str]) -> bool:
    return isinstance(value, str) and "did you mean" in nearest(value, choices)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else _spelt(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """{argument: hint} of a class or a function; what cannot be read is left out."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(target).parameters
    except (NameError, AttributeError, TypeError, ValueError):
        return {}  # made for a type checker's eyes only
    for name, parameter in parameters.items():
        if name in hints and parameter.default is None:
            hints[name] = hints[name] | None  # `x: int = None` means it too
    return {name: hint for name, hint in hints.items() if name in parameters}


def validated(function: F) -> F:
    """A constructor, or a dataclass, whose arguments meet their hints first.

    Raises:
        UserError: as `check`, from the call.
    """
    if inspect.isclass(function):
        function.__init__ = validated(function.__init__)  # type: ignore[misc]
        return function
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:  # when first called: the module is complete
        known = get_type_hints(function, include_extras=True)
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        many = {p.name for p in signature.parameters.values() if p.kind in kinds}
        return {k: h for k, h in known.items() if k != "return" and k not in many}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        for name, hint in hints().items():
            if name in arguments:
                check_value(name, arguments[name], hint)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]
