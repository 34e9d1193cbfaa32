"""MedMNIST's files (Yang et al. 2023, arXiv 2110.14795), and others of that form.

An `.npz` of `train_images` (N, H, W) or (N, H, W, 3), uint8, `train_labels` (N,) or
(N, 1), the same of `test`, and of `val`, where there is such a part.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from resnet_se.data.image_set import TENSORS, ImageSet
from resnet_se.data.reading import Limits, root_error


def read_npz(path: Path, limits: Limits) -> ImageSet:
    """Return the images of a file; the classes are named by their numbers.

    Raises:
        UserError: it is damaged or too large, lacks an array, or has one of another
            shape or dtype; labels are no whole numbers from 0 on, or too few.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(info.file_size for info in file.infolist())
        limits.check_bytes(f"arrays in {path}", size)
        with np.load(path, allow_pickle=False) as file:
            for part in ("train", "test", "val"):
                for name in (f"{part}_images", f"{part}_labels"):
                    if name in file:
                        arrays[name] = file[name]
                    elif part != "val":
                        got = ", ".join(sorted(file)) or "nothing"
                        raise root_error(f"an array {name} in {path}", got)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise root_error("a whole .npz file", f"{path} ({error})") from None
    tensors: dict[str, torch.Tensor] = {}
    for part in ("train", "test", "val"):
        if f"{part}_images" in arrays and f"{part}_labels" in arrays:
            images = _pixels(arrays.pop(f"{part}_images"), f"{part}_images", path)
            labels = arrays.pop(f"{part}_labels")
            tensors[f"{part}_images"] = images
            tensors[f"{part}_labels"] = _labels(labels, len(images), part, path)
    count = int(tensors["train_labels"].max()) + 1
    if count > len(tensors["train_labels"]):
        got = f"label {count - 1} of {len(tensors['train_labels'])} images in {path}"
        raise root_error("train_labels with images of every class", got)
    classes = tuple(str(k) for k in range(count))
    return ImageSet(
        *("image_folder", "NumPy arrays", classes),
        *(tensors[name] for name in TENSORS),
        val_images=tensors.get("val_images"),
        val_labels=tensors.get("val_labels"),
    )


def _pixels(images: np.ndarray, name: str, path: Path) -> torch.Tensor:
    """Return uint8 (N, 3, H, W) of grey or coloured images."""
    grey = images.ndim == 3
    fits = images.dtype == np.uint8 and len(images) and images.shape[3:] in ((), (3,))
    if not fits:
        got = f"{images.dtype} {images.shape} in {path}"
        raise root_error(f"{name} uint8 (N, H, W) or (N, H, W, 3)", got)
    if grey:
        images = np.broadcast_to(images[..., None], (*images.shape, 3))
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _labels(labels: np.ndarray, count: int, part: str, path: Path) -> torch.Tensor:
    """Return int64 (N,)."""
    fits = labels.shape in ((count,), (count, 1)) and labels.dtype.kind in "iu"
    if not fits:
        expected = f"{part}_labels of whole numbers, ({count},) or ({count}, 1),"
        raise root_error(expected, f"{labels.dtype} {labels.shape} in {path}")
    flat = labels.reshape(-1).astype(np.int64)
    if flat.min() < 0:
        raise root_error(f"{part}_labels from 0 on in {path}", int(flat.min()))
    return torch.from_numpy(flat)
