"""Tables, tests, figures and one HTML page from the `result.json` files of many runs.

    python -m resnet_se.report RUNS... [--out DIR] [--name NAME]

RUNS are run directories, directories with `result.json` files at any depth, or such
files themselves.  Writes REPORT.md, report.html, table.csv, table.tex and figures/ into
DIR; every number comes from a `result.json`.  Exit status 1: a file could not be used;
2: none could.
"""

# Here stands what the report says; `comparison` finds, groups and compares the runs,
# `report_figures` draws, `pages` turns the blocks into Markdown and HTML.

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_se.comparison import (
    EXPERIMENTS,
    FINAL,
    VERDICTS,
    Comparison,
    Group,
    Loaded,
    Run,
    Section,
    compare,
    load,
    sections,
)
from resnet_se.pages import (
    NOT_MEASURED,
    Block,
    Table,
    accuracy,
    count,
    csv_text,
    html_page,
    latex,
    markdown,
    number,
    p_value,
    points,
)
from resnet_se.report_figures import draw, figures
from resnet_se.results import atomic_file, unpack_labels
from resnet_se.statistics import mean_std

# --- tables ------------------------------------------------------


def records(section: Section) -> list[dict[str, Any]]:
    """The main table with full precision, one dict a group: what all formats show.

    Speed, time and memory are means over the seeds of one machine: {machine: mean}.
    """

    def by_machine(group: Group, key: str) -> dict[str, float]:
        found = defaultdict(list)
        for run in group.runs:
            if run.train[key] is not None:
                found[run.machine].append(run.train[key])
        return {machine: mean_std(v)[0] for machine, v in sorted(found.items())}

    return [
        {
            "experiment": group.experiment,
            "config_hash": group.config_hash,
            "setting": group.setting,
            "seeds": list(group.seeds),
            "val_acc": group.spread("val", "acc"),
            "test_acc": group.spread("test", "acc"),
            "test_acc_tta": group.spread("test", "acc_tta"),
            "parameters": group.runs[0].model["total"],
            **{k: group.runs[0].model[k] for k in ("trainable", "macs", "layers")},
            **{k: group.span(k) for k in ("epochs", "steps")},
            **{
                k: by_machine(group, k)
                for k in ("images_per_second", "seconds", "peak_memory_mb")
            },
        }
        for group in section.groups
    ]


def main_table(section: Section, letters: dict[str, str]) -> Table:
    """Mean ± deviation over seeds; a column of its own for each machine's speed."""
    machines = section.machines
    head = ["experiment", "n", "val %", "test %", "test TTA %", "setting", "hash"]
    head += ["epochs", "steps", "parameters", "MMAC"]
    for machine in machines:
        letter = f" {letters[machine]}" if len(machines) > 1 else ""
        head += [f"{name}{letter}" for name in ("images/s", "minutes", "memory MB")]
    rows = []
    for r in records(section):
        row = [r["experiment"], str(len(r["seeds"]))]
        row += [accuracy(r[k]) for k in ("val_acc", "test_acc", "test_acc_tta")]
        row += [r["setting"] or "–", r["config_hash"], r["epochs"], r["steps"]]
        row += [f"{r['parameters']:,}", f"{r['macs'] / 1e6:.1f}"]
        for machine in machines:
            row.append(number(r["images_per_second"].get(machine)))
            row.append(number(r["seconds"].get(machine), 1, unit=60))
            row.append(number(r["peak_memory_mb"].get(machine)))
        rows.append(row)
    caption = f"{section.name}: mean ± sample standard deviation over n seeds"
    return Table(caption, head, rows, left=(0, 5, 6))


def flat_records(section: Section) -> list[dict[str, Any]]:
    """The main table for a CSV file: text and numbers only."""
    d, rows = section.data, []
    for record in records(section):
        row = {"data": d["name"], "fingerprint": d["fingerprint"]}
        row |= {"train_images": d["train"], "val_images": d["val"]}
        row["test_images"] = section.images
        for key, value in record.items():
            if key.endswith(("acc", "acc_tta")):
                mean, std = value or (None, None)
                row |= {f"{key}_mean": mean, f"{key}_std": std}
            elif key == "seeds":
                row |= {"n": len(value), "seeds": " ".join(map(str, value))}
            elif isinstance(value, dict):
                row[key] = " | ".join(f"{v:.6g}" for v in value.values())
            else:
                row[key] = value
        row["hardware"] = " | ".join(record["seconds"])
        rows.append(row)
    return rows


