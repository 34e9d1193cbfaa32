"""What the small study has found so far: the tables of two READMEs, and one figure.

    python experiments/small/findings.py [RUNS]

Takes in the records of the runs that RUNS (a `runs_dir`) has finished.  Then writes
what stands between `<!-- findings.py: NAME -->` and `<!-- end -->` in the README here
and in that of the folder above, and length.svg;
`tests/experiments/test_small_study.py` holds them to the records.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from html import escape
from pathlib import Path
from textwrap import fill

import pandas as pd
from omegaconf import OmegaConf

from resnet_se.analysis.canvas import draw
from resnet_se.analysis.gate_figures import KINDS, ablation_rows
from resnet_se.analysis.report.claims import claim_rows
from resnet_se.analysis.report.compare import Comparison, Family, compare
from resnet_se.analysis.report.differences import NBSP, differences
from resnet_se.analysis.report.groups import Group, Section, sections
from resnet_se.analysis.report.notes import identical, reliability
from resnet_se.analysis.report.runs import load
from resnet_se.analysis.report.significance import mean_std, pooled
from resnet_se.analysis.report.text import (
    Table,
    accuracy,
    count,
    gain,
    markdown_table,
    p_value,
    points,
)
from resnet_se.config import CONF

HERE = Path(__file__).parent
PAGES = HERE / "README.md", HERE.parent / "README.md"
WHOLE = 45_000  # training images
EQUIVALENCE = 0.005
SE = "e14 − e21", "e07 − e03"  # what adds SE alone
CLAIMED = 0.10  # of accuracy, by it
Study = tuple[Section, Family]


def study() -> Study:
    """All that has been run: one section, since all were tested on the same images."""
    [section] = sections(load([str(HERE / "runs")]).runs)
    return section, compare(section)


def take(runs: Path, into: Path | None = None) -> list[Path]:
    """Copies the records that are finished and not yet here, or below `into`."""
    taken = []
    for path in sorted(runs.glob("*/seed*/result.json")):
        here = (into or HERE / "runs") / path.relative_to(runs)
        if not here.exists() and json.loads(path.read_text())["status"] == "finished":
            here.parent.mkdir(parents=True, exist_ok=True)
            taken.append(Path(shutil.copyfile(path, here)))
    return taken


# --- what is said ------------------------------------------------


def images(group: Group) -> str:
    return f"{group.data['train']:,}"


def measured(of: Study) -> str:
    """A row a comparison: its question, and the answer with its interval."""
    section, family = of
    parts = [
        _rows(sorted(family.decided, key=_place), p=True),
        _prose("Too few seeds to decide (two of a side), listed apart:"),
        _rows(sorted(family.apart, key=_place)),
        _prose("The settings that an average is made of, each by itself:"),
        _rows(sorted(family.cells, key=_place), answer=False),
        _prose(reliability(family)),
        _identical(section),
        _not_run(section),
    ]
    return "\n\n".join(filter(None, parts))


def _rows(comparisons: list[Comparison], p: bool = False, answer: bool = True) -> str:
    rows = []
    for c in comparisons:
        row = {
            "question": c.question,
            "comparison": c.name,
            "images": lengths(c),
            "n": c.seeds,
            "points [interval]": gain(c.mean, c.interval),
        }
        row |= {"p": p_value(c.p)} if p else {}
        row |= {"answer": c.verdict(EQUIVALENCE)} if answer else {}
        rows.append(row)
    return _table(rows, "comparison", "answer") if rows else ""


def lengths(c: Comparison) -> str:
    """The training images of all that is averaged."""
    sizes = sorted({treatment.data["train"] for treatment, _ in c.pairs})
    return "; ".join(f"{size:,}" for size in sizes)


def _place(c: Comparison) -> tuple[str, int]:
    return c.name, c.pairs[0][0].data["train"]


def _identical(section: Section) -> str:
    """Experiments that trained the same network to the last digit."""
    said = "; ".join(identical(section))
    return _prose(f"{said[0].upper()}{said[1:]}.") if said else ""


def _not_run(section: Section) -> str:
    """The comparisons of the 22 that lack an experiment."""
    run = {group.experiment for group in section.groups}
    lacking = [
        f"{path.stem[:3]}{NBSP}−{NBSP}{entry.experiment[:3]}"
        for path in sorted((CONF / "experiment").glob("e[0-9]*.yaml"))
        for entry in OmegaConf.load(path).get("against") or []
        if not {path.stem, entry.experiment} <= run
    ]
    return _prose(f"Not run yet: {', '.join(lacking)}." if lacking else "All were run.")


def claims(of: Study) -> str:
    """The paper's claims beside what was measured of them with the most images."""
    section, family = of
    most: dict[str, tuple[int, dict[str, str]]] = {}
    for row in claim_rows([(section, family)], EQUIVALENCE):
        where = row.pop("where")
        part = re.search(r"data.train=(\d+)", where)
        whole = where.startswith(section.name)
        size = int(part[1]) if part else WHOLE if whole else 0
        row["images"] = f"{size:,}" if size else ""
        if "mean of" in where:
            row["images"] = "several"
        if size >= most.get(row["claim"], (0, {}))[0]:
            most[row["claim"]] = size, row
    rows = [row for _, row in most.values()]
    return f"{_survives(family)}\n\n{_table(rows, 'claimed', 'measured')}"


