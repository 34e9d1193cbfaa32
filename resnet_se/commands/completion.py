"""Completion in bash for the console script, whose commands Hydra does not know.

    eval "$(resnet-se -sc install=bash)"

Hydra finds the words, groups, choices and keys; what is asked of it is the line without
the command's name.
"""

from __future__ import annotations

from collections.abc import Iterable

# Whose arguments Hydra reads; `plan` takes those of `train`.
ASKED = {"plan": "train"} | {
    name: name
    for name in ("train", "evaluate", "predict", "export", "bundle", "benchmark")
}

BASH = r"""_resnet_se()
{
    local line="${COMP_LINE:0:COMP_POINT}" word="" choices rest asked
    local words=($line)
    [[ "$line" == *" " ]] || word="${words[${#words[@]}-1]}"
    if (( COMP_CWORD == 1 )); then
        choices="COMMANDS"
        compopt +o nospace 2> /dev/null
    else
        case "${words[1]}" in
CASES
            *) return ;;
        esac
        rest="${line#*"${words[0]}"}"
        rest="resnet-se ${rest#*"${words[1]}"}"
        choices="$(COMP_LINE="$rest" "${words[0]}" $asked -sc query=bash 2> /dev/null)"
    fi
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _resnet_se resnet-se
"""


def script(commands: Iterable[str]) -> str:
    """Return the script for bash of a console script with these commands."""
    cases = "\n".join(f"            {k}) asked={v} ;;" for k, v in ASKED.items())
    return BASH.replace("COMMANDS", " ".join(commands)).replace("CASES", cases)
