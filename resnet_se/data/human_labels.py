"""Labels other than the given ones: of people (CIFAR-10N), or wrong on purpose.

Both are of the images to train and validate on; the test part keeps its labels.

CIFAR-10N: Wei et al. 2022, arXiv 2110.12088.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from resnet_se.data.image_set import ImageSet
from resnet_se.data.reading import first_few, source_error
from resnet_se.data.sources import CIFAR10
from resnet_se.utils.random_streams import stream
from resnet_se.utils.validation import Text, validated

FILE = "CIFAR-10_human.pt"
NoiseKind = Literal["symmetric", "pairs"]


def noisy_labels(
    labels: Tensor, share: float, kind: NoiseKind, seed: int, classes: int
) -> Tensor:
    """Return labels (N,) of which a share of every class is wrong, fixed by the seed.

    Args:
        kind: `symmetric`: any other class, all as likely; `pairs`: the next class.
    """
    generator = stream("label noise", seed)
    noisy = labels.clone()
    for label in range(classes):
        members = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator)
        wrong = members[order[: round(share * len(members))]]
        steps = torch.ones(len(wrong), dtype=torch.int64)
        if kind == "symmetric":
            steps = torch.randint(1, classes, (len(wrong),), generator=generator)
        noisy[wrong] = (label + steps) % classes
    return noisy


def noise_note(share: float, kind: NoiseKind) -> str:
    """Return the end of a line on the images: how many labels are wrong, if any."""
    if not share:
        return ""
    return f", {share:.4g} of the labels to train and validate on made wrong ({kind})"


@validated
@dataclass(frozen=True)
class CIFAR10N:
    """CIFAR-10 whose training labels are those that people gave.

    Class folders are in the order of their names; within a class they must have the
    official one, which the labels cannot show: `origin` says so.

    Args:
        root, download: of the images, as for `CIFAR10`.
        labels: `CIFAR-10_human.pt`, or a folder that holds it; null: `root`.
        kind: of label: of one person (`random_label1`, 2, 3), of three by majority
            (`aggre_label`, 9 % wrong), or the worst of three (`worse_label`, 40 %).
    """

    root: Text
    labels: Text | None = None
    kind: Literal[
        "worse_label", "aggre_label", "random_label1", "random_label2", "random_label3"
    ] = "worse_label"
    download: bool = True

    @property
    def _images(self) -> CIFAR10:
        return CIFAR10(self.root, self.download)

    def key(self) -> str:
        """Return the identity of the images and of the labels' file."""
        digest = hashlib.sha256(self._file().read_bytes()).hexdigest()[:16]
        return f"{self._images.as_files()[0]}-{self.kind}-{digest}"

    def load(self) -> ImageSet:
        """Return the images with the labels of people.

        Raises:
            UserError: as `CIFAR10.load`; the labels are damaged, or of other images.
        """
        images = self._images.as_files()[1]()
        path = self._file()
        labels = read_human_labels(path)
        clean, given = labels["clean_label"], images.train_labels
        origin = f"{images.origin}, {self.kind} of {path.name}"
        if not torch.equal(clean, given):
            order = clean.argsort(stable=True)
            if not torch.equal(clean[order], given):
                expected = f"labels of the {len(given):,} training images in {path}"
                raise source_error("labels", expected, "those of others")
            labels = {name: values[order] for name, values in labels.items()}
            origin += ", taken to be in the official order within each class"
        noisy = labels[self.kind]
        return replace(images, name="cifar10n", origin=origin, train_labels=noisy)

    def _file(self) -> Path:
        path = Path(self.labels or self.root).expanduser()
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise source_error("labels", f"{FILE} in {path.parent}", "no such file")
        return path


def read_human_labels(path: Path) -> dict[str, Tensor]:
    """Return {kind: int64 (N,)} of `CIFAR-10_human.pt`, without running anything in it.

    Raises:
        UserError: damaged, or other things than labels 0 to 9 of the same images.
    """
    from numpy._core.multiarray import _reconstruct

    arrays: list[Any] = [
        *(_reconstruct, np.ndarray, np.dtype),
        (_reconstruct, "numpy.core.multiarray._reconstruct"),  # as NumPy 1 named it
        *(np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.Float64DType),
    ]
    expected = f"labels of CIFAR-10N in {path}"
    try:
        with torch.serialization.safe_globals(arrays):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zipfile, pickle, torch: each has its own kind
        got = "a file that is damaged or holds more than arrays"
        raise source_error("labels", expected, got) from error
    if not isinstance(found, dict) or "clean_label" not in found:
        names = first_few(map(str, found)) if isinstance(found, dict) else type(found)
        raise source_error("labels", f"`clean_label` in {path}", names)
    labels = {name: np.asarray(values) for name, values in found.items()}
    shape = labels["clean_label"].shape
    for name, values in labels.items():
        fits = np.issubdtype(values.dtype, np.integer) and values.shape == shape
        if not fits or values.ndim != 1 or not np.isin(values, range(10)).all():
            got = f"`{name}`, {values.dtype} {values.shape}"
            raise source_error("labels", f"{expected}, integers 0 to 9 (N,)", got)
    return {k: torch.from_numpy(v.astype(np.int64)) for k, v in labels.items()}
