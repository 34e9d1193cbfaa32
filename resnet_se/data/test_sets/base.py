"""The test set: labelled images on which a trained network is tested, not trained.

A test set is a small object whose constructor does no I/O and which has

- `key()`: its name, and that of the variant: `cifar10_1-v6`;
- `load(trained)`: its parts, one or many (a corruption at a severity), one at a time.

Images keep their own size; the network resizes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet_se.data.reading import root_error
from resnet_se.utils.errors import UserError, nearest


class Trained(NamedTuple):
    """Facts of the network to be tested; `own` loads the run's own test part."""

    classes: tuple[str, ...]
    size: tuple[int, int]
    own: Callable[[], tuple[Tensor, Tensor]]


class LabelledImages(NamedTuple):
    """Images, uint8 (N, 3, H, W), and labels, int64 (N,), of the run's classes.

    `name` and `severity` tell the parts of a set apart; `people` (N, K) are shares of
    the people who chose each class.
    """

    images: Tensor
    labels: Tensor
    name: str = ""
    severity: int = 0
    people: Tensor | None = None


class TestSet(ABC):
    """A test set; `origin` is one line on what it is."""

    origin: str = ""

    @abstractmethod
    def key(self) -> str:
        """Return the name of the set and its variant."""

    @abstractmethod
    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        """Yield the parts.

        Raises:
            UserError: a file is missing, damaged, of another shape or type, or its
                labels are not those of the network.
        """


def indices_of(names: tuple[str, ...], classes: tuple[str, ...]) -> Tensor:
    """Return the index among the network's classes of each of these, int64.

    Raises:
        UserError: the network does not know one.
    """
    for name in names:
        if name not in classes:
            hint = nearest(name, classes)
            raise UserError(f"data: the network knows no class {name!r}; {hint}")
    return torch.tensor([classes.index(name) for name in names])


def found_file(root: Path, names: tuple[str, ...]) -> Path:
    """Return the first of these paths below `root` that is there, or `root` itself.

    Raises:
        UserError: none is.
    """
    if root.is_file() and root.name in {Path(name).name for name in names}:
        return root
    for name in names:
        if (root / name).exists():
            return root / name
    got = "nothing is there" if not root.exists() else "no such file"
    raise root_error(f"{names[0]} in {root}", got)


def read_array(path: Path, expected: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return a `.npy` file, not read whole until it is used.

    Args:
        expected: its content in words, for messages.
        shape: None is any length.

    Raises:
        UserError: it is not there, truncated, holds objects, or has another shape.
    """
    expected = f"{expected} in {path}"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise root_error(expected, f"no whole .npy file ({reason})") from error
    if not isinstance(array, np.ndarray):
        raise root_error(expected, "an archive of arrays (.npz)")
    fits = array.ndim == len(shape) and all(
        n in (None, m) for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise root_error(expected, f"the shape {array.shape}")
    return array


def read_images(path: Path, size: int | None = None) -> Tensor:
    """Return uint8 (N, 3, H, W) of an array (N, H, W, 3).

    Raises:
        UserError: as `read_array`; or another type.
    """
    side = f"{size or 'H'}, {size or 'W'}"
    expected = f"images, uint8 (N, {side}, 3),"
    array = read_array(path, expected, (None, size, size, 3))
    if array.dtype != np.uint8:
        raise root_error(f"{expected} in {path}", array.dtype)
    if 0 in array.shape:
        raise root_error(f"{expected} in {path}", f"the shape {array.shape}")
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2)


def read_labels(path: Path, images: int, classes: int) -> Tensor:
    """Return int64 (N,) of as many labels as there are images, in 0 … K − 1.

    Raises:
        UserError: as `read_array`; floats, another number, or labels outside.
    """
    return checked_labels(
        read_array(path, "labels (N,)", (None,)), path, images, classes
    )


def checked_labels(array: np.ndarray, path: Path, images: int, classes: int) -> Tensor:
    """Return int64 (N,); raises as `read_labels`."""
    if not np.issubdtype(array.dtype, np.integer):
        raise root_error(f"labels as integers in {path}", array.dtype)
    if array.shape != (images,):
        got = f"{len(array):,}" if array.ndim == 1 else f"the shape {array.shape}"
        raise root_error(f"{images:,} labels, one an image, in {path}", got)
    outside = array[(array < 0) | (array >= classes)]
    if len(outside):
        raise root_error(f"labels from 0 to {classes - 1} in {path}", int(outside[0]))
    return torch.from_numpy(array.astype(np.int64))
