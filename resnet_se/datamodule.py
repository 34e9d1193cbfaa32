"""The data as Lightning sees it: split, augmentation, loaders, normalisation.

uint8 images (N, 3, H, W) → split, stratified and fixed by its own seed → augmentation
of the training part, image by image in worker processes → uint8 batches → normalised
float (B, 3, H, W) on the training device, with mean and standard deviation measured on
the training part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from resnet_se.augment import (
    Augmentation,
    channel_statistics,
    derive_seed,
    kept_stream,
    normalise,
)
from resnet_se.errors import UserError
from resnet_se.results import usable_cores
from resnet_se.sources import DataNotFound, ImageSet

EVAL_BATCH_SIZE = 500


def stratified_split(
    labels: Tensor, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Indices (N_train,) and (N_val,), ascending; each class gives its share.

    A class of n images gives max(1, round(n × fraction)) of them to validation.

    Raises:
        UserError: `fraction` is not in (0, 1), or a class would have none left.
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.val_fraction: expected 0 < f < 1, got {fraction}")
    generator = torch.Generator().manual_seed(derive_seed("split", seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        n_val = max(1, round(len(members) * fraction))
        if n_val >= len(members):
            raise UserError(
                f"data.val_fraction={fraction}: class {int(label)} has "
                f"{len(members)} images and would keep none to train on"
            )
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[:n_val]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


class AugmentedImages(Dataset):
    """Batches of augmented uint8 images (B, 3, H, W) and labels (B,).

    An item is a list of (epoch, index): each image's randomness is its own stream.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, augmentation: Augmentation, seed: int
    ):
        self.images = images
        self.labels = labels
        self.seed = seed
        self.transform = augmentation.transform(*images.shape[-2:])

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in batch])
        images, labels = self.images[index], self.labels[index]
        if self.transform is not None:
            with kept_stream() as stream:
                for row, (epoch, i) in enumerate(batch):
                    stream.manual_seed(derive_seed("image", self.seed, epoch, i))
                    images[row] = self.transform(images[row])
        return images, labels


class ShuffledBatches(Sampler):
    """Batches of (epoch, index) in an order drawn from (seed, epoch); drops the rest.

    Lightning calls `set_epoch`, also when it resumes, so that a resumed run goes on
    with the order it would have had.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(
            derive_seed("shuffle", self.seed, self.epoch)
        )
        order = torch.randperm(self.size, generator=generator).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield [(self.epoch, i) for i in batch]


class ImagesInOrder(Dataset):
    """Batches of uint8 images and labels as they stand; an item is a start index."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images
        self.labels = labels

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        part = slice(start, start + EVAL_BATCH_SIZE)
        return self.images[part], self.labels[part]

    def loader(self) -> DataLoader:
        starts = range(0, len(self.images), EVAL_BATCH_SIZE)
        return _loader(self, starts)


def _loader(dataset: Dataset, batches: Iterable, **options: Any) -> DataLoader:
    """A loader of a dataset whose items are whole batches."""
    # Its own generator: a loader draws a seed whenever it starts, and torch's stream,
    # which dropout and mixing use, must not depend on when that is.
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=batches,
        generator=torch.Generator(),
        **options,
    )


