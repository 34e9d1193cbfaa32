"""The record of a run: `result.json`, its schema, and how it is written and read.

A run directory is `runs/<experiment>/seed<k>-<hash of its setting>` (`identity`).
`result.json` needs nothing of this package to be read; whoever changes the meaning of a
field raises `SCHEMA`.  Its fields:

    schema          this number
    status          running | finished | failed | interrupted (`error` says why) |
                    pruned: by a search, without val and test
    experiment, seed, config_hash, overrides, tags
    setting         {dotted key: value} of all that `config_hash` covers
    choices         {group: its choice on the command line or by default}
    against         [{experiment, question}] that this one is compared with
    noise_family    experiments that may share one seed deviation, or null
    git             commit, dirty (null outside a repository)
    versions        python and the packages that compute
    hardware        accelerator, device, cpu, cores, precision, world_size
    data            name, origin, fingerprint, set_fingerprint (the same for the images
                    in any order; not in older ones), sizes, batch_size of one
                    device (not in older ones), split_seed, fallback, …
    model           trainable, non_trainable, total, macs, layers
    train           epochs, steps, pflop (6 operations for a multiply-accumulate of each
                    image at its size; not in older ones), seconds, images_per_second,
                    compile_seconds (null: not compiled, of the last start),
                    peak_memory_mb, stopped
    val             acc, loss (of the best checkpoint)
    test            acc, acc_tta, loss, ece, per_class, images; and of every test image
                    in order `labels`, `predicted`, `predicted_tta` (`pack_labels`)
    best_epoch      0-based epoch of the checkpoint that was tested
    seconds_in_all  wall-clock of the last start: data, training, tests
    history         {column: one value an epoch}, the columns of metrics.csv; and
                    pflop, until the epoch's end
"""

from __future__ import annotations

import json
import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file, read_regular

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SCHEMA = 2
# {former name of an experiment: today's}; records keep the one they were made under.
RENAMED = {"rival_e14": "baseline_e14", "rival_resnet18": "baseline_resnet18"}
# What a field is where it stands; an untrusted record may hold anything.
SHAPES: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "seed": int,
    "config_hash": str,
    "overrides": list,
    "tags": list,
    "git": (dict, NoneType),
    "error": (str, NoneType),
    **dict.fromkeys(("setting", "choices", "versions", "hardware", "data"), dict),
    **dict.fromkeys(("model", "train", "val", "test", "history"), dict),
}
_words = str.split
NONE = type(None)
NUMBER = (int, float)
EVERY = {  # what is read of a record, and its types; `?`: it may be absent
    (str,): _words("experiment config_hash"),
    (int,): _words("seed"),
    (list,): _words("overrides"),
    (dict,): _words("versions"),
    (dict, NONE): _words("setting? choices? git? history?"),
    (list, NONE): _words("against?"),
    (str, NONE): _words("noise_family? git.commit?"),
}
FINISHED = {
    NUMBER: _words(
        "data.train data.val data.test data.split_seed model.trainable model.total "
        "model.macs model.layers train.epochs train.steps val.acc test.acc test.images"
    ),
    (*NUMBER, NONE): _words(
        "train.seconds train.images_per_second train.peak_memory_mb test.acc_tta "
        "hardware.cores hardware.world_size? test.loss? test.ece? val.loss?"
    ),
    (str, NONE): _words("data.origin data.fallback? train.stopped?"),
    (str,): _words(
        "data.name data.fingerprint hardware.accelerator hardware.device "
        "hardware.precision test.labels test.predicted"
    ),
    (int, NONE): _words("best_epoch? data.batch_size?"),
    (list,): _words("data.classes"),
}
SHARES = ("val.acc", "test.acc", "test.acc_tta", "test.ece")  # in 0..1
MOST_BYTES = 32 << 20  # of the file
MOST_IMAGES = 10_000_000  # of a test set
MOST_DIGITS = 20  # of a whole number; 64 bits have no more
STATUSES = ("running", "finished", "failed", "interrupted", "pruned")


