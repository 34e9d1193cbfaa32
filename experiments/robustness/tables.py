"""The tables of this folder's page, from `robustness.json`: python tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resnet_se.data.test_sets.corruptions import MAIN, OURS

RESULT = json.loads(Path(__file__).with_name("robustness.json").read_text())
KINDS = {
    "aggre_label": "majority of three people",
    "random_label1": "one person",
    "worse_label": "the worst of three",
}


def percent(figures: dict[str, Any]) -> str:
    low, high = figures["acc_95"]
    return f"{figures['acc']:.2%} [{low:.2%}, {high:.2%}]"


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rule = tuple("---" if i == 0 else "---:" for i in range(len(head)))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def test_sets(r: dict[str, Any]) -> str:
    twins, here = r["twins"], r["corrupted"]
    rows = [
        ("its own test part", r["test"]),
        ("the same with TTA", r["test_tta"]),
        ("its images without a near duplicate in training", twins["without"]),
        ("those with one", twins["with"]),
        ("the first 1,017 in official order", r["first_1017"]),
        ("these 1,017 before compression (`arrays`)", r["lossless"]),
        ("15 corruptions × 5 severities of 1,000 images (`cifar10_c_here`)", here),
    ]
    cells = [(name, f"{f['images']:,}", percent(f)) for name, f in rows]
    return markdown(("test set", "images", "accuracy [95 %]"), cells)


def corruptions(r: dict[str, Any]) -> str:
    rows = []
    for name, severities in r["corrupted"]["by"].items():
        cells = [f"{100 * f['acc']:.1f}" for f in severities.values()]
        mean = f"{100 * r['corrupted']['by_corruption'][name]:.1f}"
        mark = "" if name in MAIN else " (not in the mean)"
        ours = ", ours" if name in OURS else ""
        rows.append((f"{name}{ours}{mark}", *cells, mean))
    return markdown(("corruption", "1", "2", "3", "4", "5", "mean"), rows)


def duplicates(r: dict[str, Any]) -> str:
    rows = [
        (place, *(f"{n:,}" for n in counts.values()))
        for place, counts in r["twins"]["counts"].items()
    ]
    return markdown(("pairs", "exact", "near", "with other labels"), rows)


def agreement(r: dict[str, Any]) -> str:
    ends = ("95 % or more", "80 to 95 %", "less than 80 %")
    rows = [
        (name, f"{b['images']:,}", f"{b['acc']:.1%}")
        for name, b in zip(ends, r["people"]["by_agreement"], strict=True)
    ]
    return markdown(("people who agree", "images", "accuracy"), rows)


def label_errors(r: dict[str, Any]) -> str:
    rows = []
    for kind, words in KINDS.items():
        f = r["label_errors"][kind]
        hits = f["right"]
        cells = (f"{f['wrong']:,}", f"{f['likely']:,}", f"{hits:,}")
        shares = (f"{hits / f['likely']:.0%}", f"{hits / f['wrong']:.0%}")
        rows.append((f"{words} (`{kind}`)", *cells, *shares))
    head = ("labels of", "wrong", "called likely", "of these wrong")
    return markdown((*head, "precision", "recall"), rows)


TABLES = (test_sets, corruptions, duplicates, agreement, label_errors)

if __name__ == "__main__":
    print("\n\n".join(table(RESULT) for table in TABLES))