class ImageDataModule(L.LightningDataModule):
    """Images of one source, split and served.

    Args:
        source: where the images come from (`sources`).
        augment: what is done to a training image.
        batch_size: B, 1..the number of training images.
        val_fraction: share of the training set held out, in (0, 1).
        split_seed: of the validation split, apart from `seed` so that runs compare.
        seed: of the shuffles and the augmentation.
        num_workers: processes that augment; null picks half the cores, none where there
            is nothing to augment.
        train_subset: train on about this many images, stratified and fixed by
            `split_seed`; null for all.
        fallback: a source to go on with where `source` has no data, or null: an error.

    Raises:
        UserError: a range, or data that are not there (`DataNotFound`).
    """

    def __init__(
        self,
        source: Any,
        augment: Augmentation,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int | None = None,
        train_subset: int | None = None,
        fallback: Any = None,
    ):
        super().__init__()
        for name, value, low in (
            ("data.batch_size", batch_size, 1),
            ("data.num_workers", 0 if num_workers is None else num_workers, 0),
            ("data.train_subset", 1 if train_subset is None else train_subset, 1),
            ("data.split_seed", split_seed, 0),
            ("seed", seed, 0),
        ):
            if value < low:
                raise UserError(f"{name}: expected an integer >= {low}, got {value!r}")
        self.source = source
        self.augment = augment
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.seed = seed
        self.num_workers = num_workers
        self.train_subset = train_subset
        self.fallback = fallback
        self.fell_back: str | None = None
        self.images: ImageSet | None = None
        self.train_part: tuple[Tensor, Tensor] | None = None

    def locate(self) -> str:
        """Finds or downloads the data and returns their identity, without decoding.

        Falls back to `fallback`, where there is one, and says so in `fell_back`.
        """
        try:
            if self.fallback is not None:
                self.images = self.source.load()  # only a download can tell
            return self.source.key()
        except DataNotFound as error:
            if self.fallback is None:
                raise
            self.fell_back = str(error)
            self.source = self.fallback
            return self.source.key()

    def setup(self, stage: str | None = None) -> None:
        if self.train_part is not None:
            return
        self.images = images = self.images or self.source.load()
        train, val = stratified_split(
            images.train_labels, self.val_fraction, self.split_seed
        )
        if self.train_subset is not None and self.train_subset < len(train):
            share = 1 - self.train_subset / len(train)
            part, _ = stratified_split(
                images.train_labels[train], share, self.split_seed
            )
            train = train[part]
        if self.batch_size > len(train):
            raise UserError(
                f"data.batch_size: expected at most {len(train)} (the images to train "
                f"on), got {self.batch_size}"
            )
        self.train_part = images.train_images[train], images.train_labels[train]
        self.val_part = images.train_images[val], images.train_labels[val]
        self.test_part = images.test_images, images.test_labels
        self.mean, self.std = channel_statistics(self.train_part[0])
        self.std = self.std.clamp_min(1 / 255)  # a constant channel is not divided by 0

    @property
    def num_classes(self) -> int:
        return len(self.images.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.images.train_images.shape[-2:])

    def first_images(self, n: int) -> Tensor:
        """The first n training images, normalised, without augmentation."""
        return normalise(self.train_part[0][:n], self.mean, self.std)

    def describe(self) -> dict[str, Any]:
        """The `data` field of `result.json`."""
        return {
            "name": self.images.name,
            "origin": self.images.origin,
            "fingerprint": self.images.fingerprint,
            "classes": list(self.images.classes),
            "train": len(self.train_part[0]),
            "val": len(self.val_part[0]),
            "test": len(self.test_part[0]),
            "split_seed": self.split_seed,
            "mean": [round(v, 6) for v in self.mean.tolist()],
            "std": [round(v, 6) for v in self.std.tolist()],
            "fallback": self.fell_back,
        }

    def train_dataloader(self) -> DataLoader:
        dataset = AugmentedImages(*self.train_part, self.augment, self.seed)
        batches = ShuffledBatches(len(dataset.images), self.batch_size, self.seed)
        workers = self.num_workers
        if workers is None:
            workers = usable_cores() // 2 if dataset.transform else 0
        return _loader(
            dataset,
            batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader:
        return ImagesInOrder(*self.val_part).loader()

    def test_dataloader(self) -> DataLoader:
        return ImagesInOrder(*self.test_part).loader()

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """uint8 → normalised float (B, 3, H, W), on the device the batch is on."""
        images, labels = batch
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return normalise(images, mean, std), labels

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to be used without the data: see `predict`."""
        return {
            "fingerprint": self.images.fingerprint,
            "classes": list(self.images.classes),
            "mean": self.mean,
            "std": self.std,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses to go on with other pixels than the checkpoint was trained on."""
        if self.images and state["fingerprint"] != self.images.fingerprint:
            raise UserError(
                "ckpt_path: the checkpoint was trained on data with fingerprint "
                f"{state['fingerprint']}, these have {self.images.fingerprint}"
            )
