"""Batches of images: order, shares of the ranks, engines.

Both engines take their images in the same order, and ranks share it: of one permutation
by (seed, epoch), the k-th global batch is its k-th `batch_size` × `world_size` images,
and rank r has the r-th `batch_size` of them.  So two devices with B images each see the
batches of one device with 2·B.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2.functional import resize

from resnet_se.data.augmentation.custom import apply_custom, apply_custom_batch
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.normalisation import normalise_
from resnet_se.data.resolution import NATIVE, Resolution, downsample
from resnet_se.utils.random_streams import derive_seed

EVAL_BATCH_SIZE = 500

# Images that the batched engine cuts at once on a GPU: with single batches the launches
# would take longer than the work.  A CPU's caches like single batches better.
GPU_CHUNK = 2048


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return N indices, sorted by class, with ⌊N/K⌋ or one more of each class.

    A class's images are gone through in a random order, and again in another.
    """
    classes = labels.unique()
    shares = torch.arange(len(labels)).tensor_split(len(classes))
    chosen = []
    for label, share in zip(classes, shares, strict=True):
        members = (labels == label).nonzero().squeeze(1)
        rounds = -(-len(share) // len(members))
        orders = [
            members[torch.randperm(len(members), generator=generator)]
            for _ in range(rounds)
        ]
        chosen.append(torch.cat(orders)[: len(share)])
    return torch.cat(chosen)


class ShuffledBatches(Sampler):
    """Batches of one rank as lists of (epoch, index), shuffled by (seed, epoch).

    Lightning calls `set_epoch`.

    Args:
        size: images in all.
        batch_size: B, of one rank.
        seed: of the order.
        rank, world_size: of the process, and their number.
        epoch: to begin with.
        done: batches of that epoch which have been trained on and are left out.
        repeats: m; a batch is B/m images, each m times in a row, augmented differently
            (Hoffer et al. 2020, arXiv 1901.09335; an epoch keeps its steps, and has an
            m-th of the images: Berman et al. 2019, arXiv 1902.05509).  The index of
            image i's r-th repeat is i + r × size.
        drop_last: leave out the images that do not fill a batch on every rank; else
            they are a smaller batch, as many on each rank, with repeats of one alone.
        balance: labels (N,); an epoch has as many images of each class, a rare class's
            several times over, a frequent one's a part.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        done: int = 0,
        repeats: int = 1,
        drop_last: bool = True,
        balance: Tensor | None = None,
    ):
        self.size = size
        self.balance = balance
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch
        self.done = done
        self.repeats = repeats
        # Images of the last batch, on each rank, that are not left out.
        self.rest = 0 if drop_last else size % (batch_size * world_size) // world_size

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.size // (self.batch_size * self.world_size) + (self.rest > 0)

    def indices(self) -> Tensor:
        """Return int64 (N,): the images of the batches to come, B a batch."""
        generator = torch.Generator().manual_seed(
            derive_seed("shuffle", self.seed, self.epoch)
        )
        order = torch.randperm(self.size, generator=generator)
        if self.balance is not None:
            order = balanced_order(self.balance, generator)[order]
        full = len(self) - (self.rest > 0)
        shape = full, self.world_size, self.batch_size
        used = full * self.world_size * self.batch_size // self.repeats
        times = torch.arange(self.repeats) * self.size  # (m,)
        batches = (order[:used, None] + times).view(shape)[:, self.rank].flatten()
        rest = order[used + self.rank * self.rest :][: self.rest]
        return torch.cat([batches, rest])[self.done * self.batch_size :]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self.indices().split(self.batch_size):
            yield [(epoch, i) for i in batch.tolist()]


class GivenImages(ShuffledBatches):
    """One batch of the images 0 to n − 1, for a figure of one epoch's augmentation."""

    def __init__(self, n: int, seed: int, epoch: int):
        super().__init__(n, n, seed, epoch=epoch)

    def indices(self) -> Tensor:
        return torch.arange(self.size)


class AugmentedImages(Dataset):
    """The torchvision engine: augmented uint8 images (B, 3, H, W) and labels (B,).

    Indexed by a list of (epoch, index), which keys each image's random stream.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        augmentation: Augmentation,
        seed: int,
        repeats: int = 1,
        resolution: Resolution = NATIVE,
    ):
        self.images = images
        self.labels = labels
        self.seed = seed
        self.augmentation = augmentation
        self.resolution = resolution
        self.transform = augmentation.transform(*images.shape[-2:])
        self.mirrored = None  # in even epochs, in odd ones
        if augmentation.alternate_flip:
            n = len(images) * repeats
            self.mirrored = [augmentation.mirrored(n, seed, epoch) for epoch in (0, 1)]

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in batch]) % len(self.images)  # repeats
        images, labels = self.images[index], self.labels[index]
        epoch, first = batch[0]
        if self.augmentation.own_batch is not None:
            place = first, self.seed, epoch
            images = apply_custom_batch(self.augmentation.own_batch, images, *place)
        if self.mirrored is not None:
            # Before the rest, whose ranges are symmetric: the same distribution.
            for row, (epoch, i) in enumerate(batch):
                if self.mirrored[epoch % 2][i]:
                    images[row] = images[row].flip(-1)
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                for row, (epoch, i) in enumerate(batch):
                    torch.default_generator.manual_seed(
                        derive_seed("image", self.seed, epoch, i)
                    )
                    images[row] = self.transform(images[row])
        height, width = images.shape[-2:]
        size = self.resolution.size(batch[0][0], (height, width))
        if size != (height, width):
            images = resize(images, list(size), antialias=True)
        return images, labels


class BatchesOnDevice:
    """The batched engine: normalised float (B, 3, H, W), channels last; labels (B,).

    Both lie on the device of `images`; an epoch moves its order and its parameters
    there once, and nothing waits for the device afterwards.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        augmentation: Augmentation,
        sampler: ShuffledBatches,
        statistics: tuple[Tensor, Tensor],
        resolution: Resolution = NATIVE,
    ):
        augmentation.check(*images.shape[-2:])
        self.images = images
        self.labels = labels
        self.augmentation = augmentation
        self.sampler = sampler  # where Lightning looks for `set_epoch`
        self.statistics = statistics
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, sampler = self.images.device, self.sampler
        height, width = self.images.shape[-2:]
        resized = self.resolution.size(sampler.epoch, (height, width))
        count = len(self.images)
        draws = self.augmentation.draw(
            count * sampler.repeats, height, width, sampler.seed, sampler.epoch
        ).to(device)
        size = sampler.batch_size
        at_once = max(1, GPU_CHUNK // size) if device.type != "cpu" else 1
        order = sampler.indices()
        chunks = (o.split(at_once * size) for o in (order.to(device), order))
        for index, on_cpu in zip(*chunks, strict=True):
            image = index % count
            images = self._apply_custom(self.images.index_select(0, image), index)
            images = self.augmentation.apply(images, draws.select(index, on_cpu))
            images = normalise_(images, *self.statistics)
            images = downsample(images, resized)
            images = images.contiguous(memory_format=torch.channels_last)
            labels = self.labels.index_select(0, image)
            yield from zip(images.split(size), labels.split(size), strict=True)

    def _apply_custom(self, images: Tensor, index: Tensor) -> Tensor:
        """Return uint8 (k·B, 3, H, W) after the user's own transforms."""
        single, batch = self.augmentation.own, self.augmentation.own_batch
        place = self.sampler.seed, self.sampler.epoch
        if batch is not None:
            size = self.sampler.batch_size
            firsts = index[::size].tolist()
            images = torch.cat(
                [
                    apply_custom_batch(batch, part, first, *place)
                    for part, first in zip(images.split(size), firsts, strict=True)
                ]
            )
        return images if single is None else apply_custom(single, images, index, *place)


class ImagesInOrder:
    """Evaluation batches: uint8 images (≤ 500, 3, H, W) and labels (≤ 500,).

    Rank r has images r, r + world_size, …: each image once, and as many batches (of
    nearly equal sizes) on every rank.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, rank: int = 0, world_size: int = 1
    ):
        self.images = images[rank::world_size]
        self.labels = labels[rank::world_size]
        most = -(-len(images) // world_size)  # images of the rank with the most
        self.batches = -(-most // EVAL_BATCH_SIZE)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = (x.tensor_split(self.batches) for x in (self.images, self.labels))
        yield from zip(*parts, strict=True)
