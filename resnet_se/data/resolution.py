"""Progressive resizing: the first epochs are trained on smaller images.

Howard 2018 (fastai's DAWNBench entries); Tan & Le 2021, arXiv 2104.00298, §4.  The last
epochs have the test's size (Touvron et al. 2019, arXiv 1906.06423, on why).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from resnet_se.utils.errors import UserError

Side = Annotated[int, Field(ge=8)]  # three halvings leave a pixel
Share = Annotated[float, Field(gt=0, lt=1)]
Size = tuple[int, int]
# torch's compiler keeps eight sizes of a network, of which the full one is the last.
Phases = Annotated[Sequence[tuple[Side, Share]], Field(min_length=1, max_length=7)]


@dataclass(frozen=True)
class Resolution:
    """The size of an epoch's training images.

    Args:
        phases: (side, end): up to the share `end` of all epochs, images whose shorter
            side is `side`; both ascend.  After the last phase images are as they are.
        epochs: E of the training; phases begin and end with an epoch.

    Raises:
        UserError: sides or ends that do not ascend.
    """

    phases: tuple[tuple[int, float], ...] = ()
    epochs: int = 1

    def __post_init__(self) -> None:
        for (side, end), (larger, later) in pairwise(self.phases):
            if side >= larger or end >= later:
                raise UserError(
                    "data.resolution: expected [side, end] with both ascending, got "
                    f"[{side}, {end}] before [{larger}, {later}]"
                )

    def size(self, epoch: int, full: Size) -> Size:
        """Return height and width in an epoch, from 0, of images of the size `full`.

        Raises:
            UserError: a phase has images as large as `full`, or larger.
        """
        if self.phases and self.phases[-1][0] >= min(full):
            raise UserError(
                f"data.resolution: expected sides below the images' {min(full)}, got "
                f"{self.phases[-1][0]}; after the last phase images are as they are"
            )
        for side, end in self.phases:
            if epoch + 1 <= end * self.epochs + 1e-9:  # 0.3 × 10 is below 3
                height, width = (round(side * n / min(full)) for n in full)
                return height, width
        return full

    def sizes(self, full: Size) -> list[Size]:
        """Return height and width in each epoch; as `size`."""
        return [self.size(epoch, full) for epoch in range(self.epochs)]


NATIVE = Resolution()


@cache
def _weights(n: int, m: int, device: torch.device) -> Tensor:
    """Return the weights (m, n) of n pixels in m: bilinear, antialiased."""
    eye = torch.eye(n)[None, None]  # (1, 1, n, n)
    weights = F.interpolate(eye, size=(m, n), mode="bilinear", antialias=True)
    return weights[0, 0].to(device)


def downsample(images: Tensor, size: Size) -> Tensor:
    """Return float images (B, C, H, W) at a smaller size, bilinear and antialiased.

    As two matrix products, which on a CPU take a third of `F.interpolate`'s time.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    rows, columns = (
        _weights(n, m, images.device)
        for n, m in zip(images.shape[-2:], size, strict=True)
    )
    return rows @ images.contiguous() @ columns.T  # (B, C, *size)
