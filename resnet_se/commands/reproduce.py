"""Trains a finished run again and compares the two, digit by digit.

    resnet-se reproduce RUN [--keep DIR] [--trust]

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
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from resnet_se.config import CONF
from resnet_se.config.command_line import quoted, top_level
from resnet_se.config.compose import compose_job, plain_values
from resnet_se.config.interpolations import texts
from resnet_se.config.schema import is_idle
from resnet_se.config.targets import GET_CLASS, targets
from resnet_se.runs.record import check_finished, read_result
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import environment

# Packages whose classes a recorded run may name.
KNOWN = ("resnet_se", "torch", "torchvision", "lightning", "timm", "hydra")
FIGURES = (
    ("test", "acc"),
    ("test", "acc_tta"),
    ("test", "loss"),
    ("val", "acc"),
    ("val", "loss"),
)


def command_of(
    run_dir: Path, record: dict[str, Any], runs_dir: Path, trust: bool = False
) -> list[str]:
    """Return the command line that trains the run again, its files under `runs_dir`.

    Raises:
        UserError: as `check_overrides`, unless trusted.
    """
    known = ("trainer.precision", "seed")  # the record says what they came to be
    kept = [o for o in record["overrides"] if str(o).partition("=")[0] not in known]
    precision = quoted(record["hardware"]["precision"])
    overrides = [*kept, f"trainer.precision={precision}"]
    if not trust:
        overrides = check_overrides(overrides, run_dir)
    overrides += [
        f"seed={record['seed']}",
        f"runs_dir={quoted(str(runs_dir))}",
        "plots=false",
        "logger=none",
    ]
    overrides += _data_of(run_dir, record, runs_dir)
    return [sys.executable, "-m", "resnet_se.train", *overrides]


def check_overrides(overrides: list[str], owner: Path) -> list[str]:
    """Return the overrides of a record that can change a result, once they are safe.

    Hydra's own keys can run code and read other folders, so they are refused before
    anything is composed; of what is composed targets and places are checked.

    Raises:
        UserError: Hydra's keys, a flag, an interpolation, a class that is not of this
            package or one that it builds on, or a place outside of the run.
    """
    kept = []
    for word in overrides:
        try:
            parsed = OverridesParser.create().parse_override(word)
            key = parsed.key_or_group
        except (HydraException, TypeError):
            raise _untrusted(owner, repr(word), "no override") from None
        root = re.split(r"[./@]", key)[0]
        if root not in top_level("train") or root in ("hydra", "hparams_search"):
            raise _untrusted(owner, word, "not of a training alone")
        if "${" in word or parsed.is_sweep_override():
            raise _untrusted(owner, word, "not a plain value")
        if not (is_idle(key) or key == "force"):
            kept.append(word)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = plain_values(compose_job(kept))
    for path, node in targets(values, ""):
        named = [node["_target_"]]
        if named == [GET_CLASS]:
            named.append(node.get("path"))
        if any(str(name).partition(".")[0] not in KNOWN for name in named):
            raise _untrusted(owner, f"{path}: {named[-1]}", "code of another package")
    for group in ("callbacks", "trainer"):
        for path, text in texts(values.get(group), group):
            if text.startswith(("/", "~")) or ".." in Path(text).parts or ":" in text:
                raise _untrusted(owner, f"{path}={text}", "a place outside of the run")
    return kept


def _untrusted(owner: Path, what: str, why: str) -> UserError:
    return UserError(
        f"{owner}: its record has {what}, which is {why}; --trust does it all the "
        "same, if you trust whoever made the run"
    )


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


def reproduce(run_dir: Path, folder: Path, trust: bool = False) -> bool:
    """Train again under `folder`, print the comparison; return true if all agrees.

    Raises:
        UserError: the run is not finished, or does not train again.
    """
    record = read_result(run_dir)
    if record is None or record["status"] != "finished":
        raise UserError(f"{run_dir}: expected the directory of a finished run")
    check_finished(record, run_dir)
    from resnet_se.data.decode import decoder

    then, now = record["data"].get("decoder"), decoder()
    if then not in (None, now):
        print(f"data: decoded then by {then}, now by {now}")
    for line in differences(record, environment()):
        if not line.startswith("hardware"):  # told below, from the new record
            print(f"environment: {line}")
    command = command_of(run_dir, record, folder, trust)
    done = subprocess.run(command, check=False)
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
    parser.add_argument("--trust", action="store_true", help="of a run of your own: "
                        "also its code of other packages, and its places")  # fmt: skip
    arguments = parser.parse_args()
    try:
        if arguments.keep:
            agrees = reproduce(arguments.run, arguments.keep.resolve(), arguments.trust)
        else:
            with tempfile.TemporaryDirectory() as folder:
                agrees = reproduce(arguments.run, Path(folder), arguments.trust)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
