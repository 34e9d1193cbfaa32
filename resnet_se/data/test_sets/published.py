"""Published test sets for networks of CIFAR-10 and CIFAR-100, as they are released.

CIFAR-10.1: Recht et al. 2018, arXiv 1806.00451.
CIFAR-10-C: Hendrycks & Dietterich 2019, arXiv 1903.12261.
ciFAIR-10 and -100: Barz & Denzler 2020, arXiv 1902.00423.
CIFAR-10H: Peterson et al. 2019, arXiv 1908.07086.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from resnet_se.data.archives import is_archive, unpacked
from resnet_se.data.reading import Limits, first_few, root_error
from resnet_se.data.sources import CIFAR10_CLASSES, CIFAR100_CLASSES
from resnet_se.data.test_sets.base import (
    LabelledImages,
    TestSet,
    Trained,
    checked_labels,
    found_file,
    indices_of,
    read_array,
    read_images,
    read_labels,
)
from resnet_se.utils.validation import Text, validated

SEVERITIES = 5
# Least share of labels that people agree with where both are in one order; 0.99 do, of
# other orders about 0.1.
SAME_ORDER = 0.9


@validated
@dataclass(frozen=True)
class CIFAR10_1(TestSet):
    """About 2,000 new photographs, chosen as CIFAR-10's were.

    Args:
        root: folder of `cifar10.1_v6_data.npy` and `cifar10.1_v6_labels.npy`.
        version: v6 has as many of each class, v4 is the one of the paper's figures.
    """

    root: Text
    version: Literal["v4", "v6"] = "v6"

    def key(self) -> str:
        return f"cifar10_1-{self.version}"

    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        root = Path(self.root).expanduser()
        names = [f"cifar10.1_{self.version}_{part}.npy" for part in ("data", "labels")]
        data, labels = (found_file(root, (n, f"datasets/{n}")) for n in names)
        images = read_images(data, 32)
        index = indices_of(CIFAR10_CLASSES, trained.classes)
        y = read_labels(labels, len(images), len(CIFAR10_CLASSES))
        yield LabelledImages(images, index[y])


@validated
@dataclass(frozen=True)
class CIFAR10C(TestSet):
    """CIFAR-10-C's files: the test images under 15 corruptions and four more.

    Args:
        root: folder of `<corruption>.npy`, uint8 (50000, 32, 32, 3), five severities
            one after the other, and `labels.npy`.
    """

    root: Text

    def key(self) -> str:
        return "cifar10_c"

    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        root = Path(self.root).expanduser()
        labels = found_file(root, ("labels.npy", "CIFAR-10-C/labels.npy"))
        names = sorted(p for p in labels.parent.glob("*.npy") if p != labels)
        if not names:
            raise root_error(f"<corruption>.npy beside {labels}", "none")
        index = indices_of(CIFAR10_CLASSES, trained.classes)
        for path in names:
            images = read_images(path, 32)
            if len(images) % SEVERITIES:
                expected = (
                    f"images of {SEVERITIES} severities, as many of each, in {path}"
                )
                raise root_error(expected, f"{len(images):,}")
            y = index[read_labels(labels, len(images), len(CIFAR10_CLASSES))]
            parts = zip(images.chunk(SEVERITIES), y.chunk(SEVERITIES), strict=True)
            for severity, (x, target) in enumerate(parts, 1):
                yield LabelledImages(x, target, path.stem, severity)


@validated
@dataclass(frozen=True)
class CIFAR10H(TestSet):
    """CIFAR-10's test images with the shares of about 50 people who chose each class.

    Args:
        root: folder of `cifar10h-probs.npy`, or that file; its order is the official.
    """

    root: Text

    def key(self) -> str:
        return "cifar10_h"

    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        name = "cifar10h-probs.npy"
        path = found_file(Path(self.root).expanduser(), (name, f"data/{name}"))
        k = len(CIFAR10_CLASSES)
        shares = read_array(path, f"shares of people (N, {k})", (None, k))
        if not np.issubdtype(shares.dtype, np.floating):
            raise root_error(f"shares of people in {path}", f"{shares.dtype}")
        off = ~(np.abs(shares.sum(axis=1) - 1) < 1e-3) | (shares < 0).any(axis=1)
        if off.any():
            row = int(off.argmax())
            got = f"{shares[row].sum():.4g} in row {row}, and {off.sum() - 1:,} more"
            raise root_error(f"shares that sum to one in {path}", got)
        index = indices_of(CIFAR10_CLASSES, trained.classes)
        images, labels = trained.own()
        if len(images) != len(shares):
            expected = f"shares for {len(images):,} test images in {path}"
            raise root_error(expected, f"{len(shares):,} rows")
        people = torch.zeros(len(shares), len(trained.classes))
        people[:, index] = torch.from_numpy(shares.astype(np.float32))
        agree = float((people.argmax(dim=1) == labels).float().mean())
        if agree < SAME_ORDER:
            expected = "test images in the official order, whose labels people share"
            hint = "class folders have another; use the official batches"
            raise root_error(expected, f"{agree:.0%} of the labels", hint)
        yield LabelledImages(images, labels, people=people)


# --- ciFAIR ------------------------------------------------------


@validated
@dataclass(frozen=True)
class CiFAIR10(TestSet):
    """CIFAR-10's test part without near duplicates of training images.

    Args:
        root: folder `ciFAIR-10` with `test_batch`, the one above it, or the zip.
    """

    root: Text

    folder: ClassVar[str] = "ciFAIR-10"
    file: ClassVar[str] = "test_batch"
    labels: ClassVar[str] = "labels"
    names: ClassVar[tuple[str, ...]] = CIFAR10_CLASSES

    def key(self) -> str:
        return self.folder.lower().replace("-", "")

    def load(self, trained: Trained) -> Iterator[LabelledImages]:
        root, names = self._root(), (self.file, f"{self.folder}/{self.file}")
        if root.is_file() and is_archive(root):
            wanted = unpacked(root, lambda _: lambda m: m.name == names[1], Limits())
            with wanted as folder:
                batch = read_batch(path := found_file(folder, names))
        else:
            batch = read_batch(path := found_file(root, names))
        pixels, labels = (batch.get(key) for key in ("data", self.labels))
        if not isinstance(pixels, np.ndarray) or labels is None:
            expected = f"`data` and `{self.labels}` in {path}"
            raise root_error(expected, first_few(sorted(map(str, batch))))
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
            got = f"{pixels.dtype} {pixels.shape}"
            raise root_error(f"uint8 (N, 3072) in {path}", got)
        images = torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32)
        index = indices_of(self.names, trained.classes)
        y = checked_labels(np.asarray(labels), path, len(images), len(self.names))
        yield LabelledImages(images, index[y])

    def _root(self) -> Path:
        root = Path(self.root).expanduser()
        packed = root / f"{self.folder}.zip"
        bare = not (root / self.folder).exists() and not (root / self.file).exists()
        if not root.exists():
            raise root_error(f"{self.folder} in {root}", "nothing is there")
        return packed if bare and packed.is_file() else root


@validated
@dataclass(frozen=True)
class CiFAIR100(CiFAIR10):
    """CIFAR-100's, with `test` in `ciFAIR-100`."""

    folder: ClassVar[str] = "ciFAIR-100"
    file: ClassVar[str] = "test"
    labels: ClassVar[str] = "fine_labels"
    names: ClassVar[tuple[str, ...]] = CIFAR100_CLASSES


class _ArraysOnly(pickle.Unpickler):
    """A reader of pickles of numbers, texts and arrays, which calls nothing else."""

    allowed: ClassVar[dict[tuple[str, str], str]] = {
        ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
        ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
        ("numpy", "ndarray"): "numpy",
        ("numpy", "dtype"): "numpy",
        ("_codecs", "encode"): "_codecs",
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, no array")
        return getattr(import_module(self.allowed[module, name]), name)


def read_batch(path: Path) -> dict[Any, Any]:
    """Return a pickled batch of CIFAR's form, without running anything in it.

    Raises:
        UserError: damaged, or it holds other things than arrays.
    """
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise root_error(f"a whole batch in {path}", reason) from error
    if not isinstance(batch, dict):
        raise root_error(f"a batch in {path}", type(batch).__name__)
    return batch