def comparison_table(section: Section, made: list[Comparison]) -> Table:
    head = ["question", "pair", "seeds", "difference", "95 % interval"]
    head += ["McNemar p by seed", "p", "p (Holm)", "verdict"]
    rows = []
    for c in made:
        row = [c.question, c.name, str(c.n), points(c.mean), _interval(c)]
        row += [" ".join(map(p_value, c.mcnemar)), p_value(c.p), p_value(c.p_holm)]
        rows.append([*row, c.said])
    caption = (
        f"{section.name}: differences of test accuracy in percentage points, "
        f"a family of {len(made)}"
    )
    return Table(caption, head, rows, left=(0, 1, 8))


def run_table(loaded: Loaded, letters: dict[str, str]) -> Table:
    """Every file that was read, and what became of it."""
    head = ["file", "status", "experiment", "seed", "hash", "data", "hardware"]
    head += ["epochs", "commit", "test %"]
    rows = []
    finished = [(run, "finished") for run in loaded.runs]
    for run, status in finished + [(r, "duplicate") for r, _, _ in loaded.duplicates]:
        row = [run.path, status, run.experiment, str(run.seed), run.config_hash]
        row += [
            run.data["fingerprint"],
            letters[run.machine],
            f"{run.train['epochs']:,}",
            run.commit,
        ]
        rows.append([*row, f"{100 * run.test['acc']:.2f}"])
    for run in loaded.unfinished:
        row = [run.path, run.status, run.experiment, str(run.seed), run.config_hash]
        rows.append([*row, "–", "–", "–", run.commit, "–"])
    return Table("", head, rows, left=(0, 1, 2, 4, 5, 6, 8))


# --- claimed and measured ----------------------------------------

Measured = list[tuple[str, list[Group], int]]  # value, the groups it is of, n


def _accuracies(part: str, key: str) -> Callable[..., Measured]:
    def measure(section: Section, _: list[Comparison]) -> Measured:
        found = [(g.spread(part, key), g) for g in section.of(FINAL)]
        return [(f"{accuracy(s)} %", [g], len(g.runs)) for s, g in found if s]

    return measure


def _differences(above: str, below: str) -> Callable[..., Measured]:
    def measure(_: Section, made: list[Comparison]) -> Measured:
        return [
            (f"{c.name}: {_gain(c)}, {c.said}", [c.treatment, c.baseline], c.n)
            for c in made
            if (c.treatment.prefix, c.baseline.prefix) == (above, below)
        ]

    return measure


def _gain(c: Comparison) -> str:
    return f"{points(c.mean)} {_interval(c)} points"


def _interval(c: Comparison) -> str:
    low, high = c.interval
    return f"[{points(low)}, {points(high)}]"


def _training_accuracy(section: Section, _: list[Comparison]) -> Measured:
    found = []
    for group in section.of(FINAL):
        columns = [run.history.get("train/acc") for run in group.runs]
        last = [column[-1] for column in columns if column and column[-1] is not None]
        if last:
            text = f"{accuracy(mean_std(last))} % (last epoch, augmented images)"
            found.append((text, [group], len(last)))
    return found


def _tta(section: Section, _: list[Comparison]) -> Measured:
    found = []
    for group in section.of(FINAL):
        packed = [run.test.get("predicted_tta") for run in group.runs]
        if None not in packed:
            rows = [
                (unpack_labels(p) == run.labels) - run.right
                for p, run in zip(packed, group.runs, strict=True)
            ]
            c = Comparison("", group, group, np.stack(rows))
            found.append((f"{FINAL} with TTA − without: {_gain(c)}", [group], c.n))
    return found


CLAIMS: tuple[tuple[str, str, Callable[..., Measured]], ...] = (
    ("accuracy gained by SE", "about 10 %", _differences("e07", "e03")),
    ("accuracy gained by SE, final recipe", "about 10 %", _differences("e14", "e21")),
    ("test accuracy (abstract)", "94.10 %", _accuracies("test", "acc")),
    ("test accuracy (abstract), with TTA", "94.10 %", _accuracies("test", "acc_tta")),
    ("validation accuracy (results)", "94.10 %", _accuracies("val", "acc")),
    ("training accuracy", "99.99 %", _training_accuracy),
    ("batch 128 is optimal: 64", "not better", _differences("e15", "e14")),
    ("batch 128 is optimal: 256", "not better", _differences("e16", "e14")),
    ("cosine improves on a fixed rate", "significantly", _differences("e12", "e11")),
    ("plateau improves on a fixed rate", "significantly", _differences("e13", "e11")),
    ("TTA improves the accuracy", "yes", _tta),
)


