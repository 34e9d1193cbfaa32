"""Kills, damages and long lives of a tiny training; see the README.

    python experiments/reliability/soak.py kills --work DIR    # 220 random kills
    python experiments/reliability/soak.py damage --work DIR   # 200 damaged checkpoints
    python experiments/reliability/soak.py long --work DIR     # 200 jobs, 1,000 epochs
    python experiments/reliability/soak.py sweep --work DIR    # 500 jobs, 500 records
    python experiments/reliability/soak.py fuzz --work DIR     # 10,000 inputs a reader

Each leaves one JSON here.  Every trial is a line of a file in DIR: typed again, a
command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attempts import PLACES, TINY, VARIANTS, attempt, differences, run_of

HERE = Path(__file__).resolve().parent


# --- trials ------------------------------------------------------


class Trials:
    """Lines of a file in the work folder: a trial that is there is not done again."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {(t := json.loads(line))["name"]: t for line in lines}

    def run(
        self, name: str, trial: Callable[[], dict[str, Any]], so_far: bool = False
    ) -> None:
        if not so_far and name not in self.done:
            from resnet_se.utils.system import environment

            commit = (environment()["git"] or {}).get("commit")
            self.done[name] = {"name": name, "commit": commit, **trial()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[name]) + "\n")
            print(json.dumps(self.done[name]), flush=True)


def reference(work: Path, variant: str, *more: str, name: str = "") -> dict[str, Any]:
    """An uninterrupted run of a variant, made once; its seconds and its places."""
    folder = work / "reference" / (name or variant)
    path = folder / "end.json"
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        end = attempt(folder, (*VARIANTS[variant], *more))
        assert end.status == 0, end.said
        notes = Counter((folder / "notes").read_text())
        path.write_text(json.dumps({"seconds": end.seconds, "places": notes}))
    return {"folder": folder, **json.loads(path.read_text())}


def _plan(single: int, pairs: int, sam: int) -> Iterator[tuple[str, str]]:
    """(variant, place) of every kill; place `any` is any moment."""
    variants = [name for name in VARIANTS if name not in ("two ranks", "sam")]
    for i in range(single):
        turn, which = divmod(i, len(variants))
        yield variants[which], _place(turn)
    for i in range(pairs):
        yield "two ranks", ("all", "launcher", "rank")[i % 3]
    for turn in range(sam):  # which came later
        yield "sam", _place(turn)


