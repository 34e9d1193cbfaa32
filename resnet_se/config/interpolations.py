"""Resolved values on their way back to OmegaConf, where a `${…}` would be filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnet_se.utils.errors import UserError


def check_plain(path: str, node: Any) -> None:
    """Refuse a text with `${…}`: of the environment, or of billions of values.

    Raises:
        UserError: there is one, with its dotted key.
    """
    if isinstance(node, Mapping | list):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            check_plain(f"{path}.{key}", value)
    elif isinstance(node, str) and "${" in node:
        raise UserError(f"{path}: expected a plain value, got {node[:80]!r}")