def claim_table(found: list[tuple[Section, list[Comparison]]]) -> Table:
    """Every claim of the paper beside all that was measured of it."""
    rows = _counted([section for section, _ in found])
    for claim, claimed, measure in CLAIMS:
        measured = [
            [claim, claimed, value, str(n), _conditions(section, groups)]
            for section, made in found
            for value, groups, n in measure(section, made)
        ]
        rows += measured or [[claim, claimed, NOT_MEASURED, "–", "–"]]
    head = ["claim of the paper", "claimed", "measured", "n", "where"]
    return Table("", head, rows, left=(0, 1, 2, 4))


def _counted(found: list[Section]) -> list[list[str]]:
    """Sizes of networks: of the runs where there are some, else as `models` counts."""

    def model(prefix: str, trainable: int, total: int) -> tuple[int, int, int, str]:
        for section in found:
            for group in section.of(prefix):
                m = group.runs[0].model
                return m["trainable"], m["total"], m["layers"], group.experiment
        return trainable, total, 80, "`python -m resnet_se.models`"

    se, plain = model("e07", 4_617_010, 4_628_210), model("e03", 4_581_898, 4_593_098)
    _, total, layers, final = model(FINAL, 4_617_010, 4_628_210)
    where = " and ".join(dict.fromkeys([se[3], plain[3]]))
    share = f"{100 * (se[0] / plain[0] - 1):.2f} %"
    added = f"{share} ({se[0]:,} against {plain[0]:,})"
    size, claimed = "parameters, layers of the final network", "4,628,210, 80"
    return [
        ["parameters added by SE", "about 10 %", added, "–", f"counted: {where}"],
        [size, claimed, f"{total:,}, {layers}", "–", f"counted: {final}"],
    ]


def _conditions(section: Section, groups: list[Group]) -> str:
    epochs = "/".join(dict.fromkeys(g.span("epochs") for g in groups))
    setting = groups[0].setting
    return f"{section.name}, {epochs} epochs{f', {setting}' if setting else ''}"


# --- what is missing or odd --------------------------------------


def global_notes(loaded: Loaded, found: list[Section]) -> list[str]:
    """Files not used, copies, and what differs between the runs."""
    notes = [f"not used: {problem}" for problem in loaded.problems]
    for run in loaded.unfinished:
        why = run.result.get("error")
        reason = f": {_scrub(why)}" if why else ""
        notes.append(f"{run.status}: {run.title}, {run.path}{reason}")
    for run, first, conflict in loaded.duplicates:
        what = "conflict: same run, other numbers" if conflict else "duplicate"
        notes.append(f"{what}: {run.title}: {run.path} is not counted, {first.path} is")
    if len(found) > 1:
        names = "; ".join(section.name for section in found)
        notes.append(
            f"{len(found)} different data sets or subsets, kept apart: {names}"
        )
    for what in ("commit", "software"):
        of = Counter(getattr(run, what) for run in loaded.runs)
        if len(of) > 1:
            kinds = "; ".join(f"{k} ({n} runs)" for k, n in sorted(of.items()))
            notes.append(f"runs of different {what}: {kinds}")
    dirty = sum(run.commit.endswith("changes") for run in loaded.runs)
    if dirty:
        notes.append(f"{dirty} runs of a working tree with uncommitted changes")
    return notes


def _scrub(text: str) -> str:
    """One line without the folders of somebody's machine."""
    line = " ".join(str(text).split())
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "…/", line)[:200]


