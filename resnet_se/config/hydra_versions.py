"""The calls that Hydra 1.4 and OmegaConf 2.4 name otherwise than 1.3 and 2.3 do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import hydra
import hydra.utils
from omegaconf import DictConfig, OmegaConf

from resnet_se.config import CONF

_utils: Any = hydra.utils
MODERN = hasattr(_utils, "execution_whitelist")
# The behaviour of 1.3, which 1.4 has without being asked, and warns of being asked for.
VERSION_BASE: dict[str, Any] = {} if MODERN else {"version_base": "1.3"}
# Of OmegaConf 2.3, `register_resolver` is another one, of old.
register_resolver: Callable[..., None] = (
    OmegaConf.register_resolver if MODERN else OmegaConf.register_new_resolver
)


def main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Any]:
    """Return `hydra.main` of a configuration; Hydra's callbacks in it are trusted."""
    options = VERSION_BASE
    if MODERN:
        options = {"execution_whitelist": _utils.UNSAFE_DISABLE_EXECUTION_CHECKS}
    return hydra.main(config_path=str(CONF), config_name=config_name, **options)


def with_conf() -> AbstractContextManager[Any]:
    """Return the context in which `hydra.compose` reads our configuration groups."""
    return hydra.initialize_config_dir(str(CONF), **VERSION_BASE)


def checked_targets() -> AbstractContextManager[Any]:
    """Return the context of `instantiate` for targets that have been checked by us.

    The slots are narrower than Hydra's lists of names, which take no class by its name,
    as `optimizer.cls` has it.
    """
    if not MODERN:
        return nullcontext()
    unsafe = _utils.UNSAFE_DISABLE_EXECUTION_CHECKS
    context: AbstractContextManager[Any] = _utils.execution_whitelist(unsafe)
    return context
