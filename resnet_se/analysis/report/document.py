"""The report as a document: its blocks in order, its page, and its files."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from resnet_se.analysis import time_to as times
from resnet_se.analysis.canvas import draw
from resnet_se.analysis.report import gates
from resnet_se.analysis.report.claims import claim_rows
from resnet_se.analysis.report.compare import Family, compare
from resnet_se.analysis.report.figures import Drawn, figures
from resnet_se.analysis.report.groups import Section, sections
from resnet_se.analysis.report.notes import (
    answers,
    left_out,
    notes,
    problems,
    still_open,
)
from resnet_se.analysis.report.ranks import rank_records, ranks
from resnet_se.analysis.report.runs import Loaded, frame, load
from resnet_se.analysis.report.tables import (
    ROWS,
    apart_table,
    cell_table,
    comparison_records,
    comparison_table,
    first_rows,
    group_records,
    group_table,
    latex,
    run_table,
)
from resnet_se.analysis.report.text import NONE, Block, Table, count, markdown
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file, check_folder, csv_cell

FOREST = "differences"  # the picture of all comparisons
METHOD = (
    "Accuracies are per cent of the test images, of the checkpoint with the best "
    "validation loss. Comparisons are of plain predictions, without TTA, with all "
    "seeds of both sides; of a factor, or of a pair run with several settings, over "
    "all cells at once.",
    "With two seeds or more: an interval for new seeds and new images. The noise from "
    "seed to seed is shrunk towards that of all recipes as far as they are alike "
    "(Smyth 2004); a recipe noisier than the others keeps its own. The interval is "
    "never narrower than that of the two sides' own noise at 96.5 %, each with the "
    "quantile of its own seeds (Banerjee 1962). What the choice of images adds is "
    "estimated beside it (Dorfman, Berbaum & Metz 1992).",
    "The comparisons on the same test images that can be decided are one family: "
    "their intervals hold all at once in 95 % of studies (Bonferroni). Better or worse "
    "where an interval leaves out 0; no difference of so many points where it holds 0 "
    "and lies within them; else not decided, which does not mean equal.",
    "Listed apart, by the number of seeds alone, are comparisons of two seeds where "
    "others have more, and of one. With one seed: McNemar's exact test (Dietterich "
    "1998) and an interval for new images, which speak of two trained networks.",
    "`a run wins`: of all pairs of a run of each side, those in which the first is the "
    "more accurate (Mann and Whitney's U; Agarwal et al. 2021), with a 95 % interval, "
    "not corrected (Newcombe 2006): 50 per cent is no difference.",
    "`worse / equal / better %`: the probabilities that the recipes differ by more "
    "than the margin of equivalence, one way or the other, or by less, where every "
    "difference was as likely beforehand (Benavoli et al. 2017; Kruschke 2018). They "
    "rest on the shrunk noise alone and are not corrected for the number of "
    "comparisons: no verdict, and the largest of many is too sure.",
    "`test ± of all images`: the deviation from seed to seed on images without end, "
    "less what independent mistakes on these few add (Jordan 2023); 0.00 where the "
    "seeds differ by no more than that.",
    "A seed is called far where it lies from the median of its recipe 20 times as far "
    "as is usual in the study. It counts like any other; its recipe's noise is then "
    "too great to decide anything, and has no part in the noise of the others.",
)


def document(
    loaded: Loaded, compared: list[tuple[Section, Family]], equivalence: float
) -> list[Block]:
    """Return the whole report as blocks, before any format."""
    finished = [*loaded.runs, *(run for run, _, _ in loaded.duplicates)]
    machines = sorted({r.machine for r in finished})
    letters = {
        m: chr(ord("A") + i) if i < 26 else str(i) for i, m in enumerate(machines)
    }
    experiments = {run.experiment for run in loaded.runs}
    counted = f"{count(len(loaded.runs), 'finished run')} of "
    counted += f"{count(len(experiments), 'experiment')}, made by "
    named, noted = problems(loaded, compared), notes(loaded, compared)
    drawn = [
        _pictures(figures(*pair, equivalence), _suffix(i))
        for i, pair in enumerate(compared)
    ]
    blocks: list[Block] = []
    for i, (section, family) in enumerate(compared):
        prefix = f"{section.name}: " if len(compared) > 1 else ""
        blocks += answers(family, equivalence, prefix)
        blocks += [block for block in drawn[i] if block.name.startswith(FOREST)]
        blocks += still_open(family, equivalence, prefix, _suffix(i))
    blocks.append(_head("In short"))
    blocks.append(Block("p", f"{counted}`resnet-se report` from `result.json` alone."))
    blocks += [Block("ul", items=_in_short(*pair, equivalence)) for pair in compared]
    if named or noted:
        text = f"Missing, failed, mixed: {count(len(named + noted), 'note')}"
        blocks.append(Block("notes", text, named + noted))
    for i, (section, family) in enumerate(compared):
        rest = [block for block in drawn[i] if not block.name.startswith(FOREST)]
        blocks += _section_blocks(section, family, equivalence, _suffix(i), rest)
    claims = claim_rows(compared, equivalence)
    if claims:
        warning = (
            "The paper trained on 45,000 images with a schedule that reaches beyond "
            "epoch 250. What was measured with other data, fewer epochs or smaller "
            "networks is comparable among itself, not to the paper's figures."
        )
        left = {"claimed", "measured", "where"}
        table = Table("", pd.DataFrame(claims), left)
        blocks += [_head("Claimed and measured"), Block("p", warning)]
        blocks.append(Block("table", table=table))
    long = len(loaded.runs) + len(loaded.duplicates) + len(loaded.unfinished) > ROWS
    found_of_gates = gates.blocks(loaded.runs)
    if found_of_gates:
        blocks += [_head("What the gates do", short="Gates"), *found_of_gates]
    return [
        *blocks,
        _head("Methods"),
        Block("ul", items=METHOD),
        _head("Every run"),
        Block("table", table=run_table(loaded, letters)),
        *([Block("p", f"{ROWS} are shown; all are in `runs.csv`.")] if long else []),
        Block("ul", items=[f"machine {v}: {k}" for k, v in letters.items()]),
    ]


def _head(text: str, kind: str = "h2", short: str = "", suffix: str = "") -> Block:
    anchor = re.sub(r"\W+", "-", (short or text).lower()).strip("-")
    return Block(kind, text, [short] if short else (), name=anchor + suffix)


def _section_blocks(
    section: Section,
    family: Family,
    equivalence: float,
    suffix: str,
    pictures: list[Block],
) -> list[Block]:
    d, images = section.data, section.images
    tested = "" if images == d["test"] else f", {images:,} of them tested"
    heading = f"{d['name']}: {d['test']:,} test images{tested} ({d['fingerprint']})"
    facts = [f"origin: {d['origin']}"]
    if d.get("fallback"):
        facts.insert(0, "synthetic images in place of those asked for, not found")
    facts += [f"versions: {v}" for v in sorted({run.software for run in section.runs})]
    facts += [f"machine: {v}" for v in sorted({run.machine for run in section.runs})]
    table, shared = group_table(section)
    if shared:
        facts.append(f"in common: {shared}")
    blocks = [
        _head(heading, short=section.name),
        Block("ul", items=facts),
        Block("table", table=first_rows(table)),
        Block("p", f"In full precision: `table{suffix}.csv`, `runs.csv`."),
    ]
    if family.comparisons:
        blocks.append(_head("Comparisons", "h3", suffix=suffix))
    tables = [
        comparison_table(family, equivalence) if family.decided else None,
        apart_table(family, equivalence) if family.apart else None,
        cell_table(family) if family.cells else None,
    ]
    blocks += [Block("table", table=first_rows(t)) for t in tables if t is not None]
    blocks.append(_head("Figures", "h3", suffix=suffix))
    return blocks + pictures


def _pictures(drawn: Iterable[Drawn], suffix: str) -> list[Block]:
    return [
        Block("figure", caption, name=f"{name}{suffix}", svg=draw(figure))
        for name, caption, figure in drawn
    ]


def _in_short(section: Section, family: Family, equivalence: float) -> list[str]:
    from scipy import special

    table, _ = group_table(section)
    rows = dict(zip(map(id, section.rows), table.cells.to_dict("records"), strict=True))
    best, k = section.best, len(section.rows)
    row = rows[id(best)]
    tta = "" if row["test TTA %"] == NONE else f", with TTA {row['test TTA %']}"
    lines = [
        f"{section.name}, best by validation: {row['run']}, n = {row['n']}: validation "
        f"{row['val %']}, test {row['test %']}{tta} per cent"
    ]
    if k > 1:
        top = max(section.rows, key=lambda g: sum(g.accuracies) / len(g.accuracies))
        inflated = special.ndtri((k - 0.375) / (k + 0.25))  # Blom: the largest of k
        lines.append(
            f"highest of {k} tests: {rows[id(top)]['test %']} of "
            f"{rows[id(top)]['run']}; chosen by the test images themselves, so "
            f"inflated by up to {inflated:.1f} standard deviations"
        )
    if family.decided:
        counts = Counter(c.verdict(equivalence) for c in family.decided)
        words = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
        lines.append(f"of {count(len(family.decided), 'comparison')}: {words}")
    if family.apart:
        lines.append(f"{count(len(family.apart), 'comparison')} of too few seeds")
    if family.far:
        lines.append(
            f"{count(len(family.far), 'seed')} far from the others of the recipe"
        )
    return lines


def _suffix(i: int) -> str:
    """Return the suffix of the i-th section's files: none for the first."""
    return "" if i == 0 else f"-{i + 1}"


