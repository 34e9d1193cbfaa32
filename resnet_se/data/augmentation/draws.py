"""Parameters drawn for the images of an epoch, each transform from its own stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from resnet_se.data.augmentation.colour import JitterDraws
from resnet_se.data.augmentation.geometry import AffineDraws
from resnet_se.data.augmentation.policies import PolicyDraws


@dataclass(frozen=True, eq=False)  # `==` of tensors has no single truth value
class Draws:
    """Parameters of N images, one row each; None where the transform is left out.

    Args:
        crop_origin: (N, 2) int64, y and x of the crop in the padded image.
        affine: of rotation, shear, zoom and shift.
        mirror: (N,) bool.
        policy: operations and magnitudes; they stay on the CPU.
        jitter: factors and their order.
        cutout_center: (N, 2) int64, y and x of the pixel in the black square's middle.
        erased: (N, 4) int64, y, x, height and width of a black rectangle.
    """

    crop_origin: Tensor | None = None
    affine: AffineDraws | None = None
    mirror: Tensor | None = None
    policy: PolicyDraws | None = None
    jitter: JitterDraws | None = None
    cutout_center: Tensor | None = None
    erased: Tensor | None = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> Draws:
        def mapped(value: Any) -> Any:
            if value is None or isinstance(value, Tensor):
                return None if value is None else change(value)
            return type(value)(*map(change, value))

        return Draws(**{f.name: mapped(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> Draws:
        """Return them on the device, but for the policy's."""
        return replace(self._map(lambda value: value.to(device)), policy=self.policy)

    def select(self, index: Tensor, on_cpu: Tensor | None = None) -> Draws:
        """Return the rows `index` (B,).

        Args:
            on_cpu: the same index, for what stays on the CPU where `index` does not.
        """

        def rows(value: Tensor) -> Tensor:
            if on_cpu is not None and value.device != index.device:
                return value.index_select(0, on_cpu)
            return value.index_select(0, index)

        return self._map(rows)
