"""CIFAR-10-C computed here, from the run's own test images, without files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from resnet_se.data.splits import evenly_spread
from resnet_se.data.test_sets.base import LabelledImages, TestSet, Trained
from resnet_se.data.test_sets.corruptions import CORRUPTIONS, MAIN, SIDE, corrupt
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import Count, Text, validated

BATCH = 500


@validated
@dataclass(frozen=True)
class Corrupted(TestSet):
    """The run's own test images under the corruptions of CIFAR-10-C (`corruptions`).

    Args:
        corruptions: names; null for the 15 of the mean corruption error.
        images: at most so many, with every class's share; null for all.
    """

    corruptions: Sequence[Text] | None = None
    images: Count | None = None

    def key(self) -> str:
        return "cifar10_c_here" + (f"-{self.images}" if self.images else "")

    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        names = self.corruptions or MAIN
        for name in names:
            if name not in CORRUPTIONS:
                hint = nearest(name, CORRUPTIONS)
                raise UserError(f"data.source.corruptions: unknown {name!r}; {hint}")
        images, labels = trained.own()
        if tuple(images.shape[2:]) != (SIDE, SIDE):
            got = tuple(images.shape[2:])
            raise UserError(
                f"data: the corruptions' constants are for images of ({SIDE}, {SIDE}), "
                f"got {got}"
            )
        chosen = evenly_spread(labels)[: self.images].sort().values
        for name in names:
            for severity in range(1, 6):
                parts = [
                    corrupt(images[index], index, name, severity)
                    for index in chosen.split(BATCH)
                ]
                yield LabelledImages(torch.cat(parts), labels[chosen], name, severity)
