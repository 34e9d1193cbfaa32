"""The image set and its cache.

Decoded images are kept in `cache_folder()` as `<key>.npz`, whose checksums show damage,
with the decoder that made them: another one's are decoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from resnet_se.data.decode import decoder
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file
from resnet_se.utils.system import cache_folder

log = logging.getLogger(__name__)

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
VAL_TENSORS = ("val_images", "val_labels")


class DataNotFound(UserError):
    """Data that are neither on disk nor to be had from the network."""


class DatasetInfo(NamedTuple):
    """Identity of an image set, without its pixels."""

    name: str
    origin: str
    classes: tuple[str, ...]
    fingerprint: str
    order: str
    set_fingerprint: str


@dataclass(frozen=True, eq=False)  # `==` of tensors has no single truth value
class ImageSet:
    """Images, uint8 (N, 3, H, W), and labels, int64 (N,), to train and to test on.

    Args:
        name: of the kind of source.
        origin: one line on where the pixels came from.
        order: of the images: `files`, as they lie there; `content`, sorted by their
            pixels' digests, the same however they are wrapped; `official`.
        val_images, val_labels: a part to validate on, where the source has its own.

    Raises:
        UserError: shapes, dtypes, labels and classes do not fit each other.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    order: str = field(default="files", kw_only=True)
    val_images: torch.Tensor | None = field(default=None, kw_only=True)
    val_labels: torch.Tensor | None = field(default=None, kw_only=True)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Images and labels of all parts that there are, by their names here."""
        names = TENSORS if self.val_images is None else TENSORS + VAL_TENSORS
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        k, size = len(self.classes), tuple(self.train_images.shape[2:])
        if k < 2 or len(set(self.classes)) < k:
            raise _misfit("classes", "2 or more different names", self.classes)
        for name in list(self.tensors)[::2]:
            split = name.removesuffix("_images")
            images = getattr(self, name)
            labels = getattr(self, f"{split}_labels")
            n, shape = len(images), tuple(images.shape)
            fits = images.ndim == 4 and shape == (n, 3, *size)
            if images.dtype != torch.uint8 or not fits:
                expected = f"uint8 (N, 3, H, W), H and W as in the other split, {size}"
                raise _misfit(f"{split}_images", expected, f"{images.dtype} {shape}")
            if labels.dtype != torch.int64 or tuple(labels.shape) != (n,):
                got = f"{labels.dtype} {tuple(labels.shape)}"
                raise _misfit(f"{split}_labels", f"int64 ({n},)", got)
            outside = labels[(labels < 0) | (labels >= k)].tolist()
            if outside:
                raise _misfit(f"{split}_labels", f"0 to {k - 1}", outside[0])
        absent = set(range(k)) - set(self.train_labels.tolist())
        if absent:
            got = f"none of {self.classes[min(absent)]!r}"
            raise _misfit("train_labels", "images of every class", got)

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:` and 16 hex digits; of classes, shapes, pixels and labels alone."""
        tensors = list(self.tensors.values())
        shapes = [list(tensor.shape) for tensor in tensors]
        digest = hashlib.sha256(json.dumps([list(self.classes), shapes]).encode())
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy().data)
        return f"sha256:{digest.hexdigest()[:16]}"

    @cached_property
    def set_fingerprint(self) -> str:
        """The same for the same images in any order: other wrappings, other names."""
        tensors = list(self.tensors.values())
        shapes = [list(tensor.shape) for tensor in tensors]
        digest = hashlib.sha256(json.dumps([list(self.classes), shapes]).encode())
        for images, labels in zip(tensors[::2], tensors[1::2], strict=True):
            digest.update(b"".join(sorted(image_digests(images, labels))))
        return f"sha256:{digest.hexdigest()[:16]}"

    @property
    def info(self) -> DatasetInfo:
        facts = self.name, self.origin, self.classes, self.fingerprint, self.order
        return DatasetInfo(*facts, self.set_fingerprint)


def image_digests(images: torch.Tensor, labels: torch.Tensor) -> list[bytes]:
    """Return a digest of each image (N, C, H, W) with its label."""
    pixels = images.contiguous().numpy()
    return [
        hashlib.sha256(b"%d\0" % y + pixels[i].data).digest()
        for i, y in enumerate(labels.tolist())
    ]


def _misfit(argument: str, expected: str, got: object) -> UserError:
    return UserError(f"ImageSet.{argument}: expected {expected}, got {got}")


def cached(key: str, build: Callable[[], ImageSet]) -> ImageSet:
    """Return `build()`, or what the cache has of it where that is whole."""
    path = cache_folder() / f"{key}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "decoder" not in arrays or str(arrays["decoder"]) != decoder():
                raise FileNotFoundError
            names = [n for n in TENSORS + VAL_TENSORS if n in arrays]
            tensors = {name: torch.from_numpy(arrays[name]) for name in names}
            name, origin, *classes = arrays["text"].tolist()
            order = str(arrays["order"]) if "order" in arrays else "files"
        return ImageSet(name, origin, tuple(classes), order=order, **tensors)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # zipfile, zlib, NumPy, ImageSet: each has its own kind
        log.warning("Cache file %s is damaged (%s): building it again", path, error)
    images = build()
    arrays = {name: tensor.numpy() for name, tensor in images.tensors.items()}
    text = np.array([images.name, images.origin, *images.classes])
    made = {"order": np.array(images.order), "decoder": np.array(decoder())}
    try:
        with atomic_file(path) as target:
            members: dict[str, Any] = {"text": text, **made, **arrays}
            np.savez(target, **members)
    except OSError as error:
        log.warning("Images are not cached, the next run decodes again: %s", error)
    return images
