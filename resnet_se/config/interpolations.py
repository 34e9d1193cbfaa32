"""Resolved values on their way back to OmegaConf, where a `${…}` would be filled in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from resnet_se.utils.errors import UserError


def check_plain(path: str, node: Any) -> None:
    """Refuse a text with `${…}`: of the environment, or of billions of values.

    Raises:
        UserError: there is one, with its dotted key.
    """
    for key, text in texts(node, path):
        if "${" in text:
            raise UserError(f"{key}: expected a plain value, got {text[:80]!r}")


def texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted keys and texts below a node."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping | list):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            yield from texts(value, f"{path}.{key}")
