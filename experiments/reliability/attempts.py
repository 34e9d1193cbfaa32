"""An attempt at a tiny training that may be killed, and what two runs differ in.

The parent imports all that a training needs and computes nothing; an attempt is a fork
of it, on one thread, so that it costs seconds.  The ranks of `trainer=ddp_sim` are
processes of their own all the same.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
import time
import traceback
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
    "+callbacks.kill={_target_: attempts.Kill}",
)
VARIANTS = {
    "plain": (),
    "ema": ("callbacks=ema",),
    "cutmix": ("mixing=cutmix",),
    "plateau": ("scheduler=plateau", "scheduler.plateau.patience=0"),
    "TMPDIR elsewhere": (),
    "two ranks": ("trainer=ddp_sim", "trainer.max_epochs=3"),
    "sam": ("callbacks=sam",),
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


class Life(L.Callback):
    """Notes memory and open files at the end of every epoch, or of every job."""

    def __init__(self, of: str):
        self.of = of

    def note(self) -> None:
        status = Path("/proc/self/status").read_text()
        kb = int(status.partition("VmRSS:")[2].split()[0])
        row = {"mb": round(kb / 1024, 1), "fds": len(os.listdir("/proc/self/fd"))}
        with open(Path(os.environ["SOAK_NOTES"]).with_name("life"), "a") as file:
            file.write(json.dumps(row) + "\n")

    def on_train_epoch_end(self, *_: Any) -> None:
        if self.of == "epochs":
            self.note()

    def on_test_end(self, *_: Any) -> None:
        if self.of == "jobs":
            self.note()


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
    at: int | None = None,
    whom: str = "all",
    tmpdir: str | None = None,
    limit: float = 600,
) -> End:
    """A training in a process of its own, which may be killed.

    Args:
        kill: a place's letter and the time that it is reached: `c:3`.
        after: SIGKILL after so many seconds.
        at: SIGKILL once so many places have been noted, by all processes together.
        whom: of several ranks: all, the launcher, or a rank.
        limit: a hang, after so many seconds.
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
        late = after is not None and took >= after
        if late or (at is not None and _size(folder / "notes") >= at):
            _kill(child, whom)
            after = at = None
            continue
        if took > limit:
            os.killpg(child, signal.SIGKILL)
            raise TimeoutError(f"{folder}: hangs")
        time.sleep(0.005)
    code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    return End(code, took, log.read_text(errors="replace"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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
        flags = [o for o in overrides if o.startswith("-")]  # argparse wants them first
        rest = [o for o in overrides if not o.startswith("-")]
        sys.argv = ["resnet-se train", *flags, *TINY, *rest]
        from resnet_se.commands.train import main

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
    from resnet_se.runs import checkpoint

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
