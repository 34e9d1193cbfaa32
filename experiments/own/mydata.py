"""A source of one's own: a class with `key()` and `load()`."""

import torch

from resnet_se.data.image_set import ImageSet


class Stripes:
    """Stripes of two colours, across or down.

    Args:
        num_train, num_test: images, half of either kind.
        size: of their sides, pixels.
    """

    def __init__(self, num_train: int = 600, num_test: int = 200, size: int = 16):
        self.num_train, self.num_test, self.size = num_train, num_test, size

    def key(self) -> str:
        """Equal keys, equal images: a part of the run's hash."""
        return f"stripes-{self.num_train}-{self.num_test}-{self.size}px"

    def load(self) -> ImageSet:
        return ImageSet(
            name="stripes",
            origin="stripes, drawn here",
            classes=("across", "down"),
            **self._draw("train", self.num_train, seed=0),
            **self._draw("test", self.num_test, seed=1),
        )

    def _draw(self, part: str, n: int, seed: int) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % 2
        start = torch.randint(8, (n, 1), generator=random)
        wide = torch.randint(2, 5, (n, 1), generator=random)
        line = (torch.arange(self.size) + start) // wide % 2  # (n, size)
        across = line[:, :, None].expand(-1, -1, self.size)
        stripes = torch.where(labels[:, None, None] == 0, across, across.mT)
        colours = torch.randint(256, (2, n, 3, 1, 1), generator=random)
        images = torch.where(stripes[:, None] == 0, *colours).byte()
        return {f"{part}_images": images, f"{part}_labels": labels}
