"""Checkpoints as files: written whole, verified at every read, chosen to resume from.

A checkpoint is torch's own zip file, loadable with `weights_only=True`.  Its zip
comment holds the SHA-256 of everything before it, so that no flipped byte goes unseen.
A run keeps three under `checkpoints/`:

    best.ckpt       of the best epoch, by default that of the lowest validation loss
    last.ckpt       of the last epoch, or step where one was asked for
    previous.ckpt   what `last.ckpt` was before, until the next one is on disk

The best epoch is decided in `training.callbacks.checkpointing`.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file, read_regular

if TYPE_CHECKING:
    from torch import nn

DATA = "ImageDataModule"  # the data module's part of a checkpoint
OPTIMIZER = "optimizer"  # the name of its class
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"

MARK = b"sha256:"
COMMENT = len(MARK) + 64  # and as many hexadecimal digits
MAX_BYTES = 64 << 30  # bytes
END = 22  # bytes of a zip file's end without a comment


# --- files -------------------------------------------------------


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint whole, on disk, or not at all; the old one stays until."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    archive = buffer.getbuffer()
    # A zip file ends with the length of its comment: two bytes, little endian.
    archive[-2:] = COMMENT.to_bytes(2, "little")
    backup = path.with_name(PREVIOUS) if path.name == LAST else None
    with atomic_file(path, backup) as file:
        file.write(archive)
        file.write(MARK + hashlib.sha256(archive).hexdigest().encode())


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint's contents; plain values and tensors only, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint.
    """
    try:
        content = read_regular(Path(path), MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"ckpt_path: no such file: {path}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not _is_whole(content):
        raise UserError(f"{path}: damaged, or no checkpoint: its checksum is not there")
    try:
        _check_members(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused
            loaded = torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from None
    problem = _problem(loaded) or _unlike_file(loaded, len(content))
    if problem:
        raise UserError(f"{path}: not a checkpoint: {problem}")
    return loaded


def _problem(loaded: Any) -> str | None:
    """Return what an untrusted file lacks that readers rely on, or None."""
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        return "it holds no state_dict"
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        return "its state_dict holds other things than tensors"
    for part in (DATA, "callbacks", "loops"):
        if not isinstance(loaded.get(part, {}), dict):
            return f"its {part} is no mapping"
    counts = [loaded.get("epoch", 0), loaded.get("global_step", 0)]
    data = loaded.get(DATA, {})
    place = data.get("place", {"epoch": 0, "done": 0})
    if not isinstance(place, dict) or place.keys() != {"epoch", "done"}:
        return f"its {DATA}.place is none"
    # A loop that has done a negative number of epochs would hardly end.
    if not all(
        map(_is_count, [*counts, *place.values(), *_leaves(loaded.get("loops"))])
    ):
        return "it counts epochs and steps in other things than whole numbers"
    so_far = loaded.get("epoch_so_far")
    if so_far is not None and not _is_triple(so_far):
        return "its epoch_so_far is not what one writes"
    size, classes = data.get("size", [1, 1]), data.get("classes", [])
    sound = (
        all(type(data[k]) is str for k in ("fingerprint", "decoder") if k in data)
        and all(_is_triple(data[k]) for k in ("mean", "std") if k in data)
        and (isinstance(classes, list) and all(type(name) is str for name in classes))
        and (isinstance(size, list) and len(size) == 2)
        and all(type(n) is int and 1 <= n <= 4096 for n in size)
    )
    return None if sound else f"its {DATA} is not what one writes"


def _check_members(content: bytes) -> None:
    """Raise ValueError at a compressed member: torch writes none, and reads any."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("expected its parts as they are, got compressed ones")


def _unlike_file(node: Any, size: int) -> str | None:
    """Return what is wrong with the tensors below a node of a file of `size` bytes."""
    if isinstance(node, Tensor):
        dense = node.layout is torch.strided and node.device.type == "cpu"
        if not dense or node.is_quantized or node.is_nested:
            return "it holds tensors that are sparse, quantised or without values"
        large = node.numel() * node.element_size() > size
        return "it holds a tensor larger than the file" if large else None
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list | tuple):
        return next((found for n in node if (found := _unlike_file(n, size))), None)
    return None


def _leaves(node: Any) -> list[Any]:
    """The leaves of nested mappings; none of null."""
    if isinstance(node, dict):
        return [leaf for inner in node.values() for leaf in _leaves(inner)]
    return [] if node is None else [node]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 53


def _is_triple(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == (3,)
        and bool(value.is_floating_point() and value.isfinite().all())
    )


def _is_whole(content: bytes) -> bool:
    """Return true if the checksum holds, or a plain zip file of torch's has none."""
    archive, comment = content[:-COMMENT], content[-COMMENT:]
    if comment.startswith(MARK):
        return comment == MARK + hashlib.sha256(archive).hexdigest().encode()
    end = content[-END:]
    return end.startswith(b"PK\5\6") and end.endswith(b"\0\0")


# --- resuming ----------------------------------------------------


class Choice(NamedTuple):
    """The checkpoint that training resumes from, and the damage of later ones."""

    path: Path
    checkpoint: dict[str, Any]
    damage: list[str]


def choose(folder: Path, run: str | None = None) -> Choice | None:
    """Return the newest whole checkpoint of a run: last, else previous, else best.

    Args:
        run: what `run` says in its checkpoints; another run's count as damaged.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        UserError: there are some, and all are damaged.
    """
    damage: list[str] = []
    for name in (LAST, PREVIOUS, BEST):
        path = folder / name
        if not path.exists():
            continue
        try:
            return Choice(path, read_own(path, run), damage)
        except UserError as error:
            damage.append(str(error))
    if damage:
        raise UserError(
            f"{'; '.join(damage)}; no checkpoint of this run can be read: restore one "
            "from a copy, or move the run directory away to train anew"
        )
    return None


def read_own(path: Path, run: str | None) -> dict[str, Any]:
    """Read a checkpoint unless another run has written it; None reads any."""
    loaded = read(path)
    writer = loaded.get("run", run)  # those of earlier versions do not say
    if run is not None and writer != run:
        raise UserError(f"{path}: a checkpoint of another run: {writer}")
    return loaded


def check_weights(checkpoint: dict[str, Any], path: Path, model: nn.Module) -> None:
    """Refuse a checkpoint of another architecture or without numbers, saying where.

    Raises:
        UserError: its tensors are not the model's, or hold NaN or infinities.
    """
    loaded = checkpoint["state_dict"]
    own = model.state_dict()
    for name in sorted(own.keys() | loaded.keys()):
        a, b = (tuple(s[name].shape) if name in s else None for s in (own, loaded))
        if a != b:
            raise UserError(
                f"{path}: a checkpoint of another architecture: {name} expected "
                f"{a or 'nowhere'}, got {b or 'nothing'}"
            )
        tensor = loaded[name]
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds values that are no finite numbers")
