"""A command line as a shell gives it, as overrides in Hydra's grammar.

    resnet-se predict RUN photos/*.jpg -o labels.csv
    resnet-se predict run=RUN inputs=[photos,"cat (1).jpg"] out=labels.csv

A path is taken letter by letter, whatever is in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from contextlib import suppress
from os.path import exists
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from resnet_se.config import CONF
from resnet_se.config.schema import COMMANDS, PATHS, Key
from resnet_se.utils.errors import UserError, nearest

# Hydra's flags; those of the second line take the next word.
FLAGS = ("-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version")
VALUED = ("-c", "--cfg", "-cd", "--config-dir", "-cn", "--config-name", "-cp", "-i",
          "--config-path", "--info", "-p", "--package")  # fmt: skip
OVERRIDE = re.compile(r"(\+{0,2}|~)([A-Za-z_][\w./@:-]*)=(.*)", re.DOTALL)
# A value in Hydra's grammar already: a list, a quoted text, a sweep, an interpolation.
GRAMMAR = re.compile(
    r"\[.*\]|'.*'|\".*\"|(choice|glob|range|sort|shuffle)\(.*\)|.*\$\{.*\}.*", re.DOTALL
)


def quoted(value: str) -> str:
    """A text as the value of an override, in quotes, whatever is in it."""
    # `${…}` is filled in even in quotes, unless it is escaped.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return str(QuotedString(text=value, quote=Quote.single).with_quotes())


def as_overrides(command: str, words: list[str]) -> list[str]:
    """Return the words with flags first, paths quoted, and each path with its key.

    Raises:
        UserError: a word or a flag that the command does not take.
    """
    flags: list[str] = []
    overrides: list[str] = []
    paths: list[str] = []
    names = top_level(command)
    rest = iter(words)
    for word in rest:
        # To Hydra `tta` is a group, which takes names alone.
        if command == "predict" and word.lower() in ("tta=true", "tta=false"):
            word = f"own_{word.lower()}"
        if command == "evaluate":  # where `data` is the group of those to train on
            word = re.sub(r"^(\+?)data=", r"test_set@data=", word)
        override = OVERRIDE.fullmatch(word)
        flag = word.partition("=")[0]
        if override and (override[2] in names or not exists(word)):
            key = re.split(r"[./:]", override[2].rpartition("@")[2])[0]
            if command == "evaluate" and key == "data" and not _named(words, "data"):
                raise UserError("unknown key 'data'; evaluate takes it from the run")
            if key not in names and key != "hydra" and not _own_group(key, words):
                raise UserError(f"unknown key {key!r}; {known_key(command, key)}")
            overrides.append(word)
        elif word == "--":
            paths += rest
        elif word in ("-o", "--out") and "out" in COMMANDS[command]:
            overrides.append(f"out={next(rest, '')}")
        elif flag in VALUED:
            flags += (
                [word] if "=" in word else [word, *[w for w in [next(rest, None)] if w]]
            )
        elif flag in FLAGS:
            flags.append(word)
        elif word.startswith("-") and len(word) > 1:
            raise UserError(_unknown_flag(word, names))
        elif word.startswith(("~", "+", "'", '"', "zip(")):  # Hydra has an answer
            overrides.append(word)
        else:
            paths.append(word)
    overrides += _positional(command, paths, overrides)
    multirun = bool({"-m", "--multirun"} & set(flags))
    return flags + [_as_hydra_reads(command, word, multirun) for word in overrides]


@functools.cache
def top_level(command: str) -> dict[str, Any]:
    """Return the keys of a command's file in `conf/` and its groups, with defaults."""
    text = (CONF / f"{command}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    for entry in values.pop("defaults"):
        if isinstance(entry, dict):
            names = {k.rpartition("@")[2]: v for k, v in entry.items()}
            values |= {k: v for k, v in names.items() if "override" not in k}
        elif entry in COMMANDS:
            values = top_level(entry) | values
    return values


def known_key(command: str, key: str) -> str:
    """Return a hint for a key that a command does not have at its top level."""
    if key in top_level("train") and command != "train":
        return f"{command} takes it from the run"
    return nearest(key, top_level(command))


def _named(words: list[str], group: str) -> bool:
    """Return True where a choice of the group is typed."""
    return any(re.match(rf"\+?(\w+@)?{group}=", word) for word in words)


def _own_group(key: str, words: list[str]) -> bool:
    """Return True where a `conf/` of the user's may have a group of that name."""
    elsewhere = any(
        w.startswith(("hydra.searchpath", "--config-d", "-cd")) for w in words
    )
    return elsewhere or Path("conf", key).is_dir()


def _unknown_flag(word: str, names: dict[str, Any]) -> str:
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    if name in names:
        return f"{word}: write {name}=…"
    return f"{word}: {_no_such('flag', name, names)}"


def _no_such(kind: str, word: str, names: Iterable[str]) -> str:
    hint = nearest(word, names)
    if not hint.startswith("did you mean"):
        hint = "--help lists the keys"
    return f"expected key=value, got a {kind} without; {hint}"


def _positional(command: str, paths: list[str], overrides: list[str]) -> list[str]:
    """Return overrides of the words that came without a key: runs, then inputs."""
    typed = {word.partition("=")[0] for word in overrides}
    keys = [key for key in ("run", "inputs") if key in COMMANDS[command]]
    free = [key for key in keys if key not in typed]
    for word in paths:
        name = word.rstrip(":=")
        if name in top_level(command) and not exists(word):
            raise UserError(f"{name}: expected key=value; write {name}=…")
    found = []
    if command == "data_summary" and paths:
        found = ["data=image_folder", f"data.source.root={quoted(paths.pop(0))}"]
    for key in free:
        several = _several(COMMANDS[command][key]) and key == free[-1]
        part = paths if several else paths[:1]
        paths = paths[len(part) :]
        if len(part) == 1:
            found.append(f"{key}={part[0]}")
        elif part:
            found.append(f"{key}=[{','.join(map(quoted, part))}]")
    if paths and keys:
        raise UserError(f"{keys[-1]}: given already, got {paths[0]!r} as well")
    if paths:
        raise UserError(_unexpected(command, paths[0]))
    return found


def _several(key: Key) -> bool:
    return key.hint in (PATHS, PATHS | None)


def _unexpected(command: str, word: str) -> str:
    groups = [g for g in top_level(command) if (CONF / g / f"{word}.yaml").is_file()]
    if groups:
        return f"{word}: expected key=value; write {groups[-1]}={word}"
    return f"{word}: {_no_such('word', word, top_level(command))}"


def _as_hydra_reads(command: str, word: str, multirun: bool) -> str:
    """Return an override with its value in quotes where it is a path, or no grammar."""
    match = OVERRIDE.fullmatch(word)
    if match is None or match[1] == "~" or (CONF / match[2]).is_dir():
        return word
    sign, key, value = match.groups()
    known = COMMANDS[command].get(key) or COMMANDS["train"].get(key)
    parsed = None
    with suppress(HydraException):
        parsed = OverridesParser.create().parse_override(word)
    if known is not None and known.path and value not in ("", "null"):
        there = exists(value)
        typed = None
        if parsed is not None and not parsed.is_sweep_override():
            typed = parsed.value()
        if typed == value and not (there and "${" in value):
            return word
        grammar = parsed is not None and GRAMMAR.fullmatch(value)
        if "," in value and not there and not grammar:
            if multirun:
                return word
            if _several(known):
                return f"{sign}{key}=[{','.join(map(quoted, value.split(',')))}]"
        if there or not grammar:
            return f"{sign}{key}={quoted(value)}"
    return f"{sign}{key}={quoted(value)}" if parsed is None else word