def _survives(family: Family) -> str:
    """Whether SE adds as much as the paper says, where recipes are decided at all."""
    ordered = sorted(family.comparisons, key=_place)
    of_se = [c for c in ordered if c.name in SE and c.n > 1]
    if not of_se:
        return "**Whether SE adds about 10 % of accuracy is not decided** (n = 1)."
    answers = "; ".join(
        f"{c.name} is {gain(c.mean, c.interval)} points with {lengths(c)} "
        f"images (n{NBSP}={NBSP}{c.seeds})"
        for c in of_se
    )
    refuted = all(c.interval[1] < CLAIMED for c in of_se)
    word = "does not survive" if refuted else "is not refuted"
    said = f'**"SE adds about 10 %" of accuracy {word} at this size**: {answers}.'
    return _prose(said)


def _prose(text: str) -> str:
    return fill(text, 92, break_on_hyphens=False, break_long_words=False)


def runs(of: Study) -> str:
    """A row a setting, and how far its seeds deviate."""
    groups = sorted(of[0].groups, key=lambda g: (g.data["train"], g.experiment))
    rows = [
        {
            "experiment": g.experiment,
            "images": images(g),
            "n": str(len(g.runs)),
            "validation %": accuracy(g.measured("val.acc")),
            "test %": accuracy(g.accuracies),
            "test % of seeds": ", ".join(
                f"{s}: {100 * run.test['acc']:.2f}" for s, run in g.seeds.items()
            ),
        }
        for g in groups
    ]
    return _table(rows, "test % of seeds")


def noise(of: Study) -> str:
    """The deviation from seed to seed, pooled over the recipes of a size of data."""
    sizes: dict[str, list[Group]] = {}
    for group in sorted(of[0].groups, key=lambda g: g.data["train"]):
        if group.first.noise_family == "final":
            sizes.setdefault(images(group), []).append(group)
    pools = {size: pooled(g.accuracies for g in gs) for size, gs in sizes.items()}
    said = [
        f"{100 * pool.variance**0.5:.2f} points with {size} images (2.2 deviations: "
        f"{220 * pool.variance**0.5:.1f}; {count(pool.freedom, 'degree')} of freedom)"
        for size, pool in pools.items()
        if pool.freedom
    ]
    worst = max((p.variance for p in pools.values() if p.freedom), default=0.0)
    asked = "kept" if 2.2 * worst**0.5 <= 0.01 else "not kept"
    return _prose(
        f"Test accuracy deviates from seed to seed by {', '.join(said)}. That 2.2 "
        f"deviations be at most one point is {asked}."
    )


def again(of: Study) -> str:
    """The same experiment and seed on another machine: test accuracy of both."""
    first = {(run.config_hash, run.seed): run for run in of[0].runs}
    rows = []
    for run in load([str(HERE / "again")]).runs:
        known = first[run.config_hash, run.seed]
        rows.append(
            {
                "experiment": run.experiment,
                "seed": str(run.seed),
                known.hardware["accelerator"]: f"{100 * known.test['acc']:.2f}",
                run.hardware["device"]: f"{100 * run.test['acc']:.2f}",
            }
        )
    table = _table(sorted(rows, key=lambda row: (row["experiment"], row["seed"])))
    return f"{table}\n\n{_mixed(of[1])}"


def _mixed(family: Family) -> str:
    """The pairs of runs that are of two kinds of machine, and the mean without them."""
    said = []
    single = [c for c in (*family.comparisons, *family.cells) if len(c.pairs) == 1]
    for c in sorted(single, key=_place):
        first, second = (group.seeds for group in c.pairs[0])
        gains = {
            seed: (
                first[seed].test["acc"] - second[seed].test["acc"],
                first[seed].hardware["device"] == second[seed].hardware["device"],
            )
            for seed in sorted(set(first) & set(second))
        }
        mixed = [str(seed) for seed, (_, alike) in gains.items() if not alike]
        if mixed:
            rest = [value for value, alike in gains.values() if alike]
            said.append(
                f"in {c.name} with {images(c.pairs[0][0])} images seed "
                f"{', '.join(mixed)} (without: {points(sum(rest) / len(rest))} points, "
                f"n{NBSP}={NBSP}{len(rest)})"
            )
    return _prose(f"Pairs of two kinds of machine: {'; '.join(said) or 'none'}.")


