"""Kills, damages and long lives of a tiny training; see the README.

    python experiments/reliability/soak.py kills --work DIR     # 200 random kills
    python experiments/reliability/soak.py damage --work DIR    # 200 damaged checkpoints
    python experiments/reliability/soak.py long --work DIR      # memory, descriptors
    python experiments/reliability/soak.py sweep --work DIR     # 500 jobs, 500 records

Each leaves one JSON here.  Every trial is a line of a file in DIR: typed again, a
command goes on with what is missing.  This process imports all that a training needs
and computes nothing; an attempt is a fork of it, on one thread, so that it costs
seconds.  The ranks of `trainer=ddp_sim` are processes of their own all the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
import lightning as L
import numpy as np
import torch

HERE = Path(__file__).parent
TINY = (
    "data=synthetic",
    "data.source.num_train=240",
    "data.source.num_test=60",
    "data.batch_size=32",
    "data.num_workers=0",
    "augment=crop2_flip",
    "optimizer=sgd_nesterov",
    "scheduler=constant",
    "model.depths=[1,1,1]",
    "model.widths=[8,8,16]",
    "model.reduction=4",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=5",
    "tta=flip",
    "plots=false",
    "+callbacks.kill={_target_: soak.Kill}",
)
VARIANTS = {
    "plain": (),
    "ema": ("callbacks=ema",),
    "cutmix": ("mixing=cutmix",),
    "plateau": ("scheduler=plateau", "scheduler.plateau.patience=0"),
    "TMPDIR elsewhere": (),
    "two ranks": ("trainer=ddp_sim", "trainer.max_epochs=3"),
}
# What a killed process was doing, by the letter that it left behind.
PLACES = {
    "t": "training step",
    "c": "checkpoint write",
    "v": "validation",
    "e": "test",
    "r": "record write",
}


# --- inside an attempt -------------------------------------------


def reach(letter: str) -> bool:
    """Notes a place; whether this attempt is to die at it."""
    with open(os.environ["SOAK_NOTES"], "a") as file:
        file.write(letter)
    place, _, left = os.environ.get("SOAK_KILL", "").partition(":")
    if place != letter:
        return False
    os.environ["SOAK_KILL"] = f"{place}:{int(left) - 1}"
    return left == "1"


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(L.Callback):
    """Counts steps, and kills the process where it was told to."""

    def on_train_batch_end(self, *_: Any) -> None:
        if reach("t"):
            die()

    def on_validation_batch_start(self, *_: Any) -> None:
        if reach("v"):
            die()

    def on_test_batch_start(self, *_: Any) -> None:
        if reach("e"):
            die()


def watch_writes(seed: int) -> None:
    """A kill may come before each sync, link and rename; a synced file is torn too."""

    def watched(name: str, path_of: Callable[[Any], str]) -> None:
        call = getattr(os, name)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            path = path_of(arguments[-1])
            if reach("c" if "checkpoints" in path else "r"):
                if name == "fsync" and os.path.isfile(path):
                    size = os.fstat(arguments[0]).st_size
                    os.ftruncate(arguments[0], random.Random(seed).randrange(size + 1))
                die()
            return call(*arguments, **options)

        setattr(os, name, wrapper)

    watched("fsync", lambda handle: os.readlink(f"/proc/self/fd/{handle}"))
    watched("link", str)
    watched("replace", str)


class End(NamedTuple):
    """How an attempt ended."""

    status: int | None  # None: killed
    seconds: float
    said: str


def attempt(
    folder: Path,
    overrides: tuple[str, ...],
    *,
    kill: str = "",
    after: float | None = None,
    whom: str = "all",
    tmpdir: str | None = None,
) -> End:
    """A training in a process of its own, which may be killed.

    Args:
        kill: a place's letter and the time that it is reached: `c:3`.
        after: SIGKILL after so many seconds.
        whom: of several ranks: all, the launcher, or a rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _train(folder, overrides, log, kill, tmpdir)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        took = time.monotonic() - begun
        if pid:
            break
        if after is not None and took >= after:
            _kill(child, whom)
            after = None
            continue
        if took > 600:
            os.killpg(child, signal.SIGKILL)
            raise TimeoutError(f"{folder}: hangs")
        time.sleep(0.005)
    code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    return End(code, took, log.read_text(errors="replace"))


