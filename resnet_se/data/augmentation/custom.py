"""The user's own transforms, each image or batch by a random stream of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from resnet_se.utils.errors import UserError
from resnet_se.utils.random_streams import derive_seed

Transform = Callable[[Tensor], Tensor]


def apply_custom(
    custom: Transform,
    images: Tensor,
    index: Tensor,
    seed: int,
    epoch: int,
) -> Tensor:
    """Return uint8 (B, 3, H, W) after `custom`, called image by image.

    Args:
        index: (B,), of the images in the training part; keys their streams.
    """
    with torch.random.fork_rng(devices=[]):
        results = []
        for i, image in zip(index.tolist(), images, strict=True):
            torch.default_generator.manual_seed(derive_seed("own", seed, epoch, i))
            results.append(custom(image))
    return torch.stack(results)


def apply_custom_batch(
    custom: Transform,
    images: Tensor,
    first: int,
    seed: int,
    epoch: int,
) -> Tensor:
    """Return uint8 (B, 3, H, W) after `custom`, called once.

    Args:
        first: index of the batch's first image; keys its stream.
    """
    with torch.random.fork_rng(devices=[]):
        stream_seed = derive_seed("own_batch", seed, epoch, first)
        torch.default_generator.manual_seed(stream_seed)
        result: Tensor = custom(images)
    return result


def check_custom(key: str, custom: Transform, shape: tuple[int, ...]) -> None:
    """Raise UserError, naming `augment.<key>`, unless uint8 keeps dtype and shape."""
    where = f"augment.{key}: {type(custom).__name__}"
    try:
        with torch.random.fork_rng(devices=[]):
            result = custom(torch.zeros(shape, dtype=torch.uint8))
    except Exception as error:
        raise UserError(f"{where} fails on uint8 {shape}: {error}") from error
    dtype, size = (getattr(result, part, None) for part in ("dtype", "shape"))
    if dtype != torch.uint8 or size != shape:
        got = f"{dtype} {tuple(size)}" if dtype and size else type(result).__name__
        raise UserError(f"{where}: expected torch.uint8 {shape} back, got {got}")
