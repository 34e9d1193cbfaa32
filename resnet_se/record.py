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