def gates(of: Study) -> str:
    """What tests lose without gates: a table a file, of one network or of several."""
    trained = {(r.config_hash, r.seed): f"{r.data['train']:,}" for r in of[0].runs}
    parts = []
    for path in sorted((HERE / "gates").glob("*.json")):
        entries = json.loads(path.read_text())["runs"]
        first, n = entries[0], len(entries)
        name = f"{first['experiment']}, {trained[first['config_hash'], first['seed']]}"
        shares = [entry["all"]["shares"]["constant"] for entry in entries]
        who = f"seed {first['seed']}" if n == 1 else f"{n} seeds, mean ± deviation"
        constant = accuracy(shares).removesuffix(" (n = 1)")
        rows = ablation_rows(first) if n == 1 else _over_seeds(entries)
        rows = [{k.removesuffix(", points"): v for k, v in row.items()} for row in rows]
        said = (
            f"{name} images, {who}, {first['data']['images']:,} test images: E[g²] is "
            f"{constant} % constant."
        )
        parts.append(f"{said}\n\n{_table(rows)}")
    return "\n\n".join(parts)


def _over_seeds(entries: list[dict]) -> list[dict[str, str]]:
    """As `ablation_rows`, of several networks: their mean difference and deviation."""
    rows = ablation_rows(entries[0])
    for row, kind in zip(rows, KINDS, strict=True):
        for column in list(row)[1:]:
            mean, std = mean_std(
                [
                    a["difference"]
                    for entry in entries
                    for a in entry["ablations"]
                    if (a["gates"], f"{a['where']}, points") == (kind, column)
                ]
            )
            row[column] = f"{points(mean)} ± {100 * std:.2f}"
    return rows


def rates(of: Study) -> str:
    """Muon's rates that were tried, by what they gave on validation."""
    trials = []
    for path in (HERE / "trial").glob("*/seed*/result.json"):
        record = json.loads(path.read_text())
        setting = record["setting"]
        if setting["optimizer._target_"].endswith("make_muon"):
            lr = setting["optimizer.lr"]
            trials.append((lr * setting["optimizer.bias_lr"], lr, record["val"]["acc"]))
    rows = [
        {
            "rate of convolutions": f"{lr:g}",
            "of biases, SE, head": f"{rest:g}",
            "validation %": f"{100 * accuracy_:.2f}",
        }
        for rest, lr, accuracy_ in sorted(trials)
    ]
    return _table(rows)


def _table(rows: list[dict[str, str]], *left: str) -> str:
    return markdown_table(Table("", pd.DataFrame(rows), set(left)))


def verdicts(of: Study) -> str:
    """The false verdicts of the simulation, by the rules before and today's."""
    path = HERE.parent / "statistics" / "unlike_noise.json"
    rows = json.loads(path.read_text())["rows"]
    table = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        cells = {"noise": setting}
        for n in sorted({row["n"] for row in rows}):
            found = [
                row["methods"]
                for row in rows
                if (row["setting"], row["n"]) == (setting, n)
            ]
            before, now = (
                100 * max(methods[rule]["false"] for methods in found)
                for rule in ("today, pooled", "chosen")
            )
            cells[f"{n} seeds"] = f"{before:.1f} → {now:.1f} %"
        table.append(cells)
    return _table(table)


def figure(of: Study) -> tuple[str, str]:
    """Caption and SVG of what SE adds under the final recipe, against the images."""
    drawn = [
        rest for name, *rest in differences(of[1], EQUIVALENCE) if "length" in name
    ]
    drawn = [rest for rest in drawn if rest[0].startswith(SE[0])]
    if not drawn:
        return "", ""
    [(caption, picture)] = drawn
    svg, titles = re.subn(
        r"(?<=<svg )[^>]*>",
        lambda start: f"{start[0]}<title>{escape(caption)}</title>",
        draw(picture),
    )
    assert titles == 1
    return caption, svg


# --- where it stands ---------------------------------------------


def blocks() -> tuple[dict[str, str], str]:
    """{name: text} of all that is written, and the figure."""
    of = study()
    caption, svg = figure(of)
    parts = measured, claims, runs, noise, again, rates, gates, verdicts
    texts = {part.__name__: part(of) for part in parts}
    texts["length"] = f"![{caption}](length.svg)" if svg else "One length so far."
    return texts, svg


def written(page: str, texts: dict[str, str]) -> str:
    """The page with its blocks as the records have them."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{texts[match[2]]}\n<!-- end -->"

    pattern = r"(<!-- findings\.py: (\w+) -->)\n.*?<!-- end -->"
    return re.sub(pattern, block, page, flags=re.DOTALL)


def main() -> None:
    for folder in sys.argv[1:]:
        for path in take(Path(folder)):
            print(path)
    texts, svg = blocks()
    for page in PAGES:
        page.write_text(written(page.read_text(), texts))
    if svg:
        (HERE / "length.svg").write_text(svg)


if __name__ == "__main__":
    main()
