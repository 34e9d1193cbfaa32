"""The inputs of `predict`, files and images in memory, as batches of pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnet_se.data.decode import to_pixels
from resnet_se.data.inference_inputs import batches, find_pictures
from resnet_se.utils.errors import UserError


def from_files(
    paths: Iterable[str | Path], size: tuple[int, int], batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Yield the names and the pixels (B, 3, H, W) of picture files."""
    with find_pictures(paths) as pictures:
        for batch in batches(pictures, size, batch_size):
            for name, reason in batch.broken.items():
                raise UserError(f"inputs: cannot read {name}: {reason}")
            names = [picture.name for picture in batch.pictures]
            yield names, torch.from_numpy(batch.pixels)


def from_memory(
    items: Iterable[Any], size: tuple[int, int], batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Yield no names and the pixels (B, 3, H, W) of images, those alike together."""
    parts = (part for item in items for part in _pixels(item, size).split(batch_size))
    for _, alike in groupby(parts, lambda part: (part.shape[1:], part.dtype)):
        waiting: list[Tensor] = []
        count = 0
        for part in alike:
            if count + len(part) > batch_size:
                yield [], torch.cat(waiting)
                waiting, count = [], 0
            waiting.append(part)
            count += len(part)
        yield [], torch.cat(waiting)


def _pixels(item: Any, size: tuple[int, int]) -> Tensor:
    """Convert an image or array of any kind to (N, 3, H, W), uint8 or in 0..1."""
    if isinstance(item, Image.Image):
        return _from_pil([item], size)
    shape, dtype = tuple(getattr(item, "shape", ())), getattr(item, "dtype", None)
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or not _is_picture(shape):
            raise UserError(
                "inputs: expected a uint8 array (H, W), (H, W, C) or (N, H, W, C) with "
                f"C = 1, 3 or 4, got {dtype} {shape}"
            )
        many = item if item.ndim == 4 else item[None]
        if many.ndim == 4 and many.shape[-1] == 3:
            return torch.from_numpy(np.ascontiguousarray(many)).permute(0, 3, 1, 2)
        many = many[..., 0] if many.shape[-1] == 1 and many.ndim == 4 else many
        return _from_pil([Image.fromarray(image) for image in many], size)
    if not isinstance(item, Tensor):
        kind = type(item).__name__
        raise UserError(f"inputs: expected paths, images or arrays, got {kind}")
    images = item[None] if item.ndim == 3 else item
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise UserError(
            f"inputs: expected a tensor (3, H, W) or (N, 3, H, W), got {shape}"
        )
    if images.dtype == torch.uint8:
        return images
    low, high = images.aminmax() if images.is_floating_point() else (-1, -1)
    if not (low >= 0 and high <= 1):
        got = f"{dtype} in {float(low):g}..{float(high):g}" if high != -1 else dtype
        raise UserError(
            f"inputs: expected a tensor of uint8, or floats in 0..1, got {got}"
        )
    return images.float()


def _is_picture(shape: tuple[int, ...]) -> bool:
    return 0 not in shape and (
        len(shape) == 2 or (len(shape) in (3, 4) and shape[-1] in (1, 3, 4))
    )


def _from_pil(images: list[Image.Image], size: tuple[int, int]) -> Tensor:
    try:
        arrays = [to_pixels(image, size) for image in images]
    except (ValueError, OSError) as error:
        raise UserError(f"inputs: cannot read the image: {error}") from None
    return torch.from_numpy(np.stack(arrays))
