"""The bundle, a trained network in a folder or a .zip: its files, read and verified.

    model.safetensors  the weights
    config.json        the run's configuration
    result.json        its record
    bundle.json        classes, preprocessing, the SHA-256 of the three above, its own
    README.md          the model card
    hubconf.py         for torch.hub; nothing here runs it

Nothing of it is a pickle.  The checksums show damage; against an untrusted
author stands `check_network`: only a network of this package is built, called with
plain values.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from resnet_se.utils.errors import UserError

FORMAT = 2  # 1 had no checksum of the manifest
MANIFEST, WEIGHTS = "bundle.json", "model.safetensors"
CONFIG, RECORD = "config.json", "result.json"
VERIFIED = (WEIGHTS, CONFIG, RECORD)
MAX_BYTES = {WEIGHTS: 4 << 30}  # of the others:
MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Content:
    """All that makes a trained network usable.

    `weights` {name in the network's state: tensor}; `size` (H, W); `mean` and `std`
    (3,), in 0..1.
    """

    weights: dict[str, Tensor]
    classes: tuple[str, ...]
    size: tuple[int, int]
    mean: Tensor
    std: Tensor
    fingerprint: str
    config: dict[str, Any]
    record: dict[str, Any] | None


def is_bundle(path: Path) -> bool:
    """Return true for a folder with a manifest, and for any .zip."""
    return (path.suffix == ".zip" and path.is_file()) or (path / MANIFEST).is_file()


def checksum(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of all in a manifest but its own checksum."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Content:
    """Read a bundle's content and verify it.

    Raises:
        UserError: a file is missing, too large, changed or not what it should be.
    """
    try:
        files = _from_zip(path) if path.is_file() else _from_folder(path)
        manifest = json.loads(files[MANIFEST])
        if manifest["format"] not in (1, FORMAT):
            raise ValueError(f"format {FORMAT} expected, got {manifest['format']!r}")
        if manifest["format"] != 1 and manifest["checksum"] != checksum(manifest):
            raise ValueError(f"{MANIFEST} is not what was bundled")
        for name in VERIFIED:
            if hashlib.sha256(files[name]).hexdigest() != manifest["files"][name]:
                raise ValueError(f"{name} is not what was bundled")
        config, record = json.loads(files[CONFIG]), json.loads(files[RECORD])
        return Content(
            weights=load(files[WEIGHTS]),
            config=_mapping(config),
            record=None if record is None else _mapping(record),
            **preprocessing(manifest),
        )
    except KeyError as error:
        raise UserError(f"{path}: not a bundle: {error} is missing") from None
    except (OSError, RecursionError, TypeError) as error:
        raise UserError(f"{path}: not a bundle: {error}") from None
    except Exception as error:  # of zipfile, safetensors, and the ValueErrors above
        raise UserError(f"{path}: a damaged bundle: {error}") from None


def preprocessing(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the part of `Content` that says what the network takes and gives.

    Raises:
        ValueError, KeyError, TypeError: it is not sound.
    """
    classes = manifest["classes"]
    if len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes: expected 2 or more names")
    size = tuple(manifest["size"])
    if len(size) != 2 or not all(type(n) is int and 1 <= n <= 4096 for n in size):
        raise ValueError(f"size: expected height and width in 1..4096, got {size}")
    for name in ("mean", "std"):
        values = manifest[name]
        if len(values) != 3 or not all(math.isfinite(v) for v in values):
            raise ValueError(f"{name}: expected three numbers, got {values}")
    return {
        "classes": tuple(classes),
        "size": size,
        "mean": torch.tensor(manifest["mean"], dtype=torch.float32),
        "std": torch.tensor(manifest["std"], dtype=torch.float32),
        "fingerprint": str(manifest["fingerprint"]),
    }


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a mapping expected, got {type(value).__name__}")
    return value


def _from_folder(folder: Path) -> dict[str, bytes]:
    files = {}
    for name in (MANIFEST, *VERIFIED):
        if not (folder / name).is_file():
            raise KeyError(name)
        if (folder / name).stat().st_size > MAX_BYTES.get(name, MAX_TEXT_BYTES):
            raise ValueError(f"{name} is too large")
        files[name] = (folder / name).read_bytes()
    return files


def _from_zip(path: Path) -> dict[str, bytes]:
    """Read the wanted members alone, into memory: no name in it becomes a path."""
    files = {}
    with zipfile.ZipFile(path) as archive:
        members = {
            info.filename.rpartition("/")[2]: info
            for info in archive.infolist()
            if info.filename.count("/") <= 1
        }
        for name in (MANIFEST, *VERIFIED):
            with archive.open(members[name]) as file:
                content = file.read(MAX_BYTES.get(name, MAX_TEXT_BYTES) + 1)
            if len(content) > MAX_BYTES.get(name, MAX_TEXT_BYTES):
                raise ValueError(f"{name} is too large")
            files[name] = content
    return files


# --- networks that may be built ----------------------------------


def check_network(node: Any, path: Path) -> None:
    """Refuse a network's configuration that could do anything but build it.

    Raises:
        UserError: its target is no network of this package, or an argument no plain
            value.
    """
    target = node.get("_target_") if isinstance(node, dict) else None
    if not _is_ours(target):
        raise UserError(
            f"{path}: its network is {target!r}, not one of resnet_se; "
            "load(…, trust=True) builds it if you trust whoever made the bundle"
        )
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    if any(key.startswith("_") for key in arguments) or not _is_plain(arguments):
        raise UserError(
            f"{path}: expected plain values as arguments of its network, got {node}"
        )


def _is_ours(target: Any) -> bool:
    """Return true for a class of networks, named in its own module of this package."""
    module, _, name = str(target).rpartition(".")
    if module.partition(".")[0] != "resnet_se":
        return False
    try:
        named = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return (
        inspect.isclass(named)
        and issubclass(named, nn.Module)
        and named.__module__ == module
    )


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        return depth == 0 and all(_is_plain(v, 1) for v in value.values())
    if isinstance(value, list):
        return len(value) <= 64 and all(_is_plain(v, depth + 1) for v in value)
    if isinstance(value, str):
        return "${" not in value
    if isinstance(value, int | float):
        return abs(value) <= 1 << 16
    return value is None