@dataclass
class Outcome:
    """A run's record while it comes about; its fields are those of `result.json`.

    A field that is None has not come about yet and is left out of the file, but for
    those that say so themselves: `git` and `noise_family`.
    """

    experiment: str
    seed: int
    config_hash: str
    setting: dict[str, Any]
    choices: dict[str, str]
    against: list[dict[str, Any]]
    noise_family: str | None
    overrides: list[str]
    tags: list[Any]
    git: dict[str, Any] | None
    versions: dict[str, str]
    schema: int = SCHEMA
    status: str = "running"
    hardware: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    best_epoch: int | None = None
    val: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    seconds_in_all: float | None = None
    history: dict[str, list[float | None]] | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that have come about, `schema` and `status` first."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {
            name: value
            for name, value in found.items()
            if value is not None or name in ("git", "noise_family")
        }
        if self.test is not None:
            kept["best_epoch"] = self.best_epoch  # null: nothing was validated
        return {"schema": self.schema, "status": self.status, **kept}

    def update(self, record: Mapping[str, Any]) -> None:
        """Take over the fields of another process's record of the same run."""
        for field in fields(self):
            if field.name in record and field.name != "overrides":
                setattr(self, field.name, record[field.name])

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that tell a run from others in a dashboard."""
        return {
            "experiment": self.experiment,
            "config_hash": self.config_hash,
            "parameters": (self.model or {}).get("total"),
        }

    def write(self, run_dir: Path) -> None:
        """Write `run_dir/result.json` whole or not at all."""
        write_result(run_dir, self.as_dict())


def write_result(run_dir: Path, result: Mapping[str, Any]) -> None:
    """Write `run_dir/result.json` whole or not at all; NaN, infinities become null."""
    text = json.dumps(_finite(result), indent=2, allow_nan=False)
    with atomic_file(run_dir / "result.json") as file:
        file.write(text.encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
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
        content = read_regular(path, MOST_BYTES)
        result = json.loads(content, parse_int=_whole_number)
        schema, status = result["schema"], result["status"]
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a result ({error!r})") from None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {SCHEMA} expected, got {schema!r}")
    if status not in STATUSES:
        raise UserError(f"{path}: status expected in {STATUSES}, got {status!r}")
    for name, kinds in SHAPES.items():
        if name in result and not isinstance(result[name], kinds):
            kind = kinds if isinstance(kinds, type) else kinds[0]
            got = type(result[name]).__name__
            raise UserError(f"{path}: {name}: expected a {kind.__name__}, got a {got}")
    classes = (result.get("data") or {}).get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise UserError(f"{path}: data.classes: expected a list of names")
    commit = (result.get("git") or {}).get("commit", "")
    if not isinstance(commit, str):
        raise UserError(f"{path}: git.commit: expected a str, got {commit!r}")
    return result


def _whole_number(digits: str) -> int:
    """Return a number of a record; those beyond 64 bits overflow in what computes."""
    if len(digits) > MOST_DIGITS:
        raise UserError(
            f"not a result: whole numbers of at most {MOST_DIGITS} digits expected, "
            f"got one of {len(digits)}"
        )
    return int(digits)


def check_finished(record: dict[str, Any], path: Path) -> None:
    """A finished run's record has all that is read of one; else raises UserError."""
    try:
        check_fields(record, EVERY)
        check_figures(record)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_figures(record: dict[str, Any]) -> None:
    """A finished run's figures are there, and can be: else raises UserError."""
    check_fields(record, FINISHED)
    for path in SHARES:
        part, key = path.split(".")
        value = record.get(part, {}).get(key)
        if value is None:  # `FINISHED` says what must be there
            continue
        real = isinstance(value, NUMBER) and not isinstance(value, bool)
        if not (real and 0 <= value <= 1):
            raise UserError(f"{path}: a share in 0..1 expected, got {value!r}")


def check_history(history: Mapping[str, list[Any]]) -> None:
    """Raises UserError unless a history's columns are numbers of the same epochs."""
    for column in history.values():
        numbers = [value for value in column if value is not None]
        real = {*map(type, numbers)} <= {*NUMBER} and all(map(math.isfinite, numbers))
        if not real:
            raise UserError("history: columns of finite numbers expected")
    if len(sizes := {len(column) for column in history.values()}) > 1:
        raise UserError(
            "history: columns of as many epochs each expected, got of "
            f"{' and '.join(map(str, sorted(sizes)))}"
        )
    seconds = [value for value in history.get("seconds", []) if value is not None]
    if any(a > b for a, b in pairwise([0, *seconds])):
        raise UserError("history: ascending seconds expected")


def check_fields(record: dict[str, Any], kinds: dict[tuple, list[str]]) -> None:
    """Raises UserError unless every field of `kinds` is there and of its type."""
    for types, paths in kinds.items():
        for path in paths:
            value: Any = record
            for key in path.rstrip("?").split("."):
                absent = not isinstance(value, dict) or key not in value
                if absent and not path.endswith("?"):
                    raise UserError(f"not a result: no field {path}")
                value = None if absent else value[key]
            if not isinstance(value, types) or isinstance(value, bool):
                names = " or ".join(kind.__name__ for kind in types)
                raise UserError(f"{path.rstrip('?')}: {names} expected, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{path.rstrip('?')}: a finite number expected, got "
                                f"{value!r}")  # fmt: skip


def round_significant(value: float | None) -> float | None:
    """Six significant digits: float32 has no more."""
    return value if value is None else float(f"{float(value):.6g}")


def pack_labels(labels: Tensor) -> str:
    """Class indices (N,) in 0..65535 → base64 of zlib of little-endian uint16."""
    return b64encode(zlib.compress(labels.numpy().astype("<u2").tobytes(), 9)).decode()


def unpack_labels(packed: str) -> np.ndarray:
    """The inverse: int64 (N,).

    Raises:
        UserError: it was not packed so, or is of more than `MOST_IMAGES` images.
    """
    import numpy as np

    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(b64decode(packed), 2 * MOST_IMAGES + 1)
    except (ValueError, zlib.error) as error:
        raise UserError(f"labels: not as they are packed ({error})") from None
    if len(raw) > 2 * MOST_IMAGES:
        raise UserError(f"labels: expected those of at most {MOST_IMAGES:,} images")
    if not unpacker.eof or len(raw) % 2:
        raise UserError("labels: not as they are packed (cut off)")
    return np.frombuffer(raw, "<u2").astype(np.int64)
