"""Messages: an error in the user's terms, with the nearest valid name."""

from __future__ import annotations

import errno
import inspect
import re
import shlex
import sys
from itertools import zip_longest

import hydra
import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from resnet_se.config import CONF
from resnet_se.config.command_line import quoted
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.migration import equivalent_of
from resnet_se.config.targets import HYDRA_KEYS, located
from resnet_se.utils.errors import UserError, nearest

EXTRAS = ("joblib", "submitit", "ray")  # launchers that pyproject.toml offers
NO_CHOICE = "Config group override must be"  # of Hydra's ValueError: model=null
TWICE = r"Multiple values for ([^\s.]+)\.|An item is already at '([^']+)'"
# What an answer to something typed begins with.
TYPED = (
    r"unknown key '([^']+)'|(\S+=\S+): no such choice|(logger\.aim|trainer\.fast\w+)"
)
EXPECTED = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException, config_name: str = "train") -> str:
    """Return an error in the user's terms, with the nearest valid name.

    Where another framework's habit was typed, it names the equivalent here.
    """
    message = _explain(error, config_name)
    typed = re.match(TYPED, message)
    meant = equivalent_of(next(filter(None, typed.groups()))) if typed else None
    return f"{message.partition(';')[0]}; {meant}" if meant else message


def _explain(error: BaseException, config_name: str) -> str:
    if isinstance(error, InstantiationException):
        key = re.search(r"full_key: (\S+)", str(error))
        cause = error.__cause__ or error
        # Our constructors name the argument, the configuration knows whose it is.
        between = "." if isinstance(cause, UserError) else ": "
        if key is None or str(cause).startswith((f"{key[1]}.", f"{key[1]}:")):
            return str(cause)  # some know it themselves
        return f"{key[1]}{between}{cause}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        extra = name.partition("_")[0]  # submitit_local, submitit_slurm
        if group == "hydra/launcher" and extra in EXTRAS:
            return f"launcher={name}: not installed; uv sync --extra {extra}"
        choices = [option for option in error.options or [] if option]
        hint = nearest(name, choices)
        group = "data" if group == "test_set" else group  # as `evaluate` has it typed
        return f"{group or '--config-name'}={name}: no such choice; {hint}"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error}; the same command goes on once the run directory has room"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OmegaConfBaseException):
        message = str(error).strip().splitlines()[0]
        place = error.full_key
        return f"{place}: {message}" if place and place not in message else message
    if NO_CHOICE in str(error):
        return _explain_group()
    if twice := re.search(TWICE, str(error)):
        name = twice[1] or twice[2]
        return f"{name}: there is one already; write {name}=… without the +"
    if isinstance(error, OverrideParseException):
        lines = [line for line in str(error).splitlines() if "http" not in line]
        return f"{error.override}: {' '.join(lines)}{_quoted_form(error.override)}"
    override = re.search(r"Could not override '([^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and override:
        key = re.search(r"full_key: (\S+)", str(error))
        return _explain_key(key[1] if key else override[1], config_name)
    return str(error)


def _quoted_form(override: str) -> str:
    """Return the hint that writes a value as text, empty where it is no plain one."""
    key, _, value = override.partition("=")
    if not value or value[0] in "[{'\"":
        return ""
    return f"; as text: {shlex.quote(f'{key}={quoted(value)}')}"


def needs_no_traceback(error: BaseException) -> bool:
    """Return True for a mistake, or a fault of a file or disk: a sentence is enough."""
    if isinstance(error, EXPECTED) or NO_CHOICE in str(error):
        return True
    return isinstance(error, OSError) and (
        error.filename is not None or error.errno in NO_ROOM
    )


def _explain_group() -> str:
    """Return the message for a `group=value` that gives a group no name."""
    for typed in sys.argv[1:]:
        group, _, value = typed.lstrip("+").partition("=")
        no_name = re.fullmatch(r"null|true|false|[\d.]*", value, re.IGNORECASE)
        if (CONF / group).is_dir() and no_name:
            choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            return f"{typed}: no such choice; {nearest(value, choices)}"
    return "a group takes a name of its choices"


def _is_choice(typed: str) -> bool:
    """Return True for `group=name` of a group that others do not depend on."""
    group, _, name = typed.partition("=")
    group = group.partition("@")[0]
    several = ("experiment", "recipe", "debug", "launcher", "hparams_search")
    return (
        group not in several
        and name.isidentifier()
        and (CONF / group / f"{name}.yaml").is_file()
    )


def _is_slip(typed: str, name: str) -> bool:
    """Return True for a letter more, less, another or swapped, after the first."""
    pairs = enumerate(zip_longest(typed, name))
    start = next((i for i, (x, y) in pairs if x != y), len(name))
    a, b = typed[start:], name[start:]
    swapped = a[:2] == b[:2][::-1] and a[2:] == b[2:]
    one = a[1:] == b or a == b[1:] or a[1:] == b[1:]
    return start > 0 and max(len(typed), len(name)) > 2 and (swapped or one)


def _explain_key(dotted: str, config_name: str) -> str:
    """Return the message for a dotted key that leaves the configuration."""
    if dotted.startswith("hydra."):
        return f"{dotted}: not in Hydra's own configuration; +{dotted}=… would add it"
    typed = [word for word in sys.argv[1:] if _is_choice(word)]
    if config_name != "train":  # others have but one group that keys are below
        typed = [word for word in typed if "@" in word]
    with with_conf():
        node = hydra.compose(config_name, typed)
    path: list[str] = []
    for part in dotted.split("."):
        if not isinstance(node, DictConfig) or node._is_none():
            break
        if part not in node:
            where = ".".join([*path, part])
            choices = {str(key) for key in node} - HYDRA_KEYS
            slips = [key for key in choices if _is_slip(part, key)]
            if len(slips) == 1:  # the target's module, torch's say, is not imported
                return f"unknown key {where!r}; did you mean {slips[0]!r}?"
            if target := node.get("_target_"):
                known = inspect.signature(located("_target_", target)).parameters
                if part in known:
                    return f"{dotted} is not set in conf/: write +{dotted}=… to add it"
                choices |= set(known)
            elif not path and config_name == "train":
                choices |= {folder.name for folder in CONF.iterdir() if folder.is_dir()}
            return f"unknown key {where!r}; {nearest(part, choices)}"
        path.append(part)
        node = node[part]
    return f"{dotted}: not in this configuration; write +{dotted}=… to add it"
