"""The evaluations beside a run: its figures on other test sets.

`<run>/evaluations/<name>.json`, written by `resnet-se evaluate data=…`:

    schema, name        this number; the file's name
    test_set, arguments its class, and the options but where it lies
    run                 experiment, seed and config_hash of the network's run
    ckpt, views         best or last; views of test-time augmentation, or null
    acc, acc_95, …      as `inference.robustness.figures` has them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_se.runs.record import MOST_BYTES, NUMBER
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import read_regular, write_json

SCHEMA = 1
FOLDER = "evaluations"
# Shown for a run, where an evaluation has them.
FIGURES = ("images", "acc", "acc_tta", "loss", "ece", "mean_corruption_error")


def write_evaluation(path: Path, record: Mapping[str, Any]) -> None:
    """Write an evaluation whole or not at all; raises as `write_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": SCHEMA, **record})


def read_evaluations(run_dir: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return {name: evaluation} of a run, and a sentence on each that is unusable."""
    read = {p: _read(p) for p in sorted((run_dir / FOLDER).glob("*.json"))}
    found = {p.stem: record for p, record in read.items() if isinstance(record, dict)}
    problems = [
        f"{FOLDER}/{path.name}: not an evaluation ({reason})"
        for path, reason in read.items()
        if isinstance(reason, str)
    ]
    return found, problems


def _read(path: Path) -> dict[str, Any] | str:
    """Return an evaluation, or the reason that it is none."""
    try:
        return _checked(json.loads(read_regular(path, MOST_BYTES)))
    except (UserError, OSError, ValueError, RecursionError) as error:
        return str(error).removeprefix(f"{path}: ")


def _checked(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise UserError(f"schema {SCHEMA} expected")
    for key in FIGURES:
        value = record.get(key)
        number = isinstance(value, NUMBER) and not isinstance(value, bool)
        if not (number or (value is None and key not in ("acc", "images"))):
            raise UserError(f"{key}: a number expected, got {value!r}")
    for key in ("acc", "acc_tta"):
        if not 0 <= (record.get(key) or 0) <= 1:
            raise UserError(f"{key}: 0 to 1 expected, got {record[key]!r}")
    return record