def _train(
    folder: Path, overrides: tuple[str, ...], log: Path, kill: str, tmpdir: str | None
) -> None:
    """What the forked child does; does not return."""
    status = 1
    try:
        os.setsid()
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        os.environ |= {"SOAK_NOTES": str(folder / "notes"), "SOAK_KILL": kill}
        os.environ["PYTHONPATH"] = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
        if tmpdir:
            os.environ["TMPDIR"] = tmpdir
        torch.set_num_threads(1)
        watch_writes(len(kill) + len(str(folder)))
        sys.argv = ["resnet-se train", *TINY, *overrides]
        from resnet_se.train import main

        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _kill(launcher: int, whom: str) -> None:
    """SIGKILL to a whole group, to its leader, or to one of the leader's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    if whom == "rank" and children:
        os.kill(int(children[-1]), signal.SIGKILL)
    elif whom == "launcher":
        os.kill(launcher, signal.SIGKILL)
    else:
        os.killpg(launcher, signal.SIGKILL)


# --- comparing ---------------------------------------------------


def run_of(folder: Path) -> Path:
    (path,) = folder.glob("runs/*/*/result.json")
    return path.parent


def differences(ours: Path, theirs: Path) -> list[str]:
    """What two finished runs do not have in common, bit for bit; times are left out."""
    a, b = (dict(_contents(run)) for run in (ours, theirs))
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def _contents(run: Path) -> Iterator[tuple[str, Any]]:
    """{name: bytes or plain value} of all that a run's result is."""
    from resnet_se import checkpoint

    for name in ("best", "last"):
        loaded = checkpoint.read(run / f"checkpoints/{name}.ckpt")
        for part in ("state_dict", "trained_state", "optimizer_states", "epoch"):
            yield from _leaves(loaded.get(part), f"{name}.{part}")
    for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()):
        row.pop("seconds")
        yield f"metrics.csv.{row['epoch']}", tuple(row.items())
    record = json.loads((run / "result.json").read_text())
    record["history"].pop("seconds")
    for part in ("status", "val", "test", "best_epoch", "history", "config_hash"):
        yield f"result.{part}", json.dumps(record[part], sort_keys=True)
    with np.load(run / "predictions.npz") as stored:
        for name in stored.files:
            yield f"predictions.{name}", stored[name].tobytes()


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, torch.Tensor):
        yield path, node.numpy().tobytes()
    elif isinstance(node, dict | list | tuple):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in pairs:
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, node


# --- trials ------------------------------------------------------


class Trials:
    """Lines of a file in the work folder: a trial that is there is not done again."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {(t := json.loads(line))["name"]: t for line in lines}

    def run(self, name: str, trial: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self.done:
            self.done[name] = {"name": name, **trial()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[name]) + "\n")
            print(json.dumps(self.done[name]), flush=True)
        return self.done[name]


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


def _plan(single: int, pairs: int) -> Iterator[tuple[str, str]]:
    """(variant, place) of every kill; place `any` is any moment."""
    variants = [name for name in VARIANTS if name != "two ranks"]
    for i in range(single):
        turn, which = divmod(i, len(variants))
        # Two turns in five at a place where a random moment would seldom be.
        rare = "cver"[(turn // 5 * 2 + turn % 5) % 4] if turn % 5 < 2 else "any"
        yield variants[which], rare
    for i in range(pairs):
        yield "two ranks", ("all", "launcher", "rank")[i % 3]


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
        else:
            whom = "all" if place == "any" else place
            when = {"after": draw.uniform(0, whole["seconds"]), "whom": whom}
        end = attempt(folder, overrides, **told, **when)
        if end.status != 0:  # else it was done before the kill came
            break
    notes = folder / "notes"
    where = (notes.read_text() if notes.exists() else "")[-1:]
    for again in range(1, 4):
        # A launcher that was killed alone takes its ranks along within a moment.
        second = attempt(folder, overrides, **told)
        if "another process" not in second.said:
            break
        time.sleep(1)
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
        "starts": again,
        "differs": differing,
        "epochs_lost": round((steps - normal) / normal * epochs, 3),
        "traceback": "Traceback" in second.said,
    }


def controls(work: Path) -> dict[str, Any]:
    """What the comparison must see: one weight's last bit, another seed."""
    from resnet_se import checkpoint

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
    """The 200 kills, and the negative controls."""
    trials = Trials(work / "kills.jsonl")
    pairs = told.n // 20
    done = []
    for i, (variant, place) in enumerate(_plan(told.n - pairs, pairs)):
        name = f"{i} {variant} {place}"
        done.append(
            trials.run(name, lambda: kill_once(work, variant, place, name, told.tmpdir))
        )
    lost = [t["epochs_lost"] for t in done]
    return {
        "kills": len(done),
        "variants": Counter(t["variant"] for t in done),
        "killed in": Counter(t["killed in"] for t in done),
        "runs lost": sum(t["differs"] == ["no result"] for t in done),
        "runs that differ": sum(bool(t["differs"]) for t in done),
        "tracebacks of the second start": sum(t["traceback"] for t in done),
        "epochs lost": {"most": max(lost), "mean": round(sum(lost) / len(lost), 3)},
        "controls": controls(work),
    }


# --- damage ------------------------------------------------------


def damage(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    return {}


# --- command line ------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("kills", "damage", "long", "sweep"))
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--tmpdir", default="/dev/shm", help="on another file system")
    parser.add_argument("-n", type=int, default=200)
    told = parser.parse_args()
    work = told.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RESNET_SE_CACHE", str(work / "cache"))
    # Imported once, here; a fork has them.
    from resnet_se import builders, fit, machine, search, train  # noqa: F401

    done = globals()[told.what](work, told)
    cpu = torch.device("cpu")
    made = {
        "n": told.n,
        **machine.environment(),
        "hardware": machine.hardware(cpu, "32-true"),
    }
    text = json.dumps({**done, "made": made}, indent=1)
    (HERE / f"{told.what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
