"""Test-time augmentation: the mean of the softmax probabilities over several views.

The paper averages predictions over augmented versions of the test images and names no
views; these (flips, shifts of a few pixels, small rotations) are our reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import validated

Pixels = Annotated[int, Field(ge=-16, le=16)]


@validated
@dataclass(frozen=True)
class View:
    """A flip, shift and rotation of an image, which is reflected at its borders.

    Args:
        flip: mirror left and right.
        shift: pixels to the right and down, integers.
        rotation: degrees, anticlockwise.
    """

    flip: bool = False
    shift: tuple[Pixels, Pixels] = (0, 0)
    rotation: Annotated[float, Field(ge=-360, le=360)] = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        height, width = x.shape[-2:]
        if self.flip:
            x = x.flip(-1)
        if self.shift != (0, 0):
            dx, dy = self.shift
            pad = (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0))
            x = F.pad(x, pad, mode="reflect")  # (B, C, H + |dy|, W + |dx|)
            top, left = max(-dy, 0), max(-dx, 0)
            x = x[..., top : top + height, left : left + width]  # (B, C, H, W)
        if self.rotation:
            x = _rotate(x, self.rotation)
        return x


def _rotate(x: Tensor, degrees: float) -> Tensor:
    """Anticlockwise about the centre, bilinear, reflecting at the border."""
    height, width = x.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # affine_grid maps output to input in coordinates of ±1 across each side.
    theta = x.new_tensor(
        [[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]
    )
    grid = F.affine_grid(
        theta.expand(len(x), 2, 3), list(x.shape), align_corners=False
    ).to(x.dtype)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


class TTA:
    """Averages class probabilities over `views`.

    Args:
        views: one mapping of `View`'s arguments each; `{}` is the image as it is.

    Raises:
        UserError: no views, or one with an unknown or ill-typed argument.
    """

    @validated
    def __init__(
        self, views: Annotated[Sequence[Mapping[str, Any]], Field(min_length=1)]
    ):
        self.views = [_view(i, view) for i, view in enumerate(views)]

    def __call__(
        self, net: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor | None = None
    ) -> Tensor:
        """Images (B, C, H, W) → probabilities (B, K), float32; rows sum to one.

        Args:
            logits: those of `x` itself (B, K), if known already.
        """
        outputs = [
            net(view(x)) if logits is None or view != View() else logits
            for view in self.views
        ]
        probabilities = [output.float().softmax(dim=1) for output in outputs]
        return torch.stack(probabilities).mean(0)  # (B, K)


def _view(index: int, arguments: Mapping[str, Any]) -> View:
    names = [field.name for field in fields(View)]
    for key in arguments:
        if key not in names:
            hint = nearest(str(key), names)
            raise UserError(f"views[{index}]: unknown key {key!r}; {hint}")
    # YAML's lists are no tuples; a view equals `View()` by its values.
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()
    }
    try:
        return View(**values)
    except UserError as error:
        raise UserError(f"views[{index}].{error}") from None