def section_notes(section: Section, unfinished: list[Run]) -> list[str]:
    """Missing seeds and experiments, several configurations, mixed machines."""
    notes = []
    ended = {(run.experiment, run.seed): f", {run.status}" for run in unfinished}
    seeds = sorted({run.seed for run in section.runs})
    hashes = defaultdict(list)
    for group in section.groups:
        hashes[group.experiment].append(group.config_hash)
        for seed in seeds:
            if seed not in group.seeds:
                status = ended.get((group.experiment, seed), "")
                notes.append(f"missing: {group.title} seed {seed}{status}")
        machines = Section([group]).machines
        if len(machines) > 1:
            notes.append(
                f"{group.title} ran on several machines, "
                f"speeds are not averaged: {'; '.join(machines)}"
            )
    for experiment, several in hashes.items():
        if len(several) > 1:
            notes.append(
                f"{experiment} has {len(several)} configurations, a row each: "
                f"{', '.join(several)}"
            )
    missing = []
    for e in EXPERIMENTS:
        if not section.of(e):
            how = sorted({r.status for r in unfinished if r.experiment[:3] == e})
            missing.append(f"{e} ({', '.join(how)})" if how else e)
    if section.numbered and missing:
        notes.append(f"missing experiments of e01–e22: {', '.join(missing)}")
    return notes


# --- the document ------------------------------------------------

METHOD = (
    "Accuracies are per cent of the test images, of the checkpoint with the best "
    "validation loss. Comparisons are of plain predictions, without TTA, image by "
    "image over the seeds that both experiments have.",
    "Interval: 2,000 bootstrap resamples of seeds and images, each redrawn by itself "
    "(Owen 2007; Davison & Hinkley 1997). With two or three seeds that differ much it "
    "is too narrow (simulated: it covers 85 %); the verdict goes by p.",
    "p with one seed: McNemar's exact test (Dietterich 1998), which speaks of these "
    "two trained networks only. With more: a t test that covers new seeds and new "
    "images. The noise from seed to seed is taken as alike in all experiments of one "
    "setting and pooled over them, as in a one-way analysis of variance (Fisher 1925), "
    "but never below the pair's own; what the choice of images adds is estimated "
    "beside it (Dorfman, Berbaum & Metz 1992). McNemar's counts are not pooled over "
    "seeds: the same images would be taken for new ones.",
    "Verdict: better or worse where p, corrected by Holm (1979) for all comparisons "
    "on the same data, is below 0.05; else within noise, which does not mean equal.",
    "Setting: the run's overrides but for experiment, seed and what cannot change the "
    "result. Only runs of one setting are compared.",
)


def document(loaded: Loaded, name: str) -> tuple[list[Block], list[Section]]:
    """The whole report as blocks, before any format."""
    found = sections(loaded.runs)
    compared = [(section, *compare(section)) for section in found]
    finished = [*loaded.runs, *(run for run, _, _ in loaded.duplicates)]
    machines = sorted({run.machine for run in finished})
    letters = {machine: chr(ord("A") + i) for i, machine in enumerate(machines)}
    notes = global_notes(loaded, found)
    for section in found:
        prefix = f"{section.name}: " if len(found) > 1 else ""
        notes += [prefix + n for n in section_notes(section, loaded.unfinished)]

    blocks = [
        Block("h1", name),
        Block(
            "p",
            f"{count(len(loaded.runs), 'finished run')} of "
            f"{count(len({r.experiment for r in loaded.runs}), 'experiment')}, "
            "made by `python -m resnet_se.report` from the `result.json` files alone.",
        ),
        *(Block("ul", items=_in_short(section, made)) for section, made, _ in compared),
        Block("h2", "Missing, failed, mixed"),
        Block("ul", items=notes) if notes else Block("p", "Nothing."),
    ]
    for i, (section, made, missing) in enumerate(compared):
        blocks += _section_blocks(section, made, missing, letters, _suffix(i))
    return [
        *blocks,
        Block("h2", "Claimed and measured"),
        Block(
            "p",
            "The paper trained on CIFAR-10 as it is distributed, 45,000 images, with a "
            "schedule that reaches beyond epoch 250. Figures measured on another copy "
            "of the data, or with fewer epochs or images, are not comparable to the "
            "paper's; differences between them are only among themselves.",
        ),
        Block("table", table=claim_table([(s, m) for s, m, _ in compared])),
        Block("h2", "How the numbers are made"),
        Block("ul", items=METHOD),
        Block("h2", "Every run"),
        Block("table", table=run_table(loaded, letters)),
        Block("ul", items=[f"hardware {v}: {k}" for k, v in letters.items()]),
    ], found


