"""Trains a finished run again and compares the two, digit by digit.

    resnet-se reproduce RUN [--keep DIR]

The same overrides train in a scratch folder, at the recorded precision.  On one CPU
with as many threads and the same versions the weights are the same bit for bit, with
any number of loader workers, moved, copied or resumed; on one GPU too (not measured)
where `+trainer.deterministic=true` has torch take algorithms whose sums have an order.
Across kinds of devices, thread counts, world sizes, precisions or versions they are
not: sums are taken in another order, and figures agree within rounding at first, later
only as two seeds do.  Where the environments differ is said, so that a difference has
its suspects.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from resnet_se.config.command_line import quoted
from resnet_se.runs.record import read_result
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import environment

FIGURES = (
    ("test", "acc"),
    ("test", "acc_tta"),
    ("test", "loss"),
    ("val", "acc"),
    ("val", "loss"),
)


def command_of(run_dir: Path, record: dict[str, Any], runs_dir: Path) -> list[str]:
    """Return the command line that trains the run again, its files under `runs_dir`."""
    overrides = [
        o for o in record["overrides"] if not o.startswith("trainer.precision=")
    ]
    overrides += [f"trainer.precision={record['hardware']['precision']}"]
    overrides += [f"runs_dir={quoted(str(runs_dir))}", "plots=false", "logger=none"]
    overrides += _data_of(run_dir, record, runs_dir)
    if not any(o.startswith("seed=") for o in overrides):
        overrides.append(f"seed={record['seed']}")
    return [sys.executable, "-m", "resnet_se.train", *overrides]


def _data_of(run_dir: Path, record: dict[str, Any], runs_dir: Path) -> list[str]:
    """Return the overrides that have the run's own images, wherever they lie now.

    Raises:
        UserError: they are not there: others reproduce nothing.
    """
    from resnet_se.config.build import run_data

    source = run_data(run_dir, record["data"].get("fingerprint")).source
    if record["data"].get("fallback"):  # it had none, and is to find none again
        nowhere = quoted(str(runs_dir / "no data"))
        return [f"data.source.root={nowhere}", "++data.source.download=false"]
    if not hasattr(source, "root"):
        return []
    return [f"data.source.root={quoted(str(Path(source.root).resolve()))}",
            "data.fallback=null"]  # fmt: skip


def digits(a: float | None, b: float | None) -> str:
    """Return `equal`, or the digits that two figures share."""
    if a == b:
        return "equal"
    if a is None or b is None:
        return "only one of them has it"
    shared = -math.log10(abs(a - b) / max(abs(a), abs(b)))
    return f"{max(0, math.floor(shared))} digits ({a:.6g}, {b:.6g})"


def weights_agree(first: Path, second: Path) -> str:
    """Compare the weights of two runs' best checkpoints; return the result in words."""
    from resnet_se.runs import checkpoint

    a, b = (
        checkpoint.read(run / "checkpoints" / checkpoint.BEST)["state_dict"]
        for run in (first, second)
    )
    if a.keys() != b.keys():
        return "other tensors"
    most = max(float((a[k].double() - b[k].double()).abs().max()) for k in a)
    return "equal, bit for bit" if most == 0 else f"differ by at most {most:.3g}"


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each difference of two records' environments."""
    lines = []
    for part in ("git", "versions", "hardware"):
        old, new = then.get(part) or {}, now.get(part) or {}
        lines += [
            f"{part}.{key}: {old.get(key)} → {new.get(key)}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return lines


def reproduce(run_dir: Path, folder: Path) -> bool:
    """Train again under `folder`, print the comparison; return true if all agrees.

    Raises:
        UserError: the run is not finished, or does not train again.
    """
    record = read_result(run_dir)
    if record is None or record["status"] != "finished":
        raise UserError(f"{run_dir}: expected the directory of a finished run")
    from resnet_se.data.decode import decoder

    then, now = record["data"].get("decoder"), decoder()
    if then not in (None, now):
        print(f"data: decoded then by {then}, now by {now}")
    for line in differences(record, environment()):
        if not line.startswith("hardware"):  # told below, from the new record
            print(f"environment: {line}")
    done = subprocess.run(command_of(run_dir, record, folder), check=False)
    paths = [
        p for p in folder.glob("*/*/result.json") if p.parent.parent.name != "sweeps"
    ]
    if done.returncode or len(paths) != 1:
        raise UserError(f"{run_dir}: training again ended with {done.returncode}")
    again = paths[0].parent
    result = read_result(again) or {}
    for line in differences({"hardware": record["hardware"]}, result):
        if line.startswith("hardware"):
            print(f"environment: {line}")
    pixels = record["data"]["fingerprint"], result["data"]["fingerprint"]
    if pixels[0] != pixels[1]:
        print(f"pixels: fingerprint {pixels[0]} → {pixels[1]}")
    same_hash = record["config_hash"] == result["config_hash"]
    print(f"hash: {'equal' if same_hash else 'differs: see resnet-se record'}")
    agreement = {"weights": weights_agree(run_dir, again)}
    for part, key in FIGURES:
        agreement[f"{part}/{key}"] = digits(
            record[part].get(key), result[part].get(key)
        )
    for name, text in agreement.items():
        print(f"{name}: {text}")
    return all(text.startswith("equal") for text in agreement.values())


def main() -> None:
    """Console entry: `resnet-se reproduce RUN`; status 1 where something differs."""
    parser = argparse.ArgumentParser(prog="resnet-se reproduce", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path)
    parser.add_argument("--keep", type=Path, help="keep the new run under this folder")
    arguments = parser.parse_args()
    try:
        if arguments.keep:
            agrees = reproduce(arguments.run, arguments.keep.resolve())
        else:
            with tempfile.TemporaryDirectory() as folder:
                agrees = reproduce(arguments.run, Path(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
