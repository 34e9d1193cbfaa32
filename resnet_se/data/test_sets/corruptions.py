"""Corruptions of 32×32 images at five severities, after CIFAR-10-C.

Hendrycks & Dietterich 2019, arXiv 1903.12261, with the constants published for CIFAR
(`make_cifar_c.py`; ImageNet's leave nothing to recognise at this size).  The random
numbers are others: each image has its own stream by corruption, severity and index.
`OURS` differ in more: motion blur, and snow's, follow ImageMagick's documentation;
frost is a texture, where the original lays photographs of frost over the image.
Spatter, which is not among the 15 either, is left out.

Each takes float images (B, 3, 32, 32) in 0..1, the constants of a severity and a random
stream an image, and returns images that may leave 0..1.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from resnet_se.utils.random_streams import stream

SIDE = 32
Streams = Sequence[Generator]
Corruption = Callable[[Tensor, Any, Streams], Tensor]


def corrupt(images: Tensor, indices: Tensor, name: str, severity: int) -> Tensor:
    """Return uint8 images (B, 3, 32, 32), corrupted.

    Args:
        images: uint8 (B, 3, 32, 32).
        indices: (B,) of the images in their set, which choose the random streams.
        name: of `CORRUPTIONS`.
        severity: 1 to 5.
    """
    function, constants = CORRUPTIONS[name]
    streams = [stream(f"corruption {name}", severity, int(i)) for i in indices]
    x = function(images.float() / 255, constants[severity - 1], streams)
    # Rounded down, as the original does; a hundredth is for float32's error in whole
    # numbers, which its float64 does not have.
    return (x.clamp(0, 1) * 255 + 0.01).floor().to(torch.uint8)


# --- random numbers ----------------------------------------------


def _normal(x: Tensor, streams: Streams) -> Tensor:
    shape = x.shape[1:]
    return torch.stack([torch.randn(shape, generator=g) for g in streams])


def _uniform(shape: Sequence[int], streams: Streams, low: float, high: float) -> Tensor:
    draws = torch.stack([torch.rand(tuple(shape), generator=g) for g in streams])
    return low + (high - low) * draws


# --- noise -------------------------------------------------------


def gaussian_noise(x: Tensor, scale: float, streams: Streams) -> Tensor:
    return x + scale * _normal(x, streams)


def shot_noise(x: Tensor, photons: float, streams: Streams) -> Tensor:
    pairs = zip(x * photons, streams, strict=True)
    return (
        torch.stack([torch.poisson(rate, generator=g) for rate, g in pairs]) / photons
    )


def impulse_noise(x: Tensor, amount: float, streams: Streams) -> Tensor:
    """Salt and pepper, in each channel by itself."""
    hit = _uniform(x.shape[1:], streams, 0, 1) <= amount
    salt = _uniform(x.shape[1:], streams, 0, 1) <= 0.5
    return torch.where(hit, salt.float(), x)


def speckle_noise(x: Tensor, scale: float, streams: Streams) -> Tensor:
    return x + scale * x * _normal(x, streams)


# --- blur --------------------------------------------------------


@cache
def _gaussian(sigma: float, truncate: float, mode: str) -> Tensor:
    """Return the matrix (32, 32) of a Gaussian filter along a line.

    Args:
        mode: of the pixels beyond the edge: `nearest`, or `reflect`, edge doubled.
    """
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / max(sigma, 1e-9)) ** 2)
    at = np.arange(SIDE)[:, None] + offsets  # (32, 2 radius + 1)
    if mode == "nearest":
        at = at.clip(0, SIDE - 1)
    else:
        at = at % (2 * SIDE)
        at = np.minimum(at, 2 * SIDE - 1 - at)
    matrix = np.zeros((SIDE, SIDE))
    rows = np.broadcast_to(np.arange(SIDE)[:, None], at.shape)
    np.add.at(matrix, (rows, at), np.broadcast_to(weights / weights.sum(), at.shape))
    return torch.from_numpy(matrix).float()


def gaussian_blur(x: Tensor, sigma: float, streams: Streams = ()) -> Tensor:
    kernel = _gaussian(sigma, 4.0, "nearest")
    return kernel @ x @ kernel.T


def glass_blur(x: Tensor, c: tuple[float, int], streams: Streams) -> Tensor:
    """Pixels replaced by neighbours above or to the left, between two light blurs.

    The original means to swap the two, but of its rows of three channels, which are
    views, both end as the neighbour.
    """
    sigma, iterations = c
    x = (gaussian_blur(x, sigma).clamp(0, 1) * 255 + 0.01).floor() / 255
    places = range(SIDE - 1, 1, -1)
    shape = (iterations, len(places), len(places), 2)
    moves = (_uniform(shape, streams, 0, 2).long().clamp(max=1) - 1).movedim(0, -1)
    batch = torch.arange(len(x))
    x = x.permute(2, 3, 0, 1).contiguous()  # (H, W, B, 3)
    for step in moves:
        for h, row in zip(places, step, strict=True):
            for w, (dx, dy) in zip(places, row, strict=True):
                x[h, w] = x[h + dy, w + dx, batch]
    return gaussian_blur(x.permute(2, 3, 0, 1), sigma)


def defocus_blur(x: Tensor, c: tuple[float, float], streams: Streams) -> Tensor:
    """A disk whose edge is softened."""
    radius, sigma = c
    line = torch.arange(-2.0, 3.0)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).float()
    soft = torch.exp(-0.5 * (torch.arange(-1.0, 2.0) / sigma) ** 2)
    soft /= soft.sum()
    kernel = F.conv2d(
        (disk / disk.sum())[None, None], soft.outer(soft)[None, None], padding=1
    )
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)


def _motion(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Blur along one direction an image, with the weights of half a Gaussian."""
    steps = torch.arange(2.0 * radius + 1)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    angle = torch.deg2rad(degrees)[:, None]
    down = (steps * angle.sin() - 0.5).ceil().long()  # (B, steps)
    right = (steps * angle.cos() - 0.5).ceil().long()
    line, batch = torch.arange(SIDE), torch.arange(len(x))[:, None, None]
    out = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        rows = (line + down[:, i, None]).clamp(0, SIDE - 1)[:, :, None]
        columns = (line + right[:, i, None]).clamp(0, SIDE - 1)[:, None, :]
        out += weight * x[batch, :, rows, columns].movedim(-1, 1)
    return out


def motion_blur(x: Tensor, c: tuple[int, float], streams: Streams) -> Tensor:
    return _motion(x, *c, _uniform((), streams, -45, 45))


def _zoomed(x: Tensor, factor: float) -> Tensor:
    """Enlarge the middle, linearly, corners on corners."""
    crop = math.ceil(SIDE / factor)
    top = (SIDE - crop) // 2
    size = round(crop * factor)
    x = x[..., top : top + crop, top : top + crop]
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True)
    top = (size - SIDE) // 2
    return x[..., top : top + SIDE, top : top + SIDE]


def zoom_blur(x: Tensor, end: float, streams: Streams) -> Tensor:
    factors = np.arange(1, end, 0.01)
    return (x + sum(_zoomed(x, float(f)) for f in factors)) / (len(factors) + 1)


# --- weather -----------------------------------------------------


def _plasma(streams: Streams, decay: float) -> Tensor:
    """Return clouds (B, 32, 32) in 0..1, by diamonds and squares on a torus."""
    clouds = torch.zeros(len(streams), SIDE, SIDE)
    step, wobble = SIDE, 100.0
    while step >= 2:
        half = step // 2
        noise = wobble * _uniform(
            (3, SIDE // step, SIDE // step), streams, -wobble, wobble
        )
        corner = clouds[:, ::step, ::step]
        pairs = corner + corner.roll(-1, 1)
        clouds[:, half::step, half::step] = (pairs + pairs.roll(-1, 2)) / 4 + noise[
            :, 0
        ]
        centre = clouds[:, half::step, half::step]
        across = centre + centre.roll(1, 1) + corner + corner.roll(-1, 2)
        along = centre + centre.roll(1, 2) + corner + corner.roll(-1, 1)
        clouds[:, ::step, half::step] = across / 4 + noise[:, 1]
        clouds[:, half::step, ::step] = along / 4 + noise[:, 2]
        step, wobble = half, wobble / decay
    clouds = clouds - clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True)


def fog(x: Tensor, c: tuple[float, float], streams: Streams) -> Tensor:
    strength, decay = c
    top = x.amax((1, 2, 3), keepdim=True)
    return (x + strength * _plasma(streams, decay)[:, None]) * top / (top + strength)


