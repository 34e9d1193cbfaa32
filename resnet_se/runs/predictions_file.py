"""`predictions.npz`, what a run's network gave for every image of its test.

labels, logits          (N,) int64, (N, K) float32: of the test part, in order
tta                     (N, K) probabilities, where the run has test-time views
val_labels, val_logits  the same of the validation part
"""

from __future__ import annotations

import math
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file

NAME = "predictions.npz"
MOST_BYTES = 1 << 30  # of an array
PAIRS = (("labels", "logits"), ("val_labels", "val_logits"))


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays whole or not at all."""
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the labels and logits that are there, each checked before it is read.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, too large, or its arrays do not fit each other.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path}: expected a regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            there = {name.removesuffix(".npy") for name in archive.namelist()}
            wanted = [name for pair in PAIRS for name in pair if name in there]
            arrays = {name: _array(archive, name) for name in wanted}
        for labels, logits in PAIRS:
            if labels in arrays or logits in arrays:
                _check(arrays[labels], arrays[logits], logits)
        widths = {arrays[name].shape[1] for _, name in PAIRS if name in arrays}
        if len(widths) > 1:
            raise ValueError("logits and val_logits: expected as many classes")
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path}: no array {error}") from None
    except Exception as error:  # zipfile, zlib and NumPy: each has its own kinds
        raise UserError(f"{path}: damaged ({error})") from None
    return arrays


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        shape, dtype = _header(file)
    size = math.prod(shape) * dtype.itemsize
    if size > MOST_BYTES or info.file_size > MOST_BYTES + 4096:
        raise ValueError(f"{name}: expected at most {MOST_BYTES >> 20} MB")
    if dtype.kind != ("i" if name.endswith("labels") else "f"):
        raise ValueError(f"{name}: got numbers of type {dtype}")
    with archive.open(info) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array that has not been read."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # NumPy's own for plain types; others may be of any length
        raise ValueError(f"version 1.0 of the format expected, got {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _check(labels: np.ndarray, logits: np.ndarray, name: str) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
        raise ValueError(
            f"{name}: expected a row for each label, got {logits.shape} for "
            f"{labels.shape}"
        )
    if not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"{name}: labels expected in 0..{logits.shape[1] - 1}")
    if not np.isfinite(logits).all():
        raise ValueError(f"{name}: finite numbers expected")
