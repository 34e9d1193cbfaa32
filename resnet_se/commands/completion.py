"""The completions of a shell's Tab; the help page of a command with a configuration.

    eval "$(resnet-se -sc install=bash)"        # zsh: the same with install=zsh
    resnet-se -sc install=fish | source

Words are read from the files of `conf/`, of ours and beside the user's work; nothing is
composed, and nothing heavy is imported.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from glob import escape, glob
from pathlib import Path
from textwrap import fill, indent
from typing import Any, get_args

import yaml

from resnet_se.config import CONF, PACKAGE
from resnet_se.config.schema import COMMANDS
from resnet_se.utils.errors import nearest

SHELLS = {
    "bash": r"""_resnet_se()
{
    local line="${COMP_LINE:0:COMP_POINT}" words IFS=$' \t\n'
    read -ra words <<< "$line"
    [[ "$line" == *" " ]] && words+=("")
    IFS=$'\n'
    COMPREPLY=($("${words[0]}" -sc query "${words[@]:1}" 2> /dev/null))
    [[ "${COMPREPLY[*]}" == *[=./] ]] || compopt +o nospace 2> /dev/null
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -F _resnet_se resnet-se
""",
    "zsh": r"""#compdef resnet-se
_resnet_se()
{
    local -a found
    found=(${(f)"$("${(Q)words[1]}" -sc query "${(@Q)words[2,CURRENT]}" 2> /dev/null)"})
    compadd -Q -S '' -- ${found:#*[^=./]}
    compadd -Q -- ${found:#*[=./]}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _resnet_se resnet-se
""",
    "fish": r"""complete -c resnet-se -f -a \
    '(resnet-se -sc query (commandline -opc)[2..-1] (commandline -ct) 2> /dev/null)'
""",
}


def answer(
    arguments: list[str], commands: list[str], configs: Mapping[str, str]
) -> list[str]:
    """Return a shell's script, or what may stand for the last word of a line."""
    if "query" in arguments:
        words = arguments[arguments.index("query") + 1 :]
        return candidates(words, commands, configs)
    shells = [w.partition("=")[2] for w in arguments if w.startswith("install=")]
    if shells and shells[0] in SHELLS:
        return [SHELLS[shells[0]].rstrip("\n")]
    return [f"# {nearest(''.join(shells), [f'install={name}' for name in SHELLS])}"]


def candidates(
    words: list[str], commands: list[str], configs: Mapping[str, str]
) -> list[str]:
    """Return what may stand for the last of the words after `resnet-se`."""
    *before, last = words or [""]
    if before in ([], ["help"]):
        return [name for name in commands if name.startswith(last)]
    command = configs.get(before[0], before[0]).replace("plan", "train")
    if command not in COMMANDS:
        return _files(last)
    key, equals, value = last.lstrip("+~").partition("=")
    sign = last[: len(last) - len(last.lstrip("+~"))]
    groups, keys = _known(command, before[1:])
    if not equals:
        found = sorted({_up_to_next(name, key) for name in (*groups, *keys)} - {""})
        return [f"{sign}{name}" for name in found] or _files(last)
    known = COMMANDS[command].get(key)
    if key in groups:
        found = groups[key]
    elif known is not None and known.path:
        found = _files(value)
    else:
        found = _choices(known.hint if known else None, keys.get(key))
    return [f"{sign}{key}={name}" for name in found if name.startswith(value)]


def _up_to_next(name: str, typed: str) -> str:
    """Return a dotted key up to the dot after what is typed, or its `=`."""
    if not name.startswith(typed):
        return ""
    head, dot, _ = name[len(typed) :].partition(".")
    return f"{typed}{head}{dot or '='}"


def _files(typed: str) -> list[str]:
    paths = sorted(glob(f"{escape(os.path.expanduser(typed))}*"))
    return [f"{path}/" if Path(path).is_dir() else path for path in paths]


def _choices(hint: Any, default: Any) -> list[str]:
    """Return the words that a value may be: of a Literal, or true and false."""
    if hint is bool or isinstance(default, bool):
        return ["false", "true"]
    options = [hint, *get_args(hint)]
    names = [n for o in options for n in get_args(o) or [o] if isinstance(n, str)]
    return sorted(set(names))


# --- the files of conf/ ------------------------------------------


def _known(
    command: str, typed: list[str]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return {group: choices} of a command, and {dotted key: default} as chosen."""
    chosen: dict[str, tuple[str, Any]] = {}
    keys = _read(command, chosen)
    words = dict(word.lstrip("+~").partition("=")[::2] for word in typed)
    keys |= _read(f"experiment/{words.get('experiment')}", chosen)
    groups = {
        group: sorted({p.stem for f in _folders() for p in (f / folder).glob("*.yaml")})
        for group, (folder, _) in chosen.items()
        if "/" not in group
    }
    for group in groups:
        folder, choice = chosen[group]
        keys |= _read(f"{folder}/{words.get(group, choice)}", {})
    return groups, {k: v for k, v in keys.items() if not k.startswith("hydra.")}


def _folders() -> list[Path]:
    return [folder for folder in (CONF, Path("conf")) if folder.is_dir()]


def _read(place: str, chosen: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return {dotted key: default} of a file of conf/ and of those it starts from.

    Args:
        chosen: {group: its folder and choice}, to be filled in.
    """
    files = [path for f in _folders() if (path := f / f"{place}.yaml").is_file()]
    if not files:
        return {}
    text = files[0].read_text(encoding="utf-8")
    group = str(Path(place).parent)
    inside = "" if group == "." or "@package _global_" in text else group
    values = yaml.safe_load(text) or {}
    keys: dict[str, Any] = {}
    for entry in values.pop("defaults", []):
        if isinstance(entry, dict):
            for key, choice in entry.items():
                folder, _, name = str(key).partition("@")  # `test_set@data`
                folder = folder.removeprefix("override ").lstrip("/")
                chosen[name or folder] = folder, choice
        elif entry != "_self_":
            base = entry.partition("@")[0]
            base = base[1:] if base.startswith("/") else f"{group}/{base}"
            keys |= _read(base, chosen)
    return keys | dict(_flat(values, inside))


def _flat(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from _flat(value, name)
        elif key != "_target_":
            yield name, value


# --- help --------------------------------------------------------


def help_page(command: str, module: str) -> str:
    """Return a command's docstring, and its keys and groups as `conf/` describes them.

    Args:
        module: its file in `commands/`, which is read and not imported.
    """
    files = (
        PACKAGE / f"commands/{module}.py",
        PACKAGE / f"commands/{module}/__init__.py",
    )
    source = next(file for file in files if file.is_file()).read_text(encoding="utf-8")
    pages = [ast.get_docstring(ast.parse(source)) or ""]
    if command in COMMANDS:
        pages += _keys_and_groups(command)
    if command in ("plan", "benchmark"):
        pages.append(
            "The keys and groups of `resnet-se train --help` are taken as well."
        )
    return "\n\n".join(pages)


def _keys_and_groups(command: str) -> list[str]:
    _, *parts = (CONF / f"{command}.yaml").read_text(encoding="utf-8").split("\n\n")
    keys = "\n".join("\n".join(p for p in parts if "hydra:" not in p).splitlines())
    pages = ["Keys, with their defaults (??? has none):\n\n" + indent(keys, "  ")]
    groups, _ = _known(command, [])
    if command != "benchmark" and groups:
        lines = [
            fill(f"{group}: {', '.join(choices)}", 78, subsequent_indent=" " * 4)
            for group, choices in groups.items()
        ]
        pages.append(
            "Groups, written group=choice:\n\n" + indent("\n".join(lines), "  ")
        )
    return pages
