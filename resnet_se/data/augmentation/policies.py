"""Augmentation policies, searched and random, with a draw for each image of a batch.

* AutoAugment: Cubuk et al. 2019, arXiv 1805.09501, CIFAR-10's policy
* RandAugment: Cubuk et al. 2020, arXiv 1909.13719
* TrivialAugment (wide): Müller & Hutter 2021, arXiv 2103.10158

Operations, ranges and probabilities are torchvision's own tables.  Its transforms treat
one image, or a whole batch alike; here each image of a batch has its own draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2
from torchvision.transforms.v2 import functional

from resnet_se.data.augmentation.colour import grey

Policy = Literal["trivial", "randaugment", "autoaugment"]
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


class PolicyDraws(NamedTuple):
    """Parameters of `apply`, one row an image, k operations each."""

    operations: (
        Tensor  # (B, k) int64, numbers in `OPERATIONS`, in the order of their use
    )
    magnitudes: Tensor  # (B, k)


def transform(policy: Policy) -> v2.Transform:
    """Return torchvision's transform of one uint8 image (3, H, W)."""
    if policy == "autoaugment":
        return v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    return v2.RandAugment() if policy == "randaugment" else v2.TrivialAugmentWide()


# --- draws -------------------------------------------------------


class Space(NamedTuple):
    """The operations that a policy draws from, and their magnitudes."""

    operations: Tensor  # (M,) int64, numbers in `OPERATIONS`
    values: Tensor  # (M, bins), 0 where there is no magnitude
    signed: Tensor  # (M,) bool: the magnitude's sign is drawn as well


def _space(policy: v2.Transform, bins: int, height: int, width: int) -> Space:
    table = policy._AUGMENTATION_SPACE
    values = [function(bins, height, width) for function, _ in table.values()]
    return Space(
        torch.tensor([OPERATIONS.index(name) for name in table]),
        torch.stack([torch.zeros(bins) if v is None else v.float() for v in values]),
        torch.tensor([signed for _, signed in table.values()]),
    )


def draw(
    policy: Policy, n: int, height: int, width: int, generator: torch.Generator
) -> PolicyDraws:
    """Return the operations on n images of this size, and their magnitudes."""
    reference = transform(policy)

    def uniform() -> Tensor:
        return torch.rand(n, k, generator=generator)

    if isinstance(reference, v2.AutoAugment):
        k, space = 2, _space(reference, 10, height, width)
        names = list(reference._AUGMENTATION_SPACE)
        rows = [
            [(names.index(name), p, i or 0) for name, p, i in pair]
            for pair in reference._policies
        ]
        table = torch.tensor(rows)  # (25, k, 3)
        picked = table[torch.randint(len(table), (n,), generator=generator)]
        row, p, value = picked.unbind(2)  # (n, k)
        row, value, used = row.long(), value.long(), uniform() <= p
    else:
        k = reference.num_ops if isinstance(reference, v2.RandAugment) else 1
        bins = reference.num_magnitude_bins
        space = _space(reference, bins, height, width)
        row = torch.randint(len(space.operations), (n, k), generator=generator)
        used = torch.ones(n, k, dtype=torch.bool)
        if isinstance(reference, v2.RandAugment):
            value = torch.full((n, k), reference.magnitude)
        else:
            value = torch.randint(bins, (n, k), generator=generator)
    minus = space.signed[row] & (uniform() <= 0.5)
    magnitude = space.values[row, value] * torch.where(minus, -1, 1)
    return PolicyDraws(space.operations[row] * used, magnitude)  # 0 is the identity


# --- operations --------------------------------------------------


