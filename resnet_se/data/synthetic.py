"""Procedural images of ten kinds, for a first try without any files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Annotated

import torch
from pydantic import Field

from resnet_se.data.image_set import ImageSet
from resnet_se.data.reading import source_error
from resnet_se.utils.validation import validated

# Forms on coordinates u, v from about -2 to 2 with a phase p: negative inside.
FORMS: dict[str, Callable[..., torch.Tensor]] = {
    "disc": lambda u, v, p: u.hypot(v) - 0.8,
    "ring": lambda u, v, p: (u.hypot(v) - 0.75).abs() - 0.22,
    "square": lambda u, v, p: u.abs().maximum(v.abs()) - 0.75,
    "frame": lambda u, v, p: (u.abs().maximum(v.abs()) - 0.7).abs() - 0.2,
    "triangle": lambda u, v, p: (0.87 * u.abs() - 0.5 * v).maximum(v) - 0.5,
    "cross": lambda u, v, p: (
        u.abs().maximum(v.abs() - 0.7).minimum(v.abs().maximum(u.abs() - 0.7)) - 0.25
    ),
    "rows": lambda u, v, p: (5 * v + p).sin(),
    "columns": lambda u, v, p: (5 * u + p).sin(),
    "diagonals": lambda u, v, p: (3.5 * (u + v) + p).sin(),
    "checks": lambda u, v, p: (4 * u + p).sin() * (4 * v + p).sin(),
}


@validated
@dataclass(frozen=True)
class Synthetic:
    """Procedural images of ten kinds: shapes and gratings, the same for the same seed.

    Position, scale, angle, phase, both colours, light and noise are random, so that the
    class lies in the form alone: no pixel and no mean colour tells it.
    """

    num_train: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    num_test: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    size: Annotated[int, Field(ge=8, le=512)] = 32
    num_classes: Annotated[int, Field(ge=2, le=len(FORMS))] = 10
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def __post_init__(self) -> None:
        for name in ("num_train", "num_test"):
            if getattr(self, name) < self.num_classes:
                expected = f"one image of each of {self.num_classes} classes, or more"
                raise source_error(name, expected, getattr(self, name))

    def key(self) -> str:
        """Return the arguments and the version of the procedure."""
        return f"synthetic-v1-{'-'.join(map(str, astuple(self)))}"

    def load(self) -> ImageSet:
        """Return balanced classes in random order; the two splits are independent."""
        # 2·seed and 2·seed + 1: no two splits of any two seeds share their numbers.
        train = _draw_split(self.num_train, self.size, self.num_classes, 2 * self.seed)
        test = _draw_split(
            self.num_test, self.size, self.num_classes, 2 * self.seed + 1
        )
        origin, classes = f"a procedure, seed {self.seed}", tuple(FORMS)
        return ImageSet("synthetic", origin, classes[: self.num_classes], *train, *test)


def _draw_split(
    n: int, size: int, num_classes: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 (N, 3, S, S) and labels (N,), each class ⌊N/K⌋ or ⌈N/K⌉ times."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    labels = torch.randperm(n, generator=generator) % num_classes
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1  # centres of pixels in (-1, 1)
    radius = uniform(0.5, 0.8, 1, 1)
    x = (axis - uniform(-0.3, 0.3, 1, 1)) / radius  # (N, 1, S)
    y = (axis[:, None] - uniform(-0.3, 0.3, 1, 1)) / radius  # (N, S, 1)
    angle = uniform(-0.12, 0.12, 1, 1)  # ±7°: ±15° of augmentation leaves it < 45°/2
    u = angle.cos() * x - angle.sin() * y  # (N, S, S)
    v = angle.sin() * x + angle.cos() * y  # (N, S, S)
    phase = uniform(0, 2 * math.pi, 1, 1)
    inside = torch.empty(n, 1, size, size)
    for label, form in enumerate(list(FORMS.values())[:num_classes]):
        of = labels == label
        inside[of, 0] = (-8 * form(u[of], v[of], phase[of])).sigmoid()
    ground = uniform(0, 1, 3, 1, 1)
    # 0.3 to 0.7 around the circle of each channel: the two colours always differ.
    figure = (ground + uniform(0.3, 0.7, 3, 1, 1)) % 1
    light = uniform(-0.15, 0.15, 1, 1, 1) * axis  # (N, 1, 1, S)
    images = ground + (figure - ground) * inside + light  # (N, 3, S, S)
    images += 0.06 * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels
