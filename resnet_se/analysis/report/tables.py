"""The report's tables: groups, comparisons, cells, runs; as text and as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pandas as pd

from resnet_se.analysis.report.compare import Comparison, Family
from resnet_se.analysis.report.groups import Group, Section
from resnet_se.analysis.report.runs import Loaded
from resnet_se.analysis.report.significance import MOST_SEEDS, mean_std
from resnet_se.analysis.report.text import (
    NONE,
    Table,
    accuracy,
    gain,
    number,
    p_value,
    points,
    settings,
)

ACCURACIES = {"val.acc": "val %", "test.acc": "test %", "test.acc_tta": "test TTA %"}
MEASURES = {  # heading, unit, digits
    "train.epochs": ("epochs", 1, 0),
    "train.steps": ("steps", 1, 0),
    "model.total": ("parameters", 1, 0),
    "model.macs": ("MMAC", 1e6, 1),
    "train.images_per_second": ("images/s", 1, 0),
    "train.seconds": ("minutes", 60, 1),
    "train.peak_memory_mb": ("memory MB", 1, 0),
}
ROWS = 500  # of a table
SPEEDS = ("train.images_per_second", "train.seconds", "train.peak_memory_mb")


def _mean(group: Group, key: str) -> float | None:
    """Return the mean over the seeds; of speeds only where one machine ran them all."""
    values = group.measured(key)
    mixed = key in SPEEDS and len(group.machines) > 1
    return None if mixed or not values else mean_std(values)[0]


def group_records(section: Section) -> pd.DataFrame:
    """Return a row a group, in full precision: means and deviations over its seeds.

    Of a k-fold over its folds; `config_hash` is its first one's.
    """
    rows = []
    for group in section.rows:
        row: dict[str, Any] = {
            "experiment": group.experiment,
            "setting": section.told(group),
            "config_hash": group.first.config_hash,
            "n": len(group.runs),
            "folds": len(group.folds) if group.is_k_fold else None,
            "seeds": " ".join(map(str, group.seeds)),
            "data.train": group.data["train"],
        }
        for key in ACCURACIES:
            spread = mean_std(group.measured(key) or [float("nan")])
            row[f"{key}_mean"], row[f"{key}_std"] = spread
        row["test.acc_std_distribution"] = group.deviation
        for name in section.evaluations:
            spread = mean_std(group.evaluated(name) or [float("nan")])
            row[f"{name}.acc_mean"], row[f"{name}.acc_std"] = spread
        row |= {key: _mean(group, key) for key in MEASURES}
        rows.append(row | {"machines": " | ".join(group.machines)})
    return pd.DataFrame(rows)


def group_table(section: Section) -> tuple[Table, str]:
    """Return the table of the groups, and all that they share."""
    groups = section.rows
    cells = pd.DataFrame({"run": [section.labels[id(g)] for g in groups]})
    cells["n"] = [folds_and_seeds(g) for g in groups]
    for key, heading in ACCURACIES.items():
        cells[heading] = [accuracy(g.measured(key)) for g in groups]
    deviations = [group.deviation for group in groups]
    cells["test ± of all images"] = [number(d, 2, 0.01) for d in deviations]
    for name in section.evaluations:
        cells[f"{name} %"] = [accuracy(g.evaluated(name)) for g in groups]
    fixed = len(cells.columns)
    for key, (heading, unit, digits) in MEASURES.items():
        cells[heading] = [number(_mean(g, key), digits, unit) for g in groups]
    alike = [
        c for c in cells.columns[fixed:] if len(cells) > 1 and cells[c].nunique() == 1
    ]
    shared = [f"{cells[c][0]} {c}" for c in alike if cells[c][0] != NONE]
    caption = f"{section.name}: mean ± sample standard deviation over n seeds"
    if any(g.is_k_fold for g in groups):
        caption += "; of a k-fold over its folds, each the mean of its seeds"
    text = ", ".join(filter(None, (settings(section.common), *shared)))
    return Table(caption, cells.drop(columns=alike)), text


def folds_and_seeds(group: Group) -> str:
    """Return the number of runs; of a k-fold `5 folds`, `5 folds × 2`, or `(7)`."""
    if not group.is_k_fold:
        return str(len(group.runs))
    each = {len(runs) for runs in group.folds.values()}
    many = f"{len(group.folds)} folds"
    if each == {1}:
        return many
    return f"{many} × {each.pop()}" if len(each) == 1 else f"{many} ({len(group.runs)})"


def comparison_records(family: Family, equivalence: float) -> pd.DataFrame:
    """Return a row a comparison, in full precision; accuracies in 0..1."""
    rows = []
    for c in (*family.comparisons, *family.cells):
        low, high = c.interval
        row: dict[str, Any] = {
            "question": c.question,
            "comparison": c.name,
            "where": c.where,
            "n": c.n,
            "seeds": c.seeds,
            "difference": c.mean,
            "low": low,
            "high": high,
            "family": c.family_size,
            "p": c.p,
        }
        if c in family.comparisons:
            row |= {"verdict": c.verdict(equivalence)}
        if c.wins:
            row["wins"], (row["wins_low"], row["wins_high"]) = c.wins
        if c.estimate:
            row["low_95"], row["high_95"] = c.estimate.interval()
            row |= {"p_95": c.estimate.p(), "error": c.estimate.error}
        if c.estimate and c.in_family:
            shares = c.estimate.posterior(equivalence)
            row |= dict(zip(("p_worse", "p_equal", "p_better"), shares, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_table(family: Family, equivalence: float) -> Table:
    """Return the table of the comparisons that are decided together."""
    caption = (
        f"Differences of test accuracy in percentage points; the intervals of all "
        f"{len(family.decided)} hold at once, and p is corrected for their number. "
        f"`detects`: the smallest difference found with 80 % power; `seeds for "
        f"{100 * equivalence:g}`: how many of each would find that many points."
    )
    rows = [_comparison_row(c, equivalence) for c in family.decided]
    return Table(caption, pd.DataFrame(rows), {"comparison", "verdict"})


def apart_table(family: Family, equivalence: float) -> Table:
    """Return the table of the comparisons that have too few seeds."""
    caption = (
        "Too few seeds to decide, whatever they show: listed apart, and not counted "
        "with the others. Two seeds: each interval for itself, 95 %. One seed: for new "
        "images and the same networks, which says nothing of their recipes."
    )
    rows = [_comparison_row(c, equivalence) for c in family.apart]
    return Table(caption, pd.DataFrame(rows), {"comparison", "verdict"})


def _comparison_row(c: Comparison, equivalence: float) -> dict[str, str]:
    row = {
        "question": c.question,
        "difference [interval]": gain(c.mean, c.interval),
        "verdict": c.verdict(equivalence),
        "comparison": c.label,
        "n": c.seeds,
        "p": p_value(c.p) if c.n > 1 else f"{p_value(c.p)} (images)",
    }
    if c.estimate and c.in_family:  # else the noise of others would decide
        shares = c.estimate.posterior(equivalence)
        row["worse / equal / better %"] = " / ".join(f"{100 * v:.0f}" for v in shares)
    row |= dict.fromkeys(("a run wins %", "detects"), NONE)
    row[f"seeds for {100 * equivalence:g}"] = NONE
    if c.wins:
        share, low, high = (f"{100 * v:.0f}" for v in (c.wins[0], *c.wins[1]))
        row["a run wins %"] = f"{share} [{low}, {high}]"
    if c.estimate:
        row["detects"] = f"{100 * c.estimate.detectable(c.family_size):.2f}"
        needed = c.estimate.seeds_needed(equivalence, c.n, c.family_size)
        if needed is None:
            found = c.estimate.finds(equivalence, c.family_size)
            text = f"> {MOST_SEEDS:,}" if found else "more images"
        row[f"seeds for {100 * equivalence:g}"] = f"{needed:,}" if needed else text
    return row


def cell_table(family: Family) -> Table:
    """Return the table of the cells that an average is made of."""
    rows = [
        {
            "factor": c.question,
            "comparison": c.name,
            "where": c.where or NONE,
            "n": c.seeds,
            "difference": points(c.mean),
            "95 % interval": gain(c.mean, c.interval).partition(" ")[2]
            if c.n > 1
            else "one seed",
        }
        for c in family.cells
    ]
    caption = (
        "The cells of the averages, in points; not corrected, so without verdicts. "
        "Cells of one seed have no part in the average."
    )
    return Table(caption, pd.DataFrame(rows), {"comparison", "where"})


def first_rows(table: Table) -> Table:
    """Return the table with at most `ROWS` rows; its caption says where all are."""
    if len(table.cells) <= ROWS:
        return table
    note = f" {ROWS} of {len(table.cells):,} rows are shown; all are in the CSV files."
    return replace(table, caption=table.caption + note, cells=table.cells[:ROWS])


def run_table(loaded: Loaded, letters: dict[str, str]) -> Table:
    """Return the table of every file that was read, with its status."""
    copies = [run for run, _, _ in loaded.duplicates]
    rows = []
    for run in [*loaded.runs, *copies, *loaded.unfinished]:
        row = {"file": run.path, "status": "duplicate" if run in copies else run.status}
        row |= {"experiment": run.experiment, "seed": str(run.seed)}
        row |= {"hash": run.config_hash, "commit": run.commit}
        if run.status == "finished":
            row |= {"machine": letters[run.machine]}
            row |= {"precision": run.hardware["precision"]}
            row |= {"epochs": number(run.train["epochs"])}
            row |= {"test %": f"{100 * run.test['acc']:.2f}"}
        rows.append(row)
    left = {"status", "experiment", "hash", "commit", "machine"}
    return Table("", pd.DataFrame(rows[:ROWS]).fillna(NONE), left)


TEX = {"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "<": "$<$", ">": "$>$"}


TEX_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
             "^": r"\textasciicircum{}"}  # fmt: skip


def _tex(text: str) -> str:
    """Return a text in which nothing is a command of TeX."""
    text = " ".join(text.split())
    return re.sub(r"[\\&%$#_{}~^]", lambda m: TEX_SIGNS.get(m[0], f"\\{m[0]}"), text)


def latex(tables: Iterable[Table]) -> str:
    r"""Return floats that need `\usepackage{booktabs, graphicx}` only."""
    parts = [r"% \usepackage{booktabs, graphicx}, UTF-8"]
    for table in tables:
        columns = "".join("l" if table.is_left(c) else "r" for c in table.cells.columns)
        caption = _tex(table.caption.replace("`", ""))
        body = table.cells.to_latex(index=False, escape=True, column_format=columns)
        parts += [
            r"\begin{table}",
            rf"\caption{{{caption}}}",
            r"\resizebox{\textwidth}{!}{%",
            body.rstrip() + "}",
            r"\end{table}",
        ]
    text = "\n".join(parts) + "\n"
    for sign, command in TEX.items():
        text = text.replace(sign, command)
    return text