# --- files -------------------------------------------------------


def page(title: str, blocks: list[Block]) -> str:
    """Return one HTML file that loads nothing: style and pictures stand in it."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup, escape

    def code(text: str) -> Markup:
        if "`" not in text:  # as in most of thousands of cells
            return escape(text)
        return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))

    def look(cell: str, left: bool) -> str | None:
        kinds = {
            "better": "better",
            "worse": "worse",
            "no difference": "same",
            "not decided": "dim",
            "not measured": "dim",
        }
        styles = [kind for words, kind in kinds.items() if cell.startswith(words)]
        styles += ["l"] if left else []
        styles += ["long"] if left and len(cell) > 24 else []
        return " ".join(styles) or None

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, loader=folder)
    environment.filters |= {
        "quoted": lambda text: quote(text.strip(), safe=" =/:;,.-+"),
        "code": code,
        "look": look,
    }
    template = environment.get_template("page.html.j2")
    return template.render(title=title, blocks=blocks) + "\n"


def write(
    out: Path,
    title: str,
    blocks: list[Block],
    loaded: Loaded,
    compared: list[tuple[Section, Family]],
    equivalence: float,
) -> list[Path]:
    """Write all files of the report; return those that a person opens."""
    tables = [b.table for b in blocks if b.table and b.table.caption]
    runs = frame([*loaded.runs, *loaded.unfinished])
    texts = {
        "report.html": page(title, blocks),
        "REPORT.md": markdown(title, blocks),
        "tables.tex": latex(tables),
        "runs.csv": _csv(runs),
    }
    for i, (section, family) in enumerate(compared):
        texts[f"table{_suffix(i)}.csv"] = _csv(group_records(section))
        if family.comparisons:
            records = comparison_records(family, equivalence)
            texts[f"comparisons{_suffix(i)}.csv"] = _csv(records)
        ranked = ranks(section, family.study)
        if ranked:
            texts[f"ranks{_suffix(i)}.csv"] = _csv(rank_records(section, ranked))
    pictures = {f"figures/{b.name}.svg": b.svg for b in blocks if b.svg}
    for name, text in (texts | pictures).items():
        with atomic_file(out / name) as file:
            file.write(text.encode())
    return [out / name for name in texts]


def _csv(table: pd.DataFrame) -> str:
    table = table.rename(columns=csv_cell).map(
        lambda cell: csv_cell(cell) if isinstance(cell, str) else cell
    )
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def report(
    paths: Iterable[str],
    out: Path,
    name: str,
    where: Iterable[tuple[str, str]] = (),
    factor: Iterable[str] = (),
    against: tuple[str, str] | None = None,
    equivalence: float = 0.005,
    trials: bool = False,
    time_to: float | None = None,
) -> int:
    """Write the report; return the exit status.

    Args:
        trials: include runs of `budget=smoke` and `debug=…`.
        time_to: a validation accuracy in 0..1; with the time until runs had it.

    Raises:
        UserError: no finished run, or none that `where` admits.
    """
    loaded = load(paths)
    if not trials:
        loaded.leave_out_trials()
    if not loaded.runs:
        for problem in loaded.problems:
            print(f"not used: {problem}", file=sys.stderr)
        only = f" but {left_out(loaded)}" if loaded.trials else ""
        raise UserError(f"PATHS: no finished run among them{only}")
    loaded.where(where)
    check_folder(out)
    compared = [(s, compare(s, factor, against)) for s in sections(loaded.runs)]
    blocks = document(loaded, compared, equivalence)
    for i, pair in enumerate(compared if time_to else ()):
        blocks.append(_head("Time to accuracy", suffix=_suffix(i)))
        blocks += times.blocks(*pair, time_to or 0.0, _suffix(i))
    for path in write(out, name, blocks, loaded, compared, equivalence):
        print(path)
    named = problems(loaded, compared)
    for problem in named:
        print(problem, file=sys.stderr)
    return 1 if named else 0
