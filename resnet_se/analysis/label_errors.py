"""Likely label errors, by predictions of networks that were not trained on the images.

Confident learning: Northcutt et al. 2021, arXiv 1911.00068, by cleanlab.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from resnet_se.analysis.duplicates import digests
from resnet_se.config.build import run_data
from resnet_se.runs import predictions_file
from resnet_se.utils.errors import UserError


def likely_errors(labels: Tensor, probabilities: Tensor) -> list[int]:
    """Return the images whose labels are likely wrong, the least likely label first.

    Args:
        labels: given, (N,).
        probabilities: (N, K), of networks that have not seen the image.

    Raises:
        UserError: cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise UserError(
            f"run: label errors need cleanlab ({error}); uv sync --extra labels"
        ) from None
    found = find_label_issues(
        labels.numpy(),
        probabilities.double().numpy(),
        return_indices_ranked_by="self_confidence",
        filter_by="confident_learning",
        n_jobs=1,
    )
    return [int(i) for i in found]


def held_out(
    run_dirs: list[Path], images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the images that runs predicted without training on them.

    Args:
        run_dirs: finished runs; several, as folds, cover more of the training part.
        images, labels: of all parts, uint8 (N, 3, H, W) and (N,).

    Returns:
        Ascending indices (M,), and probabilities (M, K), the mean over the runs.

    Raises:
        UserError: a run has no predictions, or others than of these images.
    """
    place = {name: i for i, name in enumerate(digests(images))}
    sums: dict[int, tuple[Tensor, int]] = {}
    for run_dir in run_dirs:
        for x, logits in _predictions(run_dir):
            p = logits.double().softmax(dim=1)
            for name, row in zip(digests(x), p, strict=True):
                if name not in place:
                    raise UserError(
                        f"run: {run_dir} was tested on other images than these"
                    )
                total, n = sums.get(place[name], (torch.zeros_like(row), 0))
                sums[place[name]] = total + row, n + 1
    indices = sorted(sums)
    means = [sums[i][0] / sums[i][1] for i in indices]
    return torch.tensor(indices), torch.stack(means)


def _predictions(run_dir: Path) -> list[tuple[Tensor, Tensor]]:
    """Return images and logits of the validation and the test part of a run."""
    path = run_dir / predictions_file.NAME
    try:
        arrays = predictions_file.read(path)
    except OSError as error:
        raise UserError(f"run: no predictions in {path} ({error.strerror})") from None
    saved = {name: torch.from_numpy(array) for name, array in arrays.items()}
    data = run_data(run_dir)
    parts = []
    for part, prefix in ((data.val_part, "val_"), (data.test_part, "")):
        logits = saved.get(f"{prefix}logits")
        if logits is not None and torch.equal(saved[f"{prefix}labels"], part[1]):
            parts.append((part[0], logits))
    if not parts:
        raise UserError(f"run: {path} has no predictions of all of a part in order")
    return parts
