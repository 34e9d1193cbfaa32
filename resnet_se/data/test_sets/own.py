"""Test sets of one's own: two arrays, or pictures in folders named after classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from resnet_se.data.decode import Size
from resnet_se.data.image_tree import PART_NAMES
from resnet_se.data.inference_inputs import Picture, batches, find_pictures
from resnet_se.data.reading import all_named, root_error
from resnet_se.data.test_sets.base import (
    LabelledImages,
    TestSet,
    Trained,
    found_file,
    indices_of,
    read_images,
    read_labels,
)
from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import Text, validated

TESTS = (*PART_NAMES["test"], *PART_NAMES["val"])  # parts of a tree
TRAINS = PART_NAMES["train"]


@validated
@dataclass(frozen=True)
class Arrays(TestSet):
    """Two arrays in `root`: `images.npy`, uint8 (N, H, W, 3), and `labels.npy`, (N,).

    A label is the index of a class in the run's order.
    """

    root: Text

    def key(self) -> str:
        return f"arrays-{Path(self.root).expanduser().resolve().name}"

    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        root = Path(self.root).expanduser()
        images = read_images(found_file(root, ("images.npy",)))
        labels = found_file(root, ("labels.npy",))
        yield LabelledImages(
            images, read_labels(labels, len(images), len(trained.classes))
        )


@validated
@dataclass(frozen=True)
class Pictures(TestSet):
    """Pictures in folders named after classes, in a folder or an archive.

    Of a tree with training and test part the test part counts, else all.  Classes may
    be missing.
    """

    root: Text

    def key(self) -> str:
        name = Path(self.root).expanduser().resolve().name
        return f"image_folder-{name.partition('.')[0]}"

    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        try:
            with find_pictures([self.root]) as pictures:
                chosen = _test_part(list(pictures), Path(self.root))
                images, names = _decoded(chosen, trained.size, Path(self.root))
        except UserError as error:
            if not str(error).startswith("inputs: "):
                raise
            got = str(error).removeprefix("inputs: ")
            raise root_error("pictures in class folders", got) from error
        indices_of(tuple(dict.fromkeys(names)), trained.classes)
        labels = torch.tensor([trained.classes.index(name) for name in names])
        yield LabelledImages(images, labels)


def _parts(picture: Picture, root: Path) -> list[str]:
    """Return the folders between the root and the picture's class, in lower case."""
    inside = os.path.relpath(picture.name, os.path.expanduser(root))
    return [part.lower() for part in Path(inside).parts[:-2]]


def _test_part(pictures: list[Picture], root: Path) -> list[Picture]:
    parts = [set(_parts(picture, root)) for picture in pictures]
    trained = any(part & set(TRAINS) for part in parts)
    for name in TESTS if trained else ():
        chosen = [p for p, part in zip(pictures, parts, strict=True) if name in part]
        if chosen:
            return chosen
    if trained:
        expected = (
            f"a test part ({', '.join(TESTS)}) beside the training part in {root}"
        )
        raise root_error(expected, "none", "name the folder to be tested")
    return pictures


def _decoded(
    pictures: list[Picture], size: Size, root: Path
) -> tuple[torch.Tensor, list[str]]:
    """Return uint8 (N, 3, H, W) and the class folder of each."""
    found = list(batches(pictures, size, 256))
    broken = [f"{name} ({why})" for b in found for name, why in b.broken.items()]
    if broken:
        raise root_error(f"pictures that can be read in {root}", all_named(broken))
    images = torch.cat([torch.from_numpy(batch.pixels) for batch in found])
    return images, [picture.folder for b in found for picture in b.pictures]
