"""Geometry: crop and flip, which move whole pixels, and the affine map between them.

Pure functions of a batch and of parameters drawn for each of its images.  Everything
stays on the images' device and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

Fill = Literal["black", "nearest", "reflect"]
AffineOrder = Literal["torchvision", "keras"]
PADDING_MODES = {"black": "zeros", "nearest": "border", "reflect": "reflection"}


class AffineDraws(NamedTuple):
    """Parameters of `resample`, one row an image."""

    angle: Tensor  # (B,) degrees
    shear: Tensor  # (B,) degrees along x
    scale: Tensor  # (B,) factors, or (B, 2): across and down
    shift: Tensor  # (B, 2) pixels down and to the right


@dataclass(frozen=True)
class AffineRanges:
    """Ranges of an affine map, as `Augmentation` has them."""

    rotation: float
    shift: float
    shear: float
    zoom: float
    zoom_axes: int = 1
    whole_shifts: bool = True
    order: AffineOrder = "torchvision"

    def draw(
        self, n: int, height: int, width: int, uniform: Callable[..., Tensor]
    ) -> AffineDraws:
        """Return the parameters of n images of this size.

        Args:
            uniform: (name, limit, columns) → (n, *columns) in ±limit.
        """
        zoom = 1 + uniform("scale", self.zoom, (2,) if self.zoom_axes == 2 else ())
        shift = uniform("shift", 1, (2,)) * (self.shift * torch.tensor([height, width]))
        return AffineDraws(
            angle=uniform("angle", self.rotation),
            shear=uniform("shear", self.shear),
            # Keras multiplies the result's coordinates: a zoom above 1 shrinks.
            scale=1 / zoom if self.order == "keras" else zoom,
            shift=shift.round() if self.whole_shifts else shift,
        )


class RandomAffine(v2.Transform):
    """An affine map of one image, for torchvision's engine, where its own differs."""

    def __init__(self, ranges: AffineRanges, fill: Fill):
        super().__init__()
        self.ranges = ranges
        self.fill = fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        def uniform(_: str, limit: float, columns: tuple[int, ...] = ()) -> Tensor:
            return (2 * torch.rand(1, *columns) - 1) * limit

        height, width = flat_inputs[0].shape[-2:]
        return {"draws": self.ranges.draw(1, height, width, uniform)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        order = self.ranges.order
        x = resample(inpt[None].float(), params["draws"], None, self.fill, order)
        return x[0].round().to(torch.uint8)


def crop_flip(
    images: Tensor, origin: Tensor | None, padding: int, mirror: Tensor | None
) -> Tensor:
    """Return a crop of each reflection-padded image, mirrored where asked.

    Args:
        images: (B, C, H, W) of any dtype, of which the result is as well.
        origin: (B, 2) int64, y and x of the crop in the padded image, 0..2·padding;
            None where there is no padding.
        mirror: (B,) bool; None mirrors nothing.
    """
    b, c, h, w = images.shape
    y, x = (0, 0) if origin is None else origin.unsqueeze(2).unbind(1)  # (B, 1)
    rows = _reflected(y, h, padding, images.device).expand(b, h)
    columns = _reflected(x, w, padding, images.device).expand(b, w)
    if mirror is not None:
        columns = torch.where(mirror[:, None], columns.flip(1), columns)
    # One gather for crop and flip; its index is the same for all channels.
    index = (rows[:, :, None] * w + columns[:, None, :]).view(b, 1, h * w)
    pixels = images.reshape(b, c, h * w).gather(2, index.expand(b, c, h * w))
    return pixels.view(b, c, h, w)


def _reflected(
    start: Tensor | int, n: int, padding: int, device: torch.device
) -> Tensor:
    """Return which of n pixels stand in a crop that begins `start` into the padding."""
    i = (torch.arange(-padding, n - padding, device=device) + start).abs()
    return (n - 1) - ((n - 1) - i).abs()


def resample(
    images: Tensor,
    draws: AffineDraws,
    mirror: Tensor | None,
    fill: Fill = "black",
    order: AffineOrder = "torchvision",
) -> Tensor:
    """Shear, scale, rotate, shift and flip float (B, C, H, W), in one reading.

    Args:
        mirror: (B,) bool; the flip comes last.
        fill: of pixels from outside: black, the nearest, or the image reflected (the
            pixel at the edge twice, SciPy's `reflect`).
        order: that of torchvision's `affine`, or of Keras's `apply_affine_transform`:
            the shift before the rotation, and a shear that scales y by its cosine.
            Both are about the centre.
    """
    h, w = images.shape[-2:]
    angle, tan = torch.deg2rad(draws.angle), torch.deg2rad(draws.shear).tan()
    cos, sin = angle.cos(), angle.sin()
    # Pixels from the centre of the result, before its shift and flip.
    x = torch.arange(w, device=images.device) - (w - 1) / 2  # (W,)
    y = torch.arange(h, device=images.device) - (h - 1) / 2  # (H,)
    if mirror is not None:
        x = torch.where(mirror[:, None], -x, x)
    down, right = draws.shift[:, :1], draws.shift[:, 1:]  # (B, 1)
    # The inverse map's columns; grid_sample counts in half sides.  No matrix product:
    # TF32 would leave the coordinates ten bits.
    unit = 2 / (draws.scale if draws.scale.ndim == 2 else draws.scale.unsqueeze(1))
    if order == "torchvision":
        x, y = x - right, y - down  # (B, W), (B, H)
        per_x = unit * torch.stack([(cos - sin * tan) / w, -sin / h], dim=1)  # (B, 2)
        per_y = unit * torch.stack([(cos * tan + sin) / w, cos / h], dim=1)  # (B, 2)
        columns = per_x[:, :, None] * x.expand(len(cos), w)[:, None, :]  # (B, 2, W)
    else:
        # x_in = R (S z + t): the shear S of the zoomed z, the shift t, the rotation R.
        sheared = angle - torch.deg2rad(draws.shear)
        half = unit.new_tensor([2 / w, 2 / h])
        across = torch.stack([cos, -sin], dim=1) * half  # (B, 2)
        along = torch.stack([sin, cos], dim=1) * half  # (B, 2)
        per_x = unit[:, :1] / 2 * across
        per_y = torch.stack([sheared.sin(), sheared.cos()], dim=1) * half
        per_y = per_y * unit[:, -1:] / 2
        moved = across * right + along * down
        columns = per_x[:, :, None] * x.expand(len(cos), w)[:, None, :]  # (B, 2, W)
        columns = columns - moved[:, :, None]
    rows = per_y[:, :, None] * y.expand(len(cos), h)[:, None, :]  # (B, 2, H)
    # (B, 2, H, W): as planes, which the CPU reads fastest.
    grid = rows[:, :, :, None] + columns[:, :, None, :]
    mode = PADDING_MODES[fill]
    places = grid.permute(0, 2, 3, 1)
    return F.grid_sample(images, places, padding_mode=mode, align_corners=False)
