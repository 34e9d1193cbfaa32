"""The error of a user's mistake, and hints at the nearest valid name.

Every mistake in a key, a value or a file raises `UserError`.  The commands print its
message without a traceback and exit with status 2; any other exception is a bug or a
fault of the machine and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in the configuration, the data or the command line.

    The message names the argument, what was expected, what came, and what to do.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint for an error message: the closest choice, else all of them."""
    choices = sorted(choices)
    # A slip seldom hits the first letter: `loss` is not meant as `plots`.
    close = get_close_matches(name, [c for c in choices if c[:1] == name[:1]], n=1)
    close = close or [c for c in choices if len(c) > 3 and c in name]
    close = close or get_close_matches(name, choices, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid choices: {', '.join(choices) or '(none)'}"
