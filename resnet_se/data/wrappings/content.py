"""The one order of a set's images, and the key that follows from their content.

Images that are not in the order of the batches are put into one that follows from the
pixels alone, so that every wrapping of the same images gives the same training.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from resnet_se.data.image_set import ImageSet, image_digests

PIXELS = 3 * 32 * 32
# Orders in which runs are on record: {fingerprint: key of the source}.
RECORDED = {"sha256:e9e276a52837cd23": "image_folder-d7e5cf3d40e6038b"}
# SHA-1 of the binary version's files as git has them (JanHalozan's
# ConvolutionalNeuralNetwork on GitHub, commit e59da46, fixture/cifar-10-batches-bin):
# images in the batches' order without the batches.  One source; not checked against the
# official archive, which was not to be had.  Another file is no more than another hash.
OFFICIAL_BINARY = {
    "cifar10": (
        (
            "da09f891072747be90e69e4f00ba7cba870dc87e",
            "7e958840b7a55df3353574298ebc9ca0e4bba48e",
            "5259a3e9674ffdf2d5c33a1067f7192ff06c9e2f",
            "301e7d16d78428f13262e87a5bc78ed45b8224aa",
            "51fe428dfbdd065852912743ae8b7b63bb1e9d8d",
        ),
        ("e3f3b4653f18f27ada1558cabc3352a3ed1b25cc",),
    )
}
BATCH = 10_000  # images of a file


def content_order(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return an order (N,) that follows from pixels and labels alone."""
    digests = image_digests(images, labels)
    return torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))


def canonical(images: ImageSet) -> ImageSet:
    """Return the same images in the one order of their content.

    That of the official batches where they can be told, that of a set which runs are on
    record for, and otherwise `content_order`.
    """
    if images.fingerprint in RECORDED:
        return images
    tensors = images.tensors
    order = "official"
    orders = _official_order(images)
    if orders is None:
        order = "content"
        orders = [
            content_order(tensors[f"{part}_images"], tensors[f"{part}_labels"])
            for part in ("train", "test")
        ]
    train, test = orders
    return replace(
        images,
        order=order,
        train_images=images.train_images[train],
        train_labels=images.train_labels[train],
        test_images=images.test_images[test],
        test_labels=images.test_labels[test],
    )


def _official_order(images: ImageSet) -> list[torch.Tensor] | None:
    """Return the batches' order of both parts; None: they are not those batches."""
    orders: list[torch.Tensor] = []
    known_files = OFFICIAL_BINARY.get(images.name)
    if known_files is None:
        return None
    for part, known in zip(("train", "test"), known_files, strict=True):
        x, y = images.tensors[f"{part}_images"], images.tensors[f"{part}_labels"]
        if len(y) != BATCH * len(known):
            return None
        found = [
            _binary_digest(*pair)
            for pair in zip(x.split(BATCH), y.split(BATCH), strict=True)
        ]
        if sorted(found) != sorted(known):
            return None
        places = torch.arange(len(y)).view(len(known), BATCH)
        orders.append(places[[found.index(digest) for digest in known]].flatten())
    return orders


def _binary_digest(images: torch.Tensor, labels: torch.Tensor) -> str:
    """Return git's SHA-1 of a file of the binary version with these images."""
    n = len(labels)
    digest = hashlib.sha1(b"blob %d\0" % (n * (1 + PIXELS)), usedforsecurity=False)
    records = torch.cat([labels.to(torch.uint8)[:, None], images.reshape(n, -1)], dim=1)
    digest.update(records.contiguous().numpy().data)
    return digest.hexdigest()


def content_key(images: ImageSet, official: str) -> str:
    """Return the key of images in their one order.

    Args:
        official: the key of the official batches.
    """
    if images.order == "official":
        return official
    digest = images.fingerprint
    return RECORDED.get(digest) or f"{images.name}-{digest.partition(':')[2]}"
