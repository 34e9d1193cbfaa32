"""The data as Lightning sees it: split, augmentation, loaders, normalisation.

uint8 images (N, 3, H, W) → split, stratified and fixed by its own seed → augmentation
of the training part → normalised float (B, 3, H, W) on the training device, with mean
and standard deviation measured on the training part.

`loaders` has the engines that augment: *batched*, on the device, and *torchvision*.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal

import lightning as L
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.decode import decoder, decoders_differ
from resnet_se.data.human_labels import NoiseKind, noise_note, noisy_labels
from resnet_se.data.image_set import DataNotFound, DatasetInfo, ImageSet
from resnet_se.data.loaders import (
    EVAL_BATCH_SIZE,
    AugmentedImages,
    BatchesOnDevice,
    ImagesInOrder,
    ShuffledBatches,
)
from resnet_se.data.normalisation import channel_statistics, normalise
from resnet_se.data.resolution import Phases, Resolution, Size
from resnet_se.data.splits import check_folds, evenly_spread, train_val_split
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import usable_cores
from resnet_se.utils.validation import Count, Natural, validated

STEPS = 4  # of an epoch, where the batch asked for is larger than the training part

Engine = Literal["batched", "torchvision"]
Part = tuple[Tensor, Tensor]  # uint8 images (N, 3, H, W) and labels (N,)


class ImageDataModule(L.LightningDataModule):
    """Images of one source, split and served.

    Args:
        source: where the images come from (`sources`).
        augment: transforms of a training image.
        engine: `batched` or `torchvision`, which apply them.
        batch_size: B of one device.
        val_fraction: share of the training set held out, in (0, 1).
        split: of the images held out: `stratified`, drawn from each class, or `tail`,
            the last ones as they come, Keras's `validation_split`.
        split_seed: of the validation split, apart from `seed` so that runs compare.
        seed: of the shuffles and the augmentation.
        num_workers: processes of the torchvision engine; null picks half the cores,
            none where there is nothing to augment.  The batched engine has none.
        repeats: times that an image is in a batch, each augmented anew; a divisor of
            `batch_size` (`ShuffledBatches`).
        drop_last: leave out the images that do not fill a last batch (likewise).
        resolution: phases on smaller images (`Resolution`), or null.
        epochs: of the training; phases are shares of them.
        sampler: `balanced`: an epoch has as many images of each class.
        folds, fold: k of a stratified k-fold of the training part, and the one held
            out, from 0; null: `val_fraction` is, or the source's own part.
        train_subset: train on about this many images, stratified and fixed by
            `split_seed`; null for all.
        label_noise, label_noise_kind: wrong labels to train and validate on, fixed by
            `split_seed` (`human_labels`); the test part keeps its own.
        fallback: a source to go on with where `source` has no data, or null: an error.
        exact_batch_size: a batch larger than the training part is an error; otherwise
            one that fits is taken, and `fitted` says so.

    Attributes, from `setup` on:
        images: name, origin, classes and fingerprint.
        train_part, val_part, test_part: uint8 (N, 3, H, W) and labels (N,).
        mean, std: (3,) of the training part's channels, in 0..1.

    Raises:
        UserError: a value is out of its range.
    """

    images: DatasetInfo
    train_part: Part
    val_part: Part
    test_part: Part
    mean: Tensor
    std: Tensor

    @validated
    def __init__(
        self,
        source: Any,
        augment: Augmentation,
        engine: Engine = "batched",
        batch_size: Count = 128,
        val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        split_seed: Natural = 0,
        seed: Natural = 0,
        num_workers: Natural | None = None,
        train_subset: Count | None = None,
        repeats: Count = 1,
        fallback: Any = None,
        exact_batch_size: bool = False,
        split: Literal["stratified", "tail"] = "stratified",
        drop_last: bool = True,
        label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        label_noise_kind: NoiseKind = "symmetric",
        resolution: Phases | None = None,
        epochs: Count = 1,
        folds: Annotated[int, Field(ge=2)] | None = None,
        fold: Natural = 0,
        sampler: Literal["shuffled", "balanced"] = "shuffled",
    ):
        super().__init__()
        check_folds(folds, fold, split)
        if repeats > 1 and not drop_last:
            raise UserError(
                "data.drop_last: expected true with data.repeats > 1, whose epochs "
                "have part of the images anyway, got false"
            )
        if batch_size % repeats:
            raise UserError(
                "data.repeats: expected a divisor of "
                f"data.batch_size={batch_size}, got {repeats}"
            )
        self.source = source
        self.augment = augment
        self.engine = engine
        self.batch_size = batch_size
        self.exact_batch_size = exact_batch_size
        self.fitted: str | None = None
        self.val_fraction = val_fraction
        self.split = split
        self.drop_last = drop_last
        self.folding, self.sampler = (folds, fold), sampler
        self.split_seed, self.seed = split_seed, seed
        self.num_workers = num_workers
        self.train_subset = train_subset
        self.repeats = repeats
        self.noise = label_noise, label_noise_kind
        phases = tuple((side, end) for side, end in resolution or ())
        self.resolution = Resolution(phases, epochs)
        self.fallback = fallback
        self.fell_back: str | None = None
        self._placed: dict[str, Part] = {}
        self._place = {"epoch": 0, "done": 0}  # where training goes on

    def locate(self) -> str:
        """Find or download the data and return their identity, without decoding.

        Falls back to `fallback`, where there is one, and says so in `fell_back`.

        Raises:
            DataNotFound: they are not there, and there is no fallback.
        """
        try:
            return str(self.source.key())
        except DataNotFound as error:
            if self.fallback is None:
                raise
            self.fell_back = str(error)
            self.source = self.fallback
            return str(self.source.key())

    def setup(self, stage: str | None = None) -> None:
        """Load and split the images, once.

        Raises:
            UserError: as the source's `load`, and as `fit_batch_size`.
        """
        if not hasattr(self, "train_part"):
            self._load()
        self.fit_batch_size(self._rank[1])

    def _load(self) -> None:
        images: ImageSet = self.source.load()
        pixels, labels = images.train_images, images.train_labels
        own = not self.folding[0] and images.val_images is not None
        how = "none" if own else self.split, self.val_fraction, self.train_subset
        train, val = train_val_split(labels, *how, self.split_seed, *self.folding)
        noise = *self.noise, self.split_seed, len(images.classes)
        labels = noisy_labels(labels, *noise)
        self.train_part = pixels[train], labels[train]
        self.val_part = pixels[val], labels[val]
        if own and images.val_images is not None and images.val_labels is not None:
            self.val_part = images.val_images, noisy_labels(images.val_labels, *noise)
        self.test_part = images.test_images, images.test_labels
        origin = images.origin
        if self.folding[0] and images.val_images is not None:
            origin += ", but with data.folds on a fold of the training part"
        origin += noise_note(*self.noise)
        # Not the images: the parts are copies of them.
        self.images = images.info._replace(origin=origin)
        self.mean, self.std = channel_statistics(self.train_part[0])
        self.std = self.std.clamp_min(1 / 255)  # a constant channel is not divided by 0

    def share_images(self, other: ImageDataModule) -> None:
        """Take the pixels and the split that `other` has read from the same source."""
        self.images, self.train_part = other.images, other.train_part
        self.val_part, self.test_part = other.val_part, other.test_part
        self.mean, self.std = other.mean, other.std

    def with_engine(self, engine: Engine) -> ImageDataModule:
        """Return the same data, images shared, with another engine."""
        other = copy.copy(self)
        other.engine = engine
        return other

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (3,) each, of the training part, in 0..1."""
        return self.mean, self.std

    @property
    def num_classes(self) -> int:
        return len(self.images.classes)

    @property
    def image_size(self) -> Size:
        height, width = self.train_part[0].shape[-2:]
        return height, width

    def first_images(self, n: int) -> Tensor:
        """Return the first n training images, normalised: float (n, 3, H, W)."""
        return normalise(self.train_part[0][:n], *self.statistics)

    def shuffled(self, n: int) -> Iterator[Tensor]:
        """Return batches of about n training images, augmented, drawn over them all."""
        part = self._placed_pair("train_part")
        size = min(EVAL_BATCH_SIZE, len(part[0]))
        sampler = ShuffledBatches(len(part[0]), size, self.seed)
        statistics = self._placed_pair("statistics")
        batches = BatchesOnDevice(*part, self.augment, sampler, statistics)
        return (images for images, _ in islice(batches, -(-n // size)))

    def describe(self) -> dict[str, Any]:
        """Return the `data` field of `result.json`."""
        return {
            **self.images._asdict(),
            "decoder": decoder(),
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
        """Reduce a batch that the training part cannot fill to four steps an epoch.

        Raises:
            UserError: `exact_batch_size`, or fewer images than devices.
        """
        images = len(self.train_part[0])
        most = images // world_size
        if self.batch_size <= most:
            return
        if self.exact_batch_size or most < 1:
            raise UserError(
                f"data.batch_size: expected at most {most} (the images to train on, by "
                f"the number of devices), got {self.batch_size}"
            )
        asked, self.batch_size = self.batch_size, min(most, max(2, most // STEPS))
        self.fitted = (
            f"data.batch_size: {asked} do not fit, there are {images} images to train "
            f"on; {self.batch_size} are taken, data.batch_size=… takes others"
        )

    def _placed_pair(self, name: str, device: torch.device | None = None) -> Part:
        """Return a pair of tensors, by its attribute, on the device; moved once."""
        if device is None:
            trainer = self.trainer
            device = trainer.strategy.root_device if trainer else torch.device("cpu")
        pair = self._placed.get(name)
        if pair is None or pair[0].device != device:
            first, second = getattr(self, name)
            pair = first.to(device), second.to(device)
            self._placed[name] = pair
        return pair

    def train_dataloader(self) -> BatchesOnDevice | DataLoader:
        return self.training_batches()

    def training_batches(
        self, device: torch.device | None = None
    ) -> BatchesOnDevice | DataLoader:
        """Return the loader of the training part.

        Args:
            device: of the batched engine; None: the trainer's.

        Raises:
            UserError: as `fit_batch_size`.
        """
        self.fit_batch_size(self._rank[1])
        # Not left to Lightning: a loader with workers begins before it says the epoch.
        images, repeats = len(self.train_part[0]), self.repeats
        order = images, self.batch_size, self.seed, *self._rank
        place = self._place["epoch"], self._place["done"]
        labels = self.train_part[1] if self.sampler == "balanced" else None
        sampler = ShuffledBatches(*order, *place, repeats, self.drop_last, labels)
        size = self.resolution
        if self.engine == "batched":
            part = self._placed_pair("train_part", device)
            measured = self._placed_pair("statistics", device)
            return BatchesOnDevice(*part, self.augment, sampler, measured, size)
        part = self.train_part
        dataset = AugmentedImages(*part, self.augment, self.seed, repeats, size)
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
        return self._in_order("val")

    def test_dataloader(self) -> ImagesInOrder:
        return self._in_order("test")

    def _in_order(self, part: str) -> ImagesInOrder:
        limit: float = getattr(self.trainer, f"limit_{part}_batches", 1.0)
        images, labels = getattr(self, name := f"{part}_part")
        whole = len(ImagesInOrder(images, labels, *self._rank))
        if limit < (whole if isinstance(limit, int) else 1):  # or Lightning's share
            # A part of a set that is sorted by class would hold a few classes alone.
            order = evenly_spread(labels)
            setattr(self, name, (images[order], labels[order]))
            self._placed.pop(name, None)
        return ImagesInOrder(*self._placed_pair(name), *self._rank)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Return the batch with normalised float images (B, 3, H, W), where it lies."""
        images, labels = batch
        if images.is_floating_point():  # the batched engine's are finished
            return batch
        statistics = self._placed_pair("statistics", images.device)
        return normalise(images, *statistics), labels

    # --- checkpoints -------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the place in training, and facts of the data for `predict`."""
        trainer = self.trainer
        assert trainer is not None  # a checkpoint is written by one
        done = internals.batches_done(trainer) % trainer.num_training_batches
        return {
            "place": {"epoch": internals.epochs_done(trainer), "done": done},
            "size": list(self.image_size),
            "fingerprint": self.images.fingerprint,
            "decoder": decoder(),
            "classes": list(self.images.classes),
            "mean": self.mean,
            "std": self.std,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the place in training.

        Raises:
            UserError: the checkpoint was trained on other pixels.
        """
        images = getattr(self, "images", None)  # before `setup` there are none
        if images is not None and state["fingerprint"] != images.fingerprint:
            raise UserError(
                "ckpt_path: the checkpoint was trained on data with fingerprint "
                f"{state['fingerprint']}, these have {images.fingerprint}"
                f"{decoders_differ(state.get('decoder'))}"
            )
        self._place = state.get("place", self._place)  # older checkpoints have none
