"""Searched and random policies of augmentation, on a batch with a draw for each image.

* AutoAugment: Cubuk et al. 2019, arXiv 1805.09501, CIFAR-10's policy
* RandAugment: Cubuk et al. 2020, arXiv 1909.13719
* TrivialAugment (wide): Müller & Hutter 2021, arXiv 2103.10158

Operations, their ranges and their probabilities are torchvision's own tables; its
transforms treat one image, or a batch alike.  What is left here is to draw for many
images at once, and the operations with a magnitude, each image with its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2
from torchvision.transforms.v2 import functional

Policy = Literal["trivial", "randaugment", "autoaugment"]
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
# Luma weights of torchvision's `rgb_to_grayscale` (ITU-R 601-2).
GREY = (0.2989, 0.587, 0.114)


def transform(policy: Policy) -> v2.Transform:
    """torchvision's, of one uint8 image (3, H, W)."""
    if policy == "autoaugment":
        return v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    return v2.RandAugment() if policy == "randaugment" else v2.TrivialAugmentWide()


# --- draws -------------------------------------------------------


class Space(NamedTuple):
    """A policy's operations: numbers in `OPERATIONS`, their values, whether ± them."""

    operations: Tensor  # (M,)
    values: Tensor  # (M, bins), 0 where there is no magnitude
    signed: Tensor  # (M,) bool


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
) -> tuple[Tensor, Tensor]:
    """Operations (n, k) in the order of their use, and their magnitudes (n, k)."""
    theirs = transform(policy)

    def uniform() -> Tensor:
        return torch.rand(n, k, generator=generator)

    if isinstance(theirs, v2.AutoAugment):
        k, space = 2, _space(theirs, 10, height, width)
        names = list(theirs._AUGMENTATION_SPACE)
        rows = [
            [(names.index(name), p, i or 0) for name, p, i in pair]
            for pair in theirs._policies
        ]
        table = torch.tensor(rows)  # (25, k, 3)
        picked = table[torch.randint(len(table), (n,), generator=generator)]
        row, p, value = picked.unbind(2)  # (n, k)
        row, value, used = row.long(), value.long(), uniform() <= p
    else:
        k = theirs.num_ops if isinstance(theirs, v2.RandAugment) else 1
        bins = theirs.num_magnitude_bins
        space = _space(theirs, bins, height, width)
        row = torch.randint(len(space.operations), (n, k), generator=generator)
        used = torch.ones(n, k, dtype=torch.bool)
        if isinstance(theirs, v2.RandAugment):
            value = torch.full((n, k), theirs.magnitude)
        else:
            value = torch.randint(bins, (n, k), generator=generator)
    minus = space.signed[row] & (uniform() <= 0.5)
    magnitude = space.values[row, value] * torch.where(minus, -1, 1)
    return space.operations[row] * used, magnitude  # 0 is the identity


# --- operations --------------------------------------------------


def apply(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) → the same, k operations each.

    Args:
        operations, magnitudes: (B, k), on the CPU: how many images an operation has
            must be known without waiting for the images' device.
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
    """On the device, without waiting for it."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def _move(images: Tensor, kind: Tensor, m: Tensor) -> Tensor:
    """Shears about the corner, shifts, rotations about the centre; nearest, black."""
    h, w = images.shape[-2:]
    x = torch.arange(w, device=images.device) - (w - 1) / 2  # from the centre
    y = torch.arange(h, device=images.device)[:, None] - (h - 1) / 2

    def of(name: str, value: Tensor) -> Tensor:
        chosen = torch.where(kind == OPERATIONS.index(name), value, 0)
        return chosen[:, None, None]

    angle = torch.deg2rad(of("Rotate", m))
    shear_x, shear_y = of("ShearX", m), of("ShearY", m)
    cos, sin = angle.cos(), angle.sin()
    from_x = cos * x - sin * y + shear_x * (y + h / 2) - of("TranslateX", m.trunc())
    from_y = sin * x + cos * y + shear_y * (x + w / 2) - of("TranslateY", m.trunc())
    grid = torch.stack([from_x * (2 / w), from_y * (2 / h)], dim=3)  # (B, H, W, 2)
    moved = F.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    return moved.to(torch.uint8)


def _blended(images: Tensor, other: Tensor | float, m: Tensor) -> Tensor:
    """(1 + m) × images − m × other, cut off to whole levels as torchvision does."""
    ratio = 1 + m
    blend = images * ratio + other * (1 - ratio)
    return blend.clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W), whole levels."""
    r, g, b = images.float().split(1, dim=1)
    return (r * GREY[0]).add_(g, alpha=GREY[1]).add_(b, alpha=GREY[2]).floor_()


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


# Of uint8 (B, 3, H, W) and magnitudes (B, 1, 1, 1).
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