def apply(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Return uint8 (B, 3, H, W) after k operations on each image.

    Args:
        operations, magnitudes: (B, k), as in `PolicyDraws`; on the CPU: how many images
            an operation has must be known without waiting for the images' device.
    """
    for numbers, values in zip(operations.unbind(1), magnitudes.unbind(1), strict=True):
        images, device = images.clone(), images.device
        order = numbers.argsort(stable=True)
        same, *counts = numbers.bincount(minlength=len(OPERATIONS)).tolist()
        n = len(MOVES)  # which go together
        groups = [same, sum(counts[:n]), *counts[n:]]
        names = ["Identity", "Move", *CHANGES]
        where = _moved(order, device).split(groups)
        sizes = _moved(values[order], device).split(groups)
        kinds = _moved(numbers[order], device).split(groups)
        for name, rows, size, kind in zip(names, where, sizes, kinds, strict=True):
            if name == "Identity" or not len(rows):
                continue
            part = images.index_select(0, rows)
            if name == "Move":
                part = _move(part, kind, size)
            else:
                part = CHANGES[name](part, size[:, None, None, None])
            images.index_copy_(0, rows, part)
    return images


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def _move(images: Tensor, kind: Tensor, m: Tensor) -> Tensor:
    """Shear about the corner, shift, rotate about the centre; nearest, black outside.

    Args:
        kind, m: (B,), the number of each image's operation and its magnitude.
    """
    h, w = images.shape[-2:]
    x = torch.arange(w, device=images.device) - (w - 1) / 2  # from the centre
    y = torch.arange(h, device=images.device)[:, None] - (h - 1) / 2

    def only(name: str, value: Tensor) -> Tensor:  # 0 for the other operations
        return torch.where(kind == OPERATIONS.index(name), value, 0)[:, None, None]

    angle = torch.deg2rad(only("Rotate", m))
    shear_x, shear_y = only("ShearX", m), only("ShearY", m)
    cos, sin = angle.cos(), angle.sin()
    from_x = cos * x - sin * y + shear_x * (y + h / 2) - only("TranslateX", m.trunc())
    from_y = sin * x + cos * y + shear_y * (x + w / 2) - only("TranslateY", m.trunc())
    grid = torch.stack([from_x * (2 / w), from_y * (2 / h)], dim=3)  # (B, H, W, 2)
    moved = F.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    return moved.to(torch.uint8)


def _blended(images: Tensor, other: Tensor | float, m: Tensor) -> Tensor:
    """Return (1 + m) × images − m × other, truncated to levels as torchvision does."""
    ratio = 1 + m
    blend = images * ratio + other * (1 - ratio)
    return blend.clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) in whole levels."""
    return grey(images.float()).floor_()


def _sharpen(images: Tensor, m: Tensor) -> Tensor:
    h, w = images.shape[-2:]
    if h <= 2 or w <= 2:
        return images
    kernel = torch.full((3, 3), 1 / 13, device=images.device)
    kernel[1, 1] = 5 / 13
    x = images.float()
    inner = x[..., 1:-1, 1:-1]  # the rim stays
    blurred = F.conv2d(x, kernel.expand(3, 1, 3, 3), groups=3).round_()
    inner.add_(blurred.sub_(inner).mul_(-m))
    return x.clamp_(0, 255).to(torch.uint8)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    step = 2 ** (8 - bits.int())
    return (images.int() // step * step).to(torch.uint8)


# {operation: function of uint8 (B, 3, H, W) and magnitudes (B, 1, 1, 1)}
CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda x, m: _blended(x, 0.0, m),
    "Color": lambda x, m: _blended(x, _grey(x), m),
    "Contrast": lambda x, m: _blended(x, _grey(x).mean((1, 2, 3), keepdim=True), m),
    "Sharpness": _sharpen,
    "Posterize": _posterize,
    "Solarize": lambda x, m: torch.where(x >= 255 * m, 255 - x, x),
    "AutoContrast": lambda x, _: functional.autocontrast(x),
    "Equalize": lambda x, _: functional.equalize(x),
    "Invert": lambda x, _: 255 - x,
}
OPERATIONS = ("Identity", *MOVES, *CHANGES)
