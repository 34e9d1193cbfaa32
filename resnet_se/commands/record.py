"""Print the setting in a run's hash, or the keys in which two runs differ.

resnet-se record RUN
resnet-se record RUN RUN

Pixels and their decoder, which no hash holds, come first where they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from resnet_se.runs.record import check_fields, read_record
from resnet_se.utils.errors import UserError

# Of a record's `data`: what the pixels were, whatever the files are.
PIXELS = ("fingerprint", "decoder", "order")


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys of two settings whose values differ; a missing one is None."""
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    }


def _setting(run: str) -> tuple[str, dict[str, Any], dict[str, Any], str | None]:
    """Return hash, setting, pixels and `set_fingerprint` of a run."""
    path = Path(run)
    record = read_record(path / "result.json" if path.is_dir() else path)
    try:
        check_fields(record, {(str,): ["config_hash"], (dict,): ["setting"]})
    except UserError as error:
        raise UserError(f"{run}: {error}") from None
    data = record.get("data") or {}
    pixels = {f"data.{key}": data[key] for key in PIXELS if key in data}
    return record["config_hash"], record["setting"], pixels, data.get("set_fingerprint")


def main() -> None:
    """Console entry: `resnet-se record RUN [RUN]`."""
    parser = argparse.ArgumentParser(prog="resnet-se record", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", nargs="+", help="a run directory or its result.json")
    runs = parser.parse_args().run
    try:
        if len(runs) > 2:
            raise UserError(f"record: one run or two, got {len(runs)}")
        settings = [_setting(run) for run in runs]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if len(settings) == 1:
        print(json.dumps({"config_hash": settings[0][0], **settings[0][1]}, indent=2))
        return
    (first, setting, pixels, images), (second, other, others, same) = settings
    print(f"{first} {second}" if first != second else f"both {first}")
    changed = difference(pixels, others)
    if "data.fingerprint" not in changed:  # the same, whatever made them
        changed = {}
    elif images and images == same:
        print("  the same images in another order")
    for key, (a, b) in (changed | difference(setting, other)).items():
        print(f"  {key}: {a!r} → {b!r}")
