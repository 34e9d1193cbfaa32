"""The paper's claims beside the measurements of them.

The claims are data: `conf/claims.yaml`, of the working directory or else the package's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from resnet_se.analysis.report.compare import Family
from resnet_se.analysis.report.groups import Group, Section
from resnet_se.analysis.report.runs import frame
from resnet_se.analysis.report.significance import (
    Estimate,
    Noise,
    images_only,
    independent_mistakes,
    pooled,
)
from resnet_se.analysis.report.text import accuracy, gain
from resnet_se.config import CONF
from resnet_se.utils.errors import UserError

KEYS = {"claim", "claimed", "counted", "column", "of", "against", "over"}
Claim = Mapping[str, str]
Row = dict[str, str]


def load_claims() -> list[Claim]:
    """Return the claims of the first file there is.

    Raises:
        UserError: it is not a list of claims.
    """
    import yaml

    for folder in (Path("conf"), CONF):
        path = folder / "claims.yaml"
        if path.is_file():
            try:
                claims: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
                for claim in claims:
                    whole = {"claim", "claimed"} <= claim.keys() <= KEYS
                    if not (
                        whole and ("counted" in claim or {"column", "of"} <= {*claim})
                    ):
                        raise UserError(f"claim, claimed, then column and of: {claim}")
            except (
                yaml.YAMLError,
                UserError,
                OSError,
                TypeError,
                AttributeError,
            ) as error:
                raise UserError(f"{path}: not a list of claims ({error})") from None
            return claims
    return []


def claim_rows(compared: list[tuple[Section, Family]], equivalence: float) -> list[Row]:
    """Return each claim beside its measurements; none where no run is of any claim."""
    claims = load_claims()
    present = {run.experiment for section, _ in compared for run in section.runs}
    if not any(claim.get("of") in present for claim in claims):
        return []
    rows = []
    for claim in claims:
        measured = (
            [(claim["counted"], "", "counted")]
            if "counted" in claim
            else [
                (value, str(n), f"{section.name}{f', {where}' if where else ''}")
                for section, family in compared
                for value, n, where in _measured(claim, section, family, equivalence)
            ]
        )
        for value, n, where in measured or [("not measured", "", "")]:
            row = {"claim": claim["claim"], "claimed": claim["claimed"]}
            rows.append(row | {"measured": value, "n": n, "where": where})
    return rows


def _measured(
    claim: Claim, section: Section, family: Family, equivalence: float
) -> Iterator[tuple[str, int, str]]:
    """Yield (value, seeds, the setting that tells its runs from others)."""
    if "against" in claim:
        for c in family.comparisons:
            treatment, baseline = c.pairs[0]
            names = treatment.experiment, baseline.experiment
            if names == (claim["of"], claim["against"]):
                text = f"{gain(c.mean, c.interval)} points, {c.verdict(equivalence)}"
                yield text, c.n, c.where or f"mean of {len(c.pairs)} settings"
        return
    for group in section.groups:
        if group.experiment != claim["of"]:
            continue
        where = section.setting(group)
        if "over" in claim:
            if all(run.test.get("predicted_tta") for run in group.runs):
                mean, interval = _tta(group)
                yield f"{gain(mean, interval)} points", len(group.runs), where
            continue
        table = frame(group.runs)
        values = table[claim["column"]].dropna() if claim["column"] in table else ()
        if len(values):
            yield f"{accuracy(values)} %", len(values), where


def _tta(group: Group) -> tuple[float, tuple[float, float]]:
    """Return the gain of TTA with the same networks, and its 95 % interval."""
    d = np.stack([run.correct(tta=True) - run.correct() for run in group.runs])
    if len(d) == 1:
        return float(d.mean()), images_only(d[0])[1]
    gains, chance = d.mean(axis=1), independent_mistakes(d)
    variance, freedom = pooled([gains]).variance, float(len(d) - 1)
    if variance < chance:  # which is known well, from many images
        variance, freedom = chance, inf
    by_images = float(np.var(d.mean(axis=0), ddof=1)) / d.shape[1] - chance / len(d)
    noise = Noise(variance / len(d), freedom)
    estimate = Estimate(float(gains.mean()), (noise,), (), max(by_images, 0.0))
    return estimate.mean, estimate.interval()
