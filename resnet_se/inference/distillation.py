"""Knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, §2).

The teacher is a finished run or a bundle and sees the very images of the student,
augmented and mixed (Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.inference.pretrained import Pretrained, load
from resnet_se.training.class_weights import WeightedCrossEntropy, class_weights
from resnet_se.training.module import Criterion, cross_entropy
from resnet_se.utils.errors import UserError


class Distillation:
    """(1 − w) H(targets, σ(z)) + w T² H(σ(v / T), σ(z / T)) of logits z, a teacher's v.

    Args:
        teacher: images in 0..1 → logits v; no part of any checkpoint.
        statistics: mean and deviation (3,), in 0..1, that the student's images were
            normalised by.
        weight: w in 0..1.
        temperature: T > 0.
        hard: the loss H(targets, σ(z)).
    """

    def __init__(
        self,
        teacher: Pretrained,
        statistics: tuple[Tensor, Tensor],
        weight: float,
        temperature: float,
        hard: Criterion = cross_entropy,
    ):
        self.teacher, self.hard = teacher, hard
        self.mean, self.std = (s[:, None, None] for s in statistics)
        self.weight = weight
        self.temperature = temperature

    def __call__(self, images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of normalised (B, 3, H, W), (B, K), (B, K)."""
        if self.mean.device != images.device:  # once
            self.teacher.to(images.device)
            self.mean, self.std = (s.to(images.device) for s in (self.mean, self.std))
        with torch.no_grad():
            pixels = images * self.std + self.mean
            soft = (self.teacher(pixels) / self.temperature).softmax(dim=1)  # (B, K)
        softened = F.cross_entropy(logits / self.temperature, soft)
        hard = self.hard(images, logits, targets)
        return torch.lerp(hard, softened * self.temperature**2, self.weight)


def make_criterion(
    teacher_path: str | None,
    data: ImageDataModule,
    weight: float,
    temperature: float,
    weights: str | Sequence[float] | None = None,
) -> Criterion:
    """Return the loss of a training: cross-entropy, or `Distillation` from a teacher.

    Args:
        weights: of the classes, as for `class_weights`.
        teacher_path: a run directory or a bundle; None: no teacher.
        data: read; the student's.

    Raises:
        UserError: no run and no bundle; a teacher of other classes or another size.
    """
    hard: Criterion = cross_entropy
    if weights is not None:
        labels, count = data.train_part[1], data.num_classes
        hard = WeightedCrossEntropy(class_weights(weights, labels, count))
    if not teacher_path:
        return hard
    teacher = load(teacher_path)
    classes = data.images.classes
    if teacher.classes != classes:
        raise UserError(
            f"distill: expected a teacher of the data's {len(classes)} classes "
            f"({_listed(classes)}), got one of {len(teacher.classes)} "
            f"({_listed(teacher.classes)}); name a run on the same data"
        )
    if teacher.size != tuple(data.image_size):
        raise UserError(
            f"distill: expected a teacher of images of {_size(data.image_size)}, got "
            f"one of {_size(teacher.size)}; name a run on images of that size"
        )
    return Distillation(teacher, data.statistics, weight, temperature, hard)


def _listed(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
