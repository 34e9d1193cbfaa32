"""Predictions of a trained network: labels and probabilities of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20  # rows of a printed table


@dataclass(frozen=True)
class Prediction:
    """The label of one picture, and the classes by falling probability."""

    name: str
    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]  # (class, probability), all K

    def __str__(self) -> str:
        top = ", ".join(f"{name} {p:.1%}" for name, p in self.ranking[:3])
        return f"{self.name}: {top}"


@dataclass(frozen=True, eq=False)  # `==` of tensors has no single truth value
class Predictions(Sequence[Prediction]):
    """The labels and probabilities of N pictures, in the order given.

    `names` are paths, or `image 0`, `image 1`, … where there is none; `probabilities`
    (N, K), float32 on the CPU, rows sum to one.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Tensor

    @property
    def labels(self) -> list[str]:
        """The most probable class of each picture."""
        return [self.classes[i] for i in self.probabilities.argmax(dim=1)]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> Predictions: ...

    def __getitem__(self, index: int | slice) -> Prediction | Predictions:
        if isinstance(index, slice):
            some = self.probabilities[index]
            return Predictions(self.names[index], self.classes, some)
        values, order = self.probabilities[index].sort(descending=True, stable=True)
        names = [self.classes[i] for i in order]
        ranking = tuple(zip(names, values.tolist(), strict=True))
        return Prediction(self.names[index], *ranking[0], ranking)

    def to_frame(self) -> pd.DataFrame:
        """Return a row a picture: label, its probability, that of every class."""
        import pandas as pd

        frame = pd.DataFrame(self.probabilities.numpy(), self.names, self.classes)
        frame.insert(0, "label", self.labels, allow_duplicates=True)
        top = self.probabilities.amax(dim=1).numpy()
        frame.insert(1, "probability", top, allow_duplicates=True)
        return frame.rename_axis("picture")

    def __str__(self) -> str:
        lines = [str(prediction) for prediction in self[:SHOWN]]
        if len(self) > SHOWN:
            lines.append(f"… and {len(self) - SHOWN:,} more")
        return "\n".join(lines) or "no pictures"

    __repr__ = __str__
