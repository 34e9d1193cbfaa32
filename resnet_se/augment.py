"""Training augmentation: one description, `Augmentation`, for whichever engine runs it.

The paper (Data Augmentation) has rotation ±15°, shifts ±10 %, horizontal flip, shear
and zoom, and names random crops and colour jitter in its introduction.  A setting of
zero leaves its transform out.  The engine here is torchvision's `transforms.v2`, image
by image; every image draws from its own stream, keyed by (seed, epoch, index), so what
it looks like depends neither on the number of workers nor on where a run was
interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from resnet_se.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, in this order.

    Args:
        crop_padding: pixels of reflection padding before a random crop to the old size.
        rotation: largest angle, degrees, drawn from ±.
        shift: largest shift, fraction of height and width, drawn from ± each.
        shear: largest shear along x, degrees, drawn from ±.
        zoom: the scale is drawn from 1 ± zoom.
        flip: probability of a horizontal flip.
        jitter: brightness, contrast and saturation factors are drawn from 1 ± jitter.

    Raises:
        UserError: a value is out of its range.
    """

    crop_padding: int = 0
    rotation: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    flip: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        limits = {
            "crop_padding": 16,
            "rotation": 180,
            "shift": 1,
            "shear": 89,
            "zoom": 0.99,
            "flip": 1,
            "jitter": 1,
        }
        for name, top in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= top:
                raise UserError(f"{name}: expected 0..{top}, got {value}")

    def transform(self, height: int, width: int) -> v2.Transform | None:
        """The torchvision transform of uint8 (3, H, W), or None if it does nothing.

        Raises UserError where the padding cannot be reflected.

        Pixels that an affine map brings in from outside are black, Keras's
        `fill_mode="constant"`; a crop's are reflections.
        """
        if self.crop_padding >= min(height, width):
            raise UserError(
                f"augment.crop_padding: expected less than the image's side, "
                f"{min(height, width)}, got {self.crop_padding}"
            )
        steps: list[v2.Transform] = []
        if self.crop_padding:
            steps.append(
                v2.RandomCrop(
                    (height, width), padding=self.crop_padding, padding_mode="reflect"
                )
            )
        if self.rotation or self.shift or self.shear or self.zoom:
            steps.append(
                v2.RandomAffine(
                    degrees=self.rotation,
                    translate=(self.shift, self.shift),
                    scale=(1 - self.zoom, 1 + self.zoom),
                    shear=self.shear or None,
                    interpolation=InterpolationMode.BILINEAR,
                )
            )
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.jitter:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        return v2.Compose(steps) if steps else None


def derive_seed(purpose: str, *parts: int) -> int:
    """A 63-bit seed; another purpose or other parts give an unrelated stream."""
    # Not numpy's SeedSequence: to it (1,), (1, 0) and (1, 0, 0) are the same entropy.
    digest = hashlib.sha256(repr((purpose, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def kept_stream() -> Iterator[torch.Generator]:
    """torch's CPU generator, to be seeded at will; afterwards it is as it was."""
    before = torch.default_generator.get_state()
    try:
        yield torch.default_generator
    finally:
        torch.default_generator.set_state(before)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), in 0..1, of uint8 images (N, C, H, W)."""
    # From the 256-bin histograms: exact, and without a float copy of the data set.
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(c.reshape(-1), minlength=256) for c in images.transpose(0, 1)]
    ).double()  # (C, 256)
    total = counts.sum(dim=1)
    mean = (counts @ levels) / total
    var = (counts @ levels**2) / total - mean**2
    return mean.float(), var.clamp_min(0).sqrt().float()


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, C, H, W) → float32 of the same shape: (x/255 − mean) / std."""
    scale = 1 / (255 * std)
    return images.float() * scale[:, None, None] - (mean / std)[:, None, None]