def _place(turn: int) -> str:
    """Two turns in five where a random moment would seldom be."""
    return "cver"[(turn // 5 * 2 + turn % 5) % 4] if turn % 5 < 2 else "any"


def kill_once(
    work: Path, variant: str, place: str, seed: str, tmpdir: str
) -> dict[str, Any]:
    """One kill, the same command again, and what differs from a run without one."""
    draw, whole = random.Random(seed), reference(work, variant)
    folder, overrides = work / "trial", VARIANTS[variant]
    told: dict[str, Any] = {}
    if variant == "TMPDIR elsewhere":
        told["tmpdir"] = tmpdir
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if place in PLACES:
            when = {"kill": f"{place}:{draw.randint(1, whole['places'][place])}"}
        elif place == "any":
            when = {"after": draw.uniform(0, whole["seconds"])}
        else:  # most of the seconds of ranks go into starting them
            places = sum(whole["places"].values())
            when = {"at": draw.randint(1, places - 1), "whom": place}
        end = attempt(folder, overrides, **told, **when)
        if end.status != 0:  # else it was done before the kill came
            break
    notes = folder / "notes"
    where = (notes.read_text() if notes.exists() else "")[-1:]
    second = attempt(folder, overrides, **told)
    while "another process" in second.said:
        time.sleep(1)  # ranks go with their launcher within a moment
        second = attempt(folder, overrides, **told)
    steps, normal = notes.read_text().count("t"), whole["places"]["t"]
    epochs = 3 if variant == "two ranks" else 5
    differing = ["no result"] if second.status else differences(
        run_of(folder), run_of(whole["folder"])
    )  # fmt: skip
    if differing:
        shutil.copytree(folder, work / "kept" / seed.replace(" ", "-"))
    return {
        "variant": variant,
        "place": place,
        "killed in": PLACES.get(where, "start"),
        "differs": differing,
        "epochs_lost": round((steps - normal) / normal * epochs, 3),
        "traceback": "Traceback" in second.said,
    }


def controls(work: Path) -> dict[str, Any]:
    """What the comparison must see: one weight's last bit, another seed."""
    from resnet_se.runs import checkpoint

    whole = run_of(reference(work, "plain")["folder"])
    other = run_of(reference(work, "plain", "seed=1", name="seed1")["folder"])
    again = run_of(reference(work, "plain", name="again")["folder"])
    changed = work / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(whole, changed)
    path = changed / "checkpoints/best.ckpt"
    loaded = checkpoint.read(path)
    weight = loaded["state_dict"]["net.head.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(math.inf))
    checkpoint.write(path, loaded)
    return {
        "one weight by one unit in the last place": differences(changed, whole),
        "another seed, things that differ": len(differences(other, whole)),
        "the same again": differences(again, whole),
    }


def kills(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """The 220 kills, and the negative controls."""
    trials = Trials(work / "kills.jsonl")
    pairs, sam = told.n // 20, told.n // 10
    for i, (variant, place) in enumerate(_plan(told.n - pairs, pairs, sam)):
        name = f"{i} {variant} {place}"
        trial = partial(kill_once, work, variant, place, name, told.tmpdir)
        trials.run(name, trial, told.so_far)
    done = list(trials.done.values())
    lost = [t["epochs_lost"] for t in done]
    return {
        "kills": len(done),
        "variants": Counter(t["variant"] for t in done),
        "killed in": Counter(t["killed in"] for t in done),
        "commits": Counter(t["commit"] for t in done),
        "runs lost": sum(t["differs"] == ["no result"] for t in done),
        "runs that differ": sum(bool(t["differs"]) for t in done),
        "tracebacks of the second start": sum(t["traceback"] for t in done),
        "epochs lost": {"most": max(lost), "mean": round(sum(lost) / len(lost), 3)},
        "controls": controls(work),
    }


# --- damage ------------------------------------------------------


def _flip(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(1, len(content)) :]


def _zero_page(content: bytearray, draw: random.Random) -> None:
    begin = draw.randrange(len(content)) // 4096 * 4096
    content[begin : begin + 4096] = bytes(len(content[begin : begin + 4096]))


def _empty(content: bytearray, draw: random.Random) -> None:
    content.clear()


HARMS = {"flip": _flip, "truncate": _truncate, "zero page": _zero_page, "empty": _empty}
FILES = (("last",), ("best",), ("last", "previous"), ("last", "previous", "best"))
SWAPS = (  # file, what it is replaced with; `other`: of a run with another seed
    ("last", "best"),
    ("best", "last"),
    ("best", "previous"),
    ("last", "other last"),
    ("best", "other best"),
)


def damage_once(work: Path, variant: str, harm: str, seed: str) -> dict[str, Any]:
    """Damages an interrupted run's checkpoints; what its restart does."""
    from resnet_se.runs import checkpoint
    from resnet_se.utils.errors import UserError

    draw, whole = random.Random(seed), reference(work, variant)
    other = reference(work, variant, "seed=1", name=f"{variant} seed1")["folder"]
    base, folder = work / "interrupted" / variant, work / "trial"
    if not base.exists():  # killed in the fourth epoch's validation
        assert attempt(base, VARIANTS[variant], kill="v:4").status is None
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    held = run_of(folder) / "checkpoints"
    unseen: list[str] = []
    if harm == "swap":
        target, source = draw.choice(SWAPS)
        path = run_of(other) / "checkpoints" if "other" in source else held
        old = (held / f"{target}.ckpt").read_bytes()
        shutil.copy(path / f"{source.split()[-1]}.ckpt", held / f"{target}.ckpt")
        if path == held:
            (held / f"{source}.ckpt").write_bytes(old)
        harmed: tuple[str, ...] = (target, source)
    else:
        harmed = draw.choice(FILES)
        for name in harmed:
            path = held / f"{name}.ckpt"
            before, content = path.read_bytes(), bytearray(path.read_bytes())
            while content == before:  # a page of zeros is zeroed in vain
                HARMS[harm](content, draw)
            path.write_bytes(content)
            try:
                checkpoint.read(path)
                unseen.append(name)
            except UserError:
                pass
    end = attempt(folder, VARIANTS[variant])
    said = " ".join(end.said.split())
    if end.status == 0:
        differs = differences(run_of(folder), run_of(whole["folder"]))
        from_ = said.partition("going on from ")[2].partition(".ckpt")[0]
        word = f"went on from {from_}" if from_ else "its file was not needed"
        word = "another result, in silence" if differs else f"the same result, {word}"
    else:
        differs = []
        sentence = end.status == 2 and "error: " in said and "Traceback" not in said
        word = "refused with a sentence" if sentence else "a traceback"
    return {
        "variant": variant, "harm": harm, "files": harmed, "unseen by read": unseen,
        "restart": word, "differs": differs,
    }  # fmt: skip


def damage(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """The 200 damaged checkpoints."""
    trials, harms = Trials(work / "damage.jsonl"), (*HARMS, "swap")
    for i in range(told.n):
        variant, harm = ("plain", "plateau")[i // len(harms) % 2], harms[i % len(harms)]
        name = f"{i} {variant} {harm}"
        trial = partial(damage_once, work, variant, harm, name)
        trials.run(name, trial, told.so_far)
    done = list(trials.done.values())
    undetected = [t for t in done if t["unseen by read"] or t["differs"]]
    return {
        "damaged": len(done),
        "harms": Counter(t["harm"] for t in done),
        "undetected": len(undetected),
        "tracebacks": sum(t["restart"] == "a traceback" for t in done),
        "restarts": {
            harm: Counter(t["restart"] for t in done if t["harm"] == harm)
            for harm in harms
        },
    }


# --- long life ---------------------------------------------------


LIVES = {  # overrides, and how often what `attempts.Life` notes is noted
    "jobs": ("-m", "seed=range(0,{n})", "trainer.max_epochs=1"),
    "epochs": ("trainer.max_epochs={n}", "callbacks.early_stopping=null"),
}


def long(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """Memory and descriptors over the jobs of a multirun, and over epochs."""
    done = {}
    for name, n in (("jobs", told.n), ("epochs", 5 * told.n)):
        folder = work / name
        if not (folder / "end.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            line = [text.format(n=n) for text in LIVES[name]]
            life = f"+callbacks.life={{_target_: attempts.Life, of: {name}}}"
            small = ("data.source.num_train=80", "data.source.num_test=20", life)
            end = attempt(folder, (*line, *small), limit=3600)
            assert end.status == 0, end.said[-2000:]
            (folder / "end.json").write_text(json.dumps(end.seconds))
        rows = [json.loads(line) for line in (folder / "life").read_text().splitlines()]
        tenth = max(1, len(rows) // 10)
        done[name] = {
            "n": len(rows),
            "seconds": round(json.loads((folder / "end.json").read_text()), 1),
            # The first ones load what all will need.
            "MB": [rows[i]["mb"] for i in (0, tenth, len(rows) // 2, -1)],
            "descriptors": [rows[i]["fds"] for i in (0, tenth, len(rows) // 2, -1)],
        }
    return {**done, "at": "the first, a tenth, a half, the last"}


def sweep(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """How long a plan of 500 jobs takes, and a report of 500 records."""
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.records import swept, write

    jobs = 5 * told.n // 2
    shutil.rmtree(work / "records", ignore_errors=True)
    lrs, seeds = [0.01, 0.02, 0.05, 0.1, 0.2], range(jobs // 5)
    write(
        work / "records",
        *(swept(s, [s % 7, s % 11], optimizer__lr=lr) for lr in lrs for s in seeds),
    )
    swept_over = [
        f"optimizer.lr={','.join(map(str, lrs))}",
        f"seed=range({len(seeds)})",
    ]
    tiny = [o for o in TINY if not o.startswith(("+callbacks", "plots"))]
    lines = {
        "plan": ["plan", *tiny, *swept_over],
        "report": ["report", str(work / "records"), "--out", str(work / "report")],
    }
    done: dict[str, Any] = {"jobs": jobs}
    for name, line in lines.items():
        begun, before = time.perf_counter(), os.times()
        command = [sys.executable, "-m", f"resnet_se.{line[0]}", *line[1:]]
        ended = subprocess.run(command, cwd=work, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-2000:]
        done[f"{name} seconds"] = round(time.perf_counter() - begun, 1)
        computing = os.times().children_user - before.children_user
        done[f"{name} CPU seconds"] = round(computing, 1)
    return done


# --- fuzz --------------------------------------------------------

FUZZ = (
    "test_fuzz.py::test_ten_thousand_records",
    "test_fuzz.py::test_ten_thousand_bundles",
    "test_fuzz.py::test_ten_thousand_configurations",
    "test_fuzz.py::test_ten_thousand_checkpoints",
    "test_fuzz.py::test_ten_thousand_states",
    "test_archives.py::test_ten_thousand_trees",
    "test_archives.py::test_ten_thousand_archives",
)
COUNTED = r"- (\d+) passing, (\d+) failing, and (\d+) invalid test cases"


def fuzz_once(test: str, n: int) -> dict[str, Any]:
    """One soak test, by the counts that hypothesis prints."""
    options = ["-m", "soak", "-p", "no:cacheprovider", "--hypothesis-show-statistics"]
    begun = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/commands/{test}"],
        cwd=HERE.parents[1], capture_output=True, text=True,
        env=os.environ | {"SOAK_EXAMPLES": str(n)},
    )  # fmt: skip
    counts = [[int(n) for n in found] for found in re.findall(COUNTED, ended.stdout)]
    if ended.returncode or not counts:
        print(ended.stdout[-8000:], flush=True)
    passing, failing, invalid = map(sum, zip(*counts, strict=True))
    return {
        "passing": passing, "failing": failing, "invalid": invalid,
        "status": ended.returncode, "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


def fuzz(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """The soak tests of the readers: inputs that passed and that did not."""
    trials = Trials(work / "fuzz.jsonl")
    for test in told.only or FUZZ:
        trials.run(test, partial(fuzz_once, test, 50 * told.n), told.so_far)
    return {"readers": trials.done}


# --- command line ------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("kills", "damage", "long", "sweep", "fuzz"))
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--tmpdir", default="/dev/shm", help="on another file system")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--so-far", action="store_true", help="sum up what is done")
    parser.add_argument("--only", nargs="*", choices=FUZZ, help="of fuzz")
    told = parser.parse_args()
    work = told.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RESNET_SE_CACHE", str(work / "cache"))
    # Imported once, here; a fork has them.
    from resnet_se.commands import train  # noqa: F401
    from resnet_se.commands.sweep import search  # noqa: F401
    from resnet_se.config import build  # noqa: F401
    from resnet_se.training import loop  # noqa: F401
    from resnet_se.utils import system

    done = globals()[told.what](work, told)
    hardware = system.hardware(torch.device("cpu"), "32-true")
    made = {"n": told.n, **system.environment(), "hardware": hardware}
    text = json.dumps({**done, "made": made}, indent=1)
    (HERE / f"{told.what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