def _section_blocks(
    section: Section,
    made: list[Comparison],
    missing: list[str],
    letters: dict[str, str],
    suffix: str,
) -> list[Block]:
    d, images = section.data, section.images
    tested = "" if images == d["test"] else f", the first {images:,} of them tested"
    heading = (
        f"{d['name']}: {d['train']:,} to train on, {d['val']:,} to validate, "
        f"{d['test']:,} to test{tested} ({d['fingerprint']})"
    )
    facts = [f"origin: {d['origin']}; split seed {d['split_seed']}"]
    if d.get("fallback"):
        facts.insert(0, "synthetic images in place of CIFAR-10, which was not found")
    facts += [f"hardware {letters[machine]}: {machine}" for machine in section.machines]
    facts += [f"versions: {v}" for v in sorted({run.software for run in section.runs})]
    blocks = [
        Block("h2", heading, items=[section.name]),
        Block("ul", items=facts),
        Block("table", table=main_table(section, letters)),
        Block("p", f"In full precision: `table{suffix}.csv`; for LaTeX: `table.tex`."),
    ]
    if section.numbered:
        blocks.append(Block("h3", "Comparisons"))
        if any(c.n == 1 for c in made):
            warning = (
                "One seed: the noise from seed to seed is not measured, so these "
                "verdicts are of single trained networks, not of the recipes."
            )
            blocks.append(Block("p", warning))
        if made:
            blocks.append(Block("table", table=comparison_table(section, made)))
        if missing:
            blocks += [Block("p", "Not compared:"), Block("ul", items=missing)]
    drawn = figures(section, made)
    if drawn:
        blocks.append(Block("h3", "Figures"))
    for name, (caption, figure) in drawn.items():
        items = [f"{name}{suffix}"]
        blocks.append(Block("figure", caption, items, drawn=draw(figure)))
    return blocks


def _in_short(section: Section, made: list[Comparison]) -> list[str]:
    best = section.best
    lines = [
        f"{section.name}: best test accuracy {accuracy(best.spread('test', 'acc'))} % "
        f"({best.experiment}, n = {len(best.runs)}, {best.span('epochs')} epochs)"
    ]
    lines += [
        f"{group.experiment}: test {accuracy(group.spread('test', 'acc'))} %, "
        f"with TTA {accuracy(group.spread('test', 'acc_tta'))} %, "
        f"validation {accuracy(group.spread('val', 'acc'))} %; "
        f"the paper says 94.10 %; n = {len(group.runs)}"
        f"{f', {group.setting}' if group.setting else ''}"
        for group in section.of(FINAL)
    ]
    if made:
        counts = Counter(c.verdict for c in made)
        words = ", ".join(f"{counts[v]} {v}" for v in VERDICTS)
        words += " (one seed)" if all(c.n == 1 for c in made) else ""
        lines.append(f"of {count(len(made), 'paired comparison')}: {words}")
    return lines


def _suffix(i: int) -> str:
    """Of the i-th section's files: none of the first."""
    return "" if i == 0 else f"-{i + 1}"


# --- command line ------------------------------------------------


def write(out: Path, blocks: list[Block], found: list[Section]) -> list[Path]:
    """All files of the report; returns those that a person opens."""
    captioned = [b.table for b in blocks if b.table and b.table.caption]
    texts = {
        "REPORT.md": markdown(blocks),
        "report.html": html_page(blocks),
        "table.tex": latex(captioned),
    }
    for i, section in enumerate(found):
        texts[f"table{_suffix(i)}.csv"] = csv_text(flat_records(section))
    files = {name: text.encode() for name, text in texts.items()}
    for block in blocks:
        if block.drawn:
            files[f"figures/{block.items[0]}.png"] = block.drawn["png"]
    for name, content in files.items():
        with atomic_file(out / name) as file:
            file.write(content)
    return [out / name for name in texts]


def report(arguments: Sequence[str], out: Path, name: str) -> int:
    """Writes the report; the exit status."""
    loaded = load(arguments)
    for problem in loaded.problems:
        print(f"not used: {problem}", file=sys.stderr)
    if not loaded.runs:
        print("error: RUNS: no finished run among them", file=sys.stderr)
        return 2
    for path in write(out, *document(loaded, name)):
        print(path)
    return 1 if loaded.problems else 0


def main() -> None:
    """Console entry: `resnet-se report …`."""
    parser = argparse.ArgumentParser(
        prog="resnet-se report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR")
    parser.add_argument("--name", default="resnet-se: what was measured")
    asked = parser.parse_args()
    sys.exit(report(asked.runs, asked.out, asked.name))


if __name__ == "__main__":
    main()