def frost(x: Tensor, c: tuple[float, float], streams: Streams) -> Tensor:
    """Bluish white crystals: the ridges of clouds."""
    keep, strength = c
    ridges = 1 - (2 * _plasma(streams, 1.75) - 1).abs()  # (B, 32, 32)
    tint = torch.tensor([0.85, 0.93, 1.0])[:, None, None]
    return keep * x + strength * (0.35 + 0.65 * ridges[:, None] ** 2) * tint


def snow(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    mean, deviation, zoom, least, radius, sigma, keep = c
    flakes = _zoomed(mean + deviation * _normal(x[:, :1], streams), zoom)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    flakes = _motion(flakes, int(radius), sigma, _uniform((), streams, -135, -45))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (x * weights).sum(dim=1, keepdim=True)
    x = keep * x + (1 - keep) * torch.maximum(x, 1.5 * grey + 0.5)
    return x + flakes + flakes.rot90(2, (2, 3))


# --- colour ------------------------------------------------------


def brightness(x: Tensor, more: float, streams: Streams) -> Tensor:
    """Value of HSV, raised."""
    value = x.amax(dim=1, keepdim=True)
    raised = (value + more).clamp(0, 1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-6), raised)


def saturate(x: Tensor, c: tuple[float, float], streams: Streams) -> Tensor:
    """Saturation of HSV, scaled and shifted; a grey has the hue of red there."""
    factor, shift = c
    value = x.amax(dim=1, keepdim=True)
    spread = value - x  # (B, 3, H, W)
    saturation = spread.amax(dim=1, keepdim=True) / value.clamp_min(1e-6)
    wanted = (saturation * factor + shift).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0])[:, None, None] * value
    scaled = spread / saturation.clamp_min(1e-6)
    return value - wanted * torch.where(saturation > 0, scaled, red)


def contrast(x: Tensor, factor: float, streams: Streams) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * factor + mean


# --- digital -----------------------------------------------------


def _by_pil(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    arrays = [np.asarray(change(Image.fromarray(image))) for image in pixels]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def jpeg_compression(x: Tensor, quality: int, streams: Streams) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return _by_pil(x, compressed)


def pixelate(x: Tensor, share: float, streams: Streams) -> Tensor:
    small, box = (int(SIDE * share),) * 2, Image.Resampling.BOX
    return _by_pil(x, lambda im: im.resize(small, box).resize((SIDE, SIDE), box))


def _sampled(x: Tensor, columns: Tensor, rows: Tensor, corners: bool) -> Tensor:
    """Read images at places (B, 32, 32), linearly, mirrored beyond the edge."""
    at = torch.stack([columns, rows], dim=-1)
    at = 2 * at / (SIDE - 1) - 1 if corners else (2 * at + 1) / SIDE - 1
    return F.grid_sample(x, at, padding_mode="reflection", align_corners=corners)


def elastic_transform(
    x: Tensor, c: tuple[float, float, float], streams: Streams
) -> Tensor:
    """An affine map of three points moved, then smooth displacements."""
    alpha, sigma, moved = (SIDE * share for share in c)
    source = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])  # (x, y)
    target = source + _uniform((3, 2), streams, -moved, moved)
    target = F.pad(target, (0, 1), value=1.0)  # (B, 3, 3)
    back = torch.linalg.solve(target, source.expand(len(x), 3, 2))  # (B, 3, 2)
    rows, columns = torch.meshgrid(*[torch.arange(float(SIDE))] * 2, indexing="ij")
    grid = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)
    at = grid.view(1, -1, 3) @ back  # (B, 1024, 2)
    at = at.view(-1, SIDE, SIDE, 2)
    x = _sampled(x, at[..., 0], at[..., 1], corners=True)
    kernel = _gaussian(sigma, 3.0, "reflect")
    shift = alpha * (kernel @ _uniform((2, SIDE, SIDE), streams, -1, 1) @ kernel.T)
    return _sampled(x, columns + shift[:, 0], rows + shift[:, 1], corners=False)


# {name: (function, constants of severities 1 to 5)}
CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": (
        glass_blur,
        ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),
    ),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        elastic_transform,
        (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
# The 15 whose mean is the corruption error; the others are for tuning.
MAIN = tuple(CORRUPTIONS)[:15]
OURS = ("motion_blur", "snow", "frost")
