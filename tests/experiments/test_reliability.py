"""experiments/reliability: its page says what its JSON files say; faults have tests."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/reliability"
TEXT = " ".join((FOLDER / "README.md").read_text().split())


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def kills_said(k: dict) -> str:
    where = ", ".join(f"{n} in {p}" for p, n in sorted(k["killed in"].items()))
    kinds = ", ".join(f"{n} {v}" for v, n in k["variants"].items())
    lost = k["epochs lost"]
    return (
        f"{k['kills']} kills by SIGKILL ({kinds}), each followed by the same command: "
        f"**{k['runs lost']} runs lost, {k['runs that differ']} that differ**; at most "
        f"{lost['most']:g} epoch of work lost, {lost['mean']:g} on average. The last "
        f"place passed before the kill: {where}."
    )


def controls_said(k: dict) -> str:
    c = k["controls"]
    seen = ", ".join(c["one weight by one unit in the last place"])
    return (
        f"one weight changed by one unit in the last place is named (`{seen}`), "
        f"another seed differs in {c['another seed, things that differ']} places, the "
        f"same again in {len(c['the same again'])}."
    )


def damage_said(d: dict) -> str:
    counts: Counter[str] = sum(map(Counter, d["restarts"].values()), Counter())
    ends = "; ".join(f"{n} {what}" for what, n in sorted(counts.items()))
    kinds = ", ".join(f"{n} {kind}" for kind, n in d["harms"].items())
    return (
        f"{d['damaged']} interrupted runs with damaged checkpoints ({kinds}): "
        f"**{d['undetected']} undetected, {d['tracebacks']} tracebacks**. The restart: "
        f"{ends}."
    )


def fuzz_said(f: dict) -> str:
    """All readers of the soak, by their counts; those that were not run by name."""
    soak = (FOLDER / "soak.py").read_text()
    names = set(re.findall(r"test_\w+\.py::test_ten_thousand_\w+", soak))
    assert f["readers"].keys() <= names
    missing = sorted(name.rpartition("_")[2] for name in names - f["readers"].keys())
    left = f" Not run at this size: {', '.join(missing)}." if missing else ""
    readers = ", ".join(
        f"{c['passing']:,} {name.rpartition('_')[2]}"
        for name, c in f["readers"].items()
    )
    failing = sum(c["failing"] for c in f["readers"].values())
    return (
        f"Random inputs a reader, by hypothesis: {readers}; **{failing} with a "
        f"traceback, a hang, a file outside the target or code run**.{left}"
    )


def long_said(k: dict) -> str:
    return " ".join(
        f"{k[name]['n']} {name} in one process: "
        f"{' → '.join(f'{mb:g}' for mb in k[name]['MB'])} MB, "
        f"{' → '.join(map(str, k[name]['descriptors']))} open files ({k['at']})."
        for name in ("jobs", "epochs")
    )


def sweep_said(k: dict) -> str:
    return (
        f"A sweep of {k['jobs']} jobs is planned in {k['plan seconds']:g} s and "
        f"reported in {k['report seconds']:g} s."
    )


SENTENCES = {
    "kills": (kills_said, controls_said),
    "damage": (damage_said,),
    "fuzz": (fuzz_said,),
    "long": (long_said,),
    "sweep": (sweep_said,),
}


MEASURED = [name for name in SENTENCES if (FOLDER / f"{name}.json").is_file()]


@pytest.mark.parametrize("name", MEASURED)
def test_the_page_says_what_was_measured(name):
    for say in SENTENCES[name]:
        assert " ".join(say(read(name)).split()) in TEXT


def test_nothing_was_lost():
    kills, damage = read("kills"), read("damage")
    assert kills["runs lost"] == kills["runs that differ"] == 0
    assert kills["tracebacks of the second start"] == 0
    assert kills["epochs lost"]["most"] <= 1
    controls = kills["controls"]
    assert controls["one weight by one unit in the last place"]
    assert controls["another seed, things that differ"]
    assert not controls["the same again"]
    assert damage["undetected"] == damage["tracebacks"] == 0
    fuzzed = read("fuzz")["readers"] if "fuzz" in MEASURED else {}
    for counts in fuzzed.values():
        assert counts["status"] == counts["failing"] == 0


TABLE = re.findall(r"^\| (.+) \| `(test_\w+)::(test_\w+)` \|$",
                   (FOLDER / "README.md").read_text(), re.MULTILINE)  # fmt: skip


def test_there_are_thirty_faults():
    assert len({fault for fault, _, _ in TABLE}) == len(TABLE) >= 30


@pytest.mark.parametrize(("fault", "file", "test"), TABLE)
def test_a_named_fault_has_its_test(fault, file, test):
    (path,) = (ROOT / "tests").rglob(f"{file}.py")
    assert f"\ndef {test}(" in path.read_text()
