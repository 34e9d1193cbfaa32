"""Splits of a training set: stratified, its tail, folds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resnet_se.utils.errors import UserError
from resnet_se.utils.random_streams import derive_seed


def train_val_split(
    labels: Tensor,
    split: str,
    fraction: float,
    subset: int | None,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return indices (N_train,) and (N_val,) by a split below; raises as it does.

    Args:
        split: `stratified` or `tail`, where there are no `folds`; `none`: all to train.
        subset: about how many of the first are left, stratified; None: all.
    """
    if split == "none":
        train, val = torch.arange(len(labels)), torch.arange(0)
    elif folds:
        train, val = fold_split(labels, folds, fold, seed)
    elif split == "tail":
        train, val = tail_split(labels, fraction)
    else:
        train, val = stratified_split(labels, fraction, seed)
    if subset is not None and subset < len(train):
        share = 1 - subset / len(train)
        typed = f"data.train_subset={subset}"
        train = train[stratified_split(labels[train], share, seed, typed)[0]]
    return train, val


def stratified_split(
    labels: Tensor, fraction: float, seed: int, typed: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return ascending indices (N_train,) and (N_val,), stratified by class.

    A class of n images gives max(1, round(n × fraction)) of them to validation.

    Args:
        typed: the setting that the fraction is of, where it is not its own.

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
                f"{typed or f'data.val_fraction={fraction}'}: class {int(label)} has "
                f"{len(members)} images and would keep none to train on"
            )
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[:n_val]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def tail_split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return indices (N_train,) and (N_val,): the first images, and the last ones.

    Keras's `validation_split`: ⌊N × (1 − fraction)⌋ images are trained on.

    Raises:
        UserError: no image is left for one of the parts, or none of a class to train
            on: the images are sorted by class.
    """
    size = math.floor(len(labels) * (1 - fraction))
    train, val = torch.arange(len(labels)).split([size, len(labels) - size])
    if not len(train) or not len(val):
        raise UserError(
            f"data.val_fraction: expected images in both parts, got {len(train)} to "
            f"train on and {len(val)} held out of {len(labels)}"
        )
    missing = set(labels.unique().tolist()) - set(labels[train].unique().tolist())
    if missing:
        raise UserError(
            f"data.split=tail: class {min(missing)} lies in the last {len(val)} images "
            "alone, none to train on; images sorted by class need data.split=stratified"
        )
    return train, val


def evenly_spread(labels: Tensor) -> Tensor:
    """Return an order (N,) of which any beginning has its share of every class."""
    share = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        share[members] = (torch.arange(len(members)).double() + 0.5) / len(members)
    return share.argsort(stable=True)


def check_folds(folds: int | None, fold: int, split: str) -> None:
    """Raise UserError for a fold that there is not, or a split that folds do not do."""
    if fold >= (folds or 1):
        most = (
            f"{folds - 1} with data.folds={folds}" if folds else "0 without data.folds"
        )
        raise UserError(f"data.fold: expected 0 to {most}, got {fold}")
    if folds and split != "stratified":
        raise UserError(
            f"data.split: expected stratified with data.folds={folds}, got {split}"
        )


def fold_split(
    labels: Tensor, folds: int, fold: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return ascending indices (N_train,) and (N_val,): all but one fold, and it.

    Each class is shuffled by `seed` and dealt out in `folds` parts of nearly one size;
    over `fold` = 0 … folds − 1 each image is held out once.

    Raises:
        UserError: a class has fewer images than folds.
    """
    generator = torch.Generator().manual_seed(derive_seed("folds", seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        if len(members) < folds:
            raise UserError(
                f"data.folds: expected at most {len(members)}, the images of class "
                f"{int(label)}, got {folds}"
            )
        order = members[torch.randperm(len(members), generator=generator)]
        chosen[order.tensor_split(folds)[fold]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)
