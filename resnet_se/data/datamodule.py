"""The data as Lightning sees it: split, augmentation, loaders, normalisation.

uint8 images (N, 3, H, W) → split, stratified and fixed by its own seed → augmentation
of the training part → normalised float (B, 3, H, W) on the training device, with mean
and standard deviation measured on the training part.

Two engines (`engine`) do the augmentation.  *batched*: the images lie on the training
device, batches are cut, augmented and normalised there.  *torchvision*: image by image
in worker processes.  Both take their images in the same order, and that order is shared
among ranks: of one permutation by (seed, epoch), the k-th global batch is its k-th
`batch_size` × `world_size` images, and rank r has the r-th `batch_size` of them.  So
two devices with B images each see what one device with 2·B sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

import lightning as L
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.image_set import DataNotFound, ImageSet
from resnet_se.data.loaders import (
    EVAL_BATCH_SIZE,
    AugmentedImages,
    BatchesOnDevice,
    GivenImages,
    ImagesInOrder,
    ShuffledBatches,
    evenly_spread,
    stratified_split,
)
from resnet_se.data.normalisation import channel_statistics, normalise
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import usable_cores
from resnet_se.utils.validation import Count, Natural, validated

STEPS = 4  # of an epoch, where the batch asked for is larger than the training part


@dataclass(frozen=True)
class DatasetInfo:
    """What is kept of an `ImageSet` once its pixels are dealt out."""

    name: str
    origin: str
    classes: tuple[str, ...]
    fingerprint: str


class ImageDataModule(L.LightningDataModule):
    """Images of one source, split and served.

    Args:
        source: where the images come from (`sources`).
        augment: what is done to a training image.
        engine: what does it: `batched` or `torchvision`.
        batch_size: B of one device; more than there are images to train on is an
            error where `exact_batch_size`; else one that fits is taken, see `fitted`.
        val_fraction: share of the training set held out, in (0, 1).
        split_seed: of the validation split, apart from `seed` so that runs compare.
        seed: of the shuffles and the augmentation.
        num_workers: processes of the torchvision engine; null picks half the cores,
            none where there is nothing to augment.  The batched engine has none.
        repeats: times that an image is in a batch, each with another augmentation
            (`ShuffledBatches`); a divisor of `batch_size`.
        train_subset: train on about this many images, stratified and fixed by
            `split_seed`; null for all.
        fallback: a source to go on with where `source` has no data, or null: an error.

    Raises:
        UserError: a range, a name, or data that are not there (`DataNotFound`).
    """

    @validated
    def __init__(
        self,
        source: Any,
        augment: Augmentation,
        engine: Literal["batched", "torchvision"] = "batched",
        batch_size: Count = 128,
        val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        split_seed: Natural = 0,
        seed: Natural = 0,
        num_workers: Natural | None = None,
        train_subset: Count | None = None,
        repeats: Count = 1,
        fallback: Any = None,
    ):
        super().__init__()
        if batch_size % repeats:
            raise UserError(
                "data.repeats: expected a divisor of "
                f"data.batch_size={batch_size}, got {repeats}"
            )
        self.source = source
        self.augment = augment
        self.engine = engine
        self.batch_size = batch_size
        self.exact_batch_size = False
        self.fitted: str | None = None
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.seed = seed
        self.num_workers = num_workers
        self.train_subset = train_subset
        self.repeats = repeats
        self.fallback = fallback
        self.fell_back: str | None = None
        self.images: DatasetInfo | None = None
        self.train_part: tuple[Tensor, Tensor] | None = None
        self._placed: dict[str, tuple[Tensor, Tensor]] = {}
        self._place = {"epoch": 0, "done": 0}  # where training goes on

    def locate(self) -> str:
        """Finds or downloads the data and returns their identity, without decoding.

        Falls back to `fallback`, where there is one, and says so in `fell_back`.
        """
        try:
            return self.source.key()
        except DataNotFound as error:
            if self.fallback is None:
                raise
            self.fell_back = str(error)
            self.source = self.fallback
            return self.source.key()

    def setup(self, stage: str | None = None) -> None:
        if self.train_part is not None:
            self.fit_batch_size(self._rank[1])
            return
        images: ImageSet = self.source.load()
        train, val = stratified_split(
            images.train_labels, self.val_fraction, self.split_seed
        )
        if self.train_subset is not None and self.train_subset < len(train):
            share = 1 - self.train_subset / len(train)
            part, _ = stratified_split(
                images.train_labels[train], share, self.split_seed
            )
            train = train[part]
        self.train_part = images.train_images[train], images.train_labels[train]
        self.val_part = images.train_images[val], images.train_labels[val]
        self.test_part = images.test_images, images.test_labels
        self.fit_batch_size(self._rank[1])
        # Not the images themselves: the parts are copies of them.
        self.images = DatasetInfo(
            images.name, images.origin, images.classes, images.fingerprint
        )
        self.mean, self.std = channel_statistics(self.train_part[0])
        self.std = self.std.clamp_min(1 / 255)  # a constant channel is not divided by 0

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (3,) of the training part, in 0..1."""
        return self.mean, self.std

    @property
    def num_classes(self) -> int:
        return len(self.images.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.train_part[0].shape[-2:])

    def first_images(self, n: int) -> Tensor:
        """The first n training images, normalised, without augmentation."""
        return normalise(self.train_part[0][:n], self.mean, self.std)

    def augmented(self, n: int, epochs: int) -> Tensor:
        """n training images, and as E epochs see them: uint8 (1 + E, n, 3, H, W)."""
        images, labels = self.train_part
        index = torch.arange(n) * len(images) // n  # of several classes
        part = images[index], labels[index]
        rows = [part[0].float()]
        for epoch in range(epochs):
            sampler = GivenImages(n, self.seed, epoch)
            if self.engine == "batched":
                loader = BatchesOnDevice(*part, self.augment, sampler, self.statistics)
                seen, _ = next(iter(loader))
                back = 255 * (seen * self.std[:, None, None] + self.mean[:, None, None])
                rows.append(back)
            else:
                dataset = AugmentedImages(*part, self.augment, self.seed)
                rows.append(dataset[next(iter(sampler))][0].float())
        return torch.stack(rows).round().clamp(0, 255).to(torch.uint8)

    def shuffled(self, n: int) -> Iterator[Tensor]:
        """About n training images, drawn over all of them and augmented, in batches."""
        part, statistics = map(self._on_device, ("train_part", "statistics"))
        size = min(EVAL_BATCH_SIZE, len(part[0]))
        sampler = ShuffledBatches(len(part[0]), size, self.seed)
        batches = BatchesOnDevice(*part, self.augment, sampler, statistics)
        return (images for images, _ in islice(batches, -(-n // size)))

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
            "batch_size": self.batch_size,
            "split_seed": self.split_seed,
            "mean": [round(v, 6) for v in self.mean.tolist()],
            "std": [round(v, 6) for v in self.std.tolist()],
            "fallback": self.fell_back,
        }

    # --- loaders -----------------------------------------------------

    @property
    def _rank(self) -> tuple[int, int]:
        """Rank and world size of the trainer this is attached to."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def fit_batch_size(self, world_size: int) -> None:
        """Of a set smaller than a global batch: four steps an epoch, or an error."""
        images = len(self.train_part[0])
        most = images // world_size
        if self.batch_size <= most:
            return
        if self.exact_batch_size or most < 1:
            raise UserError(
                f"data.batch_size: expected at most {most} (the images to train on, by "
                f"the number of devices), got {self.batch_size}"
            )
        asked, self.batch_size = self.batch_size, max(1, most // STEPS)
        self.fitted = (
            f"data.batch_size: {asked} do not fit, there are {images} images to train "
            f"on; {self.batch_size} are taken, data.batch_size=… takes others"
        )

    def _on_device(
        self, name: str, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """A pair of tensors by its attribute's name, moved to the device only once."""
        if device is None:
            trainer = self.trainer
            device = trainer.strategy.root_device if trainer else torch.device("cpu")
        pair = self._placed.get(name)
        if pair is None or pair[0].device != device:
            pair = tuple(tensor.to(device) for tensor in getattr(self, name))
            self._placed[name] = pair
        return pair

    def train_dataloader(self) -> BatchesOnDevice | DataLoader:
        size = len(self.train_part[0])
        self.fit_batch_size(self._rank[1])
        # Told here: a DataLoader with workers begins before Lightning says the epoch.
        sampler = ShuffledBatches(
            size,
            self.batch_size,
            self.seed,
            *self._rank,
            **self._place,
            repeats=self.repeats,
        )
        if self.engine == "batched":
            part, statistics = map(self._on_device, ("train_part", "statistics"))
            return BatchesOnDevice(*part, self.augment, sampler, statistics)
        images, labels = self.train_part
        dataset = AugmentedImages(images, labels, self.augment, self.seed, self.repeats)
        workers = self.num_workers
        if workers is None:
            workers = usable_cores() // 2 if dataset.transform else 0
        return DataLoader(
            dataset,
            batch_size=None,  # an item is a whole batch
            sampler=sampler,
            # Its own generator: a loader draws a seed whenever it starts, and torch's
            # stream, which dropout and mixing use, must not depend on when that is.
            generator=torch.Generator(),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> ImagesInOrder:
        return self._in_order("val_part", self._limit("val"))

    def test_dataloader(self) -> ImagesInOrder:
        return self._in_order("test_part", self._limit("test"))

    def _limit(self, part: str) -> float:
        """Lightning's `limit_…_batches`: an integer is a number, a float a share."""
        return getattr(self.trainer, f"limit_{part}_batches", 1.0)

    def _in_order(self, name: str, limit: float) -> ImagesInOrder:
        if isinstance(limit, int) or limit < 1:
            # A part of a set that is sorted by class would hold a few classes alone.
            images, labels = getattr(self, name)
            order = evenly_spread(labels)
            setattr(self, name, (images[order], labels[order]))
            self._placed.pop(name, None)
        return ImagesInOrder(*self._on_device(name), *self._rank)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """uint8 → normalised float (B, 3, H, W), on the device the batch is on."""
        images, labels = batch
        if images.is_floating_point():  # the batched engine's are finished
            return batch
        statistics = self._on_device("statistics", images.device)
        return normalise(images, *statistics), labels

    # --- checkpoints -------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The place in training, and what `predict` needs instead of the data."""
        done = internals.batches_done(self.trainer)
        return {
            "place": {
                "epoch": internals.epochs_done(self.trainer),
                "done": done % self.trainer.num_training_batches,
            },
            "size": list(self.image_size),
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
        self._place = state.get("place", self._place)  # older checkpoints have none
