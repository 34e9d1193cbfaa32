"""The record of a run: `result.json`, its schema, and how it is written and read.

A run directory is `runs/<experiment>/seed<k>-<hash of the resolved configuration>`.
`result.json` needs nothing of this package to be read; whoever changes the meaning of a
field raises `SCHEMA`.  Its fields:

    schema          this number
    status          running | finished | failed | interrupted; `error` says why
    experiment, seed, config_hash, overrides, tags
    git             commit, dirty (null outside a repository)
    versions        python and the packages that compute
    hardware        accelerator, device, cpu, cores, precision
    data            name, origin, fingerprint, sizes, split_seed, fallback, …
    model           trainable, non_trainable, total, macs, layers
    train           epochs, steps, seconds, images_per_second, compile_seconds (null:
                    not compiled, of the last start), peak_memory_mb, stopped
    val             acc, loss (of the best checkpoint)
    test            acc, acc_tta, loss, ece, per_class, images; and of every test image
                    in order `labels`, `predicted`, `predicted_tta` (`pack_labels`)
    best_epoch      0-based epoch of the checkpoint that was tested
    seconds_in_all  wall-clock of the last start: data, training, tests
    history         {column: one value an epoch}, the columns of metrics.csv
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import resource
import subprocess
import tempfile
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from resnet_se.errors import UserError

SCHEMA = 1
STATUSES = ("running", "finished", "failed", "interrupted")
VERSIONED = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` only once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Busy(UserError):
    """Another process is working in the run directory."""


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Nobody else trains in `run_dir` meanwhile; the system frees it when we die.

    Raises:
        Busy: somebody else does.
        UserError: the directory cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"runs_dir: cannot write in {run_dir}: {error.strerror}"
        ) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{run_dir}: another process is training this run") from None
        yield


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Writes `run_dir/result.json` whole or not at all; NaN, infinities become null."""
    text = json.dumps(_finite(result), indent=2, allow_nan=False)
    with atomic_file(run_dir / "result.json") as file:
        file.write(text.encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The run's record, or None where there is none yet; raises as `read_record`."""
    path = run_dir / "result.json"
    return read_record(path) if path.is_file() else None


def read_record(path: Path) -> dict[str, Any]:
    """A `result.json`, under whatever name.

    Raises:
        UserError: the file is damaged, or of a schema that this version does not know.
    """
    try:
        result = json.loads(path.read_bytes())
        schema, status = result["schema"], result["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a result ({error!r}); delete it to go on"
        ) from None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {SCHEMA} expected, got {schema!r}")
    if status not in STATUSES:
        raise UserError(f"{path}: status expected in {STATUSES}, got {status!r}")
    return result


def pack_labels(labels: Tensor) -> str:
    """Class indices (N,) in 0..65535 → base64 of zlib of little-endian uint16."""
    return b64encode(zlib.compress(labels.numpy().astype("<u2").tobytes(), 9)).decode()


def unpack_labels(packed: str) -> np.ndarray:
    """The inverse: int64 (N,)."""
    raw = np.frombuffer(zlib.decompress(b64decode(packed)), "<u2")
    return raw.astype(np.int64)


def environment() -> dict[str, Any]:
    """The `git` and `versions` fields of this process."""
    packages = {name: version(name) for name in VERSIONED}
    return {
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **packages},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that `folder` is tracked at, and if it differs; None without git."""

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie in somebody else's repository: ask for our file.
    if not git("ls-files", "--error-unmatch", "__init__.py"):
        return None
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "-s"))}


def hardware(device: torch.device, precision: str) -> dict[str, Any]:
    """The `hardware` field: what the run computes on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "accelerator": device.type,
        "device": name,
        "cpu": _processor(),
        "cores": usable_cores(),
        "precision": str(precision),
    }


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device) -> None:
    """Peak memory counts from here: a sweep runs many jobs in one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux; elsewhere the peak is the whole process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (10⁶ bytes): the card's, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
