"""Zipped sweeps: settings that vary together, beside those of which all combine.

    resnet-se train -m 'zip(model=se_resnet20,vanilla_resnet20; optimizer.lr=0.1,0.2)'

Hydra's grammar has no word for it (hydra #1258).  A zip is typed to Hydra as the sweeps
that are in it, and its keys to the sweeper, which pairs their values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, product

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

from resnet_se.utils.errors import UserError

Plugins.instance()  # first: it imports Hydra's own sweeper anew
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

# Quoted text may hold a semicolon.
PART = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^;'"])+""")


def split_zips(typed: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Return the words with the sweeps of each `zip(…)` in its place, and their keys.

    Raises:
        UserError: a zip of fewer than two settings, or a setting in zips twice.
    """
    words: list[str] = []
    zips: list[list[str]] = []
    for word in typed:
        if not word.startswith("zip("):
            words.append(word)
            continue
        parts = [part.strip() for part in PART.findall(word[4:-1])]
        if not word.endswith(")") or len(parts) < 2 or not all("=" in p for p in parts):
            raise UserError(f"{word}: expected 'zip(KEY=A,B; KEY=C,D)'")
        words += parts
        zips.append([part.partition("=")[0].strip() for part in parts])
    for key, number in Counter(chain(*zips)).items():
        if number > 1:
            raise UserError(f"zip: {key} is in it {number} times")
    return words, zips


def typed_to_hydra(typed: Sequence[str]) -> list[str]:
    """Return a command line in Hydra's words.

    Raises:
        UserError: a zip of fewer than two settings, or beside a search.
    """
    words, zips = split_zips(typed)
    if not zips:
        return words
    if any(word.startswith("hparams_search=") for word in words):
        raise UserError("zip: a search tries combinations of its own; sweep without it")
    keys = ",".join(f"[{','.join(map(repr, keys))}]" for keys in zips)
    return [*words, "hydra/sweeper=zipped", f"hydra.sweeper.zips=[{keys}]"]


def expand(
    overrides: Iterable[Override], zips: Iterable[Iterable[str]]
) -> list[list[str]]:
    """Return the overrides of each job: all combinations, but a zip's row by row.

    Raises:
        UserError: a zip whose settings have unequal numbers of values, or a sweep over
            an interval.
    """
    choices: dict[str, list[str]] = {}
    for override in overrides:  # of a key that is typed twice the last one counts
        key = override.get_key_element()
        choices[key] = [override.input_line or ""]
        if override.is_discrete_sweep():
            values = override.sweep_string_iterator()
            choices[key] = [f"{key}={value}" for value in values]
        elif override.is_sweep_override():
            raise UserError(f"{override.input_line}: a sweep takes a list of values")
    blocks = {key: [(value,) for value in values] for key, values in choices.items()}
    for keys in map(list, zips):
        counts = {key: len(choices[key]) for key in keys}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{key} has {n}" for key, n in counts.items())
            raise UserError(f"zip: expected as many values of each setting, but {told}")
        blocks[keys[0]] = list(zip(*(choices[key] for key in keys), strict=True))
        for key in keys[1:]:
            del blocks[key]
    return [list(chain.from_iterable(job)) for job in product(*blocks.values())]


class ZippedSweeper(BasicSweeper):
    """Hydra's own sweeper, which pairs the values of the keys of each of `zips`."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str],
        zips: Sequence[Sequence[str]],
    ) -> None:
        super().__init__(max_batch_size, params)
        self.zips = zips

    def split_arguments(  # type: ignore[override]  # Hydra's is static
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the jobs in batches."""
        jobs = expand(overrides, self.zips)
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))
